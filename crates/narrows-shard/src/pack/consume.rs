//! Deleting the source, file by file, once what it held is durable and verified.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::plan::Plan;
use crate::{Bytes, Error, WeightFiles};

/// A weight file of the source that will be deleted.
pub(crate) struct Consumable {
    pub(crate) name: String,
    /// Its index in the source.
    pub(crate) file: usize,
    path: PathBuf,
    /// What `path` links to, if it is a link into a Hugging Face cache and nothing else links there.
    blob: Option<PathBuf>,
    /// How much space that gives back to the file system of the pack.
    pub(crate) frees: Bytes,
    /// The shard after which nothing needs it.
    pub(crate) last_shard: String,
}

/// The weight files that `plan` uses and that are still there. Files that it does not use are kept.
pub(crate) fn consumables(source: &WeightFiles, plan: &Plan, out: &Path) -> Result<Vec<Consumable>, Error> {
    let mut last_shard = vec![None; source.files().len()];
    for shard in &plan.shards {
        for placed in &shard.tensors {
            last_shard[placed.tensor.file] = Some(&shard.name);
        }
    }
    let mut consumables = Vec::new();
    for (i, (file, last_shard)) in source.files().iter().zip(last_shard).enumerate() {
        let (Some(last_shard), Ok(found)) = (last_shard, file.path.symlink_metadata()) else { continue };
        let path = file.path.clone();
        let (blob, frees) = if found.is_symlink() {
            let blob = own_blob(source.dir(), &path)?;
            let frees = blob.as_deref().map_or(Bytes(0), |blob| frees(blob, out));
            (blob, frees)
        } else {
            (None, frees(&path, out))
        };
        consumables.push(Consumable {
            name: file.name(),
            file: i,
            path,
            blob,
            frees,
            last_shard: last_shard.clone(),
        });
    }
    Ok(consumables)
}

impl Consumable {
    /// Deletes it durably. If that is interrupted, doing it again completes it.
    pub(crate) fn delete(&self, disk: &dyn Disk) -> Result<(), Error> {
        // The link last: without it, nobody would know the blob.
        for path in self.blob.iter().chain([&self.path]) {
            if path.symlink_metadata().is_ok() {
                disk.remove(path).map_err(Error::io(path, "delete it"))?;
            }
            if let Some(dir) = path.parent() {
                disk.sync_dir(dir).map_err(Error::io(dir, "make it durable"))?;
            }
        }
        Ok(())
    }
}

/// The blob that `link` in the snapshot `dir` of a Hugging Face cache points to; `None` if others share it.
///
/// Any other link leads to a file that somebody put elsewhere on purpose; deleting that would be a surprise,
/// and deleting the link would free nothing.
fn own_blob(dir: &Path, link: &Path) -> Result<Option<PathBuf>, Error> {
    let refused = || {
        Error::invalid(
            link,
            "is a symbolic link that does not lead into its Hugging Face cache, so it cannot be consumed",
        )
    };
    let snapshot = dir.canonicalize().map_err(Error::io(dir, "resolve it"))?;
    let snapshots = snapshot.parent().ok_or_else(refused)?;
    let blobs = snapshots.parent().ok_or_else(refused)?.join("blobs");
    let target = fs::read_link(link).map_err(Error::io(link, "resolve it"))?;
    // The blob itself may be gone already, its directory not.
    let target_dir = target.parent().and_then(|parent| snapshot.join(parent).canonicalize().ok());
    let (Some(name), true) = (target.file_name(), target_dir.as_ref() == Some(&blobs)) else {
        return Err(refused());
    };
    let list = |dir: &Path| fs::read_dir(dir).map_err(Error::io(dir, "list it"));
    for other in list(snapshots)?.flatten().filter(|entry| entry.path().is_dir()) {
        for entry in list(&other.path())?.flatten() {
            let is_this = other.path() == snapshot && Some(entry.file_name().as_os_str()) == link.file_name();
            let shares = fs::read_link(entry.path()).is_ok_and(|target| target.file_name() == Some(name));
            if shares && !is_this {
                return Ok(None);
            }
        }
    }
    Ok(Some(blobs.join(name)))
}

#[cfg(unix)]
fn frees(path: &Path, out: &Path) -> Bytes {
    use std::os::unix::fs::MetadataExt;
    match (path.symlink_metadata(), out.metadata()) {
        // Another hard link, or another file system: nothing becomes free here.
        (Ok(file), Ok(out)) if file.nlink() == 1 && file.dev() == out.dev() => Bytes(file.blocks() * 512),
        _ => Bytes(0),
    }
}

#[cfg(not(unix))]
fn frees(_: &Path, _: &Path) -> Bytes {
    Bytes(0)
}
