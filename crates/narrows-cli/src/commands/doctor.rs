//! `narrows doctor`

use std::fmt::Write as _;

use narrows::{Bytes, Device, Link};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::SCHEMA_VERSION;
use crate::args::Output;
use crate::failure::Result;
use crate::memory;
use crate::output::{write, write_json};

/// Less than this of pinned memory holds the link back.
const PINNED_WORTH_HAVING: Bytes = Bytes::mib(256);

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    version: &'static str,
    kernels: Option<KernelsReport>,
    /// Why there is no device, where there is none.
    driver: Option<String>,
    devices: Vec<DeviceReport>,
    threads: usize,
    memory_available_bytes: Option<u64>,
    /// Absent: no limit.
    pinned_limit_bytes: Option<u64>,
    hints: Vec<String>,
}

#[derive(Serialize)]
struct KernelsReport {
    toolkit: String,
    architectures: Vec<String>,
}

#[derive(Serialize)]
struct DeviceReport {
    device: String,
    name: Option<String>,
    /// Why it cannot be used.
    problem: Option<String>,
    software: bool,
    compute_capability: Option<String>,
    driver_cuda: Option<String>,
    driver_release: Option<String>,
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
    context_bytes: Option<u64>,
    link: Option<Link>,
}

pub(crate) fn doctor(output: &Output) -> Result<()> {
    let kernels = Device::toolkit().map(|toolkit| KernelsReport {
        toolkit: cuda(toolkit),
        architectures: Device::architectures().iter().map(|arch| version(arch / 10, arch % 10)).collect(),
    });
    let (devices, driver) = match Device::count() {
        Ok(count) => ((0..count).map(look).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let pinned_limit_bytes = getrlimit(Resource::Memlock).current;
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        version: env!("CARGO_PKG_VERSION"),
        kernels,
        driver,
        devices,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_available_bytes: memory::available().map(Bytes::get),
        pinned_limit_bytes,
        hints: Vec::new(),
    };
    report.hints = hints(&report);
    if output.json { write_json(&report) } else { write(&table(&report)) }
}

fn cuda(number: u32) -> String {
    version(number / 1000, number % 1000 / 10)
}

fn version(major: u32, minor: u32) -> String {
    format!("{major}.{minor}")
}

fn look(ordinal: usize) -> DeviceReport {
    let device = Device::open(ordinal);
    let problem = device.as_ref().err().map(ToString::to_string);
    let device = device.ok();
    let d = device.as_ref();
    DeviceReport {
        device: format!("cuda:{ordinal}"),
        name: d.map(|d| d.name().to_owned()),
        problem,
        software: d.is_some_and(Device::is_software),
        compute_capability: d.map(|d| version(d.compute_capability().0, d.compute_capability().1)),
        driver_cuda: d.map(|d| cuda(d.driver_cuda())),
        driver_release: d.and_then(Device::driver_release),
        total_bytes: d.map(|d| d.total().get()),
        available_bytes: d.map(|d| d.available().get()),
        context_bytes: d.map(|d| d.context_bytes().get()),
        link: d.and_then(Device::link),
    }
}

/// What holds the machine back, and what to do about it.
fn hints(report: &Report) -> Vec<String> {
    let mut hints = Vec::new();
    if report.kernels.is_none() {
        hints.push("built without CUDA kernels: tools/get-nvcc, then build again".to_owned());
    }
    if let Some(limit) = report.pinned_limit_bytes.filter(|limit| Bytes(*limit) < PINNED_WORTH_HAVING) {
        hints.push(format!(
            "only {} may be locked in memory: `ulimit -l unlimited` (or LimitMEMLOCK) lets reads and copies go \
             at full speed",
            Bytes(limit)
        ));
    }
    for device in &report.devices {
        let Some(link) = &device.link else { continue };
        if link.width < link.max_width {
            hints.push(format!(
                "{} has {} of {} lanes: another slot of the board may give it all",
                device.device, link.width, link.max_width
            ));
        }
    }
    hints
}

fn table(report: &Report) -> String {
    let mut t = format!("narrows {}\n", report.version);
    match &report.kernels {
        Some(kernels) => {
            let _ = writeln!(
                t,
                "kernels: CUDA {}, for compute capability {} and newer",
                kernels.toolkit,
                kernels.architectures.join(", ")
            );
        }
        None => t += "kernels: none, built without nvcc\n",
    }
    if let Some(why) = &report.driver {
        let _ = writeln!(t, "devices: {why}");
    } else if report.devices.is_empty() {
        t += "devices: the CUDA driver has none\n";
    }
    for device in &report.devices {
        t += &describe(device);
    }
    let _ = write!(t, "cpu: {} threads", report.threads);
    if let Some(available) = report.memory_available_bytes {
        let _ = write!(t, ", {} of memory available", Bytes(available));
    }
    match report.pinned_limit_bytes {
        Some(limit) => _ = writeln!(t, ", {} of it may be locked", Bytes(limit)),
        None => t += ", all of it may be locked\n",
    }
    for hint in &report.hints {
        let _ = writeln!(t, "hint: {hint}");
    }
    t
}

fn describe(device: &DeviceReport) -> String {
    let mut t = device.device.clone();
    let size = |bytes: Option<u64>| Bytes(bytes.unwrap_or(0)).to_string();
    match (&device.name, &device.problem) {
        (Some(name), _) => {
            let _ = writeln!(
                t,
                ": {name}, compute capability {}, {} of memory, {} not held by others, {} for the context",
                device.compute_capability.as_deref().unwrap_or("unknown"),
                size(device.total_bytes),
                size(device.available_bytes),
                size(device.context_bytes)
            );
        }
        (None, problem) => _ = writeln!(t, ": {}", problem.as_deref().unwrap_or("cannot be opened")),
    }
    if device.software {
        t += "  a software driver for tests, not a GPU\n";
    }
    if let Some(cuda) = &device.driver_cuda {
        let release = device.driver_release.as_ref().map_or(String::new(), |release| format!(" {release}"));
        let _ = writeln!(t, "  driver{release}, CUDA {cuda}");
    }
    if let Some(link) = &device.link {
        let _ = writeln!(
            t,
            "  link: PCIe {} x{} now, PCIe {} x{} at most",
            link.generation, link.width, link.max_generation, link.max_width
        );
    }
    t
}
