//! A SentencePiece model, which cuts text and joins pieces as the package does (`sentencepiece_processor.cc`,
//! `bpe_model.cc`).

mod file;
mod normalizer;
mod unigram;

use narrows_shard::Bytes;

use self::file::{Cutting, File, Kind, Sizes};
use self::normalizer::Normalizer;
use self::unigram::Unigram;
use super::Failed;
use super::merge::Symbols;
use super::pieces::{Pieces, Prefixes};

/// What stands for a space in pieces: U+2581.
const SPACE: &str = "\u{2581}";

/// What an unknown piece is shown as, unless the model says otherwise.
const UNKNOWN: &str = " \u{2047} ";

/// A model, ready to cut and join.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: Pieces,
    kinds: Vec<Kind>,
    scores: Vec<f32>,
    unknown: u32,
    /// The piece of each byte, where text that has none becomes bytes.
    bytes: Option<Box<[u32; 256]>>,
    /// What is cut by probability; by merging pairs where there is none.
    unigram: Option<(Unigram, Prefixes)>,
    user_defined: Prefixes,
    normalizer: Normalizer,
    unknown_surface: String,
    bos: String,
    eos: String,
}

impl SentencePiece {
    /// Reads a model.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Failed> {
        let mut file = File::read(bytes)?;
        let ids = |is: fn(Kind) -> bool| {
            let all = (0..).zip(&file.kinds).filter(|(_, kind)| is(**kind));
            Prefixes::new(&file.pieces, all.map(|(id, _)| id).collect())
        };
        let user_defined = ids(|kind| kind == Kind::UserDefined);
        let unigram = match file.cutting {
            Cutting::Unigram => Some((Unigram::new(&file), ids(Kind::is_text))),
            Cutting::BytePairs => None,
        };
        let normalizer = Normalizer::new(std::mem::take(&mut file.normalizing), &file.trainer)?;
        let text = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        Ok(Self {
            pieces: file.pieces,
            kinds: file.kinds,
            scores: file.scores,
            unknown: file.unknown,
            bytes: file.bytes,
            unigram,
            user_defined,
            normalizer,
            unknown_surface: text(file.trainer.unk_surface, UNKNOWN),
            bos: text(file.trainer.bos_piece, "<s>"),
            eos: text(file.trainer.eos_piece, "</s>"),
        })
    }

    /// What a model takes in memory at most, without its file.
    pub(super) fn memory(bytes: &[u8]) -> Result<Bytes, Failed> {
        Ok(Bytes(Sizes::of(bytes)?.memory() as u64))
    }

    /// Puts no space in front of a text, whatever the model says.
    pub(super) const fn leave_out_prefix(&mut self) {
        self.normalizer.dummy_prefix = false;
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.pieces.get(id)?).ok()
    }

    pub(super) fn find(&self, piece: &str) -> Option<u32> {
        self.pieces.find(piece.as_bytes())
    }

    pub(super) const fn is_unigram(&self) -> bool {
        self.unigram.is_some()
    }

    /// Pieces that no text becomes, such as those that begin and end a text.
    pub(super) fn controls(&self) -> impl Iterator<Item = (u32, &str)> {
        let all = (0..).zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Control);
        all.filter_map(|(id, _)| Some((id, self.piece(id)?)))
    }

    fn control(&self, piece: &str) -> Option<&str> {
        let id = self.find(piece)?;
        (self.kinds[id as usize] == Kind::Control).then(|| self.piece(id)).flatten()
    }

    /// The piece that begins a text.
    pub(super) fn bos(&self) -> Option<&str> {
        self.control(&self.bos)
    }

    /// The piece that ends a text.
    pub(super) fn eos(&self) -> Option<&str> {
        self.control(&self.eos)
    }

    /// The text as [`SentencePiece::cut`] takes it. `space` is whether one may come in front.
    pub(super) fn normalize(&self, text: &str, space: bool) -> Result<String, Failed> {
        self.normalizer.normalize(text, &self.pieces, &self.user_defined, space)
    }

    /// The pieces of a normalised text.
    pub(super) fn cut(&self, text: &str) -> Result<Vec<u32>, Failed> {
        let cut = match &self.unigram {
            _ if u32::try_from(text.len()).is_err() => return Err("the text is too long".into()),
            Some((unigram, prefixes)) => {
                unigram.cut(text, &self.pieces, prefixes, &self.kinds, &self.scores, self.unknown)
            }
            None => self.merged(text)?,
        };
        let mut ids = Vec::with_capacity(cut.len());
        let (mut start, mut after_unknown) = (0, false);
        for (end, id) in cut {
            let is_unknown = id == self.unknown;
            match &self.bytes {
                Some(bytes) if is_unknown => {
                    ids.extend(text[start..end].bytes().map(|byte| bytes[usize::from(byte)]));
                }
                // A run of unknown characters is one piece.
                _ if is_unknown && after_unknown => {}
                _ => ids.push(id),
            }
            (start, after_unknown) = (end, is_unknown);
        }
        Ok(ids)
    }

    /// The pieces of a text whose pairs are merged, as ends and numbers.
    fn merged(&self, text: &str) -> Result<Vec<(usize, u32)>, Failed> {
        let mut symbols = Symbols::with_capacity(text.len() / 2);
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let user_defined = self.user_defined.longest(&self.pieces, rest.as_bytes());
            let len = user_defined.map_or(first.len_utf8(), |(len, _)| len);
            if !symbols.push(len, user_defined.is_some()) {
                return Err("the text is too long".into());
            }
            rest = &rest[len..];
        }
        // Unused pieces are merged further, and taken apart again where they are left: by the piece, where its left half
        // ends. The last pair that was looked at counts, whether it was merged or not.
        let mut halves = std::collections::HashMap::new();
        symbols.merge(|start, middle, end| {
            let id = self.word(&text[start..end])?;
            if self.kinds[id as usize] == Kind::Unused {
                halves.insert(id, middle - start);
            }
            Some(ordered(self.scores[id as usize]))
        });
        let mut cut = Vec::new();
        let mut stack = Vec::new();
        for range in symbols.ranges() {
            stack.push(range);
            while let Some(range) = stack.pop() {
                let id = self.word(&text[range.clone()]);
                let half =
                    id.filter(|id| self.kinds[*id as usize] == Kind::Unused).and_then(|id| halves.get(&id));
                match half {
                    Some(half) => {
                        stack.extend([range.start + half..range.end, range.start..range.start + half]);
                    }
                    None => cut.push((range.end, id.unwrap_or(self.unknown))),
                }
            }
        }
        Ok(cut)
    }

    /// The piece that a text can become.
    fn word(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|id| self.kinds[*id as usize].is_text())
    }

    /// The text of pieces.
    pub(super) fn join(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        // Whether a space in front is to be dropped, and whether one was just now.
        let (mut at_start, mut dropped) = (true, false);
        for &id in ids {
            let (Some(piece), Some(kind)) = (self.piece(id), self.kinds.get(id as usize)) else { continue };
            if *kind == Kind::Byte {
                bytes.extend(u8::from_str_radix(&piece[3..5], 16));
                continue;
            }
            push_bytes(&mut text, &mut bytes);
            at_start &= !dropped && text.is_empty();
            dropped = false;
            match kind {
                Kind::Control => {}
                Kind::Unknown => text.push_str(&self.unknown_surface),
                _ => {
                    let normalizer = &self.normalizer;
                    let drops = at_start && (normalizer.dummy_prefix || normalizer.remove_extra);
                    let rest = drops.then(|| piece.strip_prefix(SPACE)).flatten();
                    // Where extra spaces are removed all in front are.
                    dropped = rest.is_some() && !normalizer.remove_extra;
                    let mut parts = rest.unwrap_or(piece).split(SPACE);
                    text.extend(parts.next());
                    parts.for_each(|part| text.extend([" ", part]));
                }
            }
        }
        push_bytes(&mut text, &mut bytes);
        text
    }
}

/// Appends the text of `bytes`, with U+FFFD for each that is part of no character, and empties them.
fn push_bytes(text: &mut String, bytes: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    bytes.clear();
}

/// A number that is greater where the score is.
fn ordered(score: f32) -> u32 {
    let bits = score.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}
