use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::image::{self, Kernel, Loader, Params};
use crate::{Kernels, columns, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeParams {
    x: u64,
    cos: u64,
    sin: u64,
    heads: u32,
    half: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rope.cu.
unsafe impl Params for RopeParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeInPartParams {
    x: u64,
    cos: u64,
    sin: u64,
    heads: u32,
    head_dim: u32,
    half: u32,
    neighbours: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in rope.cu.
unsafe impl Params for RopeInPartParams {}

const THREADS: u32 = 256;

pub(crate) struct Rope {
    whole: Kernel<RopeParams>,
    in_part: Kernel<RopeInPartParams>,
}

impl Rope {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("rope", image::ROPE)?;
        Ok(Self { whole: module.kernel("rope_f32")?, in_part: module.kernel("rope_in_part_f32")? })
    }
}

impl Kernels {
    /// Rotary position embedding of `x`, f32 `[n, heads * head_dim]`, in place, by the angles whose cosines and
    /// sines are given for each row, f32 `[n, head_dim / 2]`.
    ///
    /// The halves `(x1, x2)` of a head become `(x1 cos - x2 sin, x2 cos + x1 sin)`, each product and sum rounded
    /// by itself: the same bits as on a CPU.
    ///
    /// # Errors
    /// [`Error::Shape`] where `head_dim` is odd or a size is zero, [`Error::Length`] or [`Error::Ragged`] where
    /// lengths do not match, or what the driver says.
    pub fn rope(
        &self,
        stream: &Stream,
        x: &DeviceSlice,
        heads: usize,
        head_dim: usize,
        cos: &DeviceSlice,
        sin: &DeviceSlice,
    ) -> Result<()> {
        check_nonzero("the number of heads", heads)?;
        check_nonzero("the head dimension", head_dim)?;
        if !head_dim.is_multiple_of(2) {
            return Err(Error::Shape { what: "the head dimension", found: head_dim, takes: "even ones" });
        }
        let row = product("a row of heads", &[heads, head_dim])?;
        narrow("a row of heads", row)?;
        let n = check_rows("x", elements("x", x, Encoding::F32)?, row)?;
        let half = head_dim / 2;
        check_len("the cosines", elements("the cosines", cos, Encoding::F32)?, n * half)?;
        check_len("the sines", elements("the sines", sin, Encoding::F32)?, n * half)?;
        let params = RopeParams {
            x: x.address(),
            cos: cos.address(),
            sin: sin.address(),
            heads: narrow("the number of heads", heads)?,
            half: narrow("half the head dimension", half)?,
        };
        let grid = (narrow("the number of rows", n)?, columns(row.div_ceil(8), THREADS), 1);
        // SAFETY: The kernel reads and writes `n` rows of `heads` heads at `x`, and reads `n` rows of `half`
        // floats at `cos` and `sin`, which have that many, as was checked.
        unsafe { self.rope.whole.launch(stream, grid, THREADS, 0, &params) }
    }

    /// [`Kernels::rope`] of the first `2 * half` elements of each head alone, where `cos` and `sin` are f32 `[n, half]`.
    /// Their neighbours `(x[2 j], x[2 j + 1])` turn together where `neighbours` says so, otherwise their halves.
    ///
    /// # Errors
    /// As [`Kernels::rope`]; [`Error::Shape`] where no elements turn, or more than a head has.
    #[expect(clippy::too_many_arguments, reason = "what is turned, and how")]
    pub fn rope_in_part(
        &self,
        stream: &Stream,
        x: &DeviceSlice,
        heads: usize,
        head_dim: usize,
        neighbours: bool,
        cos: &DeviceSlice,
        sin: &DeviceSlice,
    ) -> Result<()> {
        check_nonzero("the number of heads", heads)?;
        check_nonzero("the head dimension", head_dim)?;
        let row = product("a row of heads", &[heads, head_dim])?;
        narrow("a row of heads", row)?;
        let n = check_rows("x", elements("x", x, Encoding::F32)?, row)?;
        let angles = elements("the cosines", cos, Encoding::F32)?;
        check_len("the sines", elements("the sines", sin, Encoding::F32)?, angles)?;
        if n == 0 {
            return check_len("the cosines", angles, 0);
        }
        let half = angles / n;
        check_len("the cosines", angles, n * half)?;
        if half == 0 || half > head_dim / 2 {
            let takes = "at least 2 and at most as many as a head has";
            return Err(Error::Shape { what: "the number of elements that turn", found: 2 * half, takes });
        }
        let params = RopeInPartParams {
            x: x.address(),
            cos: cos.address(),
            sin: sin.address(),
            heads: narrow("the number of heads", heads)?,
            head_dim: narrow("the head dimension", head_dim)?,
            half: narrow("half the elements that turn", half)?,
            neighbours: u32::from(neighbours),
        };
        let grid = (narrow("the number of rows", n)?, columns(heads * half, THREADS), 1);
        // SAFETY: The kernel reads and writes elements of `n` rows of `heads` heads at `x`, the first `2 * half` of each
        // head, which has as many, and reads `n` rows of `half` floats at `cos` and `sin`, as was checked.
        unsafe { self.rope.in_part.launch(stream, grid, THREADS, 0, &params) }
    }
}
