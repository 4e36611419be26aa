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
    let dir = tempfile::tempdir().unwrap();
    let clean = dir.path().join("clean");
    let start = Instant::now();
    pack(&demo(), &clean);
    let whole = start.elapsed();
    let clean = tree(&clean);
    for i in 0..10 {
        let out = dir.path().join(i.to_string());
        let mut child = narrows()
            .args(args!["pack", demo(), "-o", &out])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * i / 10 + Duration::from_micros(137) * i);
        child.kill().unwrap();
        child.wait().unwrap();
        pack(&demo(), &out);
        assert!(tree(&out) == clean, "killed at moment {i}");
    }
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
