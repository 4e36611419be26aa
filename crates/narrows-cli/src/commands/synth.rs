//! `narrows synth`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use narrows::Bytes;
use narrows::program::WeightSpec;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::SCHEMA_VERSION;
use crate::args::{Output, Synth};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::outfile::{self, OutFile, Unfinished};
use crate::output::{Progress, Unit, lossy, write, write_json};

/// Weights of a file; Hugging Face cuts large models into files of a few GB.
const FILE_BYTES: u64 = 5_000_000_000;

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    #[serde(serialize_with = "lossy")]
    output: &'a std::path::Path,
    files: usize,
    bytes: u64,
}

pub(crate) fn synth(output: &Output, args: &Synth) -> Result<()> {
    let synth = narrows::Synth::new(&args.shape, args.layers)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::File { path, source }
    };
    let dir = &args.output;
    // Given up, the next attempt shall find the directory as this one has.
    let mut unfinished = Vec::new();
    if !dir.exists() {
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        unfinished.push(Unfinished::new(dir));
    }
    if std::fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
        return Err(Failure::Usage(format!("{}: the directory is not empty", dir.display())));
    }

    let specs = &synth.program().weights;
    let size = |spec: &WeightSpec| 2 * spec.shape.iter().product::<usize>() as u64;
    let total = specs.iter().map(size).sum::<u64>();
    if let Some(available) = narrows_shard::available_space(dir).map_err(failed(dir))?
        && available < Bytes(total)
    {
        return Err(
            narrows_shard::Error::NoSpace { path: dir.clone(), needed: Bytes(total), available }.into()
        );
    }
    let mut files: Vec<(u64, Vec<&WeightSpec>)> = Vec::new();
    for spec in specs {
        match files.last_mut() {
            Some((bytes, file)) if *bytes + size(spec) <= FILE_BYTES => {
                *bytes += size(spec);
                file.push(spec);
            }
            _ => files.push((size(spec), vec![spec])),
        }
    }

    let interrupt = Interrupt::listen();
    let mut progress = Progress::new(output, "writing", Unit::Bytes, total);
    let mut done = 0;
    let mut weight_map = BTreeMap::new();
    for (index, (_, file)) in files.iter().enumerate() {
        let name = match files.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
        };
        let path = dir.join(&name);
        let mut tensors = file.clone();
        tensors.sort_by_key(|spec| &spec.name);
        let mut out = OutFile::create(&path)?;
        out.write_all(&header(&tensors)?).map_err(failed(&path))?;
        // A piece of a tensor lies in memory at a time.
        for spec in tensors {
            narrows::Synth::each_piece(spec, args.seed, |piece| {
                interrupt.check()?;
                out.write_all(piece).map_err(failed(&path))?;
                done += piece.len() as u64;
                progress.set(done);
                Ok::<_, Failure>(())
            })?;
        }
        out.finish().map_err(failed(&path))?;
        // Before the directory, which has to be empty to be deleted.
        unfinished.insert(0, Unfinished::new(&path));
        // Direct reads of pages that are not yet written wait for the writing: a model to measure with is on disk.
        File::open(&path).and_then(|file| file.sync_all()).map_err(failed(&path))?;
        weight_map.extend(file.iter().map(|spec| (spec.name.clone(), name.clone())));
    }
    progress.clear();
    let write_file = |name: &str, value: &serde_json::Value| {
        let path = dir.join(name);
        outfile::write(&path, format!("{value:#}\n").as_bytes())
    };
    interrupt.check()?;
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_file("model.safetensors.index.json", &index)?;
    }
    // Last, so that a directory with a config is complete.
    write_file("config.json", synth.config())?;
    unfinished.into_iter().for_each(Unfinished::keep);
    if output.json {
        let report = Report { schema_version: SCHEMA_VERSION, output: dir, files: files.len(), bytes: total };
        return write_json(&report);
    }
    write(&format!("{}: {} files, {}\n", dir.display(), files.len(), Bytes(total)))
}

/// The length and the JSON of a safetensors file with these tensors.
fn header(tensors: &[&WeightSpec]) -> Result<Vec<u8>> {
    let mut end = 0;
    let mut infos = Vec::new();
    for spec in tensors {
        let start = end;
        end += 2 * spec.shape.iter().product::<usize>();
        let info = TensorInfo { dtype: Dtype::BF16, shape: spec.shape.clone(), data_offsets: (start, end) };
        infos.push((spec.name.clone(), info));
    }
    let wrong = |e: String| Failure::Other(format!("a safetensors header: {e}"));
    let metadata = Metadata::new(None, infos).map_err(|e| wrong(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| wrong(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}
