use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, columns, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct AddParams {
    a: u64,
    x: u64,
    len: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in add.cu.
unsafe impl Params for AddParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddBiasParams {
    bias: u64,
    y: u64,
    cols: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in add.cu.
unsafe impl Params for AddBiasParams {}

pub(crate) struct Add {
    add: Kernel<AddParams>,
    bias: Kernel<AddBiasParams>,
}

impl Add {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("add", image::ADD)?;
        Ok(Self { add: module.kernel("add_f32")?, bias: module.kernel("add_bias_f32")? })
    }
}

impl Kernels {
    /// `x += a`, element by element, both f32.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) where the lengths differ, or what the driver says.
    pub fn add(&self, stream: &Stream, a: &DeviceSlice, x: &DeviceSlice) -> Result<()> {
        const THREADS: u32 = 256;
        let len = elements("x", x, Encoding::F32)?;
        check_len("a", elements("a", a, Encoding::F32)?, len)?;
        let params = AddParams { a: a.address(), x: x.address(), len: len as u64 };
        let blocks = self.blocks(len.div_ceil(4), THREADS);
        // SAFETY: The kernel reads `len` floats at `a`, and reads and writes as many at `x`, which have that
        // many, as was checked.
        unsafe { self.add.add.launch(stream, (blocks, 1, 1), THREADS, 0, &params) }
    }

    /// Adds `bias`, f32 `[cols]`, to each row of `y`, f32 `[n, cols]`.
    ///
    /// # Errors
    /// [`Error::Ragged`](crate::Error::Ragged) where `y` is not whole rows, or what the driver says.
    pub fn add_bias(&self, stream: &Stream, bias: &DeviceSlice, y: &DeviceSlice) -> Result<()> {
        const THREADS: u32 = 256;
        let cols = elements("bias", bias, Encoding::F32)?;
        let n = check_rows("y", elements("y", y, Encoding::F32)?, cols)?;
        let params = AddBiasParams { bias: bias.address(), y: y.address(), cols: cols as u64 };
        let grid = (narrow("the number of rows", n)?, columns(cols.div_ceil(4), THREADS), 1);
        // SAFETY: The kernel reads `cols` floats at `bias`, and reads and writes `n` times as many at `y`, which
        // have that many, as was checked.
        unsafe { self.add.bias.launch(stream, grid, THREADS, 0, &params) }
    }
}
