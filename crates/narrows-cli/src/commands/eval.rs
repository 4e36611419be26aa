//! `narrows eval`

use std::sync::Arc;

use narrows::{Model, Text, Workload};
use schemars::JsonSchema;
use serde::Serialize;

use super::{SCHEMA_VERSION, builder, check_encoding, room, start, too_long, write_trace};
use crate::args::{Eval, Output};
use crate::failure::Result;
use crate::input::read_text;
use crate::interrupt::Interrupt;
use crate::models::locate;
use crate::output::{Progress, Unit, write, write_json};

#[derive(JsonSchema, Serialize)]
pub(super) struct Report {
    schema_version: u32,
    perplexity: f64,
    stderr: f64,
    tokens: usize,
    window: usize,
    stride: usize,
}

pub(crate) fn eval(output: &Output, args: &Eval) -> Result<()> {
    let text =
        read_text(&args.file, room(&args.compute)?).map_err(|failure| too_long(&args.compute, failure))?;
    let model = Model::open(locate(&args.compute.model)?)?;
    let tokenizer = Arc::new(Text::read(model.dir())?);
    check_encoding(&args.compute, &tokenizer, text.len())?;
    let tokens = tokenizer.encode(&text, true)?;
    drop(text);
    let positions = args.compute.ctx.positions(model.program());
    let window = args.window.unwrap_or_else(|| positions.min(2048));
    let stride = args.stride.unwrap_or(window / 2);
    let longest = window.min(tokens.len());
    let windows = 1 + (tokens.len() - longest).div_ceil(stride.max(1));
    let chunk = builder(&args.compute)?.chunk_rows(&model);
    let workload = Workload::score(longest, windows.saturating_mul(longest), chunk);
    let mut engine = start(output, &args.compute, model, workload, Some(tokenizer), 0)?;
    let interrupt = Interrupt::listen();
    engine.cancel_on(Interrupt::flag());
    let mut progress = Progress::new(output, "eval", Unit::Tokens, tokens.len().saturating_sub(1) as u64);
    let result = engine.perplexity(&tokens, window, stride, |done| progress.set(done as u64));
    progress.clear();
    if result.is_err() || interrupt.came() {
        write_trace(&engine, args.compute.trace.as_deref())?;
        interrupt.check()?;
    }
    let narrows::Perplexity { perplexity, stderr, tokens, .. } = result?;
    if output.json {
        write_json(&Report { schema_version: SCHEMA_VERSION, perplexity, stderr, tokens, window, stride })?;
    } else {
        write(&format!(
            "perplexity {perplexity:.4} +- {stderr:.4} ({tokens} tokens, window {window}, stride {stride})\n"
        ))?;
    }
    // After the result, which a trace that cannot be written does not take away.
    write_trace(&engine, args.compute.trace.as_deref())
}
