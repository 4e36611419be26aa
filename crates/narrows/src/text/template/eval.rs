//! Runs a template: its statements and expressions, as minijinja parses them, with Python's semantics.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Stmt, UnaryOpKind};

use super::filters;
use super::meter::{Error, Meter, Result, fail};
use super::ops;
use super::strings::{Args, text_of};
use super::tests::{call_method, method, test};
use super::time::Now;
use super::value::{Dict, LoopState, MacroValue, Seq, Value};

/// Values of a `range` at most, as in the sandbox of Python's Jinja.
const MAX_RANGE: i128 = 100_000;
/// Functions that every template has.
const FUNCTIONS: [&str; 7] =
    ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

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

/// `value.name`, which may be a method; `None` where there is nothing of that name.
pub(super) fn attribute(meter: &Meter, value: &Value, name: &str) -> Result<Option<Value>> {
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

    fn statement(&self, statement: &'t Stmt<'t>, frame: &Rc<Frame>, out: &mut String) -> Result<Flow> {
        self.meter.enter()?;
        let flow = self.do_statement(statement, frame, out)?;
        self.meter.leave();
        Ok(flow)
    }

    fn do_statement(&self, statement: &'t Stmt<'t>, frame: &Rc<Frame>, out: &mut String) -> Result<Flow> {
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

    fn for_loop(
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

    fn assign(&self, target: &'t Expr<'t>, value: Value, frame: &Rc<Frame>) -> Result<()> {
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

    fn make_macro(
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

    fn expression(&self, expr: &'t Expr<'t>, frame: &Rc<Frame>) -> Result<Value> {
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

    /// `value.name`: an attribute, else the item of that name.
    fn attribute(&self, value: &Value, name: &str) -> Result<Value> {
        if let Some(found) = attribute(self.meter, value, name)? {
            return Ok(found);
        }
        let found =
            if name.starts_with("__") { None } else { ops::item(self.meter, value, &Value::from(name))? };
        Ok(found.unwrap_or_else(|| Value::Undefined(format!("{name} of a {}", value.kind()).into())))
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

    fn arguments(&self, from: &'t [CallArg<'t>], frame: &Rc<Frame>) -> Result<Args> {
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

    fn filter_chain(&self, filter: &'t Expr<'t>, value: Value, frame: &Rc<Frame>) -> Result<Value> {
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

    fn call(&self, call: &'t ast::Call<'t>, frame: &Rc<Frame>, caller: Option<Value>) -> Result<Value> {
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

    fn function(&self, name: &str, args: Args) -> Result<Value> {
        let m = self.meter;
        match name {
            "range" => {
                if !args.named.is_empty() {
                    return fail("range takes no arguments by name");
                }
                let whole = |i: usize| ops::whole(&args.positional[i], "an argument of range");
                let (start, stop, step) = match args.positional.len() {
                    1 => (0, whole(0)?, 1),
                    2 => (whole(0)?, whole(1)?, 1),
                    3 => (whole(0)?, whole(1)?, whole(2)?),
                    _ => return fail("range takes one to three numbers"),
                };
                const FAR: i128 = 1 << 100;
                if step == 0 || [start, stop, step].iter().any(|n| n.abs() > FAR) {
                    return fail("range: the numbers are too large, or the step is zero");
                }
                let range = Value::Range(start, stop, step);
                match range.len() {
                    Some(n) if (n as i128) <= MAX_RANGE => Ok(range),
                    _ => fail(format!("range too big: at most {MAX_RANGE} values")),
                }
            }
            "dict" => Ok(Value::Dict(Rc::new(self.make_dict(args)?))),
            "dict.fromkeys" => {
                let [keys, value] = args.take(name, ["iterable", "value"])?;
                let Some(keys) = keys else { return fail("fromkeys needs keys") };
                let (mut dict, value) = (Dict::default(), value.unwrap_or(Value::None));
                for key in &keys.items(m)?.items {
                    dict.insert(m, key.clone(), value.clone())?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            "namespace" => {
                let dict = self.make_dict(args)?;
                for (key, _) in &dict.entries {
                    if matches!(key, Value::Str(name) if name.starts_with('_')) {
                        return fail("names of a namespace do not begin with an underscore");
                    }
                }
                let namespace = Rc::new(RefCell::new(dict));
                m.work(16)?;
                self.namespaces.borrow_mut().push(Rc::clone(&namespace));
                Ok(Value::Namespace(namespace))
            }
            "cycler" => {
                if args.positional.is_empty() || !args.named.is_empty() {
                    return fail("at least one item has to be provided");
                }
                Ok(Value::Cycler(Rc::new((Seq::new(m, args.positional)?, Cell::new(0)))))
            }
            "joiner" => {
                let [text] = args.take(name, ["sep"])?;
                let text = text.map_or_else(|| Ok(", ".into()), |text| text.to_text(m))?;
                Ok(Value::Joiner(Rc::new((text, Cell::new(false)))))
            }
            "raise_exception" => {
                let [message] = args.take(name, ["message"])?;
                let message = message.map_or_else(|| Ok("".into()), |message| message.to_text(m))?;
                Err(Error(message.chars().take(1000).collect()))
            }
            "strftime_now" => {
                let [format] = args.take(name, ["format"])?;
                let format = text_of(name, format.as_ref())?;
                // A code of two letters may become a thousand.
                m.bytes(format.len().saturating_mul(64))?;
                Value::text(m, self.now.format(&format))
            }
            _ => fail(format!("{name} is not supported")),
        }
    }

    fn make_dict(&self, args: Args) -> Result<Dict> {
        let mut dict = Dict::default();
        let mut positional = args.positional.iter();
        match positional.next() {
            None => {}
            Some(Value::Dict(from)) => {
                for (key, value) in &from.entries {
                    dict.insert(self.meter, key.clone(), value.clone())?;
                }
            }
            Some(from) => {
                for pair in &from.items(self.meter)?.items {
                    let pair = pair.items(self.meter)?;
                    let [key, value] = &pair.items[..] else { return fail("dict needs pairs") };
                    dict.insert(self.meter, key.clone(), value.clone())?;
                }
            }
        }
        if positional.next().is_some() {
            return fail("dict takes one argument, and others by name");
        }
        for (key, value) in args.named {
            dict.insert(self.meter, Value::from(key), value)?;
        }
        Ok(dict)
    }
}
