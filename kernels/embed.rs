use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, columns, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedParams {
    table: u64,
    ids: u64,
    x: u64,
    table_rows: u64,
    cols: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in embed.cu.
unsafe impl Params for EmbedParams {}

pub(crate) struct Embed(PerEncoding<Kernel<EmbedParams>>);

impl Embed {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("embed", image::EMBED)?.per_encoding("embed")?))
    }
}

impl Kernels {
    /// Row `ids[i]` of `table`, `[_, cols]` in `encoding`, to row `i` of `x`, f32 `[n, cols]`; `ids` is u32
    /// `[n]`. An id that is no row of the table gives a row of NaN.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::Ragged`](crate::Error::Ragged) or
    /// [`Error::Shape`](crate::Error::Shape) where lengths do not match or `cols` is zero, or what the driver
    /// says.
    pub fn embed(
        &self,
        stream: &Stream,
        table: &DeviceSlice,
        encoding: Encoding,
        cols: usize,
        ids: &DeviceSlice,
        x: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        check_nonzero("the number of columns of a table", cols)?;
        let table_rows = check_rows("the table", elements("the table", table, encoding)?, cols)?;
        let n = check_rows("ids", ids.len(), size_of::<u32>())?;
        check_len("x", elements("x", x, Encoding::F32)?, product("x", &[n, cols])?)?;
        let params = EmbedParams {
            table: table.address(),
            ids: ids.address(),
            x: x.address(),
            table_rows: table_rows as u64,
            cols: cols as u64,
        };
        let grid = (narrow("the number of rows", n)?, columns(cols, THREADS), 1);
        // SAFETY: The kernel reads `n` ids, of `table_rows` rows of the table those that the ids name, and
        // writes `n` rows of `cols` floats, all of which the ranges have, as was checked.
        unsafe { self.embed.0.get(encoding)?.launch(stream, grid, THREADS, 0, &params) }
    }
}
