//! `narrows logits`

use narrows::{Error, Model, ScoreInput, Workload};

use super::{builder, start, write_trace};
use crate::args::{Logits, Output};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::models::locate;
use crate::output::{Progress, Unit};
use crate::tensors::{LogitsFile, read_ids};

pub(crate) fn logits(output: &Output, args: &Logits) -> Result<()> {
    let ids = read_ids(&args.ids)?;
    let (batch, positions) = (ids.len(), ids[0].len());
    let model = Model::open(locate(&args.compute.model)?)?;
    let chunk = builder(&args.compute)?.chunk_rows(model.architecture());
    let workload = Workload::score(positions, batch * positions, chunk);
    let mut engine = start(output, &args.compute, model, workload, None, 0)?;
    let vocab = engine.model().architecture().vocab_size;
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 0..positions)).collect();
    let interrupt = Interrupt::listen();
    engine.cancel_on(Interrupt::flag());
    let mut file = LogitsFile::create(&args.out, [batch, positions, vocab])?;
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
    write_trace(&engine, args.compute.trace.as_deref())?;
    file.finish()
}
