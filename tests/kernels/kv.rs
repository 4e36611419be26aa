use narrows_kernels::{Error, KvLayout, KvRow, reference};
use narrows_shard::Encoding;

use crate::{Gpu, noise, on_every_device, property, rounded};

const FILLED: f32 = 7.0;

/// Two sequences of different capacities take rows in turn, in a layer between others.
fn check(gpu: &Gpu, encoding: Encoding, kv_heads: usize, head_dim: usize, shift: usize) {
    const LAYERS: usize = 3;
    const LAYER: usize = 1;
    let layout = KvLayout { encoding, kv_heads, head_dim };
    let capacities = [5, 9];
    let elements = capacities.map(|capacity| LAYERS * 2 * kv_heads * capacity * head_dim);
    let caches = elements.map(|len| gpu.stored(encoding, &vec![FILLED; len]));
    for (cache, capacity) in caches.iter().zip(capacities) {
        assert_eq!(cache.len(), LAYERS * layout.layer_bytes(capacity).unwrap());
    }
    let places = [(0, 4), (1, 0), (1, 1), (0, 0), (1, 8), (0, 5), (1, u32::MAX)];
    let rows = places.map(|(sequence, position)| KvRow {
        base: caches[sequence].address(),
        capacity: capacities[sequence] as u32,
        position,
    });
    let width = kv_heads * head_dim;
    let (k, v) = (noise(1, rows.len() * width), noise(2, rows.len() * width));
    let (device_k, device_v) = (gpu.shifted(bytemuck::cast_slice(&k), shift), gpu.f32s(&v));
    let device_rows = gpu.bytes(bytemuck::cast_slice(&rows));
    gpu.kernels.kv_write(&gpu.stream, &device_k, &device_v, &device_rows, &layout, LAYER).unwrap();

    let mut want = elements.map(|len| vec![FILLED; len]);
    for (i, &(sequence, position)) in places.iter().enumerate() {
        let (capacity, position) = (capacities[sequence], position as usize);
        // Beyond its capacity a row writes nothing.
        if position >= capacity {
            continue;
        }
        for head in 0..kv_heads {
            let from = i * width + head * head_dim..i * width + (head + 1) * head_dim;
            let at = reference::key_at(&layout, capacity, LAYER, head, position);
            let plane = kv_heads * capacity * head_dim;
            want[sequence][at..at + head_dim].copy_from_slice(&k[from.clone()]);
            want[sequence][at + plane..at + plane + head_dim].copy_from_slice(&v[from]);
        }
    }
    for (cache, want) in caches.iter().zip(want) {
        let got = gpu.read_stored(encoding, cache);
        assert!(got == rounded(encoding, &want), "{encoding} {kv_heads} heads of {head_dim} at {shift}");
    }
}

#[test]
fn rows_go_where_their_sequences_are() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for (kv_heads, head_dim) in [(1, 1), (2, 7), (8, 64), (3, 128), (40, 130), (1, 256)] {
                check(gpu, encoding, kv_heads, head_dim, 0);
                check(gpu, encoding, kv_heads, head_dim, 4);
            }
        }
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        property(16, (0_usize..3, 1_usize..12, 1_usize..140), |(encoding, kv_heads, head_dim)| {
            check(gpu, Encoding::PLAIN[encoding], kv_heads, head_dim, 0);
        });
    });
}

#[test]
fn the_layout_says_how_big_a_layer_is() {
    let layout = KvLayout { encoding: Encoding::Bf16, kv_heads: 8, head_dim: 128 };
    assert_eq!(layout.layer_bytes(1000), Some(8 * 1000 * 128 * 2 * 2));
    assert_eq!(layout.layer_bytes(usize::MAX), None);
    assert_eq!(size_of::<KvRow>(), 16);
}

#[test]
fn wrong_shapes_are_errors() {
    on_every_device(|gpu| {
        let run = |k, v, rows, kv_heads, head_dim| {
            let layout = KvLayout { encoding: Encoding::Bf16, kv_heads, head_dim };
            let (k, v, rows) = (gpu.range(k), gpu.range(v), gpu.range(rows));
            gpu.kernels.kv_write(&gpu.stream, &k, &v, &rows, &layout, 0)
        };
        assert!(matches!(run(32, 32, 16, 0, 8), Err(Error::Shape { .. })));
        assert!(matches!(run(32, 32, 16, 1, 0), Err(Error::Shape { .. })));
        assert!(matches!(run(32, 32, 15, 1, 8), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, 36, 16, 1, 8), Err(Error::Length { .. })));
        assert!(matches!(run(36, 32, 16, 1, 8), Err(Error::Length { .. })));
        assert!(matches!(run(36, 32, 16, usize::MAX, 8), Err(Error::Overflow { .. })));
        assert!(run(0, 0, 0, 1, 8).is_ok());
    });
}
