//! Calls of macros, blocks, recursive loops, methods and functions.

use std::rc::Rc;

use minijinja::machinery::ast::{self, Expr};

use super::super::meter::{Result, fail};
use super::super::strings::Args;
use super::super::tests::call_method;
use super::super::value::{Dict, MacroValue, Value};
use super::{Frame, Macro, Run};

impl<'t> Run<'t> {
    pub(super) fn make_macro(
        &self,
        of: &'t ast::Macro<'t>,
        span: minijinja::machinery::Span,
        frame: &Rc<Frame>,
    ) -> Result<Value> {
        self.meter.work(16)?;
        let text = self.source.get(span.start_offset as usize..span.end_offset as usize).unwrap_or_default();
        let takes = (text.contains("varargs"), text.contains("kwargs"));
        let mut macros = self.macros.borrow_mut();
        macros.push(Macro { of, frame: Rc::clone(frame), takes });
        let arguments = of.args.iter().map(|arg| match arg {
            Expr::Var(var) => Ok(var.id.to_owned()),
            _ => fail("an argument of a macro is not a name"),
        });
        let arguments = arguments.collect::<Result<_>>()?;
        Ok(Value::Macro(Rc::new(MacroValue {
            name: of.name.to_owned(),
            number: macros.len() - 1,
            arguments,
        })))
    }

    fn call_macro(&self, made: &MacroValue, mut args: Args) -> Result<Value> {
        let (of, frame, takes) = {
            let macros = self.macros.borrow();
            let Some(found) = macros.get(made.number) else { return fail("an unknown macro") };
            (found.of, Frame::inside(&found.frame), found.takes)
        };
        let n = made.arguments.len();
        let more = args.positional.split_off(args.positional.len().min(n));
        if !more.is_empty() && !takes.0 {
            return fail(format!("macro {:?} takes not more than {n} arguments", made.name));
        }
        if takes.0 {
            frame.set(self.meter, "varargs", Value::tuple(self.meter, more)?)?;
        }
        let mut positional = args.positional.into_iter();
        // Defaults belong to the last arguments, and see those before.
        for (i, name) in made.arguments.iter().enumerate() {
            let named = args.named.iter().position(|(key, _)| key == name);
            let value = match (positional.next(), named) {
                (Some(_), Some(_)) => {
                    return fail(format!("macro {:?} got two values for {name}", made.name));
                }
                (Some(value), None) => value,
                (None, Some(at)) => args.named.remove(at).1,
                (None, None) => match (i + of.defaults.len()).checked_sub(n) {
                    Some(default) => self.expression(&of.defaults[default], &frame)?,
                    None => Value::Undefined(format!("parameter {name}").into()),
                },
            };
            frame.set(self.meter, name, value)?;
        }
        if let Some(at) = args.named.iter().position(|(key, _)| key == "caller") {
            frame.set(self.meter, "caller", args.named.remove(at).1)?;
        }
        if takes.1 {
            frame.set(self.meter, "kwargs", self.dict(args.named)?)?;
        } else if let Some((name, _)) = args.named.first() {
            return fail(format!("macro {:?} takes no argument {name:?}", made.name));
        }
        let mut out = String::new();
        self.body(&of.body, &frame, &mut out)?;
        Ok(Value::from(out))
    }

    fn dict(&self, named: Vec<(String, Value)>) -> Result<Value> {
        let mut dict = Dict::default();
        for (key, value) in named {
            dict.insert(self.meter, Value::from(key), value)?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }

    pub(super) fn call(
        &self,
        call: &'t ast::Call<'t>,
        frame: &Rc<Frame>,
        caller: Option<Value>,
    ) -> Result<Value> {
        if let Expr::GetAttr(attr) = &call.expr
            && matches!(&attr.expr, Expr::Var(var) if var.id == "self")
        {
            let found =
                self.blocks.borrow().iter().find(|(name, _)| *name == attr.name).map(|(_, block)| *block);
            return match found {
                Some(block) => Ok(Value::from(self.captured(&block.body, frame)?)),
                None => fail(format!("there is no block {:?}", attr.name)),
            };
        }
        let function = self.expression(&call.expr, frame)?;
        let mut args = self.arguments(&call.args, frame)?;
        if let Some(caller) = caller {
            args.named.push(("caller".to_owned(), caller));
        }
        match &function {
            Value::Function(name) => self.function(name, args),
            Value::Macro(made) => self.call_macro(made, args),
            Value::Method(method) => call_method(self.meter, &method.0, &method.1, &args),
            Value::Loop(state) => {
                let [items] = args.take("loop", ["iterable"])?;
                let found = state
                    .number
                    .and_then(|n| self.loops.borrow().get(n).map(|(of, at)| (*of, Rc::clone(at))));
                let (Some(items), Some((of, frame))) = (items, found) else {
                    return fail("only a recursive loop can be called, with what to go over");
                };
                let mut out = String::new();
                self.for_loop(of, &items, &frame, &mut out, state.depth + 1, state.number)?;
                Ok(Value::from(out))
            }
            Value::Joiner(joiner) => {
                args.take("joiner", [])?;
                let used = joiner.1.replace(true);
                Ok(if used { Value::Str(Rc::clone(&joiner.0)) } else { Value::from("") })
            }
            other if other.is_undefined() => Err(other.undefined_error()),
            other => fail(format!("a {} cannot be called", other.kind())),
        }
    }
}
