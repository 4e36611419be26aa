//! Deleting the source, file by file, once what it held is durable and verified.

use std::fs;
use std::io;
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
    /// What `path` links to, if it is a link into a Hugging Face cache.
    blob: Option<Blob>,
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
            let blob = blob_of(source.dir(), &path)?;
            let frees = match blob.others(&path)? {
                Others::None => frees(&blob.path, out),
                Others::ToBlob | Others::ThroughLink => Bytes(0),
            };
            (Some(blob), frees)
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
        // Asked again, since another snapshot may have come.
        let blob = match &self.blob {
            Some(blob) => match blob.others(&self.path)? {
                Others::None => Some(&blob.path),
                Others::ToBlob => None,
                Others::ThroughLink => return Ok(()),
            },
            None => None,
        };
        // The link last: without it, nobody would know the blob.
        for path in blob.into_iter().chain([&self.path]) {
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

/// A file of a Hugging Face cache to which snapshots link.
struct Blob {
    path: PathBuf,
    /// The directory of all repositories.
    cache: PathBuf,
}

/// The blob that `link` in the snapshot `dir` of a Hugging Face cache leads to.
///
/// Any other link leads to a file that somebody put elsewhere on purpose; deleting that would be a surprise,
/// and deleting the link would free nothing.
fn blob_of(dir: &Path, link: &Path) -> Result<Blob, Error> {
    let refused = || {
        Error::invalid(
            link,
            "is a symbolic link that does not lead into its Hugging Face cache, so it cannot be consumed",
        )
    };
    let snapshot = dir.canonicalize().map_err(Error::io(dir, "resolve it"))?;
    let repository = snapshot.parent().and_then(Path::parent).ok_or_else(refused)?;
    let blobs = repository.join("blobs");
    let target = fs::read_link(link).map_err(Error::io(link, "resolve it"))?;
    // The blob itself may be gone already, its directory not.
    let target_dir = target.parent().and_then(|parent| snapshot.join(parent).canonicalize().ok());
    let (Some(name), true) = (target.file_name(), target_dir.as_ref() == Some(&blobs)) else {
        return Err(refused());
    };
    let path = blobs.join(name);
    // A blob that is a link itself is kept elsewhere.
    if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        return Err(refused());
    }
    Ok(Blob { path, cache: repository.parent().unwrap_or(repository).to_owned() })
}

impl Blob {
    /// How links of the cache other than `link` lead to it: of any repository and snapshot, in folders of any depth,
    /// directly or by way of other links.
    fn others(&self, link: &Path) -> Result<Others, Error> {
        let Ok(blob) = self.path.canonicalize() else { return Ok(Others::None) };
        let mut others = Others::None;
        let own_dir = link.parent().and_then(|dir| dir.canonicalize().ok());
        let is_own =
            |path: &Path| path.file_name() == link.file_name() && path.parent() == own_dir.as_deref();
        let mut dirs = vec![self.cache.clone()];
        while let Some(dir) = dirs.pop() {
            let failed = |e| Error::io(&dir, "list it")(e);
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                // Gone meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                let path = entry.path();
                if kind.is_dir() {
                    dirs.push(path);
                } else if kind.is_symlink()
                    && !is_own(&path)
                    && path.canonicalize().is_ok_and(|to| to == blob)
                {
                    if passes(&path, &is_own) {
                        return Ok(Others::ThroughLink);
                    }
                    others = Others::ToBlob;
                }
            }
        }
        Ok(others)
    }
}

/// How a cache uses a blob besides the link at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Not at all.
    None,
    /// Other links lead there.
    ToBlob,
    /// Other links lead there by way of the link at hand, which has to stay as well.
    ThroughLink,
}

/// Whether the chain of links that begins at `link`, which ends in a file, passes one that `is_own`.
fn passes(link: &Path, is_own: &dyn Fn(&Path) -> bool) -> bool {
    let mut link = link.to_owned();
    while let Ok(target) = fs::read_link(&link) {
        let Some(parent) = link.parent() else { return false };
        let joined = parent.join(target);
        let dir = joined.parent().and_then(|dir| dir.canonicalize().ok());
        let (Some(dir), Some(name)) = (dir, joined.file_name()) else { return false };
        link = dir.join(name);
        if is_own(&link) {
            return true;
        }
    }
    false
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
