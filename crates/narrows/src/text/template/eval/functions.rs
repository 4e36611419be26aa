//! Functions that every template has.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::super::meter::{Error, Result, fail};
use super::super::ops;
use super::super::strings::{Args, text_of};
use super::super::value::{Dict, Seq, Value};
use super::Run;

/// Values of a `range` at most, as in the sandbox of Python's Jinja.
const MAX_RANGE: i128 = 100_000;
/// Their names.
pub(super) const FUNCTIONS: [&str; 7] =
    ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

impl Run<'_> {
    pub(super) fn function(&self, name: &str, args: Args) -> Result<Value> {
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
