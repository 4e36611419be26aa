//! `narrows logits`

use narrows::{Error, ScoreInput};

use super::{kv_bytes, load};
use crate::args::{Logits, Output};
use crate::failure::{Failure, Result};
use crate::output::{Progress, Unit};
use crate::tensors::{LogitsFile, read_ids};

pub(crate) fn logits(output: &Output, args: &Logits) -> Result<()> {
    let ids = read_ids(&args.ids)?;
    let (batch, positions) = (ids.len(), ids[0].len());
    let mut engine = load(output, &args.compute, |model| kv_bytes(model, &args.compute, 1, positions))?;
    let vocab = engine.model().architecture().vocab_size;
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput { tokens, wanted: 0..positions }).collect();
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
    scored?;
    file.finish()
}
