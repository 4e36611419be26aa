//! The memory of a CUDA device under a hard budget, streams, events, and copies from pinned memory.
//!
//! Everything goes through the driver's library, which is loaded when a device is first opened, so that a
//! program built with this starts on a machine without one. Nothing here allocates behind the caller's back or
//! waits for the device unless its documentation says so.

mod copier;
mod error;
mod event;
mod host;
mod memory;
mod pool;
mod stream;
mod transfer;

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};
use narrows_bytes::Bytes;

pub use copier::{Copied, Copier, DeviceRegion, Source};
pub use error::DeviceError;
use error::Doing as _;
pub use event::{Clock, Event, Events};
pub use host::{HostKind, HostMemory};
pub use memory::{Carving, DeviceArena, DeviceSlice};
pub use pool::{DevicePool, Pooled};
pub use stream::{Priority, Stream};
pub use transfer::{Lane, Transfer, Transfers};

/// What ranges of device memory start at a multiple of: what the driver aligns its own allocations to, and
/// enough for every vector load and bulk copy.
pub const DEVICE_ALIGNMENT: usize = 256;

/// A CUDA device and the one context of this process on it. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    context: Arc<CudaContext>,
    name: String,
    capability: (u32, u32),
    driver: u32,
    multiprocessors: u32,
    total: Bytes,
    context_bytes: Bytes,
}

impl Device {
    /// How many devices the driver offers.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], or what the driver says.
    pub fn count() -> Result<usize, DeviceError> {
        // SAFETY: Loads the driver's library, which runs nothing but its own initialisers.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        match CudaContext::device_count() {
            Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
            Err(error) => Err(DeviceError::driver("looking for devices", error)),
        }
    }

    /// Where device `ordinal` is on the PCI bus, as `0000:65:00.0`; makes no context. `None` if the driver does not
    /// say.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], [`DeviceError::NoDevice`], or what the driver says.
    pub fn pci_bus_id(ordinal: usize) -> Result<Option<String>, DeviceError> {
        use sys::CUdevice_attribute as Attribute;
        let count = Self::count()?;
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        let device = driver_device(ordinal)?;
        // SAFETY: `device` is one that the driver has just named.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let domain = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
        let bus = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
        let slot = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
        Ok(match (domain, bus, slot) {
            (Ok(domain), Ok(bus), Ok(slot)) => Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.0")),
            _ => None,
        })
    }

    /// Opens device `ordinal`. Takes some hundred milliseconds and some hundred MiB of the device's memory,
    /// which are [`Device::context_bytes`].
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], [`DeviceError::NoDevice`], or what the driver says.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        // Passes take long: whoever waits for the device sleeps, and leaves the processor to those who read.
        let flags = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        let number = driver_device(ordinal)?;
        // SAFETY: `number` is a device that the driver has just named.
        unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(number, flags) }
            .result()
            .doing("choosing how to wait for the device")?;
        let context = CudaContext::new(ordinal).doing("opening the device")?;
        // SAFETY: Nothing here or above uses the buffers whose use cudarc would track; ranges that cross
        // streams are ordered by events that are recorded explicitly.
        unsafe { context.disable_event_tracking() };
        let (free, total) = context.mem_get_info().doing("asking for its memory")?;
        let (major, minor) = context.compute_capability().doing("asking for its compute capability")?;
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .doing("asking for its multiprocessors")?;
        let mut driver = 0;
        // SAFETY: Writes one int.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().doing("asking for the driver's version")?;
        Ok(Self(Arc::new(Shared {
            name: context.name().doing("asking for its name")?,
            capability: (major.unsigned_abs(), minor.unsigned_abs()),
            driver: driver.unsigned_abs(),
            multiprocessors: multiprocessors.unsigned_abs(),
            total: Bytes(total as u64),
            context_bytes: Bytes((total - free.min(total)) as u64),
            context,
        })))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it is the software driver of the tests, which says so in its name.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.name().contains("software")
    }

    /// Refuses the software driver, for whoever takes the first device that there is.
    ///
    /// # Errors
    /// [`DeviceError::Software`].
    pub fn require_gpu(&self) -> Result<(), DeviceError> {
        if self.is_software() { Err(DeviceError::Software { name: self.name().to_owned() }) } else { Ok(()) }
    }

    /// Its number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// Its compute capability, `(major, minor)`.
    #[must_use]
    pub fn compute_capability(&self) -> (u32, u32) {
        self.0.capability
    }

    /// The newest CUDA that its driver speaks, as the driver writes it: 13000 is 13.0.
    #[must_use]
    pub fn driver_version(&self) -> u32 {
        self.0.driver
    }

    /// How many multiprocessors it has.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// All of its memory.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.0.total
    }

    /// Its second-level cache, which all multiprocessors share.
    ///
    /// # Errors
    /// What the driver says.
    pub fn cache_bytes(&self) -> Result<Bytes, DeviceError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let bytes = self.0.context.attribute(attribute).doing("asking for its cache")?;
        Ok(Bytes(u64::from(bytes.unsigned_abs())))
    }

    /// What was in use when the context had just been opened: the context itself, and what other programs
    /// hold, which the driver does not tell apart.
    #[must_use]
    pub fn context_bytes(&self) -> Bytes {
        self.0.context_bytes
    }

    /// What is free now, for all programs.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free(&self) -> Result<Bytes, DeviceError> {
        let (free, _) = self.0.context.mem_get_info().doing("asking for its free memory")?;
        Ok(Bytes(free as u64))
    }

    /// Makes the context that of this thread, as the calls of the driver need it.
    pub(crate) fn bind(&self) -> Result<(), DeviceError> {
        self.0.context.bind_to_thread().doing("choosing the device")
    }

    /// The context, for whoever loads kernels.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }
}

fn driver_device(ordinal: usize) -> Result<sys::CUdevice, DeviceError> {
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    result::device::get(number).doing("looking for the device")
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {:?})", self.ordinal(), self.name())
    }
}
