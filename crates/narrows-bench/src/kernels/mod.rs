//! The operations of a model, one at a time, beside what memory and multiply-adds allow.
//!
//! What is measured is what `narrows run` calls. Weights are walked through as a pass walks through them: a case goes
//! from one copy of its matrix to the next, so that none is in a cache when its turn comes.
//!
//! - **On the CPU** activations are where a run has them, in caches, and what works on them alone has no roof here.
//!   The roof is that of [`crate::host`]: reads of memory, and float32 multiply-adds in registers.
//! - **On a CUDA device** times are those of its own clock, between two events of a stream that has many launches
//!   between them, and the operands of all operations rotate through memory. The memory's roof is the faster of a
//!   kernel that only reads and of the driver's own copy, of which bytes read and bytes written count. That of
//!   computing is multiply-adds in registers, by the instructions that the kernels have: float32, and for f16 and
//!   bf16, which quantised weights become, the matrix units by `mma.sync`. (From Hopper on, `wgmma` does more; no
//!   kernel here uses it.)

mod cases;
mod cpu;
mod cuda;
mod roof;

use std::ops::ControlFlow;
use std::time::Duration;

use narrows_bytes::Bytes;
use narrows_shard::Encoding;

use self::cases::{Case, Kind, cases};
pub use self::cases::{Operation, Shape};
pub use self::cuda::Loaded;
use self::roof::Roof;
use crate::io::Step;
use crate::record::{Entry, KernelResult, Samples};
use crate::{Error, Result};

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operations.
    pub operations: Vec<Operation>,
    /// The encodings; an operation leaves out those that it is never given.
    pub encodings: Vec<Encoding>,
    /// The models.
    pub shapes: Vec<Shape>,
    /// Rows of activations, each a case.
    pub rows: Vec<usize>,
    /// Positions that attention looks at; as many as there are rows at least.
    pub positions: usize,
    /// What is timed of each case, `loops` times; at least one call.
    pub runtime: Duration,
    /// How often each case is run.
    pub loops: usize,
    /// Threads that compute on the CPU.
    pub threads: usize,
    /// Memory that may be taken: of the host, or of the device.
    pub memory: Bytes,
    /// Memory that copies of a matrix are spread over: more than all caches hold.
    pub spread: Bytes,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The roof, and a result for each case.
    pub results: Vec<Entry>,
    /// What did not go as asked.
    pub notes: Vec<String>,
}

/// What computes.
trait Backend {
    /// Its name in results.
    fn name(&self) -> String;
    /// What kind of thing it is.
    fn kind(&self) -> Kind;
    /// Runs a case `loops` times for `runtime`.
    fn measure(&mut self, case: &Case, settings: &Settings) -> Result<Measured>;
}

/// What a case took.
struct Measured {
    /// That a call reads and writes beside what the operation does.
    more_bytes: f64,
    /// Whether most of the bytes come from memory.
    cold: bool,
    /// Of a call, in each loop.
    seconds: Vec<f64>,
}

/// Runs the operations, on the CPU or on a device. `go_on` is asked before every case.
///
/// # Errors
/// Settings that make no sense, memory that is not there, threads that cannot be started, a device that refuses, or
/// [`Error::Interrupted`].
pub fn run(
    settings: &Settings,
    device: Option<&Loaded>,
    go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Report> {
    let kind = if device.is_some() { Kind::Device } else { Kind::Cpu };
    check(settings, kind)?;
    let mut notes = Vec::new();
    let cases = cases(settings, kind, &mut notes);
    if cases.is_empty() {
        let what = "nothing to measure: no operation is left that has one of the encodings";
        return Err(Error::Settings(what.to_owned()));
    }
    match device {
        None => {
            let (mut backend, roof) = cpu::Host::open(settings, go_on)?;
            measure(&mut backend, roof, &cases, settings, notes, go_on)
        }
        Some(device) => {
            let (mut backend, roof) = cuda::OnDevice::open(device, settings, go_on)?;
            measure(&mut backend, roof, &cases, settings, notes, go_on)
        }
    }
}

fn measure(
    backend: &mut dyn Backend,
    roof: Roof,
    cases: &[Case],
    settings: &Settings,
    mut notes: Vec<String>,
    go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Report> {
    notes.extend_from_slice(&roof.notes);
    let mut results = roof.entries.clone();
    for (done, case) in cases.iter().enumerate() {
        let what = format!("{} {} {:?} x {}", case.operation.name(), case.encoding, case.shape, case.rows);
        if go_on(&Step { what, done, of: cases.len() }).is_break() {
            return Err(Error::Interrupted);
        }
        let kind = backend.kind();
        let bytes = case.bytes(kind).ok_or_else(|| too_large(case))?;
        let Measured { more_bytes, cold, seconds } = backend.measure(case, settings)?;
        let bytes = bytes + more_bytes;
        let flops_per_byte = case.flops() / bytes.max(1.0);
        let bandwidth = Samples::of(seconds.iter().map(|seconds| bytes / seconds.max(1e-9)).collect());
        let operand = kind.operand(case.encoding);
        results.push(Entry::Kernel(KernelResult {
            operation: case.operation.name().to_owned(),
            backend: backend.name(),
            encoding: case.encoding.to_string(),
            shape: case.shape.clone(),
            rows: case.rows,
            bytes: Bytes(bytes as u64),
            seconds: bytes / bandwidth.bytes_per_second.max(1e-9),
            bandwidth,
            flops_per_byte,
            roof_bytes_per_second: cold.then(|| roof.bytes_per_second(operand, flops_per_byte)),
        }));
    }
    Ok(Report { results, notes })
}

fn too_large(case: &Case) -> Error {
    Error::Settings(format!("{:?} is more than can be counted", case.shape))
}

fn check(settings: &Settings, kind: Kind) -> Result<()> {
    let wrong = |what: &str| Err(Error::Settings(what.to_owned()));
    if settings.loops == 0 || settings.runtime.is_zero() {
        return wrong("loops and runtime must be more than 0");
    }
    if settings.rows.is_empty() || settings.rows.iter().any(|&rows| rows == 0 || rows > MOST_ROWS) {
        return wrong("1 to 65536 rows");
    }
    if settings.positions == 0 || settings.positions > MOST_POSITIONS {
        return wrong("1 to 1048576 positions");
    }
    let least = match kind {
        Kind::Cpu => Bytes::mib(8),
        Kind::Device => Bytes(64 << 10),
    };
    if settings.spread < least {
        return Err(Error::Settings(format!("at least {least} of memory for weights")));
    }
    if settings.spread > settings.memory {
        return Err(Error::Settings(format!(
            "{} of memory for weights: {} may be used",
            settings.spread, settings.memory
        )));
    }
    Ok(())
}

/// Far more than a step ever has, and little enough to count bytes of.
const MOST_ROWS: usize = 1 << 16;
const MOST_POSITIONS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn settings() -> Settings {
        Settings {
            operations: Operation::ALL.to_vec(),
            encodings: vec![Encoding::F32, Encoding::Bf16, Encoding::Nf4],
            shapes: vec![Shape {
                matrices: vec![[64, 128], [4096, 128]],
                hidden: 128,
                intermediate: 256,
                heads: 4,
                kv_heads: 2,
                head_dim: 32,
                vocabulary: 100,
                experts: Some((8, 2)),
            }],
            rows: vec![1, 3],
            positions: 40,
            runtime: Duration::from_micros(10),
            loops: 1,
            threads: 2,
            memory: Bytes::mib(64),
            spread: Bytes::mib(8),
        }
    }

    #[test]
    fn every_operation_is_run_and_counted() {
        let report = run(&settings(), None, &mut |_| ControlFlow::Continue(())).unwrap();
        let kernels: Vec<_> = report
            .results
            .iter()
            .filter_map(|entry| match entry {
                Entry::Kernel(result) => Some(result),
                _ => None,
            })
            .collect();
        // Two matrices in three encodings and one, attention in two, eight in one; all but dequantising by rows.
        assert_eq!(kernels.len(), 2 * 3 * 2 + 2 + 2 * 2 + 8 * 2);
        assert_eq!(report.results.len() - kernels.len(), 2);
        for kernel in &kernels {
            assert!(kernel.bandwidth.bytes_per_second > 0.0 && kernel.seconds > 0.0, "{kernel:?}");
            let cold = ["linear", "dequantise", "attention"].contains(&kernel.operation.as_str());
            assert_eq!(kernel.roof_bytes_per_second.is_some(), cold);
        }
        // A row times a matrix of 4096 x 128 in bf16: two operations a weight, two bytes each and the activations.
        let linear = kernels.iter().find(|k| k.encoding == "bf16" && k.shape == [4096, 128] && k.rows == 1);
        let bytes = 4096.0 * 128.0 * 2.0 + 4.0 * (4096.0 + 128.0);
        assert!((linear.unwrap().flops_per_byte - 2.0 * 4096.0 * 128.0 / bytes).abs() < 1e-9);
    }

    #[test]
    fn settings_that_make_no_sense() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            run(&settings, None, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
        };
        assert!(with(|s| s.rows = vec![0]).contains("rows"));
        assert!(with(|s| s.loops = 0).contains("loops"));
        assert!(with(|s| s.positions = 0).contains("positions"));
        assert!(with(|s| s.spread = Bytes::mib(1)).contains("at least"));
        assert!(with(|s| s.spread = Bytes::mib(4096)).contains("may be used"));
        assert!(with(|s| s.encodings = Vec::new()).contains("nothing to measure"));
        assert!(with(|s| s.operations = vec![Operation::TopK]).contains("nothing to measure"));
        let ended = run(&settings(), None, &mut |_| ControlFlow::Break(()));
        assert!(matches!(ended, Err(Error::Interrupted)));
    }
}
