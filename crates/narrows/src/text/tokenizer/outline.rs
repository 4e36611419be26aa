//! What can be known of a tokenizer without making it: the ids of its special tokens.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use narrows_shard::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::AddedToken;

use super::class::Class;
use super::sidecars::{Sidecars, added_token};
use super::{batches, check_padding, is_byte_level};
use crate::error::{Error, Result};
use crate::json;
use crate::text::family::{Family, Format};

/// What a walk over tokenizer.json finds, in little memory.
#[derive(Debug, Default)]
pub(in crate::text) struct Outline {
    added: Vec<(u64, AddedToken)>,
    truncation: Value,
    padding: Value,
    /// Words of the vocabulary, and the bytes that they take.
    words: usize,
    word_bytes: usize,
    /// Of a list of words and scores: hashes of all that words begin with, for each of which there is a branch.
    branches: HashSet<u64>,
    merges: usize,
    merge_bytes: usize,
    is_list: bool,
    /// Ids of those words that were asked for.
    found: BTreeMap<String, u32>,
}

impl Outline {
    /// Walks over a tokenizer.json and looks up the words that are `wanted`.
    fn read(path: &Path, bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let mut outline = Self::default();
        Walk { outline: &mut outline, wanted }
            .deserialize(&mut serde_json::Deserializer::from_slice(bytes))
            .map_err(|e| Error::invalid(path, format!("not a tokenizer: {e}")))?;
        Ok(outline)
    }

    /// What the tokenizer of these bytes takes in memory at most, while it is read and after: about 25 bytes for each of
    /// a compact file.
    ///
    /// # Errors
    /// The file is malformed.
    pub(in crate::text) fn memory(path: &Path, bytes: &[u8]) -> Result<Bytes> {
        let outline = Self::read(path, bytes, &|_| false)?;
        Ok(Bytes((bytes.len() + outline.tables()) as u64))
    }

    /// Bytes of the tables that a tokenizer is made of (hashbrown: a power of two of places, of which seven eighths
    /// are used, with a byte each besides what they hold), of the texts in them, and of what is in memory beside
    /// them while they are made.
    fn tables(&self) -> usize {
        const BASE: usize = 1 << 20;
        let table = |n: usize, entry: usize| (n * 8 / 7 + 1).next_power_of_two() * (entry + 1);
        // An allocation takes 16 bytes besides what it holds, in steps of 16, and 32 at least.
        let texts = |n: usize, bytes: usize| n * 24 + bytes;
        let added: usize = self.added.iter().map(|(_, token)| 400 + 40 * token.content.len()).sum();
        let words = texts(self.words, self.word_bytes);
        let model = if self.is_list {
            // The list, the ids by word, and a tree with a table in every branch.
            self.words * 64 + table(self.words, 32) + 2 * words + self.branches.len() * 330
        } else {
            // Ids by word and words by id; while a table grows the one before is there, too.
            let merged = table(self.merges, 16);
            let pairs = self.merges.next_power_of_two() * 48 + texts(2 * self.merges, self.merge_bytes);
            2 * table(self.words, 32) + 2 * words + merged + pairs.max(table(self.words, 32) / 2)
        };
        BASE + model + added
    }

    /// The tokens that end a text or a turn, as the tokenizer itself would give them; `None` where there is no
    /// tokenizer.json.
    ///
    /// # Errors
    /// A file is malformed.
    pub(in crate::text) fn stop_tokens(dir: &Path) -> Result<Option<Vec<u32>>> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = json::read_optional(&path)? else { return Ok(None) };
        let sidecars = Sidecars::read(dir)?;
        // The first walk finds the tokens, which depend on the class, which depends on the file; the second finds
        // their ids in the vocabulary.
        let first = Self::read(&path, &bytes, &|_| false)?;
        let class = Class::of(&sidecars, is_byte_level(&bytes));
        let pad = check_padding(&first.truncation, &first.padding)
            .map_err(|e| Error::invalid(&path, format!("not a tokenizer: {e}")))?;
        let specials = sidecars.special_tokens(class, &first.added, pad.as_deref(), &[]);
        let eos = specials.text("eos_token").filter(|text| !text.is_empty()).map(str::to_owned);
        let family = Family::of(&sidecars, Format::Json, dir)?;
        let stops = family.as_ref().map_or(&[][..], Family::stops);
        let mut wanted: Vec<&str> = eos.iter().map(String::as_str).collect();
        wanted.extend(stops);
        if wanted.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let batches = batches(class, &specials, first.added);
        let texts: std::collections::BTreeSet<_> =
            batches.iter().flatten().map(|token| token.content.as_str()).collect();
        let second = Self::read(&path, &bytes, &|word| wanted.contains(&word) || texts.contains(word))?;
        let ids = second.ids(&batches);
        let mut found = Vec::new();
        for id in wanted.iter().filter_map(|text| ids.get(*text)) {
            if !found.contains(id) {
                found.push(*id);
            }
        }
        Ok(Some(found))
    }

    /// The ids that tokens get when they are added batch by batch (`added_vocabulary.rs`, `add_tokens`).
    fn ids(self, batches: &[Vec<AddedToken>]) -> BTreeMap<String, u32> {
        let words = u32::try_from(self.words).unwrap_or(u32::MAX);
        let mut ids = self.found;
        let mut last = None;
        for batch in batches {
            let mut next = match last {
                Some(last) if last >= words || words == 0 => u32::saturating_add(last, 1),
                _ => words,
            };
            for token in batch.iter().filter(|token| !token.content.is_empty()) {
                let id = *ids.entry(token.content.clone()).or_insert_with(|| {
                    next = next.saturating_add(1);
                    next - 1
                });
                last = last.max(Some(id));
            }
        }
        ids
    }
}

struct Walk<'a> {
    outline: &'a mut Outline,
    wanted: &'a dyn Fn(&str) -> bool,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "truncation" => self.outline.truncation = map.next_value()?,
                "padding" => self.outline.padding = map.next_value()?,
                "added_tokens" => {
                    let list: Option<Vec<Value>> = map.next_value()?;
                    let token = |value: Value| Some((value.get("id")?.as_u64()?, added_token(&value, None)?));
                    let tokens = list.unwrap_or_default().into_iter().map(token);
                    let tokens = tokens.collect::<Option<_>>();
                    self.outline.added =
                        tokens.ok_or_else(|| A::Error::custom("a token without id or content"))?;
                }
                "model" => map.next_value_seed(Model(&mut *self.outline, self.wanted))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct Model<'a>(&'a mut Outline, &'a dyn Fn(&str) -> bool);

impl<'de> DeserializeSeed<'de> for Model<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Model<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "vocab" => map.next_value_seed(Words(&mut *self.0, self.1))?,
                "merges" => map.next_value_seed(Pairs(&mut *self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A vocabulary: an object of ids by word, or a list of words and scores.
struct Words<'a>(&'a mut Outline, &'a dyn Fn(&str) -> bool);

impl Words<'_> {
    fn word(&mut self, word: String, id: u32) {
        let outline = &mut *self.0;
        outline.words += 1;
        outline.word_bytes += word.len();
        if outline.is_list {
            // FNV-1a.
            let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            let mut hash = 0xcbf2_9ce4_8422_2325;
            for byte in word.bytes() {
                hash = step(hash, byte);
                outline.branches.insert(hash);
            }
        }
        if (self.1)(&word) {
            self.0.found.insert(word, id);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Words<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Words<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<(), A::Error> {
        self.0.words = 0;
        while let Some((word, id)) = map.next_entry()? {
            self.word(word, id);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        (self.0.words, self.0.is_list) = (0, true);
        while let Some((word, _)) = list.next_element::<(String, IgnoredAny)>()? {
            let id = u32::try_from(self.0.words).unwrap_or(u32::MAX);
            self.word(word, id);
        }
        Ok(())
    }
}

/// Merges, which are counted.
struct Pairs<'a>(&'a mut Outline);

impl<'de> DeserializeSeed<'de> for Pairs<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        let list = Option::<Vec<Merge>>::deserialize(deserializer)?.unwrap_or_default();
        self.0.merges = list.len();
        self.0.merge_bytes = list.iter().map(|Merge(bytes)| *bytes as usize).sum();
        Ok(())
    }
}

/// Bytes of one merge.
struct Merge(u32);

impl<'de> serde::Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Length;
        impl<'de> Visitor<'de> for Length {
            type Value = Merge;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a merge")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                Ok(Merge(u32::try_from(text.len()).unwrap_or(u32::MAX)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Merge, A::Error> {
                let mut bytes = 0_u32;
                while let Some(Merge(part)) = list.next_element()? {
                    bytes = bytes.saturating_add(part);
                }
                Ok(Merge(bytes))
            }
        }
        deserializer.deserialize_any(Length)
    }
}
