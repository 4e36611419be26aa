//! Packs: complete after any interruption, and damage is found.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{args, checkpoint, copy_dir, demo, narrows, run, tree};

fn pack(source: &Path, out: &Path) {
    run(args!["pack", source, "-o", out]).ok();
}

/// kill -9 at ten moments spread over a pack, then a second pack: the same bytes as without.
#[test]
fn killed_at_ten_moments() {
    for quant in ["none", "nf4"] {
        let dir = tempfile::tempdir().unwrap();
        let clean = dir.path().join("clean");
        let pack = |out: &Path| args!["pack", demo(), "-o", out, "--quant", quant];
        let start = Instant::now();
        run(pack(&clean)).ok();
        let whole = start.elapsed();
        let clean = tree(&clean);
        for i in 0..10 {
            let out = dir.path().join(i.to_string());
            let mut child =
                narrows().args(pack(&out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole * i / 10 + Duration::from_micros(137) * i);
            child.kill().unwrap();
            child.wait().unwrap();
            run(pack(&out)).ok();
            assert!(tree(&out) == clean, "{quant}, killed at moment {i}");
        }
    }
}

/// Parts go where the options say, the pack computes nearly what the model does, and `auto` says what it chose.
#[test]
fn quantised() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = fs::read_to_string(demo().join("heldout.txt")).unwrap();
    fs::write(path("text"), &text[..text.floor_char_boundary(6000)]).unwrap();
    let perplexity = |model: &Path| {
        let ran = run(args!["eval", model, "-f", path("text"), "--window", "128", "--json"]).ok();
        ran.json()["perplexity"].as_f64().unwrap()
    };
    let exact = perplexity(&demo());
    // Encodings of gate_proj and q_proj, and how far off they may be.
    for (name, options, mlp, attention, tolerance) in [
        ("q8", &["--quant", "q8"][..], "q8", "q8", 0.002),
        ("nf4", &["--quant", "nf4", "--quant-head", "none"], "nf4", "nf4", 0.03),
        ("mixed", &["--quant", "nf4", "--quant-attn", "q8"], "nf4", "q8", 0.03),
        ("attention", &["--quant-attn", "nf4", "--threads", "1"], "bf16", "nf4", 0.03),
        ("rest", &["--quant", "q8", "--quant-attn", "none"], "q8", "bf16", 0.002),
    ] {
        let out = path(name);
        let pack: Vec<_> = args!["pack", demo(), "-o", &out]
            .into_iter()
            .chain(options.iter().map(std::ffi::OsString::from))
            .collect();
        run(&pack).ok();
        assert!(run(&pack).ok().out.contains("already packed"));
        run(args!["verify", &out]).ok();
        let report = run(args!["inspect", &out, "--tensors", "--json"]).ok().json();
        let tensors = report["tensors"].as_array().unwrap();
        let encoding = |suffix: &str| {
            let tensor = tensors.iter().find(|t| t["name"].as_str().unwrap().ends_with(suffix)).unwrap();
            tensor["encoding"].as_str().unwrap().to_owned()
        };
        assert_eq!(encoding("gate_proj.weight"), mlp, "{name}");
        assert_eq!(encoding("o_proj.weight"), attention, "{name}");
        for kept in ["embed_tokens.weight", "layernorm.weight", "model.norm.weight"] {
            assert_eq!(encoding(kept), "bf16", "{name}");
        }
        let found = perplexity(&out);
        assert!((found / exact - 1.0).abs() <= tolerance, "{name}: {found}, not {exact}");
    }
    run(args!["pack", path("q8"), "-o", path("x"), "--quant", "nf4"]).refused(4, "in q8 already");
    assert_eq!(run(args!["pack", demo(), "-o", path("x"), "--quant", "int3"]).code, Some(2));
    let auto = run(args!["pack", demo(), "-o", path("auto"), "--quant", "auto", "--json"]).ok();
    assert!(auto.json()["quantisation"]["reason"].as_str().unwrap().contains("none has"), "{}", auto.out);
    assert!(auto.err.contains("memory available"), "{}", auto.err);
}

/// The same with a source that is freed on the way.
#[test]
fn killed_while_consuming_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    let sharded = checkpoint("llama3-rope-tied-sharded");
    let start = Instant::now();
    pack(&sharded, &clean);
    let whole = start.elapsed();
    let clean = tree(&clean);
    for i in 0..10 {
        let (source, out) = (dir.path().join(format!("source-{i}")), dir.path().join(i.to_string()));
        copy_dir(&sharded, &source);
        let consume = || args!["pack", &source, "-o", &out, "--consume-source"];
        let mut child =
            narrows().args(consume()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * i / 8);
        child.kill().unwrap();
        child.wait().unwrap();
        // Where the first run got to its end, the source is gone and the pack is there.
        let done = out.join("narrows.json").exists();
        let again = run(consume());
        assert!(again.code == Some(0) || done, "moment {i}: {}", again.err);
        assert!(tree(&out) == clean, "killed at moment {i}");
        assert!(!tree(&source).iter().any(|(name, _)| name.starts_with("model-")), "killed at moment {i}");
    }
}

#[test]
fn verify_finds_damage() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pack");
    pack(&checkpoint("qwen3"), &out);
    assert!(run(args!["verify", &out]).ok().out.contains("checksum"));
    for (name, good) in tree(&out) {
        let path = out.join(&name);
        for bit in (0..good.len() * 8).step_by(good.len() * 8 / 3 + 1) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            run(args!["verify", &out]).refused_somehow(&name);
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        run(args!["verify", &out]).refused_somehow(&name);
        fs::remove_file(&path).unwrap();
        run(args!["verify", &out]).refused_somehow(&name);
        fs::write(&path, &good).unwrap();
    }
    assert!(run(args!["verify", checkpoint("qwen3")]).ok().out.contains("no checksums"));
}

impl crate::harness::Ran {
    #[track_caller]
    fn refused_somehow(&self, name: &str) {
        assert!(matches!(self.code, Some(3 | 4 | 9)), "{name}: {:?} {}", self.code, self.err);
        assert_eq!(
            self.err.lines().filter(|line| line.starts_with("error:")).count(),
            1,
            "{name}: {}",
            self.err
        );
    }
}

#[test]
fn places_that_cannot_hold_a_pack() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("llama");
    run(args!["pack", &source, "-o", source.join("config.json/x")]).refused(9, "config.json");
    fs::write(dir.path().join("letter"), "dear").unwrap();
    let ran = run(args!["pack", &source, "-o", dir.path()]);
    assert!(ran.code != Some(0) && ran.err.starts_with("error:"), "{}", ran.err);
    assert_eq!(tree(dir.path()).len(), 1, "a folder with other files is left as it is");
    let other = dir.path().join("other");
    pack(&checkpoint("qwen3"), &other);
    let before = tree(&other);
    assert_ne!(run(args!["pack", &source, "-o", &other]).code, Some(0));
    assert!(tree(&other) == before, "a pack of another model is left as it is");
}
