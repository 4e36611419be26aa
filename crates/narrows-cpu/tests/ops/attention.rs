use narrows_cpu::{AttentionRow, Cpu, Error, Isa, KvView, reference};
use narrows_shard::Encoding;
use proptest::prelude::*;

use crate::{Weights, assert_close, bits, cpus, noise};

/// A cache filled to the brim.
struct Cache {
    keys: Weights,
    values: Weights,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Cache {
    fn new(encoding: Encoding, kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        let len = kv_heads * capacity * head_dim;
        let keys = Weights::new(encoding, &noise(11, len), head_dim, 1);
        let values = Weights::new(encoding, &noise(12, len), head_dim, 0);
        Self { keys, values, capacity, kv_heads, head_dim }
    }

    fn row(&self, position: usize, window: Option<usize>) -> AttentionRow<'_> {
        let kv = KvView {
            encoding: self.keys.encoding,
            keys: self.keys.bytes(),
            values: self.values.bytes(),
            capacity: self.capacity,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        AttentionRow { kv, position, window }
    }

    fn reference(&self, q: &[f32], position: usize, window: Option<usize>, scale: f32) -> Vec<f32> {
        let heads = q.len() / self.head_dim;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let head = |(head, q): (usize, &[f32])| {
            let start = head / (heads / self.kv_heads) * self.capacity;
            let seen = (start + first) * self.head_dim..(start + position + 1) * self.head_dim;
            reference::attention(q, &self.keys.values[seen.clone()], &self.values.values[seen], scale)
        };
        q.chunks(self.head_dim).enumerate().flat_map(head).collect()
    }
}

fn attention(cpu: &Cpu, q: &[f32], rows: &[AttentionRow<'_>], heads: usize, scale: f32) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    cpu.attention(q, rows, heads, scale.into(), &mut out).unwrap();
    out
}

fn check(cache: &Cache, heads: usize, seen: &[(usize, Option<usize>)]) {
    let width = heads * cache.head_dim;
    // Large enough for weights that are far from even.
    let q: Vec<f32> = noise(13, seen.len() * width).iter().map(|x| 4.0 * x).collect();
    let scale = 1.0 / (cache.head_dim as f32).sqrt();
    let rows: Vec<_> = seen.iter().map(|&(position, window)| cache.row(position, window)).collect();
    let want: Vec<f32> = q
        .chunks(width)
        .zip(seen)
        .flat_map(|(q, &(position, window))| cache.reference(q, position, window, scale))
        .collect();
    for cpu in cpus(1) {
        let got = attention(&cpu, &q, &rows, heads, scale);
        let Cache { capacity, kv_heads, head_dim, .. } = cache;
        let what = format!(
            "{} {} heads {heads}/{kv_heads} x {head_dim}, capacity {capacity}, {seen:?}",
            cpu.isa(),
            cache.keys.encoding,
        );
        assert_close(&got, &want, |_| 2.0, &what);
        let alone: Vec<f32> = q
            .chunks(width)
            .zip(&rows)
            .flat_map(|(q, &row)| attention(&cpu, q, &[row], heads, scale))
            .collect();
        assert!(bits(&alone) == bits(&got), "alone: {what}");
        for threads in 2..=3 {
            let cpu = Cpu::with_isa(threads, cpu.isa()).unwrap();
            let threaded = attention(&cpu, &q, &rows, heads, scale);
            assert!(bits(&threaded) == bits(&got), "{threads} threads: {what}");
        }
    }
}

#[test]
fn groups_of_heads() {
    for (heads, kv_heads) in [(1, 1), (4, 4), (8, 2), (7, 1), (14, 2), (12, 4), (9, 1), (32, 1), (40, 4)] {
        let cache = Cache::new(Encoding::Bf16, kv_heads, 130, 32);
        check(&cache, heads, &[(0, None), (5, None), (63, None), (64, None), (129, None)]);
    }
}

#[test]
fn head_dimensions() {
    for head_dim in (2..=36).step_by(2).chain([1, 7, 64, 80, 96, 100, 128, 192, 256, 320, 1100]) {
        for encoding in Encoding::PLAIN {
            check(&Cache::new(encoding, 2, 70, head_dim), 6, &[(0, None), (69, None)]);
        }
    }
}

#[test]
fn windows() {
    let cache = Cache::new(Encoding::F32, 2, 300, 16);
    for window in [1, 2, 63, 64, 65, 100, 299, 300, 301, usize::MAX] {
        let positions = [0, 1, 62, 63, 64, 65, 127, 128, 200, 299];
        check(&cache, 4, &positions.map(|position| (position, Some(window))));
    }
}

#[test]
fn every_chunk_of_a_prompt() {
    let cache = Cache::new(Encoding::F16, 2, 150, 24);
    let prompt: Vec<_> = (0..150).map(|position| (position, None)).collect();
    check(&cache, 4, &prompt);
    check(&cache, 4, &prompt[37..101]);
}

#[test]
fn a_long_cache() {
    for encoding in Encoding::PLAIN {
        check(&Cache::new(encoding, 1, 9000, 64), 4, &[(8999, None), (4096, Some(4096))]);
    }
}

/// Rows of several sequences in one call, each with a cache of its own size.
#[test]
fn a_ragged_batch() {
    let caches = [Cache::new(Encoding::F32, 2, 10, 8), Cache::new(Encoding::F32, 2, 200, 8)];
    let rows = [caches[0].row(9, None), caches[1].row(150, None), caches[1].row(199, Some(70))];
    let q = noise(14, 3 * 4 * 8);
    for cpu in cpus(2) {
        let got = attention(&cpu, &q, &rows, 4, 0.3);
        for (i, row) in rows.iter().enumerate() {
            let range = i * 32..(i + 1) * 32;
            let alone = attention(&cpu, &q[range.clone()], &[*row], 4, 0.3);
            assert_eq!(bits(&alone), bits(&got[range]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_shape(
        kv_heads in 1_usize..4,
        group in 1_usize..10,
        half in 1_usize..40,
        positions in proptest::collection::vec((0_usize..200, proptest::option::of(1_usize..200)), 1..12),
        encoding in proptest::sample::select(&Encoding::PLAIN[..]),
    ) {
        check(&Cache::new(encoding, kv_heads, 200, 2 * half), kv_heads * group, &positions);
    }
}

/// What lies in the cache beyond the position must not be looked at: it may be another request's.
#[test]
fn the_rest_of_the_cache_is_not_read() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(1, isa).unwrap();
        let mut cache = Cache::new(Encoding::F32, 1, 100, 8);
        let q = noise(15, 8);
        let before = attention(&cpu, &q, &[cache.row(70, Some(20))], 1, 1.0);
        for position in (0..51).chain(71..100) {
            cache.keys.buffer[1 + position * 32..][..32].fill(0xff);
            cache.values.buffer[position * 32..][..32].fill(0xff);
        }
        assert_eq!(bits(&before), bits(&attention(&cpu, &q, &[cache.row(70, Some(20))], 1, 1.0)));
    }
}

#[test]
fn not_finite_is_carried_through() {
    let cache = Cache::new(Encoding::F32, 1, 100, 8);
    for cpu in cpus(1) {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut q = noise(16, 16);
            q[3] = poison;
            let out = attention(&cpu, &q, &[cache.row(99, None)], 2, 1.0);
            assert!(out[..8].iter().all(|x| x.is_nan()), "the head with {poison}");
            assert!(out[8..].iter().all(|x| x.is_finite()), "the head beside it");
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let cpu = Cpu::new(1).unwrap();
    let cache = Cache::new(Encoding::F16, 2, 10, 4);
    let row = cache.row(9, None);
    let run = |rows: &[AttentionRow<'_>], heads, q: usize, out: usize| {
        cpu.attention(&vec![0.0; q], rows, heads, 1.0.into(), &mut vec![0.0; out])
    };
    assert!(run(&[row], 4, 16, 16).is_ok());
    assert!(run(&[], 4, 0, 0).is_ok());
    assert!(matches!(run(&[], 4, 16, 0), Err(Error::Length { .. })));
    assert!(matches!(run(&[row], 4, 15, 16), Err(Error::Length { .. })));
    assert!(matches!(run(&[row], 4, 16, 15), Err(Error::Length { .. })));
    assert!(matches!(run(&[row], 3, 12, 12), Err(Error::Heads { heads: 3, kv_heads: 2 })));
    assert!(matches!(run(&[row], 0, 0, 0), Err(Error::Zero { .. })));
    assert!(matches!(run(&[cache.row(10, None)], 4, 16, 16), Err(Error::Beyond { end: 11, limit: 10, .. })));
    assert!(matches!(run(&[cache.row(usize::MAX, None)], 4, 16, 16), Err(Error::Beyond { .. })));
    assert!(matches!(run(&[cache.row(3, Some(0))], 4, 16, 16), Err(Error::Zero { .. })));

    let changed = |change: fn(&mut KvView<'_>)| {
        let mut row = row;
        change(&mut row.kv);
        row
    };
    let shorter = changed(|kv| kv.keys = &kv.keys[1..]);
    assert!(matches!(run(&[shorter], 4, 16, 16), Err(Error::Length { .. })));
    let shorter = changed(|kv| kv.values = &kv.values[1..]);
    assert!(matches!(run(&[shorter], 4, 16, 16), Err(Error::Length { .. })));
    let larger = changed(|kv| kv.capacity = usize::MAX);
    assert!(matches!(run(&[larger], 4, 16, 16), Err(Error::Overflow { .. })));
    let headless = changed(|kv| kv.kv_heads = 0);
    assert!(matches!(run(&[headless], 4, 16, 16), Err(Error::Heads { .. })));
    let flat = changed(|kv| kv.head_dim = 0);
    assert!(matches!(run(&[flat], 4, 16, 16), Err(Error::Zero { .. })));
    let other = Cache::new(Encoding::F32, 2, 10, 4);
    assert!(matches!(run(&[row, other.row(0, None)], 4, 32, 32), Err(Error::Mixed { what: "encoding" })));
    let other = Cache::new(Encoding::F16, 1, 10, 4);
    assert!(matches!(run(&[row, other.row(0, None)], 4, 32, 32), Err(Error::Mixed { .. })));
    let other = Cache::new(Encoding::F16, 2, 10, 8);
    assert!(matches!(run(&[row, other.row(0, None)], 4, 32, 32), Err(Error::Mixed { .. })));
}
