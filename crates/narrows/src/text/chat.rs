//! Chat templates, rendered as Hugging Face transformers renders them (`utils/chat_template_utils.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::template::{self, Input};
use crate::error::{Error, Result};
use crate::json::{self, read_fields};

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template may ask for besides the messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Whether the text ends where the assistant is to speak.
    pub add_generation_prompt: bool,
    /// The time, for templates that print the date.
    pub now: SystemTime,
    /// Seconds by which local time is ahead of UTC.
    pub utc_offset: i32,
    /// Further variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, Value>,
}

impl ChatOptions {
    /// For a reply at `now`, where local time is `utc_offset` seconds ahead of UTC.
    #[must_use]
    pub const fn new(now: SystemTime, utc_offset: i32) -> Self {
        Self { add_generation_prompt: true, now, utc_offset, variables: BTreeMap::new() }
    }
}

/// The Jinja template that turns messages into one text.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    /// `bos_token`, `eos_token` ... as their text.
    special_tokens: BTreeMap<String, String>,
    /// The family that it is ours for.
    own_for: Option<&'static str>,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`; `None` where there is neither.
    pub(super) fn read(dir: &Path, special_tokens: BTreeMap<String, String>) -> Result<Option<Self>> {
        let config_path = dir.join("tokenizer_config.json");
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = json::read_optional(&path)? {
            let source = String::from_utf8(bytes).map_err(|_| Error::invalid(&path, "not UTF-8"))?;
            return Ok(Some(Self::new(path, source, special_tokens)));
        }
        let Some(config) = read_fields(&config_path)? else { return Ok(None) };
        let source = match config.get("chat_template") {
            None => return Ok(None),
            Some(Value::String(source)) => Some(source.clone()),
            // Several templates by name; `default` is the one without tools or documents.
            Some(Value::Array(list)) => list
                .iter()
                .find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
                .and_then(|entry| Some(entry.get("template")?.as_str()?.to_owned())),
            Some(_) => None,
        };
        let source = source.ok_or_else(|| {
            config.invalid("chat_template", "neither a template nor a list with one named default")
        })?;
        Ok(Some(Self::new(config_path, source, special_tokens)))
    }

    /// A template from its source, which is parsed when it is rendered; `path` is named in errors.
    #[must_use]
    pub fn new(path: PathBuf, source: String, special_tokens: BTreeMap<String, String>) -> Self {
        // Jinja of Python makes every line end a line feed.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        Self { path, source: without_generation_tags(&source), special_tokens, own_for: None }
    }

    /// One of ours, for models of `family`, whose code does what no file says.
    pub(super) fn own(family: &'static str, source: &str, special_tokens: BTreeMap<String, String>) -> Self {
        let path = PathBuf::from(format!("narrows' own template for {family}"));
        Self { own_for: Some(family), ..Self::new(path, source.to_owned(), special_tokens) }
    }

    /// The family whose prompts this template of ours makes; `None` of a model's own template.
    #[must_use]
    pub const fn own_for(&self) -> Option<&'static str> {
        self.own_for
    }

    /// The text of a chat.
    ///
    /// What a template may take is bounded: about a second, a few hundred MiB, 16 MiB of text besides twice what it
    /// is given.
    ///
    /// # Errors
    /// The template does not parse, refuses the messages (`raise_exception`), uses something that is not supported,
    /// or takes too much.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let message = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
        let messages = Value::Array(messages.iter().map(message).collect());
        let prompt = Value::Bool(options.add_generation_prompt);
        let texts: Vec<_> =
            self.special_tokens.iter().map(|(name, text)| (name, Value::String(text.clone()))).collect();
        // What a chat is made of wins over the caller's variables, and these win over special tokens.
        let mut variables = vec![("messages", &messages), ("add_generation_prompt", &prompt)];
        variables.extend(options.variables.iter().map(|(name, value)| (name.as_str(), value)));
        variables.extend(["tools", "documents"].map(|name| (name, &Value::Null)));
        variables.extend(texts.iter().map(|(name, text)| (name.as_str(), text)));
        let input = Input { variables, now: (options.now, options.utc_offset) };
        template::render(&self.source, &input)
            .map_err(|why| Error::invalid(&self.path, format!("chat template: {why}")))
    }
}

/// `{% generation %}` marks what the assistant said, for training: it changes nothing in the text. It becomes
/// a block that the parser knows, with the same trimming of white space and names of its own.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag[2..].find("%}").map(|end| end + 2) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag[2..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replace("generation", "with")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endwith")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_plain_blocks() {
        assert_eq!(
            without_generation_tags("a{%- generation %}b{% endgeneration -%}c{% if x %}d"),
            "a{%- with %}b{% endwith -%}c{% if x %}d"
        );
        for odd in ["{% open", "{%}", "{%%}", "{%", "{% a {% generation"] {
            assert_eq!(without_generation_tags(odd), odd);
        }
    }
}
