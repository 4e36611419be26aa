//! The parts of a tokenizer that change a text, with bounds on how much they may make of it.
//!
//! A file may say "put a hundred letters for each", six times in a row.

use std::cell::Cell;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::pattern::Invert;
use tokenizers::utils::SysRegex;
use tokenizers::{DecoderWrapper, NormalizedString, PreTokenizedString, Result, SplitDelimiterBehavior};

use super::pattern::{BYTE_LEVEL, Cut};
use super::sentencepiece::SentencePiece;

/// Steps of a part at most; the longest known has 15.
const MAX_STEPS: usize = 64;
/// Bytes that a text, or the tokens to decode, may become for each of theirs. Real normalizers at most treble a
/// text, but for rare single characters.
const MAX_GROWTH: usize = 24;
/// Bytes that they may become in any case.
const MIN_ROOM: usize = 4096;

pub(super) fn room(bytes: usize) -> usize {
    bytes.saturating_mul(MAX_GROWTH).saturating_add(MIN_ROOM)
}

/// The steps of a part, where those of a sequence stand in `list`.
fn steps(part: Value, list: &str) -> Result<Vec<Value>> {
    let mut steps = Vec::new();
    let mut rest = vec![part];
    while let Some(part) = rest.pop() {
        if part.is_null() {
            continue;
        }
        if rest.len() + steps.len() >= MAX_STEPS {
            return Err(format!("more than {MAX_STEPS} steps").into());
        }
        match part {
            Value::Object(mut map) if map.get("type").and_then(Value::as_str) == Some("Sequence") => {
                match map.remove(list) {
                    Some(Value::Array(inner)) => rest.extend(inner.into_iter().rev()),
                    _ => return Err(format!("a sequence without {list}").into()),
                }
            }
            step => steps.push(step),
        }
    }
    Ok(steps)
}

/// What a `Replace` looks for and what it puts there.
#[derive(Debug)]
struct Replacement {
    pattern: SysRegex,
    content: usize,
}

impl Replacement {
    /// Of a step; `None` where it replaces nothing.
    fn of(step: &Value) -> Result<Option<Self>> {
        if step.get("type").and_then(Value::as_str) != Some("Replace") {
            return Ok(None);
        }
        let part = |key| step.get("pattern").and_then(|pattern| pattern.get(key)).and_then(Value::as_str);
        let pattern = match (part("String"), part("Regex")) {
            (Some(text), _) => SysRegex::new(&regex::escape(text))?,
            (None, Some(regex)) => SysRegex::new(regex)?,
            (None, None) => return Err("a Replace without a pattern".into()),
        };
        if pattern.find_iter("").next().is_some() {
            return Err("a Replace whose pattern matches nothing, between any two letters".into());
        }
        let content = step.get("content").and_then(Value::as_str).unwrap_or_default().len();
        Ok(Some(Self { pattern, content }))
    }

    /// Bytes that `text` has at most when all is replaced.
    fn grown(&self, text: &str, room: usize) -> usize {
        let bound = text.len().saturating_mul(self.content.max(1));
        if bound <= room {
            return bound;
        }
        text.len().saturating_add(self.pattern.find_iter(text).count().saturating_mul(self.content))
    }
}

pub(super) fn too_much(what: &str) -> tokenizers::Error {
    format!("the {what} makes more than {MAX_GROWTH} bytes of each of a text").into()
}

/// The steps of a normalizer.
#[derive(Debug)]
pub(super) struct Normalizer(Vec<(NormalizerWrapper, Option<Replacement>)>);

impl Normalizer {
    /// From its part of tokenizer.json; `None` where that is null.
    pub(super) fn new(part: Value) -> Result<Option<Self>> {
        if part.is_null() {
            return Ok(None);
        }
        let steps = steps(part, "normalizers")?.into_iter().map(|step| {
            if step.get("type").and_then(Value::as_str) == Some("Precompiled") {
                check_charsmap(step.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default())?;
            }
            let replacement = Replacement::of(&step)?;
            // Borrowed strings inside: only a text can be read, not a value.
            Ok((serde_json::from_str(&step.to_string())?, replacement))
        });
        Ok(Some(Self(steps.collect::<Result<_>>()?)))
    }
}

thread_local! {
    /// Why a normalizer refused a text: the crate drops that error and goes on with half a text.
    static REFUSED: Cell<Option<String>> = const { Cell::new(None) };
}

impl Normalizer {
    /// Why a normalizer on this thread refused a text since this was last asked.
    pub(super) fn take_refusal() -> Option<String> {
        REFUSED.take()
    }

    fn apply(&self, text: &mut NormalizedString) -> Result<()> {
        let room = room(text.get().len());
        for (step, replacement) in &self.0 {
            if replacement.as_ref().is_some_and(|r| r.grown(text.get(), room) > room) {
                return Err(too_much("normalizer"));
            }
            tokenizers::Normalizer::normalize(step, text)?;
            if text.get().len() > room {
                return Err(too_much("normalizer"));
            }
        }
        Ok(())
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        let result = self.apply(text);
        if let Err(e) = &result {
            REFUSED.set(Some(e.to_string()));
        }
        result
    }
}

/// A map of characters of SentencePiece: its trie's size in bytes, the trie, and text.
fn check_charsmap(base64: &str) -> Result<()> {
    // The size stands in the first six characters.
    let mut bits = 0_u64;
    for symbol in base64.bytes().take(6) {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err("precompiled_charsmap is too short".into()),
        };
        bits = bits << 6 | u64::from(value);
    }
    let trie = u64::from((bits >> 4) as u32).swap_bytes() >> 32;
    let there = (base64.len() as u64 / 4 * 3).saturating_sub(4);
    if base64.len() < 6 || trie < 4 || trie > there {
        return Err(format!("precompiled_charsmap has {there} bytes for a trie of {trie}").into());
    }
    Ok(())
}

/// The steps of a pre-tokenizer.
#[derive(Debug)]
pub(super) struct PreTokenizer(Vec<Step>);

#[derive(Debug)]
enum Step {
    Split {
        cut: Cut,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// `ByteLevel` that cuts with its own pattern, and whether it puts a space in front.
    ByteLevel {
        cut: Cut,
        prefix: bool,
    },
    /// What SentencePiece does to a text before it cuts it.
    Pieces {
        model: Arc<SentencePiece>,
        /// Whether a space comes in front of the first part alone.
        first_only: bool,
    },
    Other(PreTokenizerWrapper),
}

impl PreTokenizer {
    /// From its part of tokenizer.json; `None` where that is null.
    pub(super) fn new(part: Value) -> Result<Option<Self>> {
        if part.is_null() {
            return Ok(None);
        }
        let steps = steps(part, "pretokenizers")?.into_iter().map(|step| {
            Ok(match serde_json::from_value(step)? {
                PreTokenizerWrapper::Split(split) => {
                    let cut = match &split.pattern {
                        SplitPattern::String(text) => Cut::new(&regex::escape(text))?,
                        SplitPattern::Regex(regex) => Cut::new(regex)?,
                    };
                    Step::Split { cut, behavior: split.behavior, invert: split.invert }
                }
                PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex => {
                    Step::ByteLevel { cut: Cut::new(BYTE_LEVEL)?, prefix: bytes.add_prefix_space }
                }
                other => Step::Other(other),
            })
        });
        Ok(Some(Self(steps.collect::<Result<_>>()?)))
    }

    /// For text that `model` cuts; `first_only` is whether a space comes in front of the first part alone.
    pub(super) fn pieces(model: Arc<SentencePiece>, first_only: bool) -> Self {
        Self(vec![Step::Pieces { model, first_only }])
    }

    /// One that cuts a text where `pattern` matches.
    pub(super) fn cut(pattern: &str) -> Result<Self> {
        let behavior = SplitDelimiterBehavior::Isolated;
        Ok(Self(vec![Step::Split { cut: Cut::new(pattern)?, behavior, invert: false }]))
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        for step in &self.0 {
            match step {
                Step::Split { cut, behavior, invert: false } => {
                    text.split(|_, piece| piece.split(cut, *behavior))?;
                }
                Step::Split { cut, behavior, invert: true } => {
                    text.split(|_, piece| piece.split(Invert(cut), *behavior))?;
                }
                Step::ByteLevel { cut, prefix } => {
                    text.split(|_, mut piece| {
                        if *prefix && !piece.get().starts_with(' ') {
                            piece.prepend(" ");
                        }
                        piece.split(cut, SplitDelimiterBehavior::Isolated)
                    })?;
                    ByteLevel::new(false, true, false).pre_tokenize(text)?;
                }
                Step::Pieces { model, first_only } => text.split(|part, piece| {
                    let space = part == 0 || !first_only;
                    Ok([NormalizedString::from(model.normalize(piece.get(), space)?)])
                })?,
                Step::Other(step) => step.pre_tokenize(text)?,
            }
        }
        Ok(())
    }
}

/// The steps of a decoder.
#[derive(Debug)]
pub(super) struct Decoder(Vec<(DecoderWrapper, Option<Replacement>)>);

impl Decoder {
    /// From its part of tokenizer.json; `None` where that is null.
    pub(super) fn new(part: Value) -> Result<Option<Self>> {
        if part.is_null() {
            return Ok(None);
        }
        let steps = steps(part, "decoders")?.into_iter().map(|step| {
            let replacement = Replacement::of(&step)?;
            Ok((serde_json::from_value(step)?, replacement))
        });
        Ok(Some(Self(steps.collect::<Result<_>>()?)))
    }
}

impl tokenizers::Decoder for Decoder {
    fn decode_chain(&self, mut tokens: Vec<String>) -> Result<Vec<String>> {
        let size = |tokens: &[String]| tokens.iter().map(String::len).sum::<usize>();
        let room = room(size(&tokens));
        for (step, replacement) in &self.0 {
            if let Some(replacement) = replacement {
                let grown = tokens.iter().map(|token| replacement.grown(token, room));
                if grown.fold(0, usize::saturating_add) > room {
                    return Err(too_much("decoder"));
                }
            }
            tokens = step.decode_chain(tokens)?;
            if size(&tokens) > room {
                return Err(too_much("decoder"));
            }
        }
        Ok(tokens)
    }
}

/// Refuses what comes around a text where it names tokens that it does not define, or repeats without measure.
pub(super) fn check_post_processor(part: &Value) -> Result<()> {
    const MAX_TOKENS: usize = 4096;
    const MAX_TEXTS: usize = 8;
    let (mut tokens, mut texts) = (0, 1);
    for step in steps(part.clone(), "processors")? {
        if step.get("type").and_then(Value::as_str) != Some("TemplateProcessing") {
            continue;
        }
        let specials = step.get("special_tokens");
        let mut sequences = 0;
        for (pieces, counted) in [("single", true), ("pair", false)] {
            for piece in step.get(pieces).and_then(Value::as_array).into_iter().flatten() {
                if let Some(id) = piece.get("SpecialToken").and_then(|piece| piece.get("id")) {
                    let id = id.as_str().unwrap_or_default();
                    let ids =
                        specials.and_then(|specials| specials.get(id)).and_then(|token| token.get("ids"));
                    let Some(ids) = ids.and_then(Value::as_array) else {
                        return Err(format!(
                            "the template names {id:?}, which is not among its special_tokens"
                        )
                        .into());
                    };
                    tokens += ids.len();
                } else if counted {
                    sequences += 1;
                }
            }
        }
        texts *= sequences.max(1);
        if tokens > MAX_TOKENS || texts > MAX_TEXTS {
            return Err("the template repeats itself without measure".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::{Decoder as _, Normalizer as _};

    fn charsmap(text: &str) -> bool {
        check_charsmap(text).is_ok()
    }

    #[test]
    fn maps_of_characters_hold_what_they_promise() {
        for bad in ["", "AAAA", "/////////////w==", "AAAAAAAA"] {
            assert!(!charsmap(bad), "{bad}");
        }
        // A trie of four bytes.
        assert!(charsmap("BAAAAP////8="));
        assert!(!charsmap("CAAAAP////8="));
    }

    #[test]
    fn steps_may_not_multiply_a_text() {
        let replace = |from: &str, n| json!({"type": "Replace", "pattern": {"String": from}, "content": from.repeat(n)});
        let of = |steps: Vec<Value>| {
            Normalizer::new(json!({"type": "Sequence", "normalizers": steps})).unwrap().unwrap()
        };
        let grow = |normalizer: Normalizer, text: &str| {
            let mut text = NormalizedString::from(text);
            normalizer.normalize(&mut text).map(|()| text.get().len())
        };
        assert_eq!(grow(of(vec![replace("a", 100); 2]), "a").ok(), None);
        assert_eq!(grow(of(vec![replace("a", 100)]), "a").unwrap(), 100);
        assert!(grow(of(vec![replace("a", 10_000_000)]), "xaxa").is_err());
        assert_eq!(grow(of(vec![replace("a", 10_000_000)]), "b").unwrap(), 1);
        let decoder = Decoder::new(json!({"type": "Sequence", "decoders": vec![replace(" ", 100); 6]}));
        assert!(decoder.unwrap().unwrap().decode(vec![" ".to_owned()]).is_err());
        assert!(
            Normalizer::new(json!({"type": "Sequence", "normalizers": vec![replace("a", 1); 65]})).is_err()
        );
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for pattern in [json!({"String": ""}), json!({"Regex": ""}), json!({"Regex": "x*"}), json!({})] {
            let step = json!({"type": "Replace", "pattern": pattern, "content": "x"});
            assert!(Normalizer::new(step.clone()).is_err(), "{step}");
            assert!(Decoder::new(step).is_err());
        }
    }

    #[test]
    fn templates_define_what_they_name() {
        let template = |specials: Value, pieces: usize| {
            let piece = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
            json!({"type": "TemplateProcessing", "single": vec![piece; pieces], "pair": [], "special_tokens": specials})
        };
        let specials = json!({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}});
        assert!(check_post_processor(&template(specials.clone(), 1)).is_ok());
        assert!(check_post_processor(&template(json!({}), 1)).is_err());
        assert!(check_post_processor(&template(specials, 100_000)).is_err());
        let a = json!({"Sequence": {"id": "A", "type_id": 0}});
        let twice = json!({"type": "TemplateProcessing", "single": [a, a], "pair": [], "special_tokens": {}});
        let sequence = json!({"type": "Sequence", "processors": vec![twice; 4]});
        assert!(check_post_processor(&sequence).is_err());
    }
}
