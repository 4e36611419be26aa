//! `narrows bench run` and `narrows bench kernels` on small settings: schema and sanity, never speed.

use std::fs;

use narrows_softgpu::{SoftGpu, skip_or_fail};
use serde_json::Value;

use crate::harness::{Ran, args, demo, narrows, run};

/// Lists add up, so what a test gives itself is not given twice.
fn with(command: &str, quick: &[(&'static str, &'static str)], flags: &[&str]) -> Ran {
    let quick =
        quick.iter().filter(|(flag, _)| !flags.contains(flag)).flat_map(|&(flag, value)| [flag, value]);
    run(["bench", command].into_iter().chain(quick).chain(flags.iter().copied()))
}

fn bench(flags: &[&str]) -> Ran {
    with("run", &[("--device", "cpu"), ("-p", "5"), ("-n", "2"), ("-r", "2")], flags)
}

fn results(record: &Value) -> &Vec<Value> {
    assert_eq!(record["schema_version"], 1);
    assert!(record["command"].as_str().unwrap().starts_with("narrows bench "), "{record}");
    record["results"].as_array().unwrap()
}

/// What llama-bench's readers find under llama-bench's names, and that it goes together.
#[track_caller]
fn check(r: &Value) {
    let number = |name: &str| r[name].as_f64().unwrap_or_else(|| panic!("{name} in {r}"));
    assert_eq!(r["bench"], "run");
    for name in ["model_type", "test_time", "backend", "type_k", "type_v", "test", "bound"] {
        assert!(!r[name].as_str().unwrap().is_empty(), "{name} in {r}");
    }
    let tokens = number("n_prompt") + number("n_gen");
    let (ns, ts) = (r["samples_ns"].as_array().unwrap(), r["samples_ts"].as_array().unwrap());
    assert_eq!((ns.len(), ts.len()), (2, 2));
    for (ns, ts) in ns.iter().zip(ts) {
        let product = ns.as_f64().unwrap() * ts.as_f64().unwrap() / 1e9;
        assert!((product / tokens - 1.0).abs() < 1e-6, "{r}");
    }
    assert!(number("avg_ts") > 0.0 && number("stddev_ts") >= 0.0 && number("avg_ns") > 0.0);
    assert!(number("bound_ts") > 0.0 && number("model_size") > 0.0 && number("model_n_params") > 0.0);
    assert_eq!(r["predicted_ts"].is_number(), number("n_gen") > 0.0);
    for name in ["stall_disk", "stall_compute"] {
        assert!((0.0..=1.0).contains(&number(name)), "{name} in {r}");
    }
}

#[test]
fn runs_of_files_within_budgets() {
    let demo = demo();
    let demo = demo.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let record = bench(&[demo, "--ram", "64M,6M", "--chunk", "2", "--json"]).ok().json();
    let all = results(&record);
    let names: Vec<_> = all.iter().map(|r| (r["test"].as_str().unwrap(), &r["budget_bytes"])).collect();
    let (large, small) = (&Value::from(64 << 20), &Value::from(6 << 20));
    assert_eq!(names, [("pp5", large), ("tg2", large), ("pp5", small), ("tg2", small)]);
    for r in all {
        check(r);
        assert_eq!(
            (&r["model"], &r["source"], &r["bytes_memory"]),
            (&"demo".into(), &"disk".into(), &0.into())
        );
    }
    // Two prompts in steps of two rows, and two new tokens twice, each a pass.
    assert_eq!((&all[0]["passes"], &all[1]["passes"]), (&6.into(), &4.into()));
    // What stays is read once, before anything is timed.
    assert!(all[0]["bytes_disk"] == 0 && all[1]["bytes_disk"] == 0, "{record}");
    assert!(all[2]["bytes_disk"].as_u64().unwrap() > 0 && all[3]["bytes_disk"].as_u64().unwrap() > 0);
    assert_eq!(all[3]["bytes_pcie"], 0);

    let (file, picture) = (dir.path().join("run.json"), dir.path().join("run.svg"));
    fs::write(&file, record.to_string()).unwrap();
    run(args!["bench", "report", &file, "-o", &picture]).ok();
    let svg = fs::read_to_string(picture).unwrap();
    assert!(svg.contains("demo tg2: tokens per second by budget") && svg.contains("cpu, bound"), "{svg}");
}

#[test]
fn runs_of_shapes_without_files() {
    let flags = ["llama-1.1b", "--layers", "1", "--quant", "nf4"];
    let ran = bench(&[&flags[..], &["-d", "0,3", "--ram", "200M", "-n", "1"]].concat()).ok();
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(lines[0].starts_with("| model "), "{}", ran.out);
    let columns: Vec<_> = lines[0].split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(columns[..7], ["model", "size", "params", "backend", "ram", "test", "t/s"]);
    for test in ["pp5", "tg1", "pp5 @ d3", "tg1 @ d3"] {
        let row = lines.iter().find(|line| line.split('|').any(|cell| cell.trim() == test));
        assert!(row.is_some_and(|row| row.contains(" \u{b1} ") && row.contains("llama-1.1b nf4")), "{test}");
    }
    assert!(ran.out.contains("nothing was read from disk"), "{}", ran.out);

    let record = bench(&[&flags[..], &["--ram", "40M", "-p", "0", "-o", "json"]].concat()).ok().json();
    let [r] = &results(&record)[..] else { panic!("{record}") };
    check(r);
    assert_eq!((&r["source"], &r["bytes_disk"]), (&"memory".into(), &0.into()));
    assert!(r["bytes_memory"].as_u64().unwrap() > 0, "{r}");
    let jsonl = bench(&[&flags[..], &["-n", "0", "-o", "jsonl"]].concat()).ok().out;
    let row: Value = serde_json::from_str(jsonl.trim()).unwrap();
    assert_eq!((&row["test"], &row["n_gen"]), (&"pp5".into(), &0.into()));
    let csv = bench(&[&flags[..], &["-n", "0", "-o", "csv"]].concat()).ok().out;
    assert!(csv.lines().count() == 2 && csv.contains("samples_ts"), "{csv}");
}

#[test]
fn runs_that_cannot_be() {
    let demo = demo();
    let demo = demo.to_str().unwrap();
    bench(&["llama-9b"]).refused(3, "llama-9b");
    bench(&[demo, "-p", "0", "-n", "0"]).refused(2, "nothing to measure");
    bench(&[demo, "-d", "99999999999"]).refused(2, "positions");
    bench(&[demo, "--quant", "q8"]).refused(2, "--quant");
    bench(&[demo, "--ram", "100K"]).refused(5, "RAM");
    bench(&["llama-1.1b", "--layers", "0"]).refused(4, "layers");
    for flags in [["-r", "0"], ["-p", "many"], ["--ram", "0"], ["-o", "xml"], ["--device", "tpu"]] {
        let ran = run(["bench", "run", demo].iter().chain(&flags));
        assert!(ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(flags[1]), "{}", ran.err);
    }
}

fn kernels(flags: &[&str]) -> Ran {
    let quick = [("--runtime", "1us"), ("--loops", "1"), ("--size", "16M"), ("--positions", "64")];
    with("kernels", &quick, flags)
}

#[test]
fn kernels_beside_the_roof() {
    let flags = ["--shape", "llama-1.1b,qwen3-30b-a3b", "--rows", "1,2"];
    let record = kernels(&[&flags[..], &["--json"]].concat()).ok().json();
    let all = results(&record);
    let of = |bench: &str| all.iter().filter(|r| r["bench"] == bench).collect::<Vec<_>>();
    assert_eq!((of("host").len(), of("flops").len()), (1, 1));
    let kernels_of = of("kernel");
    for op in ["linear", "dequantise", "attention", "rms_norm", "rope", "swiglu", "add"] {
        assert!(kernels_of.iter().any(|r| r["operation"] == op), "{op}");
    }
    for r in &kernels_of {
        assert!(r["bytes_per_second"].as_f64().unwrap() > 0.0 && r["backend"] == "cpu", "{r}");
        assert!(r["seconds"].as_f64().unwrap() > 0.0 && r["bytes"].as_u64().unwrap() > 0, "{r}");
        // Copies compute nothing.
        assert_eq!(r["flops_per_byte"] == 0.0, r["operation"] == "gather_rows", "{r}");
    }
    let down = |r: &&&Value| r["operation"] == "linear" && r["shape"] == serde_json::json!([2048, 5632]);
    // Five encodings, by two numbers of rows; those that are over 16 MiB are cut, and have another shape.
    assert_eq!(kernels_of.iter().filter(down).count(), 2 * 2);
    let notes = record["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("cut to")), "{record}");

    let dir = tempfile::tempdir().unwrap();
    let (file, picture) = (dir.path().join("kernels.json"), dir.path().join("kernels.html"));
    fs::write(&file, record.to_string()).unwrap();
    run(args!["bench", "report", &file, "-o", &picture]).ok();
    let html = fs::read_to_string(picture).unwrap();
    assert!(html.contains("Roofline: ") && html.contains("linear nf4"), "no roofline");
    let one = ["--op", "linear", "--encoding", "q8", "--shape", "llama-1.1b", "--rows", "1"];
    let table = kernels(&one).ok().out;
    assert!(table.contains("of the roof") && table.contains("| 256 x 2048 "), "{table}");
    assert!(!table.contains("nf4") && !table.contains("attention"), "{table}");
}

/// Runs `narrows bench kernels` on a software driver with 64 MiB of device memory.
fn on_device(gpu: SoftGpu, flags: &[&str]) -> Ran {
    let quick = ["--runtime", "1us", "--loops", "1", "--shape", "llama-1.1b", "--positions", "32"];
    let mut command = narrows();
    command.args(["bench", "kernels"]).args(quick).args(flags).env_remove("CUDA_VISIBLE_DEVICES");
    let finished = gpu.vram(64 << 20).seed(1).run(&mut command).unwrap();
    assert!(finished.hazards().is_empty(), "{:?}", finished.hazards());
    Ran::of(&finished.output)
}

#[test]
fn kernels_of_a_device_beside_its_roof() {
    if !skip_or_fail() {
        return;
    }
    let flags = ["--device", "cuda:0", "--size", "256K", "--rows", "1,17", "--json"];
    let ran = on_device(SoftGpu::new().unwrap(), &flags).ok();
    assert!(ran.err.starts_with("device: cuda:0 narrows-softgpu"), "{}", ran.err);
    let record = ran.json();
    let all = results(&record);
    let gpu = &record["machine"]["gpu"];
    assert!(gpu["software"] == true && gpu["compute_capability"] == "9.0", "{gpu}");
    assert_eq!(gpu["device"], "cuda:0");
    let of = |bench: &str| all.iter().filter(|r| r["bench"] == bench).collect::<Vec<_>>();
    let positive = |r: &Value, name: &str| r[name].as_f64().is_some_and(|number| number > 0.0);
    let tests: Vec<_> = of("device").iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["read", "copy"]);
    let units: Vec<_> = of("flops").iter().map(|r| r["encoding"].as_str().unwrap()).collect();
    assert_eq!(units, ["f32", "f16", "bf16"]);
    assert!(of("flops").iter().all(|r| r["backend"] == "cuda:0" && positive(r, "flops_per_second")));
    let kernels = of("kernel");
    for (operation, encodings) in [
        ("linear", &["f32", "bf16", "f16", "q8", "nf4"][..]),
        ("dequantise", &["q8", "nf4"]),
        ("attention", &["f32", "bf16", "f16"]),
        ("rms_norm", &["f32", "bf16", "f16"]),
        ("add_rms_norm", &["f32", "bf16", "f16"]),
        ("head_norm", &["f32"]),
        ("rope", &["f32"]),
        ("swiglu", &["f32", "bf16", "f16"]),
        ("add", &["f32"]),
        ("gather_rows", &["f32", "bf16", "f16"]),
        ("scatter_add", &["f32"]),
        ("kv_write", &["f32", "bf16", "f16"]),
        ("argmax", &["f32"]),
        ("top_k", &["f32"]),
    ] {
        for encoding in encodings {
            for rows in if operation == "dequantise" { &[0][..] } else { &[1, 17] } {
                let of = |r: &&&Value| {
                    r["operation"] == operation && r["encoding"] == *encoding && r["rows"] == *rows
                };
                assert!(kernels.iter().any(|r| of(&r)), "{operation} {encoding} x {rows}");
            }
        }
    }
    for r in &kernels {
        assert_eq!(r["backend"], "cuda:0", "{r}");
        for name in ["bytes", "seconds", "bytes_per_second", "roof_bytes_per_second"] {
            assert!(positive(r, name), "{name} in {r}");
        }
        assert_eq!(r["samples"].as_array().unwrap().len(), 1, "{r}");
    }

    let dir = tempfile::tempdir().unwrap();
    let (file, picture) = (dir.path().join("kernels.json"), dir.path().join("kernels.html"));
    fs::write(&file, record.to_string()).unwrap();
    run(args!["bench", "report", &file, "-o", &picture]).ok();
    let html = fs::read_to_string(picture).unwrap();
    assert!(html.contains("Roofline of cuda:0: ") && html.contains("linear nf4"), "no roofline");
}

#[test]
fn kernels_of_a_device_that_refuses() {
    if !skip_or_fail() {
        return;
    }
    let gpu = || SoftGpu::new().unwrap();
    let cuda = |gpu, flags: &[&str]| {
        let small = ["--device", "cuda:0", "--size", "256K", "--op", "add", "--rows", "1"];
        on_device(gpu, &[&small[..], flags].concat())
    };
    // In the middle of the roof, and of an operation.
    for launch in [2, 12] {
        cuda(gpu().fail_launch(launch), &[]).refused(6, "CUDA_ERROR_ILLEGAL_ADDRESS");
    }
    // Somebody takes the memory after it was promised.
    cuda(gpu().steal(64 << 20, 1), &[]).refused(5, "the device has no");
    cuda(gpu(), &["--threads", "2"]).refused(2, "--threads");
    on_device(gpu(), &["--device", "cuda:0", "--size", "65M"]).refused(2, "may be used");
    on_device(gpu(), &["--device", "cuda:1"]).refused(6, "device 1");
    // What activations need is known only when their turn comes.
    let wide = ["--device", "cuda:0", "--size", "1M", "--op", "rms_norm", "--rows", "65536"];
    on_device(gpu(), &wide).refused(5, "needs");
    // By itself it takes no imitation of a device.
    let auto = ["--device", "auto", "--size", "8M", "--op", "add", "--rows", "1", "--json"];
    let ran = on_device(gpu(), &auto).ok();
    assert!(ran.err.starts_with("device: cpu (narrows-softgpu"), "{}", ran.err);
    assert!(results(&ran.json()).iter().all(|r| r["backend"] != "cuda:0"), "{}", ran.out);
}

#[test]
fn kernels_that_cannot_be() {
    kernels(&["--device", "cuda:0"]).refused(6, "CUDA");
    let auto = kernels(&["--device", "auto", "--op", "add", "--rows", "1"]).ok();
    assert!(auto.err.starts_with("device: cpu (no CUDA driver"), "{}", auto.err);
    kernels(&["--op", "top_k"]).refused(2, "nothing to measure");
    kernels(&["--rows", "0"]).refused(2, "rows");
    kernels(&["--op", "dequantise", "--encoding", "f32"]).refused(2, "nothing to measure");
    kernels(&["--size", "900000T"]).refused(2, "may be used");
    for flags in [["--op", "matmul"], ["--encoding", "q3"], ["--shape", "llama-9b"], ["--rows", "x"]] {
        let ran = run(["bench", "kernels"].iter().chain(&flags));
        assert!(ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(flags[1]), "{}", ran.err);
    }
}
