//! Which rows of a step go to which experts, and with what weight.

use std::ops::Range;

use crate::architecture::Experts;

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
    /// Routes each row by its scores, `[n, count]`: a softmax over all experts, of which the most probable are
    /// chosen; of equals the one with the lower number.
    pub(crate) fn new(scores: &[f32], experts: &Experts) -> Self {
        let mut chosen: Vec<(usize, u32, f32)> = Vec::new();
        for (row, scores) in (0..).zip(scores.chunks_exact(experts.count)) {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut probabilities: Vec<_> =
                scores.iter().map(|score| (score - largest).exp()).enumerate().collect();
            let sum: f32 = probabilities.iter().map(|(_, p)| p).sum();
            probabilities.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            probabilities.truncate(experts.per_token);
            let of_all = |p: f32| p / sum;
            let kept: f32 = probabilities.iter().map(|(_, p)| of_all(*p)).sum();
            let divisor = if experts.normalised { kept } else { 1.0 };
            chosen.extend(probabilities.into_iter().map(|(expert, p)| (expert, row, of_all(p) / divisor)));
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

    /// Rows and weights of a step of `n` rows at most.
    pub(crate) const fn most_rows(experts: &Experts, n: usize) -> usize {
        let shared = experts.shared_intermediate_size.is_some() as usize;
        n.saturating_mul(experts.per_token + shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use serde_json::json;

    fn experts(normalised: bool) -> Experts {
        let config = json!({
            "model_type": "qwen2_moe", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 10, "num_experts": 4,
            "num_experts_per_tok": 2, "norm_topk_prob": normalised,
        });
        let bytes = config.to_string();
        Architecture::parse("config.json".as_ref(), bytes.as_bytes()).unwrap().experts.unwrap()
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
        let routing = Routing::new(scores, &experts(false));
        assert_eq!(routing.experts, [(0, 0..2), (1, 2..4), (2, 4..5), (3, 5..6)]);
        assert_eq!(routing.rows, [1, 2, 0, 1, 0, 2]);
        assert!(close(&routing.weights, &[0.25, 0.1, 0.5, 0.25, 0.3, 0.7]), "{:?}", routing.weights);

        let mut routing = Routing::new(scores, &experts(true));
        assert!(close(&routing.weights, &[0.5, 0.125, 0.625, 0.5, 0.375, 0.875]), "{:?}", routing.weights);
        routing.share(&[0.0, 0.0, f32::NEG_INFINITY]);
        assert_eq!((routing.shared, &routing.rows[6..]), (Some(6..9), &[0, 1, 2][..]));
        assert_eq!(routing.weights[6..], [0.5, 0.5, 0.0]);
        assert_eq!(Routing::most_rows(&experts(true), 3), 9);
    }

    #[test]
    fn scores_that_are_no_numbers_route_somewhere() {
        let routing = Routing::new(&[f32::NAN, 1.0, f32::INFINITY, f32::NAN], &experts(true));
        assert_eq!(routing.rows.len(), 2);
        assert!(routing.weights.iter().any(|weight| weight.is_nan()), "and the result shows it");
    }
}
