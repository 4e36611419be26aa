//! The same operations as obvious loops, summed up in `f64`: what fast ones are compared with, here and in
//! other backends.
//!
//! Weights are `f32` (decode them first), results are new vectors, and wrong shapes panic as indexing does.

/// `y[i, r] = sum over c of w[r, c] * x[i, c]`, for `w` of `[rows, cols]`, `x` of `[n, cols]`.
#[must_use]
pub fn linear(w: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(w, x) as f32)).collect()
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
#[must_use]
pub fn rope(x: &[f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = x.to_vec();
    for (i, head) in out.chunks_mut(head_dim).enumerate() {
        for k in 0..half {
            let (cos, sin) = (f64::from(cos[i / heads * half + k]), f64::from(sin[i / heads * half + k]));
            let (x1, x2) = (f64::from(head[k]), f64::from(head[k + half]));
            head[k] = (x1 * cos - x2 * sin) as f32;
            head[k + half] = (x2 * cos + x1 * sin) as f32;
        }
    }
    out
}

/// `softmax(scale * q keys^T) values` for one query head of one row; `keys` and `values` are
/// `[positions, head_dim]`, those that the row sees.
#[must_use]
pub fn attention(q: &[f32], keys: &[f32], values: &[f32], scale: f32) -> Vec<f32> {
    let head_dim = q.len();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
    let scores: Vec<f64> = keys.chunks(head_dim).map(|k| f64::from(scale) * dot(k)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column =
        |d: usize| values.iter().skip(d).step_by(head_dim).zip(&weights).map(|(&v, w)| f64::from(v) * w);
    (0..head_dim).map(|d| (column(d).sum::<f64>() / sum) as f32).collect()
}

/// `silu(gate) * up`, element by element.
#[must_use]
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    gate.iter().zip(up).map(|(&gate, &up)| (silu(f64::from(gate)) * f64::from(up)) as f32).collect()
}

/// The rows `rows` of `x`, `[_, cols]`.
#[must_use]
pub fn gather_rows(x: &[f32], cols: usize, rows: &[u32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| x[row as usize * cols..][..cols].to_vec()).collect()
}

/// `out` with `weights[i] * y[i, :]` added to its row `rows[i]`, one `i` after the other; `y` is `[_, cols]`.
///
/// In `f32`, product and sum rounded once.
#[must_use]
pub fn scatter_add(y: &[f32], cols: usize, rows: &[u32], weights: &[f32], out: &[f32]) -> Vec<f32> {
    let mut sums = out.to_vec();
    for ((y, &row), &weight) in y.chunks(cols).zip(rows).zip(weights) {
        for (sum, &y) in sums[row as usize * cols..].iter_mut().zip(y) {
            *sum = weight.mul_add(y, *sum);
        }
    }
    sums
}
