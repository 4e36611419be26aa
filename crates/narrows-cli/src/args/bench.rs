//! The command line of `narrows bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use narrows::{Bytes, Encoding, Synth};
use narrows_bench::host::{Pages, Test};
use narrows_bench::io::{Cache, IoEngine, Rw};
use narrows_bench::kernels::Operation;
use narrows_bench::pcie::{self, HostKind};

#[derive(Args, Debug)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Read a file by every method, block size and depth; flags are fio's.
    Io(BenchIo),
    /// Read and copy memory by 1 to all threads, in huge pages and in small ones; count multiply-adds.
    Host(BenchHost),
    /// Copy to a device and back, from every kind of memory; names and JSON are nvbandwidth's.
    Pcie(BenchPcie),
    /// Run the operations of a model one at a time, on the CPU or on a device; results stand beside the roofline of
    /// either.
    #[command(
        after_help = "The roof is measured, too. Of the CPU: reads of memory, and float32 multiply-adds in \
                            registers. Of a device, by its own clock: the faster of reads and of the driver's \
                            copies, and multiply-adds in registers, for f16 and bf16 in the matrix units \
                            (mma.sync), which is what its kernels compute with."
    )]
    Kernels(BenchKernels),
    /// Run a model, or a shape by name, within one or several budgets: tests, flags and names are llama-bench's.
    Run(BenchRun),
    /// Draw results that were written with `--json`.
    Report(BenchReport),
}

/// How results are written.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchOutput {
    /// How to write the results; `--json` is `-o json`.
    #[arg(short, long, value_name = "FORMAT", default_value = "md", conflicts_with = "json")]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Md,
    Json,
    Jsonl,
    Csv,
}

#[derive(Args, Debug)]
pub(crate) struct BenchIo {
    /// A file, which is only read; or a directory, in which a file is made that is gone afterwards.
    pub(crate) path: PathBuf,
    /// How blocks are moved, a list: io_uring and threads read past the page cache, buffered and mmap through it
    /// [default: all that this system has].
    #[arg(long, value_name = "ENGINE", value_delimiter = ',', value_parser = engine)]
    pub(crate) ioengine: Vec<IoEngine>,
    /// Only engines that read past the page cache (1), or only those that do not (0).
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) direct: Option<u8>,
    /// What is read in which order, a list: `read` (block after block), `randread`, `tiles` (as weights stream:
    /// tiles that start on no page) [default: read, and tiles as `narrows run` reads them].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = rw)]
    pub(crate) rw: Vec<Rw>,
    /// Sizes of a block, a list: multiples of 4K, of which `K` and `M` are KiB and MiB.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "128K,512K,1M,2M,8M", value_parser = fio_size)]
    pub(crate) bs: Vec<Bytes>,
    /// Blocks in flight at a time, a list.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "32")]
    pub(crate) iodepth: Vec<usize>,
    /// What the page cache has of the file at first, a list; for engines that read through it.
    #[arg(long, value_name = "cold|warm", value_delimiter = ',', default_value = "cold,warm", value_parser = cache)]
    pub(crate) cache: Vec<Cache>,
    /// How much of the file is read [default: all of it], or how big a file is made in a directory [default: 1G].
    #[arg(long, value_name = "SIZE", value_parser = fio_size)]
    pub(crate) size: Option<Bytes>,
    /// Size of a tile.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = fio_size)]
    pub(crate) tile: Bytes,
    /// How long a sample is timed: seconds, or with a unit (`500ms`).
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = time)]
    pub(crate) runtime: Duration,
    /// How long it runs before that.
    #[arg(long = "ramp_time", visible_alias = "ramp-time", value_name = "TIME", default_value = "100ms", value_parser = time)]
    pub(crate) ramp_time: Duration,
    /// Samples of each combination, of which the median counts; taken in turn.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) loops: usize,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Args, Debug)]
pub(crate) struct BenchHost {
    /// What to do, a list: `read`, `copy` (bytes read and bytes written both count), `flops` (multiply-adds of float32
    /// in registers).
    #[arg(long, value_name = "TEST", value_delimiter = ',', default_value = "read,copy,flops", value_parser = test)]
    pub(crate) test: Vec<Test>,
    /// Threads at a time, a list [default: 1, 2, 4 ... and all of the machine's].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = super::threads)]
    pub(crate) threads: Vec<NonZeroUsize>,
    /// Pages that the memory is in, a list.
    #[arg(long, value_name = "huge|small", value_delimiter = ',', default_value = "huge,small", value_parser = pages)]
    pub(crate) pages: Vec<Pages>,
    /// Memory of all threads together; more than all caches hold.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = fio_size)]
    pub(crate) size: Bytes,
    /// How long a sample is timed: seconds, or with a unit (`500ms`).
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = time)]
    pub(crate) runtime: Duration,
    /// Samples of each combination, of which the median counts; taken in turn.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) loops: usize,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Args, Debug)]
pub(crate) struct BenchPcie {
    /// Copy from this file as well, read past the page cache: `disk_to_device`.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What to copy whither, a list of nvbandwidth's names [default: host_to_device_memcpy_ce,
    /// device_to_host_memcpy_ce and the bidirectional ones, which copy the other way meanwhile].
    #[arg(short, long, value_name = "NAME", value_delimiter = ',', value_parser = testcase)]
    pub(crate) testcase: Vec<pcie::Test>,
    /// Kinds of host memory, a list: pageable, pinned, write-combined, registered [default: all].
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    pub(crate) memory: Vec<HostKind>,
    /// Sizes of a copy, a list [default: 4K,64K,1M,16M,256M,1G, as far as there is memory].
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = fio_size)]
    pub(crate) size: Vec<Bytes>,
    /// Streams that copy at a time, a list.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4")]
    pub(crate) streams: Vec<usize>,
    /// Which device [default: the first GPU].
    #[arg(long, value_name = "cuda:N", value_parser = super::device)]
    pub(crate) device: Option<super::Device>,
    /// How long a file is read, each loop: seconds, or with a unit (`500ms`).
    #[arg(long, value_name = "TIME", default_value = "1", value_parser = time)]
    pub(crate) runtime: Duration,
    /// Samples of each combination, of which the median counts; taken in turn.
    #[arg(short = 'i', long, value_name = "N", default_value = "3")]
    pub(crate) loops: usize,
    /// As --json: the record, in which `nvbandwidth` is the document that nvbandwidth writes.
    #[arg(short, conflicts_with = "output")]
    pub(crate) j: bool,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Args, Debug)]
pub(crate) struct BenchKernels {
    /// Operations, a list: linear, dequantise, attention, rms_norm, head_norm, rope, swiglu, add, gather_rows,
    /// scatter_add, argmax; on a device also add_rms_norm, kv_write, top_k [default: all].
    #[arg(long, value_name = "OP", value_delimiter = ',', value_parser = operation)]
    pub(crate) op: Vec<Operation>,
    /// Encodings of weights, of caches and, on a device, of results, a list.
    #[arg(long, value_name = "ENCODING", value_delimiter = ',', default_value = "f32,bf16,f16,q8,nf4", value_parser = encoding)]
    pub(crate) encoding: Vec<Encoding>,
    /// Models whose matrices are taken, a list of the shapes of `narrows synth`, or `all`.
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', default_value = "llama-8b", value_parser = shape)]
    pub(crate) shape: Vec<String>,
    /// Rows of activations, a list.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,64")]
    pub(crate) rows: Vec<usize>,
    /// Positions that attention looks at; as many as there are rows at least.
    #[arg(long, value_name = "N", default_value = "4096")]
    pub(crate) positions: usize,
    /// What computes: `auto` takes the first GPU, and the CPU where there is none.
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "cpu", value_parser = super::device)]
    pub(crate) device: super::Device,
    /// Threads that compute on the CPU [default: all of the machine's].
    #[arg(long, value_name = "N", value_parser = super::threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Memory that copies of a matrix are spread over, so that none is in a cache; a larger matrix is cut.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = fio_size)]
    pub(crate) size: Bytes,
    /// How long a sample is timed, of at least one call: seconds, or with a unit (`500ms`).
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = time)]
    pub(crate) runtime: Duration,
    /// Samples of each combination, of which the median counts.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) loops: usize,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Args, Debug)]
pub(crate) struct BenchRun {
    /// A checkpoint, a pack, ORG/NAME in the Hugging Face cache, or the name of a shape of `narrows synth`, whose
    /// weights are then made in memory.
    pub(crate) model: PathBuf,
    /// Tokens of a prompt, a list; 0 for none.
    #[arg(short = 'p', long = "n-prompt", value_name = "N", value_delimiter = ',', default_value = "512")]
    pub(crate) prompt: Vec<usize>,
    /// New tokens, one a pass, a list; 0 for none.
    #[arg(short = 'n', long = "n-gen", value_name = "N", value_delimiter = ',', default_value = "128")]
    pub(crate) gen_tokens: Vec<usize>,
    /// Positions that there are before, a list.
    #[arg(short = 'd', long = "n-depth", value_name = "N", value_delimiter = ',', default_value = "0")]
    pub(crate) depth: Vec<usize>,
    /// Repetitions of each test, after a warm-up.
    #[arg(short = 'r', long, value_name = "N", default_value = "5")]
    pub(crate) repetitions: NonZeroUsize,
    /// Budgets of memory, a list: sizes, shares of what is available, or `auto` for 80 % of it.
    #[arg(long, value_name = "SIZE|PERCENT|auto", value_delimiter = ',', default_value = "auto", value_parser = super::ram)]
    pub(crate) ram: Vec<super::Ram>,
    /// Memory of the device, as for `narrows run`.
    #[arg(long, value_name = "SIZE|PERCENT|auto", value_parser = super::ram)]
    pub(crate) vram: Option<super::Ram>,
    /// What computes: `auto` takes the first GPU, and the CPU where there is none.
    #[arg(long, value_name = "auto|cpu|cuda:N", default_value = "auto", value_parser = super::device)]
    pub(crate) device: super::Device,
    /// Threads that compute [default: all of the machine's].
    #[arg(short = 't', long, value_name = "N", value_parser = super::threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Rows of a prompt that one step computes at most.
    #[arg(long, value_name = "N")]
    pub(crate) chunk: Option<NonZeroUsize>,
    /// How keys and values are cached [default: f32 on the CPU, bf16 on a device].
    #[arg(long, value_name = "f32|bf16|f16", value_parser = super::encoding)]
    pub(crate) kv_dtype: Option<Encoding>,
    /// How weights are read.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) io: super::Io,
    /// What the matrices of a shape are stored as.
    #[arg(long, value_name = "none|q8|nf4")]
    pub(crate) quant: Option<super::QuantPart>,
    /// Layers of a shape, in place of its own.
    #[arg(long, value_name = "N")]
    pub(crate) layers: Option<usize>,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Args, Debug)]
pub(crate) struct BenchReport {
    /// What `narrows bench ... --json` wrote, one file or several.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The picture (`.svg`), or the page with pictures and tables (`.html`), to write.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

fn operation(text: &str) -> Result<Operation, String> {
    named(text, &Operation::ALL, Operation::name)
}

fn encoding(text: &str) -> Result<Encoding, String> {
    let all = [Encoding::F32, Encoding::Bf16, Encoding::F16, Encoding::Q8, Encoding::Nf4];
    named(text, &all, Encoding::name)
}

fn shape(text: &str) -> Result<String, String> {
    let known = text == "all" || Synth::names().any(|name| name == text);
    let names = || Synth::names().collect::<Vec<_>>().join(", ");
    known.then(|| text.to_owned()).ok_or_else(|| format!("not one of all, {}", names()))
}

fn testcase(text: &str) -> Result<pcie::Test, String> {
    named(text, &pcie::Test::ALL, pcie::Test::name)
}

fn kind(text: &str) -> Result<HostKind, String> {
    named(text, &HostKind::ALL, HostKind::name)
}

fn test(text: &str) -> Result<Test, String> {
    named(text, &Test::ALL, Test::name)
}

fn pages(text: &str) -> Result<Pages, String> {
    named(text, &[Pages::Huge, Pages::Small], Pages::name)
}

fn engine(text: &str) -> Result<IoEngine, String> {
    named(text, &IoEngine::ALL, IoEngine::name)
}

fn rw(text: &str) -> Result<Rw, String> {
    named(text, &[Rw::Read, Rw::RandRead, Rw::Tiles], Rw::name)
}

fn cache(text: &str) -> Result<Cache, String> {
    named(text, &[Cache::Cold, Cache::Warm], Cache::name)
}

fn named<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let names = || all.iter().map(|&one| name(one)).collect::<Vec<_>>().join(", ");
    all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| format!("not one of {}", names()))
}

/// A size as fio takes it, in upper or lower case.
fn fio_size(text: &str) -> Result<Bytes, String> {
    super::size(&text.to_uppercase().replace("IB", "iB"))
}

/// A time as fio takes it: seconds unless it says otherwise.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 2, 500ms or 1m");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
    // A day, far beyond what anybody waits for.
    Duration::try_from_secs_f64(seconds.min(86_400.0)).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_of_fio() {
        for (text, milliseconds) in [("2", 2000), ("0.5", 500), ("500ms", 500), ("2s", 2000), ("1m", 60_000)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "-1", "1h30", "ms", "nan", "1e3"] {
            assert!(time(text).is_err(), "{text}");
        }
        for (text, bytes) in [("128k", 128 << 10), ("128K", 128 << 10), ("1m", 1 << 20), ("1MiB", 1 << 20)] {
            assert_eq!(fio_size(text), Ok(Bytes(bytes)));
        }
        assert!(fio_size("0").is_err() && fio_size("many").is_err());
    }
}
