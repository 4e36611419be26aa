//! What a tokenizer says it takes in memory is what it takes, and not much more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(target_os = "linux")]

mod protobuf;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use narrows::Text;
use serde_json::{Value, json};

const CHILD: &str = "NARROWS_TEST_TOKENIZER_DIR";

/// Words like those of a vocabulary: short, many beginning alike.
fn words(n: usize) -> Vec<String> {
    let mut words = BTreeSet::new();
    let mut state = 1_u64;
    while words.len() < n {
        let mut word = String::new();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = 2 + (state >> 40) % 9;
        for i in 0..len {
            let spread = if i < 2 { 24 } else { 6 };
            word.push(char::from(b'a' + ((state >> (i * 4)) % spread) as u8));
        }
        words.insert(word);
    }
    let mut words: Vec<_> = words.into_iter().collect();
    // Real ones are in no order of letters.
    words.sort_by_key(|word| word.bytes().rev().collect::<Vec<_>>());
    words
}

fn tokenizer(kind: &str, n: usize) -> Value {
    let words = words(n);
    let model = if kind == "Unigram" {
        let vocab: Vec<_> = words.iter().map(|word| json!([word, -1.5])).collect();
        json!({"type": "Unigram", "unk_id": 0, "vocab": vocab})
    } else {
        let mut vocab = serde_json::Map::new();
        for word in &words {
            for part in [word, &word[..1], &word[1..]] {
                let next = vocab.len();
                vocab.entry(part).or_insert_with(|| next.into());
            }
        }
        let merges: Vec<_> = words.iter().map(|word| json!([&word[..1], &word[1..]])).collect();
        json!({"type": "BPE", "vocab": vocab, "merges": merges})
    };
    json!({"version": "1.0", "added_tokens": [], "model": model})
}

/// A table of the words, as bytes and as what merges them two by two.
fn ranks(n: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |bytes: &[u8]| -> String {
        let chunk = |three: &[u8]| {
            let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - three.len()));
            let digit = |at: usize| match at <= three.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * at)) as usize % 64]),
                false => '=',
            };
            [0, 1, 2, 3].map(digit)
        };
        bytes.chunks(3).flat_map(chunk).collect()
    };
    let bytes = (0..=255_u8).map(|byte| vec![byte]);
    let all = bytes.chain(words(n).into_iter().map(String::into_bytes));
    all.enumerate()
        .map(|(rank, token)| format!("{} {rank}\n", base64(&token)))
        .collect::<String>()
        .into_bytes()
}

/// The name and the bytes of a tokenizer's file.
fn file(kind: &str, n: usize, pretty: bool) -> (&'static str, Vec<u8>) {
    let normal = |n| words(n).into_iter().map(|word| (word, protobuf::NORMAL));
    let table = match kind {
        "merged pieces" => protobuf::model(2, normal(n)),
        "probable pieces" => protobuf::model(1, normal(n)),
        "control pieces" => protobuf::model(2, words(n).into_iter().map(|word| (word, protobuf::CONTROL))),
        "ranks" => ranks(n),
        _ => {
            let value = tokenizer(kind, n);
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            return ("tokenizer.json", text.into_bytes());
        }
    };
    ("tokenizer.model", table)
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// In a process of its own, which has not used its memory for anything else: what reading takes at most.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    // What the program itself takes to read any.
    let small = tempfile::tempdir().unwrap();
    std::fs::write(small.path().join("config.json"), r#"{"model_type": "chatglm"}"#).unwrap();
    for kind in ["ranks", "merged pieces", "probable pieces", "BPE"] {
        let (name, bytes) = file(kind, 10, false);
        std::fs::write(small.path().join(name), bytes).unwrap();
        drop(Text::read(small.path()).unwrap());
    }
    let before = status("VmRSS");
    let says = Text::memory_of(dir).unwrap().get();
    let text = Text::read(dir).unwrap();
    assert_eq!(text.memory().get(), says);
    println!("took {} says {says}", status("VmHWM") - before);
}

#[test]
fn is_what_it_says() {
    for (kind, n, pretty) in [
        ("BPE", 2_000, false),
        ("BPE", 60_000, false),
        ("BPE", 60_000, true),
        ("Unigram", 2_000, false),
        ("Unigram", 40_000, true),
        ("merged pieces", 2_000, false),
        ("merged pieces", 60_000, false),
        ("merged pieces", 130_000, false),
        ("probable pieces", 60_000, false),
        ("control pieces", 5_000, false),
        ("control pieces", 60_000, false),
        ("ranks", 2_000, false),
        ("ranks", 60_000, false),
        ("ranks", 130_000, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (name, text) = file(kind, n, pretty);
        std::fs::write(dir.path().join(name), &text).unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "chatglm"}"#).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&child.stdout);
        let line = out.lines().find_map(|line| line.split_once("took ")).unwrap_or_else(|| panic!("{out}")).1;
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (took, says) = (numbers.next().unwrap(), numbers.next().unwrap());
        println!("{kind} {n} pretty {pretty}: {} bytes of file, took {took}, says {says}", text.len());
        assert!(took <= says, "{kind} {n} pretty {pretty}: took {took}, says {says}");
        assert!(says <= 2 * took + (4 << 20), "{kind} {n} pretty {pretty}: took {took}, says {says}");
    }
}
