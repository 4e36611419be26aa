//! Reads through a mapping of the file, for comparison, and for file systems that do this best.
//!
//! A mapping has two traps. What was touched stays resident, and the kernel maps more around it, so a walk over a
//! model would fill memory up to the size of the model: each piece is mapped by itself, and for as long as it is
//! copied. What the kernel reads of it is asked for piece by piece too: its own read-ahead may be many MiB for each
//! thread, which a cgroup counts. And a file that is
//! cut short while it is mapped kills the process with SIGBUS at the first touch: so nothing here touches the
//! mapping. The kernel copies out of it (`process_vm_readv` on ourselves), and says EFAULT where a touch
//! would have killed. What it will not copy, an ordinary read reports on.

use std::io;
use std::sync::Arc;

use memmap2::MmapOptions;
use rustix::mm::{Advice, madvise};

use super::files::Files;
use super::threads::ReadAt;
use crate::ALIGNMENT;

/// What a thread has mapped at one time, beside the budget: little.
const PIECE: usize = 256 << 10;

/// Maps the files, and tries whether the kernel copies.
pub(super) fn read_at(files: &Arc<Files>) -> io::Result<Arc<ReadAt>> {
    let (mut from, mut to) = (7_u8, 0);
    // SAFETY: `from` is one byte of ours.
    let copied = unsafe { copy(&raw mut from, std::slice::from_mut(&mut to)) }?;
    if (copied, to) != (1, 7) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let files = files.clone();
    Ok(Arc::new(move |file, offset, buffer| {
        let mut done = 0;
        for piece in buffer.chunks_mut(PIECE) {
            match read_piece(&files, file, offset + done as u64, piece) {
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

fn read_piece(files: &Files, file: usize, offset: u64, piece: &mut [u8]) -> io::Result<usize> {
    let end = offset + piece.len() as u64;
    let opened = &files.files[file];
    // Pages beyond the end of a file are none, so what is mapped ends before it.
    if end <= opened.metadata()?.len() {
        let map = MmapOptions::new().offset(offset).len(piece.len()).map_raw_read_only(opened)?;
        // `madvise` wants whole pages: the mapping begins with the page that holds `offset`.
        let within = map.as_mut_ptr().addr() % ALIGNMENT;
        // SAFETY: The page that the pointer of a mapping is in belongs to it, from its start on, and the mapping is this
        // thread's. Advice changes no contents, and `copy` reports what cannot be read.
        let copied = unsafe {
            let start = map.as_mut_ptr().sub(within);
            let _ = madvise(start.cast(), within + piece.len(), Advice::Random);
            let _ = madvise(start.cast(), within + piece.len(), Advice::WillNeed);
            let _ = madvise(start.cast(), within + piece.len(), Advice::LinuxPopulateRead);
            copy(map.as_mut_ptr(), piece)
        };
        // The last page of a file that was cut short reads as zeros to its end, so a copy that worked
        // proves nothing before the length does.
        if copied.is_ok_and(|n| n == piece.len()) && opened.metadata()?.len() >= end {
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
