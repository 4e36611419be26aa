//! `narrows inspect --error`: what quantising costs the weights.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use narrows::{Bytes, Encoding, Model, Quantisation};
use narrows_shard::{Candidate, Deviation, Manifest, WeightFiles, deviation};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::Output;
use crate::failure::{Failure, Result};
use crate::models;
use crate::output::{Progress, Unit};

/// Relative errors: the root mean square of the differences, divided by that of the source's weights.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Report {
    /// What was compared with; `null` where the model is its own source and nothing was written.
    source: Option<String>,
    /// Of all tensors in an encoding together.
    relative_error: BTreeMap<&'static str, f64>,
    /// Of all tensors together, also those that are as in the source; `null` where there is no source.
    total: Option<f64>,
    tensors: Vec<TensorReport>,
}

#[derive(JsonSchema, Serialize)]
struct TensorReport {
    name: String,
    relative_error: BTreeMap<&'static str, f64>,
}

/// Compares `model` with `named`, or with what its manifest says it was packed from, or, where it is not quantised,
/// with what it would be.
pub(crate) fn measure(output: &Output, model: &Model, named: Option<&Path>) -> Result<Report> {
    let quantised = |encoding: Option<Encoding>| encoding.is_some_and(|e| e.block().is_some());
    let source = match (named, model.files()?.manifest()) {
        (Some(dir), _) => Some(dir.to_owned()),
        (None, Some(manifest)) if model.tensors().any(|(_, tensor)| quantised(tensor.encoding)) => {
            Some(recorded(model.dir(), manifest)?)
        }
        (None, _) => None,
    };
    let opened = match &source {
        Some(dir) => {
            let files = WeightFiles::open(dir)?;
            Some((dir, files.reader()?, files))
        }
        None => None,
    };
    let own = model.files()?.reader()?;
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut sums: BTreeMap<&'static str, Deviation> = BTreeMap::new();
    let (mut total, mut tensors) = (Deviation::default(), Vec::new());
    let mut done = Bytes(0);
    let mut progress = Progress::new(output, "comparing", Unit::Bytes, model.weight_bytes().get());
    let layout = model.pack_layout(&Quantisation::all(Some(Encoding::Q8)));
    let matrices: BTreeSet<_> = layout.encodings.keys().collect();
    for (spec, tensor) in model.tensors() {
        let name = &spec.name;
        let mut relative_error = BTreeMap::new();
        let mut add = |encoding: Encoding, found: Deviation| {
            *sums.entry(encoding.name()).or_default() += found;
            relative_error.insert(encoding.name(), found.relative_error());
        };
        if let Some((dir, reader, source)) = &opened {
            let Some(exact) = source.get(name) else {
                let what =
                    format!("has no tensor {name}: {} was made from another model", model.dir().display());
                return Err(Failure::Input { path: dir.to_path_buf(), what });
            };
            let found = deviation(name, reader, exact, Candidate::Stored(&own, tensor), threads)?;
            total += found;
            if let Some(encoding) = tensor.encoding.filter(|e| e.block().is_some() || found.differences > 0.0)
            {
                add(encoding, found);
            }
        } else if matrices.contains(&name.to_owned()) {
            for encoding in Encoding::QUANTISED {
                add(encoding, deviation(name, &own, tensor, Candidate::Quantised(encoding), threads)?);
            }
        }
        if !relative_error.is_empty() {
            tensors.push(TensorReport { name: name.to_owned(), relative_error });
        }
        done += tensor.bytes();
        progress.set(done.get());
    }
    progress.clear();
    Ok(Report {
        total: source.is_some().then(|| total.relative_error()),
        source: source.map(|dir| dir.to_string_lossy().into_owned()),
        relative_error: sums.into_iter().map(|(name, sum)| (name, sum.relative_error())).collect(),
        tensors,
    })
}

/// The checkpoint that a pack was made from, if it is in the Hugging Face cache as it was then.
fn recorded(pack: &Path, manifest: &Manifest) -> Result<PathBuf> {
    let name_it = "name the checkpoint with --error=CHECKPOINT";
    let failed = |what: String| Failure::Input { path: pack.to_owned(), what };
    let source = &manifest.source;
    let (Some(repository), Some(revision)) = (&source.repository, &source.revision) else {
        return Err(failed(format!("does not say which checkpoint it was packed from; {name_it}")));
    };
    let Some(cache) = models::cache() else {
        return Err(failed(format!("{repository} is not here: there is no Hugging Face cache; {name_it}")));
    };
    let dir = models::repository(&cache, repository).join("snapshots").join(revision);
    let unchanged = source.files.iter().all(|file| {
        std::fs::metadata(dir.join(&file.name)).is_ok_and(|found| found.len() == file.size.get())
    });
    if unchanged {
        Ok(dir)
    } else {
        Err(failed(format!(
            "{repository} at {revision} is not, or not wholly, in {}; {name_it}",
            cache.display()
        )))
    }
}

pub(crate) fn table(report: &Report) -> String {
    let mut t = String::new();
    for tensor in &report.tensors {
        for (encoding, error) in &tensor.relative_error {
            let _ = writeln!(t, "{:<52} {encoding:<5} error {:>9}", tensor.name, percent(*error));
        }
    }
    for (encoding, error) in &report.relative_error {
        let _ = writeln!(t, "{:<52} {encoding:<5} error {:>9}", "all in this encoding", percent(*error));
    }
    if let (Some(total), Some(source)) = (report.total, &report.source) {
        let of = format!("all weights, beside {source}");
        let _ = writeln!(t, "{of:<58} error {:>9}", percent(total));
    }
    t
}

fn percent(error: f64) -> String {
    format!("{:.4} %", 100.0 * error)
}
