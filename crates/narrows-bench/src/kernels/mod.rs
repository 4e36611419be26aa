//! The operations of a model on the CPU, one at a time, beside what memory and multiply-adds allow.
//!
//! What is measured is what `narrows run` calls. Weights are walked through as a pass walks through them: a case goes
//! from one copy of its matrix to the next, so that none is in a cache when its turn comes. Activations are where a
//! run has them, in caches, and what works on them alone has no roof here.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;
use narrows_cpu::{AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_shard::Encoding;
use narrows_staging::{Arena, ArenaOptions, Budget};

use crate::host;
use crate::io::Step;
use crate::record::{Entry, KernelResult, Samples};
use crate::{Error, Result};

/// An operation of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Activations times a matrix of weights, as it is stored.
    Linear,
    /// A quantised matrix to bf16.
    Dequantise,
    /// Rows of queries over the positions of a cache.
    Attention,
    /// Root mean square norm.
    RmsNorm,
    /// Rotary embedding.
    Rope,
    /// The gate of an MLP.
    Swiglu,
    /// The residual.
    Add,
}

impl Operation {
    /// All there are.
    pub const ALL: [Self; 7] =
        [Self::Linear, Self::Dequantise, Self::Attention, Self::RmsNorm, Self::Rope, Self::Swiglu, Self::Add];

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Dequantise => "dequantise",
            Self::Attention => "attention",
            Self::RmsNorm => "rms_norm",
            Self::Rope => "rope",
            Self::Swiglu => "swiglu",
            Self::Add => "add",
        }
    }

    /// What its weights, or its cache, may be stored as; activations are float32.
    const fn encodings(self) -> &'static [Encoding] {
        use Encoding::{Bf16, F16, F32, Nf4, Q8};
        match self {
            Self::Linear => &[F32, Bf16, F16, Q8, Nf4],
            Self::Dequantise => &[Q8, Nf4],
            Self::Attention => &[F32, Bf16, F16],
            Self::RmsNorm | Self::Rope | Self::Swiglu | Self::Add => &[F32],
        }
    }
}

/// What a model's operations work on.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Each shape of its matrices, `[rows, cols]`.
    pub matrices: Vec<[usize; 2]>,
    /// Width of the residual.
    pub hidden: usize,
    /// Width of an MLP, or of an expert.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

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
    /// Positions that attention looks at.
    pub positions: usize,
    /// What is timed of each case, `loops` times; at least one call.
    pub runtime: Duration,
    /// How often each case is run.
    pub loops: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Memory that may be mapped.
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

#[derive(Clone, Debug, PartialEq)]
struct Case {
    operation: Operation,
    encoding: Encoding,
    /// `[rows, cols]` of weights, `[heads, kv_heads, head_dim, positions]` of attention, `[heads, head_dim]` of rotary
    /// embeddings, a width of the rest.
    shape: Vec<usize>,
    rows: usize,
}

/// Runs the operations. `go_on` is asked before every case.
///
/// # Errors
/// Settings that make no sense, memory that is not there, threads that cannot be started, or [`Error::Interrupted`].
pub fn run(settings: &Settings, go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>) -> Result<Report> {
    check(settings)?;
    let mut notes = Vec::new();
    let cases = cases(settings, &mut notes);
    if cases.is_empty() {
        let what = "nothing to measure: no operation is left that has one of the encodings";
        return Err(Error::Settings(what.to_owned()));
    }
    let roof = Roof::measured(settings, go_on)?;
    notes.extend_from_slice(&roof.report.notes);
    let mut results = roof.report.results.clone();
    let cpu = Cpu::new(settings.threads).map_err(refused)?;
    let budget = Budget::new(settings.spread);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let mut memory = Arena::new(&budget, "weights to measure with", settings.spread, options)?
        .carve(settings.spread.get() as usize)?;
    // Numbers that are normal in every encoding; pages never written to would all be one.
    memory.as_mut_slice().fill(0x3c);
    let weights = memory.as_slice();
    for (done, case) in cases.iter().enumerate() {
        let what = format!("{} {} {:?} x {}", case.operation.name(), case.encoding, case.shape, case.rows);
        if go_on(&Step { what, done, of: cases.len() }).is_break() {
            return Err(Error::Interrupted);
        }
        results.push(Entry::Kernel(measure(case, settings, &cpu, weights, &roof)?));
    }
    Ok(Report { results, notes })
}

fn check(settings: &Settings) -> Result<()> {
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
    if settings.spread < Bytes::mib(8) {
        return wrong("at least 8 MiB of memory for weights");
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

fn cases(settings: &Settings, notes: &mut Vec<String>) -> Vec<Case> {
    let mut cases = Vec::new();
    let spread = settings.spread.get() as usize;
    for shape in &settings.shapes {
        for &operation in &settings.operations {
            let shapes = match operation {
                Operation::Linear | Operation::Dequantise => {
                    shape.matrices.iter().map(|matrix| matrix.to_vec()).collect()
                }
                Operation::Attention => {
                    vec![vec![shape.heads, shape.kv_heads, shape.head_dim, settings.positions]]
                }
                Operation::Rope => vec![vec![shape.heads, shape.head_dim]],
                Operation::Swiglu => vec![vec![shape.intermediate]],
                Operation::RmsNorm | Operation::Add => vec![vec![shape.hidden]],
            };
            // Weights are dequantised whatever is computed with them.
            let rows = if operation == Operation::Dequantise { &[0][..] } else { &settings.rows };
            for shape in &shapes {
                for &encoding in operation.encodings().iter().filter(|e| settings.encodings.contains(e)) {
                    let Some(shape) = fitting(operation, encoding, shape, spread, notes) else { continue };
                    for &rows in rows {
                        let case = Case { operation, encoding, shape: shape.clone(), rows };
                        if !cases.contains(&case) {
                            cases.push(case);
                        }
                    }
                }
            }
        }
    }
    cases
}

/// As many rows of a matrix, or positions of a cache, as there is memory for.
fn fitting(
    operation: Operation,
    encoding: Encoding,
    shape: &[usize],
    spread: usize,
    notes: &mut Vec<String>,
) -> Option<Vec<usize>> {
    let mut shape = shape.to_vec();
    let (of, unit) = match operation {
        Operation::Linear | Operation::Dequantise => (0, encoding.row_bytes(shape[1])?),
        Operation::Attention => (3, 2 * shape[1] * encoding.row_bytes(shape[2])?),
        _ => return Some(shape),
    };
    let most = spread / unit.max(1);
    if shape[of] > most {
        notes.push(format!(
            "{} {encoding} {shape:?}: cut to {most}, which is what the memory for weights holds",
            operation.name()
        ));
        shape[of] = most;
    }
    (most > 0).then_some(shape)
}

/// What this machine does at most.
struct Roof {
    report: host::Report,
    memory: f64,
    flops: f64,
}

impl Roof {
    fn measured(settings: &Settings, go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>) -> Result<Self> {
        let report = host::run(
            &host::Settings {
                tests: vec![host::Test::Read, host::Test::Flops],
                threads: vec![settings.threads],
                pages: vec![host::Pages::Huge],
                size: settings.spread,
                runtime: settings.runtime.max(Duration::from_millis(20)),
                loops: settings.loops.max(3),
                memory: settings.memory,
            },
            go_on,
        )?;
        let best = |of: fn(&Entry) -> Option<f64>| report.results.iter().filter_map(of).fold(0.0, f64::max);
        let memory = best(|entry| match entry {
            Entry::Host(result) => Some(result.bandwidth.bytes_per_second),
            _ => None,
        });
        let flops = best(|entry| match entry {
            Entry::Flops(result) => Some(result.flops_per_second),
            _ => None,
        });
        Ok(Self { memory, flops, report })
    }

    fn of(&self, flops_per_byte: f64) -> f64 {
        self.memory.min(self.flops / flops_per_byte.max(1e-9))
    }
}

fn refused(error: narrows_cpu::Error) -> Error {
    Error::Settings(error.to_string())
}

fn measure(case: &Case, settings: &Settings, cpu: &Cpu, weights: &[u8], roof: &Roof) -> Result<KernelResult> {
    let Work { mut call, bytes, flops, cold } = work(case, cpu, weights)?;
    // Pages of the operands are in place, threads awake.
    call(0).map_err(refused)?;
    let mut samples = Vec::new();
    let mut index = 1;
    for _ in 0..settings.loops {
        let (start, mut calls) = (Instant::now(), 0.0);
        while calls == 0.0 || start.elapsed() < settings.runtime {
            call(index).map_err(refused)?;
            index += 1;
            calls += 1.0;
        }
        samples.push(bytes * calls / start.elapsed().as_secs_f64().max(1e-9));
    }
    let flops_per_byte = flops / bytes.max(1.0);
    Ok(KernelResult {
        operation: case.operation.name().to_owned(),
        backend: "cpu".to_owned(),
        encoding: case.encoding.to_string(),
        shape: case.shape.clone(),
        rows: case.rows,
        bandwidth: Samples::of(samples),
        flops_per_byte,
        roof_bytes_per_second: cold.then(|| roof.of(flops_per_byte)),
    })
}

/// A case, ready to run.
struct Work<'a> {
    /// Does it for the n-th time.
    call: Box<dyn FnMut(usize) -> std::result::Result<(), narrows_cpu::Error> + 'a>,
    /// That a call reads and writes at least.
    bytes: f64,
    /// Multiplications, additions and divisions of a call; an exponential is one.
    flops: f64,
    /// Whether most of the bytes come from memory.
    cold: bool,
}

fn work<'a>(case: &Case, cpu: &'a Cpu, weights: &'a [u8]) -> Result<Work<'a>> {
    let (rows, encoding) = (case.rows, case.encoding);
    let too_wide = || Error::Settings(format!("{:?} is more than can be counted", case.shape));
    // The n-th copy of so many bytes of weights.
    let copy = move |n: usize, len: usize| {
        let copies = (weights.len() / len.max(1)).max(1);
        &weights[n % copies * len..][..len]
    };
    Ok(match (case.operation, &case.shape[..]) {
        (Operation::Linear, &[out, cols]) => {
            let len = encoding.row_bytes(cols).and_then(|row| row.checked_mul(out)).ok_or_else(too_wide)?;
            let (x, mut y) = (vec![0.5; rows * cols], vec![0.0; rows * out]);
            Work {
                call: Box::new(move |n| {
                    let matrix = Matrix::new(encoding, out, cols, copy(n, len))?;
                    cpu.linear(matrix, &x, RowsMut::new(&mut y, out, 0)?)
                }),
                bytes: (len + 4 * rows * (cols + out)) as f64,
                flops: 2.0 * (rows * cols) as f64 * out as f64,
                cold: true,
            }
        }
        (Operation::Dequantise, &[out, cols]) => {
            let len = encoding.row_bytes(cols).and_then(|row| row.checked_mul(out)).ok_or_else(too_wide)?;
            let mut to = vec![0; 2 * out * cols];
            Work {
                call: Box::new(move |n| {
                    cpu.dequantise(Matrix::new(encoding, out, cols, copy(n, len))?, Encoding::Bf16, &mut to)
                }),
                bytes: (len + 2 * out * cols) as f64,
                flops: (out * cols) as f64,
                cold: true,
            }
        }
        (Operation::Attention, &[heads, kv_heads, head_dim, positions]) => {
            let row = encoding.row_bytes(head_dim).ok_or_else(too_wide)?;
            let len = kv_heads * positions * row;
            let width = heads * head_dim;
            let (q, mut out) = (vec![0.01; rows * width], vec![0.0; rows * width]);
            // The rows of a chunk are the last positions, and each sees those up to its own.
            let first = positions.saturating_sub(rows);
            let seen: usize = (0..rows).map(|row| (first + row).min(positions - 1) + 1).sum();
            Work {
                call: Box::new(move |n| {
                    let (keys, values) = copy(n, 2 * len).split_at(len);
                    let kv = KvView { encoding, keys, values, capacity: positions, kv_heads, head_dim };
                    let at = |row: usize| (first + row).min(positions - 1);
                    let rows: Vec<_> =
                        (0..rows).map(|row| AttentionRow { kv, position: at(row), window: None }).collect();
                    cpu.attention(&q, &rows, heads, (head_dim as f32).powf(-0.5), &mut out)
                }),
                bytes: (2 * len + 8 * rows * width) as f64,
                flops: 4.0 * width as f64 * seen as f64,
                cold: true,
            }
        }
        (Operation::RmsNorm, &[width]) => {
            let (x, weight, mut out) = (vec![0.5; rows * width], vec![1.0; width], vec![0.0; rows * width]);
            Work {
                call: Box::new(move |_| cpu.rms_norm(black_box(&x), &weight, 1e-5, &mut out)),
                bytes: (8 * rows * width + 4 * width) as f64,
                flops: 4.0 * (rows * width) as f64,
                cold: false,
            }
        }
        (Operation::Rope, &[heads, head_dim]) => {
            let mut x = vec![0.5; rows * heads * head_dim];
            // Angles of zero, so that nothing grows however often it is rotated.
            let (cos, sin) = (vec![1.0; rows * head_dim / 2], vec![0.0; rows * head_dim / 2]);
            Work {
                call: Box::new(move |_| cpu.rope(black_box(&mut x), heads, head_dim, &cos, &sin)),
                bytes: (8 * rows * heads * head_dim + 4 * rows * head_dim) as f64,
                flops: 3.0 * (rows * heads * head_dim) as f64,
                cold: false,
            }
        }
        (Operation::Swiglu, &[width]) => {
            let (mut gate, up) = (vec![1.0; rows * width], vec![1.4; rows * width]);
            Work {
                // The result stands where the gate stood, and would become subnormal: each call has a new gate, which
                // counts as written.
                call: Box::new(move |_| {
                    gate.fill(1.0);
                    cpu.swiglu(black_box(&mut gate), &up)
                }),
                bytes: 16.0 * (rows * width) as f64,
                flops: 5.0 * (rows * width) as f64,
                cold: false,
            }
        }
        (Operation::Add, &[width]) => {
            let (x, mut y) = (vec![0.0; rows * width], vec![1.0; rows * width]);
            Work {
                call: Box::new(move |_| cpu.add(black_box(&x), &mut y)),
                bytes: 12.0 * (rows * width) as f64,
                flops: (rows * width) as f64,
                cold: false,
            }
        }
        _ => return Err(too_wide()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
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
        let report = run(&settings(), &mut |_| ControlFlow::Continue(())).unwrap();
        let kernels: Vec<_> = report
            .results
            .iter()
            .filter_map(|entry| match entry {
                Entry::Kernel(result) => Some(result),
                _ => None,
            })
            .collect();
        // Two matrices in three encodings and one, attention in two, four in one; all but dequantising by rows.
        assert_eq!(kernels.len(), 2 * 3 * 2 + 2 + 2 * 2 + 4 * 2);
        assert_eq!(report.results.len() - kernels.len(), 2);
        for kernel in &kernels {
            assert!(kernel.bandwidth.bytes_per_second > 0.0 && kernel.flops_per_byte > 0.0, "{kernel:?}");
            let cold = ["linear", "dequantise", "attention"].contains(&kernel.operation.as_str());
            assert_eq!(kernel.roof_bytes_per_second.is_some(), cold);
        }
        // A row times a matrix of 4096 x 128 in bf16: two operations a weight, two bytes each and the activations.
        let linear = kernels.iter().find(|k| k.encoding == "bf16" && k.shape == [4096, 128] && k.rows == 1);
        let bytes = 4096.0 * 128.0 * 2.0 + 4.0 * (4096.0 + 128.0);
        assert!((linear.unwrap().flops_per_byte - 2.0 * 4096.0 * 128.0 / bytes).abs() < 1e-9);
    }

    #[test]
    fn what_is_too_large_is_cut_and_said() {
        let mut settings = settings();
        settings.shapes[0].matrices = vec![[1 << 20, 128]];
        settings.operations = vec![Operation::Linear];
        settings.encodings = vec![Encoding::F32];
        let mut notes = Vec::new();
        let cases = cases(&settings, &mut notes);
        assert_eq!(cases[0].shape, [(8 << 20) / 512, 128]);
        assert!(notes[0].contains("cut to 16384"), "{notes:?}");
    }

    #[test]
    fn settings_that_make_no_sense() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            run(&settings, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
        };
        assert!(with(|s| s.rows = vec![0]).contains("rows"));
        assert!(with(|s| s.loops = 0).contains("loops"));
        assert!(with(|s| s.positions = 0).contains("positions"));
        assert!(with(|s| s.spread = Bytes::mib(4096)).contains("may be used"));
        assert!(with(|s| s.encodings = Vec::new()).contains("nothing to measure"));
        let ended = run(&settings(), &mut |_| ControlFlow::Break(()));
        assert!(matches!(ended, Err(Error::Interrupted)));
    }
}
