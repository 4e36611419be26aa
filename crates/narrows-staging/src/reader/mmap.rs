//! Reads through a mapping of the file, for comparison, and for file systems that do this best.
//!
//! A mapping has two traps. What was touched stays resident, so a walk over a model would fill memory up to
//! the size of the model: each piece is dropped from the mapping right after it was copied. And a file that is
//! cut short while it is mapped kills the process with SIGBUS at the first touch: so nothing here touches the
//! mapping. The kernel copies out of it (`process_vm_readv` on ourselves), and says EFAULT where a touch
//! would have killed. What it will not copy, an ordinary read reports on.

use std::fs::File;
use std::io;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, madvise};

use super::files::Files;
use super::threads::ReadAt;

/// What a thread has resident of the mapping at one time, beside the budget: little.
const PIECE: usize = 256 << 10;

/// Maps the files, and tries whether the kernel copies.
pub(super) fn read_at(files: &Arc<Files>) -> io::Result<Arc<ReadAt>> {
    let (mut from, mut to) = (7_u8, 0);
    // SAFETY: `from` is one byte of ours.
    let copied = unsafe { copy(&raw mut from, std::slice::from_mut(&mut to)) }?;
    if (copied, to) != (1, 7) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let map = |file: &File| {
        let map = MmapOptions::new().map_raw_read_only(file)?;
        // Faults are served in order and far ahead.
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(map)
    };
    let maps: Vec<MmapRaw> = files.files.iter().map(map).collect::<io::Result<_>>()?;
    let files = files.clone();
    Ok(Arc::new(move |file, offset, buffer| {
        let mut done = 0;
        for piece in buffer.chunks_mut(PIECE) {
            match read_piece(&files, file, &maps[file], offset + done as u64, piece) {
                Ok(n) if n < piece.len() => return Ok(done + n),
                Ok(n) => done += n,
                // What there is counts; the rest is asked for again, and fails then.
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }))
}

fn read_piece(files: &Files, file: usize, map: &MmapRaw, offset: u64, piece: &mut [u8]) -> io::Result<usize> {
    let end = offset + piece.len() as u64;
    if end <= map.len() as u64 {
        // SAFETY: The range lies in the mapping.
        let start = unsafe { map.as_mut_ptr().add(offset as usize) };
        // SAFETY: The range lies in the mapping, which nobody looks at through references. Populating and
        // dropping a shared read-only mapping changes no contents, and `copy` reports what cannot be read.
        let copied = unsafe {
            let _ = madvise(start.cast(), piece.len(), Advice::LinuxPopulateRead);
            let copied = copy(start, piece);
            let _ = madvise(start.cast(), piece.len(), Advice::LinuxDontNeed);
            copied
        };
        // The last page of a file that was cut short reads as zeros to its end, so a copy that worked
        // proves nothing before the length does.
        if copied.is_ok_and(|n| n == piece.len()) && files.files[file].metadata()?.len() >= end {
            return Ok(piece.len());
        }
    }
    files.read_at(file, offset, piece)
}

/// Copies bytes of this process; where they cannot be read, that is an error and not a signal.
///
/// # Safety
/// Between `from` and `from + to.len()` nobody writes meanwhile.
unsafe fn copy(from: *mut u8, to: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: from.cast(), iov_len: to.len() };
    // SAFETY: The kernel checks both ranges, and writes only to `to`, which is ours.
    let n = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
