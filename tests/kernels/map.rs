use narrows_kernels::{Error, reference};

use crate::{Gpu, ROUNDING, assert_close, assert_same, noise, on_every_device};

/// Tails of four, and more elements than threads of a grid.
const LENGTHS: [usize; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 1024, 4097, 70_003, 70_004];

#[test]
fn factors() {
    on_every_device(|gpu| {
        for len in LENGTHS {
            for (shift, factor) in [(0, 0.3), (4, -7.0)] {
                let x = noise(1, len);
                let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
                gpu.kernels.scale(&gpu.stream, factor, &on_device).unwrap();
                let what = format!("{len} elements at {shift}");
                assert_same(&gpu.read_f32s(&on_device), &reference::scale(factor, &x), &what);
            }
        }
    });
}

#[test]
fn caps() {
    on_every_device(|gpu| {
        for len in LENGTHS {
            for (shift, cap) in [(0, 30.0), (4, 0.5)] {
                // From far below the cap to far above it.
                let x: Vec<_> = noise(2, len).iter().map(|x| x * x * x * 100.0).collect();
                let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
                gpu.kernels.softcap(&gpu.stream, cap, &on_device).unwrap();
                let want = reference::softcap(cap, &x);
                // A quotient, a tangent of at most two units in the last place, and a product.
                let bound = |i: usize| 8.0 * ROUNDING * f64::from(want[i].abs());
                assert_close(&gpu.read_f32s(&on_device), &want, bound, &format!("{len} at {shift}, {cap}"));
            }
        }
        let ends = gpu.f32s(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e30]);
        gpu.kernels.softcap(&gpu.stream, 30.0, &ends).unwrap();
        let got = gpu.read_f32s(&ends);
        assert!(got[2].is_nan());
        assert_eq!([&got[..2], &got[3..]].concat(), [30.0, -30.0, 0.0, -0.0, 30.0]);
    });
}

#[test]
fn limits() {
    on_every_device(|gpu| {
        for len in LENGTHS {
            for shift in [0, 4] {
                let x = noise(3, len);
                let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
                gpu.kernels.clamp(&gpu.stream, 0.4, &on_device).unwrap();
                let what = format!("{len} elements at {shift}");
                assert_same(&gpu.read_f32s(&on_device), &reference::clamp(0.4, &x), &what);
            }
        }
        let ends = gpu.f32s(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 8.0, -8.0, 8.5]);
        gpu.kernels.clamp(&gpu.stream, 8.0, &ends).unwrap();
        let got = gpu.read_f32s(&ends);
        assert!(got[2].is_nan());
        assert_eq!([&got[..2], &got[3..]].concat(), [8.0, -8.0, -0.0, 8.0, -8.0, 8.0]);
    });
}

#[test]
fn vectors() {
    on_every_device(|gpu| {
        for (n, cols) in [(0, 3), (1, 1), (3, 5), (2, 64), (5, 1030), (300, 7), (2, 40_000)] {
            let (factors, x) = (noise(4, cols), noise(5, n * cols));
            let on_device = gpu.f32s(&x);
            gpu.kernels.multiply(&gpu.stream, &gpu.f32s(&factors), &on_device).unwrap();
            let want = reference::multiply(&factors, &x);
            assert_same(&gpu.read_f32s(&on_device), &want, &format!("[{n}, {cols}]"));
        }
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu: &Gpu| {
        let Gpu { kernels, stream, .. } = gpu;
        let ragged = |e| matches!(e, Err(Error::Ragged { .. }));
        let range = |len| gpu.range(len);
        assert!(ragged(kernels.scale(stream, 1.0, &range(9))));
        assert!(ragged(kernels.softcap(stream, 1.0, &range(6))));
        assert!(ragged(kernels.clamp(stream, 1.0, &range(3))));
        assert!(ragged(kernels.multiply(stream, &range(8), &range(12))));
        assert!(ragged(kernels.multiply(stream, &range(0), &range(12))));
        assert!(ragged(kernels.multiply(stream, &range(7), &range(14))));
    });
}
