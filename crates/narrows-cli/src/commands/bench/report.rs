//! `narrows bench report`

use std::ffi::OsStr;

use narrows_bench::{Record, report};
use serde::Serialize;

use crate::args::Output;
use crate::args::bench::BenchReport;
use crate::commands::SCHEMA_VERSION;
use crate::failure::{Failure, Result};
use crate::outfile;
use crate::output::{lossy, write_json};

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    #[serde(serialize_with = "lossy")]
    output: &'a std::path::Path,
    results: usize,
}

pub(super) fn report(output: &Output, args: &BenchReport) -> Result<()> {
    let draw = match args.output.extension().and_then(OsStr::to_str) {
        Some("svg") => report::svg,
        Some("html") => report::html,
        _ => return Err(Failure::Usage("--output: a file with the ending .svg or .html".to_owned())),
    };
    outfile::refuse_in_place_of(&args.output, args.files.iter().cloned())?;
    let records =
        args.files.iter().map(|path| Record::read(path)).collect::<narrows_bench::Result<Vec<_>>>()?;
    let text = draw(&records)?;
    outfile::write(&args.output, text.as_bytes())?;
    let results = records.iter().map(|record| record.results.len()).sum();
    match output.json {
        true => write_json(&Report { schema_version: SCHEMA_VERSION, output: &args.output, results }),
        false => Ok(()),
    }
}
