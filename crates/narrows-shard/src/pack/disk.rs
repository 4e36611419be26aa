//! The few operations by which a pack reaches the disk: the seam at which tests inject faults.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::{Bytes, Error, Reader, Tensor};

/// What packing asks of the disk. The default is the real thing.
pub(crate) trait Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    /// Makes a new file: whatever is there already is no file of ours, and a link leads to something else.
    fn create(&self, path: &Path) -> io::Result<File> {
        File::options().write(true).create_new(true).open(path)
    }

    /// Opens the lock file, or makes it. It follows no link and leaves what is in a file.
    fn open_lock(&self, path: &Path) -> io::Result<File> {
        #[cfg(unix)]
        {
            use rustix::fs::{Mode, OFlags};

            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?))
        }
        #[cfg(not(unix))]
        File::options().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// Whether to go on with what takes long.
    fn go_on(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The lock file at `path` is this pack's now, to be removed at its end.
    fn locked(&self, _path: &Path) {}

    fn write(&self, _path: &Path, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Returns once the contents are durable.
    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Returns once the names in the directory are durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Elsewhere a directory cannot be opened, and renames are durable in order.
        if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn read(&self, reader: &Reader, tensor: &Tensor, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        reader.read(tensor, offset, buf)
    }

    /// What the file system at `dir` has left for us; `None` if it cannot say.
    fn available(&self, dir: &Path) -> io::Result<Option<Bytes>> {
        available_space(dir)
    }
}

/// What the file system at `dir` has left for us; `None` if it cannot say.
///
/// # Errors
/// The system cannot look at `dir`.
pub fn available_space(dir: &Path) -> io::Result<Option<Bytes>> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Some(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize))))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        Ok(None)
    }
}

/// The file system.
pub(crate) struct RealDisk;

impl Disk for RealDisk {}
