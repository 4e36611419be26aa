use narrows_kernels::{Error, Kernels, Matrix, RowsMut, reference};
use narrows_shard::Encoding;
use narrows_staging::device::DeviceSlice;

use crate::{
    Gpu, ROUNDING, assert_close, assert_same, encode, noise, on_every_device, on_gpu, property, rounded,
};

/// How many roundings an element of a matvec has seen: a thread of 128 adds up its share, 16 bytes at a time, by
/// fused multiplication, five folds of lanes and two of warps follow.
fn roundings(encoding: Encoding, cols: usize) -> f64 {
    let per_load = 16 / encoding.row_bytes(1).unwrap();
    (cols.div_ceil(per_load).div_ceil(128) * per_load + 7) as f64
}

fn linear(gpu: &Gpu, w: &DeviceSlice, encoding: Encoding, cols: usize, x: &DeviceSlice) -> Vec<f32> {
    let rows = w.len() / encoding.row_bytes(cols).unwrap();
    let n = x.len() / encoding.row_bytes(cols).unwrap();
    let y = gpu.range(n * rows * 4);
    let matrix = Matrix::new(w, encoding, rows, cols).unwrap();
    gpu.kernels.linear(&gpu.stream, &matrix, x, &RowsMut::new(&y, rows, 0).unwrap()).unwrap();
    gpu.read_f32s(&y)
}

fn check(gpu: &Gpu, encoding: Encoding, rows: usize, cols: usize, n: usize, shift: usize) {
    let (w, x) = (rounded(encoding, &noise(1, rows * cols)), rounded(encoding, &noise(2, n * cols)));
    let want = reference::linear(&w, &x, cols);
    let absolute = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let magnitude = reference::linear(&absolute(&w), &absolute(&x), cols);
    let unit = encoding.row_bytes(1).unwrap();
    let w = gpu.shifted(&encode(encoding, &w), shift * unit);
    let x = gpu.stored(encoding, &x);
    let got = linear(gpu, &w, encoding, cols, &x);
    let bound = |i: usize| (roundings(encoding, cols) + 1.0) * ROUNDING * 1.01 * f64::from(magnitude[i]);
    assert_close(&got, &want, bound, &format!("{encoding} [{rows}, {cols}] n {n} shift {shift}"));
}

#[test]
fn tails_of_columns() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            // A load of 16 bytes, a warp's and a block's, in elements of 4 and of 2 bytes.
            for cols in [1, 2, 3, 4, 7, 8, 9, 16, 120, 128, 136, 256, 512, 520, 1024, 1032, 1537, 2048, 4104]
            {
                check(gpu, encoding, 3, cols, 1, 0);
                check(gpu, encoding, 5, cols, 3, 0);
            }
        }
    });
}

#[test]
fn rows_of_weights_and_of_activations() {
    on_every_device(|gpu| {
        for rows in (1..=5).chain([8, 33, 130]) {
            for n in 1..=Kernels::MATVEC_ROWS {
                for encoding in Encoding::PLAIN {
                    check(gpu, encoding, rows, 264, n, 0);
                }
            }
        }
    });
}

#[test]
fn any_address() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for shift in [1, 2, 3, 4, 7] {
                check(gpu, encoding, 5, 264, 1, shift);
                check(gpu, encoding, 3, 1030, 7, shift);
            }
        }
    });
}

#[test]
fn long_rows() {
    on_every_device(|gpu| {
        check(gpu, Encoding::Bf16, 5, 28_672, 1, 0);
        check(gpu, Encoding::F16, 4, 28_672, 8, 0);
        check(gpu, Encoding::F32, 6, 14_336, 2, 0);
    });
}

/// The last rows of a matrix and of a table of more than 4 GiB, on a device that has so much.
#[test]
fn beyond_four_gib() {
    on_every_device(|gpu| {
        let (rows, cols) = (140_000, 8192);
        let len = rows * cols * 4;
        if !on_gpu() || gpu.device.free().unwrap().get() < len as u64 + (1 << 30) {
            return;
        }
        let w = gpu.range(len);
        gpu.stream.zero(&w).unwrap();
        gpu.stream
            .upload(&encode(Encoding::F32, &vec![1.0; cols]), &w.slice(len - cols * 4..len).unwrap())
            .unwrap();
        for n in [1, 8] {
            let x = gpu.f32s(&vec![1.0; n * cols]);
            for row in linear(gpu, &w, Encoding::F32, cols, &x).chunks(rows) {
                assert!(row[..rows - 1].iter().all(|&y| y == 0.0) && row[rows - 1] == cols as f32);
            }
        }
        let x = gpu.range(cols * 4);
        let ids = gpu.u32s(&[rows as u32 - 1]);
        gpu.kernels.embed(&gpu.stream, &w, Encoding::F32, cols, &ids, &x).unwrap();
        assert!(gpu.read_f32s(&x).iter().all(|&x| x == 1.0));
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        let shapes = (0_usize..3, 1_usize..40, 1_usize..1500, 1_usize..=8, 0_usize..8);
        property(32, shapes, |(encoding, rows, cols, n, shift)| {
            check(gpu, Encoding::PLAIN[encoding], rows, cols, n, shift);
        });
    });
}

/// A row of activations is computed as if it were alone, and tiles, addresses and neighbours do not show.
#[test]
fn same_bits_in_every_batch_tile_and_address() {
    on_every_device(|gpu| {
        let (rows, cols, n) = (37, 2056, Kernels::MATVEC_ROWS);
        for encoding in Encoding::PLAIN {
            let row_bytes = encoding.row_bytes(cols).unwrap();
            let bytes = encode(encoding, &noise(3, rows * cols));
            let w = gpu.bytes(&bytes);
            let x = gpu.stored(encoding, &noise(4, n * cols));
            let rows_of_x = |from: usize, to: usize| x.slice(from * row_bytes..to * row_bytes).unwrap();
            let alone: Vec<_> =
                (0..n).flat_map(|i| linear(gpu, &w, encoding, cols, &rows_of_x(i, i + 1))).collect();
            for batch in 2..=n {
                let batched: Vec<_> = (0..n)
                    .step_by(batch)
                    .flat_map(|i| linear(gpu, &w, encoding, cols, &rows_of_x(i, (i + batch).min(n))))
                    .collect();
                assert_same(&batched, &alone, &format!("{encoding}, {batch} rows at a time"));
            }
            let shifted = gpu.shifted(&bytes, encoding.row_bytes(1).unwrap());
            for i in [1, 3, n] {
                let got = linear(gpu, &shifted, encoding, cols, &rows_of_x(0, i));
                assert_same(&got, &alone[..i * rows], &format!("{encoding}, {i} rows, elsewhere"));
            }
            let matrix = Matrix::new(&w, encoding, rows, cols).unwrap();
            for tile in [1, 2, 7, 16, rows] {
                let y = gpu.f32s(&vec![f32::NAN; n * rows]);
                for first in (0..rows).step_by(tile) {
                    let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                    let y = RowsMut::new(&y, rows, first).unwrap();
                    gpu.kernels.linear(&gpu.stream, &tile, &x, &y).unwrap();
                }
                assert_same(&gpu.read_f32s(&y), &alone, &format!("{encoding}, tiles of {tile} rows"));
            }
        }
    });
}

#[test]
fn infinity_and_nan_stay_in_their_column() {
    on_every_device(|gpu| {
        for n in [1, 2, 4, 8] {
            let (rows, cols) = (6, 72);
            let mut w = noise(5, rows * cols);
            (w[2 * cols + 71], w[4 * cols]) = (f32::NAN, f32::INFINITY);
            for encoding in Encoding::PLAIN {
                let x = gpu.stored(encoding, &vec![1.0; n * cols]);
                let y = linear(gpu, &gpu.stored(encoding, &w), encoding, cols, &x);
                for row in y.chunks(rows) {
                    assert!(row[2].is_nan() && row[4] == f32::INFINITY);
                    assert!([0, 1, 3, 5].iter().all(|&r| row[r].is_finite()));
                }
            }
        }
    });
}

#[test]
fn columns_beside_the_tile_are_left_alone() {
    on_every_device(|gpu| {
        for n in [1, 3, 8] {
            let (w, x) = (gpu.stored(Encoding::Bf16, &noise(6, 5 * 8)), noise(7, n * 8));
            let y = gpu.f32s(&vec![7.0; n * 20]);
            let tile = Matrix::new(&w, Encoding::Bf16, 5, 8).unwrap();
            let x = gpu.stored(Encoding::Bf16, &x);
            gpu.kernels.linear(&gpu.stream, &tile, &x, &RowsMut::new(&y, 20, 10).unwrap()).unwrap();
            for row in gpu.read_f32s(&y).chunks(20) {
                assert!(row[..10].iter().chain(&row[15..]).all(|&y| y == 7.0));
                assert!(row[10..15].iter().all(|&y| y != 7.0));
            }
        }
    });
}

#[test]
fn wrong_shapes_are_errors() {
    on_every_device(|gpu| {
        let bytes = gpu.range(64);
        let new = |bytes, rows, cols| Matrix::new(bytes, Encoding::Bf16, rows, cols).map(|_| ());
        let cut = bytes.slice(2..64).unwrap();
        let odd = gpu.range(65).slice(1..65).unwrap();
        assert!(matches!(new(&cut, 4, 8), Err(Error::Length { expected: 64, found: 62, .. })));
        assert!(matches!(new(&odd, 4, 8), Err(Error::Ragged { unit: 2, .. })));
        assert!(matches!(new(&bytes, 4, 0), Err(Error::Shape { found: 0, .. })));
        assert!(matches!(new(&bytes, 4, usize::MAX), Err(Error::Shape { .. })));
        assert!(matches!(new(&bytes, usize::MAX, 4), Err(Error::Shape { .. })));

        let w = Matrix::new(&bytes, Encoding::Bf16, 4, 8).unwrap();
        assert_eq!((w.rows(), w.cols(), w.row_bytes(), w.encoding()), (4, 8, 16, Encoding::Bf16));
        assert!(matches!(w.slice(3..5), Err(Error::Length { .. })));
        #[expect(clippy::reversed_empty_ranges, reason = "what is to be refused")]
        let reversed = w.slice(3..1).map(|_| ());
        assert!(matches!(reversed, Err(Error::Length { .. })));

        let y = gpu.range(32);
        assert!(matches!(RowsMut::new(&y, 3, 0), Err(Error::Ragged { .. })));
        assert!(matches!(RowsMut::new(&y, 0, 0), Err(Error::Ragged { .. })));
        assert!(matches!(RowsMut::new(&y, 4, 5), Err(Error::Length { .. })));
        let run = |x: usize, stride, first| {
            let y = RowsMut::new(&y, stride, first)?;
            gpu.kernels.linear(&gpu.stream, &w, &gpu.range(x), &y)
        };
        assert!(matches!(run(30, 4, 0), Err(Error::Ragged { .. })));
        assert!(matches!(run(16, 4, 0), Err(Error::Length { .. })));
        assert!(matches!(run(16, 8, 5), Err(Error::Length { .. })));
    });
}

#[test]
fn nothing_to_do_is_fine() {
    on_every_device(|gpu| {
        let (none, y) = (gpu.range(0), gpu.f32s(&[3.0; 4]));
        let w = Matrix::new(&none, Encoding::F32, 0, 8).unwrap();
        gpu.kernels.linear(&gpu.stream, &w, &gpu.range(32), &RowsMut::new(&y, 4, 0).unwrap()).unwrap();
        assert_eq!(gpu.read_f32s(&y), [3.0; 4]);
        let bytes = gpu.range(4);
        let w = Matrix::new(&bytes, Encoding::F32, 1, 1).unwrap();
        gpu.kernels.linear(&gpu.stream, &w, &none, &RowsMut::new(&none, 1, 0).unwrap()).unwrap();
    });
}
