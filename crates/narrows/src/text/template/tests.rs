//! What `is` asks.

use super::filters;
use super::meter::{Meter, Result, fail};
use super::ops;
use super::strings::{Args, METHODS};
use super::value::{Number, Value};
use minijinja::machinery::ast::{BinOpKind, CompareOpKind};

/// Names of the tests.
pub(super) const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Whether `value` is `name`.
pub(super) fn test(meter: &Meter, name: &str, value: &Value, args: &Args) -> Result<bool> {
    let bare = |b: bool| {
        args.take(name, [])?;
        Ok(b)
    };
    let other = || match args.take(name, ["other"])? {
        [Some(other)] => Ok(other),
        [None] => fail(format!("the test {name} needs an argument")),
    };
    let compared = |op| Ok(ops::compare(meter, op, value, &other()?)?.is_true());
    let rest = |by: &Value| ops::binary(meter, BinOpKind::Rem, value, by);
    match name {
        "defined" => bare(!value.is_undefined()),
        "undefined" => bare(value.is_undefined()),
        "none" => bare(matches!(value, Value::None)),
        "true" => bare(matches!(value, Value::Bool(true))),
        "false" => bare(matches!(value, Value::Bool(false))),
        "boolean" => bare(matches!(value, Value::Bool(_))),
        "integer" => bare(matches!(value, Value::Int(_))),
        "float" => bare(matches!(value, Value::Float(_))),
        "number" => bare(value.number().is_some()),
        "string" => bare(value.is_string()),
        "mapping" => bare(matches!(value, Value::Dict(_))),
        "sequence" => bare(matches!(
            value,
            Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
                | Value::Undefined(_)
        )),
        "iterable" => bare(!matches!(
            value,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Namespace(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Cycler(_)
                | Value::Joiner(_)
        )),
        "callable" => bare(value.is_callable()),
        "escaped" => bare(false),
        "odd" => bare(rest(&Value::Int(2))?.equals(meter, &Value::Int(1))?),
        "even" => bare(rest(&Value::Int(2))?.equals(meter, &Value::Int(0))?),
        "divisibleby" => rest(&other()?)?.equals(meter, &Value::Int(0)),
        "lower" => {
            bare(super::strings::call(meter, &value.to_text(meter)?, "islower", &Args::default())?.is_true())
        }
        "upper" => {
            bare(super::strings::call(meter, &value.to_text(meter)?, "isupper", &Args::default())?.is_true())
        }
        "eq" | "equalto" | "==" => compared(CompareOpKind::Eq),
        "ne" | "!=" => compared(CompareOpKind::Ne),
        "lt" | "lessthan" | "<" => compared(CompareOpKind::Lt),
        "le" | "<=" => compared(CompareOpKind::Lte),
        "gt" | "greaterthan" | ">" => compared(CompareOpKind::Gt),
        "ge" | ">=" => compared(CompareOpKind::Gte),
        "in" => ops::contains(meter, &other()?, value),
        "sameas" => Ok(value.is_same(&other()?)),
        "filter" => bare(matches!(value, Value::Str(name) if filters::FILTERS.contains(&&**name))),
        "test" => bare(matches!(value, Value::Str(name) if TESTS.contains(&&**name))),
        _ => fail(format!("no test named {name:?}")),
    }
}

/// Whether a value has a method of this name; `None` where calling it would change the value, which the sandbox of
/// Python's Jinja forbids.
pub(super) fn method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => METHODS.contains(&name),
        Value::Dict(_) => matches!(
            name,
            "keys"
                | "values"
                | "items"
                | "get"
                | "copy"
                | "pop"
                | "popitem"
                | "update"
                | "clear"
                | "setdefault"
        ),
        Value::List(_) => matches!(
            name,
            "index"
                | "count"
                | "copy"
                | "append"
                | "extend"
                | "insert"
                | "pop"
                | "remove"
                | "reverse"
                | "sort"
                | "clear"
        ),
        Value::Tuple(_) | Value::Range(..) => matches!(name, "index" | "count"),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        Value::Int(_) => matches!(name, "bit_length" | "is_integer"),
        Value::Float(_) => name == "is_integer",
        _ => false,
    }
}

/// Calls a method of anything but a str.
pub(super) fn call_method(meter: &Meter, value: &Value, name: &str, args: &Args) -> Result<Value> {
    let one = || match args.take(name, ["value"])? {
        [Some(value)] => Ok(value),
        [None] => fail(format!("{name} needs a value")),
    };
    match (value, name) {
        (Value::Str(text), _) => super::strings::call(meter, text, name, args),
        (Value::Dict(dict), "keys") => {
            args.take(name, [])?;
            Ok(Value::View("dict_keys", super::value::Seq::new(meter, dict.keys())?))
        }
        (Value::Dict(dict), "values") => {
            args.take(name, [])?;
            let values = dict.entries.iter().map(|(_, value)| value.clone()).collect();
            Ok(Value::View("dict_values", super::value::Seq::new(meter, values)?))
        }
        (Value::Dict(_), "items") => {
            args.take(name, [])?;
            Ok(Value::View("dict_items", super::value::Seq::new(meter, filters::pairs(meter, value)?)?))
        }
        (Value::Dict(dict), "get") => {
            if !args.named.is_empty() {
                return fail("get takes no arguments by name");
            }
            let [key, default] = args.take(name, ["key", "default"])?;
            let Some(key) = key else { return fail("get needs a key") };
            Ok(dict.get(meter, &key).cloned().or(default).unwrap_or(Value::None))
        }
        (Value::Dict(_) | Value::List(_), "copy") => {
            args.take(name, [])?;
            Ok(value.clone())
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(..), "index" | "count") => {
            let (wanted, mut n) = (one()?, 0);
            for (i, item) in value.items(meter)?.items.iter().enumerate() {
                if item.equals(meter, &wanted)? {
                    if name == "index" {
                        return Ok(Value::count(i));
                    }
                    n += 1;
                }
            }
            if name == "index" { fail("the value is not in the list") } else { Ok(Value::Int(n)) }
        }
        (Value::Loop(state), "cycle") => {
            let at = state.index.get();
            match args.positional.len() {
                0 => fail("no items for cycling given"),
                n => Ok(args.positional[at % n].clone()),
            }
        }
        (Value::Loop(state), "changed") => {
            let now = Value::tuple(meter, args.positional.clone())?;
            let before = state.changed.replace(Some(now.clone()));
            Ok(Value::Bool(match before {
                Some(before) => !before.equals(meter, &now)?,
                None => true,
            }))
        }
        (Value::Cycler(cycler), "next") => {
            let (items, at) = (&cycler.0.items, cycler.1.get());
            cycler.1.set((at + 1) % items.len().max(1));
            Ok(items.get(at).cloned().unwrap_or(Value::None))
        }
        (Value::Cycler(cycler), "reset") => {
            cycler.1.set(0);
            Ok(Value::None)
        }
        (Value::Int(i), "bit_length") => Ok(Value::Int((128 - i.unsigned_abs().leading_zeros()).into())),
        (_, "is_integer") => Ok(Value::Bool(match value.number() {
            Some(Number::Float(f)) => f.fract() == 0.0,
            _ => true,
        })),
        (Value::Dict(_) | Value::List(_), _) => {
            fail(format!("{name} would change a {}, which a template may not", value.kind()))
        }
        (other, _) => fail(format!("a {} has no method {name}", other.kind())),
    }
}
