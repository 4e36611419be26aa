//! The methods of Python's `str`.

use std::sync::LazyLock;

use regex::Regex;

use super::format;
use super::meter::{Meter, Result, fail};
use super::ops::whole;
use super::value::Value;

/// What a call is given.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    /// The arguments by position or name; too many, or unknown ones, are an error.
    pub(super) fn take<const N: usize>(&self, what: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return fail(format!("{what} takes at most {N} arguments"));
        }
        let mut all: [Option<Value>; N] = std::array::from_fn(|i| self.positional.get(i).cloned());
        for (name, value) in &self.named {
            match names.iter().position(|known| known == name) {
                Some(at) if all[at].is_none() => all[at] = Some(value.clone()),
                _ => return fail(format!("{what} has no argument {name:?} left")),
            }
        }
        Ok(all)
    }
}

/// Whether Python takes a character for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

pub(super) fn text_of(what: &str, value: Option<&Value>) -> Result<String> {
    match value {
        Some(Value::Str(text)) => Ok(text.to_string()),
        Some(other) => fail(format!("{what} needs a str, not a {}", other.kind())),
        None => fail(format!("{what} needs a str")),
    }
}

fn number_of(what: &str, value: Option<&Value>, default: i128) -> Result<i128> {
    match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => whole(value, what),
    }
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Cuts what `ends` says off.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let off = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(off) } else { text };
    if right { text.trim_end_matches(off) } else { text }
}

/// A range of characters of a text, by arguments that may count from the end, in bytes.
fn window(text: &str, start: Option<&Value>, end: Option<&Value>) -> Result<(usize, usize)> {
    let len = text.chars().count() as i128;
    let clamp = |i: i128| if i < 0 { (i + len).max(0) } else { i.min(len) } as usize;
    let start = clamp(number_of("a start", start, 0)?);
    let end = clamp(number_of("an end", end, len)?);
    let byte = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    Ok((byte(start), byte(end.max(start))))
}

fn words(text: &str, max: usize, from_right: bool) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest = text;
    while all.len() < max {
        rest = strip(rest, None, !from_right, from_right);
        let at = if from_right {
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        } else {
            rest.char_indices().find(|(_, c)| is_space(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        };
        let Some((start, end)) = at else { break };
        if from_right {
            all.push(rest[end..].to_owned());
            rest = &rest[..start];
        } else {
            all.push(rest[..start].to_owned());
            rest = &rest[end..];
        }
    }
    let rest = strip(rest, None, !from_right, from_right);
    if !rest.is_empty() {
        let rest = if all.len() >= max { rest } else { strip(rest, None, true, true) };
        all.push(rest.to_owned());
    }
    if from_right {
        all.reverse();
    }
    all
}

pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) {
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + c.len_utf8() };
        all.push(if keep { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        all.push(rest);
    }
    all
}

fn split(meter: &Meter, text: &str, args: &Args, from_right: bool) -> Result<Value> {
    let [separator, max] = args.take("split", ["sep", "maxsplit"])?;
    let max = usize::try_from(number_of("maxsplit", max.as_ref(), -1)?).unwrap_or(usize::MAX);
    meter.bytes(text.len())?;
    let parts: Vec<String> = match separator.as_ref() {
        None | Some(Value::None) => words(text, max, from_right),
        separator => {
            let separator = text_of("split", separator)?;
            if separator.is_empty() {
                return fail("an empty separator");
            }
            meter.values(text.matches(&*separator).count())?;
            let n = max.saturating_add(1);
            if from_right {
                let mut parts: Vec<_> = text.rsplitn(n, &*separator).map(str::to_owned).collect();
                parts.reverse();
                parts
            } else {
                text.splitn(n, &*separator).map(str::to_owned).collect()
            }
        }
    };
    Value::list(meter, parts.into_iter().map(|part| Value::text(meter, part)).collect::<Result<_>>()?)
}

/// Replaces `count` of the places, all where that is negative.
pub(super) fn replace(meter: &Meter, text: &str, from: &str, to: &str, count: i128) -> Result<Value> {
    meter.bytes(text.len().saturating_mul(2))?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() };
    meter.bytes(text.len().saturating_add(found.min(count).saturating_mul(to.len())))?;
    Ok(Value::from(text.replacen(from, to, count)))
}

fn affix(meter: &Meter, text: &str, args: &Args, what: &str, ends: bool) -> Result<Value> {
    let [affix, start, end] = args.take(what, ["affix", "start", "end"])?;
    let affixes = match affix {
        Some(Value::Tuple(seq)) => seq.items.clone(),
        Some(one) => vec![one],
        None => return fail(format!("{what} needs a str")),
    };
    meter.bytes(text.len())?;
    let (start, end) = window(text, start.as_ref(), end.as_ref())?;
    let text = &text[start..end];
    for affix in &affixes {
        let affix = text_of(what, Some(affix))?;
        if if ends { text.ends_with(&affix) } else { text.starts_with(&affix) } {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// `find`, `index`, `count` and those from the right; `None` where nothing is found.
fn find(meter: &Meter, text: &str, args: &Args, what: &str) -> Result<Option<i128>> {
    let [needle, start, end] = args.take(what, ["sub", "start", "end"])?;
    let needle = text_of(what, needle.as_ref())?;
    meter.bytes(text.len())?;
    let (start, end) = window(text, start.as_ref(), end.as_ref())?;
    let inside = &text[start..end];
    if what == "count" {
        let n = if needle.is_empty() { inside.chars().count() + 1 } else { inside.matches(&needle).count() };
        return Ok(Some(n as i128));
    }
    let at = if what.starts_with('r') { inside.rfind(&needle) } else { inside.find(&needle) };
    Ok(at.map(|at| text[..start + at].chars().count() as i128))
}

fn justified(meter: &Meter, text: &str, args: &Args, what: &str) -> Result<Value> {
    let [width, fill] = args.take(what, ["width", "fillchar"])?;
    let width = number_of(what, width.as_ref(), 0)?;
    let fill = fill.as_ref().map_or(Ok(" ".to_owned()), |fill| text_of(what, Some(fill)))?;
    if fill.chars().count() != 1 {
        return fail(format!("{what} fills with one character"));
    }
    let len = text.chars().count();
    let room = usize::try_from(width).unwrap_or(0).saturating_sub(len);
    meter.bytes(text.len().saturating_add(room.saturating_mul(fill.len())))?;
    let left = match what {
        "ljust" => 0,
        "rjust" => room,
        // As Python has it: the odd one goes left only if the width is odd, too.
        _ => room / 2 + (room & (len + room) & 1),
    };
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(room - left))))
}

fn zfill(meter: &Meter, text: &str, width: i128) -> Result<Value> {
    let room = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    meter.bytes(text.len().saturating_add(room))?;
    let at = usize::from(text.starts_with(['+', '-']));
    Ok(Value::from(format!("{}{}{}", &text[..at], "0".repeat(room), &text[at..])))
}

fn expandtabs(meter: &Meter, text: &str, size: i128) -> Result<Value> {
    let size = usize::try_from(size).unwrap_or(0);
    meter.bytes(text.len().saturating_add(text.matches('\t').count().saturating_mul(size)))?;
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let n = size - column % size;
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

fn all(text: &str, class: &'static LazyLock<Option<Regex>>) -> bool {
    class.as_ref().is_some_and(|class| class.is_match(text))
}

macro_rules! class {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
    };
}
class!(ALPHA, r"^\p{L}+$");
class!(ALNUM, r"^[\p{L}\p{Nd}\p{Nl}\p{No}]+$");
class!(DECIMAL, r"^\p{Nd}+$");
class!(DIGIT, r"^[\p{Nd}\x{b2}\x{b3}\x{b9}\x{2070}\x{2074}-\x{2079}\x{2080}-\x{2089}]+$");
class!(NUMERIC, r"^\p{N}+$");
class!(IDENTIFIER, r"^[\p{XID_Start}_]\p{XID_Continue}*$");

fn is_cased(text: &str, upper: bool) -> bool {
    text.chars().any(|c| c.is_uppercase() || c.is_lowercase())
        && !text.chars().any(|c| if upper { c.is_lowercase() } else { c.is_uppercase() })
}

fn is_title(text: &str) -> bool {
    let (mut cased, mut any) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && cased) || (c.is_lowercase() && !cased) {
            return false;
        }
        cased = c.is_uppercase() || c.is_lowercase();
        any |= cased;
    }
    any
}

/// Names of the methods.
pub(super) const METHODS: [&str; 46] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
    "format_map",
];

/// Calls a method of a str.
pub(super) fn call(meter: &Meter, text: &str, name: &str, args: &Args) -> Result<Value> {
    let flag = |b: bool| {
        args.take(name, [])?;
        Ok(Value::Bool(b))
    };
    let made = |s: String| {
        args.take(name, [])?;
        Value::text(meter, s)
    };
    // Looking characters up takes longer than copying them.
    meter.bytes(text.len().saturating_mul(6))?;
    match name {
        "upper" => made(text.to_uppercase()),
        "lower" | "casefold" => {
            let lower = text.to_lowercase();
            made(if name == "casefold" { lower.replace('ß', "ss") } else { lower })
        }
        "title" => made(title(text)),
        "capitalize" => made(capitalize(text)),
        "swapcase" => made(
            text.chars()
                .flat_map(|c| {
                    if c.is_uppercase() {
                        c.to_lowercase().collect::<Vec<_>>()
                    } else {
                        c.to_uppercase().collect()
                    }
                })
                .collect(),
        ),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.take(name, ["chars"])?;
            let chars = match chars.as_ref() {
                None | Some(Value::None) => None,
                chars => Some(text_of(name, chars)?),
            };
            meter.work(chars.as_ref().map_or(0, |chars| text.len().saturating_mul(chars.len()) / 64))?;
            Value::text(meter, strip(text, chars.as_deref(), name != "rstrip", name != "lstrip"))
        }
        "startswith" => affix(meter, text, args, name, false),
        "endswith" => affix(meter, text, args, name, true),
        "find" | "rfind" => Ok(Value::Int(find(meter, text, args, name)?.unwrap_or(-1))),
        "count" => Ok(Value::Int(find(meter, text, args, name)?.unwrap_or(0))),
        "index" | "rindex" => match find(meter, text, args, name)? {
            Some(at) => Ok(Value::Int(at)),
            None => fail("substring not found"),
        },
        "replace" => {
            let [from, to, count] = args.take(name, ["old", "new", "count"])?;
            let (from, to) = (text_of(name, from.as_ref())?, text_of(name, to.as_ref())?);
            replace(meter, text, &from, &to, number_of(name, count.as_ref(), -1)?)
        }
        "split" => split(meter, text, args, false),
        "rsplit" => split(meter, text, args, true),
        "splitlines" => {
            let [keep] = args.take(name, ["keepends"])?;
            let lines = lines(text, keep.is_some_and(|keep| keep.is_true()));
            meter.values(lines.len())?;
            Value::list(meter, lines.into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let [separator] = args.take(name, ["sep"])?;
            let separator = text_of(name, separator.as_ref())?;
            if separator.is_empty() {
                return fail("an empty separator");
            }
            let cut = if name == "partition" {
                text.split_once(&*separator)
            } else {
                text.rsplit_once(&*separator)
            };
            let parts = match cut {
                Some((a, b)) => [a, &separator, b],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(meter, parts.into_iter().map(Value::from).collect())
        }
        "join" => {
            let [list] = args.take(name, ["iterable"])?;
            let Some(list) = list else { return fail("join needs values") };
            let mut out = String::new();
            for (i, item) in list.items(meter)?.items.iter().enumerate() {
                let item = text_of("join", Some(item))?;
                meter.bytes(item.len() + text.len())?;
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(&item);
            }
            Ok(Value::from(out))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.take(name, ["affix"])?;
            let affix = text_of(name, affix.as_ref())?;
            let cut =
                if name == "removeprefix" { text.strip_prefix(&*affix) } else { text.strip_suffix(&*affix) };
            Value::text(meter, cut.unwrap_or(text))
        }
        "zfill" => {
            let [width] = args.take(name, ["width"])?;
            zfill(meter, text, number_of(name, width.as_ref(), 0)?)
        }
        "center" | "ljust" | "rjust" => justified(meter, text, args, name),
        "expandtabs" => {
            let [size] = args.take(name, ["tabsize"])?;
            expandtabs(meter, text, number_of(name, size.as_ref(), 8)?)
        }
        "format" => format::format(meter, text, &args.positional, &args.named),
        "isalpha" => flag(all(text, &ALPHA)),
        "isalnum" => flag(all(text, &ALNUM)),
        "isdecimal" => flag(all(text, &DECIMAL)),
        "isdigit" => flag(all(text, &DIGIT)),
        "isnumeric" => flag(all(text, &NUMERIC)),
        "isidentifier" => flag(all(text, &IDENTIFIER)),
        "isascii" => flag(text.is_ascii()),
        "isspace" => flag(!text.is_empty() && text.chars().all(is_space)),
        "isupper" => flag(is_cased(text, true)),
        "islower" => flag(is_cased(text, false)),
        "istitle" => flag(is_title(text)),
        _ => fail(format!("the method {name} of str is not supported")),
    }
}
