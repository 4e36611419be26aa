//! `narrows run` on a terminal: a conversation.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use narrows::{Context, Engine, Message, Model, Prompt, Request, Text, Workload};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::run::{PassClock, chat_options, closing_line};
use super::{builder, start, write_trace};
use crate::args::{Compute, Output, Run};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{say, write};

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
        _ => Context::Auto.positions(model.architecture()).min(POSITIONS),
    };
    // Nobody knows how long the conversation will be: memory for all of it is set aside.
    let compute = Compute { ctx: Context::Positions(positions), ..args.compute.clone() };
    let chunk = builder(&compute)?.chunk_rows(model.architecture()).min(positions);
    let workload = Workload::new(1, positions, chunk, 1);
    let mut engine = start(output, &compute, model, workload, text, 0)?;
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
    let mut pass = PassClock::new(engine);
    engine.on_layer(move |layer| pass.at(layer));
    engine.cancel_on(Interrupt::flag());
    let mut session = engine.session();
    loop {
        let line = match editor.readline(">>> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(terminal(error)),
        };
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(()),
            "/clear" => {
                messages.clone_from(&start);
                continue;
            }
            _ => {}
        }
        let _ = editor.add_history_entry(&line);
        messages.push(Message::new("user", line));
        // For the length of a reply: at the prompt a signal ends the program.
        let interrupt = Interrupt::listen();
        interrupt.reset();
        let request = request(Prompt::Chat(messages.clone(), chat_options()));
        let stdout = RefCell::new(Ok(()));
        let reply = session.generate(&request, |event| {
            *stdout.borrow_mut() = write(event.text);
            let go_on = !interrupt.came() && stdout.borrow().is_ok();
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        stdout.into_inner()?;
        match reply {
            Ok((completion, stats)) => {
                write("\n")?;
                say(
                    output,
                    &closing_line(session.engine(), &stats, std::slice::from_ref(&completion), &[request]),
                );
                messages.push(Message::new("assistant", completion.text.unwrap_or_default()));
            }
            // The conversation outgrew the context: say so and let the user start anew.
            Err(error @ narrows::Error::PromptTooLong { .. }) => {
                messages.pop();
                say(output, &format!("{error}; /clear starts anew"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::Other(format!("the terminal: {error}"))
}
