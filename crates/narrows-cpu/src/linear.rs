//! Activations times stored weights.
//!
//! The order of the sum for one output element is the same whatever is computed beside it. The columns are
//! cut into blocks of [`BLOCK`]; within a block lane `l` of one vector sums the columns `l`, `l + LANES`,
//! ... in order; [`Simd::sums`] folds the lanes; the sums of the blocks are added up in order. Everything
//! else (how many weight rows and activation rows share a tile, whether weights are decoded on the fly or
//! into a panel first, which thread does it) only decides what is computed when.
//!
//! Few rows of activations are bound by the memory that weights come from: [`few_rows`] loads them straight
//! into the registers. Many rows are bound by the multipliers: [`many_rows`] decodes a panel of weights
//! once, small enough for the second-level cache, and takes all rows of activations past it.

use std::array;

use narrows_shard::Encoding;

use crate::error::{check_len, check_rows, product};
use crate::simd::Simd;
use crate::stored::{Encoded, EncodedKernel, F32, Stored, load_up_to, store_up_to};
use crate::{Cpu, Error, Matrix, RowsMut};

/// Columns summed up by one vector before its lanes are folded. Six rows of activations of this length and
/// four of weights fit into a first-level cache of 48 KiB; folding costs a few per cent.
const BLOCK: usize = 1024;

/// How far ahead of a row of activations alone weights are called for, in bytes. The processor's own
/// prefetchers leave some of the memory's bandwidth unused where each line holds many weights: with this a
/// matvec in bf16 gains about an eighth on a Sapphire Rapids.
const AHEAD: usize = 1024;

/// Weight rows of a tile: what [`Simd::sums`] folds at a time.
const TILE: usize = 4;

/// Weight rows of a panel: 128 KiB of decoded weights, so that activations, which come from the second- or
/// third-level cache, are used this many times for each time they are fetched.
const PANEL: usize = 32;

impl Cpu {
    /// `y[i, r] = sum over c of w[r, c] * x[i, c]` for `x` of `[n, w.cols()]` and `y` of `[n, w.rows()]`.
    pub fn linear(&self, w: Matrix<'_>, x: &[f32], y: RowsMut<'_>) -> Result<(), Error> {
        let n = check_rows("the input of a linear", x.len(), w.cols())?;
        check_len("the destination of a linear, in rows,", y.rows(), n)?;
        if w.rows() > y.width() {
            let what = "the result of a linear, in columns,";
            return Err(Error::Beyond { what, end: w.rows(), limit: y.width() });
        }
        if n == 0 || w.rows() == 0 {
            return Ok(());
        }
        // Several tasks per thread even out what other programs take from each; whole panels, so that the
        // pieces of a panel are not decoded by several.
        let rows = w.rows().div_ceil(4 * self.threads()).next_multiple_of(PANEL);
        let work = product("a linear", &[w.rows(), w.cols(), n])?;
        self.for_each(w.rows().div_ceil(rows), work, |task| {
            let range = task * rows..((task + 1) * rows).min(w.rows());
            // SAFETY: the tile writes the columns `range` of the destination, and the ranges of different
            // tasks do not overlap.
            let y = unsafe { y.alias() }.advance(range.start);
            if let Ok(tile) = w.slice(range) {
                self.run(Encoded(w.encoding(), Linear { w: tile, x, y }));
            }
        });
        Ok(())
    }
}

/// One task of [`Cpu::linear`], of checked shapes.
struct Linear<'a> {
    w: Matrix<'a>,
    x: &'a [f32],
    y: RowsMut<'a>,
}

impl EncodedKernel for Linear<'_> {
    #[inline(always)]
    fn run<S: Simd, E: Stored>(self, simd: S) {
        // Up to two tiles of activations, to decode the weights for each is cheaper than by way of a panel.
        if self.x.len() / self.w.cols() <= 2 * S::BATCH {
            few_rows::<S, E>(simd, self.w, self.x, self.y);
        } else {
            many_rows::<S, E>(simd, self.w, self.x, self.y);
        }
    }
}

/// Loads weights from where they are stored straight into the registers.
#[inline(always)]
pub(crate) fn few_rows<S: Simd, E: Stored>(simd: S, w: Matrix<'_>, x: &[f32], mut y: RowsMut<'_>) {
    let n = x.len() / w.cols();
    match batch::<S>(n) {
        // To decode a vector of a block takes longer than to add it, and more places to keep for each row.
        1 if E::SPAN > 1 => stream::<S, E, TILE, 1>(simd, w, x, &mut y),
        // Eight sums at a time, since an addition takes about four cycles and two can start in each.
        1 => stream::<S, E, { 2 * TILE }, 1>(simd, w, x, &mut y),
        2 => stream::<S, E, TILE, 2>(simd, w, x, &mut y),
        4 => stream::<S, E, TILE, 4>(simd, w, x, &mut y),
        _ => stream::<S, E, TILE, 6>(simd, w, x, &mut y),
    }
}

/// How many rows of activations to put into a tile when there are `n`: of the sizes that fit into the
/// registers the one with the least work, where a tile has its activations to do and its weights to load.
#[inline(always)]
fn batch<S: Simd>(n: usize) -> usize {
    match n {
        0 | 1 => 1,
        2 => 2,
        _ if S::BATCH < 4 => 2,
        _ if n.div_ceil(4) * (4 + 2) < n.div_ceil(6) * (6 + 2) => 4,
        _ => 6,
    }
}

/// Weight rows outside, activations inside: a weight comes from memory once, then from the nearest cache.
#[inline(always)]
fn stream<S: Simd, E: Stored, const R: usize, const N: usize>(
    simd: S,
    w: Matrix<'_>,
    x: &[f32],
    y: &mut RowsMut<'_>,
) {
    let mut first = 0;
    while first < w.rows() {
        let mut start = 0;
        while start < w.cols() {
            let x = Block::new(x, w.cols(), start);
            let mut i = 0;
            while i < x.rows {
                tile::<S, E, R, N>(simd, w, first, start, x, i, y, first);
                i += N;
            }
            start += BLOCK;
        }
        first += R;
    }
}

/// Decodes a panel of weights at a time and multiplies it with all rows of activations.
#[inline(always)]
fn many_rows<S: Simd, E: Stored>(simd: S, w: Matrix<'_>, x: &[f32], mut y: RowsMut<'_>) {
    let batch = batch::<S>(x.len() / w.cols());
    let mut panel = Panel([0.0; PANEL * BLOCK]);
    let mut start = 0;
    while start < w.cols() {
        let x = Block::new(x, w.cols(), start);
        let mut first = 0;
        while first < w.rows() {
            let rows = PANEL.min(w.rows() - first);
            for r in 0..rows {
                let decoded = &mut panel.0[r * BLOCK..][..x.len];
                decode::<S, E>(simd, w.row(first + r), start, decoded);
            }
            let bytes = bytemuck::cast_slice(&panel.0[..rows * BLOCK]);
            if let Ok(panel) = Matrix::new(Encoding::F32, rows, BLOCK, bytes) {
                match batch {
                    2 => sweep::<S, 2>(simd, panel, x, &mut y, first),
                    4 => sweep::<S, 4>(simd, panel, x, &mut y, first),
                    _ => sweep::<S, 6>(simd, panel, x, &mut y, first),
                }
            }
            first += PANEL;
        }
        start += BLOCK;
    }
}

/// Decoded weights `[PANEL, BLOCK]`, aligned so that no load straddles two cache lines.
#[repr(align(64))]
struct Panel([f32; PANEL * BLOCK]);

/// Activations outside, weight rows inside: `N` rows of activations stay in the nearest cache while the
/// panel passes.
#[inline(always)]
fn sweep<S: Simd, const N: usize>(
    simd: S,
    panel: Matrix<'_>,
    x: Block<'_>,
    y: &mut RowsMut<'_>,
    first: usize,
) {
    let mut i = 0;
    while i < x.rows {
        let mut r = 0;
        while r < panel.rows() {
            tile::<S, F32, TILE, N>(simd, panel, r, 0, x, i, y, first + r);
            r += TILE;
        }
        i += N;
    }
}

/// The activations of one block of columns.
#[derive(Clone, Copy)]
struct Block<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    start: usize,
    len: usize,
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new(x: &'a [f32], cols: usize, start: usize) -> Self {
        Self { x, rows: x.len() / cols, cols, start, len: BLOCK.min(cols - start) }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.x[i * self.cols + self.start..][..self.len]
    }
}

/// Adds the products of weight rows from `r` on and activation rows from `i` on, over one block of columns
/// (which starts at the column `from` of the weights), to the columns of `y` from `first` on.
///
/// Where fewer than `R` or `N` rows are left the last one is computed several times over and written once:
/// one body serves every remainder.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two operands and a result, each with its position")]
fn tile<S: Simd, E: Stored, const R: usize, const N: usize>(
    simd: S,
    w: Matrix<'_>,
    r: usize,
    from: usize,
    x: Block<'_>,
    i: usize,
    y: &mut RowsMut<'_>,
    first: usize,
) {
    let (w_count, x_count) = (R.min(w.rows() - r), N.min(x.rows - i));
    let weights = array::from_fn(|k| w.row(r + k.min(w_count - 1)));
    let inputs = array::from_fn(|k| x.row(i + k.min(x_count - 1)));
    let sums: [[f32; R]; N] = dots::<S, E, R, N>(simd, weights, from, inputs);
    for (k, sums) in sums.iter().enumerate().take(x_count) {
        let y = y.row(i + k, first..first + w_count);
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = if x.start == 0 { *sum } else { *y + sum };
        }
    }
}

/// The products of each of `x` with the weights of each of `w` from column `from` on.
#[inline(always)]
fn dots<S: Simd, E: Stored, const R: usize, const N: usize>(
    simd: S,
    w: [&[u8]; R],
    from: usize,
    x: [&[f32]; N],
) -> [[f32; R]; N] {
    let cols = x[0].len();
    // What makes the loads below sound.
    assert!(x.iter().all(|x| x.len() == cols) && w.iter().all(|w| w.len() >= E::bytes(from + cols)));
    let mut sums = [[simd.splat(0.0); R]; N];
    let (mut weights, mut inputs) = ([simd.splat(0.0); R], [simd.splat(0.0); N]);
    let mut col = 0;
    while col < cols / S::LANES * S::LANES {
        // As many vectors as share a cursor, a number that the compiler knows, or the last of a row one by one.
        let whole = const { if E::SPAN > S::LANES { E::SPAN } else { S::LANES } };
        let span = if col + whole <= cols { whole } else { S::LANES };
        // SAFETY: by the assertion `w[0]` has the bytes up to column `from + cols`, which is beyond this one.
        let mut cursors = [unsafe { E::cursor(simd, w[0].as_ptr(), from + col) }; R];
        for r in 0..R {
            if N == 1 {
                simd.prefetch(w[r].as_ptr().wrapping_add(E::bytes(from + col) + AHEAD));
            }
            // SAFETY: as above, for `w[r]`.
            cursors[r] = unsafe { E::cursor(simd, w[r].as_ptr(), from + col) };
        }
        let mut offset = 0;
        while offset < span {
            for r in 0..R {
                // SAFETY: by the assertion `w[r]` has the bytes up to column `from + cols`, and
                // `col + offset + LANES` is no more than `cols`.
                weights[r] = unsafe { E::load(simd, cursors[r], offset) };
            }
            for i in 0..N {
                // SAFETY: by the assertion `x[i]` has `cols` floats, and `col + offset + LANES` is no more.
                inputs[i] = unsafe { simd.load_f32(x[i].as_ptr().add(col + offset).cast()) };
            }
            add_products(simd, &mut sums, &weights, &inputs);
            offset += S::LANES;
        }
        col += span;
    }
    if col < cols {
        for r in 0..R {
            weights[r] = load_up_to::<S, E>(simd, w[r], from + col, cols - col);
        }
        for i in 0..N {
            inputs[i] = load_up_to::<S, F32>(simd, bytemuck::cast_slice(x[i]), col, cols - col);
        }
        add_products(simd, &mut sums, &weights, &inputs);
    }
    // A copy, since what is indexed in a loop that the compiler does not unroll lies in memory: the sums
    // themselves are to stay in registers.
    let sums = sums;
    let mut folded = [[0.0; R]; N];
    for i in 0..N {
        for r in (0..R).step_by(TILE) {
            let four = simd.sums([sums[i][r], sums[i][r + 1], sums[i][r + 2], sums[i][r + 3]]);
            folded[i][r..r + TILE].copy_from_slice(&four);
        }
    }
    folded
}

/// One step of [`dots`] for all sums of a tile.
#[inline(always)]
fn add_products<S: Simd, const R: usize, const N: usize>(
    simd: S,
    sums: &mut [[S::V; R]; N],
    weights: &[S::V; R],
    inputs: &[S::V; N],
) {
    for i in 0..N {
        for r in 0..R {
            sums[i][r] = simd.mul_add(weights[r], inputs[i], sums[i][r]);
        }
    }
}

/// The weights of a stored row from column `from` on.
#[inline(always)]
pub(crate) fn decode<S: Simd, E: Stored>(simd: S, row: &[u8], from: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(S::LANES).enumerate() {
        let weights = load_up_to::<S, E>(simd, row, from + i * S::LANES, out.len());
        store_up_to(simd, out, weights);
    }
}
