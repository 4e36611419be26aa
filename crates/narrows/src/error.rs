//! What can go wrong between a model directory and its text.

use std::path::{Path, PathBuf};

use narrows_staging::device::DeviceError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights could not be opened, read or packed.
    #[error(transparent)]
    Shard(#[from] narrows_shard::Error),
    /// An operation was refused: a shape does not fit, or threads could not be started.
    #[error(transparent)]
    Cpu(#[from] narrows_cpu::Error),
    /// A kernel was refused or could not be loaded.
    #[error(transparent)]
    Kernels(#[from] narrows_kernels::Error),
    /// A device refused.
    #[error(transparent)]
    Device(#[from] narrows_staging::device::DeviceError),
    /// What failed while computing on a tile.
    #[error("{tile}: {source}")]
    Tile {
        /// The tile.
        tile: String,
        /// What failed.
        source: Box<Error>,
    },
    /// Memory was refused by the budget or by the system.
    #[error(transparent)]
    Staging(#[from] narrows_staging::Error),
    /// Weights could not be streamed.
    #[error(transparent)]
    Stream(#[from] narrows_stream::Error),
    /// The model needs more memory than its budget.
    #[error("the model needs {} of {memory} and its budget is {budget}", mib(*minimum))]
    DoesNotFit {
        /// Which memory: `RAM`, `VRAM`.
        memory: &'static str,
        /// The smallest budget that works.
        minimum: narrows_shard::Bytes,
        /// The budget.
        budget: narrows_shard::Bytes,
    },
    /// The budget is more than the device has.
    #[error("{budget} of VRAM were asked for, and {device} has {available}")]
    VramBeyondDevice {
        /// The budget.
        budget: narrows_shard::Bytes,
        /// The device's name.
        device: String,
        /// What it has that others do not hold.
        available: narrows_shard::Bytes,
    },
    /// A file that a model cannot do without is not there.
    #[error("{path}: {what}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is needed for.
        what: String,
    },
    /// Weights were to be read of a model that is described and has no files.
    #[error("{model}: no files hold its weights")]
    NoFiles {
        /// The model.
        model: PathBuf,
    },
    /// A file says something that cannot be true.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file asks for something that this version does not compute.
    #[error("{path}: {what} is not supported")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, by its name there.
        what: String,
    },
    /// Something that cannot happen did: a fault of this crate.
    #[error("internal error: {0}")]
    Internal(&'static str),
    /// The caller ended the computation.
    #[error("cancelled")]
    Cancelled,
    /// A request that no model could answer.
    #[error("{0}")]
    Request(String),
    /// The prompt has more tokens than the context holds.
    #[error("the prompt has {prompt} tokens and the context holds {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the context.
        context: usize,
    },
    /// A sequence is longer than all that memory was set aside for.
    #[error(
        "a sequence of {needed} positions was asked for, and memory was set aside for {planned}: a larger workload \
         makes room"
    )]
    BeyondWorkload {
        /// Positions of the sequence, prompt and new tokens together.
        needed: usize,
        /// Positions that the engine's plan has memory for.
        planned: usize,
    },
    /// What was computed is no number any more: weights hold NaN or infinity, or a value left the range of its
    /// encoding.
    #[error("{what}{} not finite (NaN or infinity) at position {position}", of_layer(*layer))]
    NotFinite {
        /// What is not: `the logits`.
        what: &'static str,
        /// The layer that it was noticed in, if it was in one.
        layer: Option<usize>,
        /// The position of its sequence.
        position: usize,
    },
    /// Memory for the weights or the KV cache could not be had.
    #[error("not enough memory: {what} needs {needed}")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// How much was asked for.
        needed: narrows_shard::Bytes,
    },
}

fn of_layer(layer: Option<usize>) -> String {
    layer.map_or_else(|| " are".to_owned(), |layer| format!(" of layer {layer} are"))
}

/// A size in whole MiB, or GiB where those are many, rounded up: as a budget it is enough.
fn mib(bytes: narrows_shard::Bytes) -> String {
    match bytes.get().div_ceil(1 << 20) {
        mib if mib < 65_536 => format!("{mib} MiB"),
        mib => format!("{} GiB", mib.div_ceil(1024)),
    }
}

impl Error {
    /// Whether a device, its driver or its kernels are to blame.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device_error().is_some() || matches!(self.cause(), Self::Kernels(_))
    }

    /// Whether a device has less memory than it had when the plan was made.
    #[must_use]
    pub fn is_device_memory(&self) -> bool {
        matches!(self.device_error(), Some(DeviceError::OutOfMemory { .. }))
    }

    /// The error behind the name of a tile.
    fn cause(&self) -> &Self {
        match self {
            Self::Tile { source, .. } => source.cause(),
            error => error,
        }
    }

    fn device_error(&self) -> Option<&DeviceError> {
        fn of(error: &narrows_staging::Error) -> Option<&DeviceError> {
            match error {
                narrows_staging::Error::Device(error) => Some(error),
                _ => None,
            }
        }
        match self.cause() {
            Self::Device(error) | Self::Kernels(narrows_kernels::Error::Device(error)) => Some(error),
            Self::Staging(error) | Self::Stream(narrows_stream::Error::Staging(error)) => of(error),
            Self::Stream(narrows_stream::Error::Read { source, .. }) => {
                let error = source.downcast_ref::<DeviceError>();
                error.or_else(|| source.downcast_ref::<narrows_staging::Error>().and_then(of))
            }
            _ => None,
        }
    }

    pub(crate) fn invalid(path: &Path, what: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<narrows_model::Error> for Error {
    fn from(error: narrows_model::Error) -> Self {
        match error {
            narrows_model::Error::Invalid { path, what } => Self::Invalid { path, what },
            narrows_model::Error::Unsupported { path, what } => Self::Unsupported { path, what },
        }
    }
}
