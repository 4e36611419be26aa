//! `narrows doctor`

use std::fmt::Write as _;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use narrows::{Bytes, Device};
use narrows_bench::doctor::{DeviceFacts, DiskFacts, Facts, hints};
use narrows_bench::io::{IoEngine, Step, glance};
use narrows_bench::{Disk, Entry, Link, Machine, Record, pcie, transparent_huge_pages};
use rustix::process::{Resource, getrlimit};
use schemars::JsonSchema;
use serde::Serialize;

use super::SCHEMA_VERSION;
use super::bench::command_line;
use crate::args::{Doctor, Output};
use crate::failure::Result;
use crate::figures;
use crate::interrupt::Interrupt;
use crate::models::locate;
use crate::output::{lossy, write, write_json};
use crate::version::{architectures, cuda};

/// What is read of a disk, and for how long: enough for it to come to its speed.
const READ: Bytes = Bytes::mib(256);
const READ_TIME: Duration = Duration::from_millis(800);

/// What is copied to a device.
const COPY: Bytes = Bytes::mib(64);

#[derive(JsonSchema, Serialize)]
pub(super) struct Report {
    schema_version: u32,
    version: &'static str,
    kernels: Option<KernelsReport>,
    /// Why there is no device, where there is none.
    driver: Option<String>,
    devices: Vec<DeviceReport>,
    cpu: Option<String>,
    /// The instruction set that is computed with.
    isa: String,
    threads: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    /// Absent: no cgroup limits it.
    cgroup_limit_bytes: Option<u64>,
    /// Absent: no limit.
    pinned_limit_bytes: Option<u64>,
    /// What the kernel says of huge pages.
    huge_pages: Option<String>,
    disk: Option<DiskReport>,
    hints: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
struct DiskReport {
    #[serde(serialize_with = "lossy")]
    path: PathBuf,
    disk: Option<Disk>,
    /// `io_uring`, `threads`, `buffered` or `mmap`.
    ioengine: Option<&'static str>,
    bytes_per_second: Option<f64>,
    notes: Vec<String>,
    /// Why it cannot be read.
    problem: Option<String>,
}

#[derive(JsonSchema, Serialize)]
struct KernelsReport {
    toolkit: String,
    architectures: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
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
    /// As it was right after some copies.
    link: Option<Link>,
    /// What pinned copies to it reach.
    h2d_bytes_per_second: Option<f64>,
}

pub(crate) fn doctor(output: &Output, args: &Doctor) -> Result<()> {
    let interrupt = Interrupt::listen();
    let mut machine = Machine::here();
    let mut results = Vec::new();
    let kernels = Device::toolkit()
        .map(|toolkit| KernelsReport { toolkit: cuda(toolkit), architectures: architectures() });
    let (devices, driver) = match Device::count() {
        Ok(count) => ((0..count).map(look).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let mut go_on = || if interrupt.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let path = match &args.path {
        // A name in the cache; a path that is not there is shown as that.
        Some(path) if !path.exists() => Some(locate(path).unwrap_or_else(|_| path.clone())),
        path => path.clone(),
    };
    let disk = path.as_ref().map(|path| read(path, &mut go_on, &mut results));
    interrupt.check()?;
    machine.disk = disk.as_ref().and_then(|disk| disk.disk.clone());
    let date = crate::clock::now();
    figures::keep(output, &Record::new(date, command_line(), machine.clone(), Vec::new(), results));
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        version: env!("CARGO_PKG_VERSION"),
        kernels,
        driver,
        devices,
        cpu: machine.cpu,
        isa: machine.isa,
        threads: machine.threads,
        memory_bytes: machine.memory_bytes.map(Bytes::get),
        memory_available_bytes: narrows::memory::available_memory().map(Bytes::get),
        cgroup_limit_bytes: narrows::memory::memory_limit().map(Bytes::get),
        pinned_limit_bytes: getrlimit(Resource::Memlock).current,
        huge_pages: transparent_huge_pages(),
        disk,
        hints: Vec::new(),
    };
    report.hints = hints(&facts(&report));
    if output.json { write_json(&report) } else { write(&table(&report)) }
}

/// The facts that hints are made from.
fn facts(report: &Report) -> Facts {
    let disk = |disk: &DiskReport| {
        let engine = IoEngine::ALL.into_iter().find(|engine| Some(engine.name()) == disk.ioengine)?;
        Some(DiskFacts {
            disk: disk.disk.clone(),
            direct: engine.direct(),
            io_uring: engine == IoEngine::IoUring,
            notes: disk.notes.clone(),
            bytes_per_second: disk.bytes_per_second,
        })
    };
    let device = |device: &DeviceReport| DeviceFacts {
        device: device.device.clone(),
        link: device.link,
        bytes_per_second: device.h2d_bytes_per_second,
    };
    Facts {
        kernels: report.kernels.is_some(),
        x86: cfg!(target_arch = "x86_64"),
        isa: report.isa.clone(),
        memory: report.memory_bytes.map(Bytes),
        cgroup_limit: report.cgroup_limit_bytes.map(Bytes),
        locked_limit: report.pinned_limit_bytes.map(Bytes),
        huge_pages: report.huge_pages.clone(),
        disk: report.disk.as_ref().and_then(disk),
        devices: report.devices.iter().map(device).collect(),
    }
}

/// Reads from the disk behind a path for a moment: the largest file of weights, if it is a directory with some.
fn read(path: &Path, go_on: &mut dyn FnMut() -> ControlFlow<()>, results: &mut Vec<Entry>) -> DiskReport {
    let mut report = DiskReport {
        path: path.to_owned(),
        disk: Disk::behind(path),
        ioengine: None,
        bytes_per_second: None,
        notes: Vec::new(),
        problem: None,
    };
    let file = largest_weights(path).unwrap_or_else(|| path.to_owned());
    match glance(&file, READ, READ_TIME, go_on) {
        Ok(glance) => {
            report.ioengine = Some(glance.engine.name());
            report.notes = glance.notes;
            if let Entry::Io(result) = &glance.result {
                report.bytes_per_second = Some(result.bandwidth.bytes_per_second);
            }
            results.push(glance.result);
        }
        Err(error) => report.problem = Some(error.to_string()),
    }
    report
}

/// The file of a directory that holds most weights.
pub(super) fn largest_weights(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "safetensors"));
    let sized = weights.filter_map(|entry| Some((std::fs::metadata(entry.path()).ok()?.len(), entry.path())));
    sized.max().map(|(_, path)| path)
}

/// What registered copies to a device reach, which tells its link from a resting one.
fn copy(ordinal: usize) -> Option<f64> {
    let device = pcie::Device::open(ordinal).ok()?;
    let settings = pcie::Settings {
        tests: vec![pcie::Test::HostToDevice],
        memory: vec![pcie::HostKind::Registered],
        sizes: vec![COPY],
        streams: vec![1],
        loops: 3,
        host: Bytes(2 * COPY.get()),
        skip_missing: true,
        file: None,
        runtime: READ_TIME,
    };
    let report = pcie::run(&device, &settings, &mut |_: &Step| ControlFlow::Continue(())).ok()?;
    report.results.into_iter().find_map(|entry| match entry {
        Entry::Pcie(result) => Some(result.bandwidth.bytes_per_second),
        _ => None,
    })
}

fn look(ordinal: usize) -> DeviceReport {
    let device = Device::open(ordinal);
    let problem = device.as_ref().err().map(ToString::to_string);
    let device = device.ok();
    let d = device.as_ref();
    // The software driver's times are nobody's.
    let h2d_bytes_per_second = d.filter(|d| !d.is_software()).and_then(|_| copy(ordinal));
    DeviceReport {
        device: format!("cuda:{ordinal}"),
        name: d.map(|d| d.name().to_owned()),
        problem,
        software: d.is_some_and(Device::is_software),
        compute_capability: d.map(|d| {
            let (major, minor) = d.compute_capability();
            format!("{major}.{minor}")
        }),
        driver_cuda: d.map(|d| cuda(d.driver_cuda())),
        driver_release: d.and_then(Device::driver_release),
        total_bytes: d.map(|d| d.total().get()),
        available_bytes: d.map(|d| d.available().get()),
        context_bytes: d.map(|d| d.context_bytes().get()),
        link: d.and_then(|d| link(ordinal, d)),
        h2d_bytes_per_second,
    }
}

/// As the kernel sees it, or else NVIDIA's management library: that one calls the most what the slot has to give, so
/// that a card in too small a slot looks as if it had all.
fn link(ordinal: usize, device: &Device) -> Option<Link> {
    let pci = pcie::Device::pci_bus_id(ordinal).ok().flatten().filter(|_| !device.is_software());
    pci.and_then(|id| Link::of(&id)).or_else(|| {
        let narrows::Link { generation, width, max_generation, max_width } = device.link()?;
        Some(Link { generation, width, max_generation, max_width })
    })
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
    let cpu = report.cpu.as_deref().unwrap_or("of unknown make");
    let _ = writeln!(t, "cpu: {} threads, {}, {cpu}", report.threads, report.isa);
    t += "memory: ";
    if let (Some(all), Some(available)) = (report.memory_bytes, report.memory_available_bytes) {
        let _ = write!(t, "{} of {} available, ", Bytes(available), Bytes(all));
    }
    if let Some(limit) = report.cgroup_limit_bytes {
        let _ = write!(t, "a cgroup allows {}, ", Bytes(limit));
    }
    match report.pinned_limit_bytes {
        Some(limit) => _ = write!(t, "{} of it may be locked", Bytes(limit)),
        None => t += "all of it may be locked",
    }
    let _ = writeln!(t, ", huge pages: {}", report.huge_pages.as_deref().unwrap_or("unknown"));
    t += &report.disk.as_ref().map_or(String::new(), describe_disk);
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
    if let Some(speed) = device.h2d_bytes_per_second {
        let _ = writeln!(t, "  copies to it: {:.1} GB/s", speed / 1e9);
    }
    t
}

fn describe_disk(disk: &DiskReport) -> String {
    let mut t = format!("disk: {}", disk.disk.as_ref().map_or("unknown".to_owned(), Disk::key));
    if let Some(disk) = &disk.disk {
        let _ = write!(t, ", mounted at {}", disk.mount.display());
    }
    if let (Some(speed), Some(engine)) = (disk.bytes_per_second, disk.ioengine) {
        let _ = write!(t, "; {:.2} GB/s by {engine}", speed / 1e9);
    }
    t += "\n";
    let lines = disk.notes.iter().chain(&disk.problem);
    lines.for_each(|line| _ = writeln!(t, "  {line}"));
    t
}
