//! Every architecture that kernels are made for takes what they ask of it, shared memory above all: that of a block
//! differs from one to the next.

use narrows_kernels::{Kernels, Matrix, RowsMut, reference};
use narrows_shard::Encoding;
use narrows_softgpu::SoftGpu;

use crate::{Gpu, assert_close, encode, noise, on_gpu, rounded};

/// One of each limit of shared memory that the software driver knows and has kernels for.
const ARCHITECTURES: [(u32, u32); 8] = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0)];

#[test]
fn every_product_fits() {
    if SoftGpu::inside() || on_gpu() {
        return products(&Gpu::open());
    }
    if !narrows_softgpu::skip_or_fail() {
        return;
    }
    for (major, minor) in ARCHITECTURES {
        let gpu = SoftGpu::new().unwrap().arch(major, minor);
        gpu.rerun("architectures::every_product_fits").unwrap().assert_clean();
    }
}

/// Rows of weights and of activations for each shape of a product: of few and of many of each.
fn products(gpu: &Gpu) {
    let multiprocessors = gpu.device.multiprocessors() as usize;
    let cols = 32;
    for encoding in Encoding::ALL {
        let operand = encoding.operand();
        for (rows, n) in [
            (4 * 12 * multiprocessors, 1),
            (40, Kernels::MATVEC_ROWS),
            (40, 20),
            (64 * 2 * multiprocessors, 20),
            (64 * multiprocessors, 40),
            (128 * multiprocessors, 70),
            (256 * multiprocessors, 70),
        ] {
            let row = noise(3, cols);
            let (bytes, w) = match encoding.block() {
                None => (encode(encoding, &row), rounded(encoding, &row)),
                Some(_) => {
                    let mut bytes = vec![0; encoding.row_bytes(cols).unwrap()];
                    narrows_shard::blocks::quantise(encoding, &row, &mut bytes).unwrap();
                    let mut w = vec![0.0; cols];
                    narrows_shard::blocks::dequantise(encoding, &bytes, &mut w).unwrap();
                    (bytes, w)
                }
            };
            let x = noise(4, cols);
            let want = reference::linear(&w, &rounded(operand, &x), cols)[0];
            let matrix = gpu.bytes(&bytes.repeat(rows));
            let matrix = Matrix::new(&matrix, encoding, rows, cols).unwrap();
            let x = gpu.stored(operand, &x.repeat(n));
            let y = gpu.range(n * rows * 4);
            gpu.kernels.linear(&gpu.stream, &matrix, &x, &RowsMut::new(&y, rows, 0).unwrap()).unwrap();
            let want = vec![want; n * rows];
            // A weight that is rounded to bf16 is off by 2^-9 of itself.
            assert_close(&gpu.read_f32s(&y), &want, |_| 0.05, &format!("{encoding} [{rows}, {cols}] n {n}"));
        }
    }
}
