//! `tojson` as transformers defines it: `json.dumps` of Python.

use super::meter::{Meter, Result, fail};
use super::value::{Value, float};

/// How JSON is written.
#[derive(Debug)]
pub(super) struct Style {
    pub(super) ascii: bool,
    /// What a level is indented by; `None` for one line.
    pub(super) indent: Option<String>,
    /// Between items, and between key and value.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
}

/// Writes `value`.
pub(super) fn dump(meter: &Meter, style: &Style, value: &Value) -> Result<String> {
    let mut out = String::new();
    write(meter, style, value, &mut out, 0)?;
    Ok(out)
}

fn line(meter: &Meter, style: &Style, out: &mut String, level: usize) -> Result<()> {
    if let Some(indent) = &style.indent {
        meter.bytes(1 + indent.len().saturating_mul(level))?;
        out.push('\n');
        out.push_str(&indent.repeat(level));
    }
    Ok(())
}

fn write(meter: &Meter, style: &Style, value: &Value, out: &mut String, level: usize) -> Result<()> {
    meter.work(2)?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&number(*f)),
        Value::Str(text) => string(meter, style, text, out)?,
        Value::List(seq) | Value::Tuple(seq) => {
            out.push('[');
            for (i, item) in seq.items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.separators.0);
                }
                line(meter, style, out, level + 1)?;
                write(meter, style, item, out, level + 1)?;
            }
            if !seq.items.is_empty() {
                line(meter, style, out, level)?;
            }
            out.push(']');
        }
        Value::Dict(dict) => {
            let mut entries: Vec<_> = dict.entries.iter().collect();
            if style.sort_keys {
                let mut failed = None;
                entries.sort_by(|a, b| {
                    a.0.compare(meter, &b.0).unwrap_or_else(|e| {
                        failed = Some(e);
                        std::cmp::Ordering::Equal
                    })
                });
                if let Some(failed) = failed {
                    return Err(failed);
                }
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.separators.0);
                }
                line(meter, style, out, level + 1)?;
                match key {
                    Value::Str(text) => string(meter, style, text, out)?,
                    Value::None => out.push_str("\"null\""),
                    Value::Bool(b) => out.push_str(if *b { "\"true\"" } else { "\"false\"" }),
                    Value::Int(i) => out.push_str(&format!("\"{i}\"")),
                    Value::Float(f) => out.push_str(&format!("\"{}\"", number(*f))),
                    other => return fail(format!("a {} is no key in JSON", other.kind())),
                }
                out.push_str(&style.separators.1);
                write(meter, style, item, out, level + 1)?;
            }
            if !dict.entries.is_empty() {
                line(meter, style, out, level)?;
            }
            out.push('}');
        }
        Value::Undefined(_) => return Err(value.undefined_error()),
        other => return fail(format!("a {} cannot be written as JSON", other.kind())),
    }
    meter.bytes(style.separators.0.len() + style.separators.1.len())
}

fn number(f: f64) -> String {
    match f {
        f if f.is_nan() => "NaN".to_owned(),
        f if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        f => float(f),
    }
}

fn string(meter: &Meter, style: &Style, text: &str, out: &mut String) -> Result<()> {
    meter.bytes(text.len() * 2)?;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (style.ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}
