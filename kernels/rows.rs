use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, columns, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct GatherRowsParams {
    x: u64,
    rows: u64,
    out: u64,
    x_rows: u64,
    row_bytes: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rows.cu.
unsafe impl Params for GatherRowsParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ScatterAddParams {
    y: u64,
    rows: u64,
    weights: u64,
    out: u64,
    out_rows: u64,
    cols: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rows.cu.
unsafe impl Params for ScatterAddParams {}

pub(crate) struct Rows {
    gather: Kernel<GatherRowsParams>,
    scatter: Kernel<ScatterAddParams>,
}

impl Rows {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("rows", image::ROWS)?;
        Ok(Self { gather: module.kernel("gather_rows")?, scatter: module.kernel("scatter_add_f32")? })
    }
}

impl Kernels {
    /// `out[i, :] = x[rows[i], :]`, bit by bit: `x` is `[_, cols]` and `out` `[m, cols]`, both in `encoding`,
    /// `rows` is u32 `[m]` and may name a row several times. A number that is no row of `x` gives a row of
    /// zeros.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Ragged`] or [`Error::Shape`] where lengths do not match or `cols` is zero,
    /// [`Error::Quantised`] where `encoding` is one of blocks, or what the driver says.
    pub fn gather_rows(
        &self,
        stream: &Stream,
        x: &DeviceSlice,
        encoding: Encoding,
        cols: usize,
        rows: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        check_nonzero("the number of columns of what is gathered", cols)?;
        let x_rows = check_rows("x", elements("x", x, encoding)?, cols)?;
        let m = check_rows("rows", rows.len(), size_of::<u32>())?;
        check_len("out", elements("out", out, encoding)?, product("out", &[m, cols])?)?;
        let row_bytes = encoding.row_bytes(cols).ok_or(Error::Overflow { what: "a row of x" })?;
        let params = GatherRowsParams {
            x: x.address(),
            rows: rows.address(),
            out: out.address(),
            x_rows: x_rows as u64,
            row_bytes: row_bytes as u64,
        };
        let grid = (narrow("the number of rows", m)?, columns(row_bytes.div_ceil(16), THREADS), 1);
        // SAFETY: The kernel reads `m` numbers of rows, of the `x_rows` rows of `x` those that they name, and
        // writes `m` rows of `row_bytes`, all of which the ranges have, as was checked.
        unsafe { self.rows.gather.launch(stream, grid, THREADS, 0, &params) }
    }

    /// `out[rows[i], :] += weights[i] * y[i, :]`: `y` is f32 `[m, cols]`, `rows` u32 `[m]`, `weights` f32 `[m]`,
    /// `out` f32 `[_, cols]`. Each element is `fma(weights[i], y, out)`, so product and sum are one rounding.
    ///
    /// No row may be named twice in one call: which of its two sums remained would be chance. Calls follow each
    /// other in the order of the stream. What belongs to a number that is no row of `out` is left out.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Ragged`] or [`Error::Shape`] where lengths do not match or `cols` is zero, or
    /// what the driver says.
    pub fn scatter_add(
        &self,
        stream: &Stream,
        y: &DeviceSlice,
        cols: usize,
        rows: &DeviceSlice,
        weights: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        check_nonzero("the number of columns of what is added", cols)?;
        let m = check_rows("rows", rows.len(), size_of::<u32>())?;
        check_len("weights", elements("weights", weights, Encoding::F32)?, m)?;
        check_len("y", elements("y", y, Encoding::F32)?, product("y", &[m, cols])?)?;
        let out_rows = check_rows("out", elements("out", out, Encoding::F32)?, cols)?;
        let params = ScatterAddParams {
            y: y.address(),
            rows: rows.address(),
            weights: weights.address(),
            out: out.address(),
            out_rows: out_rows as u64,
            cols: cols as u64,
        };
        let grid = (narrow("the number of rows", m)?, columns(cols.div_ceil(4), THREADS), 1);
        // SAFETY: The kernel reads `m` rows of `y`, numbers of rows and weights, and reads and writes of the
        // `out_rows` rows of `out` those that are named, all of which the ranges have, as was checked.
        unsafe { self.rows.scatter.launch(stream, grid, THREADS, 0, &params) }
    }
}
