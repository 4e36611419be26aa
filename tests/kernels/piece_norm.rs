use narrows_kernels::{Error, PieceNormShape, reference};
use narrows_shard::Encoding;
use proptest::prelude::*;

use crate::{Gpu, ROUNDING, assert_close, assert_same, noise, on_every_device, property};

const EPS: f32 = 1e-5;

/// One norm: `rows` rows of `pieces` pieces.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    pieces: usize,
    piece: usize,
    centred: bool,
    bias: bool,
    shift: usize,
}

impl Case {
    /// How far off each element may be.
    ///
    /// A thread sums up 8 elements, or a 1024th of them, one rounding each, and folding lanes and warps is ten more. The
    /// mean of elements below 1.5 is off by so much, and with it each distance from it, which counts for more the less
    /// they spread; the root halves the error of the sum of squares. Then come some operations.
    fn bounds(&self, x: &[f32], want: &[f32]) -> Vec<f64> {
        let summed = (8.max(self.piece.div_ceil(1024)) + 10) as f64;
        let of_mean = if self.centred { 1.5 * (summed + 1.0) * ROUNDING } else { 0.0 };
        let bounds = x.chunks(self.piece).zip(want.chunks(self.piece)).flat_map(|(x, want)| {
            let n = self.piece as f64;
            let mean = if self.centred { x.iter().map(|x| f64::from(*x)).sum::<f64>() / n } else { 0.0 };
            let squares: f64 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
            let of_distance = of_mean / (squares / n + f64::from(EPS)).sqrt();
            let of_sums = (summed / 2.0 + 10.0) * ROUNDING;
            // What is normed, without its bias, which is below 1, and by a weight of at most 1.5.
            want.iter().map(move |want| {
                let size = f64::from(want.abs()) + 1.0;
                of_sums * size + of_distance * (1.5 + size)
            })
        });
        bounds.collect()
    }

    fn check(&self, gpu: &Gpu) {
        let Self { rows, pieces, piece, centred, bias, shift } = *self;
        // Not around zero, so that it shows whether the mean is taken off.
        let x: Vec<_> = noise(1, rows * pieces * piece).iter().map(|x| x + 0.5).collect();
        let weight: Vec<_> = noise(2, pieces * piece).iter().map(|w| 1.0 + w / 2.0).collect();
        let bias = bias.then(|| noise(3, pieces * piece));
        let want = reference::piece_norm(&x, piece, centred, &weight, bias.as_deref(), EPS);
        let from = gpu.shifted(bytemuck::cast_slice(&x), shift);
        let (weight, bias) = (gpu.f32s(&weight), bias.map(|bias| gpu.f32s(&bias)));
        let norm = PieceNormShape { piece, centred, weight: &weight, bias: bias.as_ref(), eps: EPS };
        let out = gpu.range(4 * x.len());
        gpu.kernels.piece_norm(&gpu.stream, &from, &norm, &out).unwrap();
        let what = format!("{self:?}");
        assert_same(&gpu.read_f32s(&from), &x, &what);
        let got = gpu.read_f32s(&out);
        let bounds = self.bounds(&x, &want);
        assert_close(&got, &want, |i| bounds[i], &what);
        gpu.kernels.piece_norm(&gpu.stream, &from, &norm, &from).unwrap();
        assert_same(&gpu.read_f32s(&from), &got, &format!("{what} in place"));
    }
}

#[test]
fn pieces_of_every_width() {
    on_every_device(|gpu| {
        for centred in [false, true] {
            for piece in (1..=9).chain([31, 64, 96, 255, 256, 257, 1030, 4096, 8192, 8193, 20_001]) {
                for (rows, pieces, bias) in [(2, 1, true), (1, 3, false)] {
                    Case { rows, pieces, piece, centred, bias, shift: 4 * (piece % 2) }.check(gpu);
                }
            }
        }
        Case { rows: 300, pieces: 5, piece: 24, centred: true, bias: true, shift: 0 }.check(gpu);
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        let shapes = (0_usize..9, 1_usize..6, 4_usize..700, any::<bool>(), any::<bool>(), 0_usize..4);
        property(24, shapes, |(rows, pieces, piece, centred, bias, shift)| {
            Case { rows, pieces, piece, centred, bias, shift: 4 * shift }.check(gpu);
        });
    });
}

/// A mean far from zero: the mean of squares less the square of the mean would be nothing but rounding.
#[test]
fn a_mean_far_from_zero() {
    on_every_device(|gpu| {
        let x: Vec<_> = noise(4, 128).iter().map(|x| 4096.0 + x).collect();
        let (ones, out) = (gpu.f32s(&[1.0; 128]), gpu.range(512));
        let norm = PieceNormShape { piece: 128, centred: true, weight: &ones, bias: None, eps: EPS };
        gpu.kernels.piece_norm(&gpu.stream, &gpu.f32s(&x), &norm, &out).unwrap();
        let want = reference::piece_norm(&x, 128, true, &[1.0; 128], None, EPS);
        // The mean is rounded to a multiple of 2^-12, some times.
        assert_close(&gpu.read_f32s(&out), &want, |_| 0.01, "around 4096");
    });
}

/// A piece without weights of its own is a root-mean-square norm of heads.
#[test]
fn one_piece_is_as_heads() {
    on_every_device(|gpu| {
        let (x, weight) = (noise(5, 12 * 64), gpu.f32s(&noise(6, 64)));
        let (heads, out) = (gpu.f32s(&x), gpu.range(4 * x.len()));
        let norm = PieceNormShape { piece: 64, centred: false, weight: &weight, bias: None, eps: EPS };
        gpu.kernels.piece_norm(&gpu.stream, &heads, &norm, &out).unwrap();
        gpu.kernels.rms_norm_in_place(&gpu.stream, &heads, &weight, EPS).unwrap();
        let (got, want) = (gpu.read_f32s(&out), gpu.read_f32s(&heads));
        assert_close(&got, &want, |i| 30.0 * ROUNDING * f64::from(want[i].abs()), "heads of 64");
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu| {
        let run = |x, piece, weight, bias: Option<usize>, out| {
            let (x, weight, out) = (gpu.range(x), gpu.range(weight), gpu.range(out));
            let bias = bias.map(|len| gpu.range(len));
            let norm =
                PieceNormShape { piece, centred: true, weight: &weight, bias: bias.as_ref(), eps: EPS };
            gpu.kernels.piece_norm(&gpu.stream, &x, &norm, &out)
        };
        let bytes = |elements: usize| Encoding::F32.row_bytes(elements).unwrap();
        assert!(matches!(run(bytes(24), 0, bytes(12), None, bytes(24)), Err(Error::Ragged { .. })));
        assert!(matches!(run(bytes(24), 4, 0, None, bytes(24)), Err(Error::Shape { .. })));
        assert!(matches!(run(bytes(24), 5, bytes(12), None, bytes(24)), Err(Error::Ragged { .. })));
        assert!(matches!(run(bytes(20), 4, bytes(12), None, bytes(20)), Err(Error::Ragged { .. })));
        assert!(matches!(run(bytes(24), 4, bytes(12), Some(bytes(4)), bytes(24)), Err(Error::Length { .. })));
        assert!(matches!(run(bytes(24), 4, bytes(12), None, bytes(12)), Err(Error::Length { .. })));
        assert!(run(0, 4, bytes(12), Some(bytes(12)), 0).is_ok());
    });
}
