use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, narrow, product};
use crate::image::{self, Kernel, Loader, Params, PerEncoding, PerQuantised};
use crate::linear::{Matrix, RowsMut};
use crate::{Kernels, elements};

#[repr(C)]
#[derive(Clone, Copy)]
struct GemmParams {
    weights: u64,
    x: u64,
    y: u64,
    stride: u64,
    row_bytes: u64,
    rows: u32,
    cols: u32,
    n: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in gemm.cu.
unsafe impl Params for GemmParams {}

/// The tile of the result that a block computes: the twin of `Tile` in gemm.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    weights: usize,
    x: usize,
    threads: u32,
    /// Bytes of shared memory for one stage.
    stage: u32,
    stages: u32,
}

/// CUDA's limit.
const MAX_GRID_Y: u32 = 65_535;

const NARROW: Tile = Tile { weights: 64, x: 32, threads: 128, stage: (64 + 32) * 128, stages: 6 };
const SMALL: Tile = Tile { weights: 64, x: 64, threads: 128, stage: (64 + 64) * 128, stages: 4 };
const LARGE: Tile = Tile { weights: 128, x: 128, threads: 128, stage: (128 + 128) * 64, stages: 3 };
const HUGE: Tile = Tile { weights: 256, x: 128, threads: 256, stage: (256 + 128) * 64, stages: 4 };

impl Tile {
    const fn blocks(self, rows: usize, n: usize) -> (usize, usize) {
        (n.div_ceil(self.x), rows.div_ceil(self.weights))
    }

    /// The largest that still occupies the device. Larger ones do more sums for a byte of shared memory;
    /// smaller ones leave no multiprocessor without work. Results do not depend on it.
    fn choose(rows: usize, n: usize, multiprocessors: usize) -> Self {
        if n <= NARROW.x {
            return NARROW;
        }
        let occupies = |tile: &Self| {
            let (x, weights) = tile.blocks(rows, n);
            x.saturating_mul(weights).saturating_mul(10) >= multiprocessors * 9
        };
        let large = if n <= SMALL.x { &[][..] } else { &[HUGE, LARGE][..] };
        large.iter().copied().find(occupies).unwrap_or(SMALL)
    }

    /// What the kernel uses: without asynchronous copies only two stages.
    const fn shared(self, architecture: u32) -> u32 {
        self.stage * if architecture >= 80 { self.stages } else { 2 }
    }
}

/// A kernel of one tile shape.
struct Shape {
    plain: PerEncoding<Kernel<GemmParams>>,
    quantised: PerQuantised<Kernel<GemmParams>>,
    tile: Tile,
    shared: u32,
}

impl Shape {
    const fn kernel(&self, encoding: Encoding) -> Result<&Kernel<GemmParams>> {
        match encoding.block() {
            None => self.plain.get(encoding),
            Some(_) => self.quantised.get(encoding),
        }
    }
}

pub(crate) struct Gemm {
    shapes: [Shape; 4],
    /// For rows whose bytes are no multiple of 16.
    unaligned: Shape,
}

impl Gemm {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("gemm", image::GEMM)?;
        let shape = |name, tile: Tile| -> Result<Shape> {
            let (plain, quantised) = (module.per_encoding(name)?, module.per_quantised(name)?);
            let shape = Shape { plain, quantised, tile, shared: tile.shared(loader.architecture()) };
            for encoding in Encoding::ALL {
                shape.kernel(encoding)?.allow_shared(shape.shared)?;
            }
            Ok(shape)
        };
        Ok(Self {
            shapes: [
                shape("gemm_narrow", NARROW)?,
                shape("gemm_small", SMALL)?,
                shape("gemm_large", LARGE)?,
                shape("gemm_huge", HUGE)?,
            ],
            unaligned: shape("gemm_unaligned", SMALL)?,
        })
    }

    fn shape(&self, tile: Tile, aligned: bool) -> &Shape {
        let same = |shape: &&Shape| aligned && shape.tile == tile;
        self.shapes.iter().find(same).unwrap_or(&self.unaligned)
    }
}

impl Kernels {
    /// `y[r, first + i] = sum over c of matrix[i, c] * x[r, c]` for `n` rows of `x`, which are in the encoding of
    /// the matrix, or in bf16 where that is quantised: the product for many rows.
    ///
    /// f16 and bf16 go through the matrix units (f16 from compute capability 7.5, bf16 from 8.0) with float32
    /// sums; f32, and what has no matrix units, through float32 multiply-adds. Each element of `y` is one chain
    /// of sums over the columns in their order, whatever `n`, the tiles that `matrix` comes in, and the shape of
    /// a block: on one device the same row gives the same bits.
    ///
    /// Quantised weights are rounded to bf16 while they come to shared memory, so the result is to the bit that
    /// of [`Kernels::dequantise`] to bf16 and the product with that.
    ///
    /// Blocks, stages and swizzled shared memory are those of CUTLASS' multistage kernel for Ampere
    /// (<https://github.com/NVIDIA/cutlass>, `mma_multistage.h`).
    pub(crate) fn gemm(
        &self,
        stream: &Stream,
        matrix: &Matrix<'_>,
        x: &DeviceSlice,
        n: usize,
        y: &RowsMut<'_>,
    ) -> Result<()> {
        let (encoding, rows, cols) = (matrix.encoding(), matrix.rows(), matrix.cols());
        let operand = encoding.operand();
        check_len("x", elements("x", x, operand)?, product("x", &[n, cols])?)?;
        check_len("the result of a linear, in rows,", y.rows(), n)?;
        if rows > y.width() {
            let what = "the result of a linear, in columns,";
            return Err(Error::Length { what, expected: rows, found: y.width() });
        }
        if n == 0 || rows == 0 {
            return Ok(());
        }
        // All rows of both start at multiples of 16 if the first does and they are as long. Quantised ones do in
        // any case.
        let x_bytes = operand.row_bytes(cols).ok_or(Error::Overflow { what: "a row of x" })?;
        let starts = matrix.address() | x_bytes as u64 | x.address();
        let multiprocessors = self.device().multiprocessors() as usize;
        let shape = self.gemm.shape(Tile::choose(rows, n, multiprocessors), starts.is_multiple_of(16));
        let (blocks_x, blocks_weights) = shape.tile.blocks(rows, n);
        let grid = (narrow("the rows of x", blocks_x)?, narrow("the rows of a matrix", blocks_weights)?, 1);
        if grid.1 > MAX_GRID_Y {
            return Err(Error::Shape { what: "the rows of a matrix", found: rows, takes: "at most 4194240" });
        }
        let params = GemmParams {
            weights: matrix.address(),
            x: x.address(),
            y: y.address(0),
            stride: y.stride() as u64,
            row_bytes: matrix.row_bytes() as u64,
            rows: narrow("the rows of a matrix", rows)?,
            cols: narrow("the columns of a matrix", cols)?,
            n: narrow("the rows of x", n)?,
            reserved: 0,
        };
        // SAFETY: The kernel reads `rows` rows of `cols` weights, which the matrix has (`Matrix`), and `n * cols`
        // elements of `x`, and writes `rows` columns from the first on of `n` rows of `y`, as was checked.
        unsafe { shape.kernel(encoding)?.launch(stream, grid, shape.tile.threads, shape.shared, &params) }
    }
}
