//! Values as Python has them: how they print, compare and count as true.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;

use super::meter::{Error, MAX_DEPTH, Meter, Result, fail};

/// A value of a template. All but namespaces, cyclers and joiners never change.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// What is not there, by the name under which it was looked for.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    /// What goes over values once: `map`, `select` and their like.
    Iter(Rc<Seq>),
    Range(i128, i128, i128),
    Dict(Rc<Dict>),
    /// `keys()`, `values()` and `items()`.
    View(&'static str, Rc<Seq>),
    Namespace(Rc<RefCell<Dict>>),
    Macro(Rc<MacroValue>),
    Function(&'static str),
    Method(Rc<(Value, String)>),
    Loop(Rc<LoopState>),
    Cycler(Rc<(Rc<Seq>, Cell<usize>)>),
    Joiner(Rc<(Rc<str>, Cell<bool>)>),
}

/// Values in order, and how deep they are nested.
#[derive(Debug, Default)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    depth: u32,
}

/// What is known of a macro without its body, which is looked up by its number.
#[derive(Debug)]
pub(super) struct MacroValue {
    pub(super) name: String,
    pub(super) number: usize,
    pub(super) arguments: Vec<String>,
}

/// Where a loop is.
#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) items: Rc<Seq>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Value>>,
    /// Of a recursive loop: its number.
    pub(super) number: Option<usize>,
}

/// What a dict finds its entries by: values that are equal have equal keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
}

impl Key {
    fn of(meter: &Meter, value: &Value) -> Result<Self> {
        meter.work(3)?;
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(b) => Self::Int(i128::from(*b)),
            Value::Int(i) => Self::Int(*i),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e30 => Self::Int(*f as i128),
            Value::Float(f) => Self::Float(f.to_bits()),
            Value::Str(s) => Self::Str(Rc::clone(s)),
            Value::Tuple(seq) => {
                Self::Tuple(seq.items.iter().map(|item| Self::of(meter, item)).collect::<Result<_>>()?)
            }
            other => return fail(format!("{} cannot be a key", other.kind())),
        })
    }
}

/// Values by key, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: u32,
}

impl Dict {
    pub(super) fn insert(&mut self, meter: &Meter, key: Value, value: Value) -> Result<()> {
        meter.work(10)?;
        let depth = deeper(&[key.depth(), value.depth()])?;
        let found = Key::of(meter, &key)?;
        match self.index.get(&found) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(found, self.entries.len());
                self.entries.push((key, value));
            }
        }
        self.depth = self.depth.max(depth);
        Ok(())
    }

    /// What is under a key; `None` also where `key` can be none, or nothing is left to pay with.
    pub(super) fn get(&self, meter: &Meter, key: &Value) -> Option<&Value> {
        Some(&self.entries[*self.index.get(&Key::of(meter, key).ok()?)?].1)
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        Some(&self.entries[*self.index.get(&Key::Str(key.into()))?].1)
    }

    pub(super) fn keys(&self) -> Vec<Value> {
        self.entries.iter().map(|(key, _)| key.clone()).collect()
    }
}

fn deeper(depths: &[u32]) -> Result<u32> {
    let depth = depths.iter().copied().max().unwrap_or(0) + 1;
    if depth > MAX_DEPTH {
        return fail(format!("values are nested more than {MAX_DEPTH} deep"));
    }
    Ok(depth)
}

impl Seq {
    pub(super) fn new(meter: &Meter, items: Vec<Value>) -> Result<Rc<Self>> {
        meter.values(items.len())?;
        let mut depth = 0;
        for item in &items {
            depth = depth.max(item.depth());
        }
        let depth = deeper(&[depth])?;
        Ok(Rc::new(Self { items, depth }))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl Value {
    pub(super) fn list(meter: &Meter, items: Vec<Self>) -> Result<Self> {
        Seq::new(meter, items).map(Self::List)
    }

    pub(super) fn tuple(meter: &Meter, items: Vec<Self>) -> Result<Self> {
        Seq::new(meter, items).map(Self::Tuple)
    }

    pub(super) fn iter(meter: &Meter, items: Vec<Self>) -> Result<Self> {
        Seq::new(meter, items).map(Self::Iter)
    }

    /// A text whose bytes are paid for.
    pub(super) fn text(meter: &Meter, text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        meter.bytes(text.len())?;
        Ok(Self::Str(text.into()))
    }

    /// A count of things.
    pub(super) const fn count(n: usize) -> Self {
        Self::Int(n as i128)
    }

    pub(super) fn from_json(meter: &Meter, json: &serde_json::Value) -> Result<Self> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(b) => Self::Bool(*b),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Self::Int(i.into()),
                (None, Some(u)) => Self::Int(u.into()),
                (None, None) => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(s) => Self::text(meter, s.as_str())?,
            serde_json::Value::Array(list) => {
                Self::list(meter, list.iter().map(|v| Self::from_json(meter, v)).collect::<Result<_>>()?)?
            }
            serde_json::Value::Object(map) => {
                let mut dict = Dict::default();
                for (key, value) in map {
                    dict.insert(meter, Self::text(meter, key.as_str())?, Self::from_json(meter, value)?)?;
                }
                Self::Dict(Rc::new(dict))
            }
        })
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(s) | Self::Tuple(s) | Self::Iter(s) | Self::View(_, s) => s.depth,
            Self::Dict(d) => d.depth,
            Self::Method(m) => m.0.depth() + 1,
            Self::Cycler(c) => c.0.depth,
            Self::Loop(l) => l.items.depth,
            _ => 0,
        }
    }

    /// Its type, as Python calls it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Iter(_) => "generator",
            Self::Range(..) => "range",
            Self::Dict(_) => "dict",
            Self::View(kind, _) => kind,
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Loop(_) => "loop",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The error of using what is not there.
    pub(super) fn undefined_error(&self) -> Error {
        match self {
            Self::Undefined(name) => Error(format!("{name} is undefined")),
            other => Error(format!("{} cannot be used here", other.kind())),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Str(s) => !s.is_empty(),
            Self::List(s) | Self::Tuple(s) | Self::View(_, s) => !s.items.is_empty(),
            Self::Range(..) => self.len().is_some_and(|n| n > 0),
            Self::Dict(d) => !d.entries.is_empty(),
            _ => true,
        }
    }

    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(s) => s.chars().count(),
            Self::List(s) | Self::Tuple(s) | Self::View(_, s) => s.items.len(),
            Self::Dict(d) => d.entries.len(),
            Self::Loop(l) => l.items.items.len(),
            Self::Range(start, stop, step) => {
                let span = if *step > 0 { stop - start } else { start - stop };
                let step = step.unsigned_abs() as i128;
                usize::try_from((span + step - 1).max(0) / step).ok()?
            }
            _ => return None,
        })
    }

    /// The values that a loop goes over.
    pub(super) fn items(&self, meter: &Meter) -> Result<Rc<Seq>> {
        match self {
            Self::Undefined(_) => Ok(Rc::default()),
            Self::List(s) | Self::Tuple(s) | Self::Iter(s) | Self::View(_, s) => Ok(Rc::clone(s)),
            Self::Str(s) => {
                meter.bytes(s.len().saturating_mul(32))?;
                Seq::new(meter, s.chars().map(|c| Self::from(c.to_string())).collect())
            }
            Self::Dict(d) => Seq::new(meter, d.keys()),
            Self::Range(start, _, step) => {
                let n = self.len().unwrap_or(usize::MAX);
                meter.values(n)?;
                Seq::new(meter, (0..n).map(|i| Self::Int(start + step * i as i128)).collect())
            }
            other => fail(format!("{} is not iterable", other.kind())),
        }
    }

    /// Its text, as `str` of Python gives it.
    pub(super) fn to_text(&self, meter: &Meter) -> Result<Rc<str>> {
        match self {
            Self::Str(s) => Ok(Rc::clone(s)),
            Self::Undefined(_) => Ok("".into()),
            other => {
                let mut out = String::new();
                other.write_repr(meter, &mut out, 0)?;
                Ok(out.into())
            }
        }
    }

    /// Its text inside of others, as `repr` of Python gives it.
    pub(super) fn to_repr(&self, meter: &Meter) -> Result<String> {
        let mut out = String::new();
        self.write_repr(meter, &mut out, 0)?;
        Ok(out)
    }

    fn write_repr(&self, meter: &Meter, out: &mut String, depth: u32) -> Result<()> {
        meter.work(2)?;
        if depth > MAX_DEPTH + 8 {
            return fail("a value is nested too deeply to print");
        }
        let all = |out: &mut String, open: &str, seq: &Seq, close: &str| {
            out.push_str(open);
            for (i, item) in seq.items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                item.write_repr(meter, out, depth + 1)?;
            }
            out.push_str(close);
            Ok(())
        };
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
            Self::Int(i) => out.push_str(&i.to_string()),
            Self::Float(f) => out.push_str(&float(*f)),
            Self::Str(s) => {
                meter.bytes(s.len() * 2)?;
                string_repr(s, out);
            }
            Self::List(s) => all(out, "[", s, "]")?,
            Self::Tuple(s) => all(out, "(", s, if s.items.len() == 1 { ",)" } else { ")" })?,
            Self::View(kind, s) => {
                out.push_str(kind);
                all(out, "([", s, "])")?;
            }
            Self::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
            Self::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
            Self::Dict(d) => d.write_repr(meter, out, depth)?,
            Self::Namespace(d) => {
                out.push_str("<Namespace ");
                d.borrow().write_repr(meter, out, depth)?;
                out.push('>');
            }
            Self::Macro(m) => {
                out.push_str("<Macro ");
                string_repr(&m.name, out);
                out.push('>');
            }
            Self::Loop(l) => {
                out.push_str(&format!("<LoopContext {}/{}>", l.index.get() + 1, l.items.items.len()));
            }
            // Python prints where these are in memory.
            other => return fail(format!("a {} cannot be printed", other.kind())),
        }
        Ok(())
    }

    pub(super) fn equals(&self, meter: &Meter, other: &Self) -> Result<bool> {
        meter.work(1)?;
        let all = |a: &Seq, b: &Seq| {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !a.equals(meter, b)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => {
                meter.bytes(a.len().min(b.len()))?;
                a == b
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => all(a, b)?,
            (Self::Dict(a), Self::Dict(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match b.get(meter, key) {
                        Some(other) if value.equals(meter, other)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Range(..), Self::Range(..)) => all(&*self.items(meter)?, &*other.items(meter)?)?,
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => a.number == b.number,
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => match (self.number(), other.number()) {
                (Some(a), Some(b)) => a.compare(b) == Some(Ordering::Equal),
                _ => false,
            },
        })
    }

    /// Whether both are one thing, as `is` of Python says.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    pub(super) fn compare(&self, meter: &Meter, other: &Self) -> Result<Ordering> {
        meter.work(1)?;
        for side in [self, other] {
            if side.is_undefined() {
                return Err(side.undefined_error());
            }
        }
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                meter.bytes(a.len().min(b.len()))?;
                return Ok(a.cmp(b));
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(meter, b)? {
                        return a.compare(meter, b);
                    }
                }
                return Ok(a.items.len().cmp(&b.items.len()));
            }
            _ => {}
        }
        match (self.number(), other.number()) {
            (Some(a), Some(b)) => a.compare(b).ok_or_else(|| Error("a number is not a number".to_owned())),
            _ => fail(format!("{} and {} cannot be compared", self.kind(), other.kind())),
        }
    }

    /// Itself as a number; `true` is one.
    pub(super) fn number(&self) -> Option<Number> {
        match self {
            Self::Bool(b) => Some(Number::Int(i128::from(*b))),
            Self::Int(i) => Some(Number::Int(*i)),
            Self::Float(f) => Some(Number::Float(*f)),
            _ => None,
        }
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self, Self::Str(_))
    }

    /// Whether it can be called.
    pub(super) fn is_callable(&self) -> bool {
        matches!(self, Self::Macro(_) | Self::Function(_) | Self::Method(_) | Self::Loop(_) | Self::Joiner(_))
    }
}

impl Dict {
    fn write_repr(&self, meter: &Meter, out: &mut String, depth: u32) -> Result<()> {
        out.push('{');
        for (i, (key, value)) in self.entries.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            key.write_repr(meter, out, depth + 1)?;
            out.push_str(": ");
            value.write_repr(meter, out, depth + 1)?;
        }
        out.push('}');
        Ok(())
    }
}

/// A number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(i) => i as f64,
            Self::Float(f) => f,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        }
    }
}

/// A float as `repr` of Python writes it.
pub(super) fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".to_owned();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = f.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn string_repr(text: &str, out: &mut String) {
    static UNPRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}]").ok());
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    let mut buffer = [0; 4];
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => {
                let hidden = UNPRINTABLE.as_ref().is_some_and(|u| u.is_match(c.encode_utf8(&mut buffer)));
                match u32::from(c) {
                    _ if !hidden => out.push(c),
                    n @ ..=0xff => out.push_str(&format!("\\x{n:02x}")),
                    n @ ..=0xffff => out.push_str(&format!("\\u{n:04x}")),
                    n => out.push_str(&format!("\\U{n:08x}")),
                }
            }
        }
    }
    out.push(quote);
}
