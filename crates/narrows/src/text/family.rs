//! What the tokenizer code of some families does that no file of their models says: special tokens, how a text is cut
//! before, and the prompts of a chat.
//!
//! The code is published with the models and not with transformers; what is here is taken from ChatGLM 2 and 3 and
//! GLM-4 (`tokenization_chatglm.py`), Baichuan 1 and 2 (`generation_utils.py`), InternLM 1 and 2
//! (`modeling_internlm*.py`), Qwen 1 (`tokenization_qwen.py`, `qwen_generation_utils.py`) and Kimi
//! (`tokenization_kimi.py`).

use std::path::Path;

use super::tokenizer::Sidecars;
use crate::error::Result;
use crate::json::read_fields;

/// What holds the tokens of a model directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// tokenizer.json.
    Json,
    SentencePiece,
    /// A table of tiktoken.
    Ranks,
}

use Format::{Json, Ranks, SentencePiece};

/// What is known of a family.
#[derive(Debug)]
struct Facts {
    /// As messages call it.
    name: &'static str,
    model_types: &'static [&'static str],
    formats: &'static [Format],
    /// Tokens that the code adds behind those of the table.
    tokens: &'static [&'static str],
    /// As many more, which differ in a number: what comes before and behind it, and how many.
    numbered: (&'static str, &'static str, u32),
    /// Special tokens by their names.
    defaults: &'static [(&'static str, &'static str)],
    /// Tokens that begin a text.
    prefix: &'static [&'static str],
    /// Tokens that end a turn in a chat.
    stops: &'static [&'static str],
    /// What the code makes of a chat, and the tokens that are in it.
    chat: Option<(&'static str, &'static [&'static str])>,
    /// What cuts a text before tokens are made of its parts.
    cut: Option<&'static str>,
    /// Whether characters are composed (NFC).
    composes: bool,
}

const NONE: Facts = Facts {
    name: "",
    model_types: &[],
    formats: &[],
    tokens: &[],
    numbered: ("", "", 0),
    defaults: &[],
    prefix: &[],
    stops: &[],
    chat: None,
    cut: None,
    composes: false,
};

/// What Kimi's code cuts a text with: Han apart from all else.
const KIMI_CUT: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// ChatGLM 2 numbers its rounds and has no system prompt.
const CHATGLM2: &str = "[gMASK]sop{% set round = namespace(n=0) %}{% for message in messages %}\
    {% if message['role'] == 'user' %}{% set round.n = round.n + 1 %}\
    {{ '[Round ' ~ round.n ~ ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}\
    {% elif message['role'] == 'assistant' %}{{ message['content'] + '\\n\\n' }}\
    {% else %}{{ raise_exception('ChatGLM 2 has no system prompt') }}{% endif %}{% endfor %}";

/// The space is the one that SentencePiece puts in front of each text that the code gives it.
const CHATGLM3: &str = "[gMASK]sop{% for message in messages %}\
    {{ '<|' + message['role'] + '|>\\n ' + message['content'] }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

const GLM4: &str = "[gMASK]<sop>{% for message in messages %}\
    {{ '<|' + message['role'] + '|>\\n' + message['content'] }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Roles are tokens and no text: `user_token` and `assistant_token` are what the vocabulary calls them.
const BAICHUAN: &str = "{% for message in messages %}\
    {% if message['role'] == 'user' %}{{ user_token }}\
    {% elif message['role'] == 'assistant' %}{{ assistant_token }}\
    {% elif not loop.first %}{{ raise_exception('only the first message can be the system prompt') }}{% endif %}\
    {{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ assistant_token }}{% endif %}";

const INTERNLM: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'system' %}{{ '<|System|>:' + message['content'] + '\\n' }}\
    {% elif message['role'] == 'user' %}{{ '<|User|>:' + message['content'] + '<eoh>\\n' }}\
    {% else %}{{ '<|Bot|>:' + message['content'] + '<eoa>\\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}";

const INTERNLM2: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const QWEN: &str = "{% if messages and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
    {% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const FAMILIES: [Facts; 8] = [
    Facts {
        name: "chatglm2",
        model_types: &["chatglm"],
        formats: &[SentencePiece],
        tokens: &["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"],
        defaults: &[("unk_token", "<unk>"), ("pad_token", "<unk>")],
        prefix: &["[gMASK]", "sop"],
        chat: Some((CHATGLM2, &["[gMASK]", "sop"])),
        ..NONE
    },
    Facts {
        name: "chatglm3",
        model_types: &["chatglm"],
        formats: &[SentencePiece],
        tokens: &[
            "[MASK]",
            "[gMASK]",
            "[sMASK]",
            "sop",
            "eop",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ],
        defaults: &[("unk_token", "<unk>"), ("pad_token", "<unk>")],
        prefix: &["[gMASK]", "sop"],
        stops: &["<|user|>", "<|observation|>"],
        chat: Some((CHATGLM3, &["[gMASK]", "sop", "<|user|>", "<|assistant|>"])),
        ..NONE
    },
    Facts {
        name: "glm4",
        model_types: &["chatglm"],
        formats: &[Ranks],
        tokens: &[
            "<|endoftext|>",
            "[MASK]",
            "[gMASK]",
            "[sMASK]",
            "<sop>",
            "<eop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ],
        defaults: &[("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        prefix: &["[gMASK]", "<sop>"],
        stops: &["<|endoftext|>", "<|user|>", "<|observation|>"],
        chat: Some((GLM4, &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"])),
        cut: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ..NONE
    },
    Facts {
        name: "baichuan",
        model_types: &["baichuan"],
        formats: &[SentencePiece],
        defaults: &[("unk_token", "<unk>")],
        chat: Some((BAICHUAN, &[])),
        ..NONE
    },
    Facts {
        name: "internlm",
        model_types: &["internlm"],
        formats: &[SentencePiece, Json],
        defaults: &[("unk_token", "<unk>")],
        stops: &["<eoa>"],
        chat: Some((INTERNLM, &["<eoh>", "<eoa>"])),
        ..NONE
    },
    Facts {
        name: "internlm2",
        model_types: &["internlm2", "internlm3"],
        formats: &[SentencePiece, Json],
        defaults: &[("unk_token", "<unk>")],
        stops: &["<|im_end|>"],
        chat: Some((INTERNLM2, &["<|im_start|>", "<|im_end|>"])),
        ..NONE
    },
    Facts {
        name: "qwen",
        model_types: &["qwen"],
        formats: &[Ranks, Json],
        tokens: &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        numbered: ("<|extra_", "|>", 205),
        defaults: &[("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        stops: &["<|im_end|>", "<|im_start|>"],
        chat: Some((QWEN, &["<|im_start|>", "<|im_end|>"])),
        cut: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        composes: true,
        ..NONE
    },
    Facts {
        name: "kimi",
        model_types: &["kimi_k2", "kimi_k25", "kimi_linear", "kimi_vl", "deepseek_v3"],
        formats: &[Ranks],
        defaults: &[("bos_token", "[BOS]"), ("eos_token", "[EOS]")],
        stops: &["<|im_end|>"],
        cut: Some(KIMI_CUT),
        ..NONE
    },
];

/// The family of a model directory, with what its files say of it.
#[derive(Debug)]
pub(super) struct Family {
    facts: &'static Facts,
    /// The tokens that begin what the user and what the assistant says, where they are tokens alone.
    roles: Option<[u32; 2]>,
    /// Whether the directory's files say that its model is none for chats.
    is_raw: bool,
}

impl Family {
    /// Of a model directory; `None` where all is in its files, or where nothing is known.
    ///
    /// # Errors
    /// generation_config.json is malformed.
    pub(super) fn of(sidecars: &Sidecars, format: Format, dir: &Path) -> Result<Option<Self>> {
        let model_type = sidecars.model_type.as_deref().unwrap_or_default();
        let second = sidecars.trained_as.as_deref().is_some_and(|name| name.contains("chatglm2"));
        let facts = FAMILIES.iter().find(|facts| {
            let is_it = facts.model_types.contains(&model_type) && facts.formats.contains(&format);
            // The second and the third of ChatGLM differ in nothing but the name.
            is_it && (facts.name != "chatglm2" || second)
        });
        let Some(facts) = facts else { return Ok(None) };
        let mut family = Self { facts, roles: None, is_raw: false };
        if matches!(facts.name, "baichuan" | "qwen") {
            let asked = read_fields(&dir.join("generation_config.json"))?;
            let id = |key| u32::try_from(asked.as_ref()?.get(key)?.as_u64()?).ok();
            if facts.name == "baichuan" {
                // The code takes them from there, and models that are not for chats have none.
                let roles = id("user_token_id").zip(id("assistant_token_id"));
                family.roles = roles.map(|(user, assistant)| [user, assistant]);
                family.is_raw = family.roles.is_none();
            } else {
                let format = asked.as_ref().and_then(|asked| asked.get("chat_format"));
                family.is_raw = format.is_some_and(|format| format != "chatml");
            }
        }
        Ok(Some(family))
    }

    /// As messages call it.
    pub(super) const fn name(&self) -> &'static str {
        self.facts.name
    }

    /// Tokens that the code adds to a table of `len`, with their ids.
    pub(super) fn tokens(&self, len: usize) -> impl Iterator<Item = (String, u32)> {
        let (before, behind, count) = self.facts.numbered;
        let numbered = (0..count).map(move |n| format!("{before}{n}{behind}"));
        let all = self.facts.tokens.iter().map(|text| (*text).to_owned()).chain(numbered);
        all.zip(u32::try_from(len).unwrap_or(u32::MAX)..)
    }

    /// Special tokens by their names.
    pub(super) const fn defaults(&self) -> &'static [(&'static str, &'static str)] {
        self.facts.defaults
    }

    /// Tokens of the table that are the roles of a chat: of the user, and of the assistant.
    pub(super) fn role_ids(&self) -> impl Iterator<Item = u32> {
        self.roles.into_iter().flatten()
    }

    /// Tokens that begin a text.
    pub(super) const fn prefix(&self) -> &'static [&'static str] {
        self.facts.prefix
    }

    /// Tokens that end a turn in a chat.
    pub(super) const fn stops(&self) -> &'static [&'static str] {
        self.facts.stops
    }

    /// What cuts a text before tokens are made of its parts.
    pub(super) const fn cut(&self) -> Option<&'static str> {
        self.facts.cut
    }

    /// Whether characters are composed.
    pub(super) const fn composes(&self) -> bool {
        self.facts.composes
    }

    /// The template of chats, and the tokens that are in it; `None` of models that are not for chats.
    pub(super) const fn chat(&self) -> Option<(&'static str, &'static [&'static str])> {
        if self.is_raw { None } else { self.facts.chat }
    }
}
