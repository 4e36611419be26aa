use narrows_kernels::{Error, reference};

use crate::{Gpu, noise, on_every_device};

fn check(gpu: &Gpu, logits: &[f32], cols: usize) {
    let out = gpu.range(logits.len() / cols * 4);
    gpu.kernels.argmax(&gpu.stream, &gpu.f32s(logits), &out).unwrap();
    assert_eq!(gpu.read_u32s(&out), reference::argmax(logits, cols), "{cols} columns");
}

#[test]
fn rows_of_every_length() {
    on_every_device(|gpu| {
        for cols in (1..=5).chain([31, 32, 33, 127, 128, 129, 4095, 4096, 4097, 128_256]) {
            check(gpu, &noise(1, 3 * cols), cols);
        }
    });
}

#[test]
fn the_first_of_equal_ones() {
    on_every_device(|gpu| {
        // Few different values: every row has its greatest several times.
        let logits: Vec<_> = noise(2, 7 * 900).iter().map(|x| (4.0 * x).round()).collect();
        check(gpu, &logits, 900);
        check(gpu, &[0.5; 300], 100);
        check(gpu, &[-1.0, -0.0, 0.0, -0.0], 4);
        check(gpu, &[f32::NEG_INFINITY; 70], 70);
        check(gpu, &[1.0, f32::INFINITY, f32::MAX, f32::INFINITY], 4);
        check(gpu, &[-3.0, -1e-45, -1.0], 3);
    });
}

#[test]
fn nan_wins() {
    on_every_device(|gpu| {
        for at in [0, 1, 31, 500, 1299] {
            for nan in [f32::NAN, -f32::NAN] {
                let mut logits = noise(3, 1300);
                (logits[at], logits[7]) = (nan, f32::INFINITY);
                check(gpu, &logits, 1300);
                logits[1299] = nan;
                check(gpu, &logits, 1300);
            }
        }
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu| {
        let run = |logits, out| gpu.kernels.argmax(&gpu.stream, &gpu.range(logits), &gpu.range(out));
        assert!(matches!(run(32, 12), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, 3), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, 0), Err(Error::Ragged { .. })));
        assert!(matches!(run(0, 4), Err(Error::Shape { .. })));
        assert!(run(0, 0).is_ok());
    });
}
