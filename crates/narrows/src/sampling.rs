//! From logits to the next token.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How tokens are chosen.
///
/// Steps in their order, which is that of Hugging Face transformers: repetition penalty (Keskar et al.,
/// arXiv:1909.05858; over prompt and new tokens), presence and frequency penalties (as OpenAI defines them;
/// over new tokens), temperature, top-k, top-p (Holtzman et al., arXiv:1904.09751), min-p (Nguyen et al.,
/// arXiv:2407.01082), a draw.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the best token always.
    pub temperature: f32,
    /// Only the `k` best tokens stay; `None`: all.
    pub top_k: Option<usize>,
    /// Only the fewest best tokens whose probabilities reach this sum stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the best stay; 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens already seen are divided by it, negative ones multiplied; 1 does nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token already generated.
    pub presence_penalty: f32,
    /// Taken from the logit of every token as often as it was generated.
    pub frequency_penalty: f32,
    /// Where the random numbers (ChaCha with 8 rounds) start.
    pub seed: u64,
}

impl Sampling {
    /// Always the best token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };

    /// Draws from all tokens by their probabilities at `temperature`, from random numbers that start at `seed`.
    #[must_use]
    pub const fn drawn(temperature: f32, seed: u64) -> Self {
        Self { temperature, seed, ..Self::GREEDY }
    }

    /// Checks that every value lies where it has a meaning.
    ///
    /// # Errors
    /// One does not; the message names it.
    pub fn check(&self) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, self.temperature >= 0.0, "zero or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0"),
            ("presence_penalty", self.presence_penalty, true, "a number"),
            ("frequency_penalty", self.frequency_penalty, true, "a number"),
        ];
        for (name, value, ok, want) in checks {
            if !(ok && value.is_finite()) {
                return Err(Error::Request(format!("{name} is {value}; it must be {want}")));
            }
        }
        if self.top_k == Some(0) {
            return Err(Error::Request("top_k is 0; it must be 1 or more".to_owned()));
        }
        Ok(())
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// How often each token was seen: in prompt and text, and in the text alone.
    seen: HashMap<u32, (u32, u32)>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&sampling.seed.to_le_bytes());
        let mut sampler = Self { sampling, rng: ChaCha8Rng::from_seed(key), seen: HashMap::new() };
        for token in prompt {
            sampler.seen.entry(*token).or_default().0 += 1;
        }
        sampler
    }

    /// The next token, given its logits `[vocab]`, which the penalties change.
    pub(crate) fn next(&mut self, logits: &mut [f32]) -> u32 {
        self.penalise(logits);
        let token = if self.sampling.temperature == 0.0 { best(logits) } else { self.draw(logits) };
        let counts = self.seen.entry(token).or_default();
        *counts = (counts.0 + 1, counts.1 + 1);
        token
    }

    fn penalise(&self, logits: &mut [f32]) {
        let s = &self.sampling;
        if (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) == (1.0, 0.0, 0.0) {
            return;
        }
        for (token, (_, generated)) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            if *generated > 0 {
                *logit -= s.presence_penalty + s.frequency_penalty * *generated as f32;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let s = &self.sampling;
        // Best first, ties in the order of the ids, so that every filter keeps a prefix.
        let mut ranked: Vec<(u32, f32)> = (0..)
            .zip(logits.iter().map(|logit| logit / s.temperature))
            .filter(|(_, l)| !l.is_nan())
            .collect();
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = s.top_k.filter(|k| *k < ranked.len()) {
            ranked.select_nth_unstable_by(k - 1, order);
            ranked.truncate(k);
        }
        ranked.sort_unstable_by(order);
        let Some(&(first, max)) = ranked.first() else { return 0 };
        if !max.is_finite() {
            return first;
        }
        let weight = |logit: f32| f64::from(logit - max).exp();
        let total: f64 = ranked.iter().map(|(_, logit)| weight(*logit)).sum();
        let mut sum = 0.0;
        let nucleus = ranked
            .iter()
            .take_while(|(_, logit)| {
                let wanted = sum < f64::from(s.top_p) * total;
                sum += weight(*logit);
                wanted
            })
            .count();
        ranked.truncate(nucleus.max(1));
        let likely = ranked.iter().take_while(|(_, logit)| weight(*logit) >= f64::from(s.min_p)).count();
        ranked.truncate(likely.max(1));

        let total: f64 = ranked.iter().map(|(_, logit)| weight(*logit)).sum();
        // 53 random bits: a uniform f64 in [0, 1).
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * total;
        for (token, logit) in &ranked {
            left -= weight(*logit);
            if left < 0.0 {
                return *token;
            }
        }
        ranked.last().map_or(first, |(token, _)| *token)
    }
}

/// The first of the highest logits; NaN is below everything.
fn best(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        change(&mut sampling);
        sampling
    }

    /// Which tokens ever come up in many draws.
    fn support(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
        let mut seen = vec![false; logits.len()];
        for seed in 0..2000 {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }, &[]);
            seen[sampler.next(&mut logits.to_vec()) as usize] = true;
        }
        (0..).zip(seen).filter_map(|(token, seen)| seen.then_some(token)).collect()
    }

    /// Probabilities 0.1, 0.4, 0.2, 0.3.
    fn four() -> Vec<f32> {
        [0.1_f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn filters_keep_what_they_should() {
        assert_eq!(support(&sampling(|_| ()), &four()), [0, 1, 2, 3]);
        assert_eq!(support(&sampling(|s| s.top_k = Some(2)), &four()), [1, 3]);
        assert_eq!(support(&sampling(|s| s.top_p = 0.65), &four()), [1, 3]);
        assert_eq!(support(&sampling(|s| s.top_p = 0.75), &four()), [1, 2, 3]);
        assert_eq!(support(&sampling(|s| s.top_p = 1e-9), &four()), [1]);
        assert_eq!(support(&sampling(|s| s.min_p = 0.6), &four()), [1, 3]);
        assert_eq!(support(&sampling(|s| s.min_p = 1.0), &four()), [1]);
        // top-k first: of 0.4 and 0.3 the nucleus of 0.5 is the first alone (0.4 / 0.7 > 0.5).
        assert_eq!(support(&sampling(|s| (s.top_k, s.top_p) = (Some(2), 0.5)), &four()), [1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut sampler = Sampler::new(sampling(|s| s.seed = 7), &[]);
        let mut counts = [0; 4];
        for _ in 0..20_000 {
            counts[sampler.next(&mut four()) as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.1, 0.4, 0.2, 0.3]) {
            assert!((f64::from(count) / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn penalties() {
        let next = |sampling: Sampling, prompt: &[u32], logits: &[f32]| {
            Sampler::new(sampling, prompt).next(&mut logits.to_vec())
        };
        let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        assert_eq!(next(repetition.clone(), &[0], &[3.0, 2.0]), 1);
        assert_eq!(next(repetition, &[0], &[-1.0, -1.5]), 1);
        // Presence and frequency look at new tokens only.
        let presence = Sampling { presence_penalty: 1.5, ..Sampling::GREEDY };
        assert_eq!(next(presence.clone(), &[0], &[3.0, 2.0]), 0);
        let mut sampler = Sampler::new(presence, &[]);
        let tokens: Vec<_> = (0..4).map(|_| sampler.next(&mut [3.0, 2.0])).collect();
        assert_eq!(tokens, [0, 1, 0, 0]);
        let mut sampler = Sampler::new(Sampling { frequency_penalty: 0.6, ..Sampling::GREEDY }, &[]);
        let tokens: Vec<_> = (0..5).map(|_| sampler.next(&mut [3.0, 2.0])).collect();
        assert_eq!(tokens, [0, 0, 1, 0, 1]);
    }

    #[test]
    fn ties_and_strange_numbers() {
        assert_eq!(best(&[1.0, 2.0, 2.0]), 1);
        assert_eq!(best(&[f32::NAN, -1.0]), 1);
        assert_eq!(best(&[f32::NAN]), 0);
        for logits in [[f32::NAN; 2], [f32::INFINITY; 2], [f32::NEG_INFINITY; 2]] {
            assert_eq!(Sampler::new(sampling(|_| ()), &[]).next(&mut logits.to_vec()), 0);
        }
    }

    #[test]
    fn senseless_values_are_refused() {
        for change in [
            (|s: &mut Sampling| s.temperature = -1.0) as fn(&mut Sampling),
            |s| s.temperature = f32::NAN,
            |s| s.top_p = 0.0,
            |s| s.top_p = 1.5,
            |s| s.min_p = -0.1,
            |s| s.repetition_penalty = 0.0,
            |s| s.presence_penalty = f32::INFINITY,
            |s| s.top_k = Some(0),
        ] {
            assert!(sampling(change).check().is_err());
        }
        assert!(Sampling::GREEDY.check().is_ok());
    }

    proptest! {
        #[test]
        fn a_seed_is_a_text(seed: u64, logits in prop::collection::vec(-5.0_f32..5.0, 1..40)) {
            let run = || {
                let mut sampler = Sampler::new(sampling(|s| (s.seed, s.top_p) = (seed, 0.9)), &[]);
                (0..8).map(|_| sampler.next(&mut logits.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }
}
