//! Between text and token ids: the tokenizer, its chat template, and text that leaves token by token.

mod chat;
mod family;
mod stream;
mod template;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use narrows_shard::Bytes;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub(crate) use stream::{StopMatcher, TextStream};

use self::family::Family;
use self::tokenizer::{Outline, TableFile, Tokenizer};
use crate::error::{Error, Result};
use crate::json;

/// From this many bytes on a text takes MiB while it is encoded.
const LONG_TEXT: usize = 8 << 10;

/// Memory that a long text takes while it is encoded, in bytes for each of its own.
const ENCODING: u64 = 256;

/// The tokenizer of a model directory, with its chat template if it has one.
#[derive(Debug)]
pub struct Text {
    dir: PathBuf,
    tokenizer: Tokenizer,
    /// Read when first asked for: only a chat needs it.
    chat: OnceLock<Option<ChatTemplate>>,
    eos_token: Option<u32>,
    memory: Bytes,
}

impl Text {
    /// Reads the tokenizer of a model directory.
    ///
    /// From `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, as Hugging Face
    /// transformers 5 does. Where there is no `tokenizer.json`, from the table that the model was trained with: a
    /// SentencePiece or tiktoken `tokenizer.model`, `qwen.tiktoken` or `tiktoken.model`, with what the tokenizer code of
    /// its family adds to it.
    ///
    /// # Errors
    /// None of them is there (then a model still runs on token ids), or a file is malformed.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let (tokenizer, memory) = if let Some(bytes) = json::read_optional(&path)? {
            let memory = Outline::memory(&path, &bytes)?;
            (Tokenizer::read(dir, path, &bytes)?, memory)
        } else if let Some(table) = TableFile::find(dir)? {
            let memory = table.memory()?;
            (table.tokenizer(dir)?, memory)
        } else {
            let what = match dir.join("tekken.json").exists() {
                true => "not found, only a tekken.json, which is not read",
                false => {
                    "not found, and no tokenizer.model; text needs a tokenizer, token ids (--ids) do not"
                }
            };
            return Err(Error::Missing { path, what: what.to_owned() });
        };
        let eos = tokenizer.special_tokens().iter().find(|(name, _)| name == "eos_token");
        let eos_token = eos.and_then(|(_, text)| tokenizer.token_to_id(text));
        Ok(Self { dir: dir.to_owned(), tokenizer, chat: OnceLock::new(), eos_token, memory })
    }

    /// Whether a model directory has a tokenizer, readable or not.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join("tokenizer.json").exists() || TableFile::is_in(dir)
    }

    /// What it takes in memory at most, while it is read and after.
    #[must_use]
    pub const fn memory(&self) -> Bytes {
        self.memory
    }

    /// [`Text::memory`] of a model directory, before its tokenizer is read; nothing where there is none. It holds the
    /// bytes of the file meanwhile.
    ///
    /// # Errors
    /// The file is malformed.
    pub fn memory_of(dir: &Path) -> Result<Bytes> {
        let path = dir.join("tokenizer.json");
        if let Some(bytes) = json::read_optional(&path)? {
            return Outline::memory(&path, &bytes);
        }
        TableFile::find(dir)?.map_or(Ok(Bytes(0)), |table| table.memory())
    }

    /// The chat template, if the model has one, or one of ours for what the code of its family does
    /// ([`ChatTemplate::own_for`]). It is read when this is first called.
    ///
    /// # Errors
    /// A file that may hold it cannot be read. Whether it parses shows when it is rendered.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        if self.chat.get().is_none() {
            let specials: BTreeMap<_, _> = self.tokenizer.special_tokens().iter().cloned().collect();
            let chat = match ChatTemplate::read(&self.dir, specials.clone())? {
                None => self.own_template(specials),
                of_model => of_model,
            };
            return Ok(self.chat.get_or_init(|| chat).as_ref());
        }
        Ok(self.chat.get().and_then(Option::as_ref))
    }

    /// The token that the tokenizer's own files call the end of a text.
    #[must_use]
    pub const fn eos_token(&self) -> Option<u32> {
        self.eos_token
    }

    /// Tokens that end a text or a turn of a chat: [`Text::eos_token`], and those at which the code of the model's family
    /// stops.
    #[must_use]
    pub fn stop_tokens(&self) -> Vec<u32> {
        let stops = self.tokenizer.family().map_or(&[][..], Family::stops);
        let stops = stops.iter().filter_map(|text| self.tokenizer.token_to_id(text));
        let mut all: Vec<_> = self.eos_token.into_iter().chain(stops).collect();
        let mut seen = BTreeSet::new();
        all.retain(|id| seen.insert(*id));
        all
    }

    /// [`Text::stop_tokens`] of a model directory, for which no tokenizer is made of a tokenizer.json; none where there is
    /// no tokenizer, or none that is supported.
    ///
    /// # Errors
    /// A file is malformed.
    pub fn stop_tokens_of(dir: &Path) -> Result<Vec<u32>> {
        match Outline::stop_tokens(dir)? {
            None if TableFile::find(dir)?.is_some() => match Self::read(dir) {
                Ok(text) => Ok(text.stop_tokens()),
                // Token ids can do without.
                Err(Error::Unsupported { .. }) => Ok(Vec::new()),
                Err(error) => Err(error),
            },
            stops => Ok(stops.unwrap_or_default()),
        }
    }

    /// What the code of the model's family makes of a chat.
    fn own_template(&self, mut specials: BTreeMap<String, String>) -> Option<ChatTemplate> {
        let family = self.tokenizer.family()?;
        let (source, tokens) = family.chat()?;
        let all_there = tokens.iter().all(|text| self.tokenizer.token_to_id(text).is_some());
        for (name, id) in ["user_token", "assistant_token"].iter().zip(family.role_ids()) {
            specials.insert((*name).to_owned(), self.tokenizer.id_to_token(id)?);
        }
        all_there.then(|| ChatTemplate::own(family.name(), source, specials))
    }

    /// Token ids of `text`; with the special tokens that the tokenizer puts around a text, if asked for.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(text, special_tokens);
        if text.len() >= LONG_TEXT {
            narrows_staging::system::return_freed();
        }
        tokens
    }

    /// What encoding a text of `bytes` takes in memory meanwhile, besides [`Text::memory`], at most: some 150 bytes for
    /// each of English, more where each is a token. Nothing of short ones, which are part of any program's own.
    #[must_use]
    pub const fn encoding_memory(bytes: usize) -> Bytes {
        if bytes < LONG_TEXT { Bytes(0) } else { Bytes((bytes as u64).saturating_mul(ENCODING)) }
    }

    /// Refuses a text of `bytes` that takes more than `budget` while it is encoded, together with the tokenizer.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], with the smallest budget that works.
    pub fn check_encoding(&self, bytes: usize, budget: Bytes) -> Result<()> {
        let encoding = Self::encoding_memory(bytes);
        let minimum = self.memory() + encoding;
        if encoding > Bytes(0) && minimum > budget {
            return Err(Error::DoesNotFit { memory: "RAM", minimum, budget });
        }
        Ok(())
    }

    /// Bytes of the longest text that is encoded within `memory`, as [`Text::encoding_memory`] counts.
    #[must_use]
    pub const fn longest_encoded(memory: Bytes) -> Bytes {
        let (any, fits) = (LONG_TEXT as u64 - 1, memory.get() / ENCODING);
        Bytes(if fits > any { fits } else { any })
    }

    /// The text of token ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids)
    }
}
