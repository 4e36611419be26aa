//! `narrows logits`

use std::time::Instant;

use narrows::{Bytes, Error, Model, ScoreInput, Workload};

use schemars::JsonSchema;
use serde::Serialize;

use super::{SCHEMA_VERSION, builder, ram, start, write_trace};
use crate::args::{Logits, Output};
use crate::failure::{Failure, Result};
use crate::ids::Ids;
use crate::interrupt::Interrupt;
use crate::models::locate;
use crate::outfile;
use crate::output::{Progress, Unit, lossy, write_json};
use crate::tensors::{LogitsFile, read_ids};

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    /// The file of the logits.
    #[serde(serialize_with = "lossy")]
    path: &'a std::path::Path,
    /// Batch, positions, vocabulary.
    shape: [usize; 3],
    /// Tokens of the prompts.
    tokens: usize,
    stats: StatsReport,
}

#[derive(JsonSchema, Serialize)]
struct StatsReport {
    wall_seconds: f64,
    bytes_read: u64,
    peak_rss_bytes: Option<u64>,
}

pub(crate) fn logits(output: &Output, args: &Logits) -> Result<()> {
    let Ids { rows: ids, padded } = read_ids(&args.ids, ram(&args.compute)?)?;
    if padded {
        let what =
            "attention_mask marks padding, of which there are no logits: give rows of one length".to_owned();
        return Err(Failure::Input { path: args.ids.clone(), what });
    }
    let (batch, positions) = (ids.len(), ids[0].len());
    let model = Model::open(locate(&args.compute.model)?)?;
    let read = outfile::files_of(model.dir()).chain([args.ids.clone()]);
    outfile::refuse_in_place_of(&args.out, read)?;
    let chunk = builder(&args.compute)?.chunk_rows(&model);
    let workload = Workload::score(positions, batch * positions, chunk);
    let mut engine = start(output, &args.compute, model, workload, None, 0)?;
    let vocab = engine.model().program().dims.vocab;
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 0..positions)).collect();
    let mut file = LogitsFile::create(&args.out, [batch, positions, vocab])?;
    let interrupt = Interrupt::listen();
    engine.cancel_on(Interrupt::flag());
    let begun = Instant::now();
    let mut progress = Progress::new(output, "logits", Unit::Tokens, (batch * positions) as u64);
    let mut done = 0;
    // The engine's own error type has no place for a full disk behind the output.
    let mut failed = None;
    let scored = engine.score(&inputs, |_, _, row| {
        done += 1;
        progress.set(done);
        file.write(row).map_err(|e| {
            let what = e.to_string();
            failed = Some(e);
            Error::Request(what)
        })
    });
    progress.clear();
    if let Some(source) = failed {
        return Err(Failure::File { path: args.out.clone(), source });
    }
    interrupt.check()?;
    scored?;
    file.finish()?;
    if output.json {
        write_json(&Report {
            schema_version: SCHEMA_VERSION,
            path: &args.out,
            shape: [batch, positions, vocab],
            tokens: batch * positions,
            stats: StatsReport {
                wall_seconds: begun.elapsed().as_secs_f64(),
                bytes_read: engine.bytes_read().get(),
                peak_rss_bytes: narrows::memory::peak_resident().map(Bytes::get),
            },
        })?;
    }
    // After the result, which a trace that cannot be written does not take away.
    write_trace(&engine, args.compute.trace.as_deref())
}
