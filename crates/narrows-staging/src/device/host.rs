use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::slice;

use cudarc::driver::{result, sys};
use narrows_bytes::Bytes;

use super::error::Doing as _;
use super::{Device, DeviceError};
use crate::{Arena, ArenaOptions, Budget, Error, Region, Reservation};

/// What the driver knows of a range of host memory, which decides how it copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Nothing: copies go through a buffer of the driver's, by the processor.
    Pageable,
    /// The driver allocated it, and holds it in place: the device copies by itself.
    Pinned,
    /// As pinned, and no cache has it: written in order it is quick, read by the processor very slow.
    WriteCombined,
    /// Mapped by this process, and the driver holds it in place: what arenas are.
    Registered,
}

impl HostKind {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Pageable, Self::Pinned, Self::WriteCombined, Self::Registered];

    /// Its name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pageable => "pageable",
            Self::Pinned => "pinned",
            Self::WriteCombined => "write-combined",
            Self::Registered => "registered",
        }
    }
}

/// Host memory of one kind, zero until written. For comparison: weights go through arenas that a
/// [`Copier`](super::Copier) registers.
pub struct HostMemory {
    kind: HostKind,
    inner: Inner,
}

enum Inner {
    /// The driver lets go of it before it is unmapped: fields are dropped in this order.
    Mapped {
        _pinned: Option<Pinned>,
        region: Region,
    },
    Allocated(Allocated),
}

impl HostMemory {
    /// Takes `len` bytes, rounded up to pages, out of a budget.
    ///
    /// # Errors
    /// [`Error::OverBudget`], [`Error::Map`], or what the driver says: often that the system's limit on locked
    /// memory is too low.
    pub fn new(
        device: &Device,
        budget: &Budget,
        what: &'static str,
        kind: HostKind,
        len: usize,
    ) -> Result<Self, Error> {
        let size = Bytes(len.max(1) as u64);
        let inner = match kind {
            HostKind::Pageable | HostKind::Registered => {
                let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
                let arena = Arena::new(budget, what, size, options)?;
                let region = arena.carve(len.max(1))?;
                let pinned =
                    (kind == HostKind::Registered).then(|| Pinned::new(device, &arena)).transpose()?;
                Inner::Mapped { _pinned: pinned, region }
            }
            HostKind::Pinned => Inner::Allocated(Allocated::new(device, budget, what, size, 0)?),
            HostKind::WriteCombined => {
                let flags = sys::CU_MEMHOSTALLOC_WRITECOMBINED;
                Inner::Allocated(Allocated::new(device, budget, what, size, flags)?)
            }
        };
        Ok(Self { kind, inner })
    }

    /// Which kind it is.
    #[must_use]
    pub const fn kind(&self) -> HostKind {
        self.kind
    }

    /// Its bytes: as many as were asked for, or some more.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match &self.inner {
            Inner::Mapped { region, .. } => region.as_slice(),
            // SAFETY: The range is ours until it is dropped, and was zeroed when it was allocated. The device writes
            // to it only in calls that borrow it mutably until the device is done.
            Inner::Allocated(memory) => unsafe { slice::from_raw_parts(memory.start.as_ptr(), memory.len) },
        }
    }

    /// Its bytes, to write to.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.inner {
            Inner::Mapped { region, .. } => region.as_mut_slice(),
            // SAFETY: As in `as_slice`, and `&mut self` keeps everyone else out.
            Inner::Allocated(memory) => unsafe {
                slice::from_raw_parts_mut(memory.start.as_ptr(), memory.len)
            },
        }
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({}, {} bytes)", self.kind.name(), self.as_slice().len())
    }
}

/// Memory that the driver allocated.
struct Allocated {
    device: Device,
    start: NonNull<u8>,
    len: usize,
    _reservation: Reservation,
}

// SAFETY: The range has one owner, like a `Box<[u8]>`, and any thread may give it back.
unsafe impl Send for Allocated {}
// SAFETY: A shared reference only reads.
unsafe impl Sync for Allocated {}

impl Allocated {
    fn new(
        device: &Device,
        budget: &Budget,
        what: &'static str,
        size: Bytes,
        flags: u32,
    ) -> Result<Self, Error> {
        let len = usize::try_from(size.get()).unwrap_or(usize::MAX);
        let reservation = budget.reserve(what, size)?;
        device.bind()?;
        // SAFETY: The context is current. The memory is zeroed below, before anybody sees it.
        let start = unsafe { result::malloc_host(len, flags) }.doing("allocating pinned host memory")?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(DeviceError::Length {
            what: "pinned host memory",
            found: 0,
            expected: len,
        })?;
        // SAFETY: The driver gave `len` bytes, which nobody else knows of.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { device: device.clone(), start, len, _reservation: reservation })
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        let context = self.device.context();
        context.record_err(context.bind_to_thread());
        // SAFETY: Allocated in `new` and freed only here; copies were waited for by whoever queued them.
        context.record_err(unsafe { result::free_host(self.start.as_ptr().cast()) });
    }
}

/// An arena that the driver holds in place.
pub(super) struct Pinned {
    device: Device,
    arena: Arena,
}

impl Pinned {
    pub(super) fn new(device: &Device, arena: &Arena) -> Result<Self, DeviceError> {
        device.bind()?;
        let start = arena.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: The range is mapped for as long as the arena is kept here. The driver only locks its pages.
        unsafe { sys::cuMemHostRegister_v2(start, arena.len(), sys::CU_MEMHOSTREGISTER_PORTABLE) }
            .result()
            .doing("pinning host memory")?;
        Ok(Self { device: device.clone(), arena: arena.clone() })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let context = self.device.context();
        context.record_err(context.bind_to_thread());
        let start = self.arena.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: Registered in `new` and unregistered only here, after the copies that read it.
        context.record_err(unsafe { sys::cuMemHostUnregister(start) }.result());
    }
}
