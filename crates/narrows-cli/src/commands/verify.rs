//! `narrows verify`

use schemars::JsonSchema;
use serde::Serialize;

use narrows::Model;

use super::SCHEMA_VERSION;
use crate::amounts::count;
use crate::args::{Output, Verify};
use crate::failure::Result;
use crate::models::locate;
use crate::output::{Progress, Unit, lossy, say, write, write_json};

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    #[serde(serialize_with = "lossy")]
    path: &'a std::path::Path,
    files: usize,
    bytes: u64,
    checksums: bool,
    /// Files in the directory of a pack that are none of it.
    unlisted: Vec<String>,
}

pub(crate) fn verify(output: &Output, args: &Verify) -> Result<()> {
    let dir = locate(&args.model)?;
    let mut display: Option<Progress> = None;
    let result = narrows_shard::verify(&dir, &mut |progress: narrows_shard::Progress<'_>| {
        display
            .get_or_insert_with(|| Progress::new(output, "verifying", Unit::Bytes, progress.total.get()))
            .set(progress.done.get());
    });
    if let Some(display) = display {
        display.clear();
    }
    let report = result?;
    if let Some(name) = report.unlisted.iter().find(|name| Model::SIDECARS.contains(&name.as_str())) {
        return Err(narrows_shard::Error::Invalid {
            path: dir.join(name),
            problem: "not listed in narrows.json, so it is no part of the pack and is not read".into(),
            hint: Some("delete it, or put it beside the checkpoint and pack that again"),
        }
        .into());
    }
    if !report.unlisted.is_empty() {
        say(output, &format!("note: no part of the pack: {}", report.unlisted.join(", ")));
    }
    if output.json {
        return write_json(&Report {
            schema_version: SCHEMA_VERSION,
            path: &dir,
            files: report.files,
            bytes: report.bytes.get(),
            checksums: report.checksums,
            unlisted: report.unlisted,
        });
    }
    let what = if report.checksums {
        "every checksum holds"
    } else {
        "structure sound and readable to the end (a checkpoint has no checksums; a pack does)"
    };
    let files = count(report.files, "file");
    write(&format!("{}: {files}, {}: {what}\n", dir.display(), report.bytes))
}
