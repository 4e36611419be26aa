//! Reading a file at an offset, whatever its cursor and whoever else reads it, and hints to the kernel.

use std::fs::File;
use std::io;

/// Asks the kernel to start reading this range.
#[cfg(target_os = "linux")]
pub(crate) fn will_need(file: &File, offset: u64, len: u64) {
    // A hint: its failure changes nothing but the time taken.
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn will_need(_: &File, _: u64, _: u64) {}

/// Drops this range (to the end, if `len` is 0) from the page cache; what is dirty starts on its way to disk.
#[cfg(target_os = "linux")]
pub(crate) fn dont_need(file: &File, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn dont_need(_: &File, _: u64, _: u64) {}

/// A file that is read by offset.
#[cfg(unix)]
pub(crate) struct PositionalFile(File);

#[cfg(unix)]
impl PositionalFile {
    pub(crate) fn new(file: File) -> Self {
        Self(file)
    }

    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    pub(crate) fn will_need(&self, offset: u64, len: u64) {
        will_need(&self.0, offset, len);
    }
}

/// A file that is read by offset; the cursor is shared, so a reader holds it from the seek on.
#[cfg(not(unix))]
pub(crate) struct PositionalFile(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl PositionalFile {
    pub(crate) fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buf)
    }

    pub(crate) fn will_need(&self, _: u64, _: u64) {}
}
