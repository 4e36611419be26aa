//! `narrows pack`

use std::num::NonZeroUsize;

use narrows::{Bytes, Encoding, Model, Quantisation};
use schemars::JsonSchema;
use serde::Serialize;

use super::SCHEMA_VERSION;
use crate::args::{Output, Pack, Quant, QuantPart};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::models::locate_source;
use crate::output::{Progress, Unit, lossy, say, write, write_json};

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    #[serde(serialize_with = "lossy")]
    output: &'a std::path::Path,
    shards: usize,
    bytes: u64,
    written_bytes: u64,
    resumed_bytes: u64,
    already_packed: bool,
    quantisation: QuantisationReport,
}

/// What parts of the model were quantised to, `null` for as they were, and why where the program chose.
#[derive(JsonSchema, Serialize)]
struct QuantisationReport {
    #[schemars(with = "Option<String>")]
    layers: Option<Encoding>,
    #[schemars(with = "Option<String>")]
    attention: Option<Encoding>,
    #[schemars(with = "Option<String>")]
    head: Option<Encoding>,
    reason: Option<String>,
}

pub(crate) fn pack(output: &Output, args: &Pack) -> Result<()> {
    let model = Model::open_for_pack(&locate_source(&args.model, &args.output)?, &args.output)?;
    let (quantisation, reason) = quantisation(&model, args, narrows::memory::available_memory())?;
    if let Some(reason) = &reason {
        say(output, reason);
    }
    let threads =
        args.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let options = narrows_shard::PackOptions { consume_source: args.consume_source, threads };
    let mut display =
        Progress::new(output, "packing", Unit::Bytes, model.weight_bytes_as(&quantisation).get());
    let interrupt = Interrupt::listen();
    let result = narrows_shard::pack_until(
        model.files()?,
        &model.pack_layout(&quantisation),
        &args.output,
        &options,
        crate::outfile::pack_until(Interrupt::flag()),
        &mut |progress: narrows_shard::Progress<'_>| display.set(progress.done.get()),
    );
    display.clear();
    if result.is_err() {
        interrupt.check()?;
    }
    let report = result?;
    let manifest = &report.manifest;
    let bytes: Bytes = manifest.shards.iter().map(|shard| shard.size).sum();
    if output.json {
        let shards = manifest.shards.len();
        return write_json(&Report {
            schema_version: SCHEMA_VERSION,
            output: &args.output,
            shards,
            bytes: bytes.get(),
            written_bytes: report.written.get(),
            resumed_bytes: report.resumed.get(),
            already_packed: report.already_packed,
            quantisation: QuantisationReport {
                layers: quantisation.layers,
                attention: quantisation.attention,
                head: quantisation.head,
                reason,
            },
        });
    }
    let note = if report.already_packed {
        ", already packed".to_owned()
    } else if report.resumed.get() > 0 {
        format!(", {} of it from an interrupted pack", report.resumed)
    } else {
        String::new()
    };
    write(&format!("{}: {} shards, {bytes}{note}\n", args.output.display(), manifest.shards.len()))
}

/// What the command line asks for, and why where it leaves the choice to `available` memory.
fn quantisation(
    model: &Model,
    args: &Pack,
    available: Option<Bytes>,
) -> Result<(Quantisation, Option<String>)> {
    let as_asked = |encoding: Option<Encoding>| {
        let part = |part: Option<QuantPart>| part.map_or(encoding, QuantPart::encoding);
        Quantisation { layers: encoding, attention: part(args.quant_attn), head: part(args.quant_head) }
    };
    match args.quant {
        Quant::None => Ok((as_asked(None), None)),
        Quant::Q8 => Ok((as_asked(Some(Encoding::Q8)), None)),
        Quant::Nf4 => Ok((as_asked(Some(Encoding::Nf4)), None)),
        Quant::Auto => {
            let available = available.ok_or_else(|| {
                Failure::Usage("--quant auto: this system does not say how much memory it has left".into())
            })?;
            let (encoding, reason) = choose(available, |encoding| model.kept_bytes_as(&as_asked(encoding)));
            Ok((as_asked(encoding), Some(reason)))
        }
    }
}

/// The most precise encoding at which what stays in memory of the weights, `bytes` of it, fits, and why it is that.
fn choose(available: Bytes, bytes: impl Fn(Option<Encoding>) -> Bytes) -> (Option<Encoding>, String) {
    let share = Bytes(available.get() / 5 * 4);
    let name = |encoding: Option<Encoding>| encoding.map_or("none", Encoding::name);
    let mut reason = "--quant auto:".to_owned();
    for encoding in [None, Some(Encoding::Q8), Some(Encoding::Nf4)] {
        let needed = bytes(encoding);
        let (name, fits) = (name(encoding), needed <= share);
        if fits || encoding == Some(Encoding::Nf4) {
            let stays = if fits { "which fit" } else { "the fewest, which do not fit and will stream," };
            reason += &format!(
                " {name} has {needed} of weights to keep, {stays} in 80 % of the {available} of memory available"
            );
            return (encoding, reason);
        }
        reason += &format!(" {name} has {needed}, too many;");
    }
    (None, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_precise_encoding_that_fits_is_chosen() {
        let bytes = |encoding: Option<Encoding>| {
            Bytes(encoding.map_or(160, |e| if e == Encoding::Q8 { 85 } else { 42 }))
        };
        for (available, chosen) in [
            (1000, None),
            (200, None),
            (195, Some(Encoding::Q8)),
            (110, Some(Encoding::Q8)),
            (105, Some(Encoding::Nf4)),
            (10, Some(Encoding::Nf4)),
        ] {
            let (encoding, reason) = choose(Bytes(available), bytes);
            assert_eq!(encoding, chosen, "{available}: {reason}");
            assert_eq!(reason.contains("will stream"), available == 10, "{reason}");
        }
    }
}
