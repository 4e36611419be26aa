//! Activations times stored weights.
//!
//! The order of the sum for one output element is the same whatever is computed beside it. The columns are
//! cut into blocks of [`BLOCK`]; within a block lane `l` of one vector sums the columns `l`, `l + LANES`,
//! ... in order; [`Simd::sums`] folds the lanes; the sums of the blocks are added up in order. Everything
//! else (how many weight rows and activation rows share a tile, whether weights are decoded on the fly or
//! into a panel first, which thread does it) only decides what is computed when.
//!
//! Few rows of activations are bound by the memory that weights come from: [`few_rows`] loads them straight
//! into the registers, and lanes may be in whatever order an encoding is decoded to fastest
//! ([`Stored::shuffle`]): activations are put into that order once for all weight rows, and sums back into that
//! of the columns before they are folded. Many rows are bound by the multipliers: [`many_rows`] decodes a panel
//! of weights once, small enough for the second-level cache, and takes all rows of activations past it.

use std::array;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use narrows_shard::Encoding;

use crate::error::{check_len, check_rows, product};
use crate::simd::{Kernel, Simd};
use crate::stored::{Encoded, EncodedKernel, F32, Stored, load_up_to, store_up_to};
use crate::{Cpu, Error, Matrix, RowsMut};

/// Columns summed up by one vector before its lanes are folded. Six rows of activations of this length and
/// four of weights fit into a first-level cache of 48 KiB; folding costs a few per cent.
const BLOCK: usize = 1024;

/// How far ahead of a row of activations alone weights are called for, in bytes of a row, into the second-level
/// cache. The processor's own prefetchers find a new row late, and where to decode a line takes long, what it can
/// look ahead is short: on an Emerald Rapids a thread reads q8 a quarter and nf4 half as fast again with this, and
/// bf16 twice as fast at times. The first-level cache has too few lines on their way for a memory that answers
/// after a hundred nanoseconds.
const AHEAD: usize = 4096;

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
        if self.x.len() / self.w.cols() <= E::TILES * S::BATCH {
            few_rows::<S, E>(simd, self.w, self.x, self.y);
        } else {
            many_rows::<S, E>(simd, self.w, self.x, self.y);
        }
    }
}

/// Loads weights from where they are stored straight into the registers.
#[inline(always)]
pub(crate) fn few_rows<S: Simd, E: Stored>(simd: S, w: Matrix<'_>, x: &[f32], y: RowsMut<'_>) {
    let n = x.len() / w.cols();
    match batch::<S>(n) {
        // To decode a vector of a block takes longer than to add it, and more places to keep for each row.
        1 if E::BLOCK > 1 => simd.apart(Few::<E, TILE, 1>::new(w, x, y)),
        // Eight sums at a time, since an addition takes about four cycles and two can start in each.
        1 => simd.apart(Few::<E, { 2 * TILE }, 1>::new(w, x, y)),
        2 => simd.apart(Few::<E, TILE, 2>::new(w, x, y)),
        4 => simd.apart(Few::<E, TILE, 4>::new(w, x, y)),
        _ => simd.apart(Few::<E, TILE, 6>::new(w, x, y)),
    }
}

/// [`few_rows`] in tiles of `R` rows of weights and `N` of activations.
struct Few<'a, E, const R: usize, const N: usize> {
    w: Matrix<'a>,
    x: &'a [f32],
    y: RowsMut<'a>,
    stored: PhantomData<E>,
}

impl<'a, E, const R: usize, const N: usize> Few<'a, E, R, N> {
    #[inline(always)]
    fn new(w: Matrix<'a>, x: &'a [f32], y: RowsMut<'a>) -> Self {
        Self { w, x, y, stored: PhantomData }
    }
}

impl<E: Stored, const R: usize, const N: usize> Kernel for Few<'_, E, R, N> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        stream::<S, E, R, N>(simd, self.w, self.x, &mut self.y);
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
    let (rows, cols) = (x.len() / w.cols(), w.cols());
    if E::ORDERED {
        return stream_columns::<S, E, R, N>(simd, w, 0..cols, Inputs { x, rows, stride: cols }, y);
    }
    const { assert!(E::ORDERED || E::TILES * S::BATCH * BLOCK <= SHUFFLED) };
    let mut shuffled = Shuffled([MaybeUninit::uninit(); SHUFFLED]);
    let most = SHUFFLED / rows / BLOCK * BLOCK;
    let mut start = 0;
    while start < cols {
        let columns = start..cols.min(start + most);
        let inputs = shuffled.fill::<S, E>(simd, x, cols, columns.clone());
        stream_columns::<S, E, R, N>(simd, w, columns, inputs, y);
        start += most;
    }
}

/// [`stream`] over the columns `columns` of the weights, the first of which is a multiple of [`BLOCK`].
#[inline(always)]
fn stream_columns<S: Simd, E: Stored, const R: usize, const N: usize>(
    simd: S,
    w: Matrix<'_>,
    columns: Range<usize>,
    inputs: Inputs<'_>,
    y: &mut RowsMut<'_>,
) {
    let mut first = 0;
    while first < w.rows() {
        let mut start = columns.start;
        while start < columns.end {
            let len = BLOCK.min(columns.end - start);
            let x = Block { inputs, at: start - columns.start, len, first: start == 0 };
            let mut i = 0;
            while i < inputs.rows {
                tile::<S, E, R, N>(simd, w, first, columns.clone(), start, x, i, y, first);
                i += N;
            }
            start += BLOCK;
        }
        first += R;
    }
}

/// Room for activations in the order that an encoding wants: a row of any known model, or twelve rows of two blocks.
/// What is longer is streamed in pieces.
const SHUFFLED: usize = 32 * BLOCK;

/// Activations in the order of [`Stored::load`], aligned so that no load straddles two cache lines.
#[repr(align(64))]
struct Shuffled([MaybeUninit<f32>; SHUFFLED]);

impl Shuffled {
    /// The `columns` of the rows `x`, each of `cols`, padded with zeros to whole vectors.
    #[inline(always)]
    fn fill<S: Simd, E: Stored>(
        &mut self,
        simd: S,
        x: &[f32],
        cols: usize,
        columns: Range<usize>,
    ) -> Inputs<'_> {
        let (rows, stride) = (x.len() / cols, columns.len().next_multiple_of(S::LANES));
        assert!(rows * stride <= SHUFFLED);
        for i in 0..rows {
            let row = &x[i * cols..][columns.clone()];
            let mut col = 0;
            while col < row.len() {
                let count = S::LANES.min(row.len() - col);
                let vector = load_up_to::<S, F32>(simd, bytemuck::cast_slice(row), col, count);
                // SAFETY: `col + LANES` is at most `stride`, and by the assertion there is room for all rows.
                unsafe {
                    let at = self.0.as_mut_ptr().add(i * stride + col);
                    simd.store(at.cast(), E::shuffle(simd, vector));
                }
                col += S::LANES;
            }
        }
        // SAFETY: each of the `rows` rows was written from its first to its last of `stride` floats just above.
        let x = unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), rows * stride) };
        Inputs { x, rows, stride }
    }
}

/// Decodes a panel of weights at a time and multiplies it with all rows of activations.
#[inline(always)]
fn many_rows<S: Simd, E: Stored>(simd: S, w: Matrix<'_>, x: &[f32], y: RowsMut<'_>) {
    match batch::<S>(x.len() / w.cols()) {
        2 => simd.apart(Many::<E, 2>::new(w, x, y)),
        4 => simd.apart(Many::<E, 4>::new(w, x, y)),
        _ => simd.apart(Many::<E, 6>::new(w, x, y)),
    }
}

/// [`many_rows`] in tiles of `N` rows of activations.
struct Many<'a, E, const N: usize> {
    w: Matrix<'a>,
    x: &'a [f32],
    y: RowsMut<'a>,
    stored: PhantomData<E>,
}

impl<'a, E, const N: usize> Many<'a, E, N> {
    #[inline(always)]
    fn new(w: Matrix<'a>, x: &'a [f32], y: RowsMut<'a>) -> Self {
        Self { w, x, y, stored: PhantomData }
    }
}

impl<E: Stored, const N: usize> Kernel for Many<'_, E, N> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        panels::<S, E, N>(simd, self.w, self.x, &mut self.y);
    }
}

/// [`many_rows`], panel by panel.
#[inline(always)]
fn panels<S: Simd, E: Stored, const N: usize>(simd: S, w: Matrix<'_>, x: &[f32], y: &mut RowsMut<'_>) {
    let mut panel = Panel([0.0; PANEL * BLOCK]);
    let mut start = 0;
    let inputs = Inputs { x, rows: x.len() / w.cols(), stride: w.cols() };
    while start < w.cols() {
        let x = Block { inputs, at: start, len: BLOCK.min(w.cols() - start), first: start == 0 };
        let mut first = 0;
        while first < w.rows() {
            let rows = PANEL.min(w.rows() - first);
            for r in 0..rows {
                let decoded = &mut panel.0[r * BLOCK..][..x.len];
                decode::<S, E>(simd, w.row(first + r), start, decoded);
                // The next panel comes from memory while this one is multiplied.
                if first + PANEL + r < w.rows() {
                    let next = w.row(first + PANEL + r).as_ptr();
                    for at in (E::bytes(start)..E::bytes(start + x.len)).step_by(64) {
                        simd.prefetch(next.wrapping_add(at));
                    }
                }
            }
            let bytes = bytemuck::cast_slice(&panel.0[..rows * BLOCK]);
            if let Ok(panel) = Matrix::new(Encoding::F32, rows, BLOCK, bytes) {
                sweep::<S, N>(simd, panel, x, y, first);
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
    while i < x.inputs.rows {
        let mut r = 0;
        while r < panel.rows() {
            tile::<S, F32, TILE, N>(simd, panel, r, 0..x.len, 0, x, i, y, first + r);
            r += TILE;
        }
        i += N;
    }
}

/// Rows of activations, `stride` apart.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    x: &'a [f32],
    rows: usize,
    stride: usize,
}

/// The activations of one block of columns.
#[derive(Clone, Copy)]
struct Block<'a> {
    inputs: Inputs<'a>,
    /// Where the block begins in a row of activations.
    at: usize,
    /// Columns of the block.
    len: usize,
    /// Whether the block begins a row of weights.
    first: bool,
}

impl<'a> Block<'a> {
    /// The activations from the block on to the end of the row `i`.
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.inputs.x[i * self.inputs.stride..][self.at..self.inputs.stride]
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
    columns: Range<usize>,
    from: usize,
    x: Block<'_>,
    i: usize,
    y: &mut RowsMut<'_>,
    first: usize,
) {
    let (w_count, x_count) = (R.min(w.rows() - r), N.min(x.inputs.rows - i));
    let weights = array::from_fn(|k| w.row(r + k.min(w_count - 1)));
    let inputs = array::from_fn(|k| x.row(i + k.min(x_count - 1)));
    let sums: [[f32; R]; N] = dots::<S, E, R, N>(simd, weights, columns, from, inputs, x.len);
    for (k, sums) in sums.iter().enumerate().take(x_count) {
        let y = y.row(i + k, first..first + w_count);
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = if x.first { *sum } else { *y + sum };
        }
    }
}

/// The products of the first `cols` of each of `x`, in the order of [`Stored::load`], with as many weights of each
/// of `w` from column `from` on. `columns` are those of `w` that are read before the tile below it.
#[inline(always)]
fn dots<S: Simd, E: Stored, const R: usize, const N: usize>(
    simd: S,
    w: [&[u8]; R],
    columns: Range<usize>,
    from: usize,
    x: [&[f32]; N],
    cols: usize,
) -> [[f32; R]; N] {
    // Columns for which `R` rows share what a block shares; a vector where nothing is shared.
    let block = const { if E::BLOCK > S::LANES { E::BLOCK } else { S::LANES } };
    let span = const { if E::SPAN > S::LANES { E::SPAN } else { S::LANES } };
    // What makes the loads below sound.
    assert!(x.iter().all(|x| x.len() >= cols) && w.iter().all(|w| w.len() >= E::bytes(from + cols)));
    let mut sums = [[simd.splat(0.0); R]; N];
    let (mut weights, mut inputs) = ([simd.splat(0.0); R], [simd.splat(0.0); N]);
    // Beyond the end of the columns come their beginnings in the next tile.
    let (start, end) = (E::bytes(columns.start), E::bytes(columns.end));
    let (width, jump) = (end - start, R * w[0].len() - (end - start));
    let jumps = (E::bytes(from) - start + AHEAD) / width;
    let (mut ahead, mut next_jump) = (AHEAD + jumps * jump, start + (jumps + 1) * width);
    let mut col = 0;
    while col + block <= cols {
        let blocks = (span / block).min((cols - col) / block);
        // SAFETY: by the assertion `w[0]` has the bytes up to column `from + cols`, which is beyond this one.
        let mut cursors = [unsafe { E::cursor(simd, w[0].as_ptr(), from + col) }; R];
        if E::bytes(from + col) + AHEAD >= next_jump {
            (ahead, next_jump) = (ahead + jump, next_jump + width);
        }
        for r in 0..R {
            // SAFETY: as above, for `w[r]`.
            cursors[r] = unsafe { E::cursor(simd, w[r].as_ptr(), from + col) };
        }
        for i in 0..blocks {
            let mut shared = [E::shared(simd, &cursors[0], i); R];
            for r in 0..R {
                if N == 1 {
                    // One at a time: many at once would keep the loads of this block waiting.
                    simd.prefetch(E::at(&cursors[r], i).wrapping_add(ahead));
                }
                shared[r] = E::shared(simd, &cursors[r], i);
            }
            let mut within = 0;
            while within < block {
                for r in 0..R {
                    // SAFETY: by the assertion `w[r]` has the bytes up to column `from + cols`, and
                    // these columns end at or before it.
                    weights[r] = unsafe { E::load(simd, &cursors[r], i, within, shared[r]) };
                }
                for n in 0..N {
                    // SAFETY: by the assertion `x[n]` has `cols` floats, and these end at or before the last.
                    inputs[n] = unsafe { simd.load_f32(x[n].as_ptr().add(col + i * block + within).cast()) };
                }
                add_products(simd, &mut sums, &weights, &inputs);
                within += S::LANES;
            }
        }
        col += blocks * block;
    }
    while col < cols {
        let count = S::LANES.min(cols - col);
        for r in 0..R {
            weights[r] = E::shuffle(simd, load_up_to::<S, E>(simd, w[r], from + col, count));
        }
        for i in 0..N {
            // Shuffled activations are padded with zeros to whole vectors.
            let count = if E::ORDERED { count } else { S::LANES };
            inputs[i] = load_up_to::<S, F32>(simd, bytemuck::cast_slice(x[i]), col, count);
        }
        add_products(simd, &mut sums, &weights, &inputs);
        col += count;
    }
    // A copy, since what is indexed in a loop that the compiler does not unroll lies in memory: the sums
    // themselves are to stay in registers.
    let sums = sums;
    let mut folded = [[0.0; R]; N];
    for i in 0..N {
        for r in (0..R).step_by(TILE) {
            let four = [sums[i][r], sums[i][r + 1], sums[i][r + 2], sums[i][r + 3]];
            let [a, b, c, d] = four;
            let four =
                [E::unshuffle(simd, a), E::unshuffle(simd, b), E::unshuffle(simd, c), E::unshuffle(simd, d)];
            folded[i][r..r + TILE].copy_from_slice(&simd.sums(four));
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

/// The weights of a stored row from column `from` on, a multiple of [`Stored::SPAN`].
#[inline(always)]
pub(crate) fn decode<S: Simd, E: Stored>(simd: S, row: &[u8], from: usize, out: &mut [f32]) {
    let block = const { if E::BLOCK > S::LANES { E::BLOCK } else { S::LANES } };
    let span = const { if E::SPAN > S::LANES { E::SPAN } else { S::LANES } };
    // What makes the loads and stores below sound.
    assert!(row.len() >= E::bytes(from + out.len()));
    let mut col = 0;
    while col + block <= out.len() {
        let blocks = (span / block).min((out.len() - col) / block);
        // SAFETY: by the assertion `row` has the bytes up to column `from + out.len()`, beyond this one.
        let cursor = unsafe { E::cursor(simd, row.as_ptr(), from + col) };
        for i in 0..blocks {
            let shared = E::shared(simd, &cursor, i);
            let mut within = 0;
            while within < block {
                let offset = i * block + within;
                // SAFETY: `col + offset + LANES` is no more than `out.len()`, so that, by the assertion, `row`
                // has the bytes and `out` the room.
                unsafe {
                    let weights = E::unshuffle(simd, E::load(simd, &cursor, i, within, shared));
                    simd.store(out.as_mut_ptr().add(col + offset).cast(), weights);
                }
                within += S::LANES;
            }
        }
        col += blocks * block;
    }
    for out in out[col..].chunks_mut(S::LANES) {
        store_up_to(simd, out, load_up_to::<S, E>(simd, row, from + col, out.len()));
        col += S::LANES;
    }
}
