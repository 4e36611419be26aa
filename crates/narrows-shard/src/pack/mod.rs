//! Writing a pack: a directory of shards in compute order, and a manifest.
//!
//! Every file appears whole and durable under its name or not at all, the manifest last. A journal says what is
//! done, so that a pack interrupted at any moment goes on where it stopped and ends with the same bytes. The
//! protocol is written down in docs/FORMAT.md.

mod cancel;
mod consume;
mod copy;
mod disk;
mod journal;
mod meter;
mod out_dir;
mod plan;
mod quantise;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::checksum::Checksummer;
use crate::manifest::Source;
use crate::verify::{require_size, verify_file};
use crate::{Bytes, Encoding, Error, MANIFEST, Manifest, PackedFile, SourceFile, WeightFiles};

pub use cancel::Cancel;
use cancel::Cancelled;
use copy::Copier;
use disk::Disk;
pub use disk::available_space;
pub(crate) use journal::Journal;
pub(crate) use meter::Meter;
pub use meter::{Progress, Step};
use out_dir::OutDir;
pub(crate) use out_dir::is_reserved;
use plan::{Plan, PlannedFile};
use run::Run;

/// What goes where in a pack: the order in which a model computes, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The architecture of the model, for the manifest.
    pub architecture: String,
    /// The shards, in compute order.
    pub shards: Vec<ShardLayout>,
    /// Matrices to quantise, by name; every other tensor is copied as it is.
    pub encodings: BTreeMap<String, Encoding>,
    /// Files beside the weights to copy, where they exist: `config.json`, `tokenizer.json` ...
    pub sidecars: Vec<String>,
}

/// One shard of a [`Layout`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLayout {
    /// Its file name without `.safetensors`: `layer-00003`.
    pub name: String,
    /// Its tensors, in compute order.
    pub tensors: Vec<String>,
}

/// How to pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Delete each weight file of the source once all that the layout takes from it is durable in the pack and
    /// has been read back and compared. The space it takes is then that of the model plus about one file.
    pub consume_source: bool,
    /// How many threads quantise, the caller's among them. 0 is 1.
    pub threads: usize,
}

/// What [`pack()`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackReport {
    /// The manifest of the pack.
    pub manifest: Manifest,
    /// Bytes written by this call.
    pub written: Bytes,
    /// Bytes that an interrupted call had written before.
    pub resumed: Bytes,
    /// Whether the directory held this very pack already, so that there was nothing to do.
    pub already_packed: bool,
}

/// Opens the model in `dir` for packing it into `out`.
///
/// Like [`WeightFiles::open`], except that it knows what an interrupted [`pack()`] into `out` has consumed: the
/// tensors of files that are gone are listed as if they were there, so that the same layout comes out, and where
/// that pack had come to its end, the source is the pack itself. (That is told by the sidecars that are left.)
///
/// # Errors
///
/// Those of [`WeightFiles::open`], and [`Error::DifferentPack`] if `out` has consumed another source.
pub fn open_source(dir: &Path, out: &Path) -> Result<WeightFiles, Error> {
    if let Some(journal) = Journal::read(out)?
        && !journal.consumed.is_empty()
    {
        return match journal.changed_source(dir)? {
            None => WeightFiles::open_journaled(dir, &journal),
            Some(problem) => Err(journal.different(out, problem)),
        };
    }
    if was_consumed_into(dir, out)? { WeightFiles::open(out) } else { WeightFiles::open(dir) }
}

/// Whether `out` is a complete pack of `dir`, whose weights are gone.
///
/// No record of that outlives a finished pack, so this goes by what is left of the source: none of the weight
/// files, and the same sidecars.
fn was_consumed_into(dir: &Path, out: &Path) -> Result<bool, Error> {
    if !dir.is_dir() || !out.join(MANIFEST).is_file() {
        return Ok(false);
    }
    let Some(manifest) = Manifest::read(out)? else { return Ok(false) };
    let same_sidecars = manifest.sidecars.iter().all(|file| verify_file(dir, file, &mut |_| Ok(())).is_ok());
    let no_weights =
        manifest.source.files.iter().all(|file| dir.join(&file.name).symlink_metadata().is_err());
    Ok(no_weights && same_sidecars && !manifest.sidecars.is_empty())
}

/// Packs `source` into the directory `out` as `layout` says.
///
/// If an earlier call was interrupted, even by a power cut, this one goes on where it stopped; the pack is the
/// same to the byte. If `out` holds this very pack already, the source is read and compared with it. Anything
/// else in `out` is left alone and is an error.
///
/// With [`PackOptions::consume_source`], `source` should come from [`open_source`]. A weight file that is a
/// link into a Hugging Face cache is deleted together with what it links to, unless another link leads there
/// too; weight files behind other links are refused. Weight files of which the layout uses nothing are kept.
///
/// # Errors
///
/// [`Error::NoSpace`] before anything is written, or when the disk fills up nonetheless;
/// [`Error::OutputNotEmpty`], [`Error::DifferentPack`], [`Error::Overlap`], [`Error::Locked`] if `out` cannot
/// take this pack; [`Error::Invalid`] if the layout does not fit the source, or a tensor to be quantised holds what
/// cannot be, such as NaN; [`Error::Checksum`] if what was
/// written does not come back from disk; [`Error::Io`] for everything else. Whatever was done stays good for a
/// further call.
pub fn pack(
    source: &WeightFiles,
    layout: &Layout,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PackReport, Error> {
    pack_until(source, layout, out, options, &Cancel::default(), progress)
}

/// As [`pack()`], until `cancel` is set: then what is being written is given up and removed, and what is finished stays
/// for a further call, as after any interruption.
///
/// # Errors
///
/// Those of [`pack()`], and [`Error::Cancelled`].
pub fn pack_until(
    source: &WeightFiles,
    layout: &Layout,
    out: &Path,
    options: &PackOptions,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PackReport, Error> {
    match pack_on(&Cancelled { cancel, out }, source, layout, out, options, progress) {
        Err(_) if cancel.is_set() => Err(Error::Cancelled { path: out.to_owned() }),
        result => result,
    }
}

fn pack_on(
    disk: &dyn Disk,
    source: &WeightFiles,
    layout: &Layout,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PackReport, Error> {
    let plan = Plan::new(source, layout)?;
    let out = resolve(out)?;
    let source_dir = resolve(source.dir())?;
    let onto_itself = source.manifest().is_some() && source_dir == out;
    if !onto_itself && (source_dir.starts_with(&out) || out.starts_with(&source_dir)) {
        return Err(Error::Overlap { source_dir: source.dir().to_owned(), out });
    }
    if !onto_itself && source.manifest().is_some() && options.consume_source {
        return Err(Error::invalid(source.dir(), "is a pack; only a checkpoint can be consumed"));
    }

    let out = OutDir::open(disk, &out)?;
    let mut copier = Copier::new(disk, source, options.threads)?;
    if let Some(manifest) = Manifest::read(out.dir())? {
        compare(&plan, source, &mut copier, &out, &manifest, progress)?;
        return Ok(PackReport { manifest, written: Bytes(0), resumed: Bytes(0), already_packed: true });
    }
    Run::new(disk, source, &plan, &out, options.consume_source)?.finish(&mut copier, progress)
}

/// The absolute path of a directory, links resolved as far as it exists.
fn resolve(dir: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(dir).map_err(Error::io(dir, "resolve it"))?;
    let mut missing = Vec::new();
    for ancestor in absolute.ancestors() {
        match ancestor.canonicalize() {
            Ok(resolved) => return Ok(missing.iter().rev().fold(resolved, |path, name| path.join(name))),
            Err(e) => match ancestor.file_name() {
                Some(name) if e.kind() == io::ErrorKind::NotFound => missing.push(name),
                // `missing/..` names nothing.
                _ => return Err(Error::io(ancestor, "resolve it")(e)),
            },
        }
    }
    Ok(absolute)
}

/// Checks that the finished pack in `out` is what this plan would write.
fn compare(
    plan: &Plan,
    source: &WeightFiles,
    copier: &mut Copier<'_>,
    out: &OutDir<'_>,
    manifest: &Manifest,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Error> {
    let different = |problem: String| Error::DifferentPack {
        path: out.dir().to_owned(),
        problem: format!("a finished one; {problem}"),
        keep: true,
    };
    // The last step of the run that wrote this pack, in case that one was interrupted in front of it.
    let journal = Journal::read(out.dir())?;
    if let Some(journal) = &journal
        && journal.mismatch(source, plan)?.is_none()
    {
        return out.remove(journal::JOURNAL);
    }
    if manifest.architecture != plan.architecture {
        return Err(different(format!("its architecture is {:?}", manifest.architecture)));
    }
    let recorded: Vec<&PackedFile> = manifest.sidecars.iter().chain(&manifest.shards).collect();
    let outline = recorded.iter().map(|file| (file.name.as_str(), file.size));
    if !plan.files().map(|file| (file.name(), file.size())).eq(outline) {
        return Err(different("its files have other names or sizes".into()));
    }
    let mut meter = Meter::new(progress, plan.files().map(PlannedFile::size).sum());
    for (planned, recorded) in plan.files().zip(recorded) {
        let name = planned.name();
        require_size(&out.path(name), recorded.size)?;
        let mut sum = Checksummer::new();
        copier.stream(planned, &mut |bytes| {
            sum.update(bytes);
            meter.add(Step::Comparing, name, bytes.len() as u64);
            Ok(())
        })?;
        if sum.finish() != recorded.xxh3_128 {
            return Err(different(format!("{name} holds other bytes")));
        }
    }
    if journal.is_some() { out.remove(journal::JOURNAL) } else { Ok(()) }
}

/// What the manifest says about the source: nothing that depends on where or when it was packed.
fn describe(source: &WeightFiles) -> Source {
    let files = source.files().iter().map(|file| SourceFile { name: file.name(), size: file.len }).collect();
    let (repository, revision) = cache_snapshot(source.dir()).unzip();
    Source { repository, revision, files }
}

/// `ORG/NAME` and commit of `models--ORG--NAME/snapshots/COMMIT` in a Hugging Face cache.
fn cache_snapshot(dir: &Path) -> Option<(String, String)> {
    let snapshot = dir.canonicalize().ok()?;
    let revision = snapshot.file_name()?.to_str()?;
    let snapshots = snapshot.parent()?;
    let repository = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    (is_commit && snapshots.file_name()? == "snapshots")
        .then(|| (repository.replace("--", "/"), revision.to_owned()))
}
