//! What SentencePiece does to a text before it is cut (`normalizer.cc`).
//!
//! The crate's `Precompiled` is otherwise: it looks at whole graphemes, and takes the shortest rule that matches where
//! SentencePiece takes the longest.

use super::super::Failed;
use super::super::parts::{room, too_much};
use super::super::pieces::{Pieces, Prefixes};
use super::SPACE;
use super::file::{Normalizing, Trainer};

/// Bytes that a rule puts in the place of others, at most; known ones put 33.
const MAX_RULE: usize = 1 << 10;

/// How a text is changed.
#[derive(Debug)]
pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    /// Whether text has a space put in front, or behind.
    pub(super) dummy_prefix: bool,
    suffix: bool,
    pub(super) remove_extra: bool,
    escape: bool,
}

impl Normalizer {
    pub(super) fn new(spec: Normalizing, trainer: &Trainer) -> Result<Self, Failed> {
        let charsmap = spec.precompiled_charsmap.filter(|map| !map.is_empty());
        Ok(Self {
            charsmap: charsmap.map(Charsmap::new).transpose()?,
            dummy_prefix: spec.add_dummy_prefix.unwrap_or(true),
            suffix: trainer.treat_whitespace_as_suffix.unwrap_or(false),
            remove_extra: spec.remove_extra_whitespaces.unwrap_or(true),
            escape: spec.escape_whitespaces.unwrap_or(true),
        })
    }

    /// The text that is cut into pieces. `user_defined` ones stay as they are; `space` is whether one may come in front.
    pub(super) fn normalize(
        &self,
        text: &str,
        pieces: &Pieces,
        user_defined: &Prefixes,
        space: bool,
    ) -> Result<String, Failed> {
        let room = room(text.len());
        let step = |rest: &str| self.step(rest, pieces, user_defined);
        let mut rest = text;
        if self.remove_extra {
            while !rest.is_empty() {
                let (to, len) = step(rest);
                if to.as_str(rest, &self.charsmap) != " " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return Ok(String::new());
        }
        let dummy = self.dummy_prefix && space;
        let space = if self.escape { SPACE } else { " " };
        let mut out = String::with_capacity(text.len() + text.len() / 2);
        if dummy && !self.suffix {
            out.push_str(space);
        }
        let mut after_space = self.remove_extra;
        while !rest.is_empty() {
            let (to, len) = step(rest);
            let mut to = to.as_str(rest, &self.charsmap);
            if after_space {
                to = to.trim_start_matches(' ');
            }
            if !to.is_empty() {
                after_space = self.remove_extra && to.ends_with(' ');
                let mut parts = to.split(' ');
                out.extend(parts.next());
                for part in parts {
                    out.push_str(space);
                    out.push_str(part);
                }
                if out.len() > room {
                    return Err(too_much("normalizer"));
                }
            }
            rest = &rest[len..];
        }
        if self.remove_extra {
            out.truncate(out.trim_end_matches(space).len());
        }
        if dummy && self.suffix {
            out.push_str(space);
        }
        Ok(out)
    }

    /// What the beginning of `rest`, which is not empty, becomes, and how many bytes of it do.
    fn step(&self, rest: &str, pieces: &Pieces, user_defined: &Prefixes) -> (To, usize) {
        if let Some((len, _)) = user_defined.longest(pieces, rest.as_bytes()) {
            return (To::Same(len), len);
        }
        match self.charsmap.as_ref().and_then(|map| map.longest(rest)) {
            Some((len, start, end)) => (To::Mapped(start, end), len),
            None => {
                let len = rest.chars().next().map_or(1, char::len_utf8);
                (To::Same(len), len)
            }
        }
    }
}

/// What a part of a text becomes.
enum To {
    /// Itself, of so many bytes.
    Same(usize),
    /// That range of the texts of the map.
    Mapped(usize, usize),
}

impl To {
    fn as_str<'a>(&self, rest: &'a str, map: &'a Option<Charsmap>) -> &'a str {
        match *self {
            Self::Same(len) => rest.get(..len),
            Self::Mapped(start, end) => map.as_ref().and_then(|map| map.texts.get(start..end)),
        }
        .unwrap_or_default()
    }
}

/// Rules by what they look for, in a double array trie (darts-clone), and the texts that they put there, each up to a
/// zero.
#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    texts: String,
}

impl Charsmap {
    /// From the bytes of a file: the bytes of the trie, the trie, the texts.
    fn new(bytes: Vec<u8>) -> Result<Self, Failed> {
        let (len, rest) = bytes.split_first_chunk().ok_or("precompiled_charsmap is too short")?;
        let len = u32::from_le_bytes(*len) as usize;
        let parts = rest.split_at_checked(len).filter(|_| len >= 4 && len.is_multiple_of(4));
        let (trie, texts) = parts.ok_or_else(|| {
            format!("precompiled_charsmap has {} bytes behind its size, for a trie of {len}", rest.len())
        })?;
        let units = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let texts = std::str::from_utf8(texts).map_err(|_| "precompiled_charsmap: not UTF-8")?;
        Ok(Self { units, texts: texts.to_owned() })
    }

    /// The longest rule that `text` begins with: its bytes, and where its text begins and ends. What leads out of the
    /// trie or the texts is no rule.
    fn longest(&self, text: &str) -> Option<(usize, usize, usize)> {
        const LEAF: u32 = 1 << 31;
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let mut node = offset(*self.units.first()?);
        let mut longest = None;
        for (at, byte) in text.bytes().enumerate() {
            node ^= u32::from(byte);
            let Some(&unit) = self.units.get(node as usize) else { break };
            if unit & (LEAF | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(&leaf) = self.units.get(node as usize) else { break };
                longest = Some((at + 1, (leaf & !LEAF) as usize));
            }
        }
        let (len, start) = longest?;
        // Rules may end within a character: nothing that the package makes does.
        text.get(len..)?;
        let texts = self.texts.as_bytes().get(start..)?;
        let texts = &texts[..texts.len().min(MAX_RULE)];
        let end = start + texts.iter().position(|byte| *byte == 0)?;
        Some((len, start, end))
    }
}
