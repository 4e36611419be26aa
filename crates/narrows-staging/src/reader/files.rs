//! Opening files, and what can be asked of them without reading.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::Error;

pub(super) struct Files {
    pub(super) files: Vec<File>,
}

/// Why files cannot be read directly.
pub(super) enum Refused {
    /// The system has no direct I/O for this one.
    Direct(PathBuf, io::Error),
    /// They cannot be read at all.
    Open(Error),
}

impl Files {
    /// Opens them to be read through the page cache.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, Error> {
        let open = |path: &PathBuf| {
            let failed = |source| Error::Open { path: path.clone(), source };
            let file = File::open(path).map_err(failed)?;
            if file.metadata().map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            Ok(file)
        };
        Ok(Self { files: paths.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Opens them to be read past the page cache, and makes sure that this works: some file systems take the
    /// flag and refuse the first read.
    #[cfg(target_os = "linux")]
    pub(super) fn open_direct(paths: &[PathBuf]) -> Result<Self, Refused> {
        use std::os::unix::fs::{FileExt, OpenOptionsExt};

        // A plain open first: it gives the errors that have nothing to do with direct I/O.
        Self::open(paths).map_err(Refused::Open)?;
        let mut page = Page([0; crate::ALIGNMENT]);
        let open = |path: &PathBuf| {
            let refused = |error| Refused::Direct(path.clone(), error);
            let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(refused)?;
            match file.read_at(&mut page.0, 0) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
                {
                    Err(refused(error))
                }
                // A bad block is reported when somebody wants it.
                _ => Ok(file),
            }
        };
        Ok(Self { files: paths.iter().map(open).collect::<Result<_, _>>()? })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn open_direct(paths: &[PathBuf]) -> Result<Self, Refused> {
        Self::open(paths).map_err(Refused::Open)?;
        Err(Refused::Direct(paths.first().cloned().unwrap_or_default(), io::ErrorKind::Unsupported.into()))
    }

    /// Reads at an offset; may be short.
    pub(super) fn read_at(&self, file: usize, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(&self.files[file], buffer, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(&self.files[file], buffer, offset);
    }

    /// Advice about the page cache; only ever advice, so a refusal is no error.
    pub(super) fn advise(&self, file: usize, offset: u64, len: u64, advice: Advice) {
        #[cfg(target_os = "linux")]
        {
            let advice = match advice {
                Advice::Sequential => rustix::fs::Advice::Sequential,
                Advice::DontNeed => rustix::fs::Advice::DontNeed,
            };
            let _ = rustix::fs::fadvise(&self.files[file], offset, std::num::NonZeroU64::new(len), advice);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (file, offset, len, advice);
    }
}

#[derive(Clone, Copy)]
pub(super) enum Advice {
    Sequential,
    DontNeed,
}

#[cfg(target_os = "linux")]
#[repr(align(4096))]
struct Page([u8; crate::ALIGNMENT]);
