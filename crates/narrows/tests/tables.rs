//! Tokenizers without tokenizer.json are what the packages sentencepiece and tiktoken make of the same files, and what the
//! published code of families makes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod protobuf;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use narrows::{ChatOptions, Message, Text};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::protobuf::{BYTE, CONTROL, NORMAL, UNKNOWN, bytes, number, piece};

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
        assert_eq!(template.own_for(), Some(&chat.family[..]));
        let messages: Vec<_> = chat.messages.iter().map(|(role, text)| Message::new(role, text)).collect();
        let prompt = template.render(&messages, &options).unwrap();
        let ids = text.encode(&prompt, false).unwrap();
        if ids != chat.ids {
            wrong.push(format!("{}: {prompt:?}: {ids:?}, right is {:?}", chat.family, chat.ids));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Why a model directory with these files has no tokenizer.
fn refused(files: &[(&str, &[u8])]) -> String {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let error = Text::read(dir.path()).err().map(|e| e.to_string()).unwrap_or_default();
    let of_memory = Text::memory_of(dir.path()).err().map(|e| e.to_string());
    assert!(of_memory.is_none_or(|e| e == error), "{error}");
    assert!(error.lines().count() <= 1, "{error}");
    error
}

/// What makes a model of another.
type Damage = Box<dyn Fn(&mut Vec<u8>)>;

#[test]
fn malformed_models_are_errors() {
    let pieces = |list: &'static [(&'static [u8], f32, u64)]| -> Damage {
        Box::new(move |model| list.iter().for_each(|(text, score, kind)| piece(model, text, *score, *kind)))
    };
    let field = |tag: u64, inside: Vec<u8>| -> Damage { Box::new(move |model| bytes(model, tag, &inside)) };
    let numbers = |tag: u64, n: u64| {
        let mut inside = Vec::new();
        number(&mut inside, tag, n);
        inside
    };
    let charsmap = |map: &[u8]| {
        let mut inside = Vec::new();
        bytes(&mut inside, 2, map);
        inside
    };
    let controls: Damage = Box::new(|model| {
        (0..70_000).for_each(|n| piece(model, format!("<{n}>").as_bytes(), 0.0, CONTROL));
    });
    let mut surface = Vec::new();
    bytes(&mut surface, 44, &[b'x'; 300]);
    let cases: Vec<(Damage, &str)> = vec![
        (Box::new(|model| model.truncate(model.len() - 1)), "beyond the end"),
        (
            Box::new(|model| model.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
            "beyond the end",
        ),
        (Box::new(|model| model.extend([0xff; 12])), "varint"),
        (Box::new(|model| model.extend([0x0b; 500])), "recursion"),
        (Box::new(|model| model.push(0x0f)), "wire type"),
        (pieces(&[(b"a", 0.0, NORMAL), (b"a", 0.0, NORMAL)]), "piece 260 is there twice: \"a\""),
        (pieces(&[(b"", 0.0, NORMAL)]), "piece 259 is empty"),
        (pieces(&[(b"a\0", 0.0, NORMAL)]), "zero"),
        (pieces(&[(&[b'a'; 9000], 0.0, NORMAL)]), "too long"),
        (pieces(&[(b"\xff", 0.0, NORMAL)]), "UTF-8"),
        (pieces(&[(b"a", f32::NAN, NORMAL)]), "score of piece 259"),
        (pieces(&[(b"a", 0.0, 9)]), "unknown type 9"),
        (pieces(&[(b"<none>", 0.0, UNKNOWN)]), "two unknown pieces"),
        (pieces(&[(b"<0xZZ>", 0.0, BYTE)]), "257 pieces of bytes"),
        (field(2, numbers(35, 0)), "no fallback"),
        (field(2, numbers(3, 3)), "a SentencePiece model of words is not supported"),
        (field(2, numbers(3, 4)), "a SentencePiece model of characters is not supported"),
        (field(2, numbers(3, 99)), "model type 99"),
        (field(2, surface), "256 bytes"),
        (field(3, charsmap(&[1, 2])), "precompiled_charsmap is too short"),
        (field(3, charsmap(&[0xff; 8])), "for a trie of 4294967295"),
        (field(3, charsmap(&[4, 0, 0, 0, 0, 0, 0, 0, 0xff])), "not UTF-8"),
        (field(5, charsmap(&[4, 0, 0, 0])), "a denormalizer is not supported"),
        (controls, "70002 control pieces"),
    ];
    for (damage, why) in cases {
        for model_type in [1, 2] {
            let mut model = protobuf::model(model_type, []);
            damage(&mut model);
            let error = refused(&[("tokenizer.model", &model)]);
            let kind = if why.contains("supported") { "" } else { "not a SentencePiece model: " };
            let both = error.contains(&format!("tokenizer.model: {kind}")) && error.contains(why);
            assert!(both, "{why}: {error}");
        }
    }
    let mut model = Vec::new();
    piece(&mut model, b"a", 0.0, NORMAL);
    assert!(refused(&[("tokenizer.model", &model)]).contains("no unknown piece"));
    assert_eq!(refused(&[("tokenizer.model", &protobuf::model(2, []))]), "");
}

#[test]
fn malformed_tables_are_errors() {
    let whole = std::fs::read_to_string(data("ranks.tiktoken")).unwrap();
    let glm: (&str, &[u8]) = ("config.json", br#"{"model_type": "chatglm"}"#);
    assert_eq!(refused(&[("tokenizer.model", whole.as_bytes()), glm]), "");
    let windows = whole.replace('\n', "\r\n") + "\r\n";
    assert_eq!(refused(&[("tokenizer.model", windows.as_bytes()), glm]), "");
    for (table, why) in [
        (whole.clone() + "aGVsbG8= 5", "rank 5 of entry 702 is out of order"),
        (whole.clone() + "aGVsbG8= 99999999999", "entry 702 is not a token and its rank"),
        (whole.clone() + "aGVsbG8= 4294967295", "rank 4294967295 of entry 702 is out of order"),
        (whole.clone() + "aGVsbG8=", "entry 702 is not"),
        (whole.clone() + "a*b= 701", "rank 701 is not base64"),
        (whole.clone() + "IQ== 701", "rank 701 is empty or there twice"),
        (whole.replace("IQ== 0\n", ""), "no token for the byte 33"),
        ("IQ== 0".to_owned(), "no token for the byte 0"),
    ] {
        let error = refused(&[("tokenizer.model", table.as_bytes()), glm]);
        let both = error.contains("tokenizer.model: not a tiktoken table: ") && error.contains(why);
        assert!(both, "{why}: {error}");
    }
    for name in ["tokenizer.model", "tiktoken.model", "qwen.tiktoken"] {
        let unknown = refused(&[(name, whole.as_bytes())]);
        assert!(
            unknown.contains(name) && unknown.contains("a tiktoken table of another family"),
            "{unknown}"
        );
    }
    // Token ids can do without.
    let dir = directory("ranks.tiktoken", "tokenizer.model", &[]);
    assert!(Text::stop_tokens_of(dir.path()).unwrap().is_empty());
    std::fs::write(dir.path().join("tokenizer.model"), "IQ== 0").unwrap();
    assert!(Text::stop_tokens_of(dir.path()).is_err());
}

#[test]
fn what_other_files_say_of_a_table_is_checked() {
    let table = protobuf::model(2, []);
    let table: (&str, &[u8]) = ("tokenizer.model", &table);
    let far = br#"{"added_tokens_decoder": {"99999999999": {"content": "<far>"}}}"#;
    let far = refused(&[table, ("tokenizer_config.json", far)]);
    assert!(far.contains("the id of \"<far>\" is too great"), "{far}");
    let config = ("config.json", &br#"{"model_type": "baichuan"}"#[..]);
    let roles = br#"{"user_token_id": 5000, "assistant_token_id": 196}"#;
    let roles = refused(&[table, config, ("generation_config.json", roles)]);
    assert!(roles.contains("there is no token 5000"), "{roles}");
}

#[test]
fn special_tokens_come_from_all_files() {
    let words = ["▁a", "▁b", "a", "b", "▁"].map(|word| (word.to_owned(), NORMAL));
    let read = |files: &[(&str, Value)]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.model"), protobuf::model(2, words.clone())).unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        assert_eq!(Text::stop_tokens_of(dir.path()).unwrap(), Text::read(dir.path()).unwrap().stop_tokens());
        Text::read(dir.path()).unwrap()
    };
    let settings = |value: Value| ("tokenizer_config.json", value);
    let (a, b) = (259, 260);
    let plain = read(&[]);
    assert_eq!(plain.eos_token(), Some(2));
    assert_eq!(plain.encode("a b</s>b", true).unwrap(), [1, a, b, 2, b]);
    assert_eq!(plain.decode(&[1, a, b, 2]).unwrap(), "a b");
    let both = read(&[settings(json!({"add_bos_token": false, "add_eos_token": true}))]);
    assert_eq!(both.encode("a", true).unwrap(), [a, 2]);
    // At ids of their own, behind all others, and in the place of a piece.
    let placed = json!({"300": {"content": "<x>", "special": true}, "264": {"content": "<y>", "special": false},
        "261": {"content": "<z>", "special": true}});
    let placed = read(&[settings(json!({"added_tokens_decoder": placed, "eos_token": "<x>"}))]);
    assert_eq!(placed.encode("<z>a<y><x>", false).unwrap(), [261, a, 264, 300]);
    assert_eq!(placed.decode(&[a, 264, b, 261, 300]).unwrap(), "a<y>b");
    assert_eq!(placed.stop_tokens(), [300]);
    let older = [
        ("added_tokens.json", json!({"<x>": 264})),
        ("special_tokens_map.json", json!({"eos_token": "<x>"})),
    ];
    assert_eq!(read(&older).encode("a<x>", false).unwrap(), [a, 264]);
    assert_eq!(read(&older).decode(&[a, 264]).unwrap(), "a");
    // A space comes in front of each part, of the first alone, or of none.
    let llama = |more: Value| {
        let mut all = json!({"tokenizer_class": "LlamaTokenizer"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(&[settings(all)]).encode("a</s>a", false).unwrap()
    };
    assert_eq!(llama(json!({"legacy": true})), [a, 2, a]);
    assert_eq!(llama(json!({"legacy": false})), [a, 2, 261]);
    assert_eq!(llama(json!({"add_prefix_space": false})), [261, 2, 261]);
    let bare = read(&[settings(json!({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false}))]);
    assert_eq!(bare.decode(&[a, 261]).unwrap(), " aa");
}

#[test]
fn own_templates_are_for_models_without_one() {
    let own = |dir: &TempDir| {
        let text = Text::read(dir.path()).unwrap();
        let template = text.chat_template().unwrap();
        (template.is_some(), template.and_then(narrows::ChatTemplate::own_for).map(str::to_owned))
    };
    let dir = family("internlm2");
    assert_eq!(own(&dir), (true, Some("internlm2".to_owned())));
    std::fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
    assert_eq!(own(&dir), (true, None));
    // Not for models that are none for chats, as their own code tells.
    for name in ["baichuan", "qwen"] {
        let dir = family(name);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"chat_format": "raw"}"#).unwrap();
        assert_eq!(own(&dir), (false, None), "{name}");
    }
    assert_eq!(own(&pieces("bpe-bare", &[])), (false, None));
    // Nor where a token of theirs is missing.
    let dir = pieces("bpe-llama", &[("config.json", json!({"model_type": "internlm"}))]);
    assert_eq!(own(&dir), (false, None));
    let text = Text::read(family("glm4").path()).unwrap();
    let user = text.encode("<|user|>", false).unwrap();
    assert_eq!(text.encode("a", true).unwrap().len(), 3);
    assert!(user.len() == 1 && text.stop_tokens().contains(&user[0]));
}
