//! Between text and token ids: the tokenizer, its chat template, and text that leaves token by token.

mod chat;
mod stream;
mod template;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use narrows_shard::Bytes;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub(crate) use stream::{StopMatcher, TextStream};

use self::tokenizer::{Outline, Tokenizer};
use crate::error::{Error, Result};
use crate::json;

/// From this many bytes on a text takes MiB while it is encoded.
const LONG_TEXT: usize = 8 << 10;

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
    /// Reads the tokenizer of a model directory as Hugging Face transformers 5 does: from `tokenizer.json`,
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// `tokenizer.json` is missing (then a model still runs on token ids), or a file is malformed.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = json::read_optional(&path)? else {
            let what = if dir.join("tokenizer.model").exists() {
                "not found, only a SentencePiece tokenizer.model; save the tokenizer with \
                 transformers' AutoTokenizer to get one"
            } else {
                "not found; text needs a tokenizer, token ids (--ids) do not"
            };
            return Err(Error::Missing { path, what: what.to_owned() });
        };
        let memory = Outline::memory(&path, &bytes)?;
        let tokenizer = Tokenizer::read(dir, path, &bytes)?;
        let eos = tokenizer.special_tokens().iter().find(|(name, _)| name == "eos_token");
        let eos_token = eos.and_then(|(_, text)| tokenizer.token_to_id(text));
        Ok(Self { dir: dir.to_owned(), tokenizer, chat: OnceLock::new(), eos_token, memory })
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
        json::read_optional(&path)?.map_or(Ok(Bytes(0)), |bytes| Outline::memory(&path, &bytes))
    }

    /// The chat template, if the model has one. It is read when this is first called.
    ///
    /// # Errors
    /// A file that may hold it cannot be read. Whether it parses shows when it is rendered.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        if self.chat.get().is_none() {
            let specials: BTreeMap<_, _> = self.tokenizer.special_tokens().iter().cloned().collect();
            let chat = ChatTemplate::read(&self.dir, specials)?;
            return Ok(self.chat.get_or_init(|| chat).as_ref());
        }
        Ok(self.chat.get().and_then(Option::as_ref))
    }

    /// The token that the tokenizer's own files call the end of a text.
    #[must_use]
    pub const fn eos_token(&self) -> Option<u32> {
        self.eos_token
    }

    /// [`Text::eos_token`] of a model directory, for which no tokenizer is made; `None` also where there is none.
    ///
    /// # Errors
    /// A file is malformed.
    pub fn eos_token_of(dir: &Path) -> Result<Option<u32>> {
        Outline::eos_token(dir)
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
        if bytes < LONG_TEXT { Bytes(0) } else { Bytes((bytes as u64).saturating_mul(256)) }
    }

    /// The text of token ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids)
    }
}
