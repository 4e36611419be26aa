//! The filters of Python's Jinja that go over values.

use std::cmp::Ordering;

use super::filters::{filter as apply, number, pairs};
use super::meter::{Meter, Result, fail};
use super::ops;
use super::strings::{Args, text_of};
use super::tests::test;
use super::value::{Seq, Value};

/// `value.path`, where parts that are numbers are indices.
fn attribute(meter: &Meter, value: &Value, path: &Value) -> Result<Value> {
    let part = |value: &Value, key: &Value| {
        if value.is_undefined() {
            return Err(value.undefined_error());
        }
        let found = ops::item(meter, value, key)?;
        let named = || match key {
            Value::Str(name) => super::eval::attribute(meter, value, name),
            _ => Ok(None),
        };
        match found {
            Some(found) => Ok(found),
            None => Ok(named()?.unwrap_or_else(|| Value::Undefined("an attribute".into()))),
        }
    };
    match path {
        Value::Str(path) => {
            let mut value = value.clone();
            for name in path.split('.') {
                let key = name.parse().map_or_else(|_| Value::from(name), Value::Int);
                value = part(&value, &key)?;
            }
            Ok(value)
        }
        index => part(value, index),
    }
}

/// A value as it is compared: small letters unless `exact`.
fn folded(value: &Value, exact: bool) -> Value {
    match value {
        Value::Str(text) if !exact => Value::from(text.to_lowercase()),
        other => other.clone(),
    }
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

fn sorted<T>(meter: &Meter, items: &mut [T], key: impl Fn(&T) -> Value, reverse: bool) -> Result<()> {
    let mut failed = None;
    items.sort_by(|a, b| {
        if failed.is_some() {
            return Ordering::Equal;
        }
        let order = meter.work(4).and_then(|()| key(a).compare(meter, &key(b)));
        match order {
            Ok(order) if reverse => order.reverse(),
            Ok(order) => order,
            Err(e) => {
                failed = Some(e);
                Ordering::Equal
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

/// Applies a filter that goes over `value`.
pub(super) fn filter(meter: &Meter, name: &str, value: &Value, args: &Args) -> Result<Value> {
    let items = || -> Result<std::rc::Rc<Seq>> {
        let items = value.items(meter)?;
        meter.values(items.items.len())?;
        Ok(items)
    };
    let nothing = || Ok(Value::Undefined("the item of an empty list".into()));
    match name {
        "list" => {
            args.take(name, [])?;
            Value::list(meter, items()?.items.clone())
        }
        "items" => {
            args.take(name, [])?;
            Value::iter(meter, pairs(meter, value)?)
        }
        "first" => {
            args.take(name, [])?;
            items()?.items.first().cloned().map_or_else(nothing, Ok)
        }
        "last" => {
            args.take(name, [])?;
            if matches!(value, Value::Iter(_)) {
                return fail("a generator cannot be reversed");
            }
            items()?.items.last().cloned().map_or_else(nothing, Ok)
        }
        "reverse" => {
            args.take(name, [])?;
            match value {
                Value::Str(text) => Value::text(meter, text.chars().rev().collect::<String>()),
                _ => Value::iter(meter, items()?.items.iter().rev().cloned().collect()),
            }
        }
        "attr" => {
            let [wanted] = args.take(name, ["name"])?;
            let wanted = text_of(name, wanted.as_ref())?;
            Ok(super::eval::attribute(meter, value, &wanted)?
                .unwrap_or_else(|| Value::Undefined(wanted.as_str().into())))
        }
        "join" => join(meter, &*items()?, args),
        "sum" => sum(meter, &*items()?, args),
        "min" | "max" => extreme(meter, &*items()?, args, name == "max"),
        "sort" => sort(meter, &*items()?, args),
        "unique" => unique(meter, &*items()?, args),
        "dictsort" => dict_sort(meter, value, args),
        "groupby" => group(meter, &*items()?, args),
        "batch" => batch(meter, &*items()?, args),
        "slice" => slice(meter, &*items()?, args),
        "map" => map(meter, &*items()?, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(meter, name, &*items()?, args),
        _ => fail(format!("no filter named {name:?}")),
    }
}

fn join(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [between, path] = args.take("join", ["d", "attribute"])?;
    let between = between.map_or_else(|| Ok("".into()), |between| between.to_text(meter))?;
    let mut out = String::new();
    for (i, item) in items.items.iter().enumerate() {
        let text = match &path {
            None | Some(Value::None) => item.to_text(meter)?,
            Some(path) => attribute(meter, item, path)?.to_text(meter)?,
        };
        meter.bytes(text.len() + between.len())?;
        if i > 0 {
            out.push_str(&between);
        }
        out.push_str(&text);
    }
    Ok(Value::from(out))
}

fn sum(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [path, start] = args.take("sum", ["attribute", "start"])?;
    let mut total = start.unwrap_or(Value::Int(0));
    if total.is_string() {
        return fail("sum adds no strs");
    }
    for item in &items.items {
        let item = match &path {
            None | Some(Value::None) => item.clone(),
            Some(path) => attribute(meter, item, path)?,
        };
        total = ops::add(meter, &total, &item)?;
    }
    Ok(total)
}

fn extreme(meter: &Meter, items: &Seq, args: &Args, largest: bool) -> Result<Value> {
    let [exact, path] = args.take("min and max", ["case_sensitive", "attribute"])?;
    let exact = is_set(exact.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in &items.items {
        let key = match &path {
            None | Some(Value::None) => folded(item, exact),
            Some(path) => folded(&attribute(meter, item, path)?, exact),
        };
        let better = match &best {
            None => true,
            Some((least, _)) => {
                let order = key.compare(meter, least)?;
                if largest { order.is_gt() } else { order.is_lt() }
            }
        };
        if better {
            best = Some((key, item.clone()));
        }
    }
    Ok(best.map_or_else(|| Value::Undefined("the item of an empty list".into()), |(_, item)| item))
}

fn sort(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [reverse, exact, path] = args.take("sort", ["reverse", "case_sensitive", "attribute"])?;
    let exact = is_set(exact.as_ref());
    let paths: Vec<Value> = match &path {
        None | Some(Value::None) => Vec::new(),
        Some(Value::Str(paths)) => paths.split(',').map(Value::from).collect(),
        Some(index) => vec![index.clone()],
    };
    let mut keyed = Vec::with_capacity(items.items.len());
    for item in &items.items {
        let key = if paths.is_empty() {
            folded(item, exact)
        } else {
            let keys = paths.iter().map(|path| Ok(folded(&attribute(meter, item, path)?, exact)));
            Value::tuple(meter, keys.collect::<Result<_>>()?)?
        };
        keyed.push((key, item.clone()));
    }
    sorted(meter, &mut keyed, |(key, _)| key.clone(), is_set(reverse.as_ref()))?;
    Value::list(meter, keyed.into_iter().map(|(_, item)| item).collect())
}

fn unique(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [exact, path] = args.take("unique", ["case_sensitive", "attribute"])?;
    let exact = is_set(exact.as_ref());
    let mut seen = super::value::Dict::default();
    let mut kept = Vec::new();
    for item in &items.items {
        let key = match &path {
            None | Some(Value::None) => folded(item, exact),
            Some(path) => folded(&attribute(meter, item, path)?, exact),
        };
        if seen.get(meter, &key).is_none() {
            seen.insert(meter, key, Value::None)?;
            kept.push(item.clone());
        }
    }
    Value::iter(meter, kept)
}

fn dict_sort(meter: &Meter, value: &Value, args: &Args) -> Result<Value> {
    let [exact, by, reverse] = args.take("dictsort", ["case_sensitive", "by", "reverse"])?;
    let exact = is_set(exact.as_ref());
    let at = match by {
        None => 0,
        by => match text_of("by", by.as_ref())?.as_str() {
            "key" => 0,
            "value" => 1,
            _ => return fail("by is \"key\" or \"value\""),
        },
    };
    if !matches!(value, Value::Dict(_)) {
        return fail(format!("a {} has no items", value.kind()));
    }
    let mut all = pairs(meter, value)?;
    let key = |pair: &Value| match pair {
        Value::Tuple(seq) => folded(&seq.items[at], exact),
        other => other.clone(),
    };
    sorted(meter, &mut all, key, is_set(reverse.as_ref()))?;
    Value::list(meter, all)
}

fn group(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [path, default, exact] = args.take("groupby", ["attribute", "default", "case_sensitive"])?;
    let Some(path) = path else { return fail("groupby needs an attribute") };
    let exact = is_set(exact.as_ref());
    let mut keyed = Vec::with_capacity(items.items.len());
    for item in &items.items {
        let key = attribute(meter, item, &path)?;
        let key = if key.is_undefined() { default.clone().unwrap_or(key) } else { key };
        keyed.push((folded(&key, exact), key, item.clone()));
    }
    sorted(meter, &mut keyed, |(key, ..)| key.clone(), false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (folded, key, item) in keyed {
        match groups.last_mut() {
            Some((last, _, group)) if last.equals(meter, &folded)? => group.push(item),
            _ => groups.push((folded, key, vec![item])),
        }
    }
    let pair = |(_, key, group)| Value::tuple(meter, vec![key, Value::list(meter, group)?]);
    Value::list(meter, groups.into_iter().map(pair).collect::<Result<_>>()?)
}

fn batch(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [size, fill] = args.take("batch", ["linecount", "fill_with"])?;
    let size = usize::try_from(number("linecount", size.as_ref(), 0)?).unwrap_or(0);
    if size == 0 {
        return fail("batch needs a size");
    }
    let mut rows = Vec::new();
    for row in items.items.chunks(size) {
        let mut row = row.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
            meter.values(size - row.len())?;
            row.resize(size, fill.clone());
        }
        rows.push(Value::list(meter, row)?);
    }
    Value::iter(meter, rows)
}

fn slice(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    let [slices, fill] = args.take("slice", ["slices", "fill_with"])?;
    let slices = usize::try_from(number("slices", slices.as_ref(), 0)?).unwrap_or(0);
    if slices == 0 {
        return fail("slice needs a number");
    }
    meter.values(slices.saturating_mul(2))?;
    let (each, more) = (items.items.len() / slices, items.items.len() % slices);
    let mut rows = Vec::with_capacity(slices);
    for i in 0..slices {
        let start = i * each + i.min(more);
        let end = start + each + usize::from(i < more);
        let mut row = items.items[start..end].to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None))
            && i >= more
        {
            row.push(fill.clone());
        }
        rows.push(Value::list(meter, row)?);
    }
    Value::iter(meter, rows)
}

/// The arguments behind the first.
fn rest(args: &Args) -> Args {
    Args { positional: args.positional.get(1..).unwrap_or_default().to_vec(), named: args.named.clone() }
}

fn map(meter: &Meter, items: &Seq, args: &Args) -> Result<Value> {
    if args.positional.is_empty() {
        let [_, path, default] = args.take("map", ["", "attribute", "default"])?;
        let Some(path) = path else { return fail("map needs a filter or an attribute") };
        let one = |item: &Value| {
            let found = attribute(meter, item, &path)?;
            Ok(if found.is_undefined() { default.clone().unwrap_or(found) } else { found })
        };
        return Value::iter(meter, items.items.iter().map(one).collect::<Result<_>>()?);
    }
    let (name, args) = (text_of("map", args.positional.first())?, rest(args));
    Value::iter(
        meter,
        items.items.iter().map(|item| apply(meter, &name, item, &args)).collect::<Result<_>>()?,
    )
}

fn select(meter: &Meter, name: &str, items: &Seq, args: &Args) -> Result<Value> {
    let keep = name.starts_with("select");
    let by_attribute = name.ends_with("attr");
    let mut args = Args { positional: args.positional.clone(), named: args.named.clone() };
    let path = if by_attribute {
        if args.positional.is_empty() {
            return fail(format!("{name} needs an attribute"));
        }
        Some(args.positional.remove(0))
    } else {
        None
    };
    let asked = match args.positional.first() {
        None => None,
        first => Some((text_of(name, first)?, rest(&args))),
    };
    let mut kept = Vec::new();
    for item in &items.items {
        meter.work(2)?;
        let value = match &path {
            Some(path) => attribute(meter, item, path)?,
            None => item.clone(),
        };
        let holds = match &asked {
            Some((name, args)) => test(meter, name, &value, args)?,
            None => value.is_true(),
        };
        if holds == keep {
            kept.push(item.clone());
        }
    }
    Value::iter(meter, kept)
}
