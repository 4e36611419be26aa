//! Attention over a KV cache.
//!
//! The positions that a row attends to are cut into blocks at absolute multiples of [`SCORES`], and a
//! softmax runs over them block by block: the order of the sums depends on that row's position and window
//! alone, not on the chunk that the row came in. All query heads that share a key-value head are computed
//! together, so the cache is read once for them.

use std::ops::Range;

use narrows_shard::Encoding;

use crate::error::{check_len, product};
use crate::linear::few_rows;
use crate::simd::Simd;
use crate::softmax::{SCORES, Softmax, tanh};
use crate::stored::{Encoded, EncodedKernel, F32, Stored, load_up_to, store_up_to};
use crate::{Cpu, Error, Matrix, RowsMut};

/// The keys and values of one sequence in one layer.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// How keys and values are stored.
    pub encoding: Encoding,
    /// `[kv_heads, capacity, head_dim]`.
    pub keys: &'a [u8],
    /// `[kv_heads, capacity, head_dim]`.
    pub values: &'a [u8],
    /// Positions that there is room for; only those that are attended to need be filled.
    pub capacity: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// What one row of queries attends to.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// The cache of the row's sequence.
    pub kv: KvView<'a>,
    /// The row's own position, the last that it sees.
    pub position: usize,
    /// How many positions it sees, itself included; all up to its own where there is no window.
    pub window: Option<usize>,
}

/// What becomes of the products of queries and keys before the softmax.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Their factor, which is finite.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, behind the factor.
    pub softcap: Option<f32>,
    /// By head: what a score loses for each position between query and key (ALiBi, Press et al. 2022, arXiv:2108.12409).
    pub slopes: Option<&'a [f32]>,
}

impl From<f32> for Scores<'_> {
    fn from(scale: f32) -> Self {
        Self { scale, softcap: None, slopes: None }
    }
}

/// Query heads that are computed at a time, and rows that share a block of the cache while it is in a
/// near cache. Together they bound what lies on the stack.
const HEADS: usize = 8;
const ROWS: usize = 8;

impl Cpu {
    /// `out = softmax(scale * q keys^T) values` for each row and head; `q` and `out` are
    /// `[rows.len(), heads, head_dim]`.
    ///
    /// Head `h` uses the key-value head `h / (heads / kv_heads)`: `eager_attention_forward` of Hugging
    /// Face's `modeling_llama.py` (Ainslie et al. 2023, arXiv:2305.13245). The caches of all rows have the
    /// same encoding, heads and head dimension. `scores` says what else becomes of the scaled products.
    pub fn attention(
        &self,
        q: &[f32],
        rows: &[AttentionRow<'_>],
        heads: usize,
        scores: Scores<'_>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        check_len("the slopes of scores", scores.slopes.map_or(heads, <[f32]>::len), heads)?;
        let Some(AttentionRow { kv, .. }) = rows.first() else {
            check_len("the queries", q.len(), 0)?;
            return check_len("the result of an attention", out.len(), 0);
        };
        let KvView { encoding, kv_heads, head_dim, .. } = *kv;
        if encoding.block().is_some() {
            return Err(Error::Quantised { what: "a KV cache", encoding });
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::Heads { heads, kv_heads });
        }
        let width = product("a row of heads", &[heads, head_dim])?;
        if width == 0 {
            return Err(Error::Zero { what: "the size of a row of heads" });
        }
        let expected = product("the queries", &[rows.len(), width])?;
        check_len("the queries", q.len(), expected)?;
        check_len("the result of an attention", out.len(), expected)?;
        let mut work = 0_usize;
        for row in rows {
            row.check(kv)?;
            work = work.saturating_add(row.span().len().saturating_mul(2 * width));
        }
        let out = RowsMut::new(out, width, 0)?;
        let group = heads / kv_heads;
        // Rows inside, heads outside, so that threads start on different heads and each keeps to its own.
        let chunks = rows.len().div_ceil(ROWS);
        self.for_each(kv_heads * chunks, work, |task| {
            let (kv_head, first) = (task / chunks, task % chunks * ROWS);
            let rows = &rows[first..(first + ROWS).min(rows.len())];
            for head in (0..group).step_by(HEADS) {
                let count = HEADS.min(group - head);
                let first_head = kv_head * group + head;
                // SAFETY: a task writes these rows of these heads, and no other task has the same of both.
                let out = unsafe { out.alias() };
                let attend = Attend { q, rows, first, width, kv_head, first_head, count, scores, out };
                self.run(Encoded(encoding, attend));
            }
        });
        Ok(())
    }
}

impl AttentionRow<'_> {
    /// The positions that it sees.
    fn span(&self) -> Range<usize> {
        let end = self.position + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// That the cache is what it says it is, holds the position, and goes with `other`.
    fn check(&self, other: &KvView<'_>) -> Result<(), Error> {
        let kv = &self.kv;
        for (what, same) in [
            ("encoding", kv.encoding == other.encoding),
            ("head count", kv.kv_heads == other.kv_heads),
            ("head dimension", kv.head_dim == other.head_dim),
        ] {
            if !same {
                return Err(Error::Mixed { what });
            }
        }
        let rows = product("a KV cache", &[kv.kv_heads, kv.capacity])?;
        Matrix::new(kv.encoding, rows, kv.head_dim, kv.keys)?;
        Matrix::new(kv.encoding, rows, kv.head_dim, kv.values)?;
        if self.position >= kv.capacity {
            let end = self.position.saturating_add(1);
            return Err(Error::Beyond { what: "a position", end, limit: kv.capacity });
        }
        if self.window == Some(0) {
            return Err(Error::Zero { what: "an attention window" });
        }
        Ok(())
    }
}

/// One task of [`Cpu::attention`], of checked shapes: a few rows, and a few query heads of one key-value
/// head.
struct Attend<'a> {
    q: &'a [f32],
    rows: &'a [AttentionRow<'a>],
    /// The index of the first of `rows` in `q` and `out`.
    first: usize,
    /// Elements of a row of `q` and `out`.
    width: usize,
    kv_head: usize,
    first_head: usize,
    count: usize,
    scores: Scores<'a>,
    out: RowsMut<'a>,
}

impl EncodedKernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, E: Stored>(mut self, simd: S) {
        let head_dim = self.rows[0].kv.head_dim;
        let heads = self.first_head * head_dim..(self.first_head + self.count) * head_dim;
        let mut softmax = [[Softmax::EMPTY; HEADS]; ROWS];
        let (mut begin, mut end) = (usize::MAX, 0);
        for (i, row) in self.rows.iter().enumerate() {
            self.out.row(self.first + i, heads.clone()).fill(0.0);
            begin = begin.min(row.span().start / SCORES * SCORES);
            end = end.max(row.span().end);
        }
        // Blocks outside, rows inside: the rows of one sequence find the block in a near cache.
        while begin < end {
            for (i, row) in self.rows.iter().enumerate() {
                let span = row.span();
                let block = span.start.max(begin)..span.end.min(begin + SCORES);
                if block.is_empty() {
                    continue;
                }
                let q = &self.q[(self.first + i) * self.width..][heads.clone()];
                let out = self.out.row(self.first + i, heads.clone());
                let how =
                    Scores { slopes: self.scores.slopes.map(|all| &all[self.first_head..]), ..self.scores };
                attend_block::<S, E>(simd, row, self.kv_head, block, q, how, &mut softmax[i], out);
            }
            begin += SCORES;
        }
        for (i, softmax) in softmax.iter().enumerate().take(self.rows.len()) {
            let out = self.out.row(self.first + i, heads.clone());
            for (head, softmax) in out.chunks_exact_mut(head_dim).zip(softmax) {
                for x in head {
                    *x /= softmax.sum();
                }
            }
        }
    }
}

/// What [`Scores`] asks for besides a factor; the first of the scores is of a key `distance` positions back.
fn bend(scores: &mut [[f32; SCORES]], how: Scores<'_>, distance: usize) {
    for (head, scores) in scores.iter_mut().enumerate() {
        for score in scores.iter_mut() {
            *score *= how.scale;
        }
        if let Some(cap) = how.softcap {
            for score in scores.iter_mut() {
                *score = cap * tanh(*score / cap);
            }
        }
        if let Some(slopes) = how.slopes {
            for (i, score) in scores.iter_mut().enumerate() {
                *score -= slopes[head] * (distance as f32 - i as f32);
            }
        }
    }
}

/// Lets the heads `q` of one row attend to one block of positions.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of an attention, and its state")]
fn attend_block<S: Simd, E: Stored>(
    simd: S,
    row: &AttentionRow<'_>,
    kv_head: usize,
    block: Range<usize>,
    q: &[f32],
    how: Scores<'_>,
    softmax: &mut [Softmax; HEADS],
    out: &mut [f32],
) {
    let kv = &row.kv;
    let (len, heads) = (block.len(), q.len() / kv.head_dim);
    let first = kv_head * kv.capacity + block.start;
    let whole = |bytes| Matrix::new(kv.encoding, kv.kv_heads * kv.capacity, kv.head_dim, bytes);
    let of_block = |bytes| whole(bytes).and_then(|all| all.slice(first..first + len));
    let (Ok(keys), Ok(values)) = (of_block(kv.keys), of_block(kv.values)) else {
        return; // Not reached: `AttentionRow::check` has built the same matrices.
    };
    let mut scores = [[0.0; SCORES]; HEADS];
    if let Ok(scores) = RowsMut::new(scores[..heads].as_flattened_mut(), SCORES, 0) {
        few_rows::<S, E>(simd, keys, q, scores);
    }
    let mut scale = how.scale;
    if how.softcap.is_some() || how.slopes.is_some() {
        bend(&mut scores[..heads], how, row.position - block.start);
        scale = 1.0;
    }
    let mut corrections = [0.0; HEADS];
    for ((scores, softmax), correction) in scores.iter_mut().zip(softmax).zip(&mut corrections).take(heads) {
        *correction = softmax.push(scores, len, scale);
    }
    let mut head = 0;
    while head < heads {
        let (weights, corrections) = (&scores[head..heads], &corrections[head..heads]);
        let out = &mut out[head * kv.head_dim..];
        head += match heads - head {
            1 => add_values::<S, E, 1>(simd, values, weights, corrections, out),
            2 | 3 => add_values::<S, E, 2>(simd, values, weights, corrections, out),
            _ => add_values::<S, E, 4>(simd, values, weights, corrections, out),
        };
    }
}

/// For the first `H` heads: what is in `out`, corrected, plus the values weighted with the exponentials.
/// Returns `H`.
#[inline(always)]
fn add_values<S: Simd, E: Stored, const H: usize>(
    simd: S,
    values: Matrix<'_>,
    weights: &[[f32; SCORES]],
    corrections: &[f32],
    out: &mut [f32],
) -> usize {
    let head_dim = values.cols();
    let mut col = 0;
    while col + 2 * S::LANES <= head_dim {
        add_columns::<S, E, H, 2>(simd, values, col, S::LANES, weights, corrections, out);
        col += 2 * S::LANES;
    }
    while col < head_dim {
        let count = S::LANES.min(head_dim - col);
        add_columns::<S, E, H, 1>(simd, values, col, count, weights, corrections, out);
        col += count;
    }
    H
}

/// [`add_values`] for `D` vectors of columns from `col` on, each of which has `count` columns.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "heads, columns and positions index several arrays at once")]
fn add_columns<S: Simd, E: Stored, const H: usize, const D: usize>(
    simd: S,
    values: Matrix<'_>,
    col: usize,
    count: usize,
    weights: &[[f32; SCORES]],
    corrections: &[f32],
    out: &mut [f32],
) {
    let head_dim = values.cols();
    let mut sums = [[simd.splat(0.0); D]; H];
    for h in 0..H {
        let out = &out[h * head_dim..][..head_dim];
        for d in 0..D {
            let old = load_up_to::<S, F32>(simd, bytemuck::cast_slice(out), col + d * count, count);
            sums[h][d] = simd.mul_add(old, simd.splat(corrections[h]), simd.splat(0.0));
        }
    }
    for position in 0..values.rows() {
        let row = values.row(position);
        for d in 0..D {
            let value = load_up_to::<S, E>(simd, row, col + d * count, count);
            for h in 0..H {
                sums[h][d] = simd.mul_add(value, simd.splat(weights[h][position]), sums[h][d]);
            }
        }
    }
    for h in 0..H {
        for d in 0..D {
            store_up_to(simd, &mut out[h * head_dim + col + d * count..][..count], sums[h][d]);
        }
    }
}
