use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len, check_nonzero, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct PieceNormParams {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    piece: u32,
    pieces: u32,
    eps: f32,
    centred: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in piece_norm.cu.
unsafe impl Params for PieceNormParams {}

pub(crate) struct PieceNorm(Kernel<PieceNormParams>);

impl PieceNorm {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("piece_norm", image::PIECE_NORM)?.kernel("piece_norm_f32")?))
    }
}

/// A norm of pieces of rows.
#[derive(Clone, Copy, Debug)]
pub struct PieceNormShape<'a> {
    /// Elements of a piece.
    pub piece: usize,
    /// The mean of a piece is taken off first: a layer norm (Ba et al. 2016, arXiv:1607.06450). Otherwise it is divided
    /// by the root of its mean square alone (Zhang and Sennrich 2019, arXiv:1910.07467).
    pub centred: bool,
    /// f32: weights of one piece, or of several that follow each other and have them in turn.
    pub weight: &'a DeviceSlice,
    /// f32, as many as weights.
    pub bias: Option<&'a DeviceSlice>,
    /// What is added under the root.
    pub eps: f32,
}

impl Kernels {
    /// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for each piece of `x`, or
    /// `x / sqrt(mean(x^2) + eps) * weight + bias`, as `norm` says: `x` and `out` are f32 and whole rows of as many
    /// elements as there are weights, and may be the same range.
    ///
    /// The order of a sum depends on the width of a piece alone.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::Ragged`](crate::Error::Ragged) or
    /// [`Error::Shape`](crate::Error::Shape) where lengths do not match, or what the driver says.
    pub fn piece_norm(
        &self,
        stream: &Stream,
        x: &DeviceSlice,
        norm: &PieceNormShape<'_>,
        out: &DeviceSlice,
    ) -> Result<()> {
        /// Elements that a thread takes at least, before there are more threads.
        const ELEMENTS: u32 = 8;
        const MOST_THREADS: u32 = 1024;
        let PieceNormShape { piece, centred, weight, bias, eps } = *norm;
        let weights = elements("weight", weight, Encoding::F32)?;
        let pieces = check_rows("weight", weights, piece)?;
        check_nonzero("the number of weights", pieces)?;
        if let Some(bias) = bias {
            check_len("bias", elements("bias", bias, Encoding::F32)?, weights)?;
        }
        let len = elements("x", x, Encoding::F32)?;
        let rows = check_rows("x", len, weights)?;
        check_len("out", elements("out", out, Encoding::F32)?, len)?;
        let params = PieceNormParams {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, DeviceSlice::address),
            out: out.address(),
            piece: narrow("the width of a piece", piece)?,
            pieces: narrow("the number of pieces", pieces)?,
            eps,
            centred: u32::from(centred),
        };
        let threads = params.piece.div_ceil(ELEMENTS).next_multiple_of(32).min(MOST_THREADS);
        let grid = (narrow("the number of pieces", rows * pieces)?, 1, 1);
        // SAFETY: The kernel reads `rows * pieces` pieces at `x` and writes as many at `out`; it reads `pieces` at
        // `weight`, and at `bias` where it is not null. They have that many, as was checked.
        unsafe { self.piece_norm.0.launch(stream, grid, threads, 0, &params) }
    }
}
