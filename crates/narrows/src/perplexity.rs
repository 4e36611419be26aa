//! Perplexity by strided windows.
//!
//! As transformers' documentation defines it for models of fixed length ("Perplexity of fixed-length
//! models"): windows of `window` tokens advance by `stride`, and each token after the first is predicted
//! once, with the context that the first window reaching it gives.

use std::ops::Range;

use crate::engine::{Engine, ScoreInput};
use crate::error::{Error, Result};

/// The perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Standard error of the perplexity, from the spread of the tokens' likelihoods.
    pub stderr: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// The windows over `len` tokens: each with the positions whose logits predict a token for the first time.
fn windows(len: usize, window: usize, stride: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut predicted = 1;
    let mut begin = 0;
    std::iter::from_fn(move || {
        if predicted >= len {
            return None;
        }
        let end = (begin + window).min(len);
        // The logits of a position predict the token after it.
        let wanted = predicted - 1 - begin..end - 1 - begin;
        let tokens = begin..end;
        predicted = end;
        begin += stride;
        Some((tokens, wanted))
    })
}

impl Engine {
    /// The perplexity of `tokens`; `progress` hears how many are predicted.
    ///
    /// # Errors
    /// There are fewer than two tokens, `stride` is not at least one and below `window`, or the window is
    /// longer than the context.
    pub fn perplexity(
        &mut self,
        tokens: &[u32],
        window: usize,
        stride: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Perplexity> {
        if tokens.len() < 2 {
            return Err(Error::Request("perplexity needs a text of two tokens or more".to_owned()));
        }
        if stride == 0 || stride >= window {
            return Err(Error::Request(format!(
                "a stride of {stride} does not fit a window of {window}: it must be at least 1 and smaller, \
                 so that every token is predicted from one before it"
            )));
        }
        let windows: Vec<_> = windows(tokens.len(), window, stride).collect();
        let inputs: Vec<_> = windows
            .iter()
            .map(|(range, wanted)| ScoreInput { tokens: &tokens[range.clone()], wanted: wanted.clone() })
            .collect();
        let (mut count, mut mean, mut squares) = (0_usize, 0.0, 0.0);
        self.score(&inputs, |input, position, logits| {
            let target = tokens[windows[input].0.start + position + 1];
            let loss = negative_log_likelihood(logits, target);
            // Welford's update: stable for any number of tokens.
            count += 1;
            let delta = loss - mean;
            mean += delta / count as f64;
            squares += delta * (loss - mean);
            progress(count);
            Ok(())
        })?;
        let perplexity = mean.exp();
        let variance = squares / (count.max(2) - 1) as f64;
        Ok(Perplexity { perplexity, stderr: perplexity * (variance / count as f64).sqrt(), tokens: count })
    }
}

/// `-log softmax(logits)[target]`, in float64.
fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    let target = logits.get(target as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit));
    max + sum.ln() - target
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn likelihood() {
        let logits = [0.1_f32, 0.2, 0.7].map(|p: f32| p.ln() + 3.0);
        assert!((negative_log_likelihood(&logits, 2) + 0.7_f64.ln()).abs() < 1e-6);
        assert!((negative_log_likelihood(&[1e4, -1e4], 1) - 2e4).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn every_token_after_the_first_once(len in 2usize..80, window in 2usize..20, stride in 1usize..19) {
            prop_assume!(stride < window);
            let mut predicted = vec![0; len];
            for (tokens, wanted) in windows(len, window, stride) {
                prop_assert!(tokens.end <= len && tokens.len() <= window && wanted.end <= tokens.len());
                for position in wanted {
                    predicted[tokens.start + position + 1] += 1;
                }
            }
            prop_assert_eq!(predicted[0], 0);
            prop_assert!(predicted[1..].iter().all(|&n| n == 1));
        }
    }
}
