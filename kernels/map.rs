use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, columns, elements};

const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct MapParams {
    x: u64,
    len: u64,
    by: f32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in map.cu.
unsafe impl Params for MapParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct MultiplyParams {
    factors: u64,
    x: u64,
    cols: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in map.cu.
unsafe impl Params for MultiplyParams {}

pub(crate) struct Map {
    scale: Kernel<MapParams>,
    softcap: Kernel<MapParams>,
    clamp: Kernel<MapParams>,
    multiply: Kernel<MultiplyParams>,
}

impl Map {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("map", image::MAP)?;
        Ok(Self {
            scale: module.kernel("scale_f32")?,
            softcap: module.kernel("softcap_f32")?,
            clamp: module.kernel("clamp_f32")?,
            multiply: module.kernel("multiply_f32")?,
        })
    }
}

impl Kernels {
    /// `x *= factor`, element by element, in f32: the same bits as on a CPU.
    ///
    /// # Errors
    /// [`Error::Ragged`](crate::Error::Ragged) where `x` is no whole number of elements, or what the driver says.
    pub fn scale(&self, stream: &Stream, factor: f32, x: &DeviceSlice) -> Result<()> {
        self.map(stream, &self.map.scale, factor, x)
    }

    /// `x = cap * tanh(x / cap)`, element by element, in f32.
    ///
    /// # Errors
    /// As [`Kernels::scale`].
    pub fn softcap(&self, stream: &Stream, cap: f32, x: &DeviceSlice) -> Result<()> {
        self.map(stream, &self.map.softcap, cap, x)
    }

    /// Every element of `x`, f32, to `-limit..=limit`; NaN stays NaN.
    ///
    /// # Errors
    /// As [`Kernels::scale`].
    pub fn clamp(&self, stream: &Stream, limit: f32, x: &DeviceSlice) -> Result<()> {
        self.map(stream, &self.map.clamp, limit, x)
    }

    fn map(&self, stream: &Stream, kernel: &Kernel<MapParams>, by: f32, x: &DeviceSlice) -> Result<()> {
        let len = elements("x", x, Encoding::F32)?;
        let params = MapParams { x: x.address(), len: len as u64, by, reserved: 0 };
        let blocks = self.blocks(len.div_ceil(4), THREADS);
        // SAFETY: The kernel reads and writes `len` floats at `x`, which has that many.
        unsafe { kernel.launch(stream, (blocks, 1, 1), THREADS, 0, &params) }
    }

    /// Multiplies each row of `x`, f32 `[n, cols]`, by `factors`, f32 `[cols]`: the same bits as on a CPU.
    ///
    /// # Errors
    /// [`Error::Ragged`](crate::Error::Ragged) where `x` is not whole rows, or what the driver says.
    pub fn multiply(&self, stream: &Stream, factors: &DeviceSlice, x: &DeviceSlice) -> Result<()> {
        let cols = elements("the factors", factors, Encoding::F32)?;
        let n = check_rows("x", elements("x", x, Encoding::F32)?, cols)?;
        let params = MultiplyParams { factors: factors.address(), x: x.address(), cols: cols as u64 };
        let grid = (narrow("the number of rows", n)?, columns(cols.div_ceil(4), THREADS), 1);
        // SAFETY: The kernel reads `cols` floats at `factors`, and reads and writes `n` times as many at `x`, which
        // have that many, as was checked.
        unsafe { self.map.multiply.launch(stream, grid, THREADS, 0, &params) }
    }
}
