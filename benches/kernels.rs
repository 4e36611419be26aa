//! Kernels beside the bandwidth that this device's memory has: `cargo bench -p narrows-kernels --bench kernels`.
//!
//! Every figure is the median of several series of launches between two events of the stream. The operands of a
//! series rotate through more memory than four times the second-level cache, so that nothing is found there
//! again. `--json FILE` writes the figures down, `--only WORD` takes the cases whose name has that word.
//!
//! A new operation is a function that pushes its [`Case`]s, and a line in [`cases`].

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a benchmark is for")]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use half::{bf16, f16};
use narrows_bytes::Bytes;
use narrows_kernels::{AttentionShape, Kernels, KvLayout, KvRow, Matrix, RowsMut, Segment};
use narrows_shard::{Encoding, blocks};
use narrows_staging::device::{
    Carving, Copier, Device, DeviceArena, DeviceRegion, DeviceSlice, Event, Priority, Source, Stream,
};
use narrows_staging::{Arena, ArenaOptions, Budget, Memory as _, Slot};
use serde_json::json;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Series of launches, of which the median counts.
const SERIES: usize = 9;
/// A series takes at least so long, so that starting and ending it does not count.
const SERIES_SECONDS: f64 = 0.02;
/// What matrices are cut out of: the largest, a head in f32, has this size.
const POOL: usize = 4_300_000_000;
/// What is copied from the host at a time, as a run with the defaults does, and how many of them: more than its
/// caches hold.
const TILE: usize = 8 << 20;
const TILES: usize = 128;

/// One line of the table.
struct Case {
    operation: &'static str,
    /// What is computed: shapes and encodings.
    what: String,
    /// Bytes that must be read and written.
    bytes: usize,
    /// Floating-point operations, a multiplication and an addition being two.
    flops: usize,
    /// Does it once, on the operands number `turn` of those that rotate.
    run: Box<dyn Fn(usize) -> Result<()>>,
}

/// The device and what all cases share.
struct Bench {
    device: Device,
    stream: Stream,
    kernels: Rc<Kernels>,
    /// Memory to cut operands out of, and one bigger than any cache.
    pool: DeviceSlice,
    cache: usize,
    /// The software driver runs everything in small, to show that it runs.
    software: bool,
}

struct Figure {
    seconds: f64,
    gigabytes: f64,
}

fn main() -> ExitCode {
    let run = || -> Result<()> {
        let (mut json_file, mut only) = (None, None);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--json" => json_file = Some(PathBuf::from(arguments.next().ok_or("--json needs a file")?)),
                "--only" => only = Some(arguments.next().ok_or("--only needs a word")?),
                "--bench" => {} // from cargo
                other => return Err(format!("unknown argument {other}; there are --json and --only").into()),
            }
        }
        let report = Bench::open()?.measure(only.as_deref())?;
        if let Some(file) = json_file {
            std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
            println!("written to {}", file.display());
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Bench {
    fn open() -> Result<Self> {
        let device = Device::open(0)?;
        let software = device.name().contains("software");
        let stream = Stream::new(&device, Priority::Normal)?;
        let kernels = Rc::new(Kernels::load(&device)?);
        let cache = device.context().attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let cache = usize::try_from(cache)?;
        let free = usize::try_from(device.free()?.get())?;
        let len = if software { 1 << 22 } else { POOL.min(free / 2) / 256 * 256 };
        let pool = range(&device, len)?;
        Ok(Self { device, stream, kernels, pool, cache, software })
    }

    fn measure(&self, only: Option<&str>) -> Result<serde_json::Value> {
        let (major, minor) = self.device.compute_capability();
        if self.software {
            println!("software driver: no figures of a GPU");
        }
        println!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, {} MiB of second-level cache, driver {}.{}",
            self.device.name(),
            self.device.multiprocessors(),
            self.cache >> 20,
            self.device.driver_version() / 1000,
            self.device.driver_version() % 1000 / 10,
        );
        let copy = self.copy()?;
        println!("copy within the device, read and written: {:.1} GB/s", copy.gigabytes);
        // A machine may refuse to pin so much; the kernels do not need it.
        let h2d = self.link().map_err(|error| eprintln!("no copies from pinned memory: {error}")).ok();
        if let Some(h2d) = h2d {
            println!("copies of {} from pinned memory: {h2d:.2} GB/s\n", Bytes(TILE as u64));
        }
        println!(
            "{:<14} {:<38} {:>10} {:>10} {:>8} {:>9}",
            "operation", "of", "us", "GB/s", "% copy", "TFLOP/s"
        );
        let mut figures = Vec::new();
        let mut measure_all = |cases: Vec<Case>| -> Result<()> {
            for case in cases {
                if only.is_some_and(|word| !case.operation.contains(word) && !case.what.contains(word)) {
                    continue;
                }
                let figure = self.time(case.bytes, &case.run)?;
                let percent = 100.0 * figure.gigabytes / copy.gigabytes;
                let teraflops = case.flops as f64 / figure.seconds / 1e12;
                println!(
                    "{:<14} {:<38} {:>10.2} {:>10.1} {percent:>8.1} {teraflops:>9.2}",
                    case.operation,
                    case.what,
                    figure.seconds * 1e6,
                    figure.gigabytes,
                );
                figures.push(json!({
                    "operation": case.operation, "of": case.what, "bytes": case.bytes, "flops": case.flops,
                    "seconds": figure.seconds, "gigabytes_per_second": figure.gigabytes,
                    "percent_of_copy": percent, "teraflops": teraflops,
                }));
            }
            Ok(())
        };
        cases(self, &mut measure_all)?;
        Ok(json!({
            "device": self.device.name(),
            "software_driver": self.software,
            "compute_capability": format!("{major}.{minor}"),
            "driver": self.device.driver_version(),
            "toolkit": Kernels::toolkit(),
            "multiprocessors": self.device.multiprocessors(),
            "cache_bytes": self.cache,
            "copy_gigabytes_per_second": copy.gigabytes,
            "h2d_gigabytes_per_second": h2d,
            "cases": figures,
        }))
    }

    /// The yardstick: the driver's own copy, of as much as there is room for, up to 1 GiB.
    fn copy(&self) -> Result<Figure> {
        let len = (self.pool.len() / 2).min(1 << 30) / 256 * 256;
        let (from, to) = (self.pool.slice(0..len)?, self.pool.slice(len..2 * len)?);
        self.stream.zero(&self.pool)?;
        let stream = self.stream.clone();
        self.time(2 * len, &move |_| Ok(stream.copy(&from, &to)?))
    }

    /// What the link carries: tiles in pinned memory, copied one after the other into a few slots of the device
    /// that nobody uses. Gigabytes per second of the device's clock, from the first copy's start to the last's end.
    fn link(&self) -> Result<f64> {
        let (tile, tiles, series) = if self.software { (TILE / 64, 4, 1) } else { (TILE, TILES, SERIES) };
        let budget = Budget::new(Bytes((tile * tiles) as u64));
        let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
        let arena = Arena::new(&budget, "tiles", budget.cap(), options)?;
        let mut copier = Copier::new(&self.device)?;
        copier.pin(&arena)?;
        let filled = |bytes: &mut [u8]| -> Result<_> {
            bytes.fill(0x3c);
            Ok(0..bytes.len())
        };
        let sources = (0..tiles).map(|tag| -> Result<_> {
            let slot = Slot::new(arena.carve(tile)?).fill(tag as u64);
            Ok(Arc::new(slot.fill_with(filled).map_err(|(error, _)| error)?.take()))
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let slots =
            (0..4).map(|_| Ok(Slot::new(DeviceRegion::new(range(&self.device, tile)?, &self.stream)?)));
        let mut slots = slots.collect::<Result<std::collections::VecDeque<_>>>()?;
        let mut pass = || -> Result<f64> {
            for (tag, source) in sources.iter().enumerate() {
                let slot = slots.pop_front().ok_or("no slot")?.fill(tag as u64);
                let ready =
                    copier.copy(Source::Staying(Arc::clone(source)), slot).map_err(|(error, _)| error)?;
                // What a stream that uses the tile does, and this one does nothing in between.
                ready.memory().acquire()?;
                ready.memory().release()?;
                slots.push_back(ready.take().release());
            }
            let first = copier.wait()?.ok_or("nothing was copied")?;
            let mut end = first.time.end;
            while let Some(copied) = copier.wait()? {
                end = copied.time.end;
            }
            Ok((tile * tiles) as f64 / (end - first.time.start).as_secs_f64() / 1e9)
        };
        pass()?;
        let mut speeds = (0..series).map(|_| pass()).collect::<Result<Vec<_>>>()?;
        speeds.sort_by(f64::total_cmp);
        Ok(speeds[series / 2])
    }

    fn time(&self, bytes: usize, run: &dyn Fn(usize) -> Result<()>) -> Result<Figure> {
        let (start, end) = (Event::timed(&self.device)?, Event::timed(&self.device)?);
        let mut turn = 0;
        let mut series = |launches: usize| -> Result<f64> {
            start.record(&self.stream)?;
            for _ in 0..launches {
                run(turn)?;
                turn += 1;
            }
            end.record(&self.stream)?;
            end.synchronize()?;
            Ok(start.until(&end)?.as_secs_f64() / launches as f64)
        };
        if self.software {
            let seconds = series(1)?.max(f64::MIN_POSITIVE);
            return Ok(Figure { seconds, gigabytes: bytes as f64 / seconds / 1e9 });
        }
        series(3)?;
        let estimate = series(10)?;
        let launches = ((SERIES_SECONDS / estimate.max(1e-7)) as usize).clamp(4, 20_000);
        let mut times = (0..SERIES).map(|_| series(launches)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        let seconds = times[SERIES / 2];
        Ok(Figure { seconds, gigabytes: bytes as f64 / seconds / 1e9 })
    }

    /// How many sets of operands of `bytes` rotate.
    fn rotation(&self, bytes: usize) -> usize {
        (4 * self.cache / bytes.max(1) + 1).min(self.pool.len() / bytes.max(1)).max(1)
    }

    /// The pool full of numbers in -1..1.
    fn fill(&self, encoding: Encoding) -> Result<()> {
        let block = encode(encoding, &noise(1, (1 << 22).min(self.pool.len()) / 4));
        let mut filled = block.len().min(self.pool.len());
        self.stream.upload(&block[..filled], &self.pool.slice(0..filled)?)?;
        while filled < self.pool.len() {
            let more = filled.min(self.pool.len() - filled);
            self.stream.copy(&self.pool.slice(0..more)?, &self.pool.slice(filled..filled + more)?)?;
            filled += more;
        }
        Ok(())
    }

    fn f32s(&self, values: &[f32]) -> Result<DeviceSlice> {
        let to = range(&self.device, values.len() * 4)?;
        self.stream.upload(bytemuck::cast_slice(values), &to)?;
        Ok(to)
    }
}

/// Hands over every case, those of one operation at a time: what they need is freed before the next.
fn cases(bench: &Bench, measure: &mut dyn FnMut(Vec<Case>) -> Result<()>) -> Result<()> {
    for encoding in [Encoding::Q8, Encoding::Nf4, Encoding::Bf16, Encoding::F16, Encoding::F32] {
        bench.fill(encoding)?;
        measure(linear(bench, encoding)?)?;
        if encoding.block().is_some() {
            measure(dequantise(bench, encoding)?)?;
        }
        if matches!(encoding, Encoding::Bf16 | Encoding::F16) {
            measure(attention(bench, encoding)?)?;
        }
    }
    bench.fill(Encoding::F32)?;
    for n in if bench.software { [2, 4] } else { [512, 4096] } {
        measure(elementwise(bench, n)?)?;
    }
    measure(searches(bench)?)
}

/// The matrices of Llama 70B: for single rows, for a batch that decodes, and for a prompt.
fn linear(bench: &Bench, encoding: Encoding) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let few = matches!(encoding, Encoding::Bf16 | Encoding::Q8 | Encoding::Nf4);
    let rows_of_x = if few { &[1, 2, 4, 8, 16, 64, 512][..] } else { &[1, 64, 512] };
    for (rows, cols) in [(8192, 8192), (28_672, 8192), (8192, 28_672), (1024, 8192), (128_256, 8192)] {
        let (rows, cols) = if bench.software { (rows / 512, cols / 16) } else { (rows, cols) };
        let len = rows * encoding.row_bytes(cols).ok_or("overflow")?;
        if len > bench.pool.len() {
            println!("{encoding} [{rows}, {cols}] does not fit into half of what is free");
            continue;
        }
        for &n in rows_of_x {
            if n > Kernels::MATVEC_ROWS && rows > 30_000 {
                continue; // the head is for few rows
            }
            let turns = bench.rotation(len);
            let operand = encoding.operand();
            let x = range(&bench.device, operand.row_bytes(n * cols).ok_or("overflow")?)?;
            bench.stream.upload(&encode(operand, &noise(2, n * cols)), &x)?;
            let y = range(&bench.device, n * rows * 4)?;
            let (kernels, stream) = (bench.kernels.clone(), bench.stream.clone());
            let weights: Vec<_> =
                (0..turns).map(|i| bench.pool.slice(i * len..(i + 1) * len)).collect::<Result<_, _>>()?;
            cases.push(Case {
                operation: if n > Kernels::MATVEC_ROWS { "gemm" } else { "matvec" },
                what: format!("{encoding} [{rows}, {cols}] x {n}"),
                bytes: len + x.len() + y.len(),
                flops: 2 * rows * cols * n,
                run: Box::new(move |turn| {
                    let matrix = Matrix::new(&weights[turn % turns], encoding, rows, cols)?;
                    Ok(kernels.linear(&stream, &matrix, &x, &RowsMut::new(&y, rows, 0)?)?)
                }),
            });
        }
    }
    Ok(cases)
}

/// A matrix of Llama 70B as numbers. Bytes are those read and those written.
fn dequantise(bench: &Bench, stored: Encoding) -> Result<Vec<Case>> {
    let (rows, cols) = if bench.software { (8, 512) } else { (8192, 8192) };
    let len = rows * stored.row_bytes(cols).ok_or("overflow")?;
    let turns = bench.rotation(len);
    let mut cases = Vec::new();
    for encoding in Encoding::PLAIN {
        let out = range(&bench.device, encoding.row_bytes(rows * cols).ok_or("overflow")?)?;
        let (kernels, stream) = (bench.kernels.clone(), bench.stream.clone());
        let weights: Vec<_> =
            (0..turns).map(|i| bench.pool.slice(i * len..(i + 1) * len)).collect::<Result<_, _>>()?;
        cases.push(Case {
            operation: "dequantise",
            what: format!("{stored} [{rows}, {cols}] to {encoding}"),
            bytes: len + out.len(),
            flops: 0,
            run: Box::new(move |turn| {
                let matrix = Matrix::new(&weights[turn % turns], stored, rows, cols)?;
                Ok(kernels.dequantise(&stream, &matrix, encoding, &out)?)
            }),
        });
    }
    Ok(cases)
}

/// Attention of Llama 70B: single rows far into a sequence, and a prompt from its start.
fn attention(bench: &Bench, encoding: Encoding) -> Result<Vec<Case>> {
    const HEADS: usize = 64;
    let layout = KvLayout { encoding, kv_heads: 8, head_dim: 128 };
    let width = HEADS * layout.head_dim;
    let mut cases = Vec::new();
    // Sequences, rows of each, and the positions of the last ones and those before.
    let shapes: [(usize, usize, usize); 6] =
        [(1, 1, 8192), (1, 1, 32_768), (8, 1, 8192), (1, 8, 8192), (1, 512, 4096), (1, 4096, 4096)];
    for (sequences, rows, end) in shapes {
        let (rows, end) = if bench.software { (rows.div_ceil(128), end / 64) } else { (rows, end) };
        let n = sequences * rows;
        let position = end - rows;
        let cache = layout.layer_bytes(end).ok_or("overflow")?;
        let bytes = sequences * cache;
        if bytes > bench.pool.len() {
            println!("a cache of {end} positions does not fit into half of what is free");
            continue;
        }
        let turns = bench.rotation(bytes);
        let tables: Vec<_> = (0..turns)
            .map(|turn| -> Result<_> {
                let of_sequence = |sequence: usize| {
                    let base = bench.pool.address() + (turn * bytes + sequence * cache) as u64;
                    (position as u32..end as u32).map(move |position| KvRow {
                        base,
                        capacity: end as u32,
                        position,
                    })
                };
                let table: Vec<_> = (0..sequences).flat_map(of_sequence).collect();
                let to = range(&bench.device, size_of_val(&table[..]))?;
                bench.stream.upload(bytemuck::cast_slice(&table), &to)?;
                Ok(to)
            })
            .collect::<Result<_, _>>()?;
        let q = bench.f32s(&noise(5, n * width))?;
        let out = range(&bench.device, encoding.row_bytes(n * width).ok_or("overflow")?)?;
        let scratch = range(&bench.device, Kernels::attention_scratch_bytes(n, HEADS, layout.head_dim, end))?;
        let segments = vec![Segment { rows, position }; sequences];
        let (kernels, stream, pool) = (bench.kernels.clone(), bench.stream.clone(), bench.pool.clone());
        // Each row sees as many positions as there are up to its own, and each takes two products.
        let pairs = sequences * rows * (position + end + 1) / 2;
        cases.push(Case {
            operation: "attention",
            what: format!("{encoding} {sequences} x {rows} up to {end}"),
            bytes: bytes + q.len() + out.len(),
            flops: 4 * pairs * width,
            run: Box::new(move |turn| {
                let _kept = &pool;
                let shape = AttentionShape { heads: HEADS, scale: 0.088, window: None, segments: &segments };
                let table = &tables[turn % tables.len()];
                Ok(kernels.attention(&stream, &q, table, &layout, 0, &shape, &scratch, encoding, &out)?)
            }),
        });
    }
    Ok(cases)
}

/// What is done to `n` rows of activations of Llama 70B.
fn elementwise(bench: &Bench, n: usize) -> Result<Vec<Case>> {
    const HEADS: usize = 64;
    const KV_HEADS: usize = 8;
    const HEAD_DIM: usize = 128;
    let (hidden, intermediate) = (HEADS * HEAD_DIM, 28_672);
    let mut cases = Vec::new();
    let out = Encoding::Bf16;
    let mut push = |operation, what, bytes, run: Box<dyn Fn(usize) -> Result<()>>| {
        cases.push(Case { operation, what, bytes, flops: 0, run });
    };
    // Operands of one turn lie one after the other in the pool.
    let sets = |lens: &[usize]| -> Result<Vec<Vec<DeviceSlice>>> {
        let total: usize = lens.iter().sum();
        (0..bench.rotation(total))
            .map(|turn| {
                let mut at = turn * total;
                lens.iter()
                    .map(|len| {
                        at += len;
                        Ok(bench.pool.slice(at - len..at)?)
                    })
                    .collect()
            })
            .collect()
    };
    let (kernels, stream) = (&bench.kernels, &bench.stream);

    let weight = bench.f32s(&vec![1.0; hidden])?;
    let (rows, rows_out) = (n * hidden * 4, n * hidden * 2);
    for with_delta in [false, true] {
        let (sets, kernels, stream, weight) =
            (sets(&[rows, rows, rows_out])?, kernels.clone(), stream.clone(), weight.clone());
        let bytes = rows + rows_out + if with_delta { 2 * rows } else { 0 };
        let what = format!("[{n}, {hidden}]{}", if with_delta { ", sum" } else { "" });
        let run = move |turn: usize| {
            let [x, delta, to] = &sets[turn % sets.len()][..] else { return Ok(()) };
            let delta = with_delta.then_some(delta);
            Ok(kernels.rms_norm(&stream, x, delta, &weight, 1e-5, out, to)?)
        };
        push("rms_norm", what, bytes, Box::new(run));
    }

    let (heads, head_weight) = (sets(&[rows])?, bench.f32s(&[1.0; HEAD_DIM])?);
    let (own, queue) = (kernels.clone(), stream.clone());
    let run = move |turn: usize| {
        Ok(own.rms_norm_in_place(&queue, &heads[turn % heads.len()][0], &head_weight, 1e-5)?)
    };
    push("head_norm", format!("[{n}, {HEADS}, {HEAD_DIM}]"), 2 * rows, Box::new(run));

    let angles = noise(3, n * HEAD_DIM / 2);
    let cos = bench.f32s(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?;
    let sin = bench.f32s(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?;
    let (heads, own, queue) = (sets(&[rows])?, kernels.clone(), stream.clone());
    let bytes = 2 * rows + cos.len() + sin.len();
    let run = move |turn: usize| {
        Ok(own.rope(&queue, &heads[turn % heads.len()][0], HEADS, HEAD_DIM, &cos, &sin)?)
    };
    push("rope", format!("[{n}, {HEADS}, {HEAD_DIM}]"), bytes, Box::new(run));

    let (wide, wide_out) = (n * intermediate * 4, n * intermediate * 2);
    let (gates, own, queue) = (sets(&[wide, wide, wide_out])?, kernels.clone(), stream.clone());
    let run = move |turn: usize| {
        let [gate, up, to] = &gates[turn % gates.len()][..] else { return Ok(()) };
        Ok(own.swiglu(&queue, gate, up, out, to)?)
    };
    push("swiglu", format!("[{n}, {intermediate}]"), 2 * wide + wide_out, Box::new(run));

    let (sums, own, queue) = (sets(&[rows, rows])?, kernels.clone(), stream.clone());
    let run = move |turn: usize| {
        let [a, x] = &sums[turn % sums.len()][..] else { return Ok(()) };
        Ok(own.add(&queue, a, x)?)
    };
    push("add", format!("[{n}, {hidden}]"), 3 * rows, Box::new(run));

    // Every other row of twice as many, as an expert gets some of a batch.
    let numbers: Vec<u32> = (0..n as u32).map(|i| 2 * i).collect();
    let named = range(&bench.device, n * size_of::<u32>())?;
    stream.upload(bytemuck::cast_slice(&numbers), &named)?;
    let (gathered, own, queue, of) =
        (sets(&[2 * rows, rows])?, kernels.clone(), stream.clone(), named.clone());
    let run = move |turn: usize| {
        let [x, to] = &gathered[turn % gathered.len()][..] else { return Ok(()) };
        Ok(own.gather_rows(&queue, x, Encoding::F32, hidden, &of, to)?)
    };
    push("gather_rows", format!("[{n}, {hidden}]"), 2 * rows, Box::new(run));

    let (scattered, own, queue) = (sets(&[rows, 2 * rows])?, kernels.clone(), stream.clone());
    let weights = bench.f32s(&noise(6, n))?;
    let run = move |turn: usize| {
        let [y, to] = &scattered[turn % scattered.len()][..] else { return Ok(()) };
        Ok(own.scatter_add(&queue, y, hidden, &named, &weights, to)?)
    };
    push("scatter_add", format!("[{n}, {hidden}]"), 3 * rows, Box::new(run));

    let layout = KvLayout { encoding: Encoding::Bf16, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
    let width = KV_HEADS * HEAD_DIM;
    let cache = range(&bench.device, layout.layer_bytes(n).ok_or("overflow")?)?;
    let places: Vec<_> =
        (0..n as u32).map(|position| KvRow { base: cache.address(), capacity: n as u32, position }).collect();
    let device_rows = range(&bench.device, n * size_of::<KvRow>())?;
    stream.upload(bytemuck::cast_slice(&places), &device_rows)?;
    let (kv, own, queue) = (sets(&[n * width * 4, n * width * 4])?, kernels.clone(), stream.clone());
    let bytes = 2 * n * width * 4 + cache.len();
    let run = move |turn: usize| {
        let _kept = &cache;
        let [k, v] = &kv[turn % kv.len()][..] else { return Ok(()) };
        Ok(own.kv_write(&queue, k, v, &device_rows, &layout, 0)?)
    };
    push("kv_write", format!("[{n}, {KV_HEADS}, {HEAD_DIM}]"), bytes, Box::new(run));
    Ok(cases)
}

/// What is looked for in logits. One row is one block: these are times, not bandwidths.
fn searches(bench: &Bench) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut push = |n: usize, cols: usize, k: usize| -> Result<()> {
        let logits = bench.f32s(&noise(4, n * cols))?;
        let (values, indices) = (range(&bench.device, n * k * 4)?, range(&bench.device, n * k * 4)?);
        let (kernels, stream) = (bench.kernels.clone(), bench.stream.clone());
        cases.push(Case {
            operation: if k == 0 { "argmax" } else { "top_k" },
            what: if k == 0 { format!("[{n}, {cols}]") } else { format!("{k} of [{n}, {cols}]") },
            bytes: n * cols * 4,
            flops: 0,
            run: if k == 0 {
                let out = range(&bench.device, n * 4)?;
                Box::new(move |_| Ok(kernels.argmax(&stream, &logits, &out)?))
            } else {
                Box::new(move |_| Ok(kernels.top_k(&stream, &logits, k, &values, &indices)?))
            },
        });
        Ok(())
    };
    let vocabulary = if bench.software { 1000 } else { 128_256 };
    push(1, vocabulary, 0)?;
    push(16, vocabulary, 0)?;
    push(1, vocabulary, 50)?;
    push(16, 128, 8)?;
    Ok(cases)
}

fn range(device: &Device, len: usize) -> Result<DeviceSlice> {
    let budget = Budget::new(Bytes(u64::MAX));
    let size = Bytes(len.next_multiple_of(256) as u64);
    Ok(DeviceArena::new(device, &budget, "operands", size, Carving::Together)?.carve(len)?)
}

fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    match encoding {
        Encoding::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Encoding::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        // In whole groups of blocks, which lie the same way in rows of any length that is a multiple of theirs.
        Encoding::Q8 | Encoding::Nf4 => {
            let mut bytes = vec![0; encoding.row_bytes(values.len() / 512 * 512).unwrap_or(0)];
            let _ = blocks::quantise(encoding, &values[..values.len() / 512 * 512], &mut bytes);
            bytes
        }
    }
}

/// Numbers in -1..1 that look random (SplitMix64): zeros would cost less power than weights do.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
