//! Quantised matrices: decoded, and multiplied without being decoded first.

use narrows_kernels::{Error, Kernels, Matrix, RowsMut, reference};
use narrows_shard::{Encoding, blocks};
use narrows_staging::device::DeviceSlice;

use crate::{Gpu, ROUNDING, assert_close, assert_same, noise, on_every_device, property, rounded};

/// Rows as stored, and the weights that they stand for.
fn quantised(encoding: Encoding, values: &[f32], cols: usize) -> (Vec<u8>, Vec<f32>) {
    let row_bytes = encoding.row_bytes(cols).unwrap();
    let mut bytes = vec![0; values.len() / cols * row_bytes];
    let mut weights = vec![0.0; values.len()];
    for (i, bytes) in bytes.chunks_mut(row_bytes).enumerate() {
        let row = i * cols..(i + 1) * cols;
        blocks::quantise(encoding, &values[row.clone()], bytes).unwrap();
        blocks::dequantise(encoding, bytes, &mut weights[row]).unwrap();
    }
    (bytes, weights)
}

#[test]
fn every_column_is_decoded_to_the_bit() {
    on_every_device(|gpu| {
        for stored in Encoding::QUANTISED {
            for cols in [1, 31, 32, 33, 64, 65, 255, 256, 257, 512, 520, 1000, 4104] {
                let rows = 3;
                let (bytes, weights) = quantised(stored, &noise(cols as u64, rows * cols), cols);
                let w = gpu.bytes(&bytes);
                let matrix = Matrix::new(&w, stored, rows, cols).unwrap();
                for encoding in Encoding::PLAIN {
                    let out = gpu.range(encoding.row_bytes(rows * cols).unwrap());
                    gpu.kernels.dequantise(&gpu.stream, &matrix, encoding, &out).unwrap();
                    let want = rounded(encoding, &weights);
                    assert_same(
                        &gpu.read_stored(encoding, &out),
                        &want,
                        &format!("{stored} {encoding} {cols}"),
                    );
                }
            }
        }
    });
}

fn linear(gpu: &Gpu, w: &DeviceSlice, encoding: Encoding, cols: usize, x: &DeviceSlice) -> Vec<f32> {
    let rows = w.len() / encoding.row_bytes(cols).unwrap();
    let n = x.len() / (2 * cols);
    let y = gpu.range(n * rows * 4);
    let matrix = Matrix::new(w, encoding, rows, cols).unwrap();
    gpu.kernels.linear(&gpu.stream, &matrix, x, &RowsMut::new(&y, rows, 0).unwrap()).unwrap();
    gpu.read_f32s(&y)
}

/// `shift` is that of the activations; quantised rows start at multiples of 16.
fn check(gpu: &Gpu, encoding: Encoding, rows: usize, cols: usize, n: usize, shift: usize) {
    let (bytes, mut w) = quantised(encoding, &noise(1, rows * cols), cols);
    let many = n > Kernels::MATVEC_ROWS;
    if many {
        w = rounded(Encoding::Bf16, &w);
    }
    let x = rounded(Encoding::Bf16, &noise(2, n * cols));
    let want = reference::linear(&w, &x, cols);
    let absolute = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let magnitude = reference::linear(&absolute(&w), &absolute(&x), cols);
    let x = gpu.shifted(&crate::encode(Encoding::Bf16, &x), 2 * shift);
    let got = linear(gpu, &gpu.bytes(&bytes), encoding, cols, &x);
    let roundings = if many {
        // A chain over the columns, as in `gemm`.
        2.0 * (cols + 1) as f64
    } else {
        // A lane of 32 adds up 16 bytes of codes and multiplies them by their scale, which rounds as code times
        // scale does, and these sums; five folds of lanes follow.
        let per_load = if encoding == Encoding::Q8 { 16 } else { 32 };
        (per_load + 1 + cols.div_ceil(per_load).div_ceil(32) + 5) as f64
    };
    let bound = |i: usize| roundings * ROUNDING * 1.01 * f64::from(magnitude[i]);
    assert_close(&got, &want, bound, &format!("{encoding} [{rows}, {cols}] n {n} shift {shift}"));
}

#[test]
fn columns_rows_and_addresses() {
    on_every_device(|gpu| {
        for encoding in Encoding::QUANTISED {
            for cols in [1, 7, 8, 16, 31, 32, 40, 63, 64, 65, 256, 264, 512, 513, 1032, 2048, 2056, 4104] {
                check(gpu, encoding, 3, cols, 1, 0);
                check(gpu, encoding, 5, cols, 3, 0);
            }
            for n in 1..=Kernels::MATVEC_ROWS {
                check(gpu, encoding, 9, 264, n, 0);
                check(gpu, encoding, 2, 264, n, 1);
            }
            check(gpu, encoding, 130, 96, 2, 0);
            check(gpu, encoding, 2, 28_672, 1, 0);
        }
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        let shapes = (0_usize..2, 1_usize..20, 1_usize..1500, 1_usize..=20, 0_usize..8);
        property(16, shapes, |(encoding, rows, cols, n, shift)| {
            check(gpu, Encoding::QUANTISED[encoding], rows, cols, n, shift);
        });
    });
}

/// With rows of activations for the matrix units: pieces of a block, stages of it, and more than there are stages;
/// every shape of a tile; columns and addresses for which x is loaded element by element.
#[test]
fn many_rows_of_activations() {
    on_every_device(|gpu| {
        for encoding in Encoding::QUANTISED {
            for cols in [1, 8, 31, 32, 33, 40, 63, 64, 65, 96, 128, 256, 264, 512, 520, 1032] {
                check(gpu, encoding, 20, cols, 9, 0);
                check(gpu, encoding, 66, cols, 40, cols % 2);
            }
            check(gpu, encoding, 300, 72, 33, 0);
            check(gpu, encoding, 3, 8200, 9, 0);
            check(gpu, encoding, 1930, 40, 130, 0);
            check(gpu, encoding, 3900, 64, 70, 0);
        }
    });
}

fn product(gpu: &Gpu, matrix: &Matrix<'_>, x: &DeviceSlice, n: usize) -> Vec<f32> {
    let y = gpu.f32s(&vec![f32::NAN; n * matrix.rows()]);
    let x = x.slice(0..n * matrix.cols() * 2).unwrap();
    gpu.kernels.linear(&gpu.stream, matrix, &x, &RowsMut::new(&y, matrix.rows(), 0).unwrap()).unwrap();
    gpu.read_f32s(&y)
}

/// To decode on the way gives the bits of decoding first; and neither the number of rows, nor the shape of a
/// block, nor the tiles that a matrix comes in, nor where x lies show.
#[test]
fn same_bits_as_of_a_decoded_matrix() {
    on_every_device(|gpu| {
        let (rows, most) = (1000, 260);
        for encoding in Encoding::QUANTISED {
            for cols in [136, 201] {
                let (bytes, _) = quantised(encoding, &noise(5, rows * cols), cols);
                let w = gpu.bytes(&bytes);
                let matrix = Matrix::new(&w, encoding, rows, cols).unwrap();
                let decoded = gpu.range(rows * cols * 2);
                gpu.kernels.dequantise(&gpu.stream, &matrix, Encoding::Bf16, &decoded).unwrap();
                let stored = crate::encode(Encoding::Bf16, &noise(6, most * cols));
                let x = gpu.bytes(&stored);
                let plain = Matrix::new(&decoded, Encoding::Bf16, rows, cols).unwrap();
                let all = product(gpu, &plain, &x, most);
                for n in [9, 32, 33, 64, 65, 128, most] {
                    let got = product(gpu, &matrix, &x, n);
                    assert_same(&got, &all[..n * rows], &format!("{encoding} {cols}, {n} rows"));
                }
                let n = 70;
                for tile in [37, 256, 999] {
                    let y = gpu.f32s(&vec![f32::NAN; n * rows]);
                    let x = x.slice(0..n * cols * 2).unwrap();
                    for first in (0..rows).step_by(tile) {
                        let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                        let y = RowsMut::new(&y, rows, first).unwrap();
                        gpu.kernels.linear(&gpu.stream, &tile, &x, &y).unwrap();
                    }
                    assert_same(
                        &gpu.read_f32s(&y),
                        &all[..n * rows],
                        &format!("{encoding}, tiles of {tile}"),
                    );
                }
                let got = product(gpu, &matrix, &gpu.shifted(&stored, 2), n);
                assert_same(&got, &all[..n * rows], &format!("{encoding} {cols}, elsewhere"));
            }
        }
    });
}

/// A row of activations is computed as if it were alone, among as many as a matvec takes, and tiles and addresses
/// do not show.
#[test]
fn same_bits_in_every_batch_tile_and_address() {
    on_every_device(|gpu| {
        let (rows, cols, n) = (21, 1096, Kernels::MATVEC_ROWS);
        for encoding in Encoding::QUANTISED {
            let (bytes, _) = quantised(encoding, &noise(3, rows * cols), cols);
            let w = gpu.bytes(&bytes);
            let stored = crate::encode(Encoding::Bf16, &noise(4, n * cols));
            let x = gpu.bytes(&stored);
            let slice = |from: usize, to: usize| x.slice(from * 2 * cols..to * 2 * cols).unwrap();
            let alone: Vec<_> =
                (0..n).flat_map(|i| linear(gpu, &w, encoding, cols, &slice(i, i + 1))).collect();
            for batch in 2..=n {
                let batched: Vec<_> = (0..n)
                    .step_by(batch)
                    .flat_map(|i| linear(gpu, &w, encoding, cols, &slice(i, (i + batch).min(n))))
                    .collect();
                assert_same(&batched, &alone, &format!("{encoding}, {batch} rows at a time"));
            }
            let shifted = linear(gpu, &w, encoding, cols, &gpu.shifted(&stored, 2));
            assert_same(&shifted, &alone, &format!("{encoding}, elsewhere"));
            let matrix = Matrix::new(&w, encoding, rows, cols).unwrap();
            for tile in [1, 2, 16] {
                let y = gpu.range(n * rows * 4);
                for first in (0..rows).step_by(tile) {
                    let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                    let y = RowsMut::new(&y, rows, first).unwrap();
                    gpu.kernels.linear(&gpu.stream, &tile, &x, &y).unwrap();
                }
                assert_same(&gpu.read_f32s(&y), &alone, &format!("{encoding}, tiles of {tile}"));
            }
        }
    });
}

/// A matrix of so many rows that each warp has several, and the same in tiles of few.
#[test]
fn same_bits_of_many_rows() {
    on_every_device(|gpu| {
        let rows = 4 * 12 * gpu.device.multiprocessors() as usize + 3;
        for (encoding, cols) in [(Encoding::Q8, 1096), (Encoding::Nf4, 40), (Encoding::Nf4, 2056)] {
            let (bytes, w) = quantised(encoding, &noise(7, rows * cols), cols);
            let w_device = gpu.bytes(&bytes);
            let stored = crate::encode(Encoding::Bf16, &noise(8, Kernels::MATVEC_ROWS * cols));
            let x = gpu.bytes(&stored);
            let matrix = Matrix::new(&w_device, encoding, rows, cols).unwrap();
            let alone = product(gpu, &matrix, &x, 1);
            let want = reference::linear(&w, &crate::decode(Encoding::Bf16, &stored[..2 * cols]), cols);
            assert_close(&alone, &want, |_| 1e-4, &format!("{encoding} {cols}"));
            let (n, tile) = (Kernels::MATVEC_ROWS, 97);
            let tiled = gpu.f32s(&vec![f32::NAN; n * rows]);
            for first in (0..rows).step_by(tile) {
                let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                let y = RowsMut::new(&tiled, rows, first).unwrap();
                gpu.kernels.linear(&gpu.stream, &tile, &x, &y).unwrap();
            }
            let tiled = gpu.read_f32s(&tiled);
            assert_same(&tiled[..rows], &alone, &format!("{encoding} {cols}, alone"));
            for n in 2..=n {
                let got = product(gpu, &matrix, &x, n);
                assert_same(&got, &tiled[..n * rows], &format!("{encoding} {cols}, {n} rows"));
            }
        }
    });
}

#[test]
fn what_is_not_possible_is_refused() {
    on_every_device(|gpu| {
        let (range, out) = (gpu.range(96), gpu.range(64));
        let matrix = Matrix::new(&range, Encoding::Q8, 2, 32).unwrap();
        let dequantise = |matrix, encoding| gpu.kernels.dequantise(&gpu.stream, matrix, encoding, &out);
        assert!(matches!(dequantise(&matrix, Encoding::Nf4), Err(Error::Quantised { .. })));
        assert!(matches!(dequantise(&matrix, Encoding::Bf16), Err(Error::Length { .. })));
        let plain = Matrix::new(&range, Encoding::F32, 1, 24).unwrap();
        assert!(dequantise(&plain, Encoding::F32).is_err());
        let shifted = gpu.range(112).slice(8..104).unwrap();
        assert!(matches!(Matrix::new(&shifted, Encoding::Q8, 2, 32), Err(Error::Ragged { .. })));
        let ids = gpu.u32s(&[0]);
        let refused = gpu.kernels.embed(&gpu.stream, &range, Encoding::Nf4, 32, &ids, &out);
        assert!(matches!(refused, Err(Error::Quantised { .. })));
    });
}
