use narrows_kernels::{Error, reference};
use narrows_shard::Encoding;

use crate::{Gpu, ROUNDING, assert_close, noise, on_every_device, rounding};

/// The exponential is good to two units in the last place, so four roundings; the sum, the quotient and the
/// product are one each, and then there is that of the encoding. Gates below -88 make an infinite exponential
/// and give 0 for what is below 1e-36.
fn check(gpu: &Gpu, gate: &[f32], up: &[f32], shift: usize) {
    let want = reference::swiglu(gate, up);
    let on_device = gpu.shifted(bytemuck::cast_slice(gate), shift);
    for encoding in Encoding::PLAIN {
        let out = gpu.range(encoding.row_bytes(gate.len()).unwrap());
        gpu.kernels.swiglu(&gpu.stream, &on_device, &gpu.f32s(up), encoding, &out).unwrap();
        let (relative, absolute) = rounding(encoding);
        let bound =
            |i: usize| (7.0 * ROUNDING + relative) * 1.01 * f64::from(want[i].abs()) + absolute + 1e-36;
        let what = format!("{encoding}, {} elements at {shift}", gate.len());
        assert_close(&gpu.read_stored(encoding, &out), &want, bound, &what);
    }
}

#[test]
fn lengths_and_addresses() {
    on_every_device(|gpu| {
        for len in (0..=9).chain([1024, 4099, 70_001]) {
            for shift in [0, 4] {
                let gate: Vec<_> = noise(1, len).iter().map(|x| 20.0 * x).collect();
                check(gpu, &gate, &noise(2, len), shift);
            }
        }
    });
}

#[test]
fn gates_of_every_size() {
    on_every_device(|gpu| {
        let gate = [0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, 80.0, -80.0, -87.5, -89.0, -110.0, 3e4, -3e4];
        check(gpu, &gate, &[1.0; 13], 0);
        check(gpu, &gate, &[-0.5; 13], 0);
    });
}

#[test]
fn infinity_and_nan() {
    on_every_device(|gpu| {
        let gate = [f32::INFINITY, f32::NAN, 1.0, 1.0, 0.0];
        let up = [1.0, 1.0, f32::INFINITY, f32::NAN, 1.0];
        for encoding in Encoding::PLAIN {
            let out = gpu.range(encoding.row_bytes(5).unwrap());
            gpu.kernels.swiglu(&gpu.stream, &gpu.f32s(&gate), &gpu.f32s(&up), encoding, &out).unwrap();
            let out = gpu.read_stored(encoding, &out);
            assert!(out[0] == f32::INFINITY && out[1].is_nan(), "{out:?}");
            assert!(out[2] == f32::INFINITY && out[3].is_nan() && out[4] == 0.0, "{out:?}");
        }
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu| {
        let run = |gate, up, encoding, out| {
            gpu.kernels.swiglu(&gpu.stream, &gpu.range(gate), &gpu.range(up), encoding, &gpu.range(out))
        };
        assert!(matches!(run(8, 12, Encoding::F32, 8), Err(Error::Length { .. })));
        assert!(matches!(run(8, 8, Encoding::Bf16, 8), Err(Error::Length { .. })));
        assert!(matches!(run(9, 9, Encoding::F32, 9), Err(Error::Ragged { .. })));
        assert!(run(0, 0, Encoding::F16, 0).is_ok());
    });
}
