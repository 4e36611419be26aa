//! Byte pair encoding by the score of what a pair becomes, which is how SentencePiece and tiktoken do it: a table of
//! merges, as tokenizer.json has it, is derived from that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol.
const NONE: u32 = u32::MAX;

/// A part of a text that is one symbol so far.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: u32,
    /// Zero once it is part of the symbol before it.
    len: u32,
    prev: u32,
    next: u32,
    /// Whether it stays as it is.
    frozen: bool,
}

/// The symbols of a text.
#[derive(Debug, Default)]
pub(super) struct Symbols(Vec<Symbol>);

/// A pair that may be merged; the greatest is merged next.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    score: u32,
    /// The leftmost of equal ones.
    left: Reverse<u32>,
    right: u32,
    len: u32,
}

impl Symbols {
    /// None yet, with room for `count`.
    pub(super) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Adds the next `len` bytes of the text; `frozen` ones are never merged. False where the text is too long.
    #[must_use]
    pub(super) fn push(&mut self, len: usize, frozen: bool) -> bool {
        let start = self.0.last().map_or(0, |last| last.start as usize + last.len as usize);
        let end = u32::try_from(start + len).ok().filter(|end| *end < NONE);
        let (Ok(start), Some(end)) = (u32::try_from(start), end) else { return false };
        let index = self.0.len() as u32;
        if let Some(last) = self.0.last_mut() {
            last.next = index;
        }
        self.0.push(Symbol { start, len: end - start, prev: index.wrapping_sub(1), next: NONE, frozen });
        true
    }

    /// Merges the pair of the greatest score, the leftmost of equal ones, until there is none left.
    ///
    /// `score(start, middle, end)` is that of the bytes from `start` to `end` of the text, which are a symbol up to
    /// `middle` and one from there; `None` where they are not to be merged.
    pub(super) fn merge(&mut self, mut score: impl FnMut(usize, usize, usize) -> Option<u32>) {
        let mut pairs = BinaryHeap::with_capacity(self.0.len());
        for right in 1..self.0.len() as u32 {
            pairs.extend(self.pair(right - 1, right, &mut score));
        }
        while let Some(Pair { left: Reverse(left), right, len, .. }) = pairs.pop() {
            let (l, r) = (self.0[left as usize], self.0[right as usize]);
            // One of the two has been merged otherwise meanwhile.
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            self.0[left as usize].len = len;
            self.0[left as usize].next = r.next;
            self.0[right as usize].len = 0;
            if let Some(next) = self.0.get_mut(r.next as usize) {
                next.prev = left;
            }
            pairs.extend(self.pair(l.prev, left, &mut score));
            pairs.extend(self.pair(left, r.next, &mut score));
        }
    }

    fn pair(
        &self,
        left: u32,
        right: u32,
        score: &mut impl FnMut(usize, usize, usize) -> Option<u32>,
    ) -> Option<Pair> {
        let (l, r) = (self.0.get(left as usize)?, self.0.get(right as usize)?);
        if l.frozen || r.frozen {
            return None;
        }
        let score = score(l.start as usize, r.start as usize, (r.start + r.len) as usize)?;
        Some(Pair { score, left: Reverse(left), right, len: l.len + r.len })
    }

    /// Where each symbol begins and ends.
    pub(super) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let symbols = self.0.iter().filter(|symbol| symbol.len > 0);
        symbols.map(|symbol| symbol.start as usize..(symbol.start + symbol.len) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What merging one pair at a time gives, with a walk over all symbols for each.
    fn plainly(text: &str, score: impl Fn(&str) -> Option<u32>) -> Vec<String> {
        let mut symbols: Vec<_> = text.chars().map(String::from).collect();
        loop {
            let pairs = symbols.windows(2).enumerate();
            let scored = pairs.filter_map(|(at, pair)| Some((score(&pair.concat())?, Reverse(at))));
            let Some((_, Reverse(at))) = scored.max() else { return symbols };
            let right = symbols.remove(at + 1);
            symbols[at] += &right;
        }
    }

    proptest! {
        #[test]
        fn the_heap_does_what_a_plain_loop_does(
            words in prop::collection::hash_map("[ab\u{e9}]{2,5}", 0u32..6, 0..40),
            text in "[ab\u{e9}]{0,30}",
        ) {
            let score = |word: &str| words.get(word).copied();
            let mut symbols = Symbols::with_capacity(0);
            text.chars().for_each(|c| assert!(symbols.push(c.len_utf8(), false)));
            symbols.merge(|start, middle, end| {
                assert!(start < middle && middle < end);
                score(&text[start..end])
            });
            let got: Vec<_> = symbols.ranges().map(|range| text[range].to_owned()).collect();
            prop_assert_eq!(got, plainly(&text, score));
        }
    }

    #[test]
    fn frozen_symbols_stay() {
        let mut symbols = Symbols::default();
        for frozen in [false, false, true, false, false] {
            assert!(symbols.push(1, frozen));
        }
        symbols.merge(|_, _, _| Some(0));
        assert_eq!(symbols.ranges().collect::<Vec<_>>(), [0..2, 2..3, 3..5]);
    }
}
