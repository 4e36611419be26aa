//! `narrows verify`

use serde::Serialize;

use super::SCHEMA_VERSION;
use crate::args::{Output, Verify};
use crate::failure::Result;
use crate::output::{Progress, Unit, write, write_json};

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    path: &'a std::path::Path,
    files: usize,
    bytes: u64,
    checksums: bool,
}

pub(crate) fn verify(output: &Output, args: &Verify) -> Result<()> {
    let mut display: Option<Progress> = None;
    let result = narrows_shard::verify(&args.path, &mut |progress: narrows_shard::Progress<'_>| {
        display
            .get_or_insert_with(|| Progress::new(output, "verifying", Unit::Bytes, progress.total.get()))
            .set(progress.done.get());
    });
    if let Some(display) = display {
        display.clear();
    }
    let report = result?;
    if output.json {
        return write_json(&Report {
            schema_version: SCHEMA_VERSION,
            path: &args.path,
            files: report.files,
            bytes: report.bytes.get(),
            checksums: report.checksums,
        });
    }
    let what = if report.checksums {
        "every checksum holds"
    } else {
        "structure sound and readable to the end (a checkpoint has no checksums; a pack does)"
    };
    write(&format!("{}: {} files, {}: {what}\n", args.path.display(), report.files, report.bytes))
}
