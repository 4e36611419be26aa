//! What every bench leaves: one schema, read again by reports.

use std::io::Read;
use std::path::Path;

use narrows_bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::{Error, Result};

/// Of a record's file: far more than any has.
const MOST: Bytes = Bytes::mib(64);

/// Version of the schema of [`Record`]; fields are only added within one.
pub const SCHEMA_VERSION: u32 = 1;

/// Results, and all that is needed to make them again or to doubt them.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The version of narrows.
    pub version: String,
    /// When it began, as RFC 3339 writes it.
    pub date: String,
    /// The command line.
    pub command: String,
    /// Where it ran.
    pub machine: Machine,
    /// What did not go as asked: lines for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What was measured, in the order of the settings.
    pub results: Vec<Entry>,
    /// Copies to a device once more, as nvbandwidth writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvbandwidth: Option<serde_json::Value>,
}

impl Record {
    /// A record of `results` that began at `date`.
    #[must_use]
    pub fn new(
        date: chrono::DateTime<chrono::Utc>,
        command: String,
        machine: Machine,
        notes: Vec<String>,
        results: Vec<Entry>,
    ) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date: date.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            command,
            machine,
            notes,
            results,
            nvbandwidth: None,
        }
    }

    /// Reads a record from a file.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::NotARecord`] for what is none, or of another version of the schema.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let wrong = |what: String| Error::NotARecord { path: path.to_owned(), what };
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        // Pipes are files, too, and may have no end.
        file.take(MOST.get() + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MOST.get() {
            return Err(wrong(format!("more than {MOST}, which no record has")));
        }
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("no JSON: {e}")))?;
        match value.get("schema_version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(SCHEMA_VERSION) => {}
            Some(version) => {
                return Err(wrong(format!("schema version {version}; this narrows reads {SCHEMA_VERSION}")));
            }
            None => return Err(wrong("not a record of `narrows bench ... --json`".to_owned())),
        }
        serde_json::from_value(value).map_err(|e| wrong(e.to_string()))
    }
}

/// One result. In JSON the field `bench` says which kind it is.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(tag = "bench", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Entry {
    /// Reads of a file.
    Io(IoResult),
    /// Reads or copies of memory.
    Host(HostResult),
    /// Reads or copies of a device's memory.
    Device(DeviceResult),
    /// Multiply-adds in registers.
    Flops(PeakResult),
    /// Copies between host and device.
    Pcie(PcieResult),
    /// One operation of a model.
    Kernel(KernelResult),
    /// A whole model within a budget.
    Run(Box<RunResult>),
}

/// Bytes per second (decimal: 10^9 is 1 GB/s), several times over.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Samples {
    /// The median of `samples`.
    pub bytes_per_second: f64,
    /// Each, in the order in which they were taken.
    pub samples: Vec<f64>,
}

impl Samples {
    /// Samples with their median; of an even number the lower of the two in the middle, which was measured.
    #[must_use]
    pub fn of(samples: Vec<f64>) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        Self { bytes_per_second: median, samples }
    }
}

/// Reads of a file by one method, block size and depth.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct IoResult {
    /// `io_uring`, `threads`, `buffered` or `mmap`.
    pub ioengine: String,
    /// Whether it reads past the page cache.
    pub direct: bool,
    /// `read`, `randread` or `tiles`.
    pub rw: String,
    /// `cold`, `warm`, or `bypassed` where the page cache plays no part.
    pub cache: String,
    /// Size of an operation.
    pub bs: Bytes,
    /// Operations at one time.
    pub iodepth: usize,
    /// Size of what is asked for at once: a block, or a tile of several.
    pub tile: Bytes,
    /// How fast, median and samples.
    #[serde(flatten)]
    pub bandwidth: Samples,
    /// Operations per second, median.
    pub iops: f64,
    /// From asking for a block, or a tile, until it was there; of the sample with the median bandwidth.
    pub latency: Latency,
    /// Seconds that were timed, of all samples.
    pub seconds: f64,
    /// Bytes that were timed, of all samples.
    pub bytes: Bytes,
    /// Whether this is how `narrows run` reads unless told otherwise.
    pub as_run: bool,
}

/// Reads or copies of memory by some threads.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct HostResult {
    /// `read`, or `copy`, of which bytes read and bytes written both count.
    pub test: String,
    /// Threads at a time.
    pub threads: usize,
    /// `huge` or `small`.
    pub pages: String,
    /// Memory of all threads together.
    pub size: Bytes,
    /// The instruction set of the loads.
    pub isa: String,
    /// How fast, all threads together.
    #[serde(flatten)]
    pub bandwidth: Samples,
}

/// Reads or copies of a device's memory by itself.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct DeviceResult {
    /// `read`, by a kernel that does nothing else; or `copy`, by the driver, of which bytes read and bytes written both
    /// count.
    pub test: String,
    /// The device, `cuda:0`.
    pub backend: String,
    /// Memory that is read, or copied from and to.
    pub size: Bytes,
    /// How fast, by the device's clock.
    #[serde(flatten)]
    pub bandwidth: Samples,
}

/// What the units that multiply do if nothing keeps them waiting.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct PeakResult {
    /// `cpu` or `cuda:0`.
    #[serde(default = "cpu")]
    pub backend: String,
    /// How factors are stored; sums are float32.
    #[serde(default = "float32")]
    pub encoding: String,
    /// Threads at a time.
    pub threads: usize,
    /// The instruction set; of a device its architecture and the instruction, `sm_90 mma.sync`.
    pub isa: String,
    /// Operations per second, of which a multiply-add is two; the median.
    pub flops_per_second: f64,
    /// Each, in the order in which they were taken.
    pub samples: Vec<f64>,
}

/// What computed before there was a word for it.
fn cpu() -> String {
    "cpu".to_owned()
}

fn float32() -> String {
    "f32".to_owned()
}

/// Copies between host and device of one size, from one kind of memory.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct PcieResult {
    /// The name that nvbandwidth gives it, `host_to_device_memcpy_ce`; or one of ours for what it has not.
    pub test: String,
    /// The host's memory: `pageable`, `pinned`, `write-combined` or `registered`.
    pub memory: String,
    /// Size of a copy.
    pub size: Bytes,
    /// Streams that copies are queued on in turn.
    pub streams: usize,
    /// How fast, by the device's clock; of two directions the one that the name begins with.
    #[serde(flatten)]
    pub bandwidth: Samples,
    /// Whether what arrived was compared with what was sent.
    pub verified: bool,
}

/// One operation on operands of one shape.
#[derive(Clone, Debug, JsonSchema, Serialize, Deserialize)]
pub struct KernelResult {
    /// Its name.
    pub operation: String,
    /// `cpu` or `cuda:0`.
    pub backend: String,
    /// How weights, a cache or, on a device, a result is stored.
    pub encoding: String,
    /// What is computed on, `[rows, cols]` of weights.
    pub shape: Vec<usize>,
    /// Rows of activations.
    pub rows: usize,
    /// That a call reads and writes at least.
    #[serde(default)]
    pub bytes: Bytes,
    /// What a call takes, median.
    #[serde(default)]
    pub seconds: f64,
    /// Bytes moved per second.
    #[serde(flatten)]
    pub bandwidth: Samples,
    /// Operations for each byte that is moved.
    pub flops_per_byte: f64,
    /// What the roof of this machine, or of the device, would be: its memory, or its multiply-adds over
    /// `flops_per_byte`. None where operands are in caches, and memory bounds nothing.
    #[serde(default)]
    pub roof_bytes_per_second: Option<f64>,
}

/// A model within a budget. Names that llama-bench has are llama-bench's, the others are ours.
#[derive(Clone, Debug, Default, JsonSchema, Serialize, Deserialize)]
pub struct RunResult {
    /// Its directory's name, or that of a shape.
    pub model: String,
    /// Family, size and encodings: `llama 1.1B bf16`.
    pub model_type: String,
    /// Size of all weights.
    pub model_size: Bytes,
    /// How many there are.
    pub model_n_params: u64,
    /// The processor.
    pub cpu_info: Option<String>,
    /// The device that computed.
    pub gpu_info: Option<String>,
    /// `cpu` or `cuda:0`.
    pub backend: String,
    /// Threads that computed on the host.
    pub n_threads: usize,
    /// Rows of a step at most.
    pub n_batch: usize,
    /// How keys are cached.
    pub type_k: String,
    /// How values are.
    pub type_v: String,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// New tokens, one a pass.
    pub n_gen: usize,
    /// Positions that there were before.
    pub n_depth: usize,
    /// `pp512`: a prompt of 512 tokens; `tg128 @ d4096`: 128 new ones after 4096 positions.
    pub test: String,
    /// When it began, as RFC 3339 writes it.
    pub test_time: String,
    /// What it may take of the host's memory.
    pub budget_bytes: Bytes,
    /// What it may take of the device's.
    pub vram_bytes: Option<Bytes>,
    /// Mean time of a repetition.
    pub avg_ns: f64,
    /// Its standard deviation.
    pub stddev_ns: f64,
    /// Mean tokens per second.
    pub avg_ts: f64,
    /// Their standard deviation.
    pub stddev_ts: f64,
    /// Each repetition.
    pub samples_ns: Vec<f64>,
    /// Each repetition.
    pub samples_ts: Vec<f64>,
    /// Where streamed weights came from: `disk`; or `memory`, where they were made and no disk had a part.
    pub source: String,
    /// Passes over the weights, of all repetitions.
    pub passes: u64,
    /// Read from disk meanwhile.
    pub bytes_disk: Bytes,
    /// Brought into slots from where weights are made.
    pub bytes_memory: Bytes,
    /// Copied to the device.
    pub bytes_pcie: Bytes,
    /// Share of the time for which reading waited for a free slot.
    pub stall_disk: f64,
    /// For which the link did.
    pub stall_pcie: Option<f64>,
    /// For which computing waited for weights.
    pub stall_compute: f64,
    /// What the plan said before, of generation.
    pub predicted_ts: Option<f64>,
    /// How fast it would be at most: tokens of a pass, times the bandwidth, over the bytes of a pass.
    pub bound_ts: f64,
    /// Of what that is the bandwidth: `disk`, `copies` where no disk has a part, `h2d`, `memory`, `compute` of a device;
    /// or `arithmetic`.
    pub bound: String,
}

impl RunResult {
    /// Takes over how long each repetition took in which `tokens` were computed.
    pub fn set_samples(&mut self, tokens: usize, seconds: &[f64]) {
        self.samples_ns = seconds.iter().map(|seconds| seconds * 1e9).collect();
        self.samples_ts = seconds.iter().map(|seconds| tokens as f64 / seconds.max(1e-9)).collect();
        (self.avg_ns, self.stddev_ns) = mean_and_deviation(&self.samples_ns);
        (self.avg_ts, self.stddev_ts) = mean_and_deviation(&self.samples_ts);
    }
}

/// The arithmetic mean, and the standard deviation of the sample (over n - 1); zero of fewer than two.
fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// How long operations take, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// Of a hundred the longest but one.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    /// Of times in seconds, in any order.
    #[must_use]
    pub fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let Some(&last) = seconds.last() else { return Self::default() };
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize] * 1e6;
        let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
        Self { mean_us: mean * 1e6, p50_us: at(0.5), p99_us: at(0.99), max_us: last * 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_were_measured() {
        assert_eq!(Samples::of(vec![3.0, 1.0, 2.0]).bytes_per_second, 2.0);
        assert_eq!(Samples::of(vec![4.0, 1.0, 3.0, 2.0]).bytes_per_second, 2.0);
        assert_eq!(Samples::of(Vec::new()).bytes_per_second, 0.0);
        let latency = Latency::of((1..=100).rev().map(|n| f64::from(n) / 1e6).collect());
        assert!((latency.mean_us - 50.5).abs() < 1e-9 && (latency.max_us - 100.0).abs() < 1e-9);
        assert!((latency.p50_us - 50.0).abs() < 1e-9 && (latency.p99_us - 99.0).abs() < 1e-9);
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }

    #[test]
    fn runs_have_a_mean() {
        let mut run = RunResult::default();
        run.set_samples(10, &[1.0, 2.0, 3.0]);
        assert_eq!((run.avg_ns, run.stddev_ns), (2e9, 1e9));
        assert!((run.avg_ts - (10.0 + 5.0 + 10.0 / 3.0) / 3.0).abs() < 1e-9, "{}", run.avg_ts);
        run.set_samples(10, &[2.0]);
        assert_eq!((run.avg_ts, run.stddev_ts), (5.0, 0.0));
        run.set_samples(10, &[]);
        assert_eq!((run.avg_ts, run.stddev_ts), (0.0, 0.0));
    }
}
