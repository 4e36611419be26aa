//! `narrows plan` of models that nobody has downloaded.

use serde_json::Value;

use crate::harness::{Ran, args, demo, run};

fn plan(flags: &[&str]) -> Ran {
    run(["plan", "--device", "cpu"].iter().chain(flags))
}

/// Matrices of a pass, from the published configuration: all but the embedding table and the norms.
const LLAMA_70B: u64 = 70_553_706_496 - 128_256 * 8192 - 161 * 8192;

#[test]
fn shapes_by_name() {
    let flags = ["llama-70b", "--ram", "4G", "--speeds", "assumed"];
    let of = |more: &[&str]| plan(&[&flags[..], &["--json"], more].concat()).ok().json();
    let json = of(&[]);
    assert_eq!((&json["model"], &json["files"]), (&"llama-70b".into(), &false.into()));
    assert_eq!(json["parameters"], 70_553_706_496_u64);
    assert_eq!(json["weight_bytes"], 2 * 70_553_706_496_u64);
    assert_eq!(json["bytes_per_pass"], 2 * LLAMA_70B);
    assert!(json["planned_bytes"].as_u64().unwrap() <= 4 << 30);
    assert_eq!((&json["bound"], &json["disk"]["source"]), (&"disk".into(), &"assumed".into()));
    // 4.25 bits a weight for all matrices.
    assert_eq!(of(&["--quant", "nf4"])["bytes_per_pass"], LLAMA_70B / 64 * 34);
    let text = plan(&flags).ok().out;
    assert!(text.starts_with("llama-70b: 70.6 billion parameters in "), "{text}");
    assert!(text.contains("(assumed)") && text.contains("s/token (bound by disk)"), "{text}");
}

#[test]
fn shapes_with_experts() {
    let flags = ["mixtral-8x7b", "--ram", "8G", "--speeds", "assumed"];
    let json = plan(&[&flags[..], &["--json"]].concat()).ok().json();
    let experts = &json["experts"];
    assert_eq!((&experts["count"], &experts["per_token"]), (&(32 * 8).into(), &2.into()));
    assert_eq!(experts["bytes"], 3 * 2 * 4096 * 14_336);
    // All that is walked stays; only where it streams through few slots are tiles smaller.
    assert_eq!((&json["slots"], &json["tile_bytes"]), (&0.into(), &(8 << 20).into()));
    let least = plan(&["mixtral-8x7b", "--ram", "210M", "--speeds", "assumed", "--json"]).ok().json();
    assert_eq!(least["tile_bytes"], 4 << 20, "{least}");
    assert!(least["slots"].as_u64().unwrap() >= 12, "{least}");
    let text = plan(&flags).ok().out;
    assert!(text.contains("experts") && text.contains("256 (2 of a layer for a token, "), "{text}");
}

/// Computing is measured without a file, and nothing is left of what was read of the disk.
#[test]
fn speeds_without_files() {
    let source = |json: &Value, what: &str| json[what]["source"].as_str().map(str::to_owned);
    let flags = ["llama-1.1b", "--ram", "300M", "--quant", "q8", "--json"];
    let json = plan(&flags).ok().json();
    assert_eq!(
        ["disk", "compute", "attention"].map(|what| source(&json, what)),
        ["assumed", "measured", "measured"].map(|word| Some(word.to_owned()))
    );
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_str().unwrap();
    let json = plan(&[&flags[..], &["--speeds", "measured", "--path", path]].concat()).ok().json();
    assert_eq!(source(&json, "disk").as_deref(), Some("measured"));
    assert!(json["disk"]["bytes_per_second"].as_f64().unwrap() > 1.0, "{json}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn packs_that_are_not_made_yet() {
    let of = |flags: &[&str]| {
        let all = args!["plan", demo(), "--json", "--device", "cpu", "--ram", "64M"];
        run(all.into_iter().chain(flags.iter().map(Into::into))).ok().json()
    };
    let (plain, none, q8) = (of(&[]), of(&["--quant", "none"]), of(&["--quant", "q8"]));
    assert_eq!((&plain["files"], &q8["files"]), (&true.into(), &false.into()));
    assert_eq!(plain["bytes_per_pass"], none["bytes_per_pass"]);
    assert!(q8["bytes_per_pass"].as_u64() < plain["bytes_per_pass"].as_u64());
}

#[test]
fn what_there_is_no_plan_for() {
    let ran = plan(&["llama-9b"]);
    ran.refused(3, "llama-9b");
    assert!(ran.err.lines().count() < 5 && ran.err.contains("llama-70b"), "{}", ran.err);
    plan(&["./llama-70b"]).refused(3, "no such model");
    plan(&["llama-70b", "--path", "no-such-folder"]).refused(2, "no-such-folder");
    plan(&["llama-70b", "--ram", "8M", "--speeds", "assumed"]).refused(5, "RAM");
    run(args!["plan", demo(), "--path", "."]).refused(2, "--path");
    run(["run", "llama-70b", "-p", "a"]).refused(3, "llama-70b");
    for flags in [["--quant", "q3"], ["--quant", "auto"]] {
        let ran = plan(&[&["llama-70b"][..], &flags[..]].concat());
        assert!(ran.code == Some(2) && ran.err.contains(flags[1]), "{}", ran.err);
    }
}
