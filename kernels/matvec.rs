use narrows_shard::Encoding;
use narrows_staging::device::Stream;

use crate::Kernels;
use crate::error::{Error, Result, narrow};
use crate::image::{self, Kernel, Loader, Params, PerEncoding, PerQuantised};
use crate::linear::Matrix;

#[repr(C)]
#[derive(Clone, Copy)]
struct MatvecParams {
    matrix: u64,
    x: u64,
    y: u64,
    stride: u64,
    row_bytes: u64,
    x_bytes: u64,
    rows: u32,
    cols: u32,
    n: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in matvec.cu.
unsafe impl Params for MatvecParams {}

/// One kernel in every encoding of a kind, and how many rows of weights a block of it takes.
struct Variant<T> {
    kernels: T,
    rows: usize,
}

/// The kernels for one, two and four rows of activations, and for those of any address.
struct Variants<T> {
    one: Variant<T>,
    two: Variant<T>,
    four: Variant<T>,
    one_any: Variant<T>,
    four_any: Variant<T>,
}

impl<T> Variants<T> {
    fn load(load: impl Fn(&'static str) -> Result<T>) -> Result<Self> {
        let variant = |prefix, rows| -> Result<_> { Ok(Variant { kernels: load(prefix)?, rows }) };
        Ok(Self {
            one: variant("matvec1", 2)?,
            two: variant("matvec2", 2)?,
            four: variant("matvec4", 4)?,
            one_any: variant("matvec1_any", 2)?,
            four_any: variant("matvec4_any", 2)?,
        })
    }

    /// The kernel for `n` rows of activations, and how many it takes.
    const fn choose(&self, wide: bool, n: usize) -> (&Variant<T>, usize) {
        match (wide, n) {
            (true, 1) => (&self.one, 1),
            (true, 2) => (&self.two, 2),
            (true, _) => (&self.four, 4),
            (false, 1) => (&self.one_any, 1),
            (false, _) => (&self.four_any, 4),
        }
    }
}

pub(crate) struct Matvec {
    plain: Variants<PerEncoding<Kernel<MatvecParams>>>,
    eight: Variant<PerEncoding<Kernel<MatvecParams>>>,
    /// At most four rows at a time: what eight need beside the weights of a block does not fit into registers.
    quantised: Variants<PerQuantised<Kernel<MatvecParams>>>,
}

impl Matvec {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("matvec", image::MATVEC)?;
        Ok(Self {
            plain: Variants::load(|prefix| module.per_encoding(prefix))?,
            eight: Variant { kernels: module.per_encoding("matvec8")?, rows: 4 },
            quantised: Variants::load(|prefix| module.per_quantised(prefix))?,
        })
    }

    /// The kernel for `n` rows of activations, how many rows of weights a block of it takes, and how many of
    /// activations it.
    fn choose(
        &self,
        encoding: Encoding,
        wide: bool,
        n: usize,
    ) -> Result<(&Kernel<MatvecParams>, usize, usize)> {
        if encoding.block().is_some() {
            let (variant, at_once) = self.quantised.choose(wide, n);
            return Ok((variant.kernels.get(encoding)?, variant.rows, at_once));
        }
        let (variant, at_once) = match (wide, n) {
            (true, 5..) => (&self.eight, Kernels::MATVEC_ROWS),
            _ => self.plain.choose(wide, n),
        };
        Ok((variant.kernels.get(encoding)?, variant.rows, at_once))
    }
}

impl Kernels {
    /// Up to so many rows of activations are multiplied by the kernel that reads every weight once from memory
    /// and computes each row as if it were alone.
    pub const MATVEC_ROWS: usize = 8;

    /// [`Kernels::linear`] of `n` rows, of checked shapes, at most [`Kernels::MATVEC_ROWS`] at a time. `x` and `y` are
    /// addresses; `y` is that of the first column written.
    pub(crate) fn matvec(
        &self,
        stream: &Stream,
        matrix: &Matrix<'_>,
        x: u64,
        n: usize,
        y: u64,
        stride: usize,
    ) -> Result<()> {
        const THREADS: u32 = 128;
        let Some(x_bytes) = matrix.encoding().operand().row_bytes(matrix.cols()) else {
            return Err(Error::Overflow { what: "a row of activations" });
        };
        let starts = matrix.address() | matrix.row_bytes() as u64 | x | x_bytes as u64;
        let wide = starts.is_multiple_of(16);
        let (kernel, rows, at_once) = self.matvec.choose(matrix.encoding(), wide, n)?;
        for first in (0..n).step_by(at_once) {
            let params = MatvecParams {
                matrix: matrix.address(),
                x: x + (first * x_bytes) as u64,
                y: y + (first * stride * size_of::<f32>()) as u64,
                stride: stride as u64,
                row_bytes: matrix.row_bytes() as u64,
                x_bytes: x_bytes as u64,
                rows: narrow("the number of rows of a weight matrix", matrix.rows())?,
                cols: narrow("the number of columns of a weight matrix", matrix.cols())?,
                n: narrow("the number of rows of activations", at_once.min(n - first))?,
                reserved: 0,
            };
            let grid = (narrow("the number of blocks", matrix.rows().div_ceil(rows))?, 1, 1);
            // SAFETY: The kernel reads `rows` rows of the matrix, which it has, and `n` rows of
            // `x_bytes` at `x`, and writes `rows` elements from each of `n` rows at `y`: `linear` has checked that both
            // have them.
            unsafe { kernel.launch(stream, grid, THREADS, 0, &params) }?;
        }
        Ok(())
    }
}
