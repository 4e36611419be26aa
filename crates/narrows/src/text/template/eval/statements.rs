//! Statements: what is written, and what is done to names and loops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use minijinja::machinery::ast::{self, Expr, Stmt};

use super::super::meter::{Result, fail};
use super::super::value::{LoopState, Seq, Value};
use super::{Flow, Frame, Run};

impl<'t> Run<'t> {
    pub(super) fn statement(
        &self,
        statement: &'t Stmt<'t>,
        frame: &Rc<Frame>,
        out: &mut String,
    ) -> Result<Flow> {
        self.meter.enter()?;
        let flow = self.do_statement(statement, frame, out)?;
        self.meter.leave();
        Ok(flow)
    }

    pub(super) fn do_statement(
        &self,
        statement: &'t Stmt<'t>,
        frame: &Rc<Frame>,
        out: &mut String,
    ) -> Result<Flow> {
        match statement {
            Stmt::EmitRaw(raw) => self.write(out, raw.raw)?,
            Stmt::EmitExpr(emit) => {
                let text = self.expression(&emit.expr, frame)?.to_text(self.meter)?;
                self.write(out, &text)?;
            }
            Stmt::IfCond(cond) => {
                let body = if self.expression(&cond.expr, frame)?.is_true() {
                    &cond.true_body
                } else {
                    &cond.false_body
                };
                return self.body(body, frame, out);
            }
            Stmt::ForLoop(of) => {
                let number = of.recursive.then(|| {
                    let mut loops = self.loops.borrow_mut();
                    loops.push((of, Rc::clone(frame)));
                    loops.len() - 1
                });
                let items = self.expression(&of.iter, frame)?;
                self.for_loop(of, &items, frame, out, 0, number)?;
            }
            Stmt::WithBlock(with) => {
                let inner = Frame::inside(frame);
                for (target, value) in &with.assignments {
                    // Values do not see the names that are given beside them.
                    let value = self.expression(value, frame)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(&with.body, &inner, out);
            }
            Stmt::Set(set) => {
                let value = self.expression(&set.expr, frame)?;
                self.assign(&set.target, value, frame)?;
            }
            Stmt::SetBlock(set) => {
                let mut value = Value::from(self.captured(&set.body, frame)?);
                if let Some(filter) = &set.filter {
                    value = self.filter_chain(filter, value, frame)?;
                }
                self.assign(&set.target, value, frame)?;
            }
            Stmt::FilterBlock(block) => {
                let value = Value::from(self.captured(&block.body, frame)?);
                let text = self.filter_chain(&block.filter, value, frame)?.to_text(self.meter)?;
                self.write(out, &text)?;
            }
            Stmt::AutoEscape(block) => {
                if self.expression(&block.enabled, frame)?.is_true() {
                    return fail("autoescape is not supported");
                }
                return self.body(&block.body, &Frame::inside(frame), out);
            }
            Stmt::Block(block) => {
                self.blocks.borrow_mut().push((block.name, block));
                let text = self.captured(&block.body, frame)?;
                self.write(out, &text)?;
            }
            Stmt::Macro(of) => {
                let made = self.make_macro(of, of.span(), frame)?;
                frame.set(self.meter, of.name, made)?;
            }
            Stmt::CallBlock(call) => {
                let caller = self.make_macro(&call.macro_decl, call.macro_decl.span(), frame)?;
                let text = self.call(&call.call, frame, Some(caller))?.to_text(self.meter)?;
                self.write(out, &text)?;
            }
            Stmt::Break(_) => return Ok(Flow::Break),
            Stmt::Continue(_) => return Ok(Flow::Continue),
            Stmt::Do(_) => return fail("the tag do is not supported"),
            Stmt::Include(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) => {
                return fail("there are no other templates to include, import or extend");
            }
            Stmt::Template(_) => return fail("a template inside of a template"),
        }
        Ok(Flow::On)
    }

    pub(super) fn for_loop(
        &self,
        of: &'t ast::ForLoop<'t>,
        items: &Value,
        frame: &Rc<Frame>,
        out: &mut String,
        depth: usize,
        number: Option<usize>,
    ) -> Result<()> {
        let mut items = items.items(self.meter)?;
        if let Some(condition) = &of.filter_expr {
            let mut kept = Vec::new();
            for item in &items.items {
                let inner = Frame::inside(frame);
                inner.set(self.meter, "loop", Value::Undefined("loop in the condition of a loop".into()))?;
                self.assign(&of.target, item.clone(), &inner)?;
                if self.expression(condition, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            items = Seq::new(self.meter, kept)?;
        }
        if items.items.is_empty() {
            self.body(&of.else_body, &Frame::inside(frame), out)?;
            return Ok(());
        }
        let state = Rc::new(LoopState {
            items: Rc::clone(&items),
            index: Cell::new(0),
            depth,
            changed: RefCell::new(None),
            number,
        });
        for (index, item) in items.items.iter().enumerate() {
            self.meter.work(8)?;
            state.index.set(index);
            let inner = Frame::inside(frame);
            inner.set(self.meter, "loop", Value::Loop(Rc::clone(&state)))?;
            self.assign(&of.target, item.clone(), &inner)?;
            if let Flow::Break = self.body(&of.body, &inner, out)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn assign(&self, target: &'t Expr<'t>, value: Value, frame: &Rc<Frame>) -> Result<()> {
        self.meter.work(4)?;
        match target {
            Expr::Var(var) => frame.set(self.meter, var.id, value)?,
            Expr::List(list) => self.unpack(&list.items, &value, frame)?,
            Expr::Tuple(tuple) => self.unpack(&tuple.items, &value, frame)?,
            Expr::GetAttr(attr) => match self.expression(&attr.expr, frame)? {
                Value::Namespace(names) => {
                    if attr.name.starts_with('_') {
                        return fail("names of a namespace do not begin with an underscore");
                    }
                    names.borrow_mut().insert(self.meter, Value::from(attr.name), value)?;
                }
                _ => return fail("only attributes of a namespace can be set"),
            },
            _ => return fail("this cannot be assigned to"),
        }
        Ok(())
    }

    fn unpack(&self, targets: &'t [Expr<'t>], value: &Value, frame: &Rc<Frame>) -> Result<()> {
        let items = value.items(self.meter)?;
        if items.items.len() != targets.len() {
            return fail(format!("{} values for {} names", items.items.len(), targets.len()));
        }
        for (target, item) in targets.iter().zip(&items.items) {
            self.assign(target, item.clone(), frame)?;
        }
        Ok(())
    }
}
