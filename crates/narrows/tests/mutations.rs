//! Damaged tokenizers, templates and configurations are errors: no panic, no signal, no hang, no memory without bound.
//!
//! A few hundred damages by default; `NARROWS_TEST_MUTATIONS=10000 cargo test -p narrows --test mutations` makes as
//! many of each kind, and `NARROWS_TEST_SEED` others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use narrows::{ChatOptions, ChatTemplate, GenerationDefaults, Message, Program, Text};
use serde_json::{Map, Value, json};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn data(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Damages bytes: flips, cuts, repeats.
fn damage_bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(40)).min(bytes.len());
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part.repeat(1 + random.below(30)));
            }
            _ => bytes[at] = b"\"{}[]:,0-e\\ "[random.below(12)],
        }
    }
}

/// Another value in place of one somewhere in `value`.
fn damage_value(random: &mut Random, value: &mut Value) {
    let go_on = random.below(4) > 0;
    match value {
        Value::Array(list) if go_on && !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(6) {
                0 => drop(list.remove(at)),
                1 => {
                    let copy = list[at].clone();
                    list.extend(std::iter::repeat_n(copy, 1 + random.below(70)));
                }
                _ => damage_value(random, &mut list[at]),
            }
        }
        Value::Object(map) if go_on && !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).unwrap().clone();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let other = map.values().nth(random.below(map.len())).unwrap().clone();
                    map[&key] = other;
                }
                _ => damage_value(random, &mut map[&key]),
            }
        }
        _ => {
            let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
            let replace = |pattern: Value, content: String| {
                let step = json!({"type": "Replace", "pattern": pattern, "content": content});
                let list = vec![step; 6];
                json!({"type": "Sequence", "normalizers": list, "decoders": list})
            };
            let pool = [
                Value::Null,
                json!(true),
                json!(-1),
                json!(0),
                json!(3.5),
                json!(4_294_967_295_u64),
                json!(u64::MAX),
                json!(1e308),
                json!(""),
                json!("a"),
                json!("\u{0}"),
                json!("▁"),
                json!("x".repeat(100_000)),
                json!([]),
                json!({}),
                json!(["a", "b", "c"]),
                nested,
                replace(json!({"String": "a"}), "a".repeat(1000)),
                replace(json!({"Regex": "(a|aa)+$|"}), "b".to_owned()),
                replace(json!({"Regex": "(?=e)"}), "ee".to_owned()),
                json!({"type": "Prepend", "prepend": "y".repeat(50_000)}),
                json!({"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAD/////AAA="}),
                json!({"type": "Split", "pattern": {"Regex": "(a*)*b|"}, "behavior": "Isolated", "invert": true}),
                json!({"type": "FixedLength", "length": 0}),
                json!({"type": "CharDelimiterSplit", "delimiter": "l"}),
                json!({"type": "Strip", "content": "h", "start": 1_000_000, "stop": 7}),
                json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
            ];
            *value = pool[random.below(pool.len())].clone();
        }
    }
}

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Seconds that this process has computed; what others do on the machine does not count.
fn computed() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn check(start: f64, what: &dyn Fn() -> String) {
    let took = computed() - start;
    assert!(took < 10.0, "{took} s: {}", what());
    assert!(peak() < 1 << 30, "{} bytes: {}", peak(), what());
}

#[test]
fn damaged_tokenizers() {
    let goldens = data("tokenizers.json");
    let bases = goldens["bases"].as_object().unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    let mut random = Random(setting("NARROWS_TEST_SEED", 0x9e37_79b9_7f4a_7c15) | 1);
    let dir = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, 0);
    for _ in 0..setting("NARROWS_TEST_MUTATIONS", 300) {
        let case = &cases[random.below(cases.len())];
        let mut files: Map<String, Value> = case["files"].as_object().unwrap().clone();
        let mut tokenizer = bases[case["base"].as_str().unwrap()].as_object().unwrap().clone();
        tokenizer.extend(case["keys"].as_object().unwrap().clone());
        files.insert("tokenizer".to_owned(), Value::Object(tokenizer));
        let names: Vec<_> = files.keys().cloned().collect();
        let hit = if random.below(3) > 0 {
            "tokenizer".to_owned()
        } else {
            names[random.below(names.len())].clone()
        };
        let by_bytes = random.below(3) == 0;
        if !by_bytes {
            for _ in 0..=random.below(3) {
                damage_value(&mut random, &mut files[&hit]);
            }
        }
        for name in ["tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "config"] {
            let path = dir.path().join(format!("{name}.json"));
            let _ = std::fs::remove_file(&path);
            if let Some(value) = files.get(name) {
                let mut bytes = value.to_string().into_bytes();
                if by_bytes && name == hit {
                    damage_bytes(&mut random, &mut bytes);
                }
                std::fs::write(path, bytes).unwrap();
            }
        }
        let start = computed();
        let _ = Text::stop_tokens_of(dir.path());
        let _ = Text::memory_of(dir.path());
        match Text::read(dir.path()) {
            Ok(text) => {
                read += 1;
                for input in ["hello a  12\n\nx<|end|> é \u{3000}'s aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", ""]
                {
                    for special in [true, false] {
                        if let Ok(ids) = text.encode(input, special) {
                            let _ = text.decode(&ids);
                        }
                    }
                }
                let _ = text.decode(&[0, 1, 2, 5, 70, 105, 261, 266, u32::MAX]);
                let _ = text.chat_template();
            }
            Err(_) => refused += 1,
        }
        check(start, &|| files[&hit].to_string().chars().take(300).collect());
    }
    assert!(read > refused / 50 && refused > read / 50, "{read} read, {refused} refused");
}

#[test]
fn damaged_tables() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tables");
    let names = [
        "bpe-bare.model",
        "bpe-unused.model",
        "unigram-bytes.model",
        "unigram-rules.model",
        "ranks.tiktoken",
    ];
    let tables = names.map(|name| std::fs::read(dir.join(name)).unwrap());
    let mut random = Random(setting("NARROWS_TEST_SEED", 0x0123_4567_89ab_cdef) | 1);
    let dir = tempfile::tempdir().unwrap();
    let model_types = ["chatglm", "qwen", "internlm2", "baichuan", "kimi_k2", "llama"];
    let (mut read, mut refused) = (0, 0);
    for _ in 0..setting("NARROWS_TEST_MUTATIONS", 300) {
        let at = random.below(tables.len());
        let mut bytes = tables[at].clone();
        // Many a damage to one of a thousand pieces is none that a reader could see.
        for _ in 0..random.below(4) {
            damage_bytes(&mut random, &mut bytes);
        }
        let mut config = json!({"model_type": model_types[random.below(model_types.len())]});
        let mut settings = json!({"add_bos_token": true, "tokenizer_class": "LlamaTokenizer", "legacy": false,
            "added_tokens_decoder": {"300": {"content": "<x>", "special": true}}});
        let mut asked = json!({"user_token_id": 5, "assistant_token_id": 6, "chat_format": "chatml"});
        for value in [&mut config, &mut settings, &mut asked] {
            if random.below(4) == 0 {
                damage_value(&mut random, value);
            }
        }
        for (name, value) in
            [("config", &config), ("tokenizer_config", &settings), ("generation_config", &asked)]
        {
            std::fs::write(dir.path().join(format!("{name}.json")), value.to_string()).unwrap();
        }
        std::fs::write(dir.path().join("tokenizer.model"), &bytes).unwrap();
        let start = computed();
        let _ = Text::stop_tokens_of(dir.path());
        let _ = Text::memory_of(dir.path());
        match Text::read(dir.path()) {
            Ok(text) => {
                read += 1;
                let spaces = " ".repeat(3000);
                for input in ["hello of the  12\n\nx<x> é \u{3000}'s 日本 aaaaaaaaaaaaaaab", "", &spaces] {
                    if let Ok(ids) = text.encode(input, true) {
                        let _ = text.decode(&ids);
                    }
                }
                let _ = text.decode(&[0, 1, 2, 5, 70, 105, 261, 266, u32::MAX]);
                if let Ok(Some(template)) = text.chat_template() {
                    let options = ChatOptions::new(SystemTime::UNIX_EPOCH, 0);
                    let _ = template.render(&[Message::new("user", "hi")], &options);
                }
            }
            Err(_) => refused += 1,
        }
        check(start, &|| format!("{} {config} {settings} {asked}", names[at]));
    }
    assert!(read > refused / 50 && refused > read / 50, "{read} read, {refused} refused");
}

#[test]
fn damaged_templates() {
    let goldens = data("template-semantics.json");
    let cases: Vec<_> =
        goldens["cases"].as_array().unwrap().iter().map(|case| case[0].as_str().unwrap()).collect();
    let mut random = Random(setting("NARROWS_TEST_SEED", 0x2545_f491_4f6c_dd1d) | 1);
    let mut options = ChatOptions::new(SystemTime::UNIX_EPOCH, 0);
    options.variables = serde_json::from_value(goldens["context"].clone()).unwrap();
    let messages = [Message::new("system", "s"), Message::new("user", " hi\n")];
    let numbers =
        ["99999999999", "-1", "0", "1e308", "65536", "'x'*99999", "range(99999)", "none", "messages"];
    for _ in 0..setting("NARROWS_TEST_MUTATIONS", 300) {
        let mut source = String::new();
        for _ in 0..=random.below(3) {
            let part = cases[random.below(cases.len())];
            source += &part.replace('3', numbers[random.below(numbers.len())]);
        }
        if random.below(2) == 0 {
            source = format!("{{% for q in range(9999) %}}{source}{{% endfor %}}");
        }
        let mut bytes = source.into_bytes();
        if random.below(3) > 0 {
            damage_bytes(&mut random, &mut bytes);
        }
        let source = String::from_utf8_lossy(&bytes).into_owned();
        let start = computed();
        let template = ChatTemplate::new("t".into(), source.clone(), BTreeMap::new());
        let _ = template.render(&messages, &options);
        check(start, &|| source.chars().take(300).collect());
    }
}

#[test]
fn damaged_configurations() {
    let mut random = Random(setting("NARROWS_TEST_SEED", 0x1234_5678_9abc_def1) | 1);
    let dir = tempfile::tempdir().unwrap();
    let files = ["../../models/demo/config.json", "checkpoints/mixtral/config.json"];
    let configs = files.map(data);
    let asked = data("../../models/demo/generation_config.json");
    let (mut read, mut refused) = (0, 0);
    for _ in 0..setting("NARROWS_TEST_MUTATIONS", 300) {
        let mut value = configs[random.below(2)].clone();
        let mut generation = asked.clone();
        damage_value(&mut random, &mut value);
        damage_value(&mut random, &mut generation);
        let (mut config, mut generation) =
            (value.to_string().into_bytes(), generation.to_string().into_bytes());
        if random.below(3) == 0 {
            damage_bytes(&mut random, &mut config);
            damage_bytes(&mut random, &mut generation);
        }
        std::fs::write(dir.path().join("generation_config.json"), &generation).unwrap();
        let start = computed();
        match Program::parse(Path::new("config.json"), &config) {
            Ok(a) => {
                read += 1;
                let positions = a.dims.max_positions.unwrap_or(4096).min(1 << 20);
                for rope in &a.ropes {
                    assert!(rope.inverse_frequencies(positions).iter().all(|f| f.is_finite()));
                }
            }
            Err(_) => refused += 1,
        }
        if let Ok(defaults) = GenerationDefaults::read(dir.path()) {
            let _ = defaults.sampling(7).check();
        }
        check(start, &|| String::from_utf8_lossy(&config).chars().take(300).collect());
    }
    assert!(read > refused / 50 && refused > read / 50, "{read} read, {refused} refused");
}
