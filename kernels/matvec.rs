use narrows_staging::device::Stream;

use crate::Kernels;
use crate::error::{Result, narrow};
use crate::image::{self, Kernel, Loader, Module, Params, PerEncoding};
use crate::linear::Matrix;

#[repr(C)]
#[derive(Clone, Copy)]
struct MatvecParams {
    matrix: u64,
    x: u64,
    y: u64,
    stride: u64,
    row_bytes: u64,
    rows: u32,
    cols: u32,
    n: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in matvec.cu.
unsafe impl Params for MatvecParams {}

/// One kernel, and how many rows of weights a block of it takes.
struct Variant {
    kernels: PerEncoding<Kernel<MatvecParams>>,
    rows: usize,
}

pub(crate) struct Matvec {
    one: Variant,
    two: Variant,
    four: Variant,
    eight: Variant,
    one_any: Variant,
    four_any: Variant,
}

impl Matvec {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("matvec", image::MATVEC)?;
        let variant = |module: &Module, prefix, rows| -> Result<_> {
            Ok(Variant { kernels: module.per_encoding(prefix)?, rows })
        };
        Ok(Self {
            one: variant(&module, "matvec1", 2)?,
            two: variant(&module, "matvec2", 2)?,
            four: variant(&module, "matvec4", 4)?,
            eight: variant(&module, "matvec8", 4)?,
            one_any: variant(&module, "matvec1_any", 2)?,
            four_any: variant(&module, "matvec4_any", 2)?,
        })
    }
}

impl Kernels {
    /// Up to so many rows of activations are multiplied by the kernel that reads every weight once from memory
    /// and computes each row as if it were alone.
    pub const MATVEC_ROWS: usize = 8;

    /// [`Kernels::linear`] of `n` rows from 1 to [`Kernels::MATVEC_ROWS`], of checked shapes. `x` and `y` are
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
        // Rows of weights and of activations are equally long.
        let wide = (matrix.address() | x | matrix.row_bytes() as u64).is_multiple_of(16);
        let (variant, at_once) = match (wide, n) {
            (true, 1) => (&self.matvec.one, 1),
            (true, 2) => (&self.matvec.two, 2),
            (true, 3 | 4) => (&self.matvec.four, 4),
            (true, _) => (&self.matvec.eight, Self::MATVEC_ROWS),
            (false, 1) => (&self.matvec.one_any, 1),
            (false, _) => (&self.matvec.four_any, 4),
        };
        for first in (0..n).step_by(at_once) {
            let params = MatvecParams {
                matrix: matrix.address(),
                x: x + (first * matrix.row_bytes()) as u64,
                y: y + (first * stride * size_of::<f32>()) as u64,
                stride: stride as u64,
                row_bytes: matrix.row_bytes() as u64,
                rows: narrow("the number of rows of a weight matrix", matrix.rows())?,
                cols: narrow("the number of columns of a weight matrix", matrix.cols())?,
                n: narrow("the number of rows of activations", at_once.min(n - first))?,
                reserved: 0,
            };
            let grid = (narrow("the number of blocks", matrix.rows().div_ceil(variant.rows))?, 1, 1);
            let kernel = variant.kernels.get(matrix.encoding())?;
            // SAFETY: The kernel reads `rows` rows of the matrix, which it has, and `n` rows of the same length
            // at `x`, and writes `rows` elements from each of `n` rows at `y`: `linear` has checked that both
            // have them.
            unsafe { kernel.launch(stream, grid, THREADS, 0, &params) }?;
        }
        Ok(())
    }
}
