use narrows_kernels::{Error, reference};

use crate::{Gpu, bits, noise, on_every_device, property};

fn check(gpu: &Gpu, logits: &[f32], cols: usize, k: usize) {
    let (values, indices) = (gpu.range(logits.len() / cols * k * 4), gpu.range(logits.len() / cols * k * 4));
    gpu.kernels.top_k(&gpu.stream, &gpu.f32s(logits), k, &values, &indices).unwrap();
    let (want_values, want_indices) = reference::top_k(logits, cols, k);
    assert_eq!(gpu.read_u32s(&indices), want_indices, "{k} of {cols} columns");
    assert_eq!(bits(&gpu.read_f32s(&values)), bits(&want_values), "{k} of {cols} columns");
}

#[test]
fn routers_and_vocabularies() {
    on_every_device(|gpu| {
        for (n, cols, k) in [(1, 1, 1), (5, 8, 2), (3, 64, 6), (2, 128, 8), (2, 256, 32), (1, 1024, 32)] {
            check(gpu, &noise(1, n * cols), cols, k);
        }
        check(gpu, &noise(2, 33), 33, 33);
        check(gpu, &noise(3, 2 * 5000), 5000, 40);
        check(gpu, &noise(3, 32_000), 32_000, 256);
    });
}

#[test]
fn equal_ones_in_order_and_nan_first() {
    on_every_device(|gpu| {
        check(gpu, &[1.0; 100], 100, 100);
        let mut logits: Vec<_> = noise(4, 300).iter().map(|x| (3.0 * x).round()).collect();
        check(gpu, &logits, 300, 50);
        (logits[200], logits[17], logits[3], logits[4]) = (f32::NAN, f32::NAN, f32::INFINITY, -0.0);
        check(gpu, &logits, 300, 300);
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        property(24, (1_usize..5, 1_usize..700, 1_usize..40, 1_u64..1000), |(n, cols, k, seed)| {
            check(gpu, &noise(seed, n * cols), cols, k.min(cols));
        });
    });
}

#[test]
fn wrong_shapes_are_errors() {
    on_every_device(|gpu| {
        let run = |logits, k, values, indices| {
            let (logits, values, indices) = (gpu.range(logits), gpu.range(values), gpu.range(indices));
            gpu.kernels.top_k(&gpu.stream, &logits, k, &values, &indices)
        };
        assert!(matches!(run(32, 0, 8, 8), Err(Error::Shape { .. })));
        assert!(matches!(run(32, 9, 36, 36), Err(Error::Shape { found: 9, .. })));
        assert!(matches!(run(32, 2, 12, 12), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, 2, 8, 16), Err(Error::Length { .. })));
        assert!(matches!(run(36, 2, 16, 16), Err(Error::Ragged { .. })));
        assert!(run(0, 2, 0, 0).is_ok());
    });
}
