//! The portable twin: memory from the allocator, aligned to pages, never locked.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

use crate::ALIGNMENT;

/// Zeroed memory with an address that never changes.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: The allocation belongs to the process, not to a thread, and this type reads and writes none of it.
unsafe impl Send for Mapping {}
// SAFETY: As above: shared references give away nothing but the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Allocates `len` bytes, a multiple of the page size and not zero.
    pub(crate) fn new(len: usize, _huge_pages: bool) -> io::Result<Self> {
        let layout = Layout::from_size_align(len, ALIGNMENT).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: The layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, layout })
    }

    /// Locking is not done here.
    pub(crate) fn lock(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Allocated by `new` with this layout; regions hold an `Arc` of this, so none is left.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
