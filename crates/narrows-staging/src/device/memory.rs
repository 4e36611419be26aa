use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use narrows_bytes::Bytes;

use super::error::is_out_of_memory;
use super::{DEVICE_ALIGNMENT, Device, DeviceError};
use crate::{Budget, Error, Reservation};

/// How a [`DeviceArena`] gets its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carving {
    /// One allocation for all: what runs.
    #[default]
    Together,
    /// An allocation for each range that is carved: what tests use, so that an access beyond a range is one
    /// beyond an allocation, which a checking driver sees.
    Apart,
}

/// Device memory reserved against a [`Budget`], to be carved into [`DeviceSlice`]s.
///
/// As with the arena of the host, a range that is dropped does not come back; all of it goes when the arena
/// and everything carved out of it are gone.
#[derive(Clone)]
pub struct DeviceArena(Arc<Shared>);

struct Shared {
    device: Device,
    allocation: Option<Arc<Allocation>>,
    apart: Mutex<()>,
    carved: AtomicUsize,
    reservation: Arc<Reservation>,
}

/// One allocation of the driver.
struct Allocation {
    device: Device,
    start: sys::CUdeviceptr,
    len: usize,
    /// The budget's bytes are free when the last allocation of an arena is.
    _reservation: Arc<Reservation>,
}

impl DeviceArena {
    /// Takes `size` bytes of the device, rounded up to [`DEVICE_ALIGNMENT`].
    ///
    /// # Errors
    /// [`Error::OverBudget`], or [`DeviceError::OutOfMemory`] where somebody else has the memory.
    pub fn new(
        device: &Device,
        budget: &Budget,
        what: &'static str,
        size: Bytes,
        carving: Carving,
    ) -> Result<Self, Error> {
        let len = usize::try_from(size.get()).ok().and_then(|n| n.checked_next_multiple_of(DEVICE_ALIGNMENT));
        let len = len.unwrap_or(usize::MAX);
        let reservation = Arc::new(budget.reserve(what, Bytes(len as u64))?);
        let allocation = match carving {
            Carving::Together if len > 0 => Some(Arc::new(Allocation::new(device, len, &reservation)?)),
            _ => None,
        };
        let device = device.clone();
        Ok(Self(Arc::new(Shared {
            device,
            allocation,
            apart: Mutex::default(),
            carved: AtomicUsize::new(0),
            reservation,
        })))
    }

    /// Takes the next `len` bytes. They hold whatever they held.
    ///
    /// # Errors
    /// [`Error::ArenaFull`] if fewer are left; then nothing is taken. [`DeviceError::OutOfMemory`] if ranges
    /// are allocated apart.
    pub fn carve(&self, len: usize) -> Result<DeviceSlice, Error> {
        let rounded = len.checked_next_multiple_of(DEVICE_ALIGNMENT).unwrap_or(usize::MAX);
        let take = |at: usize| at.checked_add(rounded).filter(|&end| end <= self.len());
        let at = match self.0.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(at) => at,
            Err(at) => {
                return Err(Error::ArenaFull {
                    what: self.0.reservation.what(),
                    wanted: Bytes(rounded as u64),
                    free: Bytes((self.len() - at) as u64),
                });
            }
        };
        match &self.0.allocation {
            Some(allocation) => Ok(DeviceSlice { allocation: allocation.clone(), at, len }),
            None => {
                let _one_at_a_time = self.0.apart.lock().unwrap_or_else(PoisonError::into_inner);
                let allocation = Allocation::new(&self.0.device, len.max(1), &self.0.reservation)?;
                Ok(DeviceSlice { allocation: Arc::new(allocation), at: 0, len })
            }
        }
    }

    /// How many bytes it has, carved or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.reservation.bytes().get() as usize
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes are not carved.
    #[must_use]
    pub fn free(&self) -> usize {
        self.len() - self.0.carved.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for DeviceArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceArena({:?}, {} bytes)", self.0.reservation.what(), self.len())
    }
}

impl Allocation {
    fn new(device: &Device, len: usize, reservation: &Arc<Reservation>) -> Result<Self, DeviceError> {
        device.bind()?;
        // SAFETY: The context is current; the driver either gives memory or an error.
        match unsafe { result::malloc_sync(len) } {
            Ok(start) => Ok(Self { device: device.clone(), start, len, _reservation: reservation.clone() }),
            Err(error) if is_out_of_memory(&error) => Err(DeviceError::OutOfMemory {
                what: reservation.what(),
                wanted: Bytes(len as u64),
                free: device.free()?,
            }),
            Err(error) => Err(DeviceError::driver("allocating device memory", error)),
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let context = self.device.context();
        context.record_err(context.bind_to_thread());
        // Work that is queued may still use the memory.
        context.record_err(context.synchronize());
        // SAFETY: Allocated in `new`, freed only here, and no longer in use.
        context.record_err(unsafe { result::free_sync(self.start) });
    }
}

/// A range of device memory. Clones are the same range.
///
/// The host never looks at the bytes, so a range is shared like a file: who writes and who reads is ordered by
/// streams and events, and a race gives wrong numbers, not undefined behaviour of this program.
#[derive(Clone)]
pub struct DeviceSlice {
    allocation: Arc<Allocation>,
    at: usize,
    len: usize,
}

impl DeviceSlice {
    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address on the device, for kernels.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.allocation.start + self.at as u64
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if it reaches beyond this one.
    pub fn slice(&self, range: Range<usize>) -> Result<Self, DeviceError> {
        if range.start > range.end || range.end > self.len {
            return Err(DeviceError::Length {
                what: "a part of device memory",
                found: range.end,
                expected: self.len,
            });
        }
        let Range { start, end } = range;
        Ok(Self { allocation: self.allocation.clone(), at: self.at + start, len: end - start })
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Device {
        debug_assert!(self.at + self.len <= self.allocation.len);
        &self.allocation.device
    }
}

impl fmt::Debug for DeviceSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSlice({} bytes at {:#x})", self.len, self.address())
    }
}
