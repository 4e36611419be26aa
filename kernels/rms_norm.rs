use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct RmsNormParams {
    x: u64,
    delta: u64,
    weight: u64,
    out: u64,
    cols: u32,
    eps: f32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rms_norm.cu.
unsafe impl Params for RmsNormParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct HeadNormParams {
    x: u64,
    weight: u64,
    heads: u64,
    head_dim: u32,
    eps: f32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rms_norm.cu.
unsafe impl Params for HeadNormParams {}

pub(crate) struct RmsNorm {
    rows: PerEncoding<Kernel<RmsNormParams>>,
    heads: Kernel<HeadNormParams>,
}

impl RmsNorm {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("rms_norm", image::RMS_NORM)?;
        Ok(Self { rows: module.per_encoding("rms_norm")?, heads: module.kernel("head_norm_f32")? })
    }
}

impl Kernels {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `x`, after `x += delta` where a delta is
    /// given: `x` and `delta` are f32 `[n, cols]`, `weight` f32 `[cols]`, `out` `[n, cols]` in `encoding`.
    ///
    /// The order of a sum depends on `cols` alone.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) or [`Error::Ragged`](crate::Error::Ragged) where lengths do not
    /// match, or what the driver says.
    #[expect(clippy::too_many_arguments, reason = "three operands, a result and how it is stored")]
    pub fn rms_norm(
        &self,
        stream: &Stream,
        x: &DeviceSlice,
        delta: Option<&DeviceSlice>,
        weight: &DeviceSlice,
        eps: f32,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        /// Quads of columns that a thread takes at least, before there are more threads: what it keeps in
        /// registers.
        const QUADS: usize = 4;
        const MOST_THREADS: u32 = 1024;
        let cols = elements("weight", weight, Encoding::F32)?;
        let len = elements("x", x, Encoding::F32)?;
        let n = check_rows("x", len, cols)?;
        if let Some(delta) = delta {
            check_len("delta", elements("delta", delta, Encoding::F32)?, len)?;
        }
        check_len("out", elements("out", out, encoding)?, len)?;
        let params = RmsNormParams {
            x: x.address(),
            delta: delta.map_or(0, DeviceSlice::address),
            weight: weight.address(),
            out: out.address(),
            cols: narrow("the number of columns", cols)?,
            eps,
        };
        let threads = params.cols.div_ceil(4 * QUADS as u32).next_multiple_of(32).min(MOST_THREADS);
        let grid = (narrow("the number of rows", n)?, 1, 1);
        // SAFETY: The kernel reads and writes `n` rows of `cols` elements at each address but that of the
        // weight, which has one, and leaves `delta` alone where it is null; lengths were checked.
        unsafe { self.rms_norm.rows.get(encoding)?.launch(stream, grid, threads, 0, &params) }
    }

    /// [`Kernels::rms_norm`] of each head for itself, in place: `heads` is f32 `[m, head_dim]`, `weight` f32
    /// `[head_dim]`.
    ///
    /// # Errors
    /// [`Error::Ragged`](crate::Error::Ragged) where `heads` are not whole heads, or what the driver says.
    pub fn rms_norm_in_place(
        &self,
        stream: &Stream,
        heads: &DeviceSlice,
        weight: &DeviceSlice,
        eps: f32,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        const HEADS: usize = 8;
        let head_dim = elements("weight", weight, Encoding::F32)?;
        let m = check_rows("the heads", elements("the heads", heads, Encoding::F32)?, head_dim)?;
        let params = HeadNormParams {
            x: heads.address(),
            weight: weight.address(),
            heads: m as u64,
            head_dim: narrow("the head dimension", head_dim)?,
            eps,
        };
        let blocks = narrow("the number of blocks", m.div_ceil(HEADS))?;
        // SAFETY: The kernel reads and writes `m` heads of `head_dim` floats, and reads one at `weight`, which
        // have that many, as was checked.
        unsafe { self.rms_norm.heads.launch(stream, (blocks, 1, 1), THREADS, 0, &params) }
    }
}
