//! Chat templates, rendered as Hugging Face transformers renders them (`utils/chat_template_utils.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::json::{self, Fields};

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
pub struct ChatOptions {
    /// Whether the text ends where the assistant is to speak.
    pub add_generation_prompt: bool,
    /// Local time, for templates that print the date.
    pub now: NaiveDateTime,
    /// Further variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// The Jinja template that turns messages into one text.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    /// `bos_token`, `eos_token` ... as their text.
    special_tokens: BTreeMap<String, String>,
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
        let Some(config) = Fields::read_optional(&config_path)? else { return Ok(None) };
        let source = match config.get("chat_template") {
            None => return Ok(None),
            Some(serde_json::Value::String(source)) => Some(source.clone()),
            // Several templates by name; `default` is the one without tools or documents.
            Some(serde_json::Value::Array(list)) => list
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
        Self { path, source: without_generation_tags(&source), special_tokens }
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// The template does not parse, refuses the messages (`raise_exception`), or uses something unknown.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let mut environment = self.environment()?;
        let now = options.now;
        environment.add_function("strftime_now", move |format: String| -> std::result::Result<String, _> {
            let mut text = String::new();
            let items = chrono::format::StrftimeItems::new(&format);
            std::fmt::Write::write_fmt(&mut text, format_args!("{}", now.format_with_items(items))).map_err(
                |_| minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: bad format"),
            )?;
            Ok(text)
        });
        // The caller's variables win over special tokens, and what a chat is made of wins over both.
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        variables.extend(self.special_tokens.iter().map(|(key, text)| (key.as_str(), Value::from(text))));
        variables
            .extend(options.variables.iter().map(|(key, value)| (key.as_str(), Value::from(Serde(value)))));
        variables.insert("messages", Value::from(Serde(messages)));
        variables.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        for absent in ["tools", "documents"] {
            variables.entry(absent).or_insert_with(|| Value::from(()));
        }
        let variables = Value::from(variables);
        environment
            .template_from_str(&self.source)
            .and_then(|template| template.render(variables))
            .map_err(|e| self.error(&e))
    }

    fn environment(&self) -> Result<Environment<'static>> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| self.error(&e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        // Templates are small programs from strangers: bound them. Ten million instructions render in seconds.
        environment.set_fuel(Some(10_000_000));
        Ok(environment)
    }

    fn error(&self, e: &minijinja::Error) -> Error {
        Error::invalid(&self.path, format!("chat template: {e}"))
    }
}

/// `json.dumps(value, ensure_ascii=False)` of Python: `", "` and `": "` between items, nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let fail = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut value = serde_json::to_value(value).map_err(fail)?;
    if sort_keys == Some(true) {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
                .map_err(fail)?;
        }
        None => {
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing))
                .map_err(fail)?;
        }
    }
    String::from_utf8(out).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// `{% generation %}` marks what the assistant said, for training: it changes nothing in the text. It becomes
/// a block that minijinja knows, with the same trimming of white space.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag[2..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
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
            "a{%- if true %}b{% endif -%}c{% if x %}d"
        );
        assert_eq!(without_generation_tags("{% open"), "{% open");
    }
}
