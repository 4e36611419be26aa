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
#[derive(Clone, Copy)]
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

const fn tile(weights: usize, x: usize, threads: u32, chunks: u32, stages: u32) -> Tile {
    Tile { weights, x, threads, stage: (weights + x) as u32 * chunks * 16, stages }
}

/// The shapes of an architecture.
struct Tiles {
    narrow: Tile,
    thin: Tile,
    /// As `thin`, of quantised weights.
    thin_decoded: Tile,
    small: Tile,
    large: Tile,
    huge: Tile,
}

/// With asynchronous copies, and without: then there are two stages, and 64 KiB for them and all else.
const ASYNCHRONOUS: Tiles = Tiles {
    narrow: tile(64, 32, 256, 16, 4),
    thin: tile(32, 32, 256, 16, 6),
    thin_decoded: tile(32, 32, 256, 32, 3),
    small: tile(64, 64, 256, 16, 3),
    large: tile(128, 128, 128, 4, 3),
    huge: tile(256, 128, 256, 4, 4),
};
const IN_TURN: Tiles = Tiles {
    narrow: tile(64, 32, 128, 8, 2),
    thin: tile(64, 32, 128, 8, 2),
    thin_decoded: tile(64, 32, 128, 8, 2),
    small: tile(64, 64, 128, 8, 2),
    large: tile(128, 128, 128, 4, 2),
    huge: tile(256, 128, 256, 4, 2),
};

impl Tile {
    const fn blocks(self, rows: usize, n: usize) -> (usize, usize) {
        (n.div_ceil(self.x), rows.div_ceil(self.weights))
    }

    /// Of shared memory.
    const fn bytes(self) -> u32 {
        self.stage * self.stages
    }

    /// Whether so many blocks for each ten multiprocessors come together.
    const fn occupies(self, rows: usize, n: usize, multiprocessors: usize, of_ten: usize) -> bool {
        let (x, weights) = self.blocks(rows, n);
        x.saturating_mul(weights).saturating_mul(10) >= multiprocessors.saturating_mul(of_ten)
    }
}

/// A kernel of one tile shape, and of one for quantised weights.
struct Shape {
    plain: PerEncoding<Kernel<GemmParams>>,
    quantised: PerQuantised<Kernel<GemmParams>>,
    tile: Tile,
    decoded: Tile,
}

impl Shape {
    fn of(&self, encoding: Encoding) -> Result<(&Kernel<GemmParams>, Tile)> {
        Ok(match encoding.block() {
            None => (self.plain.get(encoding)?, self.tile),
            Some(_) => (self.quantised.get(encoding)?, self.decoded),
        })
    }
}

pub(crate) struct Gemm {
    narrow: Shape,
    thin: Shape,
    small: Shape,
    large: Shape,
    huge: Shape,
    /// For rows whose bytes are no multiple of 16.
    unaligned: Shape,
}

impl Gemm {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let module = loader.module("gemm", image::GEMM)?;
        let tiles = if loader.architecture() >= 80 { ASYNCHRONOUS } else { IN_TURN };
        let shape = |name, tile: Tile, decoded: Tile| -> Result<Shape> {
            let (plain, quantised) = (module.per_encoding(name)?, module.per_quantised(name)?);
            let shape = Shape { plain, quantised, tile, decoded };
            for encoding in Encoding::ALL {
                let (kernel, tile) = shape.of(encoding)?;
                kernel.allow_shared(tile.bytes())?;
            }
            Ok(shape)
        };
        Ok(Self {
            narrow: shape("gemm_narrow", tiles.narrow, tiles.narrow)?,
            thin: shape("gemm_thin", tiles.thin, tiles.thin_decoded)?,
            small: shape("gemm_small", tiles.small, tiles.small)?,
            large: shape("gemm_large", tiles.large, tiles.large)?,
            huge: shape("gemm_huge", tiles.huge, tiles.huge)?,
            unaligned: shape("gemm_unaligned", tiles.small, tiles.small)?,
        })
    }

    /// The largest shape that still occupies the device. Larger ones do more sums for a byte of shared memory;
    /// smaller ones leave no multiprocessor without work. Results do not depend on it.
    fn choose(&self, encoding: Encoding, rows: usize, n: usize, multiprocessors: usize) -> &Shape {
        let occupies = |shape: &Shape, of_ten| shape.tile.occupies(rows, n, multiprocessors, of_ten);
        // Decoding wants warps: two blocks for each multiprocessor.
        let of_ten = if encoding.block().is_some() { 18 } else { 5 };
        if n <= self.narrow.tile.x {
            return if occupies(&self.narrow, of_ten) { &self.narrow } else { &self.thin };
        }
        if n > self.small.tile.x {
            for shape in [&self.huge, &self.large] {
                if occupies(shape, 9) {
                    return shape;
                }
            }
        }
        if occupies(&self.small, 5) { &self.small } else { &self.thin }
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
        let shape = if starts.is_multiple_of(16) {
            self.gemm.choose(encoding, rows, n, multiprocessors)
        } else {
            &self.gemm.unaligned
        };
        let (kernel, tile) = shape.of(encoding)?;
        let (blocks_x, blocks_weights) = tile.blocks(rows, n);
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
        unsafe { kernel.launch(stream, grid, tile.threads, tile.bytes(), &params) }
    }
}
