//! The document that nvbandwidth writes with `--json`, for programs that read it.

use serde_json::{Value, json};

use super::Test;
use crate::machine::Gpu;
use crate::record::{Entry, PcieResult};

/// What nvbandwidth would say of these results: its tests copy pinned memory on one stream; of several sizes the
/// largest is taken. Numbers are strings, as nvbandwidth has them.
#[must_use]
pub fn document(gpu: &Gpu, results: &[Entry]) -> Value {
    let of = |test: Test| {
        let pinned = results.iter().filter_map(|entry| match entry {
            Entry::Pcie(r) if r.test == test.name() && r.memory == "pinned" && r.streams == 1 => Some(r),
            _ => None,
        });
        pinned.max_by_key(|result| result.size)
    };
    let testcases: Vec<Value> =
        Test::ALL.into_iter().filter_map(|test| Some(testcase(test, of(test)?))).collect();
    json!({
        "version": concat!("narrows ", env!("CARGO_PKG_VERSION")),
        "git_version": "",
        "CUDA Runtime Version": runtime(&gpu.driver_cuda),
        "Driver Version": gpu.driver_release.clone().unwrap_or_default(),
        "GPU Device list": [format!("{}: {}", gpu.device.trim_start_matches("cuda:"), gpu.name)],
        "testcases": testcases,
    })
}

fn testcase(test: Test, result: &PcieResult) -> Value {
    let value = format!("{:.2}", result.bandwidth.bytes_per_second / 1e9);
    let arrow = if test.to_device() { "->" } else { "<-" };
    json!({
        "name": test.name(),
        "status": "Passed",
        "bandwidth_description": format!("memcpy CE CPU(row) {arrow} GPU(column) bandwidth (GB/s)"),
        "bandwidth_matrix": [[value]],
        "sum": value,
        "min": value,
        "max": value,
        "average": value,
    })
}

/// As the driver's API has it: 12080 for 12.8.
fn runtime(version: &str) -> u32 {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    parts.next().unwrap_or(0) * 1000 + parts.next().unwrap_or(0) * 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Samples};

    #[test]
    fn the_document_of_nvbandwidth() {
        let gpu = Gpu {
            device: "cuda:0".to_owned(),
            name: "NVIDIA A".to_owned(),
            software: false,
            compute_capability: "9.0".to_owned(),
            driver_cuda: "12.8".to_owned(),
            driver_release: Some("570.1".to_owned()),
            memory_bytes: Bytes(1),
            link: None,
        };
        let result = |memory: &str, size, streams, gigabytes: f64| {
            Entry::Pcie(PcieResult {
                test: Test::HostToDevice.name().to_owned(),
                memory: memory.to_owned(),
                size: Bytes(size),
                streams,
                bandwidth: Samples::of(vec![gigabytes * 1e9]),
                verified: true,
            })
        };
        let results = [
            result("pinned", 1 << 29, 1, 26.034),
            result("pinned", 1 << 12, 1, 1.0),
            result("pinned", 1 << 30, 4, 27.0),
            result("pageable", 1 << 30, 1, 9.0),
        ];
        let text = document(&gpu, &results);
        assert_eq!(
            (text["CUDA Runtime Version"].as_u64(), text["Driver Version"].as_str()),
            (Some(12_080), Some("570.1"))
        );
        assert_eq!(text["GPU Device list"], json!(["0: NVIDIA A"]));
        let cases = text["testcases"].as_array().unwrap();
        assert_eq!(cases.len(), 1);
        assert_eq!(cases[0]["name"], "host_to_device_memcpy_ce");
        assert_eq!(
            (&cases[0]["bandwidth_matrix"], &cases[0]["status"]),
            (&json!([["26.03"]]), &json!("Passed"))
        );
    }
}
