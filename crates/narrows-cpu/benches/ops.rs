//! How fast the operations are, beside what memory delivers.
//!
//! `cargo bench -p narrows-cpu -- matvec` (or `read`, `matmul`, `linear`, `dequantise`, `attention`, `rows`).
//! Threads: as many as the machine has; `NARROWS_BENCH_THREADS=1` for one.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may")]

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use narrows_cpu::{Activation, AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_shard::Encoding;

/// Weights are taken from different places of this much memory, so that they come from memory and not from
/// a cache.
const POOL: usize = 1 << 30;

fn threads() -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    std::env::var("NARROWS_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(all)
}

fn pool_of_memory() -> Vec<u8> {
    // 0x3c3c is a small number in bf16 and f16, and 0x3c3c3c3c is one in f32.
    vec![0x3c; POOL]
}

/// What a plain read of memory reaches with the same threads: the bound of a matvec.
fn read(c: &mut Criterion) {
    let memory = pool_of_memory();
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Bytes(POOL as u64));
    group.bench_function("memory", |b| {
        b.iter(|| black_box(fold(&memory)));
    });
}

/// All bytes of `memory` folded together, by all threads.
fn fold(memory: &[u8]) -> u64 {
    // Eight places at a time, as a matvec reads eight rows.
    let chunk = |words: &[u64]| {
        let (lines, len) = (words.as_chunks::<8>().0, words.len() / 64);
        let mut sums = [[0_u64; 8]; 8];
        for i in 0..len {
            for (stream, sums) in sums.iter_mut().enumerate() {
                for (sum, word) in sums.iter_mut().zip(&lines[stream * len + i]) {
                    *sum ^= word;
                }
            }
        }
        sums.as_flattened().iter().fold(0, |a, b| a ^ b)
    };
    let words: &[u64] = bytemuck::cast_slice(memory);
    thread::scope(|scope| {
        let parts = words.chunks(words.len().div_ceil(threads()).next_multiple_of(1 << 14));
        let fold = |part: &[u64]| part.chunks(1 << 14).map(chunk).fold(0, |a, b| a ^ b);
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || fold(part))).collect();
        parts.into_iter().map(|part| part.join().unwrap()).fold(0, |a, b| a ^ b)
    })
}

/// One row of activations: bound by memory. Shapes of a 1.1B, an 8B and a 70B Llama.
fn matvec(c: &mut Criterion) {
    let memory = pool_of_memory();
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("matvec");
    for (rows, cols) in [
        (256, 2048),
        (2048, 2048),
        (5632, 2048),
        (2048, 5632),
        (32_000, 2048),
        (14_336, 4096),
        (4096, 14_336),
        (8192, 28_672),
    ] {
        for encoding in Encoding::ALL {
            let len = rows * encoding.row_bytes(cols).unwrap();
            group.throughput(Throughput::Bytes(len as u64));
            let x = vec![0.5; cols];
            let mut y = vec![0.0; rows];
            let mut start = 0;
            group.bench_function(BenchmarkId::new(encoding.name(), format!("{rows}x{cols}")), |b| {
                b.iter(|| {
                    let w = Matrix::new(encoding, rows, cols, &memory[start..start + len]).unwrap();
                    cpu.linear(w, &x, RowsMut::new(&mut y, rows, 0).unwrap()).unwrap();
                    start = if start + 2 * len > POOL { 0 } else { start + len };
                });
            });
        }
    }
}

/// Many rows of activations: bound by the multipliers. Throughput in multiply-adds: times two for FLOP.
fn matmul(c: &mut Criterion) {
    let memory = pool_of_memory();
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("matmul");
    group.sample_size(10);
    for (n, rows, cols) in [
        (2, 2048, 2048),
        (4, 2048, 2048),
        (6, 2048, 2048),
        (8, 2048, 2048),
        (12, 2048, 2048),
        (16, 2048, 2048),
        (64, 2048, 2048),
        (512, 2048, 2048),
        (512, 2048, 5632),
        (512, 1024, 14_336),
        (512, 512, 28_672),
    ] {
        for encoding in Encoding::ALL {
            let len = rows * encoding.row_bytes(cols).unwrap();
            group.throughput(Throughput::Elements((n * rows * cols) as u64));
            let w = Matrix::new(encoding, rows, cols, &memory[..len]).unwrap();
            let x = vec![0.5; n * cols];
            let mut y = vec![0.0; n * rows];
            group.bench_function(BenchmarkId::new(encoding.name(), format!("{n}x{rows}x{cols}")), |b| {
                b.iter(|| cpu.linear(w, &x, RowsMut::new(&mut y, rows, 0).unwrap()).unwrap());
            });
        }
    }
}

/// Every encoding in the shapes of an 8B and a 70B Llama, for one row, a few and a prompt, in bytes of stored
/// weights: what a plain read of memory stands beside, each time anew, since machines are shared.
fn linear(c: &mut Criterion) {
    let memory = pool_of_memory();
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("linear");
    group.sample_size(10);
    for (rows, cols) in [(14_336, 4096), (4096, 14_336), (8192, 8192), (8192, 28_672)] {
        let len = 256 << 20;
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("read", format!("before {rows}x{cols}")), |b| {
            b.iter(|| black_box(fold(&memory[..len])));
        });
        for encoding in Encoding::ALL {
            let len = rows * encoding.row_bytes(cols).unwrap();
            group.throughput(Throughput::Bytes(len as u64));
            for n in [1, 8, 64] {
                let (x, mut y) = (vec![0.5; n * cols], vec![0.0; n * rows]);
                let mut start = 0;
                group.bench_function(BenchmarkId::new(encoding.name(), format!("{rows}x{cols}x{n}")), |b| {
                    b.iter(|| {
                        let w = Matrix::new(encoding, rows, cols, &memory[start..start + len]).unwrap();
                        cpu.linear(w, &x, RowsMut::new(&mut y, rows, 0).unwrap()).unwrap();
                        start = if start + 2 * len > POOL { 0 } else { start + len };
                    });
                });
            }
        }
    }
}

/// Quantised weights as numbers, in bytes of what is written.
fn dequantise(c: &mut Criterion) {
    let memory = pool_of_memory();
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("dequantise");
    group.sample_size(10);
    let (rows, cols) = (4096, 4096);
    for stored in Encoding::QUANTISED {
        let len = rows * stored.row_bytes(cols).unwrap();
        for encoding in Encoding::PLAIN {
            let mut out = vec![0; encoding.row_bytes(rows * cols).unwrap()];
            group.throughput(Throughput::Bytes(out.len() as u64));
            let mut start = 0;
            group.bench_function(BenchmarkId::new(stored.name(), encoding), |b| {
                b.iter(|| {
                    let w = Matrix::new(stored, rows, cols, &memory[start..start + len]).unwrap();
                    cpu.dequantise(w, encoding, &mut out).unwrap();
                    start = if start + 2 * len > POOL { 0 } else { start + len };
                });
            });
        }
    }
}

/// Decode against a long cache (bytes of the cache), and a prompt against itself (multiply-adds).
fn attention(c: &mut Criterion) {
    let memory = pool_of_memory();
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("attention");
    group.sample_size(20);
    for (heads, kv_heads, head_dim) in [(32, 4, 64), (32, 8, 128)] {
        for encoding in [Encoding::F32, Encoding::Bf16] {
            let capacity = 4096;
            let len = kv_heads * capacity * encoding.row_bytes(head_dim).unwrap();
            let (keys, values) = (&memory[..len], &memory[len..2 * len]);
            let kv = KvView { encoding, keys, values, capacity, kv_heads, head_dim };
            let rows: Vec<_> = (0..512).map(|position| AttentionRow { kv, position, window: None }).collect();
            let last = [AttentionRow { kv, position: capacity - 1, window: None }];
            for (name, rows, throughput) in [
                ("decode", &last[..], Throughput::Bytes(2 * len as u64)),
                ("prompt", &rows[..], Throughput::Elements((512 * 513 * heads * head_dim) as u64)),
            ] {
                let q = vec![0.5; rows.len() * heads * head_dim];
                let mut out = vec![0.0; q.len()];
                group.throughput(throughput);
                let shape = format!("{heads}/{kv_heads}x{head_dim}");
                group.bench_function(BenchmarkId::new(format!("{name} {encoding}"), shape), |b| {
                    b.iter(|| cpu.attention(&q, rows, heads, 0.1.into(), &mut out).unwrap());
                });
            }
        }
    }
}

/// What is done to rows of activations between the linears, for one token and for a prompt.
fn rows(c: &mut Criterion) {
    let cpu = Cpu::new(threads()).unwrap();
    let mut group = c.benchmark_group("rows");
    for n in [1, 512] {
        let cols = 4096;
        let (mut x, y) = (vec![0.5; n * cols], vec![0.25; n * cols]);
        let (weight, cos, sin) = (vec![1.0; cols], vec![0.6; n * 64], vec![0.8; n * 64]);
        group.throughput(Throughput::Elements((n * cols) as u64));
        group.bench_function(BenchmarkId::new("rms_norm", n), |b| {
            b.iter(|| cpu.rms_norm_in_place(&mut x, &weight, 1e-5).unwrap());
        });
        group.bench_function(BenchmarkId::new("rope", n), |b| {
            b.iter(|| cpu.rope(&mut x, 32, 128, &cos, &sin).unwrap());
        });
        group.bench_function(BenchmarkId::new("swiglu", n), |b| {
            let gate = vec![0.5; x.len()];
            b.iter(|| cpu.activate(Activation::Silu, &gate, Some(&y), &mut x).unwrap());
        });
        group.bench_function(BenchmarkId::new("add", n), |b| b.iter(|| cpu.add(&y, &mut x).unwrap()));
        let backwards: Vec<u32> = (0..n as u32).rev().collect();
        group.bench_function(BenchmarkId::new("gather", n), |b| {
            b.iter(|| cpu.gather_rows(&y, cols, &backwards, &mut x).unwrap());
        });
        let shares = vec![0.125; n];
        group.bench_function(BenchmarkId::new("scatter add", n), |b| {
            b.iter(|| cpu.scatter_add(&y, cols, &backwards, &shares, &mut x).unwrap());
        });
        let mut stored = vec![0; 2 * x.len()];
        group.bench_function(BenchmarkId::new("encode bf16", n), |b| {
            b.iter(|| cpu.encode(&y, Encoding::Bf16, &mut stored).unwrap());
        });
        group.bench_function(BenchmarkId::new("encode f16", n), |b| {
            b.iter(|| cpu.encode(&y, Encoding::F16, &mut stored).unwrap());
        });
        group.bench_function(BenchmarkId::new("decode bf16", n), |b| {
            b.iter(|| cpu.decode(Encoding::Bf16, &stored, &mut x).unwrap());
        });
    }
    let logits: Vec<f32> = (0..128_256).map(|i| ((i * 7919) % 100_003) as f32).collect();
    group.throughput(Throughput::Elements(logits.len() as u64));
    group.bench_function("argmax", |b| b.iter(|| cpu.argmax(&logits).unwrap()));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = read, matvec, matmul, linear, dequantise, attention, rows
}
criterion_main!(benches);
