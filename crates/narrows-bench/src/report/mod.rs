//! Pictures of records: what a machine can do, and how near to it one comes.

mod chart;
mod draw;

use std::fmt::Write as _;

pub use self::chart::{Axis, Chart, Line, Scale, Series};
use crate::record::Record;
use crate::{Error, Result};

/// The pictures that the results of `records` make, as one SVG, one below the other.
///
/// # Errors
/// [`Error::Settings`] if no result can be drawn.
pub fn svg(records: &[Record]) -> Result<String> {
    draw::svg(&charts(records)?)
}

/// The pictures, the machines and every result, as one page of HTML that needs no other file.
///
/// # Errors
/// As [`svg`].
pub fn html(records: &[Record]) -> Result<String> {
    let mut body = String::new();
    for chart in charts(records)? {
        let svg = draw::svg(std::slice::from_ref(&chart))?;
        let _ = writeln!(body, "<figure>{svg}</figure>");
    }
    for record in records {
        let _ = writeln!(body, "<h2>{}</h2>", escaped(&record.command));
        let _ = writeln!(body, "<p>{}, {}</p>", escaped(&record.date), escaped(&record.machine.to_string()));
        for note in &record.notes {
            let _ = writeln!(body, "<p>note: {}</p>", escaped(note));
        }
        body += &html_tables(&record.text(crate::Format::Md));
    }
    Ok(format!("{HEAD}{body}</html>\n"))
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">
<title>narrows bench</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 960px; margin: 2em auto; padding: 0 1em }
figure { margin: 0 0 2em } figure svg { width: 100%; height: auto }
h2 { font: 600 15px ui-monospace, monospace; margin: 2em 0 0 }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: 1em 0 }
td, th { padding: .15em .8em; border-bottom: 1px solid #8884; text-align: left }
</style>
";

/// The tables of a record's text; its other lines are said elsewhere.
fn html_tables(markdown: &str) -> String {
    let mut html = String::new();
    let mut open = false;
    for line in markdown.lines() {
        let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
        let Some(cells) = cells else {
            html += if open { "</table>\n" } else { "" };
            open = false;
            continue;
        };
        if cells.starts_with("---") {
            continue;
        }
        let tag = if open { "td" } else { "th" };
        html += if open { "<tr>" } else { "<table><tr>" };
        open = true;
        for cell in cells.split(" | ") {
            let _ = write!(html, "<{tag}>{}</{tag}>", escaped(cell.trim()));
        }
        html += "</tr>\n";
    }
    html += if open { "</table>\n" } else { "" };
    html
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn charts(records: &[Record]) -> Result<Vec<Chart>> {
    let charts = chart::of(records);
    if charts.is_empty() {
        return Err(Error::Settings("there is nothing to draw in these results".to_owned()));
    }
    Ok(charts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Bytes, DeviceResult, Entry, Gpu, HostResult, IoResult, KernelResult, Latency, Machine, PcieResult,
        PeakResult, RunResult, Samples,
    };

    fn speed(gigabytes: f64) -> Samples {
        Samples::of(vec![gigabytes * 1e9])
    }

    fn io(engine: &str, cache: &str, kib: u64, depth: usize, gigabytes: f64) -> Entry {
        Entry::Io(IoResult {
            ioengine: engine.to_owned(),
            direct: cache == "bypassed",
            rw: "read".to_owned(),
            cache: cache.to_owned(),
            bs: Bytes(kib << 10),
            iodepth: depth,
            tile: Bytes(kib << 10),
            bandwidth: speed(gigabytes),
            iops: 1.0,
            latency: Latency::default(),
            seconds: 1.0,
            bytes: Bytes(1),
            as_run: false,
        })
    }

    fn kernel(encoding: &str, rows: usize, gigabytes: f64, flops_per_byte: f64) -> Entry {
        Entry::Kernel(KernelResult {
            operation: "linear".to_owned(),
            backend: "cpu".to_owned(),
            encoding: encoding.to_owned(),
            shape: vec![8192, 8192],
            rows,
            bytes: Bytes(8192),
            seconds: 1e-6,
            bandwidth: speed(gigabytes),
            flops_per_byte,
            roof_bytes_per_second: Some(1e9),
        })
    }

    fn peak(backend: &str, encoding: &str, teraflops: f64) -> PeakResult {
        PeakResult {
            backend: backend.to_owned(),
            encoding: encoding.to_owned(),
            threads: 2,
            isa: "avx2".to_owned(),
            flops_per_second: teraflops * 1e12,
            samples: vec![teraflops * 1e12],
        }
    }

    /// A record of a device with its roof, and a product of so many rows.
    fn device(name: &str, backend: &str, gigabytes: f64, rows: usize) -> Record {
        let memory = |test: &str, gigabytes| {
            Entry::Device(DeviceResult {
                test: test.to_owned(),
                backend: backend.to_owned(),
                size: Bytes::mib(512),
                bandwidth: speed(gigabytes),
            })
        };
        let on = |operation: &str, rows, gigabytes, flops_per_byte| match kernel(
            "bf16",
            rows,
            gigabytes,
            flops_per_byte,
        ) {
            Entry::Kernel(kernel) => Entry::Kernel(KernelResult {
                operation: operation.to_owned(),
                backend: backend.to_owned(),
                ..kernel
            }),
            entry => entry,
        };
        let mut record = record(vec![
            memory("read", gigabytes),
            memory("copy", 0.9 * gigabytes),
            Entry::Flops(peak(backend, "f32", 60.0)),
            Entry::Flops(peak(backend, "bf16", 600.0)),
            on("linear", rows, 0.9 * gigabytes, 1.0),
            on("add", rows, 0.8 * gigabytes, 0.1),
            on("kv_write", rows, 0.8 * gigabytes, 0.0),
        ]);
        record.machine.gpu = Some(Gpu {
            device: backend.to_owned(),
            name: name.to_owned(),
            software: false,
            compute_capability: "9.0".to_owned(),
            driver_cuda: "13.0".to_owned(),
            driver_release: None,
            memory_bytes: Bytes(1),
            link: None,
        });
        record
    }

    fn run(gib: u64, tokens_per_second: f64, bound: f64) -> Entry {
        Entry::Run(Box::new(RunResult {
            model: "llama-1.1b <bf16>".to_owned(),
            backend: "cpu".to_owned(),
            test: "tg128".to_owned(),
            budget_bytes: Bytes(gib << 30),
            avg_ts: tokens_per_second,
            bound_ts: bound,
            bound: "disk".to_owned(),
            ..RunResult::default()
        }))
    }

    fn record(results: Vec<Entry>) -> Record {
        let note = vec!["a < b".to_owned()];
        Record::new(chrono::DateTime::UNIX_EPOCH, "narrows bench".to_owned(), Machine::here(), note, results)
    }

    fn everything() -> Vec<Record> {
        let memory = |threads, gigabytes| {
            Entry::Host(HostResult {
                test: "read".to_owned(),
                threads,
                pages: "huge".to_owned(),
                size: Bytes::mib(1024),
                isa: "avx2".to_owned(),
                bandwidth: speed(gigabytes),
            })
        };
        let peak = peak("cpu", "f32", 0.3);
        let copy = |kind: &str, kib: u64, gigabytes| {
            Entry::Pcie(PcieResult {
                test: "host_to_device_memcpy_ce".to_owned(),
                memory: kind.to_owned(),
                size: Bytes(kib << 10),
                streams: 1,
                bandwidth: speed(gigabytes),
                verified: true,
            })
        };
        vec![
            record(vec![
                io("io_uring", "bypassed", 1024, 8, 3.0),
                io("io_uring", "bypassed", 128, 8, 2.0),
                io("io_uring", "bypassed", 128, 4, 9.0),
                io("buffered", "cold", 128, 8, 1.0),
                io("buffered", "warm", 128, 8, 6.0),
            ]),
            record(vec![memory(1, 14.0), memory(2, 28.0), Entry::Flops(peak)]),
            record(vec![
                kernel("bf16", 1, 26.0, 1.0),
                kernel("bf16", 8, 20.0, 8.0),
                kernel("nf4", 1, 20.0, 3.76),
                run(1, 2.4, 2.6),
                run(2, 8.0, 8.8),
                run(4, 12.0, 14.0),
            ]),
            record(vec![copy("pinned", 4, 1.0), copy("pinned", 65536, 25.0), copy("pageable", 4, 0.5)]),
        ]
    }

    /// The charts by their titles.
    fn titles(records: &[Record]) -> Vec<String> {
        chart::of(records).into_iter().map(|chart| chart.title).collect()
    }

    #[test]
    fn every_kind_of_result_is_drawn() {
        let titles = titles(&everything());
        assert_eq!(
            titles,
            [
                "Reads by block size, 8 in flight",
                "Memory by threads, avx2 loads",
                "host_to_device_memcpy_ce",
                "Roofline: what memory and multiply-adds allow",
                "llama-1.1b <bf16> tg128: tokens per second by budget",
            ]
        );
        let charts = chart::of(&everything());
        let labels = |i: usize| charts[i].series.iter().map(|s: &Series| s.label.clone()).collect::<Vec<_>>();
        assert_eq!(labels(0), ["io_uring, direct", "buffered, cold", "buffered, warm"]);
        // By size, at one depth.
        assert_eq!(charts[0].series[0].points, [(131_072.0, 2.0), (1_048_576.0, 3.0)]);
        assert_eq!((charts[0].series[1].line, charts[0].series[2].line), (Line::Solid, Line::Dashed));
        assert_eq!(charts[0].series[1].colour, charts[0].series[2].colour);
        assert_eq!(labels(3), ["f32 300 GFLOP/s", "linear bf16", "linear nf4"]);
        assert!(charts[3].subtitle.contains(" 28.00 GB/s "), "{}", charts[3].subtitle);
        // The roof has its ridge where both bounds meet, and a kernel lies where it computes.
        assert!((charts[3].series[0].points[1].0 - 300.0 / 28.0).abs() < 1e-9);
        assert_eq!(charts[3].series[1].points, [(1.0, 26.0), (8.0, 160.0)]);
        assert_eq!(labels(4), ["cpu, measured", "cpu, bound"]);
    }

    #[test]
    fn a_roofline_for_each_device() {
        let mut records = everything();
        records.extend([device("GPU A", "cuda:0", 3000.0, 1), device("GPU B", "cuda:0", 1000.0, 1)]);
        records.push(device("GPU A", "cuda:0", 2900.0, 8));
        let charts: Vec<_> =
            chart::of(&records).into_iter().filter(|chart| chart.title.starts_with("Roofline")).collect();
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.split(':').next().unwrap()).collect();
        assert_eq!(titles, ["Roofline", "Roofline of cuda", "Roofline of cuda"]);
        let [cpu, a, b] = &charts[..] else { panic!("{titles:?}") };
        // Neither has anything of another.
        assert!(cpu.subtitle.contains(" 28.00 GB/s ") && cpu.series.len() == 3);
        assert!(a.subtitle.starts_with("GPU A ") && a.subtitle.contains(" 3000.00 GB/s "), "{}", a.subtitle);
        assert!(b.subtitle.starts_with("GPU B ") && b.subtitle.contains(" 1000.00 GB/s "), "{}", b.subtitle);
        let labels: Vec<_> = a.series.iter().map(|series| series.label.as_str()).collect();
        assert_eq!(labels, ["bf16 600 TFLOP/s", "f32 60 TFLOP/s", "linear bf16", "other operations"]);
        // A ceiling for each encoding, and the ridge where both bounds meet.
        assert_eq!(a.series[0].points[1], (200.0, 600_000.0));
        assert_eq!(a.series[1].points[1], (20.0, 60_000.0));
        assert_eq!((a.series[2].points.len(), b.series[2].points.len()), (2, 1));
        // What computes nothing has no place on a scale of operations.
        assert!(a.series[3].points.iter().all(|point| point.0 == 0.1));
        assert!(!svg(&records).unwrap().contains("NaN"));
    }

    #[test]
    fn depths_where_only_they_change() {
        let records = [record(vec![io("mmap", "cold", 64, 1, 1.0), io("mmap", "cold", 64, 4, 2.0)])];
        assert_eq!(titles(&records), ["Reads of 64K by depth"]);
    }

    #[test]
    fn pictures_and_pages() {
        let records = everything();
        let picture = svg(&records).unwrap();
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("prefers-color-scheme:dark") && !picture.contains("NaN"));
        assert_eq!(picture.matches("<svg ").count(), 1);
        for title in titles(&records) {
            assert!(picture.contains(&escaped(&title)), "{title}");
        }
        let page = html(&records).unwrap();
        assert_eq!(page.matches("<svg ").count(), titles(&records).len());
        assert!(page.contains("<th>ioengine</th>") && page.contains("<td>host_to_device_memcpy_ce</td>"));
        assert!(page.contains("a &lt; b") && !page.contains("a < b"));
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    }

    #[test]
    fn odd_results_are_drawn_all_the_same() {
        for gigabytes in [0.0, f64::NAN, 1e-12, 1e12] {
            let records = [record(vec![io("mmap", "cold", 64, 1, gigabytes)])];
            assert!(svg(&records).unwrap().contains("Reads by"), "{gigabytes}");
        }
        assert!(svg(&[]).is_err_and(|error| error.is_request()));
    }
}
