//! Operators, items and slices.

use std::rc::Rc;

use minijinja::machinery::ast::{BinOpKind, CompareOpKind};

use super::format;
use super::meter::{Error, Meter, Result, fail};
use super::value::{Number, Seq, Value};

fn wrong(op: &str, a: &Value, b: &Value) -> Error {
    for side in [a, b] {
        if side.is_undefined() {
            return side.undefined_error();
        }
    }
    Error(format!("{} {op} {} is not possible", a.kind(), b.kind()))
}

fn too_large() -> Error {
    Error("a whole number is too large".to_owned())
}

pub(super) fn binary(meter: &Meter, op: BinOpKind, a: &Value, b: &Value) -> Result<Value> {
    match op {
        BinOpKind::Add => add(meter, a, b),
        BinOpKind::Sub => numbers("-", a, b, i128::checked_sub, |a, b| a - b),
        BinOpKind::Mul => multiply(meter, a, b),
        BinOpKind::Div => divide(a, b),
        BinOpKind::FloorDiv => floor(a, b, true),
        BinOpKind::Rem => match a {
            Value::Str(text) => format::percent(meter, text, b),
            _ => floor(a, b, false),
        },
        BinOpKind::Pow => power(a, b),
        BinOpKind::Concat => {
            let (a, b) = (a.to_text(meter)?, b.to_text(meter)?);
            meter.bytes(a.len() + b.len())?;
            Ok(Value::from([&*a, &*b].concat()))
        }
        BinOpKind::Eq => compare(meter, CompareOpKind::Eq, a, b),
        BinOpKind::Ne => compare(meter, CompareOpKind::Ne, a, b),
        BinOpKind::Lt => compare(meter, CompareOpKind::Lt, a, b),
        BinOpKind::Lte => compare(meter, CompareOpKind::Lte, a, b),
        BinOpKind::Gt => compare(meter, CompareOpKind::Gt, a, b),
        BinOpKind::Gte => compare(meter, CompareOpKind::Gte, a, b),
        BinOpKind::In => compare(meter, CompareOpKind::In, a, b),
        BinOpKind::ScAnd | BinOpKind::ScOr => fail("not an operator of two values"),
    }
}

pub(super) fn compare(meter: &Meter, op: CompareOpKind, a: &Value, b: &Value) -> Result<Value> {
    Ok(Value::Bool(match op {
        CompareOpKind::Eq => a.equals(meter, b)?,
        CompareOpKind::Ne => !a.equals(meter, b)?,
        CompareOpKind::Lt => a.compare(meter, b)?.is_lt(),
        CompareOpKind::Lte => a.compare(meter, b)?.is_le(),
        CompareOpKind::Gt => a.compare(meter, b)?.is_gt(),
        CompareOpKind::Gte => a.compare(meter, b)?.is_ge(),
        CompareOpKind::In => contains(meter, b, a)?,
        CompareOpKind::NotIn => !contains(meter, b, a)?,
    }))
}

pub(super) fn contains(meter: &Meter, all: &Value, one: &Value) -> Result<bool> {
    match (all, one) {
        (Value::Str(all), Value::Str(one)) => {
            meter.bytes(all.len())?;
            Ok(all.contains(&**one))
        }
        (Value::Str(_), other) => fail(format!("a str does not contain a {}", other.kind())),
        (Value::Dict(dict), key) => Ok(dict.get(meter, key).is_some()),
        _ => {
            for item in &all.items(meter)?.items {
                if item.equals(meter, one)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

fn numbers(
    op: &str,
    a: &Value,
    b: &Value,
    int: impl Fn(i128, i128) -> Option<i128>,
    float: impl Fn(f64, f64) -> f64,
) -> Result<Value> {
    match (a.number(), b.number()) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => int(a, b).map(Value::Int).ok_or_else(too_large),
        (Some(a), Some(b)) => Ok(Value::Float(float(a.float(), b.float()))),
        _ => Err(wrong(op, a, b)),
    }
}

pub(super) fn add(meter: &Meter, a: &Value, b: &Value) -> Result<Value> {
    let joined = |a: &Seq, b: &Seq| {
        meter.values(a.items.len() + b.items.len())?;
        Seq::new(meter, a.items.iter().chain(&b.items).cloned().collect())
    };
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            meter.bytes(a.len() + b.len())?;
            Ok(Value::from([&**a, &**b].concat()))
        }
        (Value::List(a), Value::List(b)) => joined(a, b).map(Value::List),
        (Value::Tuple(a), Value::Tuple(b)) => joined(a, b).map(Value::Tuple),
        _ => numbers("+", a, b, i128::checked_add, |a, b| a + b),
    }
}

fn multiply(meter: &Meter, a: &Value, b: &Value) -> Result<Value> {
    let times = |n: &Value| match n.number() {
        Some(Number::Int(n)) => Ok(usize::try_from(n.max(0)).unwrap_or(usize::MAX)),
        _ => Err(wrong("*", a, b)),
    };
    let repeated = |seq: &Seq, n: usize| {
        meter.values(seq.items.len().saturating_mul(n))?;
        Seq::new(meter, std::iter::repeat_n(&seq.items, n).flatten().cloned().collect())
    };
    match (a, b) {
        (Value::Str(text), n) | (n, Value::Str(text)) => {
            let n = times(n)?;
            meter.bytes(text.len().saturating_mul(n))?;
            Ok(Value::from(text.repeat(n)))
        }
        (Value::List(seq), n) | (n, Value::List(seq)) => repeated(seq, times(n)?).map(Value::List),
        (Value::Tuple(seq), n) | (n, Value::Tuple(seq)) => repeated(seq, times(n)?).map(Value::Tuple),
        _ => numbers("*", a, b, i128::checked_mul, |a, b| a * b),
    }
}

fn divide(a: &Value, b: &Value) -> Result<Value> {
    match (a.number(), b.number()) {
        (Some(_), Some(b)) if b.float() == 0.0 => fail("division by zero"),
        (Some(a), Some(b)) => Ok(Value::Float(a.float() / b.float())),
        _ => Err(wrong("/", a, b)),
    }
}

/// `//` or `%`, which round down.
fn floor(a: &Value, b: &Value, quotient: bool) -> Result<Value> {
    match (a.number(), b.number()) {
        (Some(_), Some(b)) if b.float() == 0.0 => fail("division by zero"),
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            let rest = a.checked_rem(b).unwrap_or(0);
            let down = rest != 0 && (rest < 0) != (b < 0);
            let result = if quotient {
                a.checked_div(b).map(|q| q - i128::from(down))
            } else {
                Some(if down { rest + b } else { rest })
            };
            result.map(Value::Int).ok_or_else(too_large)
        }
        (Some(a), Some(b)) => {
            let (a, b) = (a.float(), b.float());
            let mut rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                rest += b;
            } else if rest == 0.0 {
                rest = 0.0_f64.copysign(b);
            }
            Ok(Value::Float(if quotient { ((a - rest) / b).round() } else { rest }))
        }
        _ => Err(wrong(if quotient { "//" } else { "%" }, a, b)),
    }
}

fn power(a: &Value, b: &Value) -> Result<Value> {
    match (a.number(), b.number()) {
        (Some(Number::Int(a)), Some(Number::Int(b))) if b >= 0 => {
            let power = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
            power.map(Value::Int).ok_or_else(too_large)
        }
        (Some(a), Some(b)) => {
            let (a, b) = (a.float(), b.float());
            if a == 0.0 && b < 0.0 {
                return fail("zero cannot be raised to a negative power");
            }
            if a < 0.0 && b.fract() != 0.0 {
                return fail("complex numbers are not supported");
            }
            Ok(Value::Float(a.powf(b)))
        }
        _ => Err(wrong("**", a, b)),
    }
}

pub(super) fn negate(value: &Value) -> Result<Value> {
    match value.number() {
        Some(Number::Int(i)) => i.checked_neg().map(Value::Int).ok_or_else(too_large),
        Some(Number::Float(f)) => Ok(Value::Float(-f)),
        None if value.is_undefined() => Err(value.undefined_error()),
        None => fail(format!("-{} is not possible", value.kind())),
    }
}

/// A whole number, as an index takes it.
pub(super) fn whole(value: &Value, what: &str) -> Result<i128> {
    match value.number() {
        Some(Number::Int(i)) => Ok(i),
        _ => fail(format!("{what} is a {}, not a whole number", value.kind())),
    }
}

/// The item at an index that may count from the end.
pub(super) fn at(len: usize, index: i128) -> Option<usize> {
    let index = if index < 0 { index + len as i128 } else { index };
    usize::try_from(index).ok().filter(|i| *i < len)
}

/// `value[key]`, without attributes; `None` where there is none.
pub(super) fn item(meter: &Meter, value: &Value, key: &Value) -> Result<Option<Value>> {
    Ok(match (value, key.number()) {
        (Value::Dict(dict), _) => dict.get(meter, key).cloned(),
        (Value::List(s) | Value::Tuple(s), Some(Number::Int(i))) => {
            at(s.items.len(), i).map(|i| s.items[i].clone())
        }
        (Value::Str(text), Some(Number::Int(i))) => {
            meter.bytes(text.len())?;
            at(text.chars().count(), i).and_then(|i| text.chars().nth(i)).map(|c| Value::from(c.to_string()))
        }
        (Value::Range(start, _, step), Some(Number::Int(i))) => {
            at(value.len().unwrap_or(0), i).map(|i| Value::Int(start + step * i as i128))
        }
        _ => None,
    })
}

/// `value[start:stop:step]`.
pub(super) fn slice(meter: &Meter, value: &Value, bounds: [&Value; 3]) -> Result<Value> {
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        value => whole(value, "a bound of a slice").map(Some),
    };
    let step = bound(bounds[2])?.unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let indices = |len: usize| -> Result<Vec<usize>> {
        let len = len as i128;
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let clamp = |bound: Option<i128>, default: i128| match bound {
            None => default,
            Some(i) if i < 0 => i.saturating_add(len).max(low),
            Some(i) => i.min(high),
        };
        let (start, stop) = if step > 0 { (low, high) } else { (high, low) };
        let (mut i, stop) = (clamp(bound(bounds[0])?, start), clamp(bound(bounds[1])?, stop));
        let mut all = Vec::new();
        while if step > 0 { i < stop } else { i > stop } {
            all.push(i as usize);
            i = i.saturating_add(step);
        }
        Ok(all)
    };
    let cut = |seq: &Rc<Seq>| {
        meter.values(seq.items.len())?;
        let all = indices(seq.items.len())?;
        Seq::new(meter, all.into_iter().map(|i| seq.items[i].clone()).collect())
    };
    match value {
        Value::Str(text) => {
            meter.bytes(text.len().saturating_mul(12))?;
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::from(indices(chars.len())?.into_iter().map(|i| chars[i]).collect::<String>()))
        }
        Value::List(seq) => cut(seq).map(Value::List),
        Value::Tuple(seq) => cut(seq).map(Value::Tuple),
        Value::Range(start, _, by) => {
            let all = indices(value.len().unwrap_or(0))?;
            let at = |i: i128| start + by * i;
            let first = all.first().map_or(0, |i| *i as i128);
            Ok(Value::Range(at(first), at(first + step * all.len() as i128), by * step))
        }
        other if other.is_undefined() => Err(other.undefined_error()),
        other => fail(format!("a {} cannot be sliced", other.kind())),
    }
}
