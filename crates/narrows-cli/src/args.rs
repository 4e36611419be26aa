//! The command line.

pub(crate) mod bench;
mod parse;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::parse::{context, device, encoding, ram, rate, size, threads};

/// Runs language models that are bigger than the machine's memory.
#[derive(Debug, Parser)]
#[command(
    name = "narrows",
    version = crate::version::SHORT,
    long_version = crate::version::long(),
    max_term_width = 100,
    after_help = "Examples:\n  \
                  narrows run models/demo \"And the king said unto\"    continue a text\n  \
                  narrows run MODEL --ram 4G                           chat, within 4 GiB of memory\n  \
                  narrows plan llama-70b --ram 8G                      how fast would it run here?\n  \
                  narrows pack MODEL -o DIR --quant nf4                4.25 bits a weight\n\n\
                  Exit codes: 0 done, 1 other failure, 2 usage or an impossible request, 3 model not found, \
                  4 model invalid or not supported, 5 does not fit in memory, 6 device, 7 prompt longer than the \
                  context, 8 NaN or infinity in what was computed, 9 storage (disk full, I/O error, checksum mismatch), 130 and 143 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is printed besides the result.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    /// Print the result as one JSON document.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Print nothing but the result and errors.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// How to show progress on stderr: `auto` draws bars on a terminal and prints lines elsewhere.
    #[arg(long, global = true, value_name = "HOW", default_value = "auto", help_heading = "Output")]
    pub(crate) progress: ProgressMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    Auto,
    Bar,
    Plain,
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt, or chat on a terminal.
    Run(Run),
    /// Predict from a model's headers, or from the name of a shape such as llama-70b, whether it fits, how fast it will
    /// be, and what bounds it.
    Plan(Plan),
    /// Rewrite a checkpoint as a pack: one checksummed shard per layer, in the order of use.
    Pack(Pack),
    /// Show a model's architecture and where its bytes are.
    Inspect(Inspect),
    /// Check every byte of a pack, or the structure of a checkpoint.
    Verify(Verify),
    /// Compute the logits of token ids.
    Logits(Logits),
    /// Measure the perplexity of a text by strided windows.
    Eval(Eval),
    /// Write a checkpoint of a well-known shape with random weights, to measure with.
    Synth(Synth),
    /// Measure this machine: disks, memory, links.
    Bench(bench::Bench),
    /// Show what this machine has to compute with, and what holds it back.
    Doctor(Doctor),
    /// Print the completions for a shell.
    Completions(Completions),
    /// Write the manual pages.
    Man(Man),
    /// Print the JSON schema of a document that `--json` prints.
    Schema(Schema),
}

/// Model, memory and device: the same for every command that computes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Compute {
    /// A Hugging Face checkpoint directory or a pack; ORG/NAME is looked up in the Hugging Face cache.
    #[arg(index = 1)]
    pub(crate) model: PathBuf,
    /// Positions of a sequence at most; `auto`: what the request needs, up to what the model was made for.
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = context, help_heading = "Memory")]
    pub(crate) ctx: narrows::Context,
    /// How keys and values are cached [default: f32 on the CPU, bf16 on a device].
    #[arg(long, value_name = "f32|bf16|f16", value_parser = encoding, help_heading = "Memory")]
    pub(crate) kv_dtype: Option<narrows::Encoding>,
    /// Rows of prefill that one step computes at most [default: what 256 MiB of activations hold, up to 512].
    #[arg(long, value_name = "N", help_heading = "Tuning")]
    pub(crate) chunk: Option<NonZeroUsize>,
    /// Threads that compute [default: all of the machine's].
    #[arg(long, value_name = "N", help_heading = "Tuning", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What computes: `auto` takes the first GPU, and the CPU where there is none.
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", value_parser = device, help_heading = "Tuning")]
    pub(crate) device: Device,
    /// Memory for weights, staging, KV cache and activations together, a hard cap: a size (`M` and `G` are MiB
    /// and GiB), a share of what is available, or `auto` for 80 % of it.
    #[arg(long, value_name = "SIZE|PERCENT|auto", default_value = "auto", value_parser = ram, help_heading = "Memory")]
    pub(crate) ram: Ram,
    /// Memory of the device for weights, staging, KV cache, activations and the driver's context together, a hard
    /// cap: a size, a share of the device's memory, or `auto` for 90 % of what is free of it.
    #[arg(long, value_name = "SIZE|PERCENT|auto", value_parser = ram, help_heading = "Memory")]
    pub(crate) vram: Option<Ram>,
    /// How weights are read.
    #[arg(long, value_name = "HOW", default_value = "auto", help_heading = "Tuning")]
    pub(crate) io: Io,
    /// Speeds that the prediction is made with. What is remembered is what `narrows bench io` or `narrows doctor PATH`
    /// found of the disk.
    #[arg(long, value_name = "HOW", default_value = "auto", help_heading = "Tuning")]
    pub(crate) speeds: SpeedsFrom,
    /// Slots that streamed weights pass through [default: about 64 MiB of them].
    #[arg(long, value_name = "N", help_heading = "Tuning")]
    pub(crate) slots: Option<NonZeroUsize>,
    /// Size of what is read and computed at a time [default: 8M, whole matrices where nothing streams].
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Tuning")]
    pub(crate) tile: Option<narrows::Bytes>,
    /// Write what was read and computed when, as a Chrome trace (opens in ui.perfetto.dev).
    #[arg(long, value_name = "FILE", help_heading = "Tuning")]
    pub(crate) trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ram {
    Auto,
    Size(narrows::Bytes),
    Percent(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Io {
    /// Direct where the file system and the kernel allow it, else buffered.
    Auto,
    /// Past the page cache.
    Direct,
    /// Through the page cache.
    Buffered,
    /// Through mappings, dropped after use.
    Mmap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpeedsFrom {
    /// Measured now where there are weights to read, else remembered, else assumed.
    Auto,
    /// Measured now.
    Measured,
    /// What the last bench of this disk found, if there was one.
    Remembered,
    /// A mid-range machine.
    Assumed,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
                        narrows run MODEL \"Why is the sky blue?\"       answer\n  \
                        narrows run MODEL -p @letter.txt --raw -n 200  continue the text of a file\n  \
                        git diff | narrows run MODEL -p - --system \"Review this.\"\n  \
                        narrows run MODEL                              chat; Ctrl-C ends a reply")]
pub(crate) struct Run {
    /// The prompt, as -p takes it.
    #[arg(index = 2, value_name = "PROMPT", conflicts_with_all = ["prompt", "ids"])]
    pub(crate) words: Option<String>,
    /// The prompt; `-` reads it from stdin, `@FILE` from a file, and `@@` begins a text with `@`. Without one, chat on a
    /// terminal, or read stdin elsewhere.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        conflicts_with = "ids",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    pub(crate) prompt: Option<String>,
    /// Prompts as token ids: a safetensors file with `input_ids`, i64 `[batch, positions]`.
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    pub(crate) ids: Option<PathBuf>,
    /// Give the prompt to the model as it is, without its chat template.
    #[arg(long, help_heading = "Prompt")]
    pub(crate) raw: bool,
    /// A system message, for models with a chat template; `@FILE` reads it from a file.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "ids"], help_heading = "Prompt")]
    pub(crate) system: Option<String>,
    /// New tokens at most [default: generation_config.json's, else 64; in a chat 1024].
    #[arg(short = 'n', long, value_name = "N", help_heading = "Prompt")]
    pub(crate) max_new_tokens: Option<usize>,
    /// End the text where this string comes up; may be given several times.
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub(crate) stop: Vec<String>,
    /// Go on after a token that ends a text.
    #[arg(long, help_heading = "Prompt")]
    pub(crate) ignore_eos: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) compute: Compute,
}

/// How tokens are chosen; what is not given comes from generation_config.json, else greedy.
#[derive(Args, Clone, Debug)]
pub(crate) struct SamplingArgs {
    /// Always take the best token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed"], help_heading = "Sampling")]
    pub(crate) greedy: bool,
    /// Divide logits by this; 0 is greedy.
    #[arg(long, value_name = "T", help_heading = "Sampling", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Draw from the K best tokens only; 0 draws from all.
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub(crate) top_k: Option<usize>,
    /// Draw from the fewest best tokens whose probabilities reach P.
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Draw from tokens at least P times as likely as the best.
    #[arg(long, value_name = "P", help_heading = "Sampling", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Divide positive logits of tokens already seen by this, multiply negative ones.
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Take this from the logit of every token already generated.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) presence_penalty: Option<f32>,
    /// Take this from the logit of a token for each time that it was generated.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) frequency_penalty: Option<f32>,
    /// Where the random numbers start [default: a new one each time, told in the closing line].
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub(crate) seed: Option<u64>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "MODEL may also be the name of a shape that `narrows synth` knows, such as llama-70b: the plan \
                        says what that model would do on this machine before anything is downloaded. There is no \
                        disk to look at then, unless --speeds measured asks for a file of 256 MiB that is made in \
                        --path, read for a second, and gone.\n\n\
                        With --vram SIZE and no GPU on this machine, or with one of --assume-context, \
                        --assume-link and --assume-bandwidth, the plan is for a GPU with SIZE of memory that is not \
                        here; what it assumes is marked as assumed.\n\n\
                        Examples:\n  \
                        narrows plan llama-70b --ram 16G --vram 4G     on a laptop with a GPU of 4 GiB\n  \
                        narrows plan llama-70b --vram 24G --assume-link 25G --assume-bandwidth 1T"
)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// Plan for the pack that `narrows pack --quant` would make of it.
    #[arg(long, value_name = "none|q8|nf4")]
    pub(crate) quant: Option<QuantPart>,
    /// Where the model would lie, whose disk the plan is for [default: where it lies, else the current directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) assume: Assume,
}

/// A machine that is not this one. Rates are in bytes per second, of which `G` is 10^9 and `T` 10^12.
#[derive(Args, Clone, Debug)]
pub(crate) struct Assume {
    /// What the driver and the kernels take of a GPU's memory [default: 512M; an H200 takes 528M].
    #[arg(long = "assume-context", value_name = "SIZE", value_parser = size, help_heading = "Assumptions")]
    pub(crate) context: Option<narrows::Bytes>,
    /// How fast pinned memory is copied to a GPU, in bytes per second (`G` is 10^9) [default: 12G, as 8 lanes of PCIe 4.0
    /// or 16 of 3.0 do; 16 lanes of 4.0 do 25G, of 5.0 55G].
    #[arg(long = "assume-link", value_name = "RATE", value_parser = rate, help_heading = "Assumptions")]
    pub(crate) link: Option<f64>,
    /// How fast a GPU reads its own memory [default: 200G, a laptop's; an H200 does 4.6T].
    #[arg(long = "assume-bandwidth", value_name = "RATE", value_parser = rate, help_heading = "Assumptions")]
    pub(crate) bandwidth: Option<f64>,
    /// How fast weights are read from disk [default: as --speeds says].
    #[arg(long = "assume-disk", value_name = "RATE", value_parser = rate, help_heading = "Assumptions")]
    pub(crate) disk: Option<f64>,
}

#[derive(Args, Debug)]
pub(crate) struct Pack {
    /// A Hugging Face checkpoint directory; ORG/NAME is looked up in the Hugging Face cache.
    pub(crate) model: PathBuf,
    /// The directory of the pack; made if it does not exist. An interrupted pack is resumed.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Delete each weight file of the checkpoint once all that it held is packed, durable and verified.
    #[arg(long)]
    pub(crate) consume_source: bool,
    /// What the matrices of layers are stored as: `none`: as they are; `auto`: as they are if the weights then fit
    /// in 80 % of the memory that is available here, else q8 if they fit so, else nf4. Embeddings, norms and
    /// biases always stay as they are.
    #[arg(long, value_name = "none|q8|nf4|auto", default_value = "none")]
    pub(crate) quant: Quant,
    /// What the projections of attention are stored as [default: as --quant].
    #[arg(long, value_name = "none|q8|nf4")]
    pub(crate) quant_attn: Option<QuantPart>,
    /// What the head is stored as, if it is not the embedding table [default: as --quant].
    #[arg(long, value_name = "none|q8|nf4")]
    pub(crate) quant_head: Option<QuantPart>,
    /// Threads that quantise [default: all of the machine's].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quant {
    None,
    Q8,
    Nf4,
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantPart {
    None,
    Q8,
    Nf4,
}

impl QuantPart {
    pub(crate) const fn encoding(self) -> Option<narrows::Encoding> {
        match self {
            Self::None => None,
            Self::Q8 => Some(narrows::Encoding::Q8),
            Self::Nf4 => Some(narrows::Encoding::Nf4),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// A Hugging Face checkpoint directory or a pack; ORG/NAME is looked up in the Hugging Face cache.
    pub(crate) model: PathBuf,
    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print every operation that a pass computes.
    #[arg(long)]
    pub(crate) program: bool,
    /// Measure how far weights are from those of a checkpoint: for a quantised pack from its source, which is
    /// CHECKPOINT or, in a Hugging Face cache, the one it was packed from; for other models, how far q8 and nf4
    /// would be.
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, require_equals = true)]
    pub(crate) error: Option<Option<PathBuf>>,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// A pack or a Hugging Face checkpoint directory; ORG/NAME is looked up in the Hugging Face cache.
    pub(crate) model: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Logits {
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// A safetensors file with `input_ids`, i64 `[batch, positions]`.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,
    /// The safetensors file to write: `logits`, f32 `[batch, positions, vocab]`.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) compute: Compute,
    /// The text.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) file: PathBuf,
    /// Tokens of a window [default: what the model was made for, up to 2048].
    #[arg(long, value_name = "W")]
    pub(crate) window: Option<usize>,
    /// Tokens by which windows advance [default: half a window].
    #[arg(long, value_name = "S")]
    pub(crate) stride: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct Synth {
    /// The shape.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(narrows::Synth::names()))]
    pub(crate) shape: String,
    /// The directory to write; it must be empty or not exist.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Layers, in place of the shape's own.
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,
    /// Where the random numbers start.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// A model, as a directory or ORG/NAME, or where models are to be: shows the disk behind it, and reads from it for a second. In a directory
    /// without weights a file of 256 MiB is made, and gone afterwards.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  narrows completions bash > ~/.local/share/bash-completion/completions/narrows"
)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  narrows man -o ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// The directory to write; made if it does not exist.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Schema {
    /// The command that prints the document; `error` is what any of them prints in place of a result.
    pub(crate) document: DocumentName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocumentName {
    Bench,
    Doctor,
    Error,
    Eval,
    Inspect,
    Logits,
    Pack,
    Plan,
    Run,
    Synth,
    Verify,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
