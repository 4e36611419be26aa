//! The filters of Python's Jinja on one value; those that go over values are in `lists.rs`.

use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;

use super::format;
use super::json::{self, Style};
use super::lists;
use super::meter::{Error, Meter, Result, fail};
use super::ops::whole;
use super::strings::{self, Args, capitalize, lines, strip};
use super::value::{Number, Value};

/// Names of the filters.
pub(super) const FILTERS: [&str; 51] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "xmlattr",
    "pprint",
];

/// The entries of a dict as tuples.
pub(super) fn pairs(meter: &Meter, value: &Value) -> Result<Vec<Value>> {
    match value {
        Value::Dict(dict) => {
            let pair = |(key, value): &(Value, Value)| Value::tuple(meter, vec![key.clone(), value.clone()]);
            dict.entries.iter().map(pair).collect()
        }
        Value::Undefined(_) => Ok(Vec::new()),
        other => fail(format!("a {} has no items", other.kind())),
    }
}

/// A number from an optional argument.
pub(super) fn number(what: &str, value: Option<&Value>, default: i128) -> Result<i128> {
    value.map_or(Ok(default), |value| whole(value, what))
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// Applies a filter.
pub(super) fn filter(meter: &Meter, name: &str, value: &Value, args: &Args) -> Result<Value> {
    let text = || value.to_text(meter);
    let made = |s: String| {
        args.take(name, [])?;
        Value::text(meter, s)
    };
    if let Value::Str(text) = value {
        // Most look at every character.
        meter.bytes(text.len().saturating_mul(2))?;
    }
    match name {
        "upper" => made(text()?.to_uppercase()),
        "lower" => made(text()?.to_lowercase()),
        "capitalize" => made(capitalize(&text()?)),
        "title" => made(title(&text()?)),
        "string" | "safe" => {
            args.take(name, [])?;
            Ok(Value::Str(text()?))
        }
        "trim" => {
            let [chars] = args.take(name, ["chars"])?;
            let chars = match chars.as_ref() {
                None | Some(Value::None) => None,
                Some(chars) => Some(chars.to_text(meter)?),
            };
            let text = text()?;
            meter.work(chars.as_ref().map_or(0, |chars| text.len().saturating_mul(chars.len()) / 64))?;
            Value::text(meter, strip(&text, chars.as_deref(), true, true))
        }
        "replace" => {
            let [from, to, count] = args.take(name, ["old", "new", "count"])?;
            let part = |value: Option<Value>| match value {
                Some(value) => value.to_text(meter),
                None => fail("replace needs two strs"),
            };
            let count = match count.as_ref() {
                None | Some(Value::None) => -1,
                Some(count) => whole(count, "count")?,
            };
            strings::replace(meter, &text()?, &part(from)?, &part(to)?, count)
        }
        "length" | "count" => {
            args.take(name, [])?;
            match value.len() {
                Some(n) => Ok(Value::count(n)),
                None => fail(format!("a {} has no length", value.kind())),
            }
        }
        "default" | "d" => {
            let [default, boolean] = args.take(name, ["default_value", "boolean"])?;
            let missing = value.is_undefined() || (is_set(boolean.as_ref()) && !value.is_true());
            Ok(if missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
        }
        "abs" => {
            args.take(name, [])?;
            match value.number() {
                Some(Number::Int(i)) => Ok(Value::Int(i.checked_abs().unwrap_or(i128::MAX))),
                Some(Number::Float(f)) => Ok(Value::Float(f.abs())),
                None => fail(format!("a {} has no absolute value", value.kind())),
            }
        }
        "int" => int(meter, value, args),
        "float" => float(meter, value, args),
        "round" => round(value, args),
        "tojson" => to_json(meter, value, args),
        "indent" => indent(meter, &text()?, args),
        "center" => {
            let [width] = args.take(name, ["width"])?;
            let width = Value::Int(number("width", width.as_ref(), 80)?);
            strings::call(meter, &text()?, "center", &Args { positional: vec![width], named: Vec::new() })
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return fail("format takes values by position or by name, not both");
            }
            let arguments = if args.named.is_empty() {
                Value::tuple(meter, args.positional.clone())?
            } else {
                let mut dict = super::value::Dict::default();
                for (key, value) in &args.named {
                    dict.insert(meter, Value::from(key.as_str()), value.clone())?;
                }
                Value::Dict(Rc::new(dict))
            };
            format::percent(meter, &text()?, &arguments)
        }
        "escape" | "e" | "forceescape" => made(escape(meter, &text()?)?),
        "striptags" => made(strip_tags(meter, &text()?)?),
        "truncate" => truncate(meter, &text()?, args),
        "wordcount" => {
            static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\w+").ok());
            args.take(name, [])?;
            let text = text()?;
            Ok(Value::count(WORD.as_ref().map_or(0, |word| word.find_iter(&text).count())))
        }
        "urlencode" => url_encode(meter, value, args),
        "filesizeformat" => file_size(meter, value, args),
        "pprint" | "xmlattr" => fail(format!("the filter {name} is not supported")),
        _ => lists::filter(meter, name, value, args),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = strings::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn int(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    let [default, base] = args.take("int", ["default", "base"])?;
    let base = number("base", base.as_ref(), 10)?;
    let default = default.unwrap_or(Value::Int(0));
    let whole = |f: f64| if f.is_finite() { Value::Int(f.trunc() as i128) } else { default.clone() };
    Ok(match (value, value.number()) {
        (Value::Str(text), _) => {
            meter.bytes(text.len())?;
            match parse_int(text, base) {
                Some(i) => Value::Int(i),
                None => parse_float(text).map_or_else(|| default.clone(), whole),
            }
        }
        (_, Some(Number::Int(i))) => Value::Int(i),
        (_, Some(Number::Float(f))) => whole(f),
        _ => default,
    })
}

fn parse_int(text: &str, base: i128) -> Option<i128> {
    let text = strip(text, None, true, true);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_lowercase();
    let prefixed =
        |prefix: &str, base: u32| lower.strip_prefix(prefix).map(|digits| (digits.to_owned(), base));
    let (digits, base) = match base {
        16 => prefixed("0x", 16).unwrap_or((lower, 16)),
        8 => prefixed("0o", 8).unwrap_or((lower, 8)),
        2 => prefixed("0b", 2).unwrap_or((lower, 2)),
        0 => prefixed("0x", 16)
            .or_else(|| prefixed("0o", 8))
            .or_else(|| prefixed("0b", 2))
            .unwrap_or((lower, 10)),
        base => (lower, u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?),
    };
    if digits.starts_with('_')
        || digits.ends_with('_')
        || digits.contains("__")
        || digits.starts_with(['+', '-'])
    {
        return None;
    }
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

fn parse_float(text: &str) -> Option<f64> {
    strip(text, None, true, true).replace('_', "").parse().ok()
}

fn float(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    let [default] = args.take("float", ["default"])?;
    Ok(match (value, value.number()) {
        (Value::Str(text), _) => {
            meter.bytes(text.len())?;
            parse_float(text).map(Value::Float)
        }
        (_, Some(number)) => Some(Value::Float(number.float())),
        _ => None,
    }
    .or(default)
    .unwrap_or(Value::Float(0.0)))
}

fn round(value: &Value, args: &Args) -> Result<Value> {
    let [precision, method] = args.take("round", ["precision", "method"])?;
    let precision = number("precision", precision.as_ref(), 0)?;
    let method = match method {
        None => "common".to_owned(),
        method => strings::text_of("method", method.as_ref())?,
    };
    let Some(n) = value.number() else { return fail(format!("a {} cannot be rounded", value.kind())) };
    let places = i32::try_from(precision).ok().filter(|n| n.abs() <= 300);
    let Some(places) = places else { return fail("the precision is too large") };
    let scale = 10_f64.powi(places);
    match (method.as_str(), n) {
        ("common", Number::Int(i)) if places >= 0 => Ok(Value::Int(i)),
        ("common", n) if places >= 0 => {
            // The nearest decimal, which the digits of the exact value give.
            let digits = places as usize;
            Ok(Value::Float(format!("{:.digits$}", n.float()).parse().unwrap_or(f64::NAN)))
        }
        ("common", n) => {
            let rounded = (n.float() * scale).round_ties_even() / scale;
            Ok(match n {
                Number::Int(_) => Value::Int(rounded as i128),
                Number::Float(_) => Value::Float(rounded),
            })
        }
        ("ceil", n) => Ok(Value::Float((n.float() * scale).ceil() / scale)),
        ("floor", n) => Ok(Value::Float((n.float() * scale).floor() / scale)),
        _ => fail("method must be common, ceil or floor"),
    }
}

fn to_json(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    const MAX_INDENT: i128 = 1 << 16;
    let [ascii, indent, separators, sort] =
        args.take("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(n) => match whole(&n, "indent")? {
            n if n > MAX_INDENT => return fail("tojson: the indent is too wide"),
            n => Some(" ".repeat(usize::try_from(n).unwrap_or(0))),
        },
    };
    let separators = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(Value::List(seq) | Value::Tuple(seq)) => match &seq.items[..] {
            [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
            _ => return fail("tojson: separators are two strs"),
        },
        Some(_) => return fail("tojson: separators are two strs"),
    };
    let style = Style { ascii: is_set(ascii.as_ref()), indent, separators, sort_keys: is_set(sort.as_ref()) };
    Ok(Value::from(json::dump(meter, &style, value)?))
}

fn indent(meter: &Meter, text: &str, args: &Args) -> Result<Value> {
    const MAX_INDENT: i128 = 1 << 16;
    let [width, first, blank] = args.take("indent", ["width", "first", "blank"])?;
    let indention = match width {
        Some(Value::Str(text)) => text.to_string(),
        width => match number("width", width.as_ref(), 4)? {
            n if n > MAX_INDENT => return fail("indent: too wide"),
            n => " ".repeat(usize::try_from(n).unwrap_or(0)),
        },
    };
    let text = format!("{text}\n");
    let lines = lines(&text, false);
    meter.bytes(text.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = if is_set(first.as_ref()) { indention.clone() } else { String::new() };
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if is_set(blank.as_ref()) || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Text for HTML.
pub(super) fn escape(meter: &Meter, text: &str) -> Result<String> {
    meter.bytes(text.len() * 5)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn strip_tags(meter: &Meter, text: &str) -> Result<String> {
    static TAGS: LazyLock<Option<[Regex; 2]>> =
        LazyLock::new(|| Some([Regex::new(r"(?s)<!--.*?-->").ok()?, Regex::new(r"(?s)<.*?>").ok()?]));
    meter.bytes(text.len() * 4)?;
    let mut text = text.to_owned();
    for tag in TAGS.as_ref().into_iter().flatten() {
        text = tag.replace_all(&text, "").into_owned();
    }
    let text = text.split(strings::is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let named = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", "\u{a0}"),
    ];
    let text = named.iter().fold(text, |text, (from, to)| text.replace(from, to));
    Ok(text.replace("&amp;", "&"))
}

fn truncate(meter: &Meter, text: &str, args: &Args) -> Result<Value> {
    let [length, kill, end, leeway] = args.take("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = usize::try_from(number("length", length.as_ref(), 255)?).unwrap_or(0);
    let leeway = usize::try_from(number("leeway", leeway.as_ref(), 5)?).unwrap_or(0);
    let end = match end {
        None => "...".to_owned(),
        end => strings::text_of("end", end.as_ref())?,
    };
    let marks = end.chars().count();
    if length < marks {
        return fail(format!("truncate: the length is less than {marks}"));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let kept: String = text.chars().take(length - marks).collect();
    let kept =
        if is_set(kill.as_ref()) { &*kept } else { kept.rsplit_once(' ').map_or(&*kept, |(kept, _)| kept) };
    Value::text(meter, format!("{kept}{end}"))
}

fn quote(text: &str, out: &mut String, plus: bool) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b'/' if !plus => out.push('/'),
            b' ' if plus => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

fn url_encode(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    args.take("urlencode", [])?;
    let mut out = String::new();
    let entries = match value {
        Value::Dict(_) => pairs(meter, value)?,
        Value::List(seq) | Value::Tuple(seq) => seq.items.clone(),
        other => {
            let text = other.to_text(meter)?;
            meter.bytes(text.len() * 3)?;
            quote(&text, &mut out, false);
            return Ok(Value::from(out));
        }
    };
    for (i, entry) in entries.iter().enumerate() {
        let pair = entry.items(meter)?;
        let [key, value] = &pair.items[..] else { return fail("urlencode needs pairs") };
        if i > 0 {
            out.push('&');
        }
        let (key, value) = (key.to_text(meter)?, value.to_text(meter)?);
        meter.bytes((key.len() + value.len()) * 3)?;
        quote(&key, &mut out, true);
        out.push('=');
        quote(&value, &mut out, true);
    }
    Ok(Value::from(out))
}

fn file_size(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    let [binary] = args.take("filesizeformat", ["binary"])?;
    let Value::Float(bytes) = float(meter, value, &Args::default())? else {
        return Err(Error("not a size".to_owned()));
    };
    let binary = is_set(binary.as_ref());
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let units = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut unit = base;
    for (i, name) in units.iter().enumerate() {
        if bytes < unit * base || i + 1 == units.len() {
            return Ok(Value::from(format!("{:.1} {name}", bytes / unit)));
        }
        unit *= base;
    }
    Ok(Value::None)
}
