use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct SwigluParams {
    gate: u64,
    up: u64,
    out: u64,
    len: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in swiglu.cu.
unsafe impl Params for SwigluParams {}

pub(crate) struct Swiglu(PerEncoding<Kernel<SwigluParams>>);

impl Swiglu {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("swiglu", image::SWIGLU)?.per_encoding("swiglu")?))
    }
}

impl Kernels {
    /// `out = silu(gate) * up`, element by element: `gate` and `up` in f32, `out` in `encoding`.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) where the lengths differ, or what the driver says.
    pub fn swiglu(
        &self,
        stream: &Stream,
        gate: &DeviceSlice,
        up: &DeviceSlice,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        let len = elements("gate", gate, Encoding::F32)?;
        check_len("up", elements("up", up, Encoding::F32)?, len)?;
        check_len("out", elements("out", out, encoding)?, len)?;
        let params =
            SwigluParams { gate: gate.address(), up: up.address(), out: out.address(), len: len as u64 };
        let blocks = self.blocks(len.div_ceil(4), THREADS);
        // SAFETY: The kernel reads `len` floats at `gate` and `up` and writes as many elements at `out`, which
        // have that many, as was checked.
        unsafe { self.swiglu.0.get(encoding)?.launch(stream, (blocks, 1, 1), THREADS, 0, &params) }
    }
}
