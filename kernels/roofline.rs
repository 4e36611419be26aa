use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_nonzero, check_rows, narrow};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct ReadParams {
    from: u64,
    sums: u64,
    words: u64,
    piece: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in roofline.cu.
unsafe impl Params for ReadParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct MultiplyAddsParams {
    out: u64,
    a: f32,
    b: f32,
    steps: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in roofline.cu.
unsafe impl Params for MultiplyAddsParams {}

pub(crate) struct Roofline {
    read: Kernel<ReadParams>,
    multiply_adds: PerEncoding<Kernel<MultiplyAddsParams>>,
    architecture: u32,
}

impl Roofline {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("roofline", image::ROOFLINE)?;
        Ok(Self {
            read: module.kernel("read_sums")?,
            multiply_adds: module.per_encoding("multiply_adds")?,
            architecture: loader.architecture(),
        })
    }
}

/// Bytes of a load.
const WORD: usize = 16;
const READ_THREADS: u32 = 256;
const THREADS: u32 = 256;
/// Sums of a thread, and of a warp; their twins are in roofline.cu.
const CHAINS: u64 = 16;
const MATRIX_CHAINS: u64 = 8;
/// Multiply-adds of one step of a chain in the matrix units.
const MATRIX: u64 = 16 * 8 * 16;

impl Kernels {
    /// Threads of a multiprocessor that [`Kernels::multiply_adds`] keeps all units busy with, and whose sums fit
    /// into its registers.
    pub const MULTIPLY_ADD_THREADS: usize = 1024;

    /// Reads every byte of `from`, a number of words of 16 bytes, and does no more: `sums`, u32 `[n]`, are the sums
    /// of its 32-bit words modulo 2^32, of as many pieces as there are sums, each of
    /// `ceil(from.len() / 16 / n)` words of 16 bytes but the last ones. A block reads a piece.
    ///
    /// How fast that is bounds every operation on memory. The best number of pieces depends on the device: few
    /// that are read for long, or many short ones that replace each other.
    ///
    /// # Errors
    /// [`Error::Ragged`] or [`Error::Shape`] where a range is not whole words, starts within one, or there are no
    /// sums; or what the driver says.
    pub fn read_sums(&self, stream: &Stream, from: &DeviceSlice, sums: &DeviceSlice) -> Result<()> {
        let words = check_rows("what is read", from.len(), WORD)?;
        let n = check_rows("sums of what is read", sums.len(), size_of::<u32>())?;
        check_nonzero("the number of sums", n)?;
        for (what, range, unit) in
            [("the address of what is read", from, WORD), ("the address of sums", sums, size_of::<u32>())]
        {
            if !range.address().is_multiple_of(unit as u64) {
                return Err(Error::Ragged { what, unit, found: range.address() as usize });
            }
        }
        let params = ReadParams {
            from: from.address(),
            sums: sums.address(),
            words: words as u64,
            piece: words.div_ceil(n) as u64,
        };
        let grid = (narrow("the number of sums", n)?, 1, 1);
        // SAFETY: Block i of n reads the words from i times the piece up to the next, or to the last of `words`,
        // which `from` has, and writes sum i of n.
        unsafe { self.roofline.read.launch(stream, grid, READ_THREADS, 0, &params) }
    }

    /// Does multiply-adds in registers and nothing else, `steps` one after the other in several chains at a time,
    /// and says how many operations of the device that are: a multiply-add is two. `encoding` is that of the
    /// factors, sums are f32: f16 and bf16 take the matrix units by `mma.sync.m16n8k16`, which is what the kernels
    /// here compute with, where there are any ([`Kernels::has_matrix_units`]), and f32 multiply-adds elsewhere.
    ///
    /// `out` is f32 `[n]`, each the sum of the chains of a thread, n a multiple of 256. Without matrix units the 16
    /// chains of a thread begin at 0 to 15, and a step is `x = a x + b`. With them its 32 sums begin at 0 to 31, and
    /// a step adds `16 a b`, a and b rounded to the encoding.
    ///
    /// How fast that is bounds every operation that computes.
    ///
    /// # Errors
    /// [`Error::Ragged`] where `out` is not whole blocks, [`Error::Quantised`] for an encoding of blocks, or what
    /// the driver says.
    pub fn multiply_adds(
        &self,
        stream: &Stream,
        encoding: Encoding,
        (a, b): (f32, f32),
        steps: u32,
        out: &DeviceSlice,
    ) -> Result<u64> {
        let n = elements("out", out, Encoding::F32)?;
        let blocks = check_rows("out", n, THREADS as usize)?;
        if !out.address().is_multiple_of(size_of::<f32>() as u64) {
            let (what, unit) = ("the address of out", size_of::<f32>());
            return Err(Error::Ragged { what, unit, found: out.address() as usize });
        }
        let kernels = &self.roofline.multiply_adds;
        let (kernel, each) = match self.has_matrix_units(encoding) {
            true => (kernels.get(encoding)?, MATRIX_CHAINS * MATRIX / 32),
            // For the error of an encoding of blocks.
            false => (kernels.get(encoding).and(kernels.get(Encoding::F32))?, CHAINS),
        };
        let params = MultiplyAddsParams { out: out.address(), a, b, steps, reserved: 0 };
        let grid = (narrow("the number of blocks", blocks)?, 1, 1);
        // SAFETY: Each thread writes one element of `out`, which has as many as there are threads in the blocks.
        unsafe { kernel.launch(stream, grid, THREADS, 0, &params) }?;
        Ok(2 * each * n as u64 * u64::from(steps))
    }

    /// Whether products of factors in `encoding` go through matrix units on this device: f16 from compute capability
    /// 7.5, bf16 from 8.0, as the kernels here are compiled.
    #[must_use]
    pub const fn has_matrix_units(&self, encoding: Encoding) -> bool {
        match encoding {
            Encoding::F16 => self.roofline.architecture >= 75,
            Encoding::Bf16 => self.roofline.architecture >= 80,
            Encoding::F32 | Encoding::Q8 | Encoding::Nf4 => false,
        }
    }
}
