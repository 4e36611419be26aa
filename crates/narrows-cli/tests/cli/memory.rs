//! A model bigger than its budget: it streams, says so, and stays within.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Ran, args, checkpoint, copy_dir, demo, narrows, run, save_ids};

#[test]
fn a_budget_smaller_than_the_model() {
    let king = |ram: &str, io: &str| {
        let flags = args!["run", demo(), "-p", "And the king said unto", "-n", "12", "--greedy", "--json"];
        run(flags.into_iter().chain(args!["--ram", ram, "--io", io, "--tile", "256K"])).ok()
    };
    let whole = king("1G", "auto").json();
    assert_eq!(whole["stats"]["bound"], "compute");
    let read = |stats: &serde_json::Value| stats["disk"]["bytes"].as_u64().unwrap();
    for io in ["auto", "buffered", "mmap"] {
        let ran = king("8M", io);
        assert!(ran.err.contains("\nplan: "), "{}", ran.err);
        let json = ran.json();
        assert_eq!(json["text"], whole["text"]);
        let stats = &json["stats"];
        assert!(stats["peak_host_bytes"].as_u64().unwrap() <= 8 << 20);
        // The weights once, and in each of the 11 further passes what did not stay.
        assert!(read(stats) > read(&whole["stats"]) + 11 * (1 << 20), "{io}: {stats}");
        assert!(stats["seconds_per_token"].as_f64().unwrap() > 0.0);
        assert!(stats["predicted_seconds_per_token"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn budgets_that_cannot_be() {
    for ram in ["0", "-5G", "lots", "12Q", "0%", "101%", ""] {
        let ran = run(args!["run", demo(), "-p", "a", "--ram", ram]);
        assert_eq!(ran.code, Some(2), "{ram}: {}", ran.err);
    }
    let ran = run(args!["run", demo(), "-p", "a", "--ram", "1M"]);
    ran.refused(5, "needs");
    // The hint names a budget that works.
    let hint = ran.err.split("--ram ").nth(1).unwrap().split(' ').next().unwrap();
    run(args!["run", demo(), "-p", "a", "-n", "64", "--ram", hint]).ok();
    run(args!["run", demo(), "-p", "a", "--device", "cuda:0"]).refused(6, "CUDA");
}

#[test]
fn a_budget_bigger_than_the_machine() {
    // The budget is kept where the plan fits the machine, and refused where it does not.
    run(args!["run", demo(), "-p", "a", "-n", "1", "--ram", "9000T"]).ok();
    let many = "300000000000";
    let ran = run(args!["run", demo(), "-p", "a", "-n", many, "--ctx", many, "--ram", "9000T"]);
    ran.refused(5, "this machine has");
}

#[test]
fn plan_from_headers() {
    let json = run(args!["plan", demo(), "--ram", "12M", "--json"]).ok().json();
    assert!(json["minimum_bytes"].as_u64().unwrap() < 12 << 20);
    assert!(json["seconds_per_token"].as_f64().unwrap() > 0.0);
    assert_eq!(json["disk"]["measured"], true);
    let table = run(args!["plan", demo()]).ok().out;
    run(args!["plan", demo(), "--trace", "t.json"]).refused(2, "--trace");
    assert!(table.contains("all of it resident") && table.contains("smallest budget"), "{table}");
}

#[test]
fn a_trace_of_reads_and_computing() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    run(args!["run", demo(), "-p", "a", "-n", "3", "--ram", "22M", "--tile", "256K", "--trace", &trace]).ok();
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let count = |ph: &str| json["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == ph).count();
    assert!(count("X") > 100 && count("s") > 10 && count("f") > 10);
}

#[cfg(unix)]
#[test]
fn interrupted_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7]]);
    let flags = args!["run", demo(), "--ids", &ids, "-n", "100000", "--ctx", "200000", "--kv-dtype", "bf16"];
    let mut child = narrows()
        .args(flags.into_iter().chain(args!["--ignore-eos", "--json"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "SIGINT was ignored");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    // What was generated is told, and why it ended.
    assert_eq!(ran.json()["finish"][0], "cancelled");
    assert!(!ran.json()["tokens"][0].as_array().unwrap().is_empty());
}

/// A file system without direct I/O.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_in_memory() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let model = dir.path().join("model");
    copy_dir(&checkpoint("llama"), &model);
    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7]]);
    let tokens = |io: &str| {
        let flags = args![
            "run", &model, "--ids", &ids, "-n", "4", "--greedy", "--json", "--ram", "1M", "--tile", "8K"
        ];
        run(flags.into_iter().chain(args!["--io", io]))
    };
    let auto = tokens("auto").ok();
    assert_eq!(auto.json()["tokens"], tokens("buffered").ok().json()["tokens"]);
    // Newer kernels do direct I/O there too; where they do not, `auto` goes on and says so, `direct` refuses.
    let direct = tokens("direct");
    if direct.code == Some(0) {
        assert_eq!(auto.json()["tokens"], direct.json()["tokens"]);
    } else {
        assert!(auto.err.contains("note:"), "{}", auto.err);
        direct.refused(9, "direct");
    }
}

/// A file deleted while it streams is still there for whoever has it open.
#[cfg(unix)]
#[test]
fn deleted_while_running() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&demo(), dir.path());
    let child = narrows()
        .args(args![
            "run",
            dir.path(),
            "-p",
            "In the",
            "-n",
            "200",
            "--ignore-eos",
            "--ram",
            "8M",
            "--tile",
            "256K"
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(600));
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap()).ok();
    let whole = run(args!["run", demo(), "-p", "In the", "-n", "200", "--ignore-eos"]).ok();
    assert_eq!(ran.out, whole.out);
}
