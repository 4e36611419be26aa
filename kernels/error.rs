use narrows_shard::Encoding;
use narrows_staging::device::DeviceError;

/// Why an operation was refused. Nothing has been queued when an operation returns one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This program was built without nvcc.
    #[error("this program was built without CUDA kernels: nvcc was not found when it was built")]
    NotBuilt,
    /// The driver is older than the toolkit that the kernels were compiled with.
    #[error(
        "the CUDA driver is too old: it speaks CUDA {}.{}, the kernels were compiled with {}.{}",
        driver / 1000, driver % 1000 / 10, toolkit / 1000, toolkit % 1000 / 10
    )]
    DriverTooOld {
        /// The newest CUDA of the driver, 13000 for 13.0.
        driver: u32,
        /// That of the toolkit.
        toolkit: u32,
    },
    /// No kernel in this program runs on this device.
    #[error(
        "{name} has compute capability {}.{}, and this program's kernels are for {}",
        capability.0, capability.1, architectures(built)
    )]
    Architecture {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// What the kernels were compiled for, 75 for 7.5.
        built: &'static [u32],
    },
    /// A range does not have the length that the other arguments call for.
    #[error("{what} has length {found}, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// How long it must be.
        expected: usize,
        /// How long it is.
        found: usize,
    },
    /// A range is not a whole number of elements or rows.
    #[error("{what} has length {found}, which is not a multiple of {unit}")]
    Ragged {
        /// Which argument.
        what: &'static str,
        /// The unit.
        unit: usize,
        /// The length.
        found: usize,
    },
    /// A product of sizes is more than the address space.
    #[error("the size of {what} overflows")]
    Overflow {
        /// Which.
        what: &'static str,
    },
    /// A size that the kernel cannot do.
    #[error("{what} is {found}; the kernel takes {takes}")]
    Shape {
        /// Which size.
        what: &'static str,
        /// The size.
        found: usize,
        /// What it could do.
        takes: &'static str,
    },
    /// Something is in an encoding that only weights of a matrix product can be in.
    #[error("{what} cannot be in {encoding}")]
    Quantised {
        /// What.
        what: &'static str,
        /// The encoding.
        encoding: Encoding,
    },
    /// Something should be quantised and is not.
    #[error("weights in {encoding} are not quantised")]
    NotQuantised {
        /// The encoding.
        encoding: Encoding,
    },
    /// Scores cannot be multiplied with this.
    #[error("the scale of an attention is {found}; it must be positive and finite")]
    Scale {
        /// The scale.
        found: f32,
    },
    /// Scores cannot be capped at this.
    #[error("the softcap of an attention is {found}; it must be positive and finite")]
    Softcap {
        /// The cap.
        found: f32,
    },
    /// The device or its driver refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn architectures(built: &[u32]) -> String {
    built.iter().map(|arch| format!("{}.{}", arch / 10, arch % 10)).collect::<Vec<_>>().join(", ")
}

/// `Ok` where `found == expected`.
pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

/// How many rows of `row` elements make `found` elements.
pub(crate) fn check_rows(what: &'static str, found: usize, row: usize) -> Result<usize> {
    match (found.checked_div(row), found.checked_rem(row)) {
        (Some(rows), Some(0)) => Ok(rows),
        _ => Err(Error::Ragged { what, unit: row, found }),
    }
}

/// `Ok` where there is at least one.
pub(crate) fn check_nonzero(what: &'static str, found: usize) -> Result<()> {
    if found > 0 { Ok(()) } else { Err(Error::Shape { what, found, takes: "at least 1" }) }
}

/// The product of sizes that a caller chose.
pub(crate) fn product(what: &'static str, sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(1_usize, |n, &size| n.checked_mul(size)).ok_or(Error::Overflow { what })
}

/// A size as kernels take it. No more than fits an `int`, so that they may add to it.
pub(crate) fn narrow(what: &'static str, found: usize) -> Result<u32> {
    match u32::try_from(found) {
        Ok(size) if size <= i32::MAX as u32 => Ok(size),
        _ => Err(Error::Shape { what, found, takes: "at most 2147483647" }),
    }
}
