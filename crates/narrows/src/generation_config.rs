//! `generation_config.json`: what a model's authors ask for.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{Fields, read_fields};
use crate::sampling::Sampling;

/// What `generation_config.json` says about sampling and stopping. Absent values are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// Whether to draw at all; the sampling values count only then.
    pub do_sample: bool,
    /// See [`Sampling`].
    pub temperature: Option<f32>,
    /// See [`Sampling`]; 0 in the file means no limit.
    pub top_k: Option<usize>,
    /// See [`Sampling`].
    pub top_p: Option<f32>,
    /// See [`Sampling`].
    pub min_p: Option<f32>,
    /// See [`Sampling`]; holds for greedy decoding too.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and text together at most.
    pub max_length: Option<usize>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end a text.
    pub stop_strings: Vec<String>,
    /// Keys that ask for something that is not done here, so that a caller can say so.
    pub not_done: Vec<String>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json` of a model directory; all absent where there is none.
    ///
    /// # Errors
    /// The file is malformed.
    pub fn read(dir: &Path) -> Result<Self> {
        let Some(fields) = read_fields(&dir.join("generation_config.json"))? else {
            return Ok(Self::default());
        };
        let number = |key: &str| Ok::<_, Error>(fields.f64(key)?.map(|value| value as f32));
        Ok(Self {
            do_sample: fields.bool("do_sample")?.unwrap_or(false),
            temperature: number("temperature")?,
            top_k: fields.usize("top_k")?,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            max_new_tokens: fields.usize("max_new_tokens")?,
            max_length: fields.usize("max_length")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            stop_strings: stop_strings(&fields)?,
            not_done: not_done(&fields),
        })
    }

    /// The sampling that the model's authors ask for.
    #[must_use]
    pub fn sampling(&self, seed: u64) -> Sampling {
        let greedy =
            Sampling { repetition_penalty: self.repetition_penalty.unwrap_or(1.0), seed, ..Sampling::GREEDY };
        if !self.do_sample {
            return greedy;
        }
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.filter(|k| *k > 0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            ..greedy
        }
    }
}

/// Keys that are done, and keys that change no token: what a run returns, caches, or is called.
const KNOWN: [&str; 34] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "chat_format",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "length_penalty",
    "low_memory",
    "max_length",
    "max_new_tokens",
    "min_p",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "repetition_penalty",
    "return_dict_in_generate",
    "stop_strings",
    "temperature",
    "top_k",
    "top_p",
    "use_cache",
];

/// Values of further keys that ask for nothing (`GenerationConfig` of transformers).
fn neutral(key: &str, value: &Value) -> bool {
    let number = value.as_f64();
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(_) => key.ends_with("version"),
        _ => match key {
            "num_beams"
            | "num_beam_groups"
            | "num_return_sequences"
            | "typical_p"
            | "guidance_scale"
            | "encoder_repetition_penalty"
            | "top_h" => number == Some(1.0),
            _ => number == Some(0.0),
        },
    }
}

fn not_done(fields: &Fields) -> Vec<String> {
    let asks = |key: &&str| !KNOWN.contains(key) && fields.get(key).is_some_and(|value| !neutral(key, value));
    fields.keys().filter(asks).map(str::to_owned).collect()
}

/// One text or a list of them.
fn stop_strings(fields: &Fields) -> Result<Vec<String>> {
    let texts = match fields.get("stop_strings") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(list)) => list.iter().map(|text| Some(text.as_str()?.to_owned())).collect(),
        Some(_) => None,
    };
    texts
        .filter(|texts| texts.iter().all(|text| !text.is_empty()))
        .ok_or_else(|| fields.invalid("stop_strings", "neither a text nor a list of texts").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(json: &str) -> Result<GenerationDefaults> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
        GenerationDefaults::read(dir.path())
    }

    #[test]
    fn keys_that_are_not_done_are_named() {
        let asked = r#"{"suppress_tokens": [5], "no_repeat_ngram_size": 2, "min_new_tokens": 3, "num_beams": 4,
                        "bad_words_ids": [[7]], "some_new_key": 0.5, "typical_p": 0.9}"#;
        let mut not_done = defaults(asked).unwrap().not_done;
        not_done.sort();
        let keys = ["bad_words_ids", "min_new_tokens", "no_repeat_ngram_size", "num_beams", "some_new_key"];
        assert_eq!(not_done, [&keys[..], &["suppress_tokens", "typical_p"]].concat());
    }

    #[test]
    fn keys_that_ask_for_nothing_are_not_named() {
        let quiet = r#"{"do_sample": true, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "pad_token_id": 3,
                        "suppress_tokens": [], "bad_words_ids": null, "transformers_version": "5.23.0", "top_k": 50}"#;
        assert_eq!(defaults(quiet).unwrap().not_done, [""; 0]);
    }

    #[test]
    fn stop_strings_are_a_text_or_a_list() {
        assert_eq!(defaults(r#"{"stop_strings": "a"}"#).unwrap().stop_strings, ["a"]);
        assert_eq!(defaults(r#"{"stop_strings": ["a", "b"]}"#).unwrap().stop_strings, ["a", "b"]);
        for bad in [r#"{"stop_strings": 5}"#, r#"{"stop_strings": [1]}"#, r#"{"stop_strings": ""}"#] {
            assert!(defaults(bad).is_err(), "{bad}");
        }
    }
}
