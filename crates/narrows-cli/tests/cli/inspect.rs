//! `narrows inspect --error` beside sums over what is in the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::{Ran, args, checkpoint, copy_dir, demo, narrows, run, tree};

/// The number that 16 bits are in IEEE 754 binary16, for those that are finite.
fn half(bits: [u8; 2]) -> f64 {
    let bits = u16::from_le_bytes(bits);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => fraction * 2_f64.powi(-24),
        _ => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
    }
}

/// Weight `col` of a quantised row, as docs/FORMAT.md draws it.
fn weight(encoding: &str, row: &[u8], col: usize) -> f64 {
    let size = if encoding == "q8" { 32 } else { 64 };
    let (block, within) = (col / size, col % size);
    let group = &row[block / 8 * 272..];
    let scale = half([group[block % 8 * 2], group[block % 8 * 2 + 1]]);
    let codes = &group[16 + block % 8 * 32..];
    let product = if encoding == "q8" {
        f64::from(codes[within].cast_signed()) * scale
    } else {
        let code = codes[within / 2] >> (4 * (1 - within % 2)) & 15;
        f64::from(narrows_shard::blocks::NF4[usize::from(code)]) * scale
    };
    f64::from(product as f32)
}

/// Sums of squares of differences and of the source: of every quantised matrix, and of all tensors together.
fn sums(source: &Path, pack: &Path, encoding: &str) -> (BTreeMap<String, (f64, f64)>, (f64, f64)) {
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let source = SafeTensors::deserialize(&bytes).unwrap();
    let (mut each, mut all) = (BTreeMap::new(), (0.0, 0.0));
    for (file, bytes) in tree(pack).iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let shard = SafeTensors::deserialize(bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (name, tensor) in shard.tensors().into_iter().filter(|(name, _)| !name.starts_with("__filler__"))
        {
            let exact = source.tensor(&name).unwrap();
            let cols = *exact.shape().last().unwrap();
            let numbers: Vec<f64> = exact
                .data()
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&[low, high]| f64::from(f32::from_bits(u32::from_le_bytes([0, 0, low, high]))))
                .collect();
            let squares: f64 = numbers.iter().map(|x| x * x).sum();
            let mut differences = 0.0;
            if tensor.dtype() == safetensors::Dtype::U8 {
                let row_bytes = tensor.shape()[1];
                for (i, exact) in numbers.iter().enumerate() {
                    let row = &tensor.data()[i / cols * row_bytes..];
                    differences += (weight(encoding, row, i % cols) - exact).powi(2);
                }
                each.insert(name, (differences, squares));
            } else {
                assert!(tensor.data() == exact.data(), "{name}");
            }
            all = (all.0 + differences, all.1 + squares);
        }
    }
    (each, all)
}

#[track_caller]
fn assert_near(found: &Value, (differences, squares): (f64, f64), what: &str) {
    let (found, want) = (found.as_f64().unwrap(), (differences / squares).sqrt());
    assert!((found / want - 1.0).abs() < 1e-9, "{what}: {found}, not {want}");
}

#[test]
fn a_quantised_pack_beside_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let before = tree(&demo());
    let mut measured = BTreeMap::new();
    // What each encoding costs of weights that are nearly normally distributed.
    for (encoding, least, most) in [("q8", 0.003, 0.01), ("nf4", 0.07, 0.11)] {
        let pack = dir.path().join(encoding);
        run(args!["pack", demo(), "-o", &pack, "--quant", encoding]).ok();
        let named = |with: &Path| {
            let mut error = std::ffi::OsString::from("--error=");
            error.push(with);
            args!["inspect", &pack, error, "--json"]
        };
        let report = run(named(&demo())).ok().json();
        let error = &report["error"];
        assert_eq!(error["source"].as_str().unwrap(), demo().to_str().unwrap());
        let (each, all) = sums(&demo(), &pack, encoding);
        let tensors = error["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), each.len());
        let mut together = (0.0, 0.0);
        for tensor in tensors {
            let name = tensor["name"].as_str().unwrap();
            assert_near(&tensor["relative_error"][encoding], each[name], name);
            together = (together.0 + each[name].0, together.1 + each[name].1);
        }
        assert_near(&error["relative_error"][encoding], together, encoding);
        assert_near(&error["total"], all, "total");
        let whole = error["relative_error"][encoding].as_f64().unwrap();
        assert!((least..most).contains(&whole), "{encoding}: {whole}");
        measured.insert(encoding, error.clone());

        let human = run(args!["inspect", &pack, format!("--error={}", demo().display())]).ok().out;
        assert!(human.contains("all in this encoding") && human.contains(" %"), "{human}");
        // A checkpoint of another model, and none that is known.
        run(named(&checkpoint("qwen3"))).refused_somehow_with("model.");
        run(args!["inspect", &pack, "--error"]).refused(2, "--error=CHECKPOINT");
    }

    // What it would cost is what it does.
    let would = run(args!["inspect", demo(), "--error", "--json"]).ok().json();
    assert!(would["error"]["source"].is_null() && would["error"]["total"].is_null());
    for (encoding, measured) in &measured {
        let (would, did) = (&would["error"], measured);
        assert_eq!(would["relative_error"][encoding], did["relative_error"][encoding]);
        for (would, did) in
            would["tensors"].as_array().unwrap().iter().zip(did["tensors"].as_array().unwrap())
        {
            assert_eq!(would["name"], did["name"]);
            assert_eq!(would["relative_error"][encoding], did["relative_error"][encoding]);
        }
    }
    assert!(run(args!["inspect", demo(), "--json"]).ok().json()["error"].is_null());
    assert!(tree(&demo()) == before, "nothing is written");
}

#[test]
fn a_pack_finds_its_source_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, pack) = (dir.path().join("hub"), dir.path().join("pack"));
    let snapshot = cache.join("models--some--demo/snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    copy_dir(&demo(), &snapshot);
    run(args!["pack", &snapshot, "-o", &pack, "--quant", "nf4"]).ok();
    let ask = |variable: &str, value: &Path| {
        let command = &mut narrows();
        for name in ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        Ran::of(
            &command
                .env(variable, value)
                .args(args!["inspect", &pack, "--error", "--json"])
                .output()
                .unwrap(),
        )
    };
    let named = run(args!["inspect", &pack, format!("--error={}", demo().display()), "--json"]).ok().json();
    for (variable, value) in [("HF_HUB_CACHE", &*cache), ("HF_HOME", dir.path())] {
        let found = ask(variable, value).ok().json();
        assert_eq!(found["error"]["source"].as_str().unwrap(), snapshot.to_str().unwrap());
        assert_eq!(found["error"]["relative_error"], named["error"]["relative_error"]);
        assert_eq!(found["error"]["tensors"], named["error"]["tensors"]);
    }
    ask("HF_HUB_CACHE", &dir.path().join("elsewhere")).refused(2, "some/demo");
    // Another file of that name is not what was packed.
    fs::write(snapshot.join("model.safetensors"), "short").unwrap();
    ask("HF_HUB_CACHE", &cache).refused(2, "--error=CHECKPOINT");
}

impl Ran {
    #[track_caller]
    fn refused_somehow_with(&self, word: &str) {
        assert!(matches!(self.code, Some(2 | 4)), "{:?} {}", self.code, self.err);
        assert!(
            self.no_result() && self.err.starts_with("error:") && self.err.contains(word),
            "{}",
            self.err
        );
    }
}

/// How positions are scaled is data, in the words of config.json.
#[test]
fn scaled_positions() {
    let scaling = |name: &str| {
        let ran = run(args!["inspect", checkpoint(name), "--json"]).ok();
        let text = run(args!["inspect", checkpoint(name)]).ok().out;
        let line = text.lines().find(|line| line.starts_with("rope ")).unwrap().to_owned();
        (ran.json()["rope_scaling"].clone(), line)
    };
    assert!(scaling("llama").0.is_null() && !scaling("llama").1.contains("scaling"));
    for (name, keys, words) in [
        ("rope-linear", &["factor"][..], "scaling linear by "),
        ("rope-dynamic", &["factor", "original_max_position_embeddings"], "scaling dynamic by "),
        (
            "llama3-rope-tied-sharded",
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            "scaling llama3 by ",
        ),
        (
            "rope-yarn",
            &[
                "factor",
                "original_max_position_embeddings",
                "beta_fast",
                "beta_slow",
                "truncate",
                "attention_factor",
            ],
            "scaling yarn by ",
        ),
    ] {
        let (json, line) = scaling(name);
        let found: Vec<_> = json.as_object().unwrap().keys().filter(|key| *key != "rope_type").collect();
        assert_eq!(found, keys, "{name}");
        assert_eq!(json["rope_type"], words.split(' ').nth(1).unwrap(), "{name}");
        let factor = json["factor"].as_f64().unwrap();
        assert!(factor > 1.0 && line.contains(&format!("{words}{factor}")), "{name}: {line}");
    }
}
