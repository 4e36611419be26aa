//! Which pictures results make: data, and nothing of how it is drawn.

use std::collections::BTreeSet;

use narrows_bytes::Bytes;

use crate::format::{giga, short};
use crate::record::{Entry, HostResult, IoResult, KernelResult, PcieResult, Record, RunResult};

/// A picture: series over two axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// What is chosen.
    pub x: Axis,
    /// What comes of it.
    pub y: Axis,
    /// In the order of the legend.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it is of, with its unit.
    pub title: String,
    /// How values lie on it.
    pub scale: Scale,
    /// How a value is written.
    pub label: fn(f64) -> String,
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// A step is a doubling.
    Log2,
    /// A step is ten times as much.
    Log10,
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// Series that belong together have one colour: a number, of which each is another.
    pub colour: usize,
    /// How its points are joined.
    pub line: Line,
    /// `(x, y)`, by x.
    pub points: Vec<(f64, f64)>,
}

/// How points are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// By a line, with marks on it.
    Solid,
    /// By dashes, with marks on them.
    Dashed,
    /// Not at all.
    Marks,
    /// By a line without marks: what cannot be exceeded.
    Bound,
}

/// Every picture that `records` have something for.
pub(super) fn of(records: &[Record]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for record in records {
        charts.extend(io(record));
        charts.extend(host(record));
        charts.extend(pcie(record));
    }
    charts.extend(rooflines(records));
    charts.extend(runs(records));
    charts
}

/// The series that `key` sorts results into, each with its points by x.
fn series<'a, T: 'a, K: PartialEq>(
    results: &[&'a T],
    key: impl Fn(&T) -> K,
    start: impl Fn(&T) -> Series,
    point: impl Fn(&T) -> (f64, f64),
) -> Vec<Series> {
    let mut keys: Vec<K> = Vec::new();
    let mut all: Vec<Series> = Vec::new();
    for &result in results {
        let key = key(result);
        let index = keys.iter().position(|other| *other == key).unwrap_or(keys.len());
        if index == keys.len() {
            keys.push(key);
            all.push(start(result));
        }
        all[index].points.push(point(result));
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    all
}

/// Colours by the order in which names first come up.
fn colour(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|other| other == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

/// Reads against the size of a block, or against the depth where only that changes.
fn io(record: &Record) -> Option<Chart> {
    let all: Vec<&IoResult> = record
        .results
        .iter()
        .filter_map(|entry| match entry {
            Entry::Io(result) if result.rw != "tiles" => Some(result),
            _ => None,
        })
        .collect();
    let sizes: BTreeSet<_> = all.iter().map(|result| result.bs).collect();
    let depths: BTreeSet<_> = all.iter().map(|result| result.iodepth).collect();
    let (deepest, largest) = (*depths.last()?, *sizes.last()?);
    let by_size = sizes.len() >= depths.len();
    let fixed = |result: &&&IoResult| if by_size { result.iodepth == deepest } else { result.bs == largest };
    let shown: Vec<&IoResult> = all.iter().filter(fixed).copied().collect();
    let several_rw = shown.iter().any(|result| result.rw != shown[0].rw);
    let mut names = Vec::new();
    let mut label = |result: &IoResult| {
        let cache = match result.cache.as_str() {
            "bypassed" => ", direct".to_owned(),
            cache => format!(", {cache}"),
        };
        let rw = if several_rw { format!(", {}", result.rw) } else { String::new() };
        (format!("{}{cache}{rw}", result.ioengine), colour(&mut names, &result.ioengine))
    };
    let labels: Vec<_> = shown.iter().map(|result| label(result)).collect();
    let of = |result: &IoResult| {
        let at = shown.iter().position(|other| std::ptr::eq(*other, result)).unwrap_or(0);
        labels[at].clone()
    };
    let series = series(
        &shown,
        |result| of(result).0,
        |result| Series {
            label: of(result).0,
            colour: of(result).1,
            line: if result.cache == "warm" || result.rw == "randread" { Line::Dashed } else { Line::Solid },
            points: Vec::new(),
        },
        |result| {
            let x = if by_size { result.bs.get() as f64 } else { result.iodepth as f64 };
            (x, result.bandwidth.bytes_per_second / 1e9)
        },
    );
    let disk = record.machine.disk.as_ref().map_or("a file".to_owned(), crate::Disk::key);
    let (title, x) = if by_size {
        let x = Axis { title: "block size".to_owned(), scale: Scale::Log2, label: bytes };
        (format!("Reads by block size, {deepest} in flight"), x)
    } else {
        let x = Axis { title: "blocks in flight".to_owned(), scale: Scale::Log2, label: plain };
        (format!("Reads of {} by depth", short(largest)), x)
    };
    Some(Chart { title, subtitle: subtitle(&disk, record), x, y: gigabytes(), series })
}

fn host(record: &Record) -> Option<Chart> {
    let all: Vec<&HostResult> = record
        .results
        .iter()
        .filter_map(|entry| match entry {
            Entry::Host(result) => Some(result),
            _ => None,
        })
        .collect();
    let first = all.first()?;
    // Beside kernels it is their roof, and no curve.
    if record.results.iter().any(|entry| matches!(entry, Entry::Kernel(_))) {
        return None;
    }
    let mut names = Vec::new();
    all.iter().for_each(|result| _ = colour(&mut names, &result.test));
    let series = series(
        &all,
        |result| (result.test.clone(), result.pages.clone()),
        |result| Series {
            label: format!("{}, {} pages", result.test, result.pages),
            colour: names.iter().position(|name| *name == result.test).unwrap_or(0),
            line: if result.pages == "small" { Line::Dashed } else { Line::Solid },
            points: Vec::new(),
        },
        |result| (result.threads as f64, result.bandwidth.bytes_per_second / 1e9),
    );
    let cpu = record.machine.cpu.as_deref().unwrap_or("memory");
    Some(Chart {
        title: format!("Memory by threads, {} loads", first.isa),
        subtitle: subtitle(cpu, record),
        x: Axis { title: "threads".to_owned(), scale: Scale::Log2, label: plain },
        y: gigabytes(),
        series,
    })
}

/// One picture for each test: its kinds of memory against the size of a copy, on one stream.
fn pcie(record: &Record) -> Vec<Chart> {
    let all: Vec<&PcieResult> = record
        .results
        .iter()
        .filter_map(|entry| match entry {
            Entry::Pcie(result) => Some(result),
            _ => None,
        })
        .collect();
    let tests: BTreeSet<&str> = all.iter().map(|result| result.test.as_str()).collect();
    let mut names = Vec::new();
    all.iter().for_each(|result| _ = colour(&mut names, &result.memory));
    let gpu = record.machine.gpu.as_ref().map_or("a device", |gpu| gpu.name.as_str());
    let chart = |test: &str| {
        let streams = all.iter().filter(|result| result.test == test).map(|result| result.streams).min()?;
        let of = |result: &&&PcieResult| result.test == test && result.streams == streams;
        let shown: Vec<&PcieResult> = all.iter().filter(of).copied().collect();
        let mut series = series(
            &shown,
            |result| result.memory.clone(),
            |result| Series {
                label: result.memory.clone(),
                colour: names.iter().position(|name| *name == result.memory).unwrap_or(0),
                line: Line::Solid,
                points: Vec::new(),
            },
            |result| (result.size.get() as f64, result.bandwidth.bytes_per_second / 1e9),
        );
        series.extend(link_bound(record, &shown));
        Some(Chart {
            title: test.to_owned(),
            subtitle: subtitle(gpu, record),
            x: Axis { title: "size of a copy".to_owned(), scale: Scale::Log2, label: bytes },
            y: gigabytes(),
            series,
        })
    };
    tests.into_iter().filter_map(chart).collect()
}

/// What the link carries at most, over the sizes that were copied.
fn link_bound(record: &Record, shown: &[&PcieResult]) -> Option<Series> {
    let link = record.machine.gpu.as_ref()?.link?;
    let sizes = || shown.iter().map(|result| result.size.get() as f64);
    let (low, high) = (sizes().reduce(f64::min)?, sizes().reduce(f64::max)?);
    let most = crate::Link::bytes_per_second(link.max_generation, link.max_width) / 1e9;
    let label = format!("PCIe {} x{}", link.max_generation, link.max_width);
    (high > low).then(|| Series {
        label,
        colour: 0,
        line: Line::Bound,
        points: vec![(low, most), (high, most)],
    })
}

/// Kernels under the roof of what they ran on (Williams, Waterman and Patterson 2009): one picture for the CPU, and one
/// for each device.
fn rooflines(records: &[Record]) -> Vec<Chart> {
    let mut all: Vec<(&str, Option<&str>)> = Vec::new();
    for record in records {
        for entry in &record.results {
            if let Entry::Kernel(kernel) = entry
                && !all.contains(&on(record, &kernel.backend))
            {
                all.push(on(record, &kernel.backend));
            }
        }
    }
    all.into_iter().filter_map(|of| roofline(records, of)).collect()
}

/// What something ran on: a backend and, of several machines, the name of the device.
fn on<'a>(record: &'a Record, backend: &'a str) -> (&'a str, Option<&'a str>) {
    let gpu = record.machine.gpu.as_ref().filter(|_| backend != "cpu");
    (backend, gpu.map(|gpu| gpu.name.as_str()))
}

fn roofline(records: &[Record], of: (&str, Option<&str>)) -> Option<Chart> {
    let entries = || {
        let with = |record| move |entry| (record, entry);
        records.iter().flat_map(move |record: &Record| record.results.iter().map(with(record)))
    };
    let memory = entries()
        .filter_map(|(record, entry)| match entry {
            Entry::Host(r) if r.test == "read" && of.0 == "cpu" => Some(r.bandwidth.bytes_per_second),
            Entry::Device(r) if on(record, &r.backend) == of => Some(r.bandwidth.bytes_per_second),
            _ => None,
        })
        .reduce(f64::max)?;
    // The best of each encoding, the highest first.
    let mut peaks: Vec<(&str, f64)> = Vec::new();
    for (record, entry) in entries() {
        if let Entry::Flops(r) = entry
            && on(record, &r.backend) == of
        {
            match peaks.iter_mut().find(|(encoding, _)| *encoding == r.encoding) {
                Some((_, peak)) => *peak = peak.max(r.flops_per_second),
                None => peaks.push((&r.encoding, r.flops_per_second)),
            }
        }
    }
    peaks.sort_by(|a, b| b.1.total_cmp(&a.1));
    let kernels: Vec<(&Record, &KernelResult)> = entries()
        .filter_map(|(record, entry)| match entry {
            // What computes nothing has no place on an axis of operations.
            Entry::Kernel(r) if r.roof_bytes_per_second.is_some() && r.flops_per_byte > 0.0 => {
                (on(record, &r.backend) == of).then_some((record, r))
            }
            _ => None,
        })
        .collect();
    let (record, highest) = (kernels.first()?.0, peaks.first()?.1);
    let kernels: Vec<&KernelResult> = kernels.into_iter().map(|(_, kernel)| kernel).collect();
    let points = || kernels.iter().map(|kernel| kernel.flops_per_byte).chain([highest / memory]);
    let low = points().fold(f64::INFINITY, f64::min) / 4.0;
    let high = points().fold(0.0, f64::max) * 8.0;
    let bound = |(encoding, peak): &(&str, f64)| {
        let roof = |at: f64| (at, peak.min(at * memory) / 1e9);
        Series {
            label: match *peak {
                peak if peak >= 1e13 => format!("{encoding} {:.0} TFLOP/s", peak / 1e12),
                peak => format!("{encoding} {:.0} GFLOP/s", peak / 1e9),
            },
            colour: 0,
            line: Line::Bound,
            points: vec![roof(low), roof(peak / memory), roof(high)],
        }
    };
    let mut all: Vec<_> = peaks.iter().map(bound).collect();
    // What works on activations alone lies together at the foot of the slope: one name for all of it.
    let name = |kernel: &KernelResult| match kernel.operation.as_str() {
        operation @ ("linear" | "dequantise" | "attention") => format!("{operation} {}", kernel.encoding),
        _ => "other operations".to_owned(),
    };
    let mut names = Vec::new();
    kernels.iter().for_each(|kernel| _ = colour(&mut names, &name(kernel)));
    all.extend(series(
        &kernels,
        |kernel| name(kernel),
        |kernel| Series {
            label: name(kernel),
            colour: names.iter().position(|other| *other == name(kernel)).unwrap_or(0),
            line: Line::Marks,
            points: Vec::new(),
        },
        |kernel| {
            let speed = kernel.bandwidth.bytes_per_second * kernel.flops_per_byte;
            (kernel.flops_per_byte, speed / 1e9)
        },
    ));
    let (title, what) = match of {
        ("cpu", _) => ("Roofline".to_owned(), record.machine.cpu.as_deref().unwrap_or("CPU")),
        (backend, name) => (format!("Roofline of {backend}"), name.unwrap_or("a device")),
    };
    Some(Chart {
        title: format!("{title}: what memory and multiply-adds allow"),
        subtitle: subtitle(&format!("{what} \u{b7} {} GB/s", giga(memory)), record),
        x: Axis { title: "operations per byte".to_owned(), scale: Scale::Log2, label: plain },
        y: Axis { title: "GFLOP/s".to_owned(), scale: Scale::Log10, label: plain },
        series: all,
    })
}

/// Tokens per second against the budget, with the bound.
fn runs(records: &[Record]) -> Vec<Chart> {
    let all: Vec<(&Record, &RunResult)> = records
        .iter()
        .flat_map(|record| record.results.iter().map(move |entry| (record, entry)))
        .filter_map(|(record, entry)| match entry {
            Entry::Run(result) => Some((record, result.as_ref())),
            _ => None,
        })
        .collect();
    let models: BTreeSet<(&str, &str)> =
        all.iter().map(|(_, run)| (run.model.as_str(), run.test.as_str())).collect();
    let chart = |(model, test): (&str, &str)| {
        let shown: Vec<_> = all.iter().filter(|(_, run)| run.model == model && run.test == test).collect();
        let record = shown.first()?.0;
        let runs: Vec<&RunResult> = shown.iter().map(|(_, run)| *run).collect();
        let mut backends = Vec::new();
        runs.iter().for_each(|run| _ = colour(&mut backends, &run.backend));
        let of = |run: &RunResult| backends.iter().position(|name| *name == run.backend).unwrap_or(0);
        let made = |label: String, colour, line| Series { label, colour, line, points: Vec::new() };
        let mut all = series(
            &runs,
            |run| run.backend.clone(),
            |run| made(format!("{}, measured", run.backend), of(run), Line::Solid),
            |run| (run.vram_bytes.unwrap_or(run.budget_bytes).get() as f64, run.avg_ts),
        );
        all.extend(series(
            &runs,
            |run| run.backend.clone(),
            |run| made(format!("{}, bound", run.backend), of(run), Line::Bound),
            |run| (run.vram_bytes.unwrap_or(run.budget_bytes).get() as f64, run.bound_ts),
        ));
        let machine = record.machine.cpu.as_deref().unwrap_or("a machine");
        Some(Chart {
            title: format!("{model} {test}: tokens per second by budget"),
            subtitle: subtitle(machine, record),
            x: Axis { title: "memory for the model".to_owned(), scale: Scale::Log2, label: bytes },
            y: Axis { title: "tokens per second".to_owned(), scale: Scale::Linear, label: plain },
            series: all,
        })
    };
    models.into_iter().filter_map(chart).collect()
}

fn gigabytes() -> Axis {
    Axis { title: "GB/s".to_owned(), scale: Scale::Linear, label: plain }
}

fn subtitle(what: &str, record: &Record) -> String {
    let day = record.date.split('T').next().unwrap_or_default();
    // The record has all of the release.
    let kernel = record.machine.kernel.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    format!("{what} \u{b7} {kernel} \u{b7} narrows {} \u{b7} {day}", record.version)
}

fn bytes(value: f64) -> String {
    let whole = Bytes(value.round() as u64);
    let text = short(whole);
    if text.len() <= 5 { text } else { whole.to_string() }
}

/// As few digits as tell ticks apart.
fn plain(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}").trim_end_matches('0').to_owned()
    }
}
