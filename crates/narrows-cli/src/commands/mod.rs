//! One module per command, and what those that compute share.

mod assume;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
mod deviation;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod pack;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod schema;
mod speeds;
pub(crate) mod synth;
pub(crate) mod verify;

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use narrows::{
    Bytes, Context, Engine, EngineBuilder, IoMode, Isa, Model, Quantisation, Synth, Text, Workload, memory,
};

use self::speeds::Known;
use crate::amounts::count;
use crate::args::{Compute, Device, Io, Output, Ram};
use crate::failure::{Failure, Result};
use crate::input::Room;
use crate::models::locate;
use crate::outfile::{self, OutFile};
use crate::output::say;

/// Version of the JSON documents; fields are only added within one.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Share of the free memory of a device that `--vram auto` takes.
const AUTO_VRAM_SHARE: f64 = 0.9;

/// Opens what is to compute, and gives the engine its memory.
fn on_device(output: &Output, args: &Compute, builder: EngineBuilder) -> Result<EngineBuilder> {
    let device = match args.device {
        Device::Cpu => None,
        Device::Cuda(n) => Some(narrows::Device::open(n)?),
        Device::Auto => match narrows::Device::open_gpu(0) {
            Ok(device) => Some(device),
            // Who names the device's memory expects a device.
            Err(error) if args.vram.is_some() => {
                return Err(Failure::NoDevice { why: error.to_string(), vram: assume::named(args.vram) });
            }
            Err(_) => None,
        },
    };
    let Some(device) = device else {
        if args.vram.is_some() {
            return Err(Failure::Usage(
                "--vram: --device cpu has no memory of its own; drop either".to_owned(),
            ));
        }
        let threads = count(builder.thread_count(), "thread");
        say(output, &format!("device: cpu, {threads}, {}", Isa::best()));
        return Ok(builder);
    };
    say(output, &format!("device: cuda:{} {}", device.ordinal(), device.name()));
    let (total, reserved) = (device.available().get() as f64, device.reserved_bytes().get() as f64);
    let vram = match args.vram.unwrap_or(Ram::Auto) {
        Ram::Size(size) => size,
        Ram::Percent(percent) => Bytes((total * percent / 100.0) as u64),
        Ram::Auto => Bytes((reserved + AUTO_VRAM_SHARE * (total - reserved)) as u64),
    };
    Ok(builder.device(Some(device)).vram(Some(vram)))
}

/// Opens a directory; if there is none, a shape of that name, packed as `quantisation` says, with as many `layers`.
fn open_or_shape(path: &Path, quantisation: &Quantisation, layers: Option<usize>) -> Result<Model> {
    let shape = path.to_str().filter(|name| !path.exists() && Synth::names().any(|shape| shape == *name));
    match shape {
        Some(name) => Ok(Model::of_shape(name, &Synth::new(name, layers)?, quantisation)?),
        None => Ok(Model::open(locate(path)?)?),
    }
}

/// The cap on memory that the flags say.
fn ram(args: &Compute) -> Result<Option<Bytes>> {
    Ok(match args.ram {
        Ram::Size(size) => Some(size),
        Ram::Percent(percent) => Some(memory::share(percent / 100.0).ok_or_else(|| {
            Failure::Usage("--ram: nobody knows here how much memory is available; give a size".to_owned())
        })?),
        Ram::Auto => memory::automatic(),
    })
}

/// How much text may be read for a command.
fn room(args: &Compute) -> Result<Room> {
    ram(args).map(Room::within)
}

/// The failure for a text of which nothing was read, with the smallest budget that works where its size is known.
fn too_long(args: &Compute, failure: Failure) -> Failure {
    let Failure::LongText { size: Some(size), .. } = failure else { return failure };
    let bytes = usize::try_from(size.get()).unwrap_or(usize::MAX);
    let exact = || check_encoding(args, &Text::read(&locate(&args.model)?)?, bytes);
    exact().err().unwrap_or(failure)
}

/// Refuses a text that takes more than the budget while it is encoded, which is before there is a plan.
fn check_encoding(args: &Compute, text: &Text, bytes: usize) -> Result<()> {
    match ram(args)? {
        Some(budget) => Ok(text.check_encoding(bytes, budget)?),
        None => Ok(()),
    }
}

/// Settings of the engine as the flags say, but for the device.
fn builder(args: &Compute) -> Result<EngineBuilder> {
    Ok(Engine::builder()
        .threads(args.threads)
        .chunk(args.chunk)
        .kv_encoding(args.kv_dtype)
        .context(args.ctx)
        .ram(ram(args)?)
        .io(match args.io {
            Io::Auto => IoMode::Auto,
            Io::Direct => IoMode::Direct,
            Io::Buffered => IoMode::Buffered,
            Io::Mmap => IoMode::Mmap,
        })
        .slots(args.slots)
        .tile(args.tile)
        .trace(args.trace.is_some()))
}

/// What a plan takes yet with the program itself: what is resident already, such as a tokenizer that was read, is part
/// of it and no longer available.
fn still_to_come(plan: Bytes, resident: Option<Bytes>) -> Bytes {
    (plan + memory::PROGRAM).saturating_sub(resident.unwrap_or(Bytes(0)))
}

/// Measures, plans and starts an engine for `workload`, and says on stderr what to expect of `tokens` new ones (0: of
/// one).
fn start(
    output: &Output,
    args: &Compute,
    model: Model,
    workload: Workload,
    text: Option<Arc<Text>>,
    tokens: usize,
) -> Result<Engine> {
    if let Some(trace) = &args.trace {
        outfile::refuse_in_place_of(trace, outfile::files_of(model.dir()))?;
    }
    let builder = on_device(output, args, builder(args)?)?.workload(workload);
    let builder = match text {
        Some(text) => builder.text(text),
        None => builder.without_text(),
    };
    if let Context::Positions(n) = args.ctx
        && model.program().dims.max_positions.is_some_and(|max| n > max)
    {
        say(output, &format!("warning: --ctx {n} is beyond what the model was made for; results may suffer"));
    }
    let assumed = builder.plan(&model).map_err(|error| tuned(args, error))?;
    if let Some(available) = memory::available_memory()
        && still_to_come(assumed.stream.total(), memory::resident()) > available
    {
        return Err(Failure::DoesNotFit { needed: assumed.stream.total(), available });
    }
    let known = Known::of(&builder, args, &model, &assumed, None)?;
    let builder = builder.speeds(known.speeds);
    let from = if model.is_made() { "from memory" } else { "from disk" };
    say(output, &plan::line(&model, &builder.plan(&model)?, &known, from, tokens));
    let engine = builder.build(model)?;
    for note in engine.io_notes() {
        say(output, &format!("note: {note}"));
    }
    Ok(engine)
}

/// An error of planning, with the tuning flags that have a part in it.
fn tuned(args: &Compute, source: narrows::Error) -> Failure {
    let flags = [("--slots", args.slots.is_some()), ("--tile", args.tile.is_some())];
    let given: Vec<_> = flags.iter().filter_map(|(flag, given)| given.then_some(*flag)).collect();
    match source {
        source @ narrows::Error::DoesNotFit { .. } if !given.is_empty() => {
            Failure::Tuned { source, flags: given.join(" and ") }
        }
        source => source.into(),
    }
}

/// A size that was given or chosen; the largest number stands for none, which few readers of JSON keep.
fn given(bytes: Bytes) -> Option<u64> {
    Some(bytes.get()).filter(|bytes| *bytes < u64::MAX)
}

/// Writes the trace, if one was asked for.
fn write_trace(engine: &Engine, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let failed = |source| Failure::File { path: path.to_owned(), source };
    let mut file = BufWriter::new(OutFile::create(path)?);
    engine.write_trace(&mut file).map_err(failed)?;
    file.into_inner().map_err(|e| failed(e.into_error()))?.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a cgroup that leaves a budget and what the program takes, and nothing more, a tokenizer that was read before
    /// the plan is not asked for again.
    #[test]
    fn what_is_resident_is_no_longer_to_come() {
        let (limit, budget, tokenizer) = (Bytes::mib(80), Bytes::mib(64), Bytes::mib(50));
        let available = limit.saturating_sub(tokenizer);
        assert!(still_to_come(budget, Some(tokenizer)) <= available);
        assert!(still_to_come(budget + Bytes(1), Some(tokenizer)) > available);
        assert_eq!(still_to_come(budget, None), limit);
    }
}
