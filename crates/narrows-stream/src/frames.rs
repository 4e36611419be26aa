//! Which groups of demanded tiles stay in memory.
//!
//! Routers favour some experts over others for a long time, so what was used most stays: frequency, with the older
//! uses counting less. What was used last (LRU) would be dropped by every rarely used group that comes by. Admission
//! costs nothing, as a group that is not here has to be read anyway; the question is only what goes for it.

use std::collections::BTreeMap;

use crate::Group;

/// After so many passes a use counts half. Shorter forgets what is rare but steady; longer clings to what was used
/// before the subject changed.
const HALF_LIFE: f64 = 64.0;

/// Scores are made smaller when the weight of a use has grown to this.
const LARGEST_USE: f64 = 1e100;

/// The frames and the groups in them.
#[derive(Debug)]
pub(crate) struct Frames {
    /// By frame.
    held: Vec<Option<Group>>,
    /// By group.
    frame: BTreeMap<Group, usize>,
    /// By group: its uses, the older the less.
    score: Vec<f64>,
    /// What a use counts now. It grows instead of all scores shrinking.
    a_use: f64,
}

/// A frame that a group got, and the group that has to leave it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) frame: usize,
    pub(crate) leaves: Option<Group>,
}

impl Frames {
    pub(crate) fn new(groups: usize, frames: usize) -> Self {
        Self { held: vec![None; frames], frame: BTreeMap::new(), score: vec![0.0; groups], a_use: 1.0 }
    }

    /// The frame that a group is in, or on its way to.
    pub(crate) fn of(&self, group: Group) -> Option<usize> {
        self.frame.get(&group).copied()
    }

    /// A group is used.
    pub(crate) fn used(&mut self, group: Group) {
        self.score[group.index()] += self.a_use;
    }

    /// A pass is over: what was used so far counts less.
    pub(crate) fn age(&mut self) {
        self.a_use *= 2f64.powf(HALF_LIFE.recip());
        if self.a_use > LARGEST_USE {
            self.score.iter_mut().for_each(|score| *score /= self.a_use);
            self.a_use = 1.0;
        }
    }

    /// Sorts by use, what is used most first.
    pub(crate) fn sort(&self, groups: &mut [Group]) {
        let score = |group: &Group| self.score[group.index()];
        groups.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    }

    /// How many frames there are.
    pub(crate) const fn count(&self) -> usize {
        self.held.len()
    }

    /// A frame for a group that has none: a free one, or that of the group used least, if that is less than this one,
    /// with so many uses expected, and may leave. None if the group had better pass by.
    pub(crate) fn admit(
        &mut self,
        group: Group,
        expected: f64,
        may_leave: impl Fn(Group) -> bool,
    ) -> Option<Admission> {
        let own = self.score[group.index()] + expected * self.a_use;
        let score = |held: &Option<Group>| held.map_or(f64::NEG_INFINITY, |held| self.score[held.index()]);
        let candidates = self.held.iter().enumerate().filter(|(_, held)| score(held) < own);
        let candidates = candidates.filter(|(_, held)| held.is_none_or(&may_leave));
        let (frame, _) = candidates.min_by(|a, b| score(a.1).total_cmp(&score(b.1)))?;
        let leaves = self.held[frame].replace(group);
        if let Some(leaves) = leaves {
            self.frame.remove(&leaves);
        }
        self.frame.insert(group, frame);
        Some(Admission { frame, leaves })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const A: Group = Group(0);
    const B: Group = Group(1);
    const C: Group = Group(2);

    #[test]
    fn what_is_used_more_stays() {
        let mut frames = Frames::new(3, 1);
        frames.used(A);
        assert_eq!(frames.admit(A, 0.0, |_| true), Some(Admission { frame: 0, leaves: None }));
        frames.used(B);
        assert_eq!(frames.admit(B, 0.0, |_| true), None, "of equals the one that is here");
        frames.used(B);
        assert_eq!(frames.admit(B, 0.0, |_| false), None);
        assert_eq!(frames.admit(B, 0.0, |_| true), Some(Admission { frame: 0, leaves: Some(A) }));
        assert_eq!((frames.of(A), frames.of(B)), (None, Some(0)));
    }

    #[test]
    fn uses_of_long_ago_count_less() {
        let mut frames = Frames::new(3, 2);
        frames.used(A);
        frames.used(A);
        frames.used(B);
        let _ = (frames.admit(A, 0.0, |_| true), frames.admit(B, 0.0, |_| true));
        // Through a rescaling of all scores.
        (0..2 * 64 * 340).for_each(|_| frames.age());
        frames.used(C);
        assert_eq!(frames.admit(C, 0.0, |group| group != A && group != B), None);
        assert_eq!(frames.admit(C, 0.0, |_| true).and_then(|admission| admission.leaves), Some(B));
        assert!(frames.score.iter().all(|score| score.is_finite()));
    }

    /// Draws `k` of `weights` without putting back.
    fn draw(weights: &[f64], k: usize, random: &mut impl FnMut() -> f64) -> Vec<usize> {
        let mut weights = weights.to_vec();
        (0..k)
            .map(|_| {
                let mut x = random() * weights.iter().sum::<f64>();
                let chosen = weights.iter().position(|weight| {
                    x -= weight;
                    x < 0.0
                });
                let chosen = chosen.unwrap_or(0);
                weights[chosen] = 0.0;
                chosen
            })
            .collect()
    }

    /// Hits over those that the best fixed set of groups would have had, known beforehand and there from the start.
    fn hits_over_best(
        layers: usize,
        experts: usize,
        k: usize,
        share: usize,
        zipf: f64,
        passes: usize,
    ) -> f64 {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        // Each layer has favourites of its own.
        let weights: Vec<Vec<f64>> = (0..layers)
            .map(|layer| (0..experts).map(|e| (((e + 3 * layer) % experts + 1) as f64).powf(-zipf)).collect())
            .collect();
        let groups = layers * experts;
        let mut frames = Frames::new(groups, groups / share);
        let (mut hits, mut uses) = (0, HashMap::<Group, usize>::new());
        for _ in 0..passes {
            for (layer, weights) in weights.iter().enumerate() {
                let routed: Vec<_> = draw(weights, k, &mut random)
                    .into_iter()
                    .map(|e| Group((layer * experts + e) as u32))
                    .collect();
                for &group in &routed {
                    frames.used(group);
                    *uses.entry(group).or_default() += 1;
                }
                let mut missed: Vec<_> =
                    routed.iter().copied().filter(|group| frames.of(*group).is_none()).collect();
                hits += routed.len() - missed.len();
                frames.sort(&mut missed);
                for group in missed {
                    let _ = frames.admit(group, 0.0, |held| !routed.contains(&held));
                }
            }
            frames.age();
        }
        let mut uses: Vec<_> = uses.into_values().collect();
        uses.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        hits as f64 / uses.iter().take(groups / share).sum::<usize>() as f64
    }

    #[test]
    fn nearly_as_good_as_the_best_fixed_set() {
        // Mixtral, and as many small experts as newer models have.
        for (layers, experts, k, zipf, passes) in
            [(32, 8, 2, 1.0, 256), (32, 8, 2, 0.7, 512), (4, 8, 2, 1.0, 512), (24, 128, 8, 1.0, 300)]
        {
            let ratio = hits_over_best(layers, experts, k, 4, zipf, passes);
            assert!(ratio >= 0.9, "{layers} layers, {experts} experts, Zipf {zipf}: {ratio}");
        }
    }
}
