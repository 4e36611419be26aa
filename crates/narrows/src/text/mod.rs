//! Between text and token ids: the tokenizer, its chat template, and text that leaves token by token.

mod chat;
mod stream;

use std::path::Path;

use narrows_shard::Bytes;
use tokenizers::Tokenizer;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub(crate) use stream::{StopMatcher, TextStream};

use crate::error::{Error, Result};
use crate::json;

/// The tokenizer of a model directory, with its chat template if it has one.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    eos_token: Option<u32>,
    memory: Bytes,
}

/// Memory of a tokenizer per byte of its tokenizer.json: vocabulary and merges as hash maps, both ways.
const MEMORY_PER_BYTE: u64 = 12;

impl Text {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a model directory.
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
        let memory = Bytes(bytes.len() as u64 * MEMORY_PER_BYTE);
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::invalid(&path, format!("not a tokenizer: {e}")))?;
        let chat = ChatTemplate::read(dir)?;
        let eos_token = match json::Fields::read_optional(&dir.join("tokenizer_config.json"))? {
            Some(config) => chat::special_token(&config, "eos_token").and_then(|t| tokenizer.token_to_id(&t)),
            None => None,
        };
        Ok(Self { tokenizer, chat, eos_token, memory })
    }

    /// What it takes in memory, about.
    #[must_use]
    pub const fn memory(&self) -> Bytes {
        self.memory
    }

    /// The chat template, if the model has one.
    #[must_use]
    pub const fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// The token that the tokenizer's own config calls the end of a text.
    #[must_use]
    pub const fn eos_token(&self) -> Option<u32> {
        self.eos_token
    }

    /// Token ids of `text`; with the special tokens that the tokenizer puts around a text, if asked for.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special_tokens)
            .map_err(|e| Error::Request(format!("the tokenizer refuses the text: {e}")))?;
        Ok(encoding.get_ids().to_owned())
    }

    /// The text of token ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|e| Error::Request(format!("the tokenizer cannot decode its own tokens: {e}")))
    }
}
