//! Which rows of a step go to which experts, and with what weight.

use std::ops::Range;

use narrows_model::{Groups, Normalise, Program, Route, Scoring};

/// Rows by expert: what a router's scores come to.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    /// Rows of the step, expert by expert, in their order.
    pub(crate) rows: Vec<u32>,
    /// The weight of each of them.
    pub(crate) weights: Vec<f32>,
    /// The experts that any row goes to, in their order, and where their rows are.
    pub(crate) experts: Vec<(usize, Range<usize>)>,
    /// Where the rows of the shared expert are, if there is one: behind those of all others.
    pub(crate) shared: Option<Range<usize>>,
}

impl Routing {
    /// Routes each row by its scores, `[n, count]`, with what corrects the choice: of equals the one with the lower number.
    pub(crate) fn new(scores: &[f32], route: &Route, correction: Option<&[f32]>) -> Self {
        let mut chosen: Vec<(usize, u32, f32)> = Vec::new();
        for (row, scores) in (0..).zip(scores.chunks_exact(route.count)) {
            let best = match route.scoring {
                Scoring::SparseMixer(jitter) => sparse_mixer(scores, jitter, route.per_token),
                _ => best(scores, route, correction),
            };
            chosen.extend(best.into_iter().map(|(expert, weight)| (expert, row, weight)));
        }
        // Stable: the rows of an expert stay in their order.
        chosen.sort_by_key(|(expert, ..)| *expert);
        let mut routing = Self::default();
        for (index, (expert, row, weight)) in chosen.into_iter().enumerate() {
            match routing.experts.last_mut() {
                Some((last, range)) if *last == expert => range.end += 1,
                _ => routing.experts.push((expert, index..index + 1)),
            }
            routing.rows.push(row);
            routing.weights.push(weight);
        }
        routing
    }

    /// Every row goes to the shared expert too, weighted by the sigmoid of its score, `[n, 1]`.
    pub(crate) fn share(&mut self, scores: &[f32]) {
        let start = self.rows.len();
        self.rows.extend((0..).take(scores.len()));
        self.weights.extend(scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())));
        self.shared = Some(start..self.rows.len());
    }
}

/// The experts of a row and their weights.
fn best(scores: &[f32], route: &Route, correction: Option<&[f32]>) -> Vec<(usize, f32)> {
    let (probabilities, sum) = match route.scoring {
        Scoring::Sigmoid => {
            (scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect::<Vec<_>>(), 1.0)
        }
        _ => {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<_> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            (powers, sum)
        }
    };
    // Softmax is divided where it is used: the order of powers is that of probabilities.
    let mut order: Vec<(usize, f32)> = match correction {
        Some(correction) => {
            probabilities.iter().zip(correction).map(|(p, c)| p / sum + c).enumerate().collect()
        }
        None => probabilities.iter().copied().enumerate().collect(),
    };
    if let Some(groups) = route.groups {
        keep_groups(&mut order, groups);
    }
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(route.per_token);
    let weight = |expert: usize| probabilities[expert] / sum;
    let kept: f32 = order.iter().map(|(expert, _)| weight(*expert)).sum();
    let divisor = match route.normalise {
        Normalise::No => 1.0,
        Normalise::Sum => kept,
        Normalise::SumAnd(more) => kept + more,
        Normalise::SumAtLeast(least) => kept.max(least),
    };
    order.into_iter().map(|(expert, _)| (expert, weight(expert) / divisor * route.scale)).collect()
}

/// Takes experts out whose group is not among the best.
fn keep_groups(order: &mut Vec<(usize, f32)>, groups: Groups) {
    let size = (order.len() / groups.count.max(1)).max(1);
    let score = |group: &[(usize, f32)]| {
        let mut scores: Vec<f32> = group.iter().map(|(_, score)| *score).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores.into_iter().take(groups.best).sum::<f32>()
    };
    let mut best: Vec<(usize, f32)> = order.chunks(size).map(score).enumerate().collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    best.truncate(groups.chosen);
    order.retain(|(expert, _)| best.iter().any(|(group, _)| expert / size == *group));
}

/// The sparse mixer: the greatest score, weighted by the softmax over those that come near it; then the same without it.
fn sparse_mixer(scores: &[f32], jitter: f32, per_token: usize) -> Vec<(usize, f32)> {
    let mut left: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    let mut chosen = Vec::with_capacity(per_token);
    for _ in 0..per_token {
        let Some(&(expert, largest)) = left.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        else {
            break;
        };
        // How far below the greatest a score is, beside the greater of both sizes. Those out of the contest were in the
        // comparison in the first round, and keep their scores in the second.
        let near = |score: f32| (largest - score) / score.abs().max(largest) <= 2.0 * jitter;
        let sum: f32 = left.iter().filter(|(_, s)| near(*s)).map(|(_, s)| (s - largest).exp()).sum();
        chosen.push((expert, 1.0 / sum));
        left.retain(|(other, _)| *other != expert);
    }
    chosen
}

/// Rows and weights of a step of `n` rows at most.
pub(crate) fn most_rows(program: &Program, n: usize) -> usize {
    let of_layer = |route: &Route| route.per_token + usize::from(route.shared_gate.is_some());
    n.saturating_mul(program.routers().map(of_layer).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn program(normalised: bool) -> Program {
        let config = json!({
            "model_type": "qwen2_moe", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 10, "num_experts": 4,
            "num_experts_per_tok": 2, "norm_topk_prob": normalised,
        });
        let bytes = config.to_string();
        Program::parse("config.json".as_ref(), bytes.as_bytes()).unwrap()
    }

    fn routed(scores: &[f32], normalised: bool) -> Routing {
        Routing::new(scores, program(normalised).router(0).unwrap(), None)
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn rows_by_expert() {
        let ln = |x: f32| x.ln();
        let scores = [
            [ln(1.0), ln(5.0), ln(3.0), ln(1.0)],
            [ln(2.0), ln(2.0), ln(2.0), ln(2.0)],
            [ln(1.0), ln(1.0), ln(1.0), ln(7.0)],
        ];
        let scores = scores.as_flattened();
        let routing = routed(scores, false);
        assert_eq!(routing.experts, [(0, 0..2), (1, 2..4), (2, 4..5), (3, 5..6)]);
        assert_eq!(routing.rows, [1, 2, 0, 1, 0, 2]);
        assert!(close(&routing.weights, &[0.25, 0.1, 0.5, 0.25, 0.3, 0.7]), "{:?}", routing.weights);

        let mut routing = routed(scores, true);
        assert!(close(&routing.weights, &[0.5, 0.125, 0.625, 0.5, 0.375, 0.875]), "{:?}", routing.weights);
        routing.share(&[0.0, 0.0, f32::NEG_INFINITY]);
        assert_eq!((routing.shared, &routing.rows[6..]), (Some(6..9), &[0, 1, 2][..]));
        assert_eq!(routing.weights[6..], [0.5, 0.5, 0.0]);
        assert_eq!(most_rows(&program(true), 3), 9);
    }

    #[test]
    fn scores_that_are_no_numbers_route_somewhere() {
        let routing = routed(&[f32::NAN, 1.0, f32::INFINITY, f32::NAN], true);
        assert_eq!(routing.rows.len(), 2);
        assert!(routing.weights.iter().any(|weight| weight.is_nan()), "and the result shows it");
    }
}
