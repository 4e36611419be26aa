//! A program run in plain float64 loops: the executable specification of every operation.
//!
//! It computes a whole sequence at once, remembers nothing and is as slow as it is simple. Tests hold decoders and goldens to
//! it.

use crate::program::{
    Activation, Attend, Experts, Make, Norm, NormKind, Normalise, Op, Program, Route, Rows, Scoring, Value,
    VectorId, WeightId, alibi_slopes,
};
use crate::rope::Pairing;

/// The logits of every position of `tokens`, `[tokens, vocab]`. `weights` gives the elements of a weight, row by row.
///
/// # Panics
/// If `weights` gives fewer elements than a weight has, or a token is beyond the vocabulary.
#[must_use]
pub fn logits(program: &Program, weights: &dyn Fn(WeightId) -> Vec<f64>, tokens: &[u32]) -> Vec<f64> {
    let mut run = Run {
        program,
        weights,
        rows: tokens.len(),
        values: vec![Vec::new(); program.values.len()],
        routed: Vec::new(),
        shared: Vec::new(),
    };
    let table = weights(WeightId(0));
    let hidden = program.dims.hidden;
    for op in program.ops_by_layer() {
        if let Op::Embed { to } = op {
            let rows =
                tokens.iter().flat_map(|token| table[*token as usize * hidden..][..hidden].iter().copied());
            run.values[to.0] = rows.collect();
        } else {
            run.op(op);
        }
    }
    run.values.swap_remove(program.logits.0)
}

struct Run<'a> {
    program: &'a Program,
    weights: &'a dyn Fn(WeightId) -> Vec<f64>,
    rows: usize,
    values: Vec<Vec<f64>>,
    /// By expert: its rows and their weights.
    routed: Vec<Vec<(usize, f64)>>,
    /// The weight of the shared expert of each row.
    shared: Vec<f64>,
}

impl Run<'_> {
    fn vector(&self, id: VectorId) -> Vec<f64> {
        let spec = &self.program.vectors[id.0];
        let mut values = Vec::new();
        for (weight, range) in &spec.parts {
            let all = (self.weights)(*weight);
            if spec.make == Make::InverseRowNorms {
                let cols = self.program.weights[weight.0].shape[1];
                let rows = all.chunks(cols).map(|row| 1.0 / row.iter().map(|x| x * x).sum::<f64>().sqrt());
                values.extend(rows.skip(range.start).take(range.len()));
            } else {
                values.extend_from_slice(&all[range.clone()]);
            }
        }
        if spec.make == Make::PlusOne {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        values
    }

    fn get(&self, value: Value) -> &[f64] {
        &self.values[value.0]
    }

    fn width(&self, value: Value) -> usize {
        self.program.values[value.0].width
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Embed { .. } => {}
            Op::Norm(norm) => self.norm(norm),
            Op::Linear(linear) => {
                let matrix = (self.weights)(linear.weight);
                self.linear(&matrix, linear.from, &linear.to);
            }
            Op::Bias { vector, to } => {
                let bias = self.vector(*vector);
                self.by_column(*to, |x, column| x + bias[column]);
            }
            Op::Multiply { value, vector } => {
                let factors = self.vector(*vector);
                self.by_column(*value, |x, column| x * factors[column]);
            }
            Op::Scale { value, factor } => self.by_column(*value, |x, _| x * f64::from(*factor)),
            Op::Softcap { value, cap } => self.by_column(*value, |x, _| softcap(x, *cap)),
            Op::Clamp { value, limit } => {
                let limit = f64::from(*limit);
                self.by_column(*value, |x, _| x.clamp(-limit, limit));
            }
            Op::Rotate(rotate) => {
                let rope = &self.program.ropes[rotate.rope.0];
                let frequencies = rope.inverse_frequencies(self.rows);
                let half = rope.dims / 2;
                let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
                for position in 0..self.rows {
                    rope.angles(&frequencies, position, &mut cos, &mut sin);
                    let factor = f64::from(rope.factor(position).unwrap_or(1.0));
                    let row = &mut self.values[rotate.value.0][position * rotate.heads * rotate.head_dim..];
                    for head in row.chunks_mut(rotate.head_dim).take(rotate.heads) {
                        for j in 0..half {
                            let (a, b) = match rope.pairing {
                                Pairing::Halves => (j, j + half),
                                Pairing::Neighbours => (2 * j, 2 * j + 1),
                            };
                            let (c, s) = (f64::from(cos[j]) * factor, f64::from(sin[j]) * factor);
                            (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
                        }
                    }
                }
            }
            Op::Attend(attend) => self.attend(attend),
            Op::Activate(a) => {
                let up = a.up.map(|up| self.get(up).to_vec());
                let out = self.get(a.gate).iter().enumerate().map(|(i, x)| {
                    let activated = activation(a.kind, *x);
                    up.as_ref().map_or(activated, |up| activated * up[i])
                });
                self.values[a.to.0] = out.collect();
            }
            Op::Add { from, to } => {
                let from = self.get(*from).to_vec();
                self.values[to.0].iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
            // Every position is wanted.
            Op::Wanted { from, to } => self.values[to.0] = self.get(*from).to_vec(),
            Op::Zero { to } => self.values[to.0] = vec![0.0; self.rows * self.width(*to)],
            Op::Route(route) => self.route(route),
            Op::AddShared { from, to } => {
                let (width, from) = (self.width(*to), self.get(*from).to_vec());
                for (i, from) in from.into_iter().enumerate() {
                    self.values[to.0][i] += self.shared[i / width] * from;
                }
            }
            Op::Experts(experts) => self.experts(experts),
        }
    }

    fn by_column(&mut self, value: Value, f: impl Fn(f64, usize) -> f64) {
        let width = self.width(value);
        for (i, x) in self.values[value.0].iter_mut().enumerate() {
            *x = f(*x, i % width);
        }
    }

    fn linear(&mut self, matrix: &[f64], from: Value, to: &[crate::program::Output]) {
        let cols = self.width(from);
        let x = self.get(from).to_vec();
        let rows = x.len() / cols;
        for output in to {
            let width = self.width(output.value);
            self.values[output.value.0].resize(rows * width, 0.0);
            for (i, x) in x.chunks(cols).enumerate() {
                for row in output.rows.clone() {
                    let sum = x.iter().zip(&matrix[row * cols..][..cols]).map(|(a, b)| a * b).sum();
                    let column = output.column + row - output.rows.start;
                    self.values[output.value.0][i * width + column] = sum;
                }
            }
        }
    }

    fn norm(&mut self, norm: &Norm) {
        if let Some(add) = norm.add {
            self.op(&Op::Add { from: add, to: norm.from });
        }
        let weight = self.vector(norm.weight);
        let bias = norm.bias.map(|bias| self.vector(bias));
        let piece = self.width(norm.from) / norm.heads;
        let mut x = self.get(norm.from).to_vec();
        for (index, x) in x.chunks_mut(piece).enumerate() {
            let n = piece as f64;
            if norm.kind == NormKind::Layer {
                let mean = x.iter().sum::<f64>() / n;
                x.iter_mut().for_each(|x| *x -= mean);
            }
            let root = (x.iter().map(|x| x * x).sum::<f64>() / n + f64::from(norm.eps)).sqrt();
            for (j, x) in x.iter_mut().enumerate() {
                let at = (index * piece + j) % weight.len();
                *x = *x / root * weight[at] + bias.as_ref().map_or(0.0, |bias| bias[at]);
            }
        }
        self.values[norm.to.0] = x;
    }

    fn attend(&mut self, a: &Attend) {
        let (d, group) = (a.head_dim, a.heads / a.kv_heads);
        let slopes = a.alibi.then(|| alibi_slopes(a.heads));
        let (q, k, v) = (self.get(a.q), self.get(a.k), self.get(a.v));
        let mut out = vec![0.0; self.rows * a.heads * d];
        for i in 0..self.rows {
            for head in 0..a.heads {
                let of = |x: &[f64], j: usize, e: usize| x[(j * a.kv_heads + head / group) * d + e];
                let first = a.window.map_or(0, |window| (i + 1).saturating_sub(window));
                let scores: Vec<f64> = (first..=i)
                    .map(|j| {
                        let dot: f64 = (0..d).map(|e| q[(i * a.heads + head) * d + e] * of(k, j, e)).sum();
                        let score = dot * f64::from(a.scale);
                        let score = a.softcap.map_or(score, |cap| softcap(score, cap));
                        let slope = slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
                        score - slope * (i - j) as f64
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (j, score) in (first..).zip(&scores) {
                    let p = (score - largest).exp() / sum;
                    for e in 0..d {
                        out[(i * a.heads + head) * d + e] += p * of(v, j, e);
                    }
                }
            }
        }
        self.values[a.to.0] = out;
    }

    fn route(&mut self, route: &Route) {
        let scores = |run: &Self, id: VectorId| -> Vec<f64> {
            let (matrix, cols) = (run.vector(id), run.width(route.from));
            let x = run.get(route.from).chunks(cols);
            let dot = |x: &[f64], row: &[f64]| x.iter().zip(row).map(|(a, b)| a * b).sum::<f64>();
            x.flat_map(|x| matrix.chunks(cols).map(|row| dot(x, row)).collect::<Vec<_>>()).collect()
        };
        let all = scores(self, route.router);
        let correction = route.correction.map(|id| self.vector(id));
        self.routed = vec![Vec::new(); route.count];
        for (row, scores) in all.chunks(route.count).enumerate() {
            for (expert, weight) in chosen(route, scores, correction.as_deref()) {
                self.routed[expert].push((row, weight));
            }
        }
        self.shared = match route.shared_gate {
            Some(gate) => {
                scores(self, gate).into_iter().map(|x| activation(Activation::Sigmoid, x)).collect()
            }
            None => Vec::new(),
        };
    }

    fn experts(&mut self, experts: &Experts) {
        let width = self.width(experts.from);
        for (expert, rows) in std::mem::take(&mut self.routed).into_iter().enumerate() {
            let from = self.get(experts.from);
            self.values[experts.taken.0] =
                rows.iter().flat_map(|(row, _)| &from[row * width..][..width]).copied().collect();
            for op in &experts.body {
                match op {
                    Op::Linear(linear) => {
                        let matrix = (self.weights)(Program::of_expert(experts, expert, linear.weight));
                        linear.to.iter().for_each(|output| self.values[output.value.0].clear());
                        self.linear(&matrix, linear.from, &linear.to);
                    }
                    op => self.op(op),
                }
            }
            let made = self.get(experts.made).to_vec();
            for ((row, weight), made) in rows.into_iter().zip(made.chunks(width)) {
                let to = &mut self.values[experts.to.0][row * width..][..width];
                to.iter_mut().zip(made).for_each(|(to, made)| *to += weight * made);
            }
        }
    }
}

impl Program {
    /// Operations in order, without those inside experts.
    fn ops_by_layer(&self) -> impl Iterator<Item = &Op> {
        debug_assert!(self.values.iter().all(|value| value.width > 0 || value.rows == Rows::Chosen));
        self.prologue.iter().chain(self.layers.iter().flatten()).chain(&self.epilogue)
    }
}

/// The experts of a row and their weights.
fn chosen(route: &Route, scores: &[f64], correction: Option<&[f64]>) -> Vec<(usize, f64)> {
    if let Scoring::SparseMixer(jitter) = route.scoring {
        return sparse_mixer(scores, f64::from(jitter), route.per_token);
    }
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
    let probability = |score: f64| match route.scoring {
        Scoring::Sigmoid => activation(Activation::Sigmoid, score),
        _ => (score - largest).exp() / sum,
    };
    let probabilities: Vec<f64> = scores.iter().map(|score| probability(*score)).collect();
    let mut order: Vec<(usize, f64)> =
        probabilities.iter().enumerate().map(|(e, p)| (e, p + correction.map_or(0.0, |c| c[e]))).collect();
    if let Some(groups) = route.groups {
        let size = route.count / groups.count;
        let score = |group: &[(usize, f64)]| {
            let mut best: Vec<f64> = group.iter().map(|(_, p)| *p).collect();
            best.sort_by(|a, b| b.total_cmp(a));
            best.iter().take(groups.best).sum::<f64>()
        };
        let mut best: Vec<(usize, f64)> = order.chunks(size).map(score).enumerate().collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.retain(|(expert, _)| best.iter().take(groups.chosen).any(|(group, _)| *group == expert / size));
    }
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    order.truncate(route.per_token);
    let kept: f64 = order.iter().map(|(expert, _)| probabilities[*expert]).sum();
    let divisor = match route.normalise {
        Normalise::No => 1.0,
        Normalise::Sum => kept,
        Normalise::SumAnd(more) => kept + f64::from(more),
        Normalise::SumAtLeast(least) => kept.max(f64::from(least)),
    };
    let scale = f64::from(route.scale);
    order.into_iter().map(|(expert, _)| (expert, probabilities[expert] / divisor * scale)).collect()
}

fn sparse_mixer(scores: &[f64], jitter: f64, per_token: usize) -> Vec<(usize, f64)> {
    let mut out = vec![false; scores.len()];
    let mut chosen = Vec::new();
    for _ in 0..per_token {
        let left = || scores.iter().copied().enumerate().filter(|(e, _)| !out[*e]);
        let (expert, largest) =
            left().fold((0, f64::NEG_INFINITY), |best, one| if one.1 > best.1 { one } else { best });
        let near = |score: f64| (largest - score) / score.abs().max(largest) <= 2.0 * jitter;
        let sum: f64 = left().filter(|(_, s)| near(*s)).map(|(_, s)| (s - largest).exp()).sum();
        chosen.push((expert, 1.0 / sum));
        out[expert] = true;
    }
    chosen
}

fn softcap(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}
