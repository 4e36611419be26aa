//! One module per command.

pub(crate) mod chat;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod pack;
pub(crate) mod run;
pub(crate) mod synth;
pub(crate) mod verify;

use narrows::{Bytes, Engine, Model};

use crate::args::{Compute, Output};
use crate::failure::{Failure, Result};
use crate::memory;
use crate::output::{Progress, Unit};

/// Version of the JSON documents; fields are only added within one.
const SCHEMA_VERSION: u32 = 1;

/// Opens and loads the model, after making sure that it and `kv` bytes of cache fit in memory.
fn load(output: &Output, args: &Compute, kv: impl FnOnce(&Model) -> Bytes) -> Result<Engine> {
    let model = Model::open(&args.model)?;
    let needed = Bytes(model.pass_bytes().get().saturating_add(kv(&model).get()));
    if let Some(available) = memory::available()
        && needed > available
    {
        return Err(Failure::DoesNotFit { needed, available });
    }
    let mut progress = Progress::new(output, "loading", Unit::Bytes, model.pass_bytes().get());
    let mut done = 0;
    let engine = Engine::builder()
        .threads(args.threads)
        .chunk(args.chunk)
        .kv_encoding(args.kv_dtype)
        .context(args.ctx)
        .build(model, &mut |bytes| {
            done += bytes.get();
            progress.set(done);
        })?;
    progress.clear();
    Ok(engine)
}

/// Size of the KV caches of `sequences` sequences of `positions` positions, within the context.
fn kv_bytes(model: &Model, args: &Compute, sequences: usize, positions: usize) -> Bytes {
    let a = model.architecture();
    let positions = match args.ctx {
        narrows::Context::Positions(n) => positions.min(n),
        narrows::Context::Auto => positions.min(a.max_positions.unwrap_or(usize::MAX)),
    };
    Bytes(a.kv_bytes(args.kv_dtype, positions).get().saturating_mul(sequences as u64))
}
