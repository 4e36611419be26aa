//! Errors as the user meets them: one line, its causes, a hint, an exit code.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};

use narrows::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::commands::SCHEMA_VERSION;
use crate::output::{one_line, to_stderr, write_json_once};

/// Why the program ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Model(#[from] narrows::Error),
    #[error(transparent)]
    Shard(#[from] narrows_shard::Error),
    #[error(transparent)]
    Bench(#[from] narrows_bench::Error),
    /// What the command line's parser refuses, in its own words.
    #[error("{}", first_line(.0))]
    CommandLine(Box<clap::Error>),
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: {what}")]
    Input { path: PathBuf, what: String },
    /// A text that takes more than the budget while it is encoded, of so many bytes if that is known.
    #[error("{path}: {} of text take more memory to encode than the budget of {budget}", long(*.size, *.room))]
    LongText { path: PathBuf, size: Option<Bytes>, room: Bytes, budget: Bytes },
    /// Token ids that take more than the budget while they are read.
    #[error("{path}: {size} of token ids take {needed} of memory to read, and the budget is {budget}")]
    ManyIds { path: PathBuf, size: Bytes, needed: Bytes, budget: Bytes },
    #[error("{path}: no such model directory")]
    NoModel { path: PathBuf, hint: String },
    /// What is there is something else than a model that is read here.
    #[error("{path}: {what}")]
    NotAModel { path: PathBuf, what: String, hint: String },
    /// A plan with tuning flags that does not fit.
    #[error("{source}")]
    Tuned { source: narrows::Error, flags: String },
    #[error("the plan takes {needed} of memory, and this machine has {available} available")]
    DoesNotFit { needed: Bytes, available: Bytes },
    /// Memory of a device was named, by its size or otherwise, and there is no device.
    #[error("--vram: no GPU computes here: {why}")]
    NoDevice { why: String, vram: Option<Bytes> },
    /// A plan for memory of a device that is named and not here.
    #[error("{0}")]
    NamedDevice(narrows::Error),
    #[error("interrupted")]
    Interrupted { code: u8 },
    /// Whoever read the output has gone: nobody is left to tell.
    #[error("stdout was closed")]
    StdoutClosed,
    #[error("cannot write to stdout: {0}")]
    Stdout(std::io::Error),
    /// A fault of the program, which the panic hook has reported.
    #[error("internal")]
    Panic,
    #[error("{0}")]
    Other(String),
}

/// The sentence of a parser's error, with the list that it may end in, without usage and suggestions.
fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default();
    let mut sentence = line.strip_prefix("error: ").unwrap_or(line).to_owned();
    if sentence.ends_with(':') {
        let list: Vec<_> = lines.take_while(|line| line.starts_with("  ")).map(str::trim).collect();
        sentence += &format!(" {}", list.join(", "));
    }
    sentence
}

/// How long a text is that is longer than `room`.
fn long(size: Option<Bytes>, room: Bytes) -> String {
    size.map_or_else(|| format!("more than {room}"), |size| size.to_string())
}

/// A size as a flag takes it.
fn exactly(size: Bytes) -> String {
    match size.get() {
        n if n % (1 << 30) == 0 => format!("{}G", n >> 30),
        n if n % (1 << 20) == 0 => format!("{}M", n >> 20),
        n => n.to_string(),
    }
}

/// What to do instead of a command that programs of this kind have and this one does not.
fn unknown_command(error: &clap::Error) -> Option<String> {
    let clap::error::ContextValue::String(name) = error.get(clap::error::ContextKind::InvalidSubcommand)?
    else {
        return None;
    };
    let instead = match name.as_str() {
        "chat" | "generate" | "complete" | "prompt" => {
            "`narrows run MODEL` chats, `narrows run MODEL PROMPT` answers"
        }
        "pull" | "download" => {
            "narrows downloads nothing yet: `hf download ORG/NAME`, then `narrows run ORG/NAME`"
        }
        "list" | "ls" | "ps" | "rm" | "cache" => "narrows keeps no models of its own: a model is a directory",
        "serve" | "server" => "narrows has no server yet: `narrows run MODEL --json` is for programs",
        "batch" => "`narrows run MODEL --ids FILE` continues several prompts of token ids in one pass",
        "show" | "info" => "`narrows inspect MODEL` shows a model",
        "version" => "`narrows --version`",
        "quantize" | "quantise" | "convert" => "`narrows pack MODEL -o DIR --quant q8` or `nf4`",
        "perplexity" | "ppl" => "`narrows eval MODEL -f TEXT` measures perplexity",
        "fit" | "estimate" => "`narrows plan MODEL` says whether it fits and how fast it will be",
        _ => return None,
    };
    Some(instead.to_owned())
}

/// What to do instead of a flag that programs of this kind have and this one does not.
fn unknown_flag(error: &clap::Error) -> Option<String> {
    let clap::error::ContextValue::String(name) = error.get(clap::error::ContextKind::InvalidArg)? else {
        return None;
    };
    let instead = match name.as_str() {
        "--quick" => {
            "`narrows verify` reads every byte; `narrows inspect MODEL` looks at headers and sizes only"
        }
        "--pull" => "narrows downloads nothing yet: `hf download ORG/NAME`, then `narrows run ORG/NAME`",
        "-m" | "--model" => "the model is the first argument: `narrows run MODEL`",
        "-ngl" | "--n-gpu-layers" | "--gpu-layers" | "--num-gpu" => {
            "narrows finds a place for each weight itself; --vram SIZE caps what it takes of a GPU"
        }
        "-c" | "--ctx-size" | "--num-ctx" => "--ctx N is the length of the context",
        _ => return None,
    };
    (error.kind() == clap::error::ErrorKind::UnknownArgument).then(|| instead.to_owned())
}

/// An error as a JSON document.
#[derive(JsonSchema, Serialize)]
pub(crate) struct ErrorReport {
    schema_version: u32,
    error: ErrorBody,
}

#[derive(JsonSchema, Serialize)]
struct ErrorBody {
    /// The exit code.
    code: u8,
    kind: &'static str,
    message: String,
    hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum_bytes: Option<u64>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// What the parser refuses. Where there is a sentence about what was meant, its guess by letters is left out.
    pub(crate) fn command_line(mut error: clap::Error) -> Self {
        if unknown_flag(&error).is_some() {
            error.remove(clap::error::ContextKind::SuggestedArg);
        }
        Self::CommandLine(Box::new(error))
    }

    /// The documented exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        use narrows::Error as E;
        use narrows_shard::Error as S;
        match self {
            Self::Model(E::Shard(error)) | Self::Shard(error) => match error {
                S::NotFound { .. } => 3,
                S::Invalid { .. } => 4,
                S::Io { .. } | S::NoSpace { .. } | S::Checksum { .. } | S::Changed { .. } => 9,
                S::Overlap { .. } => 2,
                _ => 1,
            },
            Self::Model(error) if error.is_device_memory() => 5,
            Self::Model(error) if error.is_device() => 6,
            Self::Model(error) => match error {
                // A model of which only the tokenizer is missing is there, and not complete.
                E::Missing { path, .. } if path.ends_with("tokenizer.json") => 4,
                E::Missing { .. } | E::NoFiles { .. } => 3,
                E::Invalid { .. } | E::Unsupported { .. } => 4,
                E::OutOfMemory { .. }
                | E::BeyondWorkload { .. }
                | E::DoesNotFit { .. }
                | E::VramBeyondDevice { .. } => 5,
                E::Stream(_) | E::Staging(_) => 9,
                E::PromptTooLong { .. } => 7,
                E::NotFinite { .. } => 8,
                E::Request(_) => 2,
                _ => 1,
            },
            Self::Bench(error) if error.is_request() => 2,
            Self::Bench(error) if error.is_memory() => 5,
            Self::Bench(error) if error.is_device() => 6,
            Self::Bench(narrows_bench::Error::Picture { .. }) => 1,
            Self::Bench(_) => 9,
            Self::CommandLine(_) | Self::Usage(_) | Self::Input { .. } => 2,
            Self::NoModel { .. } => 3,
            Self::NotAModel { .. } => 4,
            Self::Tuned { .. } | Self::DoesNotFit { .. } | Self::LongText { .. } | Self::ManyIds { .. } => 5,
            Self::NoDevice { .. } | Self::NamedDevice(_) => 6,
            Self::File { .. } | Self::Stdout(_) => 9,
            Self::Interrupted { code } => *code,
            Self::StdoutClosed => 0,
            Self::Panic | Self::Other(_) => 1,
        }
    }

    /// Whether the system gives no more open files, to this process or to all.
    fn is_too_many_files(&self) -> bool {
        use rustix::io::Errno;

        let mut cause: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = cause {
            let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            if code.is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
            {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// What to try.
    fn hint(&self) -> Option<String> {
        if self.is_too_many_files() {
            return Some(
                "every weight file stays open: `ulimit -n 65536` allows more, as far as the system's hard limit does"
                    .to_owned(),
            );
        }
        match self {
            Self::CommandLine(error) => unknown_command(error).or_else(|| unknown_flag(error)),
            Self::Model(narrows::Error::Shard(error)) | Self::Shard(error) => error.hint().map(str::to_owned),
            Self::Model(narrows::Error::NotFinite { .. }) => Some(
                "the weights hold such values, or one left the range of --kv-dtype; `narrows verify` checks a pack"
                    .to_owned(),
            ),
            Self::Model(narrows::Error::PromptTooLong { prompt, .. }) => {
                Some(format!("--ctx {} makes room, if the model can use that many positions", prompt + 64))
            }
            Self::Model(narrows::Error::Missing { path, .. }) if path.ends_with("tokenizer.json") => {
                let dir = path.parent().unwrap_or(Path::new("."));
                Some(match dir.join("tekken.json").exists() {
                    true => "the model as it is published for transformers has a tokenizer.json".to_owned(),
                    false => "give token ids with --ids, or add the tokenizer's files to the model".to_owned(),
                })
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
            Self::NoModel { hint, .. } | Self::NotAModel { hint, .. } => Some(hint.clone()),
            Self::Tuned { source: narrows::Error::DoesNotFit { memory, minimum, .. }, flags } => Some(format!(
                "--{} {}M is the smallest that works with {flags}; without {flags} less is needed",
                memory.to_lowercase(),
                minimum.get().div_ceil(1 << 20)
            )),
            Self::LongText { room, .. } => Some(format!(
                "a text of {room} is the longest that it may be; a larger --ram has room for a longer one"
            )),
            Self::ManyIds { needed, .. } => Some(format!(
                "a larger --ram has room for more, {}M and what computing takes for these",
                needed.get().div_ceil(1 << 20)
            )),
            Self::DoesNotFit { .. } => Some("--ram auto takes 80 % of what is available".to_owned()),
            Self::Model(narrows::Error::OutOfMemory { .. } | narrows::Error::BeyondWorkload { .. }) => {
                Some("a smaller --ctx or --kv-dtype bf16 makes the KV cache smaller".to_owned())
            }
            Self::NoDevice { vram: Some(size), .. } => Some(format!(
                "drop --vram to compute on the CPU; `narrows plan MODEL --vram {}` says how a GPU of that size would do",
                exactly(*size)
            )),
            Self::NamedDevice(_) => {
                Some("without --device the plan is for a GPU of that size, wherever it is".to_owned())
            }
            Self::NoDevice { vram: None, .. } => Some(
                "drop --vram to compute on the CPU; `narrows plan MODEL --vram 4G` says how a GPU of 4 GiB would do"
                    .to_owned(),
            ),
            Self::Bench(error) if error.is_memory() => {
                Some("smaller sizes, or fewer rows, need less".to_owned())
            }
            Self::Bench(error) if error.is_device() => {
                Some("`narrows doctor` shows which devices there are, and what is missing".to_owned())
            }
            _ => None,
        }
    }

    /// The name of its kind in JSON, by exit code.
    fn kind(&self) -> &'static str {
        match self.exit_code() {
            2 => "usage",
            3 => "not_found",
            4 => "invalid",
            5 => "does_not_fit",
            6 => "device",
            7 => "prompt_too_long",
            9 => "storage",
            _ => "other",
        }
    }

    /// The smallest budget that works, where that is what is wrong.
    const fn minimum(&self) -> Option<Bytes> {
        match self {
            Self::Model(narrows::Error::DoesNotFit { minimum, .. })
            | Self::Tuned { source: narrows::Error::DoesNotFit { minimum, .. }, .. } => Some(*minimum),
            _ => None,
        }
    }

    /// Writes it as the JSON document that stands in place of the result, unless there is one already.
    fn write_json(&self) {
        let report = ErrorReport {
            schema_version: SCHEMA_VERSION,
            error: ErrorBody {
                code: self.exit_code(),
                kind: self.kind(),
                message: self.to_string(),
                hint: self.hint(),
                minimum_bytes: self.minimum().map(Bytes::get),
            },
        };
        // Where stdout takes nothing, stderr has it.
        let _ = write_json_once(&report);
    }

    /// Prints it on stderr, and with `json` writes it to stdout.
    pub(crate) fn report(&self, json: bool) {
        if matches!(self, Self::StdoutClosed | Self::Interrupted { .. }) {
            return;
        }
        if json {
            self.write_json();
        }
        if matches!(self, Self::Panic) {
            return;
        }
        let message = self.to_string();
        match self {
            // With usage and suggestions, over several lines.
            Self::CommandLine(error) => to_stderr(error.render().to_string().trim_end()),
            _ => to_stderr(&format!("error: {}", one_line(&message))),
        }
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Messages that already end in their cause say it once.
            if !message.contains(&text) {
                to_stderr(&format!("caused by: {}", one_line(&text)));
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            to_stderr(&format!("hint: {}", one_line(&hint)));
        }
    }
}
