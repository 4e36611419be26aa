//! How fast rows are quantised and read again, on one thread, in bytes of bf16: `cargo bench -p narrows-shard --bench
//! quantise`. Packing does it on all threads of the machine; `--bench pack` and `narrows pack` have the disk in it too.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use narrows_shard::{Encoding, blocks};

const COLS: usize = 4096;
/// Rows of 16 MiB of float32 together, so that they are not in the nearest caches.
const ROWS: usize = 1024;

/// Sums of four numbers that look random, so that blocks are nearly normally distributed, as weights are.
fn weights() -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ROWS * COLS).map(|_| (next() + next() + next() + next()) * 0.02).collect()
}

fn rows(c: &mut Criterion) {
    let weights = weights();
    let mut group = c.benchmark_group("rows");
    group.sample_size(10);
    group.throughput(Throughput::Bytes((2 * weights.len()) as u64));
    for encoding in Encoding::QUANTISED {
        let row_bytes = encoding.row_bytes(COLS).unwrap();
        let mut stored = vec![0; ROWS * row_bytes];
        group.bench_function(BenchmarkId::new("quantise", encoding), |b| {
            b.iter(|| {
                for (row, out) in weights.chunks(COLS).zip(stored.chunks_mut(row_bytes)) {
                    blocks::quantise(encoding, row, out).unwrap();
                }
            });
        });
        let mut row = vec![0.0; COLS];
        group.bench_function(BenchmarkId::new("dequantise", encoding), |b| {
            b.iter(|| {
                for stored in stored.chunks(row_bytes) {
                    blocks::dequantise(encoding, stored, &mut row).unwrap();
                    black_box(&row);
                }
            });
        });
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
