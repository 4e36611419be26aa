//! Tokenizers without tokenizer.json are what the packages sentencepiece and tiktoken make of the same files, and what the
//! published code of families makes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use narrows::{ChatOptions, Message, Text};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Goldens {
    texts: Vec<String>,
    step: usize,
    pieces: BTreeMap<String, Expected>,
    ranks: BTreeMap<String, Table>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Table {
    file: String,
    model_type: String,
    #[serde(flatten)]
    expected: Expected,
}

/// What a package makes of the texts.
#[derive(Deserialize)]
struct Expected {
    shown: Vec<(Vec<u32>, String)>,
    digests: String,
    decoded: Vec<(Vec<u32>, String)>,
}

#[derive(Deserialize)]
struct Chat {
    family: String,
    messages: Vec<(String, String)>,
    ids: Vec<u32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tables").join(name)
}

fn goldens() -> Goldens {
    serde_json::from_slice(&std::fs::read(data("goldens.json")).unwrap()).unwrap()
}

/// A model directory with this table under that name, and other files.
fn directory(table: &str, name: &str, files: &[(&str, Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(data(table), dir.path().join(name)).unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn pieces(model: &str, files: &[(&str, Value)]) -> TempDir {
    directory(&format!("{model}.model"), "tokenizer.model", files)
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn compare(name: &str, text: &Text, goldens: &Goldens, expected: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    let all: Vec<_> = goldens
        .texts
        .iter()
        .map(|input| {
            let ids = text.encode(input, false).unwrap();
            let decoded = text.decode(&ids).unwrap();
            (ids, decoded)
        })
        .collect();
    for ((got, want), input) in all.iter().zip(&expected.shown).zip(&goldens.texts) {
        if got != want {
            wrong.push(format!("{name}: {input:?}: {got:?}, right is {want:?}"));
        }
    }
    for (at, (ten, want)) in all.chunks(goldens.step).zip(expected.digests.as_bytes().chunks(16)).enumerate()
    {
        let mut bytes = Vec::new();
        for (ids, decoded) in ten {
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.push(b'\n');
            bytes.extend(decoded.bytes());
            bytes.push(b'\n');
        }
        if format!("{:016x}", digest(&bytes)).as_bytes() != want {
            let from = at * goldens.step;
            wrong.push(format!("{name}: of texts {from} on: {:?}", &goldens.texts[from..from + ten.len()]));
        }
    }
    for (ids, want) in &expected.decoded {
        let got = text.decode(ids).unwrap();
        if got != *want {
            wrong.push(format!("{name}: {ids:?}: {got:?}, right is {want:?}"));
        }
    }
    wrong
}

#[test]
fn sentencepiece_models_are_as_the_package_has_them() {
    let goldens = goldens();
    assert_eq!((goldens.texts.len(), goldens.pieces.len()), (2000, 9));
    let mut wrong = Vec::new();
    for (name, expected) in &goldens.pieces {
        let dir = pieces(name, &[]);
        wrong.extend(compare(name, &Text::read(dir.path()).unwrap(), &goldens, expected));
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tiktoken_tables_are_as_the_package_has_them() {
    let goldens = goldens();
    let mut wrong = Vec::new();
    for (name, Table { file, model_type, expected }) in &goldens.ranks {
        let dir = directory("ranks.tiktoken", file, &[("config.json", json!({"model_type": model_type}))]);
        wrong.extend(compare(name, &Text::read(dir.path()).unwrap(), &goldens, expected));
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// The directory of a model of `family`, as it is published.
fn family(family: &str) -> TempDir {
    let config = |model_type: &str, name: &str| {
        ("config.json", json!({"model_type": model_type, "_name_or_path": name}))
    };
    match family {
        "chatglm2" => pieces("bpe-llama", &[config("chatglm", "THUDM/chatglm2-6b")]),
        "chatglm3" => pieces("bpe-llama", &[config("chatglm", "THUDM/chatglm3-6b")]),
        "baichuan" => {
            let roles = {
                let dir = pieces("bpe-bare", &[]);
                let text = Text::read(dir.path()).unwrap();
                ["<role_0>", "<role_1>"].map(|role| text.encode(role, false).unwrap()[0])
            };
            let asked = json!({"user_token_id": roles[0], "assistant_token_id": roles[1]});
            let settings = json!({"tokenizer_class": "BaichuanTokenizer", "add_bos_token": false});
            let files = [
                config("baichuan", ""),
                ("generation_config.json", asked),
                ("tokenizer_config.json", settings),
            ];
            pieces("bpe-bare", &files)
        }
        "internlm" => pieces("bpe-bare", &[config("internlm", "")]),
        "internlm2" => {
            let last = {
                let dir = pieces("bpe-bare", &[("added_tokens.json", json!({}))]);
                // Added tokens come behind the pieces.
                std::fs::write(dir.path().join("special_tokens_map.json"), r#"{"mask_token": "<none>"}"#)
                    .unwrap();
                Text::read(dir.path()).unwrap().encode("<none>", false).unwrap()[0] - 1
            };
            let token = |content: &str| json!({"content": content, "special": true});
            let added = json!({ (last - 1).to_string(): token("<|im_end|>"), last.to_string(): token("<|im_start|>")});
            let settings = json!({"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added});
            pieces("bpe-bare", &[config("internlm2", ""), ("tokenizer_config.json", settings)])
        }
        "glm4" => directory("ranks.tiktoken", "tokenizer.model", &[config("chatglm", "")]),
        "qwen" => {
            let asked = ("generation_config.json", json!({"chat_format": "chatml"}));
            directory("ranks.tiktoken", "qwen.tiktoken", &[config("qwen", ""), asked])
        }
        other => panic!("{other}"),
    }
}

#[test]
fn chats_are_as_the_code_of_their_families_has_them() {
    let chats = goldens().chats;
    assert!(chats.len() > 12);
    let mut wrong = Vec::new();
    let options = ChatOptions::new(SystemTime::UNIX_EPOCH, 0);
    for chat in chats {
        let dir = family(&chat.family);
        let text = Text::read(dir.path()).unwrap();
        let template = text.chat_template().unwrap().expect(&chat.family);
        assert_eq!(template.own_for(), Some(&chat.family[..]).map(|name| name.to_owned()).as_deref());
        let messages: Vec<_> = chat.messages.iter().map(|(role, text)| Message::new(role, text)).collect();
        let prompt = template.render(&messages, &options).unwrap();
        let ids = text.encode(&prompt, false).unwrap();
        if ids != chat.ids {
            wrong.push(format!("{}: {prompt:?}: {ids:?}, right is {:?}", chat.family, chat.ids));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
