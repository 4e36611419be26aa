//! `narrows eval`

use serde::Serialize;

use super::{SCHEMA_VERSION, kv_bytes, load};
use crate::args::{Eval, Output};
use crate::failure::{Failure, Result};
use crate::output::{Progress, Unit, write, write_json};

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    perplexity: f64,
    stderr: f64,
    tokens: usize,
    window: usize,
    stride: usize,
}

pub(crate) fn eval(output: &Output, args: &Eval) -> Result<()> {
    let text = std::fs::read_to_string(&args.file)
        .map_err(|source| Failure::File { path: args.file.clone(), source })?;
    let default_window = |positions: usize| args.window.unwrap_or_else(|| positions.min(2048));
    let mut engine = load(output, &args.compute, |model| {
        let positions = model.architecture().max_positions.unwrap_or(usize::MAX);
        kv_bytes(model, &args.compute, 1, default_window(positions))
    })?;
    let window = default_window(engine.max_positions());
    let stride = args.stride.unwrap_or(window / 2);
    let tokens = engine.text()?.encode(&text, true)?;
    let mut progress = Progress::new(output, "eval", Unit::Tokens, tokens.len().saturating_sub(1) as u64);
    let result = engine.perplexity(&tokens, window, stride, |done| progress.set(done as u64));
    progress.clear();
    let narrows::Perplexity { perplexity, stderr, tokens } = result?;
    if output.json {
        let report = Report { schema_version: SCHEMA_VERSION, perplexity, stderr, tokens, window, stride };
        return write_json(&report);
    }
    write(&format!(
        "perplexity {perplexity:.4} +- {stderr:.4} ({tokens} tokens, window {window}, stride {stride})\n"
    ))
}
