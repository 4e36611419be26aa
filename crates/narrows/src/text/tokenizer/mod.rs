//! A tokenizer as Hugging Face transformers 5 makes it: tokenizer.json alone is not it.
//!
//! `AutoTokenizer` builds it from tokenizer.json, tokenizer_config.json, added_tokens.json and
//! special_tokens_map.json. Truncation and padding are off, and so is dropout; tokens that only the other files
//! know are added; some classes make parts anew (`class.rs`).

mod class;
mod guard;
mod merge;
mod model;
mod outline;
mod parts;
mod pattern;
mod pieces;
mod ranks;
mod sentencepiece;
mod sidecars;
mod table;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper, TokenizerImpl};

pub(super) use self::guard::guarded;
pub(super) use self::outline::Outline;
pub(super) use self::sidecars::Sidecars;
pub(super) use self::table::TableFile;

use self::class::{Class, Parts};
use self::model::Model;
use self::parts::{Decoder, Normalizer, PreTokenizer};
use self::sidecars::{SpecialTokens, added_token};
use super::family::{Family, Format};
use crate::error::{Error, Result};

type Failed = tokenizers::Error;
type Inner = TokenizerImpl<Model, Normalizer, PreTokenizer, PostProcessorWrapper, Decoder>;

/// Bytes of tokenizer.json for anything but the model and its added tokens.
const MAX_PART_BYTES: usize = 8 << 20;
/// Bytes of a prefix or suffix that a model puts on its words.
const MAX_AFFIX_BYTES: usize = 256;
/// Positions that a tokenizer.json may pad to, although it is not done.
const MAX_PADDING: u64 = 1 << 24;

/// Words whose tokens a model of byte pairs remembers: half a MiB of common ones, where the crate's own 10,000 would be
/// more than what [`Outline::memory`] sets aside for what grows with use.
const CACHED_WORDS: usize = 1 << 11;

/// A tokenizer and its special tokens.
#[derive(Debug)]
pub(super) struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    specials: Vec<(String, String)>,
    clean_up: bool,
    family: Option<Family>,
}

impl Tokenizer {
    /// Reads what makes a tokenizer in a model directory, where `bytes` is what its tokenizer.json holds.
    ///
    /// # Errors
    /// A file is malformed.
    pub(super) fn read(dir: &Path, path: PathBuf, bytes: &[u8]) -> Result<Self> {
        let sidecars = Sidecars::read(dir)?;
        let made = guarded(|| make(bytes, &sidecars)).and_then(|made| made);
        let (inner, specials) = made.map_err(|e| Error::invalid(&path, format!("not a tokenizer: {e}")))?;
        let is_bpe =
            matches!(inner.get_model(), Model::Crate(model) if matches!(**model, ModelWrapper::BPE(_)));
        let family = Family::of(&sidecars, Format::Json, dir)?;
        Ok(Self::new(path, inner, &specials, &sidecars, is_bpe, family))
    }

    fn new(
        path: PathBuf,
        inner: Inner,
        specials: &SpecialTokens,
        sidecars: &Sidecars,
        is_bpe: bool,
        family: Option<Family>,
    ) -> Self {
        // Of byte pairs transformers cleans up nothing, unless forced to.
        let force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
        let flag = |key| sidecars.flag(key).flatten().unwrap_or(false);
        let clean_up = flag("clean_up_tokenization_spaces") && (!is_bpe || flag(force));
        let specials = specials.named.iter().map(|(name, token)| (name.clone(), token.text().to_owned()));
        Self { path, specials: specials.collect(), inner, clean_up, family }
    }

    /// Named special tokens, such as `bos_token`, and their texts.
    pub(super) fn special_tokens(&self) -> &[(String, String)] {
        &self.specials
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The family whose code the tokenizer comes from, if it is one of those whose files do not say it all.
    pub(super) const fn family(&self) -> Option<&Family> {
        self.family.as_ref()
    }

    /// Token ids of a text, with what comes around it if `special_tokens`.
    pub(super) fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        Normalizer::take_refusal();
        let encoding = guarded(|| self.inner.encode_fast(text, special_tokens)).and_then(|made| made);
        let encoding = match Normalizer::take_refusal() {
            Some(why) => Err(why.into()),
            None => encoding,
        };
        let encoding = encoding
            .map_err(|e| Error::invalid(&self.path, format!("the tokenizer cannot encode the text: {e}")))?;
        Ok(encoding.get_ids().to_owned())
    }

    /// The text of token ids without special tokens.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Model::Table(table, _) = self.inner.get_model() {
            let text = self.join(table, ids);
            return Ok(if self.clean_up { clean_up(&text) } else { text });
        }
        let text = guarded(|| self.inner.decode(ids, true)).and_then(|text| text);
        let text = text.map_err(|e| {
            Error::invalid(&self.path, format!("the tokenizer cannot decode its tokens: {e}"))
        })?;
        Ok(if self.clean_up { clean_up(&text) } else { text })
    }

    /// The text of tokens of a table, and of what was added to it.
    fn join(&self, table: &model::Table, ids: &[u32]) -> String {
        let added = self.inner.get_added_vocabulary();
        let (mut text, mut run) = (String::new(), Vec::new());
        for id in ids {
            match added.get_added_tokens_decoder().get(id) {
                None => run.push(*id),
                Some(token) if added.is_special_token(&token.content) => {}
                Some(token) => {
                    text += &table.join(&std::mem::take(&mut run));
                    text += &token.content;
                }
            }
        }
        text + &table.join(&run)
    }
}

/// `clean_up_tokenization` of transformers.
fn clean_up(text: &str) -> String {
    const SPACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    SPACED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

type Raw<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn make(bytes: &[u8], sidecars: &Sidecars) -> std::result::Result<(Inner, SpecialTokens), Failed> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    let raw: Raw<'_> = serde_json::from_str(text)?;
    let version = part(&raw, "version")?;
    if !version.is_null() && version.as_str() != Some("1.0") {
        return Err("of an unknown version".into());
    }
    let pad = check_padding(&part(&raw, "truncation")?, &part(&raw, "padding")?)?;
    let class = Class::of(sidecars, is_byte_level(bytes));
    let file = added_tokens(raw.get("added_tokens").map_or("[]", |raw| raw.get()))?;
    let specials = sidecars.special_tokens(class, &file, pad.as_deref(), &[]);
    let parts = class.parts(sidecars, specials.text("unk_token"));
    let model = raw.get("model").ok_or("there is no model")?.get();
    let mut made = TokenizerImpl::new(Model::Crate(Box::new(crate_model(model, parts.as_ref())?)));
    let (normalizer, pre_tokenizer, decoder) = match parts {
        Some(Parts { normalizer, pre_tokenizer, decoder, .. }) => (normalizer, pre_tokenizer, decoder),
        None => (part(&raw, "normalizer")?, part(&raw, "pre_tokenizer")?, part(&raw, "decoder")?),
    };
    made.with_normalizer(Normalizer::new(normalizer)?)?;
    made.with_pre_tokenizer(PreTokenizer::new(pre_tokenizer)?);
    made.with_decoder(Decoder::new(decoder)?);
    for batch in batches(class, &specials, file) {
        made.add_tokens(batch)?;
    }
    let post_processor = match class.begins_with_bos() {
        Some(begins) => {
            let bos = begins.then(|| specials.text("bos_token")).flatten();
            around(bos.as_slice(), None, &made)?
        }
        None => part(&raw, "post_processor")?,
    };
    parts::check_post_processor(&post_processor)?;
    if !post_processor.is_null() {
        made.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(post_processor)?));
    }
    made.set_encode_special_tokens(sidecars.flag("split_special_tokens").flatten().unwrap_or(false));
    Ok((made, specials))
}

/// Whether a tokenizer.json says `"ByteLevel"` anywhere, which is all that transformers looks for.
fn is_byte_level(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"\"ByteLevel\"")
}

/// The tokens that are added to a model, in the order in which they are.
fn batches(class: Class, specials: &SpecialTokens, file: Vec<(u64, AddedToken)>) -> Vec<Vec<AddedToken>> {
    let file: Vec<_> = if class == Class::Backend {
        file.into_iter().map(|(_, token)| token).collect()
    } else {
        // These classes take the vocabulary and merges of the file, and nothing else.
        Vec::new()
    };
    let there: Vec<_> = file.iter().map(|token| token.content.as_str()).collect();
    let mut batches = vec![specials.additions(&there)];
    batches.insert(0, file);
    match class {
        Class::Qwen2 => {
            let again = specials.texts().into_iter().map(|text| AddedToken::from(text, true));
            batches.push(again.collect());
        }
        class if class.adds_specials_again() => batches.push(specials.as_added()),
        _ => {}
    }
    batches
}

/// A template with tokens before and behind a text.
fn around(before: &[&str], behind: Option<&str>, made: &Inner) -> std::result::Result<Value, Failed> {
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let other = serde_json::json!({"Sequence": {"id": "B", "type_id": 1}});
    let mut specials = serde_json::Map::new();
    let mut special = |token: &str| {
        let id = made.token_to_id(token).ok_or_else(|| format!("the special token {token:?} has no id"))?;
        let definition = serde_json::json!({"id": token, "ids": [id], "tokens": [token]});
        specials.insert(token.to_owned(), definition);
        Ok::<_, Failed>(serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    let mut single = before.iter().map(|token| special(token)).collect::<std::result::Result<Vec<_>, _>>()?;
    single.push(text.clone());
    single.extend(behind.map(special).transpose()?);
    let pair = [text, other];
    Ok(
        serde_json::json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}),
    )
}

/// A part of tokenizer.json; null where it is not there.
fn part(raw: &Raw<'_>, key: &str) -> std::result::Result<Value, Failed> {
    let Some(part) = raw.get(key) else { return Ok(Value::Null) };
    if part.get().len() > MAX_PART_BYTES {
        return Err(format!("{key} has {} bytes", part.get().len()).into());
    }
    serde_json::from_str(part.get()).map_err(|e| format!("{key}: {e}").into())
}

/// The token that a tokenizer.json pads with, which transformers takes for the `pad_token` where nothing else says.
fn check_padding(truncation: &Value, padding: &Value) -> std::result::Result<Option<String>, Failed> {
    let number = |part: &Value, key| part.get(key).and_then(Value::as_u64).unwrap_or(0);
    if !truncation.is_null() && number(truncation, "stride") >= number(truncation, "max_length").max(1) {
        return Err("truncation: stride is not smaller than max_length".into());
    }
    if padding.is_null() {
        return Ok(None);
    }
    let length = padding.get("strategy").map_or(0, |strategy| number(strategy, "Fixed"));
    if length.max(number(padding, "pad_to_multiple_of")) > MAX_PADDING {
        return Err(format!("padding: more than {MAX_PADDING} positions").into());
    }
    Ok(padding.get("pad_token").and_then(Value::as_str).map(str::to_owned))
}

fn added_tokens(raw: &str) -> std::result::Result<Vec<(u64, AddedToken)>, Failed> {
    let list: Option<Vec<Value>> = serde_json::from_str(raw).map_err(|e| format!("added_tokens: {e}"))?;
    let token = |value: Value| {
        let id = value.get("id").and_then(Value::as_u64)?;
        Some((id, added_token(&value, None)?))
    };
    list.unwrap_or_default()
        .into_iter()
        .map(|value| token(value).ok_or_else(|| "added_tokens: a token without id or content".into()))
        .collect()
}

/// The model, with what a class makes anew of it.
fn crate_model(raw: &str, parts: Option<&Parts>) -> std::result::Result<ModelWrapper, Failed> {
    let fields: Raw<'_> = serde_json::from_str(raw).map_err(|e| format!("model: {e}"))?;
    let kind: Option<Cow<'_, str>> =
        fields.get("type").map(|kind| serde_json::from_str(kind.get())).transpose()?;
    for key in ["continuing_subword_prefix", "end_of_word_suffix", "unk_token"] {
        if fields.get(key).is_some_and(|raw| raw.get().len() > MAX_AFFIX_BYTES) {
            return Err(format!("model: {key} is too long").into());
        }
    }
    let kind = match kind.as_deref() {
        _ if parts.is_some() => "BPE",
        Some(kind) => kind,
        // Files from before models had a type.
        None if fields.contains_key("merges") => "BPE",
        None if fields.contains_key("continuing_subword_prefix") => "WordPiece",
        None if fields.get("vocab").is_some_and(|vocab| vocab.get().starts_with('[')) => "Unigram",
        None => "WordLevel",
    };
    Ok(match kind {
        "BPE" => byte_pairs(&fields, parts)?.into(),
        "Unigram" => serde_json::from_str::<Unigram>(raw)?.into(),
        "WordPiece" => serde_json::from_str::<WordPiece>(raw)?.into(),
        "WordLevel" => serde_json::from_str::<WordLevel>(raw)?.into(),
        kind => return Err(format!("model: unknown type {kind:?}").into()),
    })
}

/// A model of byte pairs. Read piece by piece: the crate's own way takes thrice the memory while it reads. Dropout,
/// which is for training, is not read.
fn byte_pairs(fields: &Raw<'_>, parts: Option<&Parts>) -> std::result::Result<BPE, Failed> {
    fn field<'a, T: Deserialize<'a>>(fields: &Raw<'a>, key: &str) -> std::result::Result<Option<T>, Failed> {
        let Some(raw) = fields.get(key) else { return Ok(None) };
        serde_json::from_str::<Option<T>>(raw.get()).map_err(|e| format!("model: {key}: {e}").into())
    }
    let vocab = match fields.get("vocab").filter(|vocab| vocab.get().starts_with('[')) {
        // A class makes byte pairs of a list of words and scores, too.
        Some(list) if parts.is_some() => {
            let list: Vec<(String, f64)> = serde_json::from_str(list.get())?;
            (0..).zip(list).map(|(id, (word, _))| (word, id)).collect()
        }
        _ => field::<Vocab>(fields, "vocab")?.ok_or("model: there is no vocab")?,
    };
    let merges = match field::<Merges>(fields, "merges")? {
        Some(Merges(merges)) => merges,
        None if parts.is_some() => Vec::new(),
        None => return Err("model: there are no merges".into()),
    };
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).cache_capacity(CACHED_WORDS);
    if let Some(parts) = parts {
        builder = builder.fuse_unk(parts.fuse_unk).byte_fallback(parts.byte_fallback);
        if let Some(unk) = &parts.unk_token {
            builder = builder.unk_token(unk.clone());
        }
        return builder.build();
    }
    if let Some(unk) = field(fields, "unk_token")? {
        builder = builder.unk_token(unk);
    }
    if let Some(prefix) = field(fields, "continuing_subword_prefix")? {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = field(fields, "end_of_word_suffix")? {
        builder = builder.end_of_word_suffix(suffix);
    }
    let flag = |key| field(fields, key).map(Option::unwrap_or_default);
    builder
        .fuse_unk(flag("fuse_unk")?)
        .byte_fallback(flag("byte_fallback")?)
        .ignore_merges(flag("ignore_merges")?)
        .build()
}

/// Merges, each a list of two words or both in one string.
struct Merges(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Merges;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Merges, A::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Merge {
                    Pair(String, String),
                    Text(String),
                }
                let mut merges = Vec::new();
                while let Some(merge) = list.next_element()? {
                    match merge {
                        Merge::Pair(a, b) => merges.push((a, b)),
                        Merge::Text(text) if text.starts_with("#version") => {}
                        Merge::Text(text) => match text.split_once(' ') {
                            Some((a, b)) if !b.contains(' ') => merges.push((a.to_owned(), b.to_owned())),
                            _ => return Err(serde::de::Error::custom("a merge is not of two words")),
                        },
                    }
                }
                Ok(Merges(merges))
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}
