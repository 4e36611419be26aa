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

/// A mixture of zeros with so many layers and experts, after the small one among the goldens: thousands of tensors.
#[cfg(target_os = "linux")]
fn many_experts(dir: &std::path::Path, layers: u64, experts: u64) {
    use serde_json::{Map, Value, json};

    let from = checkpoint("qwen3-moe");
    std::fs::create_dir(dir).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let key = ["num_experts", "num_local_experts"].into_iter().find(|key| config.get(key).is_some()).unwrap();
    (config["num_hidden_layers"], config[key]) = (json!(layers), json!(experts));
    if let Some(types) = config.get_mut("layer_types").and_then(Value::as_array_mut) {
        types.resize(usize::try_from(layers).unwrap(), types[0].clone());
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();

    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let (mut tensors, mut end) = (Map::new(), 0);
    let mut add = |name: String, like: &Value, rows: Option<u64>| {
        let mut shape: Vec<u64> = serde_json::from_value(like["shape"].clone()).unwrap();
        let old: u64 = shape.iter().product();
        shape[0] = rows.unwrap_or(shape[0]);
        let offsets: [u64; 2] = serde_json::from_value(like["data_offsets"].clone()).unwrap();
        let start = end;
        end += (offsets[1] - offsets[0]) / old * shape.iter().product::<u64>();
        let tensor = json!({"dtype": like["dtype"], "shape": shape, "data_offsets": [start, end]});
        tensors.insert(name, tensor);
    };
    for (name, like) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let Some(rest) = name.strip_prefix("model.layers.") else {
            add(name.clone(), like, None);
            continue;
        };
        let Some(rest) = rest.strip_prefix("0.") else { continue };
        for layer in 0..layers {
            match rest.strip_prefix("mlp.experts.") {
                None => {
                    let rows = (rest == "mlp.gate.weight").then_some(experts);
                    add(format!("model.layers.{layer}.{rest}"), like, rows);
                }
                Some(rest) => {
                    let Some(rest) = rest.strip_prefix("0.") else { continue };
                    for expert in 0..experts {
                        add(format!("model.layers.{layer}.mlp.experts.{expert}.{rest}"), like, None);
                    }
                }
            }
        }
    }
    let header = serde_json::to_vec(&tensors).unwrap();
    let path = dir.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + end).unwrap();
}

/// What the kernel counts as resident at most (`VmHWM`), and not only what the engine counts itself, stays within the
/// smallest budgets and what docs/PROMISES.md allows the program besides. `tools/budget-sweep` has more settings.
#[cfg(target_os = "linux")]
#[test]
fn the_kernel_counts_no_more_than_promised() {
    let dir = tempfile::tempdir().unwrap();
    let pack = dir.path().join("pack");
    run(args!["pack", demo(), "-o", &pack, "--quant", "q8"]).ok();
    let ids = dir.path().join("ids.safetensors");
    save_ids(&ids, &[&[5, 6, 7]]);
    let many = dir.path().join("many");
    many_experts(&many, 16, 128);
    let text = args!["-p", "And the king said unto", "-n", "8"];
    let tokens = args!["--ids", &ids, "-n", "8"];
    let program = narrows::memory::PROGRAM.get();
    let models = [(demo(), &text), (pack, &text), (checkpoint("mixtral"), &tokens), (many, &tokens)];
    for (model, prompt) in models {
        for io in ["auto", "buffered", "mmap"] {
            let flags = |ram: &str| {
                let mut flags =
                    args!["run", &model, "--greedy", "--device", "cpu", "--io", io, "--ram", ram].to_vec();
                flags.extend(prompt.iter().cloned());
                flags.extend(args!["--json"]);
                flags
            };
            let refused = run(flags("1K"));
            let hint = refused.err.split("--ram ").nth(1).unwrap_or_else(|| panic!("{}", refused.err));
            let smallest: u64 = hint.split('M').next().unwrap().parse().unwrap();
            let json = run(flags(&format!("{smallest}M"))).ok().json();
            let peak = json["stats"]["peak_rss_bytes"].as_u64().unwrap();
            assert!(peak <= (smallest << 20) + program, "{model:?} {io}: {peak} bytes with {smallest} MiB");
            // Or it would say nothing.
            assert!(peak > json["stats"]["peak_host_bytes"].as_u64().unwrap() / 2, "{model:?} {io}: {peak}");
        }
    }
}

/// A text takes a hundred times its size while it is encoded: more than the budget is refused before.
#[cfg(target_os = "linux")]
#[test]
fn a_long_text_is_encoded_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    let text: String = (0..20_000).map(|i| format!("king {i} of land {} ", i * 7919 % 10_007)).collect();
    std::fs::write(&file, &text).unwrap();
    let flags = |ram: &'static str| {
        args!["eval", demo(), "-f", &file, "--ctx", "64", "--device", "cpu", "--json", "--ram", ram]
    };
    let ran = run(flags("40M"));
    ran.refused(5, "needs");
    let hint = ran.err.split("--ram ").nth(1).unwrap().split('M').next().unwrap();
    assert!(hint.parse::<usize>().unwrap() << 20 > 100 * text.len(), "{hint}");
}

/// What a prompt, a file or a pipe has beyond the room of a budget is not read, and what a template makes of a short
/// prompt is not encoded.
#[cfg(target_os = "linux")]
#[test]
fn texts_and_ids_have_no_more_room_than_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["-n", "1", "--device", "cpu", "--speeds", "assumed", "--ram", "40M"];
    let ask = |args: &[std::ffi::OsString]| {
        run(args.iter().map(Into::into).chain(flags.map(std::ffi::OsString::from)))
    };
    for prompt in [&args!["-p", "@/dev/zero"][..], &args!["-p", "a", "--system", "@/dev/zero"]] {
        ask(&[&args!["run", demo()][..], prompt].concat()).refused(5, "more than 160.0 KiB of text");
    }
    let command = |input: std::fs::File| {
        let mut command = narrows();
        command.args(args!["run", demo(), "-p", "-"]).args(flags).stdin(input);
        Ran::of(&command.output().unwrap())
    };
    command(std::fs::File::open("/dev/zero").unwrap()).refused(5, "stdin");
    let eval = args!["eval", demo(), "-f", "/dev/zero", "--device", "cpu", "--ram", "40M"];
    run(eval).refused(5, "more than 160.0 KiB of text");
    // Without a file's size there is no smallest budget to tell, with it there is one.
    let file = dir.path().join("text");
    std::fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let ran = run(args!["eval", demo(), "-f", &file, "--device", "cpu", "--ram", "40M"]);
    ran.refused(5, "needs");
    let hint: u64 = ran.err.split("--ram ").nth(1).unwrap().split('M').next().unwrap().parse().unwrap();
    assert!(hint > 256 << 10, "{hint}");

    let ids = dir.path().join("ids");
    save_ids(&ids, &[&vec![5; 2 << 20]]);
    ask(&args!["run", demo(), "--ids", &ids]).refused(5, "of token ids");
    let out = args!["logits", demo(), "--ids", &ids, "--out", dir.path().join("l"), "--ram", "40M"];
    run(out).refused(5, "of token ids");

    let model = dir.path().join("model");
    copy_dir(&demo(), &model);
    std::fs::write(model.join("chat_template.jinja"), "{{ 'a ' * 400000 }}").unwrap();
    let ran = ask(&args!["run", &model, "-p", "a"]);
    ran.refused(5, "needs");
    std::fs::write(model.join("chat_template.jinja"), "{{ 'a ' * 4000000 }}").unwrap();
    ask(&args!["run", &model, "-p", "a"]).refused(4, "it writes more than");
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
