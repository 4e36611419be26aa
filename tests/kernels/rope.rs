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

fn check_in_part(gpu: &Gpu, n: usize, heads: usize, head_dim: usize, half: usize, neighbours: bool) {
    let x = noise(3, n * heads * head_dim);
    let angles = noise(4, n * half);
    let cos: Vec<_> = angles.iter().map(|a| (9.0 * a).cos()).collect();
    let sin: Vec<_> = angles.iter().map(|a| (9.0 * a).sin()).collect();
    let (on_device, device_cos, device_sin) = (gpu.f32s(&x), gpu.f32s(&cos), gpu.f32s(&sin));
    let stream = &gpu.stream;
    gpu.kernels
        .rope_in_part(stream, &on_device, heads, head_dim, neighbours, &device_cos, &device_sin)
        .unwrap();
    let want = reference::rope_in_part(&x, heads, head_dim, neighbours, &cos, &sin);
    let what = format!("[{n}, {heads}, {head_dim}], {half} angles, neighbours {neighbours}");
    assert_same(&gpu.read_f32s(&on_device), &want, &what);
}

#[test]
fn parts_of_heads_and_neighbours() {
    on_every_device(|gpu| {
        for neighbours in [false, true] {
            for (n, heads, head_dim, half) in [
                (1, 1, 2, 1),
                (3, 5, 7, 3),
                (2, 3, 9, 1),
                (5, 8, 64, 16),
                (4, 2, 80, 20),
                (2, 40, 128, 64),
                (1, 300, 96, 47),
                (300, 1, 33, 16),
                (0, 2, 8, 4),
            ] {
                check_in_part(gpu, n, heads, head_dim, half, neighbours);
            }
        }
        property(24, (1_usize..9, 1_usize..20, 1_usize..40, 0_usize..40), |(n, heads, half, rest)| {
            check_in_part(gpu, n, heads, 2 * half + rest, half, rest % 2 == 0);
        });
    });
}

/// Whole heads in halves have a kernel of their own, with the same bits.
#[test]
fn whole_heads_are_a_part_of_themselves() {
    on_every_device(|gpu| {
        let (x, angles) = (noise(5, 3 * 4 * 64), noise(6, 3 * 32));
        let (whole, part, angles) = (gpu.f32s(&x), gpu.f32s(&x), gpu.f32s(&angles));
        gpu.kernels.rope(&gpu.stream, &whole, 4, 64, &angles, &angles).unwrap();
        gpu.kernels.rope_in_part(&gpu.stream, &part, 4, 64, false, &angles, &angles).unwrap();
        assert_same(&gpu.read_f32s(&part), &gpu.read_f32s(&whole), "halves");
    });
}

#[test]
fn wrong_parts_are_errors() {
    on_every_device(|gpu| {
        let run = |x, heads, head_dim, cos, sin| {
            let (x, cos, sin) = (gpu.range(x), gpu.range(cos), gpu.range(sin));
            gpu.kernels.rope_in_part(&gpu.stream, &x, heads, head_dim, true, &cos, &sin)
        };
        // Two rows of one head of eight.
        assert!(matches!(run(64, 1, 8, 40, 40), Err(Error::Shape { found: 10, .. })));
        assert!(matches!(run(64, 1, 8, 0, 0), Err(Error::Shape { found: 0, .. })));
        assert!(matches!(run(64, 1, 8, 12, 12), Err(Error::Length { .. })));
        assert!(matches!(run(64, 1, 8, 32, 24), Err(Error::Length { .. })));
        assert!(matches!(run(0, 1, 8, 32, 32), Err(Error::Length { .. })));
        assert!(matches!(run(60, 1, 8, 32, 32), Err(Error::Ragged { .. })));
        assert!(matches!(run(64, 0, 8, 32, 32), Err(Error::Shape { .. })));
        assert!(matches!(run(64, 1, 0, 32, 32), Err(Error::Shape { .. })));
        assert!(matches!(run(64, usize::MAX, 16, 32, 32), Err(Error::Overflow { .. })));
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
