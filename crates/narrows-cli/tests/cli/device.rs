//! The program on a device: the software driver's, and none.

use narrows_softgpu::{SoftGpu, skip_or_fail};

use crate::harness::{Ran, args, demo, narrows, run};

#[test]
fn no_driver() {
    let ran = run(args!["run", demo(), "-p", "a", "-n", "1", "--greedy"]).ok();
    assert!(ran.err.starts_with("device: cpu, "), "{}", ran.err);
    let ran = run(args!["run", demo(), "-p", "a", "--vram", "1G"]);
    ran.refused(6, "--vram");
    let ran = run(args!["doctor"]).ok();
    assert!(ran.out.contains("CUDA") && ran.out.contains("cpu:"), "{}", ran.out);
    let json = run(args!["doctor", "--json"]).ok().json();
    assert_eq!(json["devices"].as_array().unwrap().len(), 0);
}

/// Runs the program on the software driver with 64 MiB of device memory.
fn soft(flags: &[&str]) -> Ran {
    let gpu = SoftGpu::new().unwrap().vram(64 << 20).seed(1);
    let mut command = narrows();
    command.arg(flags[0]);
    if flags[0] != "doctor" {
        command.arg(demo());
    }
    let finished = gpu.run(command.env_remove("CUDA_VISIBLE_DEVICES").args(&flags[1..])).unwrap();
    assert!(finished.hazards().is_empty(), "{:?}", finished.hazards());
    Ran::of(&finished.output)
}

#[test]
fn a_budget_of_device_memory() {
    if !skip_or_fail() {
        return;
    }
    let king = ["run", "-p", "And the king said unto", "-n", "4", "--greedy", "--json", "--device", "cuda:0"];
    let ran = soft(&[&king[..], &["--vram", "8M"]].concat()).ok();
    assert!(ran.err.starts_with("device: cuda:0 narrows-softgpu (software"), "{}", ran.err);
    assert!(ran.err.contains("on the device; VRAM"), "{}", ran.err);
    let json = ran.json();
    let stats = &json["stats"];
    assert!(stats["peak_device_bytes"].as_u64().unwrap() <= 8 << 20, "{stats}");
    assert!(stats["h2d"]["bytes"].as_u64().unwrap() > 10 << 20, "{stats}");
    assert!(stats["h2d"]["bytes_per_second"].as_f64().unwrap() > 0.0, "{stats}");
    assert_eq!(json["text"], soft(&king).ok().json()["text"]);
}

#[test]
fn budgets_of_device_memory_that_cannot_be() {
    if !skip_or_fail() {
        return;
    }
    let ran = soft(&["run", "-p", "a", "--device", "cuda:0", "--vram", "300K"]);
    ran.refused(5, "VRAM");
    // The hint names a budget that works.
    let hint = ran.err.split("--vram ").nth(1).unwrap().split(' ').next().unwrap();
    soft(&["run", "-p", "a", "-n", "2", "--device", "cuda:0", "--vram", hint]).ok();
    soft(&["run", "-p", "a", "--device", "cuda:0", "--vram", "1G"]).refused(5, "64.0 MiB");
    soft(&["run", "-p", "a", "--device", "cuda:1"]).refused(6, "device 1");
}

/// An instrument for tests is used when it is asked for, and told from a GPU.
#[test]
fn the_software_driver_is_not_chosen_unasked() {
    if !skip_or_fail() {
        return;
    }
    let ran = soft(&["run", "-p", "a", "-n", "1", "--greedy"]).ok();
    assert!(ran.err.starts_with("device: cpu, "), "{}", ran.err);
    let ran = soft(&["doctor"]).ok();
    assert!(ran.out.contains("a software driver for tests"), "{}", ran.out);
    let json = soft(&["plan", "--device", "cuda:0", "--vram", "8M", "--json"]).ok().json();
    assert!(json["device"]["planned_bytes"].as_u64().unwrap() <= 8 << 20);
    assert_eq!(json["device"]["h2d"]["measured"], true);
}
