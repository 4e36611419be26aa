use narrows_kernels::{Error, reference};

use crate::{Gpu, assert_same, noise, on_every_device, property};

fn check(gpu: &Gpu, n: usize, heads: usize, head_dim: usize, shift: usize) {
    let x = noise(1, n * heads * head_dim);
    let angles = noise(2, n * head_dim / 2);
    let cos: Vec<_> = angles.iter().map(|a| (9.0 * a).cos()).collect();
    let sin: Vec<_> = angles.iter().map(|a| (9.0 * a).sin()).collect();
    let on_device = gpu.shifted(bytemuck::cast_slice(&x), shift);
    let (device_cos, device_sin) = (gpu.f32s(&cos), gpu.f32s(&sin));
    gpu.kernels.rope(&gpu.stream, &on_device, heads, head_dim, &device_cos, &device_sin).unwrap();
    let want = reference::rope(&x, heads, head_dim, &cos, &sin);
    assert_same(&gpu.read_f32s(&on_device), &want, &format!("[{n}, {heads}, {head_dim}] at {shift}"));
}

#[test]
fn heads_of_every_size() {
    on_every_device(|gpu| {
        for head_dim in [2, 4, 6, 8, 64, 80, 96, 128, 130, 256] {
            check(gpu, 1, 3, head_dim, 0);
            check(gpu, 5, 8, head_dim, 4);
        }
        check(gpu, 2, 300, 128, 0);
        check(gpu, 40, 1, 2, 0);
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        property(24, (0_usize..9, 1_usize..20, 1_usize..80, 0_usize..4), |(n, heads, half, shift)| {
            check(gpu, n, heads, 2 * half, 4 * shift);
        });
    });
}

#[test]
fn wrong_shapes_are_errors() {
    on_every_device(|gpu| {
        let run = |x, heads, head_dim, cos, sin| {
            let (x, cos, sin) = (gpu.range(x), gpu.range(cos), gpu.range(sin));
            gpu.kernels.rope(&gpu.stream, &x, heads, head_dim, &cos, &sin)
        };
        assert!(matches!(run(60, 1, 15, 28, 28), Err(Error::Shape { found: 15, .. })));
        assert!(matches!(run(64, 0, 16, 32, 32), Err(Error::Shape { found: 0, .. })));
        assert!(matches!(run(64, 1, 0, 32, 32), Err(Error::Shape { found: 0, .. })));
        assert!(matches!(run(64, 2, 6, 32, 32), Err(Error::Ragged { .. })));
        assert!(matches!(run(64, 1, 16, 28, 32), Err(Error::Length { .. })));
        assert!(matches!(run(64, 1, 16, 32, 36), Err(Error::Length { .. })));
        assert!(matches!(run(64, usize::MAX, 16, 32, 36), Err(Error::Overflow { .. })));
    });
}
