use narrows_kernels::{Error, reference};

use crate::{Gpu, assert_same, noise, on_every_device};

#[test]
fn sums() {
    on_every_device(|gpu| {
        // Tails of four, and more elements than threads of a grid.
        for len in (0..=9).chain([255, 1024, 4097, 70_003]) {
            for shift in [0, 4] {
                let (a, x) = (noise(1, len), noise(2, len));
                let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
                gpu.kernels.add(&gpu.stream, &gpu.f32s(&a), &on_device).unwrap();
                let what = format!("{len} elements at {shift}");
                assert_same(&gpu.read_f32s(&on_device), &reference::add(&a, &x), &what);
            }
        }
    });
}

#[test]
fn biases() {
    on_every_device(|gpu| {
        for (n, cols) in [(0, 3), (1, 1), (3, 5), (2, 64), (5, 1030), (300, 7), (2, 40_000)] {
            let (bias, y) = (noise(3, cols), noise(4, n * cols));
            let on_device = gpu.f32s(&y);
            gpu.kernels.add_bias(&gpu.stream, &gpu.f32s(&bias), &on_device).unwrap();
            let want = reference::add_bias(&bias, &y);
            assert_same(&gpu.read_f32s(&on_device), &want, &format!("[{n}, {cols}]"));
        }
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu: &Gpu| {
        let Gpu { kernels, stream, .. } = gpu;
        let range = |len| gpu.range(len);
        let length = |e| matches!(e, Err(Error::Length { .. }));
        let ragged = |e| matches!(e, Err(Error::Ragged { .. }));
        assert!(length(kernels.add(stream, &range(8), &range(12))));
        assert!(ragged(kernels.add(stream, &range(8), &range(9))));
        assert!(ragged(kernels.add_bias(stream, &range(8), &range(12))));
        assert!(ragged(kernels.add_bias(stream, &range(0), &range(12))));
    });
}
