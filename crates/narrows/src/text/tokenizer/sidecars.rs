//! The files beside tokenizer.json, merged as Hugging Face transformers 5 merges them
//! (`tokenization_utils_base.py`, `_from_pretrained`, and `tokenization_utils_tokenizers.py`, `__init__`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::Class;
use crate::error::{Error, Result};
use crate::json::{Fields, read_fields};

/// The special tokens that have a name everywhere, in the order in which transformers adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A special token as a file gives it: its text alone, or with the ways in which it is matched.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Text(String),
    Added(AddedToken),
}

impl Token {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Added(token) => &token.content,
        }
    }
}

/// What the small files say about a tokenizer.
#[derive(Debug)]
pub(in crate::text) struct Sidecars {
    /// `model_type` of config.json.
    pub(in crate::text) model_type: Option<String>,
    /// `_name_or_path` of config.json, which many models keep from the one that they were made of.
    pub(in crate::text) trained_as: Option<String>,
    /// The class that tokenizer_config.json, else config.json, names.
    pub(super) declared: Option<String>,
    /// Keys of tokenizer_config.json, with those of special_tokens_map.json over them.
    settings: Map<String, Value>,
    /// Special tokens with a name that only some models have, such as `image_token`.
    own: Vec<(String, Token)>,
    /// `added_tokens_decoder`, or added_tokens.json where there is none, by id.
    added: BTreeMap<u64, AddedToken>,
    /// `add_bos_token` and `add_eos_token`, which transformers reads of a tokenizer without tokenizer.json.
    adds: [Option<bool>; 2],
    /// Whether tokenizer_config.json has `added_tokens_decoder`: the older files are not read then.
    has_decoder: bool,
}

/// Special tokens, named and others, after defaults of the class and what tokenizer.json adds.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// By name, in the order in which they are added.
    pub(super) named: Vec<(String, Token)>,
    extra: Vec<Token>,
    added: Vec<AddedToken>,
}

impl Sidecars {
    pub(in crate::text) fn read(dir: &Path) -> Result<Self> {
        let config = read_fields(&dir.join("config.json"))?;
        let text = |fields: Option<&Fields>, key| Some(fields?.get(key)?.as_str()?.to_owned());
        let path = dir.join("tokenizer_config.json");
        let settings = read_fields(&path)?;
        let declared =
            text(settings.as_ref(), "tokenizer_class").or_else(|| text(config.as_ref(), "tokenizer_class"));
        let adds = |key| Some(is_true(settings.as_ref()?.get(key)?));
        let mut sidecars = Self {
            adds: [adds("add_bos_token"), adds("add_eos_token")],
            model_type: text(config.as_ref(), "model_type"),
            trained_as: text(config.as_ref(), "_name_or_path"),
            declared,
            settings: settings.map(Fields::into_map).unwrap_or_default(),
            own: Vec::new(),
            added: BTreeMap::new(),
            has_decoder: false,
        };
        sidecars.merge(dir, &path)?;
        Ok(sidecars)
    }

    fn merge(&mut self, dir: &Path, path: &Path) -> Result<()> {
        let settings = &mut self.settings;
        for key in ["tokenizer_class", "add_bos_token", "add_eos_token"] {
            settings.shift_remove(key);
        }
        if !settings.get("extra_special_tokens").is_some_and(is_true)
            && let Some(extra) = settings.shift_remove("additional_special_tokens")
        {
            settings.insert("extra_special_tokens".to_owned(), extra);
        }
        self.own = take_own(settings);
        self.has_decoder = settings.contains_key("added_tokens_decoder");
        if self.has_decoder {
            let invalid = || Error::invalid(path, "added_tokens_decoder: not an object of tokens by id");
            let decoder = settings.get("added_tokens_decoder").and_then(Value::as_object);
            for (id, token) in decoder.ok_or_else(invalid)? {
                let id = id.parse().map_err(|_| invalid())?;
                self.added.insert(id, added_token(token, None).ok_or_else(invalid)?);
            }
            return Ok(());
        }
        let map = dir.join("special_tokens_map.json");
        if let Some(map) = read_fields(&map)? {
            for (key, value) in map.into_map() {
                let value = match (key.as_str(), value) {
                    ("extra_special_tokens", Value::Array(more)) => {
                        let mut all = match settings.get("extra_special_tokens") {
                            Some(Value::Array(list)) => list.clone(),
                            _ => Vec::new(),
                        };
                        for token in more {
                            if !all.contains(&token) {
                                all.push(token);
                            }
                        }
                        Value::Array(all)
                    }
                    (_, value) => value,
                };
                settings.insert(key, value);
            }
            let own = take_own(settings);
            // What was there first stays first.
            self.own.splice(0..0, own);
        }
        let path = dir.join("added_tokens.json");
        if let Some(added) = read_fields(&path)? {
            let specials = self.texts_of_specials();
            for (content, id) in added.into_map() {
                let id = id.as_u64().ok_or_else(|| Error::invalid(&path, "not an object of ids by token"))?;
                let special = specials.contains(&content);
                self.added.insert(id, AddedToken::from(content, special));
            }
        }
        Ok(())
    }

    fn texts_of_specials(&self) -> Vec<String> {
        let named = NAMED.iter().filter_map(|key| token(self.settings.get(*key)?));
        named.chain(self.extra()).map(|token| token.text().to_owned()).collect()
    }

    fn extra(&self) -> Vec<Token> {
        let key = if self.settings.contains_key("extra_special_tokens") {
            "extra_special_tokens"
        } else {
            "additional_special_tokens"
        };
        match self.settings.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(token).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether tokenizer_config.json says that a text begins with `bos_token`.
    pub(super) const fn adds_bos(&self) -> Option<bool> {
        self.adds[0]
    }

    /// Whether tokenizer_config.json says that a text ends with `eos_token`.
    pub(super) const fn adds_eos(&self) -> Option<bool> {
        self.adds[1]
    }

    /// Tokens that tokenizer_config.json, else added_tokens.json, adds, by id.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = (&u64, &AddedToken)> {
        self.added.iter()
    }

    /// A flag of tokenizer_config.json; `None` where it is not there, `Some(None)` where it is null.
    pub(super) fn flag(&self, key: &str) -> Option<Option<bool>> {
        self.settings.get(key).map(|value| (!value.is_null()).then(|| is_true(value)))
    }

    /// The special tokens of a tokenizer of `class`, where tokenizer.json has `file` as its added tokens and, where
    /// it pads, pads with `pad`; `defaults` are named ones where no file and no class has another.
    pub(super) fn special_tokens(
        &self,
        class: Class,
        file: &[(u64, AddedToken)],
        pad: Option<&str>,
        defaults: &[(&str, Option<String>)],
    ) -> SpecialTokens {
        let mut added = self.added.clone();
        if !self.has_decoder {
            added.extend(file.iter().cloned());
        }
        let known: BTreeMap<&str, &AddedToken> =
            added.values().map(|token| (token.content.as_str(), token)).collect();
        let mut named = Vec::new();
        for key in NAMED {
            let token = match self.settings.get(key) {
                Some(value) => token(value).map(|token| match known.get(token.text()) {
                    Some(added) => Token::Added((*added).clone()),
                    None => token,
                }),
                None => {
                    let default = || defaults.iter().find(|(name, text)| *name == key && text.is_some());
                    let default = || default().and_then(|(_, text)| text.clone());
                    class.default_token(key).map(str::to_owned).or_else(default).map(Token::Text)
                }
            };
            let padding =
                || (key == "pad_token" && !self.settings.contains_key(key)).then_some(pad).flatten();
            if let Some(token) = token.or_else(|| padding().map(|text| Token::Text(text.to_owned()))) {
                named.push((key.to_owned(), token));
            }
        }
        for (key, token) in class.own_tokens().chain(self.own.iter().cloned()) {
            match named.iter_mut().find(|(name, _)| *name == key) {
                Some((_, old)) => *old = token,
                None => named.push((key, token)),
            }
        }
        let mut extra = self.extra();
        extra.extend(class.extra_tokens());
        SpecialTokens { named, extra, added: added.into_values().collect() }
    }
}

impl SpecialTokens {
    /// The text of the token with this name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(key, _)| key == name).map(|(_, token)| token.text())
    }

    /// The tokens that are added to a tokenizer whose added tokens are `there`, in order.
    pub(super) fn additions(&self, there: &[&str]) -> Vec<AddedToken> {
        let is_named = |text: &str| self.named.iter().any(|(_, token)| token.text() == text);
        let mut all: Vec<AddedToken> = self.added.clone();
        let mut known: std::collections::BTreeSet<&str> = there.iter().copied().collect();
        known.extend(self.added.iter().map(|token| token.content.as_str()));
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if known.insert(token.text()) {
                all.push(match token {
                    Token::Text(text) => AddedToken::from(text.clone(), true),
                    Token::Added(token) => token.clone(),
                });
            }
        }
        for token in &mut all {
            token.special |= is_named(&token.content);
        }
        all
    }

    /// The text of every special token, each once.
    pub(super) fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !texts.contains(&token.text()) {
                texts.push(token.text());
            }
        }
        texts
    }

    /// Every special token with the ways in which it is matched.
    pub(super) fn as_added(&self) -> Vec<AddedToken> {
        let all = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        all.map(|token| match token {
            Token::Text(text) => AddedToken::from(text.clone(), true),
            Token::Added(token) => token.clone(),
        })
        .collect()
    }
}

/// Takes the special tokens with names of their own out of `settings`.
fn take_own(settings: &mut Map<String, Value>) -> Vec<(String, Token)> {
    let keys: Vec<_> = settings
        .iter()
        .filter(|(key, value)| {
            key.ends_with("_token") && !NAMED.contains(&key.as_str()) && token(value).is_some()
        })
        .map(|(key, _)| key.clone())
        .collect();
    let mut own: Vec<_> = keys
        .into_iter()
        .filter_map(|key| Some((key.clone(), token(&settings.shift_remove(&key)?)?)))
        .collect();
    if let Some(Value::Object(more)) = settings.get("extra_special_tokens") {
        own.extend(more.iter().filter_map(|(key, value)| Some((key.clone(), token(value)?))));
        settings.shift_remove("extra_special_tokens");
    }
    own
}

/// A special token; `None` for what is none, such as null.
fn token(value: &Value) -> Option<Token> {
    match value {
        Value::String(text) => Some(Token::Text(text.clone())),
        // Objects that say what they are say all of it.
        Value::Object(object) => {
            let special = (!object.contains_key("__type")).then_some(true);
            added_token(value, special).map(Token::Added)
        }
        _ => None,
    }
}

/// An added token from its object. Those that files call special, or that are so by where they stand (`special`),
/// are not normalised unless the object says so.
pub(super) fn added_token(value: &Value, special: Option<bool>) -> Option<AddedToken> {
    let object = value.as_object()?;
    let flag = |key: &str| object.get(key).and_then(Value::as_bool);
    let special = special.or_else(|| flag("special")).unwrap_or(false);
    let mut token = AddedToken::from(object.get("content")?.as_str()?, special);
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(token.normalized);
    Some(token)
}

/// Whether Python takes a value for true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
