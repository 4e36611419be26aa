//! Byte strings by number, and numbers by byte string: the vocabulary of a table, in little memory.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Byte strings, each once, numbered in the order in which they came.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest: usize,
}

impl Pieces {
    /// None yet, with room for `count` of `bytes` in all.
    pub(super) fn with_capacity(count: usize, bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(count),
            table: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
            longest: 0,
        }
    }

    /// Bytes that [`Pieces::with_capacity`] takes.
    pub(super) const fn memory(count: usize, bytes: usize) -> usize {
        // A power of two of places, of which seven eighths are used, with a byte each besides the number.
        bytes + count * 4 + (count * 8 / 7 + 1).next_power_of_two() * 5
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The piece of this number.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        (id < self.len()).then(|| piece(&self.bytes, &self.ends, id))
    }

    /// The number of `bytes`, if they are a piece.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let is_it = |id: &u32| piece(&self.bytes, &self.ends, *id as usize) == bytes;
        self.table.find(self.hasher.hash_one(bytes), is_it).copied()
    }

    /// Adds a piece; false if it is there already, or if there is no number for it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let end = u32::try_from(self.bytes.len() + bytes.len());
        let (Ok(id), Ok(end)) = (u32::try_from(self.len()), end) else { return false };
        if self.find(bytes).is_some() {
            return false;
        }
        self.bytes.extend_from_slice(bytes);
        self.ends.push(end);
        self.longest = self.longest.max(bytes.len());
        let Self { bytes: all, ends, table, hasher, .. } = self;
        let hash = |id: &u32| hasher.hash_one(piece(all, ends, *id as usize));
        table.insert_unique(hasher.hash_one(bytes), id, hash);
        true
    }
}

fn piece<'a>(bytes: &'a [u8], ends: &[u32], id: usize) -> &'a [u8] {
    let start = id.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start as usize..ends[id] as usize]
}

/// Some of the pieces, sorted, to find those that a text begins with.
#[derive(Debug)]
pub(super) struct Prefixes {
    sorted: Vec<u32>,
    /// Where those of each first byte begin in `sorted`.
    starts: Box<[u32; 257]>,
}

impl Prefixes {
    /// Those of `ids`, of which none is empty.
    pub(super) fn new(pieces: &Pieces, mut ids: Vec<u32>) -> Self {
        ids.sort_unstable_by_key(|id| pieces.get(*id));
        let first = |id: &u32| pieces.get(*id).and_then(|piece| piece.first().copied()).unwrap_or_default();
        let mut starts = Box::new([0; 257]);
        for (byte, start) in starts.iter_mut().enumerate() {
            *start = ids.partition_point(|id| usize::from(first(id)) < byte) as u32;
        }
        Self { sorted: ids, starts }
    }

    /// Hands the numbers of all that `text` begins with to `each`, with their lengths, shortest first.
    pub(super) fn search(&self, pieces: &Pieces, text: &[u8], mut each: impl FnMut(usize, u32)) {
        let Some(first) = text.first().map(|byte| usize::from(*byte)) else { return };
        let (mut low, mut high) = (self.starts[first] as usize, self.starts[first + 1] as usize);
        let mut len = 1;
        while low < high {
            let inside = &self.sorted[low..high];
            // All of them begin with `len` bytes of the text, so the shortest, which is first, may be just these.
            if pieces.get(inside[0]).is_some_and(|piece| piece.len() == len) {
                each(len, inside[0]);
            }
            let Some(next) = text.get(len) else { return };
            let at = |id: &u32| pieces.get(*id).and_then(|piece| piece.get(len));
            let start = inside.partition_point(|id| at(id) < Some(next));
            let end = start + inside[start..].partition_point(|id| at(id) <= Some(next));
            (low, high) = (low + start, low + end);
            len += 1;
        }
    }

    /// The longest that `text` begins with, and its length.
    pub(super) fn longest(&self, pieces: &Pieces, text: &[u8]) -> Option<(usize, u32)> {
        let mut longest = None;
        self.search(pieces, text, |len, id| longest = Some((len, id)));
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(words: &[&str]) -> Pieces {
        let mut pieces = Pieces::with_capacity(0, 0);
        words.iter().for_each(|word| assert!(pieces.push(word.as_bytes())));
        pieces
    }

    #[test]
    fn each_is_there_once() {
        let mut some = pieces(&["a", "ab", "", "b"]);
        assert!(!some.push(b"ab"));
        assert_eq!((some.len(), some.find(b"ab"), some.find(b"c")), (4, Some(1), None));
        assert_eq!((some.get(2), some.get(3), some.get(4)), (Some(&b""[..]), Some(&b"b"[..]), None));
        assert_eq!(some.find(&[b'a'; 1000]), None);
    }

    proptest! {
        #[test]
        fn prefixes_are_those_that_a_text_begins_with(
            words in prop::collection::hash_set("[ab\u{e9}]{1,5}", 1..30),
            text in "[ab\u{e9}]{0,8}",
        ) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let some = pieces(&words);
            let prefixes = Prefixes::new(&some, (0..words.len() as u32).collect());
            let mut found = Vec::new();
            prefixes.search(&some, text.as_bytes(), |len, id| found.push((len, id)));
            let mut want: Vec<_> = (0..).zip(&words).filter(|(_, word)| text.starts_with(**word))
                .map(|(id, word)| (word.len(), id)).collect();
            want.sort_unstable();
            prop_assert_eq!(prefixes.longest(&some, text.as_bytes()), want.last().copied());
            prop_assert_eq!(found, want);
        }
    }
}
