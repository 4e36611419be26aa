//! `narrows plan` of models that nobody has downloaded.

use serde_json::Value;

use crate::harness::{Ran, args, checkpoint, demo, run};

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

/// What a laptop's user asks: how would a 70B run on my card of 4 GiB? No kernels, no driver and no model are needed.
#[test]
fn a_gpu_that_is_not_here() {
    let ask = |flags: &[&str]| {
        run(["plan", "llama-70b", "--ram", "16G", "--speeds", "assumed"].iter().chain(flags))
    };
    let ran = ask(&["--vram", "4G"]).ok();
    assert!(ran.err.starts_with("device: assumed (") && ran.err.contains("link 12 GB/s"), "{}", ran.err);
    let described = [
        "--vram",
        "4G",
        "--assume-context",
        "300M",
        "--assume-link",
        "25GB/s",
        "--assume-bandwidth",
        "0.4T",
        "--assume-disk",
        "7G",
    ];
    insta::assert_snapshot!("plan-of-an-absent-gpu", ask(&described).ok().out);

    let json = |flags: &[&str]| ask(&[flags, &["--json"]].concat()).ok().json();
    let (plain, described) = (json(&["--vram", "4G"]), json(&described));
    let need = |json: &Value, what: &str| {
        let needs = json["device"]["needs"].as_array().unwrap();
        needs.iter().find(|need| need["what"] == what).unwrap()["bytes"].as_u64().unwrap()
    };
    for (json, context, rates) in [
        (&plain, 514_u64 << 20, [12e9, 200e9, 200e9, 3e9]),
        (&described, 302 << 20, [25e9, 400e9, 400e9, 7e9]),
    ] {
        let device = &json["device"];
        assert_eq!((&device["assumed"], &device["budget_bytes"]), (&true.into(), &(4_u64 << 30).into()));
        assert!(device["planned_bytes"].as_u64().unwrap() <= 4 << 30);
        assert_eq!(need(json, "CUDA context"), context);
        for (speed, rate) in
            [&device["h2d"], &json["compute"], &json["attention"], &json["disk"]].iter().zip(rates)
        {
            assert_eq!(
                (speed["bytes_per_second"].as_f64(), &speed["source"], &speed["measured"]),
                (Some(rate), &"assumed".into(), &false.into())
            );
        }
        let (disk, h2d) = (&json["disk"], &device["h2d"]);
        let seconds = |speed: &Value| speed["seconds_per_pass"].as_f64().unwrap();
        let bytes = |bytes: &Value| bytes.as_u64().unwrap() as f64;
        assert!((seconds(disk) - bytes(&json["disk_bytes_per_pass"]) / rates[3]).abs() < 1e-9);
        assert!((seconds(h2d) - bytes(&device["h2d_bytes_per_pass"]) / rates[0]).abs() < 1e-9);
        // What stays on the device is in RAM too, or read once.
        assert!(bytes(&device["resident_bytes"]) > 3e9);
    }
    // The weights that are on a device are read by it.
    let all = json(&["--vram", "200G", "--assume-bandwidth", "4T"]);
    assert_eq!(all["bound"], "compute");
    let pass = all["bytes_per_pass"].as_u64().unwrap() as f64;
    assert!((all["compute"]["seconds_per_pass"].as_f64().unwrap() - pass / 4e12).abs() < 1e-6, "{all}");
    // Files, of a model and of a pack that is not made yet; nothing is measured of a GPU that is not here.
    for flags in [&["--speeds", "measured"][..], &["--quant", "q8"]] {
        let ran = run(args!["plan", demo(), "--ram", "64M", "--vram", "600M", "--json"]
            .into_iter()
            .chain(flags.iter().map(Into::into)));
        let json = ran.ok().json();
        assert_eq!(
            (&json["device"]["assumed"], &json["compute"]["source"]),
            (&true.into(), &"assumed".into())
        );
    }
    run(args!["plan", checkpoint("mixtral"), "--vram", "1G", "--speeds", "assumed"]).ok();
}

/// The smallest budget is told, and works.
#[test]
fn the_smallest_gpu() {
    let ask = |vram: &str| run(["plan", "llama-70b", "--ram", "16G", "--speeds", "assumed", "--vram", vram]);
    let ran = ask("100M");
    ran.refused(5, "VRAM");
    let smallest = ran.err.split("--vram ").nth(1).unwrap().split(' ').next().unwrap();
    ask(smallest).ok();
    let below: u64 = smallest.trim_end_matches('M').parse().unwrap();
    ask(&format!("{}M", below - 2)).refused(5, "VRAM");
}

#[test]
fn assumptions_that_have_no_place() {
    let ask = |flags: &str| run(format!("plan llama-8b --ram 8G --speeds assumed {flags}").split(' '));
    for flags in ["--assume-link 25G", "--assume-bandwidth 1T", "--assume-context 1G"] {
        ask(flags).refused(2, "give the size");
        for more in ["--vram auto", "--vram 50%"] {
            ask(&format!("{flags} {more}")).refused(2, "give the size");
        }
        for device in ["cpu", "cuda:0"] {
            ask(&format!("{flags} --vram 4G --device {device}")).refused(2, "drop --device");
        }
    }
    ask("--assume-disk 5G").ok();
    for rate in ["25", "0G", "-3G", "fast"] {
        ask(&format!("--vram 4G --assume-link={rate}")).refused(2, "not a rate");
    }
    // Who names a device wants that one; the hint leads to a plan.
    let named = ask("--vram 4G --device cuda:0");
    named.refused(6, "");
    assert!(named.err.contains("hint: without --device"), "{}", named.err);
    ask("--vram 50%").refused(6, "--vram: no GPU computes here");
    // What computes is not assumed.
    let ran = run(args!["run", demo(), "-p", "a", "--vram", "1G"]);
    ran.refused(6, "--vram: no GPU computes here");
    assert!(ran.err.contains("narrows plan MODEL --vram 1G"), "{}", ran.err);
    run(args!["run", demo(), "-p", "a", "--vram", "1G", "--assume-link", "25G"]).refused(2, "--assume-link");
}
