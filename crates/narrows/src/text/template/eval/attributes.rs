//! Attributes of values: `value.name`.

use std::rc::Rc;

use super::super::meter::{Meter, Result};
use super::super::ops;
use super::super::tests::method;
use super::super::value::Value;
use super::Run;

/// `value.name`, which may be a method; `None` where there is nothing of that name.
pub(in crate::text::template) fn attribute(
    meter: &Meter,
    value: &Value,
    name: &str,
) -> Result<Option<Value>> {
    if value.is_undefined() {
        return Err(value.undefined_error());
    }
    if name.starts_with('_') {
        return Ok(None);
    }
    if method(value, name) {
        return Ok(Some(Value::Method(Rc::new((value.clone(), name.to_owned())))));
    }
    Ok(match value {
        Value::Namespace(names) => names.borrow().get_str(name).cloned(),
        Value::Loop(state) => {
            let (at, n) = (state.index.get(), state.items.items.len());
            let beside = |i: Option<usize>| match i.and_then(|i| state.items.items.get(i)) {
                Some(item) => item.clone(),
                None => Value::Undefined("there is no such item; it".into()),
            };
            Some(match name {
                "index" => Value::count(at + 1),
                "index0" => Value::count(at),
                "revindex" => Value::count(n - at),
                "revindex0" => Value::count(n - at - 1),
                "first" => Value::Bool(at == 0),
                "last" => Value::Bool(at + 1 == n),
                "length" => Value::count(n),
                "depth" => Value::count(state.depth + 1),
                "depth0" => Value::count(state.depth),
                "previtem" => beside(at.checked_sub(1)),
                "nextitem" => beside(Some(at + 1)),
                _ => return Ok(None),
            })
        }
        Value::Macro(made) => match name {
            "name" => Some(Value::from(made.name.as_str())),
            "arguments" => {
                let names = made.arguments.iter().map(|name| Value::from(name.as_str())).collect();
                Some(Value::tuple(meter, names)?)
            }
            _ => None,
        },
        Value::Function("dict") if name == "fromkeys" => Some(Value::Function("dict.fromkeys")),
        Value::Cycler(cycler) if name == "current" => cycler.0.items.get(cycler.1.get()).cloned(),
        // Groups of `groupby` are tuples with names.
        Value::Tuple(pair) if pair.items.len() == 2 => match name {
            "grouper" => Some(pair.items[0].clone()),
            "list" => Some(pair.items[1].clone()),
            _ => None,
        },
        _ => None,
    })
}

impl Run<'_> {
    /// `value.name`: an attribute, else the item of that name.
    pub(super) fn attribute(&self, value: &Value, name: &str) -> Result<Value> {
        if let Some(found) = attribute(self.meter, value, name)? {
            return Ok(found);
        }
        let found =
            if name.starts_with("__") { None } else { ops::item(self.meter, value, &Value::from(name))? };
        Ok(found.unwrap_or_else(|| Value::Undefined(format!("{name} of a {}", value.kind()).into())))
    }
}
