//! The file that is read: the user's, or one of ours that nobody ever finds again.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows_bytes::Bytes;

use super::Settings;
use crate::random::SplitMix;
use crate::{Error, Result};

/// Size of the file that is made in a directory, unless told otherwise.
const SIZE: Bytes = Bytes::mib(1024);

/// What a test file leaves free on a disk that others write to.
const MARGIN: Bytes = Bytes::mib(64);

const CHUNK: usize = 4 << 20;

/// A file, open, with a path that a reader can open again.
pub(super) struct Target {
    file: File,
    pub(super) path: PathBuf,
    /// What of it is read.
    pub(super) size: Bytes,
    /// Where the system cannot open a file that has no name: the name, taken away when this is dropped.
    _name: Option<tempfile::TempPath>,
}

impl Target {
    pub(super) fn open(
        path: &Path,
        settings: &Settings,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Self> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(failed)?;
        if meta.is_dir() {
            return Self::make(path, settings.size.unwrap_or(SIZE), go_on);
        }
        if !meta.is_file() {
            let what = format!("{}: neither a file nor a directory", path.display());
            return Err(Error::Settings(what));
        }
        let file = File::open(path).map_err(failed)?;
        let size = settings.size.map_or(meta.len(), |size| size.get().min(meta.len()));
        let target = Self { file, path: path.to_owned(), size: Bytes(size), _name: None };
        // What was just written would otherwise be read from memory, or written while it is read.
        target.drop_cache()?;
        Ok(target)
    }

    /// Makes a file of `size` bytes that no compression makes smaller.
    fn make(dir: &Path, size: Bytes, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Self> {
        let failed = |source| Error::File { path: dir.to_owned(), source };
        let wanted = size + MARGIN;
        if let Some(free) = free(dir).map_err(failed)?
            && free < wanted
        {
            return Err(Error::NoSpace { path: dir.to_owned(), wanted, free });
        }
        let (mut file, path, name) = nameless(dir).map_err(failed)?;
        let mut chunk = vec![0; CHUNK];
        let mut random = SplitMix(size.get());
        let mut left = size.get();
        while left > 0 {
            if go_on().is_break() {
                return Err(Error::Interrupted);
            }
            let len = left.min(CHUNK as u64) as usize;
            for word in chunk.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            file.write_all(&chunk[..len]).map_err(failed)?;
            left -= len as u64;
        }
        let target = Self { file, path, size, _name: name };
        target.drop_cache()?;
        Ok(target)
    }

    /// Takes the file out of the page cache.
    pub(super) fn drop_cache(&self) -> Result<()> {
        let failed = |source: io::Error| Error::File { path: self.path.clone(), source };
        // Pages that are yet to be written stay.
        self.file.sync_all().map_err(failed)?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|e| failed(e.into()))?;
        Ok(())
    }

    /// Reads what is going to be read, so that the page cache has it.
    pub(super) fn read_all(&self, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < self.size.get() {
            if go_on().is_break() {
                return Err(Error::Interrupted);
            }
            match read_at(&self.file, &mut buffer, at) {
                Ok(0) => break,
                Ok(n) => at += n as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::File { path: self.path.clone(), source }),
            }
        }
        Ok(())
    }

    /// How much of what is read the page cache has, by a look at some hundred pages; `None` where nobody knows.
    pub(super) fn cached_share(&self) -> Option<f64> {
        const LOOKS: u64 = 256;
        let mut cached = 0;
        for i in 0..LOOKS {
            let page = (self.size.get() / 4096).max(1) * i / LOOKS;
            cached += u64::from(self.is_cached(page * 4096)?);
        }
        Some(cached as f64 / LOOKS as f64)
    }

    /// A read that may not wait finds what is there. It reads nothing in.
    #[cfg(target_os = "linux")]
    fn is_cached(&self, offset: u64) -> Option<bool> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let mut byte = [0];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        match preadv2(&self.file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(_) => Some(true),
            Err(Errno::AGAIN) => Some(false),
            // A file system that does not know the flag.
            Err(_) => None,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn is_cached(&self, _offset: u64) -> Option<bool> {
        None
    }
}

/// A file in `dir` that has no name, so that it is gone with this process whatever ends that.
#[cfg(target_os = "linux")]
fn nameless(dir: &Path) -> io::Result<(File, PathBuf, Option<tempfile::TempPath>)> {
    use std::os::fd::AsRawFd as _;
    let file = tempfile::tempfile_in(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path, None))
}

#[cfg(not(target_os = "linux"))]
fn nameless(dir: &Path) -> io::Result<(File, PathBuf, Option<tempfile::TempPath>)> {
    let (file, name) = tempfile::NamedTempFile::new_in(dir)?.into_parts();
    Ok((file, name.to_path_buf(), Some(name)))
}

/// What is free in `dir` for everybody.
#[cfg(unix)]
#[allow(clippy::unnecessary_wraps, reason = "nobody knows elsewhere")]
fn free(dir: &Path) -> io::Result<Option<Bytes>> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(Some(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize))))
}

#[cfg(not(unix))]
fn free(_dir: &Path) -> io::Result<Option<Bytes>> {
    Ok(None)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buffer, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow::{Break, Continue};

    fn settings(size: u64) -> Settings {
        Settings { size: Some(Bytes(size)), ..Settings::default() }
    }

    #[test]
    fn a_file_that_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::open(dir.path(), &settings(10_000_001), &mut || Continue(())).unwrap();
        let content = std::fs::read(&target.path).unwrap();
        assert_eq!(content.len(), 10_000_001);
        // No byte comes much more often than any other.
        let mut counts = [0_u32; 256];
        content.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        assert!(counts.iter().all(|&n| n > 30_000 && n < 50_000), "{counts:?}");
        #[cfg(target_os = "linux")]
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(target);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn interrupted_or_without_space() {
        let dir = tempfile::tempdir().unwrap();
        let broken = Target::open(dir.path(), &settings(1 << 20), &mut || Break(()));
        assert!(matches!(broken, Err(Error::Interrupted)));
        let full = Target::open(dir.path(), &settings(1 << 60), &mut || Continue(()));
        let Err(error @ Error::NoSpace { .. }) = full else { panic!("there is no such disk") };
        assert!(error.to_string().contains("1048576.0 TiB of free space"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_page_cache_does_as_told() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let target = Target::open(dir.path(), &settings(8 << 20), &mut || Continue(())).unwrap();
        assert_eq!(target.cached_share(), Some(0.0));
        target.read_all(&mut || Continue(())).unwrap();
        assert_eq!(target.cached_share(), Some(1.0));
        target.drop_cache().unwrap();
        assert_eq!(target.cached_share(), Some(0.0));
    }
}
