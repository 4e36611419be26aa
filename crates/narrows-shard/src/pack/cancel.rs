//! How a pack is given up: between two operations of the disk, or at once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, RealDisk};
use crate::{Error, Reader, Tensor};

/// What another thread ends [`pack_until`](super::pack_until) with.
#[derive(Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    unfinished: Mutex<Unfinished>,
}

/// Files that go where the pack ends before it is complete.
#[derive(Debug, Default)]
struct Unfinished {
    lock: Option<PathBuf>,
    partial: Option<PathBuf>,
    /// Nothing is made any more.
    over: bool,
}

impl Cancel {
    /// Set by `flag`.
    #[must_use]
    pub fn on(flag: Arc<AtomicBool>) -> Self {
        Self { flag, unfinished: Mutex::default() }
    }

    /// Ends the pack with its next operation of the disk.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether the pack is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Deletes the file that is being written and the lock file, for a program that ends at once, while the operation
    /// of another thread is under way: the pack writes nothing any more. What it has finished stays.
    pub fn discard(&self) {
        self.set();
        let mut unfinished = self.unfinished();
        unfinished.over = true;
        for path in [unfinished.partial.take(), unfinished.lock.take()].into_iter().flatten() {
            let _ = fs::remove_file(path);
        }
    }

    fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk of a caller who may want to stop.
pub(super) struct Cancelled<'a> {
    pub(super) cancel: &'a Cancel,
    pub(super) out: &'a Path,
}

impl Disk for Cancelled<'_> {
    fn go_on(&self) -> Result<(), Error> {
        match self.cancel.is_set() {
            true => Err(Error::Cancelled { path: self.out.to_owned() }),
            false => Ok(()),
        }
    }

    fn locked(&self, path: &Path) {
        self.cancel.unfinished().lock = Some(path.to_owned());
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        // While nothing can be discarded: a file is known from the moment it is there.
        let mut unfinished = self.cancel.unfinished();
        if unfinished.over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let file = RealDisk.create(path)?;
        unfinished.partial = Some(path.to_owned());
        Ok(file)
    }

    fn write(&self, path: &Path, file: &File, bytes: &[u8]) -> io::Result<()> {
        match self.cancel.is_set() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => RealDisk.write(path, file, bytes),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut unfinished = self.cancel.unfinished();
        if unfinished.over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        RealDisk.rename(from, to)?;
        unfinished.partial = None;
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut unfinished = self.cancel.unfinished();
        unfinished.partial.take_if(|known| known == path);
        unfinished.lock.take_if(|known| known == path);
        RealDisk.remove(path)
    }

    fn read(&self, reader: &Reader, tensor: &Tensor, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.go_on()?;
        RealDisk.read(reader, tensor, offset, buf)
    }
}
