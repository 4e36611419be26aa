//! `narrows bench run` and `narrows bench kernels` on small settings: schema and sanity, never speed.

use std::fs;

use serde_json::Value;

use crate::harness::{Ran, args, demo, run};

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
        assert!(r["flops_per_byte"].as_f64().unwrap() > 0.0, "{r}");
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

#[test]
fn kernels_that_cannot_be() {
    kernels(&["--device", "cuda:0"]).refused(6, "CUDA");
    kernels(&["--rows", "0"]).refused(2, "rows");
    kernels(&["--op", "dequantise", "--encoding", "f32"]).refused(2, "nothing to measure");
    kernels(&["--size", "900000T"]).refused(2, "may be used");
    for flags in [["--op", "matmul"], ["--encoding", "q3"], ["--shape", "llama-9b"], ["--rows", "x"]] {
        let ran = run(["bench", "kernels"].iter().chain(&flags));
        assert!(ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(flags[1]), "{}", ran.err);
    }
}
