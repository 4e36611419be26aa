//! The output directory while a pack is being written: locked, and changed only by whole durable files.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::journal::{JOURNAL, Journal};
use crate::checksum::Checksummer;
use crate::positional::dont_need;
use crate::{Bytes, Error, MANIFEST, PackedFile};

pub(crate) const LOCK: &str = "narrows.lock";

/// What the name of a file ends with until it is complete.
pub(crate) const PARTIAL: &str = ".partial";

/// Whether a pack uses this name for itself.
pub(crate) fn is_reserved(name: &str) -> bool {
    [MANIFEST, JOURNAL, LOCK].contains(&name) || name.ends_with(PARTIAL)
}

/// The directory, locked until this is dropped.
pub(crate) struct OutDir<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    created: bool,
    _lock: File,
}

impl<'a> OutDir<'a> {
    /// Makes the directory if need be and locks it. One that holds foreign files is left untouched.
    pub(crate) fn open(disk: &'a dyn Disk, dir: &Path) -> Result<Self, Error> {
        if dir.exists() {
            refuse_foreign(dir)?;
        }
        let created = make_dir(disk, dir)?;
        let lock = match lock(disk, dir) {
            Ok(lock) => lock,
            Err(e) => {
                if created {
                    let _ = fs::remove_dir(dir);
                }
                return Err(e);
            }
        };
        Ok(Self { disk, dir: dir.to_owned(), created, _lock: lock })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the file `name` durably: it appears under this name with all that `fill` writes, or not at all.
    pub(crate) fn write_file(
        &self,
        name: &str,
        fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>,
    ) -> Result<PackedFile, Error> {
        let partial = self.path(&format!("{name}{PARTIAL}"));
        let written = self.write_partial(&partial, fill).and_then(|(size, xxh3_128)| {
            let path = self.path(name);
            self.disk.rename(&partial, &path).map_err(Error::io(&path, "rename it into place"))?;
            self.sync()?;
            Ok(PackedFile { name: name.to_owned(), size, xxh3_128 })
        });
        if written.is_err() {
            // Gives a full disk its space back; if that fails too, the next pack does it.
            let _ = self.disk.remove(&partial);
        }
        written
    }

    fn write_partial(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Error>,
    ) -> Result<(Bytes, crate::Checksum), Error> {
        let file = self.disk.create(path).map_err(Error::io(path, "create it"))?;
        let mut writer = Writer { disk: self.disk, path, file, written: 0, sum: Checksummer::new() };
        fill(&mut writer)?;
        self.disk.sync(path, &writer.file).map_err(Error::io(path, "make it durable"))?;
        // Whoever reads it back shall read the disk, not memory.
        dont_need(&writer.file, 0, 0);
        Ok((Bytes(writer.written), writer.sum.finish()))
    }

    /// Deletes the file `name`, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        match self.disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(&path, "delete it")(e)),
            _ => Ok(()),
        }
    }

    /// Makes the names in the directory durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.disk.sync_dir(&self.dir).map_err(Error::io(&self.dir, "make it durable"))
    }
}

impl Drop for OutDir<'_> {
    fn drop(&mut self) {
        // Nothing depends on either: a lock file left behind is unlocked, and the next pack takes it over.
        let _ = self.disk.remove(&self.path(LOCK));
        if self.created {
            // Fails, as it should, unless the directory is empty.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// A file being written.
pub(crate) struct Writer<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    file: File,
    written: u64,
    sum: Checksummer,
}

impl Writer<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.disk.write(self.path, &self.file, bytes).map_err(Error::io(self.path, "write to it"))?;
        self.sum.update(bytes);
        // Starts the bytes on their way to disk, so that the sync at the end has little left to wait for.
        dont_need(&self.file, self.written, bytes.len() as u64);
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Checks that the directory is empty or belongs to a pack.
fn refuse_foreign(dir: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "list it"))?;
    let names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<BTreeSet<_>>>()
        .map_err(Error::io(dir, "list it"))?;
    if names.contains(MANIFEST) {
        return Ok(());
    }
    let mut ours: BTreeSet<String> = [LOCK, JOURNAL].map(String::from).into();
    ours.insert(format!("{JOURNAL}{PARTIAL}"));
    if let Some(journal) = Journal::read(dir)? {
        ours.insert(format!("{MANIFEST}{PARTIAL}"));
        for name in journal.files {
            ours.insert(format!("{name}{PARTIAL}"));
            ours.insert(name);
        }
    }
    match names.difference(&ours).next() {
        None => Ok(()),
        Some(found) => Err(Error::OutputNotEmpty { path: dir.to_owned(), found: found.clone() }),
    }
}

/// Makes a directory and its parents, each durably. Whether it had to.
fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<bool, Error> {
    if dir.is_dir() {
        return Ok(false);
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => dir,
    };
    if parent != dir {
        make_dir(disk, parent)?;
    }
    disk.create_dir(dir).map_err(Error::io(dir, "create this directory"))?;
    disk.sync_dir(parent).map_err(Error::io(parent, "make it durable"))?;
    Ok(true)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    loop {
        // A lock file of ours is empty; what else has its name is not ours to lock, and later to delete.
        let foreign = || Error::OutputNotEmpty { path: dir.to_owned(), found: LOCK.to_owned() };
        if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return Err(foreign());
        }
        let file = disk.open_lock(&path).map_err(Error::io(&path, "create it"))?;
        if !file.metadata().is_ok_and(|found| found.is_file() && found.len() == 0) {
            return Err(foreign());
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock it")(e)),
        }
        // Whoever had the lock may have deleted the file between our opening and locking it.
        if is_still_at(&file, &path) {
            disk.locked(&path);
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still_at(_: &File, path: &Path) -> bool {
    path.exists()
}
