//! `narrows synth`

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use narrows::{Bytes, WeightSpec};
use safetensors::{Dtype, SafeTensorError, View};
use serde::Serialize;
use serde_json::json;

use super::SCHEMA_VERSION;
use crate::args::{Output, Synth};
use crate::failure::{Failure, Result};
use crate::output::{Progress, Unit, lossy, write, write_json};

/// Weights of a file; Hugging Face cuts large models into files of a few GB.
const FILE_BYTES: u64 = 5_000_000_000;

#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    #[serde(serialize_with = "lossy")]
    output: &'a std::path::Path,
    files: usize,
    bytes: u64,
}

/// A tensor whose weights are made when they are written: one lies in memory at a time.
struct Lazy<'a> {
    spec: &'a WeightSpec,
    seed: u64,
    done: &'a Cell<u64>,
    progress: &'a RefCell<Progress>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.done.set(self.done.get() + self.data_len() as u64);
        self.progress.borrow_mut().set(self.done.get());
        Cow::Owned(narrows::Synth::weights(self.spec, self.seed))
    }

    fn data_len(&self) -> usize {
        2 * self.spec.shape.iter().product::<usize>()
    }
}

pub(crate) fn synth(output: &Output, args: &Synth) -> Result<()> {
    let synth = narrows::Synth::new(&args.shape, args.layers)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::File { path, source }
    };
    let dir = &args.output;
    std::fs::create_dir_all(dir).map_err(failed(dir))?;
    if std::fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
        return Err(Failure::Usage(format!("{}: the directory is not empty", dir.display())));
    }

    let specs: Vec<_> = synth.architecture().weights().collect();
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
    for spec in &specs {
        match files.last_mut() {
            Some((bytes, file)) if *bytes + size(spec) <= FILE_BYTES => {
                *bytes += size(spec);
                file.push(spec);
            }
            _ => files.push((size(spec), vec![spec])),
        }
    }

    let progress = RefCell::new(Progress::new(output, "writing", Unit::Bytes, total));
    let done = Cell::new(0);
    let mut weight_map = BTreeMap::new();
    for (index, (_, file)) in files.iter().enumerate() {
        let name = match files.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
        };
        let views = file.iter().map(|spec| {
            (spec.name.as_str(), Lazy { spec, seed: args.seed, done: &done, progress: &progress })
        });
        let path = dir.join(&name);
        safetensors::serialize_to_file(views, None, &path).map_err(|error| match error {
            SafeTensorError::IoError(source) => failed(&path)(source),
            error => Failure::Other(format!("{}: {error}", path.display())),
        })?;
        // Direct reads of pages that are not yet written wait for the writing: a model to measure with is on disk.
        File::open(&path).and_then(|file| file.sync_all()).map_err(failed(&path))?;
        weight_map.extend(file.iter().map(|spec| (spec.name.clone(), name.clone())));
    }
    progress.into_inner().clear();
    let write_file = |name: &str, value: &serde_json::Value| {
        let path = dir.join(name);
        std::fs::write(&path, format!("{value:#}\n")).map_err(failed(&path))
    };
    if files.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_file("model.safetensors.index.json", &index)?;
    }
    // Last, so that a directory with a config is complete.
    write_file("config.json", synth.config())?;
    if output.json {
        let report = Report { schema_version: SCHEMA_VERSION, output: dir, files: files.len(), bytes: total };
        return write_json(&report);
    }
    write(&format!("{}: {} files, {}\n", dir.display(), files.len(), Bytes(total)))
}
