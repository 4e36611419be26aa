use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_nonzero, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct ArgmaxParams {
    logits: u64,
    out: u64,
    cols: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in argmax.cu.
unsafe impl Params for ArgmaxParams {}

pub(crate) struct Argmax(Kernel<ArgmaxParams>);

impl Argmax {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("argmax", image::ARGMAX)?.kernel("argmax_f32")?))
    }
}

impl Kernels {
    /// The index of the greatest element of each row of `logits`, f32 `[n, cols]`, to `out`, u32 `[n]`, which
    /// says how many rows there are: the first of equal ones, and the first NaN where there is one, as
    /// `torch.argmax`.
    ///
    /// # Errors
    /// [`Error::Ragged`](crate::Error::Ragged) where `logits` are not so many rows,
    /// [`Error::Shape`](crate::Error::Shape) where rows are empty, or what the driver says.
    pub fn argmax(&self, stream: &Stream, logits: &DeviceSlice, out: &DeviceSlice) -> Result<()> {
        let n = check_rows("the indices", out.len(), size_of::<u32>())?;
        let cols = row_len(logits, n)?;
        let Some(cols) = cols else { return Ok(()) };
        let params = ArgmaxParams { logits: logits.address(), out: out.address(), cols, reserved: 0 };
        let grid = (narrow("the number of rows", n)?, 1, 1);
        // SAFETY: The kernel reads `n` rows of `cols` floats and writes `n` indices, which the ranges have, as
        // was checked.
        unsafe { self.argmax.0.launch(stream, grid, search_threads(cols), 0, &params) }
    }
}

/// How long each of `n` rows of scores is; `None` where there are none of either.
pub(crate) fn row_len(logits: &DeviceSlice, n: usize) -> Result<Option<u32>> {
    let len = elements("the logits", logits, Encoding::F32)?;
    if n == 0 && len == 0 {
        return Ok(None);
    }
    let cols = check_rows("the logits", len, n)?;
    check_nonzero("the length of a row to search", cols)?;
    Ok(Some(narrow("the length of a row to search", cols)?))
}

/// Threads of a block that searches a row: several elements for each, so that loads are under way together.
pub(crate) fn search_threads(cols: u32) -> u32 {
    cols.div_ceil(4).next_multiple_of(32).min(1024)
}
