use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::argmax::{row_len, search_threads};
use crate::error::{Error, Result, check_len, check_nonzero, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct TopKParams {
    logits: u64,
    values: u64,
    indices: u64,
    cols: u32,
    k: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in top_k.cu.
unsafe impl Params for TopKParams {}

pub(crate) struct TopK(Kernel<TopKParams>);

impl TopK {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("top_k", image::TOP_K)?.kernel("top_k_f32")?))
    }
}

impl Kernels {
    /// The `k` greatest elements of each row of `logits`, f32 `[n, cols]`, in descending order: what they are to
    /// `values`, f32 `[n, k]`, and where to `indices`, u32 `[n, k]`. Of equal ones the first comes first, and
    /// NaN before every number.
    ///
    /// Takes the time of `k` small searches, which is little for the experts of a router and for candidates of
    /// a sampler, and no way to sort.
    ///
    /// # Errors
    /// [`Error::Shape`] where `k` is zero or more than there are elements in a row, [`Error::Length`] or
    /// [`Error::Ragged`] where lengths do not match, or what the driver says.
    pub fn top_k(
        &self,
        stream: &Stream,
        logits: &DeviceSlice,
        k: usize,
        values: &DeviceSlice,
        indices: &DeviceSlice,
    ) -> Result<()> {
        check_nonzero("k", k)?;
        let len = elements("values", values, Encoding::F32)?;
        let n = check_rows("values", len, k)?;
        check_len("indices", elements("indices", indices, Encoding::F32)?, len)?;
        let Some(cols) = row_len(logits, n)? else { return Ok(()) };
        if k > cols as usize {
            return Err(Error::Shape { what: "k", found: k, takes: "no more than a row has elements" });
        }
        let params = TopKParams {
            logits: logits.address(),
            values: values.address(),
            indices: indices.address(),
            cols,
            k: narrow("k", k)?,
        };
        let grid = (narrow("the number of rows", n)?, 1, 1);
        // SAFETY: The kernel reads `n` rows of `cols` floats and writes `n` times `k` values and indices, which
        // the ranges have, as was checked.
        unsafe { self.top_k.0.launch(stream, grid, search_threads(cols), 0, &params) }
    }
}
