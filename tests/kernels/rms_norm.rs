use narrows_kernels::{Error, reference};
use narrows_shard::Encoding;
use proptest::prelude::*;

use crate::{Gpu, ROUNDING, assert_close, assert_same, bits, noise, on_every_device, property, rounding};

const EPS: f32 = 1e-5;

/// A thread sums up the squares of at most 16 columns, or of a 1024th of them if that is more, one rounding each;
/// folding lanes and warps is ten more. The root halves that error. Then a quotient, a sum, a reciprocal root
/// (four roundings, as two units in the last place) and two products.
fn norm_roundings(summed: usize) -> f64 {
    (summed + 10) as f64 / 2.0 + 8.0
}

fn check(gpu: &Gpu, n: usize, cols: usize, shift: usize, with_delta: bool) {
    let (x, delta) = (noise(1, n * cols), noise(2, n * cols));
    let weight: Vec<_> = noise(3, cols).iter().map(|w| 1.0 + w / 2.0).collect();
    let input = if with_delta { reference::add(&delta, &x) } else { x.clone() };
    let want = reference::rms_norm(&input, &weight, EPS);
    let (delta, weight) = (gpu.f32s(&delta), gpu.f32s(&weight));
    for encoding in Encoding::PLAIN {
        let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
        let out = gpu.range(encoding.row_bytes(n * cols).unwrap());
        let delta = with_delta.then_some(&delta);
        gpu.kernels.rms_norm(&gpu.stream, &on_device, delta, &weight, EPS, encoding, &out).unwrap();
        let what = format!("{encoding} [{n}, {cols}] at {shift}, delta {with_delta}");
        assert_same(&gpu.read_f32s(&on_device), &input, &what);
        let (relative, absolute) = rounding(encoding);
        let relative = (norm_roundings(16.max(cols.div_ceil(4096) * 4)) * ROUNDING + relative) * 1.01;
        let bound = |i: usize| relative * f64::from(want[i].abs()) + absolute;
        assert_close(&gpu.read_stored(encoding, &out), &want, bound, &what);
    }
}

#[test]
fn rows_of_every_length() {
    on_every_device(|gpu| {
        // Tails of four, a warp, what stays in registers (16 columns a thread, 1024 threads), and more.
        for cols in (1..=9).chain([31, 128, 511, 512, 513, 1030, 4096, 8192, 16_384, 16_388, 20_001]) {
            check(gpu, 2, cols, 0, true);
            check(gpu, 1, cols, 4, false);
        }
        check(gpu, 33, 72, 0, true);
        check(gpu, 3, 16_400, 8, true);
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        property(24, (1_usize..12, 1_usize..3000, 0_usize..4, any::<bool>()), |(n, cols, shift, delta)| {
            check(gpu, n, cols, 4 * shift, delta);
        });
    });
}

/// Which loads a row allows is not to show in its bits, nor what is beside it.
#[test]
fn same_bits_at_any_address_and_beside_any_rows() {
    on_every_device(|gpu| {
        let (n, cols) = (5, 1028);
        let (x, weight) = (noise(4, n * cols), gpu.f32s(&noise(5, cols)));
        let run = |x: &[f32], shift| {
            let out = gpu.range(x.len() * 4);
            let x = gpu.shifted(bytemuck::cast_slice(x), shift);
            gpu.kernels.rms_norm(&gpu.stream, &x, None, &weight, EPS, Encoding::F32, &out).unwrap();
            gpu.read_f32s(&out)
        };
        let together = run(&x, 0);
        let alone: Vec<_> = x.chunks(cols).flat_map(|row| run(row, 4)).collect();
        assert_eq!(bits(&together), bits(&alone));
    });
}

#[test]
fn heads() {
    on_every_device(|gpu| {
        for (m, head_dim) in [(1, 1), (3, 7), (8, 64), (17, 128), (40, 96), (9, 130), (5, 256), (2, 1000)] {
            for shift in [0, 4] {
                let (x, weight) = (noise(6, m * head_dim), noise(7, head_dim));
                let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
                gpu.kernels.rms_norm_in_place(&gpu.stream, &on_device, &gpu.f32s(&weight), EPS).unwrap();
                let want = reference::rms_norm(&x, &weight, EPS);
                let relative = (norm_roundings(head_dim.div_ceil(128) * 4) + 1.0) * ROUNDING * 1.01;
                let bound = |i: usize| relative * f64::from(want[i].abs());
                assert_close(
                    &gpu.read_f32s(&on_device),
                    &want,
                    bound,
                    &format!("[{m}, {head_dim}] at {shift}"),
                );
            }
        }
    });
}

#[test]
fn a_row_of_zeros_is_zeros() {
    on_every_device(|gpu| {
        let out = gpu.range(100 * 4);
        let (x, weight) = (gpu.f32s(&[0.0; 100]), gpu.f32s(&[2.0; 100]));
        gpu.kernels.rms_norm(&gpu.stream, &x, None, &weight, EPS, Encoding::F32, &out).unwrap();
        assert_eq!(gpu.read_f32s(&out), [0.0; 100]);
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu| {
        let run = |x, delta: Option<usize>, weight, out| {
            let (x, weight, out) = (gpu.range(x), gpu.range(weight), gpu.range(out));
            let delta = delta.map(|len| gpu.range(len));
            gpu.kernels.rms_norm(&gpu.stream, &x, delta.as_ref(), &weight, EPS, Encoding::Bf16, &out)
        };
        assert!(matches!(run(32, None, 12, 16), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, None, 0, 16), Err(Error::Ragged { .. })));
        assert!(matches!(run(32, Some(16), 16, 16), Err(Error::Length { .. })));
        assert!(matches!(run(32, None, 16, 32), Err(Error::Length { .. })));
        assert!(run(0, None, 16, 0).is_ok());
        let heads =
            |x, weight| gpu.kernels.rms_norm_in_place(&gpu.stream, &gpu.range(x), &gpu.range(weight), EPS);
        assert!(matches!(heads(32, 12), Err(Error::Ragged { .. })));
        assert!(matches!(heads(32, 0), Err(Error::Ragged { .. })));
        assert!(heads(0, 12).is_ok());
    });
}
