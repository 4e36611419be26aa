//! Expressions: from what stands between braces to a value.

use std::rc::Rc;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, UnaryOpKind};

use super::super::meter::{Result, fail};
use super::super::strings::{Args, text_of};
use super::super::tests::test;
use super::super::value::{Dict, Value};
use super::super::{filters, ops};
use super::{Frame, Run};

impl<'t> Run<'t> {
    pub(super) fn expression(&self, expr: &'t Expr<'t>, frame: &Rc<Frame>) -> Result<Value> {
        self.meter.enter()?;
        let value = self.evaluate(expr, frame)?;
        self.meter.leave();
        Ok(value)
    }

    fn evaluate(&self, expr: &'t Expr<'t>, frame: &Rc<Frame>) -> Result<Value> {
        let m = self.meter;
        let all = |items: &'t [Expr<'t>]| -> Result<Vec<Value>> {
            items.iter().map(|item| self.expression(item, frame)).collect()
        };
        match expr {
            Expr::Var(var) => self.lookup(var.id, frame),
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::List(list) => Value::list(m, all(&list.items)?),
            Expr::Tuple(tuple) => Value::tuple(m, all(&tuple.items)?),
            Expr::Map(map) => {
                let mut dict = Dict::default();
                for (key, value) in map.keys.iter().zip(&map.values) {
                    dict.insert(m, self.expression(key, frame)?, self.expression(value, frame)?)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Expr::UnaryOp(op) => {
                let value = self.expression(&op.expr, frame)?;
                match op.op {
                    UnaryOpKind::Not => Ok(Value::Bool(!value.is_true())),
                    UnaryOpKind::Neg => ops::negate(&value),
                }
            }
            Expr::BinOp(op) => {
                let left = self.expression(&op.left, frame)?;
                match op.op {
                    BinOpKind::ScAnd if !left.is_true() => Ok(left),
                    BinOpKind::ScOr if left.is_true() => Ok(left),
                    BinOpKind::ScAnd | BinOpKind::ScOr => self.expression(&op.right, frame),
                    kind => ops::binary(m, kind, &left, &self.expression(&op.right, frame)?),
                }
            }
            Expr::Compare(compare) => {
                let mut left = self.expression(&compare.expr, frame)?;
                for op in &compare.ops {
                    let right = self.expression(&op.expr, frame)?;
                    if !ops::compare(m, op.op, &left, &right)?.is_true() {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::IfExpr(cond) => {
                if self.expression(&cond.test_expr, frame)?.is_true() {
                    return self.expression(&cond.true_expr, frame);
                }
                match &cond.false_expr {
                    Some(expr) => self.expression(expr, frame),
                    None => Ok(Value::Undefined("an inline if without else, which was false,".into())),
                }
            }
            Expr::Filter(filter) => match &filter.expr {
                Some(expr) => {
                    let value = self.expression(expr, frame)?;
                    filters::filter(m, filter.name, &value, &self.arguments(&filter.args, frame)?)
                }
                None => fail("a filter without a value"),
            },
            Expr::Test(of) => {
                let value = self.expression(&of.expr, frame)?;
                Ok(Value::Bool(test(m, of.name, &value, &self.arguments(&of.args, frame)?)?))
            }
            Expr::GetAttr(attr) => {
                let value = self.expression(&attr.expr, frame)?;
                self.attribute(&value, attr.name)
            }
            Expr::GetItem(get) => {
                let value = self.expression(&get.expr, frame)?;
                let key = self.expression(&get.subscript_expr, frame)?;
                if value.is_undefined() {
                    return Err(value.undefined_error());
                }
                if let Some(found) = ops::item(m, &value, &key)? {
                    return Ok(found);
                }
                match &key {
                    Value::Str(name) => self.attribute(&value, name),
                    _ => Ok(Value::Undefined(format!("an item of a {}", value.kind()).into())),
                }
            }
            Expr::Slice(slice) => {
                let value = self.expression(&slice.expr, frame)?;
                let bound = |bound: &'t Option<Expr<'t>>| match bound {
                    Some(bound) => self.expression(bound, frame),
                    None => Ok(Value::None),
                };
                let (start, stop, step) = (bound(&slice.start)?, bound(&slice.stop)?, bound(&slice.step)?);
                match ops::slice(m, &value, [&start, &stop, &step]) {
                    // What cannot be sliced has nothing under that key, unless it is not there itself.
                    Err(_)
                        if matches!(
                            value,
                            Value::None | Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Dict(_)
                        ) =>
                    {
                        Ok(Value::Undefined(format!("a slice of a {}", value.kind()).into()))
                    }
                    result => result,
                }
            }
            Expr::Call(call) => self.call(call, frame, None),
        }
    }

    fn constant(&self, value: &minijinja::Value) -> Result<Value> {
        use minijinja::value::ValueKind;
        Ok(match value.kind() {
            ValueKind::Bool => Value::Bool(value.is_true()),
            ValueKind::Number if value.is_integer() => match i128::try_from(value.clone()) {
                Ok(i) => Value::Int(i),
                Err(_) => return fail("a whole number is too large"),
            },
            ValueKind::Number => Value::Float(f64::try_from(value.clone()).unwrap_or(f64::NAN)),
            ValueKind::String => Value::text(self.meter, value.as_str().unwrap_or_default())?,
            _ => Value::None,
        })
    }

    pub(super) fn arguments(&self, from: &'t [CallArg<'t>], frame: &Rc<Frame>) -> Result<Args> {
        let mut args = Args::default();
        for arg in from {
            match arg {
                CallArg::Pos(expr) => args.positional.push(self.expression(expr, frame)?),
                CallArg::Kwarg(name, expr) => {
                    args.named.push(((*name).to_owned(), self.expression(expr, frame)?));
                }
                CallArg::PosSplat(expr) => {
                    let items = self.expression(expr, frame)?.items(self.meter)?;
                    self.meter.values(items.items.len())?;
                    args.positional.extend(items.items.iter().cloned());
                }
                CallArg::KwargSplat(expr) => match self.expression(expr, frame)? {
                    Value::Dict(dict) => {
                        for (key, value) in &dict.entries {
                            self.meter.work(4)?;
                            args.named.push((text_of("**", Some(key))?, value.clone()));
                        }
                    }
                    other => return fail(format!("** needs a dict, not a {}", other.kind())),
                },
            }
        }
        Ok(args)
    }

    pub(super) fn filter_chain(
        &self,
        filter: &'t Expr<'t>,
        value: Value,
        frame: &Rc<Frame>,
    ) -> Result<Value> {
        let mut chain = Vec::new();
        let mut at = Some(filter);
        while let Some(Expr::Filter(filter)) = at {
            chain.push(filter);
            at = filter.expr.as_ref();
        }
        let mut value = value;
        for filter in chain.into_iter().rev() {
            value = filters::filter(self.meter, filter.name, &value, &self.arguments(&filter.args, frame)?)?;
        }
        Ok(value)
    }
}
