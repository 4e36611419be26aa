//! The tokenizer classes of Hugging Face transformers 5 that make parts of a tokenizer anew, whatever
//! tokenizer.json says (`models/*/tokenization_*.py`), and which class a model directory gets
//! (`models/auto/tokenization_auto.py`).

use serde_json::{Value, json};

use super::sidecars::{Sidecars, Token};

/// A class of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`: tokenizer.json as it is.
    Backend,
    Llama,
    CodeLlama,
    Qwen2,
    Gpt2,
    GptNeoX,
    Gemma,
    Cohere,
}

/// Names of the classes, without `Fast`.
const CLASSES: [(&str, Class); 7] = [
    ("LlamaTokenizer", Class::Llama),
    ("CodeLlamaTokenizer", Class::CodeLlama),
    ("Qwen2Tokenizer", Class::Qwen2),
    ("GPT2Tokenizer", Class::Gpt2),
    ("GPTNeoXTokenizer", Class::GptNeoX),
    ("GemmaTokenizer", Class::Gemma),
    ("CohereTokenizer", Class::Cohere),
];

/// Parts that a class makes, in the words of tokenizer.json. The vocabulary and merges are the file's.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
}

/// What Qwen2Tokenizer cuts a text with.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Class {
    /// The class that `AutoTokenizer` takes. `byte_level` is whether tokenizer.json says `"ByteLevel"` anywhere.
    pub(super) fn of(sidecars: &Sidecars, byte_level: bool) -> Self {
        let model_type = sidecars.model_type.as_deref().unwrap_or_default();
        let qwen = matches!(model_type, "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe");
        let mistral = matches!(model_type, "mistral" | "mixtral");
        let Some(declared) = sidecars.declared.as_deref() else {
            return if qwen { Self::Qwen2 } else { Self::Backend };
        };
        let declared = declared.strip_suffix("Fast").unwrap_or(declared);
        // Files of Qwen2 are known to name the wrong class; Mistral's are taken as they are.
        if model_type == "qwen2" {
            return Self::Qwen2;
        }
        if mistral || (declared == "LlamaTokenizer" && byte_level) {
            return Self::Backend;
        }
        CLASSES.iter().find(|(name, _)| *name == declared).map_or(Self::Backend, |(_, class)| *class)
    }

    /// The special token of this name where no file says anything about it.
    pub(super) fn default_token(self, name: &str) -> Option<&'static str> {
        const END: &str = "<|endoftext|>";
        match (self, name) {
            (Self::Llama | Self::CodeLlama | Self::Gemma, "unk_token") => Some("<unk>"),
            (Self::Llama | Self::CodeLlama, "bos_token") => Some("<s>"),
            (Self::Llama | Self::CodeLlama, "eos_token") => Some("</s>"),
            (Self::Qwen2, "unk_token" | "eos_token" | "pad_token")
            | (Self::Gpt2 | Self::GptNeoX, "unk_token" | "bos_token" | "eos_token") => Some(END),
            (Self::GptNeoX, "pad_token") => Some("<|padding|>"),
            (Self::Gemma, "bos_token") => Some("<bos>"),
            (Self::Gemma, "eos_token") => Some("<eos>"),
            (Self::Gemma, "pad_token") => Some("<pad>"),
            (Self::Gemma, "mask_token") => Some("<mask>"),
            (Self::Cohere, "unk_token") => Some("<UNK>"),
            (Self::Cohere, "bos_token") => Some("<BOS_TOKEN>"),
            (Self::Cohere, "eos_token") => Some("<|END_OF_TURN_TOKEN|>"),
            (Self::Cohere, "pad_token") => Some("<PAD>"),
            (Self::Cohere, "cls_token") => Some("<CLS>"),
            (Self::Cohere, "sep_token") => Some("<SEP>"),
            (Self::Cohere, "mask_token") => Some("<MASK_TOKEN>"),
            _ => None,
        }
    }

    /// Special tokens with names that only this class has.
    pub(super) fn own_tokens(self) -> impl Iterator<Item = (String, Token)> {
        const INFILLING: [(&str, &str); 5] = [
            ("prefix_token", "▁<PRE>"),
            ("middle_token", "▁<MID>"),
            ("suffix_token", "▁<SUF>"),
            ("eot_token", "▁<EOT>"),
            ("fill_token", "<FILL_ME>"),
        ];
        let of = if self == Self::CodeLlama { &INFILLING[..] } else { &[] };
        of.iter().map(|(name, text)| ((*name).to_owned(), Token::Text((*text).to_owned())))
    }

    /// Special tokens without a name that this class adds.
    pub(super) fn extra_tokens(self) -> impl Iterator<Item = Token> {
        self.own_tokens().map(|(_, token)| token)
    }

    /// Whether all special tokens are added once more, as special ones.
    pub(super) const fn adds_specials_again(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Cohere)
    }

    /// What comes around a text, where that is not what tokenizer.json says: whether `bos_token` does.
    pub(super) const fn begins_with_bos(self) -> Option<bool> {
        match self {
            Self::GptNeoX => Some(false),
            Self::CodeLlama => Some(true),
            _ => None,
        }
    }

    /// The parts that this class makes; `None` where tokenizer.json is taken as it is. `unk_token` is the text of
    /// that token.
    pub(super) fn parts(self, sidecars: &Sidecars, unk_token: Option<&str>) -> Option<Parts> {
        let flag = |key| sidecars.flag(key).flatten();
        let prefix_space = flag("add_prefix_space");
        let bytes = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
        let nfc = json!({"type": "NFC"});
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let spaces = |strip: bool| {
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if strip {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            json!({"type": "Sequence", "decoders": decoders})
        };
        let byte_level = |normalizer, pre_tokenizer| Parts {
            normalizer,
            pre_tokenizer,
            decoder: bytes(true, true),
            unk_token: None,
            fuse_unk: false,
            byte_fallback: false,
        };
        let fallback = |normalizer, pre_tokenizer, decoder, unk_token: Option<&str>| Parts {
            normalizer,
            pre_tokenizer,
            decoder,
            unk_token: unk_token.map(str::to_owned),
            fuse_unk: true,
            byte_fallback: true,
        };
        Some(match self {
            Self::Backend => return None,
            Self::Llama => {
                let prefix = prefix_space.unwrap_or(true);
                // `legacy: null` counts as not legacy too, since `getattr` finds it.
                let legacy = flag("legacy").unwrap_or(false);
                let scheme = match (prefix, legacy) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                fallback(Value::Null, metaspace(scheme), spaces(prefix), None)
            }
            Self::CodeLlama => {
                let scheme = if prefix_space.unwrap_or(true) { "first" } else { "never" };
                fallback(Value::Null, metaspace(scheme), spaces(true), unk_token)
            }
            Self::Gemma => fallback(
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
                spaces(false),
                unk_token,
            ),
            Self::Qwen2 => {
                let cut = json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
                let steps = [cut, bytes(prefix_space.unwrap_or(false), false)];
                byte_level(nfc, json!({"type": "Sequence", "pretokenizers": steps}))
            }
            Self::Gpt2 => byte_level(Value::Null, bytes(prefix_space.unwrap_or(false), true)),
            Self::GptNeoX => byte_level(nfc, bytes(prefix_space.unwrap_or(false), true)),
            Self::Cohere => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                let steps = [digits, bytes(prefix_space.unwrap_or(false), true)];
                byte_level(nfc, json!({"type": "Sequence", "pretokenizers": steps}))
            }
        })
    }
}
