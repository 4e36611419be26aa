use std::path::PathBuf;

use narrows_bytes::Bytes;

/// Why a bench did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory is not to be had.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no room for a test file.
    #[error("{}: a test file of {wanted} needs {wanted} of free space, and there are {free}", path.display())]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// What the file needs, with a margin that is left to others.
        wanted: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// A file has less than one read takes.
    #[error("{}: {size} is less than {wanted}, which one read takes", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// What it has, or what of it was to be read.
        size: Bytes,
        /// What one read takes.
        wanted: Bytes,
    },
    /// Settings that nothing can be measured with.
    #[error("{0}")]
    Settings(String),
    /// Reading or copying failed.
    #[error(transparent)]
    Staging(#[from] narrows_staging::Error),
    /// A kernel cannot be loaded, or refuses.
    #[error(transparent)]
    Kernels(#[from] narrows_kernels::Error),
    /// What arrived is not what was sent.
    #[error("{what}: byte {at} arrived as {found:#04x} and was {sent:#04x}")]
    Corrupt {
        /// Which copy.
        what: String,
        /// Where in it.
        at: usize,
        /// What is there.
        found: u8,
        /// What was sent.
        sent: u8,
    },
    /// A file of results that cannot be read.
    #[error("{}: {what}", path.display())]
    NotARecord {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A picture cannot be drawn.
    #[error("the picture {what}: {why}")]
    Picture {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The caller wanted no more.
    #[error("interrupted")]
    Interrupted,
}

/// The result of a bench.
pub type Result<T> = std::result::Result<T, Error>;

impl From<narrows_staging::device::DeviceError> for Error {
    fn from(error: narrows_staging::device::DeviceError) -> Self {
        Self::Staging(error.into())
    }
}

impl Error {
    /// Whether a device or its driver is to blame.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(
            self,
            Self::Staging(narrows_staging::Error::Device(_)) | Self::Kernels(_) | Self::Corrupt { .. }
        )
    }

    /// Whether there is less memory than what is measured needs, of the host or of the device.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        use narrows_staging::device::DeviceError::OutOfMemory;
        matches!(
            self,
            Self::Staging(
                narrows_staging::Error::OverBudget { .. }
                    | narrows_staging::Error::Device(OutOfMemory { .. })
            ) | Self::Kernels(narrows_kernels::Error::Device(OutOfMemory { .. }))
        )
    }

    /// Whether what was asked for is impossible.
    #[must_use]
    pub fn is_request(&self) -> bool {
        match self {
            Self::Settings(_) | Self::TooSmall { .. } | Self::NotARecord { .. } => true,
            Self::File { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}
