//! Errors as the user meets them: one line, its causes, a hint, an exit code.

use std::error::Error as StdError;
use std::path::PathBuf;

use narrows::Bytes;

/// Why the program ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Model(#[from] narrows::Error),
    #[error(transparent)]
    Shard(#[from] narrows_shard::Error),
    #[error(transparent)]
    Bench(#[from] narrows_bench::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: {what}")]
    Input { path: PathBuf, what: String },
    #[error("{path}: no such model directory, and no shape is called that")]
    NoModel { path: PathBuf },
    #[error("the plan takes {needed} of memory, and this machine has {available} available")]
    DoesNotFit { needed: Bytes, available: Bytes },
    #[error("{0}")]
    Device(String),
    #[error("interrupted")]
    Interrupted { code: u8 },
    /// Whoever read the output has gone: nobody is left to tell.
    #[error("stdout was closed")]
    StdoutClosed,
    #[error("cannot write to stdout: {0}")]
    Stdout(std::io::Error),
    #[error("{0}")]
    Other(String),
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The documented exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        use narrows::Error as E;
        use narrows_shard::Error as S;
        match self {
            Self::Model(E::Shard(error)) | Self::Shard(error) => match error {
                S::NotFound { .. } => 3,
                S::Invalid { .. } => 4,
                S::Io { .. } | S::NoSpace { .. } | S::Checksum { .. } => 9,
                _ => 1,
            },
            Self::Model(error) if error.is_device_memory() => 5,
            Self::Model(error) if error.is_device() => 6,
            Self::Model(error) => match error {
                E::Missing { .. } | E::NoFiles { .. } => 3,
                E::Invalid { .. } | E::Unsupported { .. } => 4,
                E::OutOfMemory { .. } | E::DoesNotFit { .. } | E::VramBeyondDevice { .. } => 5,
                E::Stream(_) | E::Staging(_) => 9,
                E::PromptTooLong { .. } => 7,
                E::Read { .. } => 9,
                E::Request(_) => 2,
                _ => 1,
            },
            Self::Bench(error) if error.is_request() => 2,
            Self::Bench(error) if error.is_memory() => 5,
            Self::Bench(error) if error.is_device() => 6,
            Self::Bench(narrows_bench::Error::Picture { .. }) => 1,
            Self::Bench(_) => 9,
            Self::Usage(_) | Self::Input { .. } => 2,
            Self::NoModel { .. } => 3,
            Self::DoesNotFit { .. } => 5,
            Self::Device(_) => 6,
            Self::File { .. } | Self::Stdout(_) => 9,
            Self::Interrupted { code } => *code,
            Self::StdoutClosed => 0,
            Self::Other(_) => 1,
        }
    }

    /// What to try.
    fn hint(&self) -> Option<String> {
        match self {
            Self::Model(narrows::Error::Shard(error)) | Self::Shard(error) => error.hint().map(str::to_owned),
            Self::Model(narrows::Error::PromptTooLong { prompt, .. }) => {
                Some(format!("--ctx {} makes room, if the model can use that many positions", prompt + 64))
            }
            Self::Model(narrows::Error::Missing { path, .. }) if path.ends_with("tokenizer.json") => {
                Some("give token ids with --ids, or add the tokenizer's files to the model".to_owned())
            }
            Self::Model(narrows::Error::DoesNotFit { memory, minimum, .. }) => Some(format!(
                "--{} {}M is the smallest that works; a smaller --ctx or --chunk, or --kv-dtype bf16, need less",
                memory.to_lowercase(),
                minimum.get().div_ceil(1 << 20)
            )),
            Self::Model(narrows::Error::VramBeyondDevice { .. }) => {
                Some("--vram auto takes 90 % of what is free".to_owned())
            }
            Self::Model(error) if error.is_device_memory() => {
                Some("somebody else uses the device's memory: a smaller --vram leaves it to them".to_owned())
            }
            Self::Model(error) if error.is_device() => Some("--device cpu computes on the CPU".to_owned()),
            Self::NoModel { .. } => {
                let shapes: Vec<_> = narrows::Synth::names().collect();
                Some(format!("shapes are {}", shapes.join(", ")))
            }
            Self::DoesNotFit { .. } => Some("--ram auto takes 80 % of what is available".to_owned()),
            Self::Model(narrows::Error::OutOfMemory { .. }) => {
                Some("a smaller --ctx or --kv-dtype bf16 makes the KV cache smaller".to_owned())
            }
            Self::Device(_) => Some("--device cpu computes on the CPU".to_owned()),
            Self::Bench(error) if error.is_memory() => {
                Some("smaller sizes, or fewer rows, need less".to_owned())
            }
            Self::Bench(error) if error.is_device() => {
                Some("`narrows doctor` shows which devices there are, and what is missing".to_owned())
            }
            _ => None,
        }
    }

    /// Prints it on stderr.
    #[allow(clippy::print_stderr)] // This is where the program says what went wrong.
    pub(crate) fn report(&self) {
        if matches!(self, Self::StdoutClosed | Self::Interrupted { .. }) {
            return;
        }
        let message = self.to_string();
        eprintln!("error: {message}");
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Messages that already end in their cause say it once.
            if !message.contains(&text) {
                eprintln!("caused by: {text}");
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            eprintln!("hint: {hint}");
        }
    }
}
