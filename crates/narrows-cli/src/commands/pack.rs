//! `narrows pack`

use narrows::{Bytes, Model};
use serde::Serialize;

use super::SCHEMA_VERSION;
use crate::args::{Output, Pack};
use crate::failure::Result;
use crate::output::{Progress, Unit, write, write_json};

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    output: &'a std::path::Path,
    shards: usize,
    bytes: u64,
    written_bytes: u64,
    resumed_bytes: u64,
    already_packed: bool,
}

pub(crate) fn pack(output: &Output, args: &Pack) -> Result<()> {
    let model = Model::open_for_pack(&args.model, &args.output)?;
    let options = narrows_shard::PackOptions { consume_source: args.consume_source };
    let mut display = Progress::new(output, "packing", Unit::Bytes, model.weight_bytes().get());
    let result = narrows_shard::pack(
        model.files(),
        &model.pack_layout(),
        &args.output,
        &options,
        &mut |progress: narrows_shard::Progress<'_>| display.set(progress.done.get()),
    );
    display.clear();
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
