//! Kernels against plain references.

use narrows_softgpu::{SoftGpu, skip_or_fail};

use crate::common::{Gpu, Stream, address, launch};
use crate::params;

params!(Axpy { x: u64, y: u64, n: u32, a: f32 });
params!(Sum { x: u64, sums: u64, n: u32, reserved: u32 });
params!(Shuffle { out: u64 });
params!(Mma { a: u64, b: u64, d: u64, kind: u32, reserved: u32 });
params!(Ldmatrix { rows: u64, r: u64 });
params!(Read { x: u64, out: u64, n: u32, repeat: u32 });

/// Runs a test's own half under several seeds and both architectures.
fn everywhere(test: &str) {
    if !skip_or_fail() {
        return;
    }
    for (seed, arch) in [(0, (9, 0)), (1, (7, 5)), (2, (8, 6)), (3, (12, 0))] {
        let gpu = SoftGpu::new().unwrap().seed(seed).arch(arch.0, arch.1);
        gpu.rerun(&format!("kernels::{test}")).unwrap().assert_clean();
    }
}

#[test]
fn a_kernel_computes() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let n = 1000;
        let x = stream.clone_htod(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let y = stream.clone_htod(&vec![1.0f32; n]).unwrap();
        let params = Axpy { x: address(&x, &stream), y: address(&y, &stream), n: n as u32, a: 2.0 };
        launch(&stream, &gpu.function("softgpu_axpy"), 4, 256, 0, &params);
        let result = stream.clone_dtoh(&y).unwrap();
        assert!(result.iter().enumerate().all(|(i, v)| *v == 2.0 * i as f32 + 1.0));
        return;
    }
    everywhere("a_kernel_computes");
}

#[test]
fn the_report_counts() {
    if SoftGpu::inside() {
        return a_kernel_computes();
    }
    if !skip_or_fail() {
        return;
    }
    let gpu = SoftGpu::new().unwrap().link(1.0).mem(2.0).vram(1 << 20);
    let finished = gpu.rerun("kernels::the_report_counts").unwrap();
    finished.assert_clean();
    assert_eq!(finished.number("/kernels/by_name/softgpu_axpy/launches"), Some(1.0));
    // x read, y read and written, each rounded to 16 bytes.
    assert_eq!(finished.number("/kernels/by_name/softgpu_axpy/bytes"), Some(12000.0));
    assert_eq!(finished.number("/h2d/bytes"), Some(8000.0));
    assert_eq!(finished.number("/d2h/copies"), Some(1.0));
    assert_eq!(
        finished.number("/peak_device_bytes"),
        Some((512 << 10) as f64 + f64::from(64 << 10) + 2.0 * 4096.0)
    );
    let seconds = finished.number("/simulated_seconds").unwrap();
    assert!((seconds - (12e-6 + 6e-6 + 3e-6)).abs() < 1e-9, "{seconds}");
}

#[test]
fn a_block_reduces() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let n = 5000;
        let x = stream.clone_htod(&(0..n).map(|i| (i % 17) as f32).collect::<Vec<_>>()).unwrap();
        let sums = stream.clone_htod(&[0.0f32]).unwrap();
        let params = Sum { x: address(&x, &stream), sums: address(&sums, &stream), n, reserved: 0 };
        launch(&stream, &gpu.function("softgpu_block_sum"), 3, 256, 0, &params);
        let expected: f32 = (0..n).map(|i| (i % 17) as f32).sum();
        assert_eq!(stream.clone_dtoh(&sums).unwrap(), [expected]);
        return;
    }
    everywhere("a_block_reduces");
}

#[test]
fn shuffles_and_votes() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let out = stream.clone_htod(&vec![0i32; 9 * 32]).unwrap();
        launch(
            &stream,
            &gpu.function("softgpu_shuffles"),
            1,
            32,
            0,
            &Shuffle { out: address(&out, &stream) },
        );
        let out = stream.clone_dtoh(&out).unwrap();
        let votes = (0..32).filter(|lane| lane % 3 == 0).fold(0u32, |mask, lane| mask | 1 << lane);
        for lane in 0..32i32 {
            let expected = [
                50,
                (lane / 8 * 8 + 3) * 10,
                if lane < 2 { lane } else { lane - 2 },
                if lane % 16 < 13 { lane + 3 } else { lane },
                lane ^ 7,
                votes as i32,
                1,
                7,
                if lane < 16 { lane ^ 1 } else { lane ^ 2 },
            ];
            for (row, expected) in expected.into_iter().enumerate() {
                assert_eq!(out[row * 32 + lane as usize], expected, "lane {lane}, row {row}");
            }
        }
        return;
    }
    everywhere("shuffles_and_votes");
}

fn to_f16(x: f32) -> u32 {
    // Exact for the small whole numbers used here.
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    if x == 0.0 { sign } else { sign | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff) }
}

fn to_bf16(x: f32) -> u32 {
    x.to_bits() >> 16
}

/// Fragments as the PTX ISA manual draws them for mma.m16n8k8 and mma.m16n8k16.
fn run_mma(gpu: &Gpu, stream: &Stream, kind: u32) {
    let k = if kind == 0 { 8 } else { 16 };
    let encode = if kind == 2 { to_bf16 } else { to_f16 };
    let value = |seed: usize| ((seed * 2654435761) >> 7 & 15) as f32 - 7.0;
    let a: Vec<Vec<f32>> = (0..16).map(|row| (0..k).map(|col| value(row * 31 + col)).collect()).collect();
    let b: Vec<Vec<f32>> =
        (0..k).map(|row| (0..8).map(|col| value(1000 + row * 8 + col)).collect()).collect();
    let c: Vec<Vec<f32>> =
        (0..16).map(|row| (0..8).map(|col| value(5000 + row * 8 + col)).collect()).collect();
    let (mut ra, mut rb, mut rc) = (vec![0u32; 128], vec![0u32; 64], vec![0f32; 128]);
    for lane in 0..32 {
        let (group, in_group) = (lane / 4, lane % 4);
        for i in 0..k / 2 {
            let row = if i / 2 % 2 == 0 { group } else { group + 8 };
            let col = in_group * 2 + i % 2 + if i >= 4 { 8 } else { 0 };
            ra[lane * 4 + i / 2] |= encode(a[row][col]) << (16 * (i % 2));
        }
        for i in 0..k / 4 {
            let row = in_group * 2 + i % 2 + if i >= 2 { 8 } else { 0 };
            rb[lane * 2 + i / 2] |= encode(b[row][group]) << (16 * (i % 2));
        }
        for i in 0..4 {
            rc[lane * 4 + i] = c[group + i / 2 * 8][in_group * 2 + i % 2];
        }
    }
    let (da, db, dd) =
        (stream.clone_htod(&ra).unwrap(), stream.clone_htod(&rb).unwrap(), stream.clone_htod(&rc).unwrap());
    let [a_at, b_at, d_at] = [address(&da, stream), address(&db, stream), address(&dd, stream)];
    launch(
        stream,
        &gpu.function("softgpu_mma"),
        1,
        32,
        0,
        &Mma { a: a_at, b: b_at, d: d_at, kind, reserved: 0 },
    );
    let d = stream.clone_dtoh(&dd).unwrap();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let expected = c[row][col] + (0..k).map(|j| a[row][j] * b[j][col]).sum::<f32>();
            assert_eq!(d[lane * 4 + i], expected, "kind {kind}, row {row}, column {col}");
        }
    }
}

#[test]
fn matrix_products_have_the_layouts_of_ptx() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        for kind in 0..3 {
            run_mma(&gpu, &stream, kind);
        }
        return;
    }
    everywhere("matrix_products_have_the_layouts_of_ptx");
}

#[test]
fn ldmatrix_has_the_layout_of_ptx() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        // Matrix m, row r, column c holds m * 64 + r * 8 + c.
        let rows: Vec<u32> = (0..128).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
        let rows = stream.clone_htod(&rows).unwrap();
        let r = stream.clone_htod(&vec![0u32; 512]).unwrap();
        let params = Ldmatrix { rows: address(&rows, &stream), r: address(&r, &stream) };
        launch(&stream, &gpu.function("softgpu_ldmatrix"), 1, 32, 0, &params);
        let r = stream.clone_dtoh(&r).unwrap();
        for lane in 0..32u32 {
            for m in 0..4 {
                let plain = m * 64 + lane / 4 * 8 + lane % 4 * 2;
                let plain = plain | (plain + 1) << 16;
                let turned = m * 64 + lane % 4 * 2 * 8 + lane / 4;
                let turned = turned | (turned + 8) << 16;
                let at = (lane * 4 + m) as usize;
                assert_eq!((r[at], r[128 + at]), (plain, turned));
                if m < 2 {
                    assert_eq!((r[256 + at], r[384 + at]), (plain, turned));
                }
            }
        }
        return;
    }
    everywhere("ldmatrix_has_the_layout_of_ptx");
}

#[test]
fn atomics_and_constants() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let out = stream.clone_htod(&[0u32, 0, 1000, 7, 0]).unwrap();
        let params = Read { x: 0, out: address(&out, &stream), n: 0, repeat: 0 };
        launch(&stream, &gpu.function("softgpu_atomics"), 1, 100, 0, &params);
        assert_eq!(stream.clone_dtoh(&out).unwrap(), [100, 99, 0, 9, 200]);
        let x = stream.clone_htod(&[0.1f32]).unwrap();
        let sums = stream.clone_htod(&[0.0f32; 8]).unwrap();
        let params = Sum { x: address(&x, &stream), sums: address(&sums, &stream), n: 1, reserved: 0 };
        launch(&stream, &gpu.function("softgpu_constants"), 1, 8, 0, &params);
        let half = 0.099_975_586_f32;
        let expected = [3.0, 6.0, 12.0, 24.0].map(|x: f32| x + half);
        let sums = stream.clone_dtoh(&sums).unwrap();
        assert_eq!(&sums[..4], &expected[..]);
        return;
    }
    everywhere("atomics_and_constants");
}
