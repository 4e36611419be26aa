//! A CUDA device that steps are computed on.

use std::fmt;
use std::sync::Arc;

use narrows_kernels::Kernels;
use narrows_shard::Bytes;
use narrows_staging::device::DeviceError;

use crate::error::{Error, Result};

/// A CUDA device with all kernels loaded. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Shared>);

struct Shared {
    device: narrows_staging::device::Device,
    kernels: Kernels,
    context: Bytes,
}

impl Device {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// There is no driver, no such device, or no kernel for it.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = narrows_staging::device::Device::open(ordinal)?;
        let kernels = Kernels::load(&device)?;
        let context = used(&device)?;
        Ok(Self(Arc::new(Shared { device, kernels, context })))
    }

    /// As [`Device::open`], but not what is a driver's imitation of a device.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_gpu(ordinal: usize) -> Result<Self> {
        let device = Self::open(ordinal)?;
        match device.is_software() {
            true => Err(Error::Request(format!("{} is not chosen unasked", device.name()))),
            false => Ok(device),
        }
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

    /// What was in use of its memory when the kernels had been loaded: the context of this process, and what other
    /// programs hold.
    #[must_use]
    pub fn context_bytes(&self) -> Bytes {
        self.0.context
    }

    /// What a budget for its memory is charged with before anything else: [`Device::context_bytes`], and what
    /// the driver may round up.
    #[must_use]
    pub fn reserved_bytes(&self) -> Bytes {
        // Allocations are made of 2 MiB pages on devices that have memory for many of them.
        const PAGE: Bytes = Bytes::mib(2);
        if self.total() > Bytes::mib(1024) { self.context_bytes() + PAGE } else { self.context_bytes() }
    }

    /// All of its memory.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.0.device.total()
    }

    /// What is in use of its memory now, by all programs.
    ///
    /// # Errors
    /// What the driver says.
    pub fn used(&self) -> Result<Bytes> {
        Ok(used(&self.0.device)?)
    }

    pub(crate) fn raw(&self) -> &narrows_staging::device::Device {
        &self.0.device
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.0.kernels
    }
}

fn used(device: &narrows_staging::device::Device) -> std::result::Result<Bytes, DeviceError> {
    Ok(device.total().saturating_sub(device.free()?))
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({:?})", self.name())
    }
}
