//! `narrows run` on a terminal: a conversation.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use narrows::{Completion, Context, Engine, Finish, Message, Model, Prompt, Request, Stats, Text, Workload};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::run::{chat_options, seconds_per_token, watch};
use super::{builder, start, write_trace};
use crate::amounts::{count, per_token, seconds};
use crate::args::{Compute, Output, Run};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{StatusLine, say, write};

/// Tokens of a reply at most, where no flag says.
pub(super) const MAX_NEW_TOKENS: usize = 1024;

/// Positions of a conversation at most, where `--ctx` does not say and the model has as many.
const POSITIONS: usize = 8192;

/// Talks until end of input or `/exit`. Ctrl-C ends a reply; at the prompt it ends the conversation.
pub(super) fn chat(
    output: &Output,
    args: &Run,
    system: Option<&str>,
    model: Model,
    text: Option<Arc<Text>>,
    request: impl Fn(Prompt) -> Request,
) -> Result<()> {
    let positions = match args.compute.ctx {
        Context::Positions(n) => n,
        _ => Context::Auto.positions(model.program()).min(POSITIONS),
    };
    // Nobody knows how long the conversation will be: memory for all of it is set aside.
    let compute = Compute { ctx: Context::Positions(positions), ..args.compute.clone() };
    let chunk = builder(&compute)?.chunk_rows(&model).min(positions);
    let workload = Workload::new(1, positions, chunk, 1);
    let mut engine = start(output, &compute, model, workload, text, 0)?;
    if !engine.plan().all_resident() {
        let kv = engine.plan().kv;
        let what = format!("a conversation of {positions} positions has {kv} of memory set aside");
        say(output, &format!("note: {what}; a smaller --ctx leaves more of it to the weights"));
    }
    converse(output, &mut engine, system, request)?;
    write_trace(&engine, args.compute.trace.as_deref())
}

fn converse(
    output: &Output,
    engine: &mut Engine,
    system: Option<&str>,
    request: impl Fn(Prompt) -> Request,
) -> Result<()> {
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    say(output, "Ctrl-C ends a reply, /clear starts anew, /exit or Ctrl-D leaves.");
    let start: Vec<_> = system.map(|text| Message::new("system", text)).into_iter().collect();
    let mut messages = start.clone();
    let status = StatusLine::new(output);
    status.clear();
    watch(engine, &status, None);
    engine.cancel_on(Interrupt::flag());
    let mut session = engine.session();
    loop {
        let line = match editor.readline(">>> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(terminal(error)),
        };
        match Line::of(&line) {
            Line::Nothing => continue,
            Line::Leave => return Ok(()),
            Line::Clear => {
                messages.clone_from(&start);
                continue;
            }
            Line::Unknown(word) => {
                say(
                    output,
                    &format!("there is no {word}, only /clear and /exit; a blank before it makes it text"),
                );
                continue;
            }
            Line::Text => {}
        }
        let _ = editor.add_history_entry(&line);
        messages.push(Message::new("user", line));
        // For the length of a reply: at the prompt a signal ends the program.
        let interrupt = Interrupt::listen();
        interrupt.reset();
        let request = request(Prompt::Chat(messages.clone(), chat_options()));
        let stdout = RefCell::new(Ok(()));
        status.restart();
        let reply = session.generate(&request, |event| {
            if !event.text.is_empty() {
                status.clear();
            }
            *stdout.borrow_mut() = write(event.text);
            let go_on = !interrupt.came() && stdout.borrow().is_ok();
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        status.clear();
        stdout.into_inner()?;
        match reply {
            Ok((completion, stats)) => {
                write("\n")?;
                say(output, &closing_line(&stats, &completion, &request));
                messages.push(Message::new("assistant", completion.text.unwrap_or_default()));
            }
            // The conversation outgrew the context: say so and let the user start anew.
            Err(error @ narrows::Error::PromptTooLong { .. }) => {
                messages.pop();
                say(
                    output,
                    &format!("{error}; /clear starts anew, and a start with a larger --ctx makes room"),
                );
            }
            // More text than the memory has room for, or a template that makes it so.
            Err(error @ narrows::Error::DoesNotFit { .. }) => {
                messages.pop();
                say(output, &format!("{error}, for the text of this conversation; /clear starts anew"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a line of the user is.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Leave,
    Clear,
    /// Begins with what looks like a command and is none.
    Unknown(&'a str),
    Text,
}

impl<'a> Line<'a> {
    /// Commands are at the beginning of a line; paths such as `/etc/hosts` are text.
    fn of(line: &'a str) -> Self {
        let word = line.split_whitespace().next().filter(|_| line.starts_with('/')).unwrap_or_default();
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic());
        match line.trim_end() {
            "" => Self::Nothing,
            "/exit" | "/quit" | "/bye" => Self::Leave,
            "/clear" => Self::Clear,
            _ if word.strip_prefix('/').is_some_and(is_name) => Self::Unknown(word),
            _ => Self::Text,
        }
    }
}

/// What a reply took, short enough to come after each.
fn closing_line(stats: &Stats, completion: &Completion, request: &Request) -> String {
    let mut line = count(stats.new_tokens, "token");
    if let Some(time) = seconds_per_token(stats) {
        line += &format!(", {}", per_token(time));
    }
    line += &format!(", first after {}", seconds(stats.first_token.as_secs_f64()));
    match completion.finish {
        Finish::Length => line += &format!("; ended at {} tokens (-n)", request.max_new_tokens),
        Finish::Context => line += "; the context is full: /clear starts anew, a larger --ctx makes room",
        Finish::Cancelled => line += "; interrupted",
        _ => {}
    }
    line
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::Other(format!("the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_text() {
        for (line, is) in [
            ("", Line::Nothing),
            ("  ", Line::Nothing),
            ("/exit", Line::Leave),
            ("/bye ", Line::Leave),
            ("/clear", Line::Clear),
            ("/set seed 5", Line::Unknown("/set")),
            ("/clear all", Line::Unknown("/clear")),
            ("/Exit", Line::Unknown("/Exit")),
            (" /help", Line::Text),
            ("/etc/hosts: what is it?", Line::Text),
            ("/ is division", Line::Text),
            ("/2 is half", Line::Text),
            ("hello /exit", Line::Text),
        ] {
            assert_eq!(Line::of(line), is, "{line:?}");
        }
    }
}
