//! Tokenizers of several files are what Hugging Face transformers makes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;

use narrows::Text;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Cases {
    bases: BTreeMap<String, Map<String, Value>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: String,
    keys: Map<String, Value>,
    files: BTreeMap<String, Value>,
    eos: Option<u32>,
    specials: BTreeMap<String, String>,
    texts: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    bare: Vec<u32>,
    decoded: String,
}

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

fn bytes_base() -> Map<String, Value> {
    cases().bases.remove("bytes").unwrap()
}

fn cases() -> Cases {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tokenizers.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn as_transformers_makes_them() {
    let Cases { bases, cases } = cases();
    assert!(cases.len() > 90);
    let mut wrong = Vec::new();
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut tokenizer = bases[&case.base].clone();
        tokenizer.extend(case.keys);
        write(dir, "tokenizer.json", &Value::Object(tokenizer));
        for (name, value) in &case.files {
            write(dir, &format!("{name}.json"), value);
        }
        let text = match Text::read(dir) {
            Ok(text) => text,
            Err(e) => {
                wrong.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        let mut same = |what: &str, got: String, want: String| {
            if got != want {
                wrong.push(format!("{}: {what}: {got}, right is {want}", case.name));
            }
        };
        for expected in &case.texts {
            let Expected { text: input, ids, bare, decoded } = expected;
            same(input, format!("{:?}", text.encode(input, true).unwrap()), format!("{ids:?}"));
            same(input, format!("{:?}", text.encode(input, false).unwrap()), format!("{bare:?}"));
            same("decoded", format!("{:?}", text.decode(ids).unwrap()), format!("{decoded:?}"));
        }
        same("eos", format!("{:?}", text.eos_token()), format!("{:?}", case.eos));
        let alone = Text::stop_tokens_of(dir).unwrap();
        same("stops alone", format!("{alone:?}"), format!("{:?}", case.eos.as_slice()));
        same("stops", format!("{:?}", text.stop_tokens()), format!("{alone:?}"));
        // What a template can print.
        let names: Vec<_> = case.specials.keys().map(String::as_str).collect();
        let template: String = names.iter().map(|name| format!("{{{{ {name} }}}} ")).collect();
        std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
        let options = narrows::ChatOptions::new(std::time::SystemTime::UNIX_EPOCH, 0);
        let printed = text.chat_template().unwrap().unwrap().render(&[], &options).unwrap();
        let want: String = case.specials.values().map(|text| format!("{text} ")).collect();
        same("special tokens", printed, want);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn with(keys: Value) -> narrows::Result<Text> {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = bytes_base();
    tokenizer.extend(keys.as_object().unwrap().clone());
    write(dir.path(), "tokenizer.json", &Value::Object(tokenizer));
    Text::read(dir.path())
}

#[test]
fn dropout_is_off() {
    let mut model = bytes_base().remove("model").unwrap();
    model["dropout"] = 0.9.into();
    let text = with(serde_json::json!({ "model": model })).unwrap();
    let once = text.encode("hello hello a 12", true).unwrap();
    assert_eq!(once, with(serde_json::json!({})).unwrap().encode("hello hello a 12", true).unwrap());
}

#[test]
fn runs_of_a_million_spaces_are_cut_as_short_ones() {
    let text = with(serde_json::json!({})).unwrap();
    for space in [" ", "\n"] {
        let tail = text.encode(&format!("x{}hello a", space.repeat(100)), false).unwrap();
        let long = text.encode(&format!("x{}hello a", space.repeat(1_200_000)), false).unwrap();
        assert_eq!(long[long.len() - 4..], tail[tail.len() - 4..], "{space:?}");
    }
}

#[test]
fn malformed_files_are_errors() {
    let replace = |pattern: Value| serde_json::json!({"type": "Replace", "pattern": pattern, "content": "x"});
    let charsmap = |map: &str| serde_json::json!({"type": "Precompiled", "precompiled_charsmap": map});
    let truncation =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 5});
    let padding = serde_json::json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    let mut template = bytes_base().remove("post_processor").unwrap();
    template["special_tokens"] = serde_json::json!({});
    let merge = |a: &str, b: &str| {
        let mut model = bytes_base().remove("model").unwrap();
        model["merges"] = serde_json::json!([[a, b]]);
        model
    };
    for keys in [
        serde_json::json!({"truncation": truncation}),
        serde_json::json!({"padding": padding}),
        serde_json::json!({"normalizer": replace(serde_json::json!({"String": ""}))}),
        serde_json::json!({"normalizer": replace(serde_json::json!({"Regex": ""}))}),
        serde_json::json!({"decoder": replace(serde_json::json!({"Regex": "("}))}),
        serde_json::json!({"normalizer": charsmap("AAAA")}),
        serde_json::json!({"normalizer": charsmap("/////////////w==")}),
        serde_json::json!({"normalizer": charsmap("not base64!")}),
        serde_json::json!({"post_processor": template}),
        serde_json::json!({"model": merge("a", "nowhere")}),
        serde_json::json!({"model": merge(&"a".repeat(4000), "b")}),
        serde_json::json!({"model": {"type": "BPE"}}),
        serde_json::json!({"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}}),
        serde_json::json!({"model": null}),
        serde_json::json!({"version": "2.0"}),
        serde_json::json!({"added_tokens": [{"id": 1}]}),
        serde_json::json!({"added_tokens": 7}),
    ] {
        let error = with(keys.clone()).err().map(|e| e.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.contains("tokenizer.json: not a tokenizer: ")),
            "{keys}: {error:?}"
        );
    }
}

#[test]
fn what_only_shows_with_a_text_is_an_error_too() {
    // A trie that leads out of itself.
    let text = with(
        serde_json::json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}}),
    );
    assert!(text.is_err() || text.unwrap().encode("hello", true).is_err());
    let bomb = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
    let text =
        with(serde_json::json!({"normalizer": {"type": "Sequence", "normalizers": vec![bomb; 6]}})).unwrap();
    assert!(text.encode("hello", true).is_ok());
    assert!(text.encode("aaaa", true).unwrap_err().to_string().contains("24 bytes"));
}
