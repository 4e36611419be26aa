//! The operations as obvious loops, summed up in `f64`: what kernels are compared with.
//!
//! Everything is `f32` (decode weights and caches first), results are new vectors, and wrong shapes panic as
//! indexing does.

use std::cmp::Ordering;

/// The rows `ids` of `table`, `[_, cols]`; NaN for ids beyond it.
#[must_use]
pub fn embed(table: &[f32], cols: usize, ids: &[u32]) -> Vec<f32> {
    let rows: Vec<_> = table.chunks(cols).collect();
    let missing = vec![f32::NAN; cols];
    ids.iter().flat_map(|&id| rows.get(id as usize).copied().unwrap_or(&missing).to_vec()).collect()
}

/// `x / sqrt(mean(x^2) + eps) * weight` for each row of `x`, `[n, weight.len()]`.
#[must_use]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let norm = (squares / row.len() as f64 + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(weight).map(|(&x, &w)| (f64::from(x) / norm * f64::from(w)) as f32));
    }
    out
}

/// Rotates the halves of each head of `x`, `[n, heads, head_dim]`; `cos` and `sin` are `[n, head_dim / 2]`.
///
/// In `f32`, each product and sum rounded by itself, as the kernel promises.
#[must_use]
pub fn rope(x: &[f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = x.to_vec();
    for (i, head) in out.chunks_mut(head_dim).enumerate() {
        for k in 0..half {
            let (cos, sin) = (cos[i / heads * half + k], sin[i / heads * half + k]);
            let (x1, x2) = (head[k], head[k + half]);
            head[k] = x1 * cos - x2 * sin;
            head[k + half] = x2 * cos + x1 * sin;
        }
    }
    out
}

/// [`rope`] of the first `2 * half` elements of each head alone, of neighbours where that is said; `cos` and `sin` are
/// `[n, half]`.
#[must_use]
pub fn rope_in_part(
    x: &[f32],
    heads: usize,
    head_dim: usize,
    neighbours: bool,
    cos: &[f32],
    sin: &[f32],
) -> Vec<f32> {
    let n = x.len() / (heads * head_dim);
    let half = cos.len() / n.max(1);
    let mut out = x.to_vec();
    for (i, head) in out.chunks_mut(head_dim).enumerate() {
        for k in 0..half {
            let (cos, sin) = (cos[i / heads * half + k], sin[i / heads * half + k]);
            let (one, other) = if neighbours { (2 * k, 2 * k + 1) } else { (k, k + half) };
            let (x1, x2) = (head[one], head[other]);
            head[one] = x1 * cos - x2 * sin;
            head[other] = x2 * cos + x1 * sin;
        }
    }
    out
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each piece of `piece` elements, or without the mean where
/// `centred` does not say so; weights and biases are of several pieces, in turn.
#[must_use]
pub fn piece_norm(
    x: &[f32],
    piece: usize,
    centred: bool,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(piece) {
        let first = out.len() % weight.len();
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / piece as f64;
        let mean = if centred { mean } else { 0.0 };
        let squares: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let norm = (squares / piece as f64 + f64::from(eps)).sqrt();
        for (i, &x) in row.iter().enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[first + i]));
            out.push(((f64::from(x) - mean) / norm * f64::from(weight[first + i]) + bias) as f32);
        }
    }
    out
}

/// `x * factor`, element by element.
#[must_use]
pub fn scale(factor: f32, x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x * factor).collect()
}

/// `cap * tanh(x / cap)`, element by element.
#[must_use]
pub fn softcap(cap: f32, x: &[f32]) -> Vec<f32> {
    let cap = f64::from(cap);
    x.iter().map(|&x| (cap * (f64::from(x) / cap).tanh()) as f32).collect()
}

/// Every element to `-limit..=limit`; NaN stays NaN.
#[must_use]
pub fn clamp(limit: f32, x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.clamp(-limit, limit)).collect()
}

/// Each row of `x` times `factors`.
#[must_use]
pub fn multiply(factors: &[f32], x: &[f32]) -> Vec<f32> {
    x.chunks(factors.len()).flat_map(|row| row.iter().zip(factors).map(|(x, by)| x * by)).collect()
}

/// `x + a`, element by element.
#[must_use]
pub fn add(a: &[f32], x: &[f32]) -> Vec<f32> {
    x.iter().zip(a).map(|(x, a)| x + a).collect()
}

/// `bias` added to each row of `y`.
#[must_use]
pub fn add_bias(bias: &[f32], y: &[f32]) -> Vec<f32> {
    y.chunks(bias.len()).flat_map(|row| add(bias, row)).collect()
}

/// The rows `rows` of `x`, `[_, cols]`; zeros for numbers beyond it.
#[must_use]
pub fn gather_rows(x: &[f32], cols: usize, rows: &[u32]) -> Vec<f32> {
    let missing = vec![0.0; cols];
    rows.iter().flat_map(|&row| x.chunks(cols).nth(row as usize).unwrap_or(&missing).to_vec()).collect()
}

/// `out` with `weights[i] * y[i, :]` added to its row `rows[i]`, where it has one; `y` is `[_, cols]`.
///
/// In `f32`, product and sum rounded once, as the kernel promises.
#[must_use]
pub fn scatter_add(y: &[f32], cols: usize, rows: &[u32], weights: &[f32], out: &[f32]) -> Vec<f32> {
    let mut sums = out.to_vec();
    for ((y, &row), &weight) in y.chunks(cols).zip(rows).zip(weights) {
        for (sum, &y) in sums.chunks_mut(cols).nth(row as usize).unwrap_or_default().iter_mut().zip(y) {
            *sum = weight.mul_add(y, *sum);
        }
    }
    sums
}

/// `silu(gate) * up`, element by element.
#[must_use]
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    gate.iter().zip(up).map(|(&gate, &up)| (silu(f64::from(gate)) * f64::from(up)) as f32).collect()
}

/// `y[i, r] = sum over c of w[r, c] * x[i, c]`, for `w` of `[rows, cols]`, `x` of `[n, cols]`.
#[must_use]
pub fn linear(w: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(w, x) as f32)).collect()
}

/// Which element of a cache, laid out as [`KvLayout`](crate::KvLayout) says, is the first of the key of a head
/// at a position. Its value is `kv_heads * capacity * head_dim` further on.
#[must_use]
pub fn key_at(
    layout: &crate::KvLayout,
    capacity: usize,
    layer: usize,
    head: usize,
    position: usize,
) -> usize {
    ((layer * 2 * layout.kv_heads + head) * capacity + position) * layout.head_dim
}

/// What one row of queries attends to: the keys and values of its sequence in one layer, decoded.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// `[kv_heads, capacity, head_dim]`.
    pub keys: &'a [f32],
    /// `[kv_heads, capacity, head_dim]`.
    pub values: &'a [f32],
    /// Positions that there is room for.
    pub capacity: usize,
    /// The row's own position, the last that it sees.
    pub position: usize,
    /// How many positions it sees, itself included; all up to its own where there is no window.
    pub window: Option<usize>,
}

/// What becomes of products of queries and keys before the softmax.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Their factor.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, behind the factor.
    pub softcap: Option<f32>,
    /// By head: what a score loses for each position between query and key.
    pub slopes: Option<&'a [f32]>,
}

/// `softmax(scale * q keys^T) values` for each row and head; `q` is `[rows.len(), heads, head_dim]`. Head `h`
/// uses the key-value head `h / (heads / kv_heads)`. `scores` says what else becomes of the products.
#[must_use]
pub fn attention(
    q: &[f32],
    rows: &[AttentionRow<'_>],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scores: Scores<'_>,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(q.len());
    for (i, q) in q.chunks(head_dim).enumerate() {
        let row = &rows[i / heads];
        let plane = i % heads / (heads / kv_heads) * row.capacity;
        let end = row.position + 1;
        let start = end.saturating_sub(row.window.unwrap_or(end));
        let span = (plane + start) * head_dim..(plane + end) * head_dim;
        let slope = scores.slopes.map_or(0.0, |slopes| slopes[i % heads]);
        out.extend(attention_head(q, &row.keys[span.clone()], &row.values[span], scores, slope));
    }
    out
}

/// [`attention`] of one query head of one row; `keys` and `values` are `[positions, head_dim]`, those that the
/// row sees, its own the last; `slope` is that of the head.
#[must_use]
pub fn attention_head(q: &[f32], keys: &[f32], values: &[f32], how: Scores<'_>, slope: f32) -> Vec<f32> {
    let head_dim = q.len();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
    let last = keys.len() / head_dim - 1;
    let bent = |(at, key)| {
        let score = f64::from(how.scale) * dot(key);
        let capped = how.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        capped - f64::from(slope) * (last - at) as f64
    };
    let scores: Vec<f64> = keys.chunks(head_dim).enumerate().map(bent).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column =
        |d: usize| values.iter().skip(d).step_by(head_dim).zip(&weights).map(|(&v, w)| f64::from(v) * w);
    (0..head_dim).map(|d| (column(d).sum::<f64>() / sum) as f32).collect()
}

/// The index of the greatest element of each row: the first of equal ones, and the first NaN where there is
/// one.
#[must_use]
pub fn argmax(logits: &[f32], cols: usize) -> Vec<u32> {
    top_k(logits, cols, 1).1
}

/// The `k` greatest elements of each row in descending order, and their indices: of equal ones the first comes
/// first, and NaN before every number.
#[must_use]
pub fn top_k(logits: &[f32], cols: usize, k: usize) -> (Vec<f32>, Vec<u32>) {
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for row in logits.chunks(cols) {
        let mut order: Vec<usize> = (0..cols).collect();
        // A stable sort keeps equal ones in order.
        order.sort_by(|&a, &b| match (row[a].is_nan(), row[b].is_nan()) {
            (false, false) => row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal),
            (a, b) => b.cmp(&a),
        });
        for &index in &order[..k] {
            values.push(row[index]);
            indices.push(index as u32);
        }
    }
    (values, indices)
}

/// The sums of the 32-bit words of as many pieces as are asked for, modulo 2^32, as
/// [`Kernels::read_sums`](crate::Kernels::read_sums) cuts them: of whole words of 16 bytes.
#[must_use]
pub fn read_sums(bytes: &[u8], pieces: usize) -> Vec<u32> {
    let piece = 16 * (bytes.len() / 16).div_ceil(pieces);
    let sum = |bytes: &[u8]| {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().fold(0_u32, |sum, word| sum.wrapping_add(u32::from_le_bytes(*word)))
    };
    (0..pieces).map(|i| sum(&bytes[bytes.len().min(i * piece)..bytes.len().min((i + 1) * piece)])).collect()
}
