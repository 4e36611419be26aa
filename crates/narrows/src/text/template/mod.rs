//! Runs chat templates. They are programs from strangers in a language that Python defines, so minijinja parses
//! them, and this module runs what it parsed: with Python's values, and with everything counted before it is done.

mod eval;
mod filters;
mod format;
mod json;
mod lists;
mod meter;
mod ops;
mod strings;
mod tests;
mod time;
mod value;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use minijinja::machinery::{Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use self::eval::Run;
use self::meter::{Error, Meter, Result, fail};
use self::time::Now;
use self::value::{Dict, Value};

/// Bytes of a template at most.
const MAX_SOURCE: usize = 1 << 20;
/// Words and signs in one tag, and of all tags that nest statements, at most.
const MAX_TOKENS: usize = 4096;
/// Bytes of the text that a template writes, besides four times what it is given. All of it is encoded, at some hundred
/// times its size of memory.
const MAX_OUTPUT: usize = 1 << 20;
/// Of the thread that parses and runs; what is not used of it takes no memory.
const STACK: usize = 256 << 20;

/// What a template is rendered with.
#[derive(Debug)]
pub(super) struct Input<'a> {
    /// By name; the first of two with one name counts.
    pub(super) variables: Vec<(&'a str, &'a serde_json::Value)>,
    /// The time, and by how many seconds the local clock is ahead of UTC.
    pub(super) now: (SystemTime, i32),
}

/// Renders the template `source`, or says why not.
pub(super) fn render(source: &str, input: &Input<'_>) -> std::result::Result<String, String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("it has {} bytes, more than {MAX_SOURCE}", source.len()));
    }
    // What is nested deeply takes a deep stack to parse, run and drop.
    std::thread::scope(|scope| {
        let run = || catch_unwind(AssertUnwindSafe(|| run(source, input)));
        let builder = std::thread::Builder::new().name("narrows-template".to_owned()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, run).map_err(|e| format!("no thread for it: {e}"))?;
        match thread.join() {
            Ok(Ok(result)) => result.map_err(|Error(text)| text),
            _ => Err("it is malformed".to_owned()),
        }
    })
}

fn syntax() -> Result<SyntaxConfig> {
    let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    config.map_err(|e| Error(e.to_string()))
}

/// Refuses what is nested too deeply for the parser, which calls itself.
fn check(source: &str) -> Result<()> {
    let (mut in_tag, mut nested, mut first) = (0, 0_usize, false);
    for token in tokenize(source, false, syntax()?) {
        let (token, _) = token.map_err(|e| parse_error(&e))?;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (in_tag, first) = (0, matches!(token, Token::BlockStart));
            }
            Token::Ident("if" | "elif" | "for" | "macro" | "call" | "with" | "block" | "filter" | "set")
                if first =>
            {
                nested += 1;
            }
            // Python takes a line end behind a backslash for none.
            Token::Str(text) if text.contains("\\\n") => return fail("a string over several lines"),
            Token::String(ref text) if text.contains("\\\n") => return fail("a string over several lines"),
            _ => {}
        }
        if !matches!(token, Token::VariableStart | Token::BlockStart) {
            first = false;
        }
        in_tag += 1;
        if in_tag > MAX_TOKENS {
            return fail(format!("a tag has more than {MAX_TOKENS} words and signs"));
        }
        if nested > MAX_TOKENS {
            return fail(format!("it has more than {MAX_TOKENS} blocks"));
        }
    }
    Ok(())
}

fn parse_error(e: &minijinja::Error) -> Error {
    Error(e.to_string())
}

fn run(source: &str, input: &Input<'_>) -> Result<String> {
    check(source)?;
    let template = parse(source, "template", syntax()?).map_err(|e| parse_error(&e))?;
    let given = source.len() + input.variables.iter().map(|(_, value)| size(value)).sum::<usize>();
    let meter = Meter::new(given);
    let mut variables = Dict::default();
    for (name, value) in &input.variables {
        if variables.get_str(name).is_none() {
            variables.insert(&meter, Value::from(*name), Value::from_json(&meter, value)?)?;
        }
    }
    let most = MAX_OUTPUT.saturating_add(given.saturating_mul(4));
    let run = Run::new(&meter, source, Now::new(input.now.0, input.now.1), variables, most);
    run.template(&template)
}

/// Bytes that a value has about.
fn size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len() + 16,
        serde_json::Value::Array(list) => list.iter().map(size).sum::<usize>() + 16,
        serde_json::Value::Object(map) => {
            map.iter().map(|(key, value)| key.len() + 32 + size(value)).sum::<usize>() + 16
        }
        _ => 16,
    }
}
