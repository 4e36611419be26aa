//! Anonymous memory of Linux: aligned for huge pages, and locked if asked.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory with an address that never changes.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: A mapping belongs to the process, not to a thread, and this type reads and writes none of it.
unsafe impl Send for Mapping {}
// SAFETY: As above: shared references give away nothing but the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of the page size and not zero.
    pub(crate) fn new(len: usize, huge_pages: bool) -> io::Result<Self> {
        // A huge page needs 2 MiB of aligned addresses, and mmap only promises 4 KiB. What sticks out on
        // either side is given back at once; no page of it was ever touched.
        let slack = if huge_pages { HUGE_PAGE } else { 0 };
        let mapped = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: Without MAP_FIXED the kernel picks addresses that nobody uses.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), mapped, prot, MapFlags::PRIVATE) }?.cast::<u8>();
        let head = if huge_pages { base.align_offset(HUGE_PAGE) } else { 0 };
        let tail = slack - head;
        // SAFETY: head + len + tail = mapped, so all three parts lie in the mapping just made; nobody else
        // knows its address, and the outer parts are used no more.
        let start = unsafe {
            let start = base.add(head);
            if head > 0 {
                munmap(base.cast(), head)?;
            }
            if tail > 0 {
                munmap(start.add(len).cast(), tail)?;
            }
            start
        };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { start, len };
        if huge_pages {
            // SAFETY: The range is ours, and this advice changes no contents. A kernel without huge pages
            // refuses it, and small ones do as well.
            let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        }
        Ok(mapping)
    }

    /// Keeps all of it in memory, out of reach of swapping.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: The range is ours, and locking changes no contents.
        Ok(unsafe { mlock(self.start.as_ptr().cast(), self.len) }?)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The range was mapped by `new` and not unmapped since; regions of it hold an `Arc` of this
        // mapping, so none is left.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
