//! `narrows bench` on small settings: what it writes, what it refuses, and that it leaves nothing behind. Never how
//! fast it is.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use narrows_softgpu::{SoftGpu, skip_or_fail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Ran, args, copy_dir, demo, narrows, run};

/// A disk: what tests put on it goes past the page cache.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

const QUICK: [&str; 4] = ["--runtime", "5ms", "--ramp_time", "0"];

fn io(path: &Path, flags: &[&str]) -> Ran {
    run(args!["bench", "io", path].into_iter().chain(flags.iter().chain(&QUICK).map(Into::into)))
}

/// What every record says, whatever was measured.
#[track_caller]
fn check(record: &Value) {
    assert_eq!(record["schema_version"], 1);
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    assert!(record["date"].as_str().unwrap().ends_with('Z'), "{record}");
    assert!(record["command"].as_str().unwrap().starts_with("narrows bench "), "{record}");
    assert!(record["machine"]["threads"].as_u64().unwrap() > 0, "{record}");
    assert!(!record["results"].as_array().unwrap().is_empty(), "{record}");
}

fn empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn reads_of_a_directory_by_every_method() {
    let dir = folder();
    let flags = ["--size", "17M", "--bs", "64K,1M", "--iodepth", "2", "--loops", "2", "--json"];
    let record = io(dir.path(), &flags).ok().json();
    check(&record);
    assert!(empty(dir.path()));
    let results = record["results"].as_array().unwrap();
    for engine in ["buffered", "mmap"] {
        for cache in ["cold", "warm"] {
            let of = |r: &&Value| r["ioengine"] == engine && r["cache"] == cache;
            assert_eq!(results.iter().filter(of).count(), 2, "{engine} {cache}");
        }
    }
    // Where the system has it, also the way in which models are read.
    let direct = results.iter().any(|r| r["ioengine"] == "io_uring");
    assert_eq!(
        results.iter().filter(|r| r["as_run"] == true && r["rw"] == "tiles").count(),
        usize::from(direct)
    );
    for r in results {
        assert_eq!((r["bench"].as_str(), r["samples"].as_array().unwrap().len()), (Some("io"), 2));
        let (bytes, seconds) = (r["bytes"].as_u64().unwrap(), r["seconds"].as_f64().unwrap());
        assert!(bytes % r["tile"].as_u64().unwrap() == 0 && seconds >= 0.01, "{r}");
        // The median lies between what all samples together come to, whichever way they scatter.
        let (speed, average) = (r["bytes_per_second"].as_f64().unwrap(), bytes as f64 / seconds);
        assert!(speed > 0.0 && r["samples"].as_array().unwrap().iter().any(|s| *s == speed), "{r}");
        assert!(average > 0.0 && r["iops"].as_f64().unwrap() > 0.0, "{r}");
        assert!(r["latency"]["p50_us"].as_f64().unwrap() <= r["latency"]["max_us"].as_f64().unwrap(), "{r}");
    }
}

#[test]
fn reads_of_a_file_leave_it_as_it_is() {
    let dir = folder();
    let path = dir.path().join("model.bin");
    fs::write(&path, vec![7; 3_000_000]).unwrap();
    for rw in ["read", "randread", "tiles"] {
        let flags =
            ["--ioengine", "buffered", "--rw", rw, "--bs", "4k", "--tile", "100K", "--loops", "1", "--json"];
        let record = io(&path, &flags).ok().json();
        check(&record);
        assert_eq!(record["results"][0]["rw"], rw);
        assert_eq!(record["results"][0]["iodepth"], 32);
        let disk = &record["machine"]["disk"];
        assert!(disk.is_null() != cfg!(target_os = "linux"), "{disk}");
    }
    assert!(fs::read(&path).unwrap() == vec![7; 3_000_000]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn host(flags: &[&str]) -> Ran {
    run(["bench", "host", "--runtime", "1ms", "--loops", "1"].iter().chain(flags))
}

#[test]
fn memory_of_the_host() {
    let record = host(&["--size", "16M", "--threads", "1,2", "--json"]).ok().json();
    check(&record);
    for r in record["results"].as_array().unwrap() {
        let speed = if r["bench"] == "flops" { &r["flops_per_second"] } else { &r["bytes_per_second"] };
        assert!(speed.as_f64().unwrap() > 0.0 && r["samples"].as_array().unwrap().len() == 1, "{r}");
        assert!(["host", "flops"].contains(&r["bench"].as_str().unwrap()), "{r}");
    }
    let table = host(&["--size", "16M", "--threads", "1"]).ok().out;
    assert!(
        table.contains("GiB/s") && table.contains("GFLOP/s") && table.contains("copy (read + written)"),
        "{table}"
    );
    host(&["--threads", "0"]).refused(2, "threads");
    host(&["--size", "1M"]).refused(2, "at least");
    host(&["--size", "900000T"]).refused(2, "may be used");
    for flags in [["--test", "write"], ["--pages", "enormous"], ["--threads", "many"], ["--size", "0"]] {
        let ran = host(&flags);
        assert!(ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(flags[1]), "{}", ran.err);
    }
}

/// Runs `narrows bench pcie` on the software driver with 64 MiB of device memory.
fn pcie(flags: &[&str]) -> Ran {
    let gpu = SoftGpu::new().unwrap().vram(64 << 20).seed(1);
    let mut command = narrows();
    command.args(["bench", "pcie", "--loops", "1", "--runtime", "1ms"]).args(flags);
    let finished = gpu.run(command.env_remove("CUDA_VISIBLE_DEVICES")).unwrap();
    assert!(finished.hazards().is_empty(), "{:?}", finished.hazards());
    Ran::of(&finished.output)
}

#[test]
fn copies_to_a_device() {
    run(["bench", "pcie"]).refused(6, "CUDA");
    if !skip_or_fail() {
        return;
    }
    pcie(&[]).refused(6, "only when it is named");
    pcie(&["--device", "cuda:1"]).refused(6, "device 1");
    let on = |flags: &[&str]| pcie(&[&["--device", "cuda:0"], flags].concat());
    let dir = folder();
    let file = dir.path().join("model.bin");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let file = file.to_str().unwrap();
    let record = on(&["--size", "4K,1M", "--streams", "1,2", "--file", file, "-j"]).ok().json();
    check(&record);
    let results = record["results"].as_array().unwrap();
    assert_eq!(results.len(), 4 * 4 * 2 * 2 + 1);
    for r in results {
        assert!(r["verified"] == true && r["bytes_per_second"].as_f64().unwrap() > 0.0, "{r}");
    }
    assert_eq!(results.last().unwrap()["test"], "disk_to_device");
    assert_eq!(record["machine"]["gpu"]["software"], true);
    let cases = record["nvbandwidth"]["testcases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    assert_eq!(
        (&cases[0]["name"], &cases[0]["status"]),
        (&"host_to_device_memcpy_ce".into(), &"Passed".into())
    );
    assert!(cases[0]["bandwidth_matrix"][0][0].as_str().unwrap().parse::<f64>().unwrap() > 0.0);
    // By itself it copies what fits, and says what does not.
    let ran = on(&["--testcase", "device_to_host_memcpy_ce", "--streams", "1"]).ok();
    assert!(
        ran.out.contains("| 16M") && ran.out.contains("left out: device_to_host_memcpy_ce: 1.0 GiB"),
        "{}",
        ran.out
    );
    on(&["--size", "1G"]).refused(2, "1.0 GiB");
    on(&["--size", "4K", "--file", "no-such-file"]).refused(2, "no-such-file");
    for flags in [
        ["--testcase", "all"],
        ["--memory", "core"],
        ["--streams", "x"],
        ["--device", "tpu"],
        ["--size", "0"],
    ] {
        let ran = pcie(&flags);
        assert!(
            ran.code == Some(2) && ran.out.is_empty() && ran.err.contains(flags[1]),
            "{flags:?} {}",
            ran.err
        );
    }
}

#[test]
fn a_doctor_looks_at_a_disk() {
    let dir = folder();
    let json = run(args!["doctor", dir.path(), "--json"]).ok().json();
    assert!(empty(dir.path()));
    assert!(json["disk"]["bytes_per_second"].as_f64().unwrap() > 0.0, "{json}");
    assert!(!json["disk"]["disk"]["file_system"].as_str().unwrap().is_empty(), "{json}");
    assert!(
        !json["isa"].as_str().unwrap().is_empty() && json["memory_bytes"].as_u64().unwrap() > 0,
        "{json}"
    );
    // Weights that are there are read, and nothing is made.
    let ran = run(args!["doctor", demo()]).ok();
    assert!(
        ran.out.contains("\ndisk: ") && ran.out.contains(" GB/s by ") && ran.out.contains("memory: "),
        "{}",
        ran.out
    );
    let ran = run(args!["doctor", "no-such-path"]).ok();
    assert!(ran.out.contains("\ndisk: unknown\n  no-such-path: "), "{}", ran.out);
    assert!(!run(["doctor"]).ok().out.contains("\ndisk: "));
}

/// What a bench found of a disk is what a plan is made with, until somebody wants it measured again.
#[test]
fn figures_are_remembered() {
    let (home, models) = (folder(), folder());
    copy_dir(&demo(), &models.path().join("demo"));
    let demo = || models.path().join("demo");
    let with = |flags: &[std::ffi::OsString]| {
        let mut command = narrows();
        Ran::of(&command.env("XDG_CACHE_HOME", home.path()).args(flags).output().unwrap()).ok()
    };
    let plan = |flags: &[&str]| {
        let all = args!["plan", demo(), "--ram", "12M", "--json"];
        with(&[&all[..], &flags.iter().map(Into::into).collect::<Vec<_>>()].concat()).json()
    };
    assert_eq!(
        (&plan(&[])["disk"]["source"], &plan(&["--speeds", "assumed"])["disk"]["source"]),
        (&"measured".into(), &"assumed".into())
    );
    assert!(empty(home.path()));
    // The demo model is smaller than a tile; the figure is of the disk that it lies on.
    let direct = with(&args![
        "bench",
        "io",
        demo().join(".."),
        "--size",
        "20M",
        "--bs",
        "1M",
        "--loops",
        "1",
        "--json"
    ])
    .json();
    let of_run = |r: &&Value| r["as_run"] == true;
    let Some(result) = direct["results"].as_array().unwrap().iter().find(of_run) else { return };
    let json = plan(&["--speeds", "remembered"]);
    assert_eq!(json["disk"]["bytes_per_second"], result["bytes_per_second"]);
    assert_eq!((&json["disk"]["source"], &json["disk"]["date"]), (&"remembered".into(), &direct["date"]));
    assert_eq!(json["disk"]["measured"], true);
    let ran = with(&args!["plan", demo(), "--ram", "12M", "--speeds", "remembered"]);
    assert!(ran.out.contains("(remembered of 2"), "{}", ran.out);
    let ran = with(&args!["run", demo(), "--ram", "12M", "-p", "a", "-n", "1", "--speeds", "remembered"]);
    assert!(ran.err.contains("(remembered of 2"), "{}", ran.err);
    for flags in [&[][..], &["--speeds", "measured"], &["--speeds", "remembered", "--io", "buffered"]] {
        assert_eq!(plan(flags)["disk"]["source"], "measured", "{flags:?}");
    }
    // A cache that is no use is no failure.
    fs::write(home.path().join("narrows/figures.json"), "{").unwrap();
    assert_eq!(plan(&["--speeds", "remembered"])["disk"]["source"], "measured");
    fs::remove_dir_all(home.path().join("narrows")).unwrap();
    fs::write(home.path().join("narrows"), "in the way").unwrap();
    let ran = with(&args!["doctor", models.path()]);
    assert!(ran.err.contains("figures are not kept"), "{}", ran.err);
}

#[test]
fn pictures_of_results() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let record = |name: &str, ran: Ran| fs::write(at(name), ran.ok().out).unwrap();
    record("io.json", io(dir.path(), &["--size", "1M", "--bs", "4K,64K", "--loops", "1", "--json"]));
    record("host.json", host(&["--size", "16M", "--json"]));
    let report = |flags: &[&str]| {
        let paths =
            flags.iter().map(|flag| if flag.contains('.') { at(flag).into() } else { (*flag).into() });
        run(["bench", "report"].map(std::ffi::OsString::from).into_iter().chain(paths))
    };
    let ran = report(&["io.json", "host.json", "-o", "report.svg", "--json"]).ok();
    assert!(ran.json()["results"].as_u64().unwrap() > 4);
    let svg = fs::read_to_string(at("report.svg")).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("Reads by block size") && svg.contains("Memory by threads")
    );
    report(&["io.json", "-o", "report.html"]).ok();
    let html = fs::read_to_string(at("report.html")).unwrap();
    assert!(
        html.starts_with("<!DOCTYPE html>")
            && html.contains("<th>ioengine</th>")
            && !html.contains("Memory by")
    );
    fs::write(at("other.json"), "{\"schema_version\":99}").unwrap();
    fs::write(at("text.json"), "no results").unwrap();
    report(&["io.json", "-o", "report.png"]).refused(2, ".svg");
    report(&["none.json", "-o", "report.svg"]).refused(2, "none.json");
    report(&["other.json", "-o", "report.svg"]).refused(2, "99");
    report(&["text.json", "-o", "report.svg"]).refused(2, "text.json");
    run(args!["bench", "report", at("io.json"), "-o", dir.path().join("no/such.svg")])
        .refused(9, "no/such.svg");
    assert_eq!(run(["bench", "report", "-o", "x.svg"]).code, Some(2));
    assert_eq!(run(["bench"]).code, Some(2));
}

#[test]
fn every_format_says_the_same() {
    let dir = folder();
    let text = |format: &str| {
        let flags = ["--size", "1M", "--bs", "4K", "--ioengine", "mmap", "--loops", "1", "-o", format];
        io(dir.path(), &flags).ok().out
    };
    let table = text("md");
    assert!(table.starts_with("| ioengine |") && table.contains("| mmap "), "{table}");
    let lines = text("jsonl");
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["command"].as_str().unwrap().starts_with("narrows bench io "), "{row}");
        assert!(row["bytes_per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
    let csv = text("csv");
    assert!(csv.starts_with("date,version,command,") && csv.lines().count() == 3, "{csv}");
    check(&serde_json::from_str(&text("json")).unwrap());
}

#[test]
fn what_cannot_be_read() {
    let dir = folder();
    io(Path::new("no-such-path"), &[]).refused(2, "no-such-path");
    let small = dir.path().join("small.bin");
    fs::write(&small, vec![7; 10_000]).unwrap();
    let ran = io(&small, &["--bs", "4K,16K", "--ioengine", "buffered"]);
    ran.refused(2, "small.bin");
    assert!(ran.err.contains("16.0 KiB"), "{}", ran.err);
    fs::write(&small, "").unwrap();
    io(&small, &["--bs", "4K"]).refused(2, "small.bin");
    io(dir.path(), &["--size", "1M", "--rw", "tiles"]).refused(2, "8.0 MiB");
    io(dir.path(), &["--size", "900000T"]).refused(9, "free space");
    io(dir.path(), &["--bs", "1000"]).refused(2, "4096");
    io(dir.path(), &["--ioengine", "mmap", "--direct", "1"]).refused(2, "nothing to measure");
    io(dir.path(), &["--bs", "1G", "--iodepth", "4096"]).refused(2, "memory");
    io(dir.path(), &["--loops", "0"]).refused(2, "loops");
    io(Path::new("/dev/null"), &[]).refused(2, "/dev/null");
    for flags in [
        ["--bs", "0"],
        ["--bs", "many"],
        ["--iodepth", "-1"],
        ["--ioengine", "libaio"],
        ["--size", "0"],
        ["--tile", "0"],
        ["--runtime", "soon"],
        ["--cache", "tepid"],
        ["--rw", "write"],
        ["--direct", "2"],
        ["-o", "xml"],
    ] {
        let ran = io(dir.path(), &flags);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.err);
        assert!(ran.out.is_empty() && ran.err.contains(flags[1]), "{flags:?}: {}", ran.err);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_directory_that_may_not_be_written_to() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = folder();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let root = fs::write(dir.path().join("probe"), "").is_ok();
    // Nobody may make files here, not even those who may do everything.
    let path = if root { Path::new("/proc") } else { dir.path() };
    io(path, &["--size", "1M", "--bs", "4K"]).refused(9, path.to_str().unwrap());
}

#[test]
fn a_signal_leaves_nothing() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = folder();
        let mut command = narrows();
        command.args(args!["bench", "io", dir.path(), "--size", "8M", "--bs", "4K"]);
        command.args(["--runtime", "60", "--ioengine", "buffered", "--progress", "plain"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says what disk it is before it begins; from then on it listens.
        let mut err = BufReader::new(child.stderr.take().unwrap());
        err.read_line(&mut String::new()).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty() && empty(dir.path()));
    }
}
