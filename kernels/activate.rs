use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct ActivateParams {
    gate: u64,
    up: u64,
    out: u64,
    len: u64,
    function: u32,
    unused: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in activate.cu.
unsafe impl Params for ActivateParams {}

pub(crate) struct Activate(PerEncoding<Kernel<ActivateParams>>);

impl Activate {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("activate", image::ACTIVATE)?.per_encoding("activate")?))
    }
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity = 0,
    /// `x / (1 + exp(-x))`
    Silu = 1,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    GeluTanh = 2,
    /// `max(x, 0)^2`
    Relu2 = 3,
    /// `1 / (1 + exp(-x))`
    Sigmoid = 4,
}

impl Kernels {
    /// `out = act(gate) * up`, or `act(gate)`, element by element: `gate` and `up` in f32, `out` in `encoding`.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) where the lengths differ, or what the driver says.
    pub fn activate(
        &self,
        stream: &Stream,
        function: Activation,
        gate: &DeviceSlice,
        up: Option<&DeviceSlice>,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        let len = elements("gate", gate, Encoding::F32)?;
        if let Some(up) = up {
            check_len("up", elements("up", up, Encoding::F32)?, len)?;
        }
        check_len("out", elements("out", out, encoding)?, len)?;
        let params = ActivateParams {
            gate: gate.address(),
            up: up.map_or(0, DeviceSlice::address),
            out: out.address(),
            len: len as u64,
            function: function as u32,
            unused: 0,
        };
        let blocks = self.blocks(len.div_ceil(4), THREADS);
        // SAFETY: The kernel reads `len` floats at `gate` and, where it is not null, at `up`, and writes as many elements
        // at `out`, which have that many, as was checked.
        unsafe { self.activate.0.get(encoding)?.launch(stream, (blocks, 1, 1), THREADS, 0, &params) }
    }

    /// `out = silu(gate) * up`: [`Kernels::activate`] as most models have it.
    ///
    /// # Errors
    /// As [`Kernels::activate`].
    pub fn swiglu(
        &self,
        stream: &Stream,
        gate: &DeviceSlice,
        up: &DeviceSlice,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        self.activate(stream, Activation::Silu, gate, Some(up), encoding, out)
    }
}
