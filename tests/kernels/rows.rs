use narrows_kernels::{Error, reference};
use narrows_shard::Encoding;

use crate::{Gpu, assert_same, encode, noise, on_every_device, rounded};

/// `m` different numbers below `rows`, in no order.
fn distinct(rows: usize, m: usize) -> Vec<u32> {
    // 7919 is a prime that divides none of the numbers of rows here.
    (0..m).map(|i| (i * 7919 % rows) as u32).collect()
}

#[test]
fn rows_are_gathered_bit_by_bit() {
    on_every_device(|gpu| {
        for (rows, cols, m) in [(1, 1, 1), (5, 3, 7), (40, 64, 40), (9, 1030, 4), (2, 70_000, 3)] {
            let mut x = noise(1, rows * cols);
            (x[0], x[rows * cols - 1]) = (f32::NEG_INFINITY, -0.0);
            let named: Vec<u32> = (0..m).map(|i| (i * 7 % rows) as u32).collect();
            for encoding in Encoding::PLAIN {
                // What starts at a multiple of 16 or not, so that both ways of copying are taken.
                for shift in [0, encoding.row_bytes(1).unwrap()] {
                    let on_device = gpu.shifted(&encode(encoding, &x), shift);
                    let out = gpu.range(encoding.row_bytes(m * cols).unwrap());
                    let named_there = gpu.u32s(&named);
                    gpu.kernels
                        .gather_rows(&gpu.stream, &on_device, encoding, cols, &named_there, &out)
                        .unwrap();
                    let want = reference::gather_rows(&rounded(encoding, &x), cols, &named);
                    let what = format!("{encoding}, {m} of [{rows}, {cols}] at {shift}");
                    assert_same(&gpu.read_stored(encoding, &out), &want, &what);
                }
            }
        }
    });
}

#[test]
fn weighted_rows_are_added_with_one_rounding() {
    on_every_device(|gpu| {
        for (rows, cols, m) in
            [(1, 1, 1), (5, 3, 4), (40, 64, 40), (9, 1030, 5), (3, 70_000, 2), (400, 8, 300)]
        {
            let (y, weights, out) = (noise(2, m * cols), noise(3, m), noise(4, rows * cols));
            let named = distinct(rows, m);
            let want = reference::scatter_add(&y, cols, &named, &weights, &out);
            for shift in [0, 4] {
                let on_device = gpu.shifted(bytemuck::cast_slice(&out), shift);
                let (y, named, weights) = (gpu.f32s(&y), gpu.u32s(&named), gpu.f32s(&weights));
                gpu.kernels.scatter_add(&gpu.stream, &y, cols, &named, &weights, &on_device).unwrap();
                let what = format!("{m} of [{rows}, {cols}] at {shift}");
                assert_same(&gpu.read_f32s(&on_device), &want, &what);
            }
        }
    });
}

/// What several experts give is summed up in the order of the calls.
#[test]
fn calls_follow_each_other() {
    on_every_device(|gpu| {
        let (rows, cols) = (6, 33);
        let mut want = noise(5, rows * cols);
        let out = gpu.f32s(&want);
        for (call, named) in [[5, 0, 2], [2, 5, 1], [0, 2, 5]].iter().enumerate() {
            let (y, weights) = (noise(6 + call as u64, 3 * cols), noise(9 + call as u64, 3));
            want = reference::scatter_add(&y, cols, named, &weights, &want);
            let (y, named, weights) = (gpu.f32s(&y), gpu.u32s(named), gpu.f32s(&weights));
            gpu.kernels.scatter_add(&gpu.stream, &y, cols, &named, &weights, &out).unwrap();
        }
        assert_same(&gpu.read_f32s(&out), &want, "three calls");
    });
}

#[test]
fn numbers_of_no_row_touch_nothing() {
    on_every_device(|gpu| {
        let cols = 70;
        let (x, named) = (noise(7, 3 * cols), gpu.u32s(&[2, 3, u32::MAX, 0]));
        let out = gpu.f32s(&vec![f32::NAN; 4 * cols]);
        gpu.kernels.gather_rows(&gpu.stream, &gpu.f32s(&x), Encoding::F32, cols, &named, &out).unwrap();
        let got = gpu.read_f32s(&out);
        assert_same(&got[..cols], &x[2 * cols..], "a row that there is");
        assert_same(&got[cols..3 * cols], &vec![0.0; 2 * cols], "rows that there are not");
        assert_same(&got[3 * cols..], &x[..cols], "a row that there is");

        let (y, weights, sums) = (noise(8, 4 * cols), [1.0, f32::NAN, f32::NAN, 2.0], gpu.f32s(&x));
        let (y_there, weights_there) = (gpu.f32s(&y), gpu.f32s(&weights));
        gpu.kernels.scatter_add(&gpu.stream, &y_there, cols, &named, &weights_there, &sums).unwrap();
        let want = reference::scatter_add(&y, cols, &[2, 3, u32::MAX, 0], &weights, &x);
        assert!(want.iter().all(|sum| sum.is_finite()));
        assert_same(&gpu.read_f32s(&sums), &want, "sums");
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu: &Gpu| {
        let Gpu { kernels, stream, .. } = gpu;
        let range = |len| gpu.range(len);
        let gather = |x, encoding, cols, rows, out| {
            kernels.gather_rows(stream, &range(x), encoding, cols, &range(rows), &range(out))
        };
        assert!(matches!(gather(16, Encoding::Bf16, 0, 4, 16), Err(Error::Shape { .. })));
        assert!(matches!(gather(18, Encoding::Bf16, 4, 4, 8), Err(Error::Ragged { .. })));
        assert!(matches!(gather(16, Encoding::Bf16, 4, 5, 8), Err(Error::Ragged { .. })));
        assert!(matches!(gather(16, Encoding::F32, 4, 8, 16), Err(Error::Length { .. })));
        assert!(matches!(gather(16, Encoding::Q8, 4, 4, 16), Err(Error::Quantised { .. })));
        assert!(matches!(gather(0, Encoding::F32, usize::MAX, 8, 0), Err(Error::Overflow { .. })));
        assert!(gather(16, Encoding::F32, 4, 0, 0).is_ok());

        let scatter = |y, cols, rows, weights, out| {
            kernels.scatter_add(stream, &range(y), cols, &range(rows), &range(weights), &range(out))
        };
        assert!(matches!(scatter(16, 0, 4, 4, 16), Err(Error::Shape { .. })));
        assert!(matches!(scatter(32, 4, 4, 4, 16), Err(Error::Length { .. })));
        assert!(matches!(scatter(16, 4, 4, 8, 16), Err(Error::Length { .. })));
        assert!(matches!(scatter(16, 4, 4, 4, 20), Err(Error::Ragged { .. })));
        assert!(matches!(scatter(16, 4, 6, 4, 16), Err(Error::Ragged { .. })));
        assert!(scatter(0, 4, 0, 0, 16).is_ok());
    });
}
