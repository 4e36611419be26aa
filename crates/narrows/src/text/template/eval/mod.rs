//! Runs a template: its statements and expressions, as minijinja parses them, with Python's semantics.

mod attributes;
mod calls;
mod expressions;
mod functions;
mod statements;

use std::cell::RefCell;
use std::rc::Rc;

use minijinja::machinery::ast::{self, Stmt};

pub(super) use self::attributes::attribute;
use self::functions::FUNCTIONS;
use super::meter::{Meter, Result, fail};
use super::time::Now;
use super::value::{Dict, Value};

/// Names and values of a block, and the block around it.
#[derive(Debug, Default)]
struct Frame {
    names: RefCell<Vec<(Rc<str>, Value)>>,
    parent: Option<Rc<Frame>>,
}

impl Frame {
    fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { names: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    fn set(&self, meter: &Meter, name: &str, value: Value) -> Result<()> {
        let mut names = self.names.borrow_mut();
        match names.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, old)) => *old = value,
            None => names.push((name.into(), value)),
        }
        meter.work(4 + names.len() / 4)
    }

    fn get(&self, meter: &Meter, name: &str) -> Result<Option<Value>> {
        let names = self.names.borrow();
        meter.work(1 + names.len() / 4)?;
        Ok(names.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.clone()))
    }
}

/// What a statement does to the loop around it.
enum Flow {
    On,
    Break,
    Continue,
}

struct Macro<'t> {
    of: &'t ast::Macro<'t>,
    frame: Rc<Frame>,
    /// Whether it takes more arguments than it names, by position and by name.
    takes: (bool, bool),
}

/// A template while it runs.
pub(super) struct Run<'t> {
    meter: &'t Meter,
    source: &'t str,
    now: Now,
    variables: Dict,
    /// Macros and recursive loops by number. They also keep alive what refers to them, so that nothing is dropped
    /// in a long chain.
    macros: RefCell<Vec<Macro<'t>>>,
    loops: RefCell<Vec<(&'t ast::ForLoop<'t>, Rc<Frame>)>>,
    namespaces: RefCell<Vec<Rc<RefCell<Dict>>>>,
    blocks: RefCell<Vec<(&'t str, &'t ast::Block<'t>)>>,
    max_output: usize,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Namespaces may lead to each other in circles and chains: each is emptied while all are held.
        for namespace in self.namespaces.borrow().iter() {
            drop(namespace.take());
        }
        for made in self.macros.borrow().iter() {
            drop(made.frame.names.take());
        }
        for (_, frame) in self.loops.borrow().iter() {
            drop(frame.names.take());
        }
    }
}

impl<'t> Run<'t> {
    pub(super) fn new(
        meter: &'t Meter,
        source: &'t str,
        now: Now,
        variables: Dict,
        max_output: usize,
    ) -> Self {
        Self {
            meter,
            source,
            now,
            variables,
            macros: RefCell::default(),
            loops: RefCell::default(),
            namespaces: RefCell::default(),
            blocks: RefCell::default(),
            max_output,
        }
    }

    /// Runs a whole template.
    pub(super) fn template(&self, template: &'t Stmt<'t>) -> Result<String> {
        let Stmt::Template(template) = template else { return fail("not a template") };
        let mut out = String::new();
        self.body(&template.children, &Rc::new(Frame::default()), &mut out)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, text: &str) -> Result<()> {
        self.meter.bytes(text.len())?;
        if out.len() + text.len() > self.max_output {
            return fail(format!("it writes more than {} bytes", self.max_output));
        }
        out.push_str(text);
        Ok(())
    }

    fn body(&self, body: &'t [Stmt<'t>], frame: &Rc<Frame>, out: &mut String) -> Result<Flow> {
        for statement in body {
            match self.statement(statement, frame, out)? {
                Flow::On => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::On)
    }

    /// What a body writes, without what it does to names.
    fn captured(&self, body: &'t [Stmt<'t>], frame: &Rc<Frame>) -> Result<String> {
        let mut out = String::new();
        self.body(body, &Frame::inside(frame), &mut out)?;
        Ok(out)
    }

    fn lookup(&self, name: &str, frame: &Rc<Frame>) -> Result<Value> {
        let mut at = Some(frame);
        while let Some(frame) = at {
            if let Some(value) = frame.get(self.meter, name)? {
                return Ok(value);
            }
            at = frame.parent.as_ref();
        }
        if let Some(value) = self.variables.get_str(name) {
            return Ok(value.clone());
        }
        Ok(match FUNCTIONS.iter().find(|known| **known == name) {
            Some(function) => Value::Function(function),
            None if name == "self" => return fail("self is not supported but to call a block"),
            None => Value::Undefined(name.into()),
        })
    }
}
