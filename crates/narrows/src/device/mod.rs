//! A CUDA device that steps are computed on.

mod assumed;
mod nvml;

use std::fmt;
use std::sync::Arc;

use narrows_kernels::Kernels;
use narrows_shard::Bytes;
use narrows_staging::device::{DeviceError, Event, Priority, Stream};

pub use self::assumed::AssumedDevice;
pub use self::nvml::Link;
use self::nvml::Managed;
use crate::error::Result;

/// A CUDA device with all kernels loaded. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    device: narrows_staging::device::Device,
    managed: Option<Managed>,
    kernels: Kernels,
    context: Bytes,
}

impl Device {
    /// How many devices the driver offers.
    ///
    /// # Errors
    /// There is no driver, or what it says.
    pub fn count() -> Result<usize> {
        Ok(narrows_staging::device::Device::count()?)
    }

    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// There is no driver, no such device, or no kernel for it.
    pub fn open(ordinal: usize) -> Result<Self> {
        // Before there is a context of ours: what is in use now is others'.
        let managed = narrows_staging::device::Device::pci_bus_id(ordinal)?.and_then(|id| Managed::find(&id));
        let device = narrows_staging::device::Device::open(ordinal)?;
        let kernels = Kernels::load(&device)?;
        // Streams take memory when something first runs on them. These are those that an engine makes.
        let streams = [Priority::Normal, Priority::High].map(|priority| Stream::new(&device, priority));
        for stream in streams {
            let stream = stream?;
            Event::waited_for(&device)?.record(&stream)?;
            stream.synchronize()?;
        }
        let context = used(&device, managed.as_ref())?;
        Ok(Self(Arc::new(Shared { device, managed, kernels, context })))
    }

    /// As [`Device::open`], but not what is a driver's imitation of a device.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_gpu(ordinal: usize) -> Result<Self> {
        let device = Self::open(ordinal)?;
        device.0.device.require_gpu()?;
        Ok(device)
    }

    /// The CUDA toolkit that the kernels of this program were compiled with, 13000 for 13.0; `None` if they were
    /// not.
    #[must_use]
    pub fn toolkit() -> Option<u32> {
        Kernels::toolkit()
    }

    /// The architectures that they were compiled for, 75 for compute capability 7.5.
    #[must_use]
    pub fn architectures() -> &'static [u32] {
        Kernels::architectures()
    }

    /// Whether it is the software driver, an instrument for tests.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.0.device.is_software()
    }

    /// Its number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.0.device.ordinal()
    }

    /// Its name, as the driver gives it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.device.name()
    }

    /// Its compute capability, `(major, minor)`.
    #[must_use]
    pub fn compute_capability(&self) -> (u32, u32) {
        self.0.device.compute_capability()
    }

    /// The newest CUDA that its driver speaks, 13000 for 13.0.
    #[must_use]
    pub fn driver_cuda(&self) -> u32 {
        self.0.device.driver_version()
    }

    /// The release of its driver, `580.65.06`, where NVIDIA's management library is installed.
    #[must_use]
    pub fn driver_release(&self) -> Option<String> {
        self.0.managed.as_ref().and_then(Managed::driver)
    }

    /// Its link to the host, where NVIDIA's management library is installed.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        self.0.managed.as_ref().and_then(Managed::link)
    }

    /// What was in use of its memory when the kernels had been loaded and streams had been made: the context of this
    /// process and, unless NVIDIA's management library is there to tell them apart, what other programs hold.
    #[must_use]
    pub fn context_bytes(&self) -> Bytes {
        self.0.context
    }

    /// What a budget for its memory is charged with before anything else: [`Device::context_bytes`], and what
    /// the driver may round up.
    #[must_use]
    pub fn reserved_bytes(&self) -> Bytes {
        reserved(self.context_bytes(), self.total())
    }

    /// What pinning so many bytes of host memory takes of its memory at most: page tables, eight bytes for each page of
    /// 4 KiB (measured on an H200: 1.91 MB for each GB).
    #[must_use]
    pub fn page_tables(pinned: Bytes) -> Bytes {
        Bytes(pinned.get().div_ceil(4096).saturating_mul(8))
    }

    /// All of its memory.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.0.device.total()
    }

    /// All of its memory but what others held when it was opened.
    #[must_use]
    pub fn available(&self) -> Bytes {
        self.total().saturating_sub(self.0.managed.as_ref().map_or(Bytes(0), Managed::before))
    }

    /// What is in use of its memory now: by this process or, without NVIDIA's management library, by all programs.
    ///
    /// # Errors
    /// What the driver says.
    pub fn used(&self) -> Result<Bytes> {
        Ok(used(&self.0.device, self.0.managed.as_ref())?)
    }

    pub(crate) fn raw(&self) -> &narrows_staging::device::Device {
        &self.0.device
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.0.kernels
    }
}

/// A context of a device with `total` memory, and what the driver may round up.
fn reserved(context: Bytes, total: Bytes) -> Bytes {
    // Allocations are made of 2 MiB pages on devices that have memory for many of them.
    const PAGE: Bytes = Bytes::mib(2);
    if total > Bytes::mib(1024) { context + PAGE } else { context }
}

fn used(
    device: &narrows_staging::device::Device,
    managed: Option<&Managed>,
) -> std::result::Result<Bytes, DeviceError> {
    match managed.and_then(Managed::used) {
        Some(used) => Ok(used),
        None => Ok(device.total().saturating_sub(device.free()?)),
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({:?})", self.name())
    }
}
