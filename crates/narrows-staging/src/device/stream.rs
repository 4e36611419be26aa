use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::error::Doing as _;
use super::{Device, DeviceError, DeviceSlice, Event};

/// Which of two streams goes first where both could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The device's lowest.
    Normal,
    /// The device's highest, for copies that others wait for.
    High,
}

/// A queue of work for the device, done in order. Clones are the same queue.
#[derive(Clone)]
pub struct Stream {
    device: Device,
    stream: Arc<CudaStream>,
}

impl Stream {
    /// Makes a stream that waits for no other.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device, priority: Priority) -> Result<Self, DeviceError> {
        let context = device.context();
        device.bind()?;
        let stream = match priority {
            Priority::Normal => context.new_stream(),
            Priority::High => {
                let (_, greatest) =
                    result::stream::get_priority_range().doing("asking for stream priorities")?;
                context.new_stream_with_priority(greatest)
            }
        };
        Ok(Self { device: device.clone(), stream: stream.doing("making a stream")? })
    }

    /// The device that works on it.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The driver's stream, for whoever launches kernels.
    #[must_use]
    pub fn raw(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Lets the device, not the host, wait at this point until `event` has happened.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        self.stream.wait(event.raw()).doing("waiting for another stream")
    }

    /// Blocks until everything queued so far is done.
    ///
    /// # Errors
    /// What the driver says, also of kernels and copies that failed since.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().doing("waiting for the device")
    }

    /// Copies `from` to the device. Blocks until it is there: for what is small, or loaded once.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if the lengths differ, or what the driver says.
    pub fn upload(&self, from: &[u8], to: &DeviceSlice) -> Result<(), DeviceError> {
        same_length("bytes copied to the device", from.len(), to.len())?;
        if from.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: `to` is as long as `from` and lives in an allocation that `to` keeps; `from` stays borrowed
        // until the stream has been waited for.
        unsafe { result::memcpy_htod_async(to.address(), from, self.stream.cu_stream()) }
            .doing("copying to the device")?;
        self.synchronize()
    }

    /// Copies `from` to the host. Blocks until it is there.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if the lengths differ, or what the driver says.
    pub fn download(&self, from: &DeviceSlice, to: &mut [u8]) -> Result<(), DeviceError> {
        same_length("bytes copied from the device", to.len(), from.len())?;
        if to.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: `to` is as long as `from`, and stays borrowed until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.stream.cu_stream()) }
            .doing("copying from the device")?;
        self.synchronize()
    }

    /// Copies within the device, in the order of the stream. The ranges must not overlap.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if the lengths differ, or what the driver says.
    pub fn copy(&self, from: &DeviceSlice, to: &DeviceSlice) -> Result<(), DeviceError> {
        same_length("bytes copied on the device", from.len(), to.len())?;
        if from.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: Both ranges have that length and live in allocations that their owners keep.
        unsafe {
            result::memcpy_dtod_async(to.address(), from.address(), from.len(), self.stream.cu_stream())
        }
        .doing("copying on the device")
    }

    /// Fills `to` with zeros, in the order of the stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zero(&self, to: &DeviceSlice) -> Result<(), DeviceError> {
        if to.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: The range lives in an allocation that `to` keeps.
        unsafe { result::memset_d8_async(to.address(), 0, to.len(), self.stream.cu_stream()) }
            .doing("clearing device memory")
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?})", self.stream.cu_stream())
    }
}

pub(super) fn same_length(what: &'static str, found: usize, expected: usize) -> Result<(), DeviceError> {
    if found == expected { Ok(()) } else { Err(DeviceError::Length { what, found, expected }) }
}
