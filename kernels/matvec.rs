use narrows_shard::Encoding;
use narrows_staging::device::Stream;

use crate::Kernels;
use crate::error::{Error, Result, narrow};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
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

/// One kernel in every encoding of plain numbers, and how many rows of weights a block of it takes.
struct Variant {
    kernels: PerEncoding<Kernel<MatvecParams>>,
    rows: usize,
}

/// The kernels for rows of activations up to so many, in blocks of so many threads.
struct Quantised {
    kernels: [(usize, Kernel<MatvecParams>, u32); 4],
    /// For matrices of few rows.
    few: [(usize, Kernel<MatvecParams>, u32); 4],
    /// For activations of any address.
    any: [(usize, Kernel<MatvecParams>, u32); 2],
    /// Bytes of shared memory for the table of values. With one, a block is worth starting only if it stays.
    table: u32,
}

/// Rows of weights that a warp takes: of the kernels in matvec_blocks.cu, of those for few, of those for any address.
const WARP_ROWS: (usize, usize, usize) = (4, 1, 2);
/// Warps of a multiprocessor that are worth a kernel whose warps take several rows.
const BUSY: usize = 12;
/// The table of nf4, in the twin of `Nf4Codes`: two values for each byte, 16 times over.
const TABLE: u32 = 256 * 16 * 8;
/// Blocks with a table that a multiprocessor holds at most.
const RESIDENT: usize = 2;

impl Quantised {
    fn load(module: &image::Module, encoding: Encoding, threads: Threads, table: u32) -> Result<Self> {
        let kernel = |prefix, n, threads| -> Result<_> { Ok((n, module.of(prefix, encoding)?, threads)) };
        let [one, two, four, eight] = threads.many;
        let [few_one, few_two, few_four, few_eight] = threads.few;
        Ok(Self {
            kernels: [
                kernel("matvec1", 1, one)?,
                kernel("matvec2", 2, two)?,
                kernel("matvec4", 4, four)?,
                kernel("matvec8", 8, eight)?,
            ],
            few: [
                kernel("matvec1_few", 1, few_one)?,
                kernel("matvec2_few", 2, few_two)?,
                kernel("matvec4_few", 4, few_four)?,
                kernel("matvec8_few", 8, few_eight)?,
            ],
            any: [kernel("matvec1_any", 1, threads.any)?, kernel("matvec4_any", 4, threads.any)?],
            table,
        })
    }

    /// How `n` rows are computed. Results do not depend on it.
    fn choose(&self, matrix: &Matrix<'_>, wide: bool, n: usize, multiprocessors: usize) -> Choice<'_> {
        let (many, few, any) = WARP_ROWS;
        // A warp finds its rows by 32 bits.
        let near = |rows: usize| matrix.row_bytes().saturating_mul(rows) <= u32::MAX as usize;
        let busy = matrix.rows() >= many * BUSY * multiprocessors;
        let (kernels, of_warp) = match wide {
            true if busy && near(many) => (&self.kernels[..], many),
            true => (&self.few[..], few),
            false => (&self.any[..], any),
        };
        let last = &kernels[kernels.len() - 1];
        let (at_once, kernel, threads) = kernels.iter().find(|(most, ..)| n <= *most).unwrap_or(last);
        let warps = matrix.rows().div_ceil(of_warp);
        let blocks = match self.table {
            0 => warps.div_ceil(*threads as usize / 32),
            _ => warps.min(RESIDENT * multiprocessors.max(1)),
        };
        Choice { kernel, at_once: *at_once, threads: *threads, shared: self.table, blocks }
    }
}

/// Threads of the kernels of one encoding, the twins of those in matvec_blocks.cu.
struct Threads {
    many: [u32; 4],
    few: [u32; 4],
    any: u32,
}

const Q8_THREADS: Threads = Threads { many: [128; 4], few: [128; 4], any: 128 };
const NF4_THREADS: Threads = Threads { many: [512, 512, 384, 320], few: [512, 512, 512, 320], any: 512 };

/// A kernel, how many rows of activations it takes at once, and what it is launched with.
struct Choice<'a> {
    kernel: &'a Kernel<MatvecParams>,
    at_once: usize,
    threads: u32,
    shared: u32,
    blocks: usize,
}

pub(crate) struct Matvec {
    one: Variant,
    two: Variant,
    four: Variant,
    eight: Variant,
    one_any: Variant,
    four_any: Variant,
    q8: Quantised,
    nf4: Quantised,
}

impl Matvec {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let plain = loader.module("matvec", image::MATVEC)?;
        let blocks = loader.module("matvec_blocks", image::MATVEC_BLOCKS)?;
        let variant =
            |prefix, rows| -> Result<_> { Ok(Variant { kernels: plain.per_encoding(prefix)?, rows }) };
        Ok(Self {
            one: variant("matvec1", 2)?,
            two: variant("matvec2", 2)?,
            four: variant("matvec4", 4)?,
            eight: variant("matvec8", 4)?,
            one_any: variant("matvec1_any", 2)?,
            four_any: variant("matvec4_any", 2)?,
            q8: Quantised::load(&blocks, Encoding::Q8, Q8_THREADS, 0)?,
            nf4: Quantised::load(&blocks, Encoding::Nf4, NF4_THREADS, TABLE)?,
        })
    }

    fn choose(
        &self,
        matrix: &Matrix<'_>,
        wide: bool,
        n: usize,
        multiprocessors: usize,
    ) -> Result<Choice<'_>> {
        const THREADS: u32 = 128;
        let (variant, at_once) = match (matrix.encoding(), wide, n) {
            (Encoding::Q8, ..) => return Ok(self.q8.choose(matrix, wide, n, multiprocessors)),
            (Encoding::Nf4, ..) => return Ok(self.nf4.choose(matrix, wide, n, multiprocessors)),
            (_, true, 1) => (&self.one, 1),
            (_, true, 2) => (&self.two, 2),
            (_, true, 3..=4) => (&self.four, 4),
            (_, true, _) => (&self.eight, Kernels::MATVEC_ROWS),
            (_, false, 1) => (&self.one_any, 1),
            (_, false, _) => (&self.four_any, 4),
        };
        let kernel = variant.kernels.get(matrix.encoding())?;
        let blocks = matrix.rows().div_ceil(variant.rows);
        Ok(Choice { kernel, at_once, threads: THREADS, shared: 0, blocks })
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
        let Some(x_bytes) = matrix.encoding().operand().row_bytes(matrix.cols()) else {
            return Err(Error::Overflow { what: "a row of activations" });
        };
        let starts = matrix.address() | matrix.row_bytes() as u64 | x | x_bytes as u64;
        let wide = starts.is_multiple_of(16);
        let multiprocessors = self.device().multiprocessors() as usize;
        let Choice { kernel, at_once, threads, shared, blocks } =
            self.matvec.choose(matrix, wide, n, multiprocessors)?;
        let grid = (narrow("the number of blocks", blocks)?, 1, 1);
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
            // SAFETY: The kernel reads `rows` rows of the matrix, which it has, and `n` rows of
            // `x_bytes` at `x`, and writes `rows` elements from each of `n` rows at `y`: `linear` has checked that both
            // have them.
            unsafe { kernel.launch(stream, grid, threads, shared, &params) }?;
        }
        Ok(())
    }
}
