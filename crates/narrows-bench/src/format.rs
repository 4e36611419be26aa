//! Records as text: a table for people, or what other programs read.

use std::fmt::Write as _;

use narrows_bytes::Bytes;
use serde_json::{Map, Value};

use crate::record::{Entry, Record};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Tables, as Markdown has them.
    Md,
    /// One document: the record.
    Json,
    /// A line for each result, which says machine, date and command itself.
    Jsonl,
    /// The same with commas between values.
    Csv,
}

impl Record {
    /// The record as text, with a line end.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.tables(),
            Format::Json => json(self) + "\n",
            Format::Jsonl => {
                self.rows().into_iter().map(|row| Value::Object(row).to_string() + "\n").collect()
            }
            Format::Csv => self.csv(),
        }
    }

    /// Each result with what else it needs to be told from others.
    fn rows(&self) -> Vec<Map<String, Value>> {
        let common = [
            ("date", Value::from(self.date.as_str())),
            ("version", self.version.as_str().into()),
            ("command", self.command.as_str().into()),
            ("host", self.machine.host.clone().into()),
            ("kernel", self.machine.kernel.as_str().into()),
            ("cpu", self.machine.cpu.clone().into()),
            ("disk", self.machine.disk.as_ref().map(crate::Disk::key).into()),
            ("gpu", self.machine.gpu.as_ref().map(|gpu| gpu.name.clone()).into()),
        ];
        let row = |entry: &Entry| {
            let mut row: Map<_, _> =
                common.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            if let Ok(Value::Object(fields)) = serde_json::to_value(entry) {
                fields.into_iter().for_each(|(key, value)| flatten(&mut row, key, value));
            }
            row
        };
        self.results.iter().map(row).collect()
    }

    fn csv(&self) -> String {
        let rows = self.rows();
        // Results of several kinds have different columns: each row has all, those of others empty.
        let mut columns: Vec<&String> = Vec::new();
        for row in &rows {
            for key in row.keys() {
                if !columns.contains(&key) {
                    columns.push(key);
                }
            }
        }
        let cell = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        // Writing to memory does not fail.
        let _ = writer.write_record(&columns);
        for row in &rows {
            let _ = writer.write_record(columns.iter().map(|key| cell(row.get(*key))));
        }
        String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        // A table for each kind of result, in the order in which they come.
        let mut tables: Vec<(&[&str], Table)> = Vec::new();
        for entry in &self.results {
            let (head, cells) = cells(entry);
            match tables.iter_mut().find(|(columns, _)| *columns == head) {
                Some((_, table)) => table.row(cells),
                None => {
                    let mut table = Table::new(head);
                    table.row(cells);
                    tables.push((head, table));
                }
            }
        }
        for (i, (_, table)) in tables.iter().enumerate() {
            text += if i > 0 { "\n" } else { "" };
            text += &table.text();
        }
        for note in &self.notes {
            let _ = writeln!(text, "\nnote: {note}");
        }
        text
    }
}

/// Numbers of a group become `group_name`; lists stay as they are.
fn flatten(row: &mut Map<String, Value>, key: String, value: Value) {
    match value {
        Value::Object(fields) => {
            fields.into_iter().for_each(|(name, value)| flatten(row, format!("{key}_{name}"), value));
        }
        value => _ = row.insert(key, value),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // Records are made of strings, numbers and lists, which always have a JSON form.
    serde_json::to_string(value).unwrap_or_default()
}

/// The columns of a kind of result, and what this one has in them.
fn cells(entry: &Entry) -> (&'static [&'static str], Vec<String>) {
    const IO: &[&str] =
        &["ioengine", "rw", "cache", "bs", "iodepth", "GB/s", "from - to", "IOPS", "p50", "p99"];
    const HOST: &[&str] = &["memory", "threads", "pages", "size", "GB/s", "GiB/s", "from - to, GB/s"];
    const DEVICE: &[&str] = &["device memory", "backend", "size", "GB/s", "from - to"];
    const FLOPS: &[&str] = &["multiply-adds", "backend", "threads", "GFLOP/s", "from - to"];
    const PCIE: &[&str] = &["test", "memory", "size", "streams", "GB/s", "from - to", "verified"];
    const KERNEL: &[&str] =
        &["operation", "backend", "encoding", "shape", "rows", "us", "GB/s", "GFLOP/s", "of the roof"];
    const RUN: &[&str] =
        &["model", "size", "params", "backend", "ram", "test", "t/s", "bound t/s", "bound by"];
    match entry {
        Entry::Io(r) => {
            let cells = vec![
                r.ioengine.clone(),
                r.rw.clone() + if r.as_run { " (as `narrows run`)" } else { "" },
                r.cache.clone(),
                short(r.bs),
                r.iodepth.to_string(),
                giga(r.bandwidth.bytes_per_second),
                range(&r.bandwidth.samples),
                format!("{:.0}", r.iops),
                microseconds(r.latency.p50_us),
                microseconds(r.latency.p99_us),
            ];
            (IO, cells)
        }
        Entry::Host(r) => {
            let speed = r.bandwidth.bytes_per_second;
            let cells = vec![
                r.test.clone() + if r.test == "copy" { " (read + written)" } else { "" },
                r.threads.to_string(),
                r.pages.clone(),
                short(r.size),
                giga(speed),
                format!("{:.2}", speed / f64::from(1 << 30)),
                range(&r.bandwidth.samples),
            ];
            (HOST, cells)
        }
        Entry::Device(r) => {
            let cells = vec![
                r.test.clone() + if r.test == "copy" { " (read + written)" } else { "" },
                r.backend.clone(),
                short(r.size),
                giga(r.bandwidth.bytes_per_second),
                range(&r.bandwidth.samples),
            ];
            (DEVICE, cells)
        }
        Entry::Flops(r) => {
            let cells = vec![
                format!("{}, {}", r.encoding, r.isa),
                r.backend.clone(),
                r.threads.to_string(),
                giga(r.flops_per_second),
                range(&r.samples),
            ];
            (FLOPS, cells)
        }
        Entry::Pcie(r) => {
            let cells = vec![
                r.test.clone(),
                r.memory.clone(),
                short(r.size),
                r.streams.to_string(),
                giga(r.bandwidth.bytes_per_second),
                range(&r.bandwidth.samples),
                if r.verified { "yes" } else { "no" }.to_owned(),
            ];
            (PCIE, cells)
        }
        Entry::Kernel(r) => {
            let shape: Vec<_> = r.shape.iter().map(ToString::to_string).collect();
            let cells = vec![
                r.operation.clone(),
                r.backend.clone(),
                r.encoding.clone(),
                shape.join(" x "),
                r.rows.to_string(),
                format!("{:.2}", r.seconds * 1e6),
                giga(r.bandwidth.bytes_per_second),
                giga(r.bandwidth.bytes_per_second * r.flops_per_byte),
                r.roof_bytes_per_second.map_or(String::new(), |roof| {
                    format!("{:.0} %", 100.0 * r.bandwidth.bytes_per_second / roof.max(1.0))
                }),
            ];
            (KERNEL, cells)
        }
        Entry::Run(r) => {
            let cells = vec![
                format!("{} ({})", r.model, r.model_type),
                r.model_size.to_string(),
                format!("{:.2} B", r.model_n_params as f64 / 1e9),
                r.backend.clone(),
                r.budget_bytes.to_string(),
                r.test.clone(),
                format!("{:.2} \u{b1} {:.2}", r.avg_ts, r.stddev_ts),
                format!("{:.2}", r.bound_ts),
                r.bound.clone(),
            ];
            (RUN, cells)
        }
    }
}

/// A size as fio writes it, in powers of 1024: `128K`, `8M`.
#[must_use]
pub(crate) fn short(Bytes(bytes): Bytes) -> String {
    let units = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// In units of 10^9.
pub(crate) fn giga(per_second: f64) -> String {
    format!("{:.2}", per_second / 1e9)
}

fn range(samples: &[f64]) -> String {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(0.0, f64::max);
    format!("{} - {}", giga(low), giga(high))
}

fn microseconds(us: f64) -> String {
    if us < 1e3 { format!("{us:.0} us") } else { format!("{:.1} ms", us / 1e3) }
}

/// A table of Markdown, its columns aligned for those who read it as it is.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Nothing for a table without rows.
    fn text(&self) -> String {
        if self.rows.len() < 2 {
            return String::new();
        }
        let width = |column| {
            self.rows
                .iter()
                .filter_map(|row: &Vec<String>| row.get(column))
                .map(|cell: &String| cell.chars().count())
                .max()
        };
        let widths: Vec<_> = (0..self.rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (i, row) in self.rows.iter().enumerate() {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if i == 0 {
                let rules: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
                let _ = writeln!(text, "| {} |", rules.join(" | "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IoResult, Latency, Machine, Samples};

    fn record() -> Record {
        let result = IoResult {
            ioengine: "io_uring".to_owned(),
            direct: true,
            rw: "read".to_owned(),
            cache: "bypassed".to_owned(),
            bs: Bytes(128 << 10),
            iodepth: 32,
            tile: Bytes(128 << 10),
            bandwidth: Samples::of(vec![3e9, 1e9, 2e9]),
            iops: 15_000.0,
            latency: Latency { mean_us: 1.0, p50_us: 900.0, p99_us: 1500.0, max_us: 4.0 },
            seconds: 1.5,
            bytes: Bytes(3_000_000_000),
            as_run: false,
        };
        let results = vec![Entry::Io(result)];
        Record::new(
            chrono::DateTime::UNIX_EPOCH,
            "narrows, bench".to_owned(),
            Machine::here(),
            Vec::new(),
            results,
        )
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        let json = record().text(Format::Json);
        std::fs::write(&path, &json).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!((read.text(Format::Json), read.date.as_str()), (json.clone(), "1970-01-01T00:00:00Z"));
        for (text, word) in
            [("{", "no JSON"), ("{}", "not a record"), (&json.replacen(":1,", ":2,", 1), "version 2")]
        {
            std::fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err();
            assert!(error.to_string().contains(word) && error.is_request(), "{error}");
        }
    }

    #[test]
    fn rows_say_where_they_come_from() {
        let jsonl = record().text(Format::Jsonl);
        let row: Value = serde_json::from_str(&jsonl).unwrap();
        assert_eq!((row["bench"].as_str(), row["bytes_per_second"].as_f64()), (Some("io"), Some(2e9)));
        assert_eq!(
            (row["command"].as_str(), row["latency_p99_us"].as_f64()),
            (Some("narrows, bench"), Some(1500.0))
        );
        let text = record().text(Format::Csv);
        let mut csv = csv::Reader::from_reader(text.as_bytes());
        let column = csv.headers().unwrap().iter().position(|name| name == "command").unwrap();
        assert_eq!(&csv.records().next().unwrap().unwrap()[column], "narrows, bench");
    }

    #[test]
    fn tables_for_people() {
        let text = record().text(Format::Md);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert!(lines[2].contains("| 128K |") && lines[2].contains("| 2.00 | 1.00 - 3.00 |"), "{text}");
        assert!(lines[2].contains("900 us | 1.5 ms"), "{text}");
    }

    #[test]
    fn sizes_of_fio() {
        let sizes = [0, 1000, 4096, 3 << 19, 1 << 30].map(|n| short(Bytes(n)));
        assert_eq!(sizes, ["0", "1000", "4K", "1536K", "1G"]);
    }
}
