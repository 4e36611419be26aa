use cudarc::driver::{DriverError, sys};
use narrows_bytes::Bytes;

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver's library is not on this machine.
    #[error("no CUDA driver on this machine (libcuda.so is not found)")]
    NoDriver,
    /// The driver has no such device.
    #[error("there is no CUDA device {ordinal}: the driver offers {count}")]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// It is the software driver, which is there for tests, and nobody asked for it.
    #[error("{name}: the software driver is used only when it is named")]
    Software {
        /// Its name.
        name: String,
    },
    /// The device has less memory free than the budget promised.
    #[error("the device has no {wanted} for {what}: {free} are free")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        wanted: Bytes,
        /// What the device has left.
        free: Bytes,
    },
    /// A range reaches beyond the memory it is taken from, or two ranges that must match differ.
    #[error("{what}: {found} bytes where {expected} are")]
    Length {
        /// Which range.
        what: &'static str,
        /// How long it is.
        found: usize,
        /// How long it must be, or may be at most.
        expected: usize,
    },
    /// The driver refused a call, or reports what failed before it: a failed kernel makes every later call
    /// fail.
    #[error("{doing}: the CUDA driver says {name} ({text})")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The name of the error, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// The driver's words for it.
        text: String,
    },
}

impl DeviceError {
    /// The driver's refusal in words, for whoever calls it on a device that was opened here: it can be asked for
    /// them only while its library is there.
    #[must_use]
    pub fn driver(doing: &'static str, error: DriverError) -> Self {
        let word = |text: Result<&std::ffi::CStr, _>| {
            text.map_or_else(
                |_| format!("error {}", error.0 as u32),
                |text| text.to_string_lossy().into_owned(),
            )
        };
        Self::Driver { doing, name: word(error.error_name()), text: word(error.error_string()) }
    }
}

/// Names what was being done when the driver refused.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, DeviceError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, what: &'static str) -> Result<T, DeviceError> {
        self.map_err(|error| DeviceError::driver(what, error))
    }
}

pub(crate) fn is_out_of_memory(error: &DriverError) -> bool {
    error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
}
