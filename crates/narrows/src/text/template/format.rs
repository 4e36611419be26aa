//! Formatting of strings: `%` and `str.format`.

use super::meter::{Meter, Result, fail};
use super::ops::{item, whole};
use super::value::{Number, Value};

/// Columns of a field at most.
const MAX_WIDTH: usize = 1 << 20;
/// Digits behind the point at most.
const MAX_PRECISION: usize = 1000;

/// How a field is written.
#[derive(Clone, Debug)]
struct Spec {
    fill: char,
    /// `<`, `>`, `^`, `=`; a default by type if not given.
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: None,
            alternate: false,
            width: 0,
            group: None,
            precision: None,
            kind: None,
        }
    }
}

fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, max: usize) -> Result<Option<usize>> {
    let mut number = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let more = number.unwrap_or(0) * 10 + digit as usize;
        if more > max {
            return fail("a field is too wide");
        }
        number = Some(more);
    }
    Ok(number)
}

impl Spec {
    /// From what stands behind the colon in a field of `str.format`.
    fn parse(text: &str) -> Result<Self> {
        let mut spec = Self::default();
        let mut start = text.chars();
        let (first, second) = (start.next(), start.next());
        let is_align = |c: Option<char>| matches!(c, Some('<' | '>' | '^' | '='));
        let mut chars = text.chars().peekable();
        if is_align(second) {
            (spec.fill, spec.align) = (first.unwrap_or(' '), second);
            chars.nth(1);
        } else if is_align(first) {
            spec.align = first;
            chars.next();
        }
        spec.sign = chars.next_if(|c| matches!(c, '+' | '-' | ' '));
        spec.alternate = chars.next_if_eq(&'#').is_some();
        if chars.next_if_eq(&'0').is_some() && spec.align.is_none() {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        spec.width = digits(&mut chars, MAX_WIDTH)?.unwrap_or(0);
        spec.group = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            match digits(&mut chars, MAX_PRECISION)? {
                Some(n) => spec.precision = Some(n),
                None => return fail("a format lacks its precision"),
            }
        }
        spec.kind = chars.next();
        match chars.next() {
            None => Ok(spec),
            Some(_) => fail("a format is not understood"),
        }
    }

    fn pad(&self, meter: &Meter, sign: &str, body: &str, default: char) -> Result<String> {
        let len = sign.chars().count() + body.chars().count();
        let fill = self.width.saturating_sub(len);
        meter.bytes(fill * 4 + body.len())?;
        let put = |n: usize| std::iter::repeat_n(self.fill, n).collect::<String>();
        Ok(match self.align.unwrap_or(default) {
            '<' => format!("{sign}{body}{}", put(fill)),
            '^' => format!("{}{sign}{body}{}", put(fill / 2), put(fill - fill / 2)),
            '=' => format!("{sign}{}{body}", put(fill)),
            _ => format!("{}{sign}{body}", put(fill)),
        })
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        }
    }

    fn int(&self, meter: &Meter, value: i128) -> Result<String> {
        let n = value.unsigned_abs();
        let (prefix, body) = match self.kind {
            None | Some('d' | 'n' | 'i' | 'u') => ("", n.to_string()),
            Some('x') => ("0x", format!("{n:x}")),
            Some('X') => ("0X", format!("{n:X}")),
            Some('o') => ("0o", format!("{n:o}")),
            Some('b') => ("0b", format!("{n:b}")),
            Some('c') => match u32::try_from(n).ok().and_then(char::from_u32) {
                Some(c) => return self.pad(meter, "", &c.to_string(), '<'),
                None => return fail("not a character"),
            },
            Some(_) => return self.float(meter, value as f64),
        };
        let every = if matches!(self.kind, None | Some('d' | 'n')) { 3 } else { 4 };
        let body = match self.group {
            Some(separator) => grouped(&body, separator, every),
            None => body,
        };
        let sign = format!("{}{}", self.sign(value < 0), if self.alternate { prefix } else { "" });
        self.pad(meter, &sign, &body, '>')
    }

    fn float(&self, meter: &Meter, value: f64) -> Result<String> {
        let f = value.abs();
        let precision = self.precision.unwrap_or(6);
        let mut body = match self.kind {
            _ if !f.is_finite() => if f.is_nan() { "nan" } else { "inf" }.to_owned(),
            Some('f' | 'F') => format!("{f:.precision$}"),
            Some('e' | 'E') => exponent(f, precision),
            Some('%') => format!("{:.precision$}%", f * 100.0),
            Some('g' | 'G') => general(f, precision, self.alternate),
            None if self.precision.is_none() => super::value::float(f),
            None => {
                let text = general(f, precision, false);
                if text.contains(['.', 'e']) { text } else { text + ".0" }
            }
            Some(kind) => return fail(format!("a float cannot be formatted as {kind:?}")),
        };
        if matches!(self.kind, Some('E' | 'G' | 'F')) {
            body = body.to_uppercase();
        }
        if let Some(separator) = self.group {
            let (whole, rest) = body.split_at(body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len()));
            body = grouped(whole, separator, 3) + rest;
        }
        self.pad(meter, self.sign(value.is_sign_negative() && !value.is_nan()), &body, '>')
    }

    fn text(&self, meter: &Meter, text: &str) -> Result<String> {
        match self.precision {
            Some(n) => self.pad(meter, "", &text.chars().take(n).collect::<String>(), '<'),
            None => self.pad(meter, "", text, '<'),
        }
    }

    fn value(&self, meter: &Meter, value: &Value) -> Result<String> {
        match (value, value.number()) {
            (Value::Bool(_), _) if self.kind.is_none() => self.text(meter, &value.to_text(meter)?),
            (_, Some(Number::Int(i))) if self.kind != Some('s') => self.int(meter, i),
            (_, Some(Number::Float(f))) if self.kind != Some('s') => self.float(meter, f),
            (Value::Str(text), _) if matches!(self.kind, None | Some('s')) => self.text(meter, text),
            (other, _) if self.kind.is_none() && self.width == 0 && self.precision.is_none() => {
                Ok(other.to_text(meter)?.to_string())
            }
            (other, _) => fail(format!("a {} cannot be formatted so", other.kind())),
        }
    }
}

fn grouped(digits: &str, separator: char, every: usize) -> String {
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(every) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

fn exponent(f: f64, precision: usize) -> String {
    let text = format!("{f:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(f: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let scientific = exponent(f, precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        if keep_zeros || !text.contains('.') {
            text.to_owned()
        } else {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    };
    if power < -4 || power >= precision as i32 {
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        return format!("{}e{exponent}", trim(digits));
    }
    let decimals = (precision as i32 - 1 - power).max(0) as usize;
    trim(&format!("{f:.decimals$}"))
}

/// `text % arguments`.
pub(super) fn percent(meter: &Meter, text: &str, arguments: &Value) -> Result<Value> {
    let one = [arguments.clone()];
    let (list, dict) = match arguments {
        Value::Tuple(seq) => (&seq.items[..], None),
        Value::Dict(dict) => (&one[..], Some(dict)),
        _ => (&one[..], None),
    };
    let mut rest = list.iter();
    let mut by_name = false;
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    meter.bytes(text.len())?;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let name: String = chars.by_ref().take_while(|c| *c != ')').collect();
            let Some(dict) = dict else { return fail("a format with names needs a dict") };
            match dict.get_str(&name) {
                Some(value) => named = Some(value.clone()),
                None => return fail(format!("the format has no value {name:?}")),
            }
            by_name = true;
        }
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '0' => spec.fill = '0',
                _ => spec.alternate = true,
            }
        }
        let mut next = || match rest.next() {
            Some(value) => Ok(value.clone()),
            None => fail("not enough arguments for the format"),
        };
        if chars.next_if_eq(&'*').is_some() {
            spec.width = usize::try_from(whole(&next()?, "a width")?).unwrap_or(usize::MAX);
            if spec.width > MAX_WIDTH {
                return fail("a field is too wide");
            }
        } else {
            spec.width = digits(&mut chars, MAX_WIDTH)?.unwrap_or(0);
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut chars, MAX_PRECISION)?.unwrap_or(0));
        }
        while chars.next_if(|c| matches!(c, 'l' | 'h' | 'L')).is_some() {}
        let Some(kind) = chars.next() else { return fail("the format ends in the middle") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        spec.kind = Some(kind);
        let numeric = !matches!(kind, 's' | 'r' | 'a' | 'c');
        if spec.fill == '0' {
            if spec.align.is_some() || !numeric {
                spec.fill = ' ';
            } else {
                spec.align = Some('=');
            }
        }
        let right = |spec: Spec| Spec { align: spec.align.or(Some('>')), ..spec };
        let field = match (kind, value.number()) {
            ('s', _) => right(spec).text(meter, &value.to_text(meter)?)?,
            ('r' | 'a', _) => right(spec).text(meter, &value.to_repr(meter)?)?,
            ('c', None) => match &value {
                Value::Str(text) if text.chars().count() == 1 => right(spec).text(meter, text)?,
                _ => return fail("%c needs a character"),
            },
            ('c', Some(Number::Int(_))) | ('d' | 'i' | 'u' | 'x' | 'X' | 'o', Some(Number::Int(_))) => {
                let width = spec.precision.take();
                let value = whole(&value, "a number")?;
                match width {
                    // Of whole numbers the precision is the least number of digits.
                    Some(n) => {
                        let sign = spec.sign(value < 0);
                        let bare = Spec { width: 0, sign: None, ..spec.clone() };
                        let body = bare.int(meter, value.checked_abs().unwrap_or(i128::MAX))?;
                        meter.bytes(n)?;
                        right(spec).pad(meter, sign, &format!("{body:0>n$}"), '>')?
                    }
                    None => right(spec).int(meter, value)?,
                }
            }
            ('d' | 'i' | 'u', Some(Number::Float(f))) if f.is_finite() => {
                right(spec).int(meter, f.trunc() as i128)?
            }
            ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Some(number)) => right(spec).float(meter, number.float())?,
            (kind, None) if numeric => {
                return fail(format!("%{kind} needs a number, not a {}", value.kind()));
            }
            (kind, _) => return fail(format!("unsupported format character {kind:?}")),
        };
        meter.bytes(field.len())?;
        out.push_str(&field);
    }
    if !by_name && dict.is_none() && rest.next().is_some() {
        return fail("not all arguments were used by the format");
    }
    Value::text(meter, out)
}

/// `text.format(...)`.
pub(super) fn format(
    meter: &Meter,
    text: &str,
    positional: &[Value],
    named: &[(String, Value)],
) -> Result<Value> {
    let mut out = String::new();
    let mut automatic = 0;
    let mut chars = text.chars().peekable();
    meter.bytes(text.len())?;
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.next_if_eq(&'{').is_some() => out.push('{'),
            '}' if chars.next_if_eq(&'}').is_some() => out.push('}'),
            '}' => return fail("a single '}' in a format"),
            '{' => {
                let (mut field, mut depth) = (String::new(), 1);
                for c in chars.by_ref() {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    if depth == 0 {
                        break;
                    }
                    field.push(c);
                }
                if depth > 0 {
                    return fail("a single '{' in a format");
                }
                let field = format_field(meter, &field, &mut automatic, positional, named)?;
                meter.bytes(field.len())?;
                out.push_str(&field);
            }
            c => out.push(c),
        }
    }
    Value::text(meter, out)
}

fn format_field(
    meter: &Meter,
    field: &str,
    automatic: &mut usize,
    positional: &[Value],
    named: &[(String, Value)],
) -> Result<String> {
    let (name, spec) = field.split_once(':').unwrap_or((field, ""));
    let (name, conversion) = match name.split_once('!') {
        Some((name, conversion)) => (name, Some(conversion)),
        None => (name, None),
    };
    if spec.contains('{') {
        return fail("a format inside of a format is not supported");
    }
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let missing = || fail(format!("the format has no value {first:?}"));
    let mut value = if first.is_empty() {
        *automatic += 1;
        positional.get(*automatic - 1).cloned()
    } else if let Ok(n) = first.parse::<usize>() {
        positional.get(n).cloned()
    } else {
        named.iter().find(|(key, _)| key == first).map(|(_, value)| value.clone())
    };
    while !path.is_empty() {
        let Some(from) = &value else { return missing() };
        let Some(end) = path.find(']').filter(|_| path.starts_with('[')) else {
            return fail("attributes in a format are not supported");
        };
        let key = &path[1..end];
        let key = key.parse::<i128>().map_or_else(|_| Value::from(key), Value::Int);
        value = item(meter, from, &key)?;
        path = &path[end + 1..];
    }
    let Some(value) = value else { return missing() };
    let value = match conversion {
        None => value,
        Some("s") => Value::Str(value.to_text(meter)?),
        Some("r" | "a") => Value::from(value.to_repr(meter)?),
        Some(_) => return fail("an unknown conversion in a format"),
    };
    Spec::parse(spec)?.value(meter, &value)
}
