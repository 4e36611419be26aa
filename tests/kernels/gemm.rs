//! `linear` with more rows than a matvec takes.

use narrows_kernels::{Kernels, Matrix, RowsMut, reference};
use narrows_shard::Encoding;
use narrows_staging::device::DeviceSlice;

use crate::{Gpu, ROUNDING, assert_close, assert_same, encode, noise, on_every_device, property, rounded};

/// The smallest number of rows that is not a matvec.
const FEW: usize = Kernels::MATVEC_ROWS + 1;

/// The first `n` rows of `x` times a matrix, into the columns from `first` on of results of `stride` columns.
fn linear(
    gpu: &Gpu,
    matrix: &Matrix<'_>,
    x: &DeviceSlice,
    n: usize,
    y: &DeviceSlice,
    stride: usize,
    first: usize,
) {
    let x = x.slice(0..n * matrix.row_bytes()).unwrap();
    gpu.kernels.linear(&gpu.stream, matrix, &x, &RowsMut::new(y, stride, first).unwrap()).unwrap();
}

fn product(gpu: &Gpu, matrix: &Matrix<'_>, x: &DeviceSlice, n: usize) -> Vec<f32> {
    let y = gpu.range(n * matrix.rows() * 4);
    linear(gpu, matrix, x, n, &y, matrix.rows(), 0);
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
    let got = product(gpu, &Matrix::new(&w, encoding, rows, cols).unwrap(), &x, n);
    // A chain of as many sums as there are columns, each of which rounds what has come together by at most one
    // bit: matrix units cut off where others round to nearest.
    let bound = |i: usize| 2.0 * (cols + 1) as f64 * ROUNDING * f64::from(magnitude[i]);
    assert_close(&got, &want, bound, &format!("{encoding} [{rows}, {cols}] n {n} shift {shift}"));
}

/// The rows of a fragment, of a warp and of a block, one less and one more.
#[test]
fn rows_of_activations() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for n in [FEW, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130] {
                check(gpu, encoding, 70, 72, n, 0);
            }
        }
    });
}

#[test]
fn rows_of_weights() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for rows in [1, 7, 15, 16, 17, 63, 64, 65, 128, 129, 257] {
                check(gpu, encoding, rows, 40, FEW, 0);
                check(gpu, encoding, rows, 40, 66, 0);
            }
        }
    });
}

/// Tails of a load, of a matrix unit's sixteen columns, and of a stage; rows that are no whole number of loads;
/// fewer stages than the pipeline has, as many, and more.
#[test]
fn columns() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for cols in [1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 72, 128, 132, 200, 520] {
                check(gpu, encoding, 20, cols, 10, 0);
                check(gpu, encoding, 66, cols, 40, 0);
            }
        }
    });
}

#[test]
fn long_rows() {
    on_every_device(|gpu| {
        check(gpu, Encoding::Bf16, 3, 28_672, FEW, 0);
        check(gpu, Encoding::F16, 5, 8192, 33, 0);
        check(gpu, Encoding::F32, 4, 8192, FEW, 0);
    });
}

/// Enough blocks of the largest tiles for the device, and of those below.
#[test]
fn large_products() {
    on_every_device(|gpu| {
        check(gpu, Encoding::Bf16, 3900, 40, 70, 0);
        check(gpu, Encoding::F16, 1930, 40, 130, 0);
        check(gpu, Encoding::F32, 2000, 20, 66, 0);
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        let shapes = (0_usize..3, 1_usize..150, 1_usize..300, FEW..140, 0_usize..8);
        property(24, shapes, |(encoding, rows, cols, n, shift)| {
            check(gpu, Encoding::PLAIN[encoding], rows, cols, n, shift);
        });
    });
}

/// Every tile of a block, every tile of the matrix, every number of rows and every address give a row the same
/// bits.
#[test]
fn same_bits_in_every_batch_tile_and_address() {
    on_every_device(|gpu| {
        let (rows, cols, most) = (1000, 136, 260);
        for encoding in Encoding::PLAIN {
            let bytes = encode(encoding, &noise(3, rows * cols));
            let w = gpu.bytes(&bytes);
            let matrix = Matrix::new(&w, encoding, rows, cols).unwrap();
            let x = gpu.stored(encoding, &noise(4, most * cols));
            let all = product(gpu, &matrix, &x, most);
            for n in [FEW, 32, 33, 64, 65, 128, 200] {
                let got = product(gpu, &matrix, &x, n);
                assert_same(&got, &all[..n * rows], &format!("{encoding}, {n} rows"));
            }
            let n = 70;
            for tile in [16, 37, 256, 999] {
                let y = gpu.f32s(&vec![f32::NAN; n * rows]);
                for first in (0..rows).step_by(tile) {
                    let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                    linear(gpu, &tile, &x, n, &y, rows, first);
                }
                let what = format!("{encoding}, tiles of {tile} rows");
                assert_same(&gpu.read_f32s(&y), &all[..n * rows], &what);
            }
            let shifted = gpu.shifted(&bytes, encoding.row_bytes(1).unwrap());
            let got = product(gpu, &Matrix::new(&shifted, encoding, rows, cols).unwrap(), &x, n);
            assert_same(&got, &all[..n * rows], &format!("{encoding}, elsewhere"));
        }
    });
}

#[test]
fn infinity_and_nan_stay_in_their_row_and_column() {
    on_every_device(|gpu| {
        let (rows, cols) = (70, 72);
        for n in [FEW, 65] {
            for encoding in Encoding::PLAIN {
                let mut w = noise(5, rows * cols);
                w[2 * cols + 71] = f32::NAN;
                let mut x = vec![1.0; n * cols];
                x[3 * cols] = f32::INFINITY;
                let w = gpu.stored(encoding, &w);
                let matrix = Matrix::new(&w, encoding, rows, cols).unwrap();
                let y = product(gpu, &matrix, &gpu.stored(encoding, &x), n);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_nan(), i % rows == 2, "{encoding}, element {i} of {n} rows: {y}");
                    assert_eq!(y.is_finite(), i % rows != 2 && i / rows != 3, "{encoding}, element {i}: {y}");
                }
            }
        }
    });
}

#[test]
fn columns_beside_the_tile_are_left_alone() {
    on_every_device(|gpu| {
        for n in [FEW, 33, 65] {
            let (w, x) = (gpu.stored(Encoding::Bf16, &noise(6, 50 * 8)), noise(7, n * 8));
            let y = gpu.f32s(&vec![7.0; n * 100]);
            let tile = Matrix::new(&w, Encoding::Bf16, 50, 8).unwrap();
            linear(gpu, &tile, &gpu.stored(Encoding::Bf16, &x), n, &y, 100, 30);
            for row in gpu.read_f32s(&y).chunks(100) {
                assert!(row[..30].iter().chain(&row[80..]).all(|&y| y == 7.0));
                assert!(row[30..80].iter().all(|&y| y != 7.0));
            }
        }
    });
}
