use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, narrow, product};
use crate::image::{self, Kernel, Loader, Params, PerEncoding, PerQuantised};
use crate::linear::Matrix;
use crate::{Kernels, columns, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct DequantiseParams {
    rows: u64,
    out: u64,
    row_bytes: u64,
    cols: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in dequantise.cu.
unsafe impl Params for DequantiseParams {}

pub(crate) struct Dequantise(PerQuantised<PerEncoding<Kernel<DequantiseParams>>>);

impl Dequantise {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("dequantise", image::DEQUANTISE)?;
        Ok(Self(PerQuantised {
            q8: module.per_encoding("dequantise_q8")?,
            nf4: module.per_encoding("dequantise_nf4")?,
        }))
    }
}

impl Kernels {
    /// The weights of `matrix`, which is quantised, to `out`, `[rows, cols]` in `encoding`: those of
    /// [`narrows_shard::blocks::dequantise`], rounded once more to `encoding`, to nearest even.
    ///
    /// # Errors
    /// [`Error::Quantised`] where `encoding` is one of blocks, or the matrix is not; [`Error::Length`] or
    /// [`Error::Ragged`] where `out` has another length or starts within an element; or what the driver says.
    pub fn dequantise(
        &self,
        stream: &Stream,
        matrix: &Matrix<'_>,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 128;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        check_len("out", elements("out", out, encoding)?, product("out", &[rows, cols])?)?;
        let unit = encoding.row_bytes(1).unwrap_or(1);
        if !out.address().is_multiple_of(unit as u64) {
            return Err(Error::Ragged { what: "out", unit, found: out.address() as usize });
        }
        let params = DequantiseParams {
            rows: matrix.address(),
            out: out.address(),
            row_bytes: matrix.row_bytes() as u64,
            cols: cols as u64,
        };
        let kernel = self.dequantise.0.get(matrix.encoding())?.get(encoding)?;
        // A thread has at least the sixteen weights of 16 bytes.
        let grid = (narrow("the rows of a matrix", rows)?, columns(cols.div_ceil(16), THREADS), 1);
        // SAFETY: The kernel reads `rows` rows of the matrix, which it has (`Matrix`), and writes `cols` elements
        // for each to `out`, which has as many, as was checked.
        unsafe { kernel.launch(stream, grid, THREADS, 0, &params) }
    }
}
