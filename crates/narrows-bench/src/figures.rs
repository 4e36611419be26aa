//! Figures that are kept, so that a plan need not measure again what was measured with more care.

use std::collections::BTreeMap;
use std::path::Path;

use narrows_bytes::Bytes;

use serde::{Deserialize, Serialize};

use crate::machine::{Disk, Gpu, Machine};
use crate::record::{Entry, Record};

/// Version of the file; another one is forgotten.
const VERSION: u32 = 1;

/// Of a file: far more than the figures of any number of disks.
const MOST: Bytes = Bytes::mib(16);

/// What disks, memories and links of machines deliver, by their names. Homes may be shared: the machine's name is part
/// of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    schema_version: u32,
    /// Of disks, as weights are streamed from them.
    disks: BTreeMap<String, Figure>,
    /// Of memory, read by as many threads as are best.
    memory: BTreeMap<String, Figure>,
    /// Of links to devices, from registered or pinned memory.
    links: BTreeMap<String, Figure>,
}

/// A figure, and where it is from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// How fast.
    pub bytes_per_second: f64,
    /// When it was measured, as RFC 3339 writes it.
    pub date: String,
    /// By which command.
    pub command: String,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            schema_version: VERSION,
            disks: BTreeMap::new(),
            memory: BTreeMap::new(),
            links: BTreeMap::new(),
        }
    }
}

impl Figures {
    /// Those of a file; none if there is no such file, or one that is of no use.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = narrows_shard::read_small_file(path, MOST).ok().flatten();
        let figures = text.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        figures.filter(|figures| figures.schema_version == VERSION).unwrap_or_default()
    }

    /// The text of a file that [`Figures::read`] reads.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Keeps what a plan wants to know of a record. Says whether there was anything.
    pub fn keep(&mut self, record: &Record) -> bool {
        let machine = &record.machine;
        let best = |of: &dyn Fn(&Entry) -> Option<f64>| {
            record.results.iter().filter_map(of).filter(|speed| *speed > 0.0).reduce(f64::max)
        };
        let as_run = best(&|entry| match entry {
            Entry::Io(result) if result.as_run => Some(result.bandwidth.bytes_per_second),
            _ => None,
        });
        let memory = best(&|entry| match entry {
            Entry::Host(r) if r.test == "read" && r.pages == "huge" => Some(r.bandwidth.bytes_per_second),
            _ => None,
        });
        let link = best(&|entry| match entry {
            Entry::Pcie(r) if r.test == "host_to_device_memcpy_ce" && r.memory != "pageable" => {
                Some(r.bandwidth.bytes_per_second)
            }
            _ => None,
        });
        let figure = |bytes_per_second| Figure {
            bytes_per_second,
            date: record.date.clone(),
            command: record.command.clone(),
        };
        let mut kept = false;
        let mut put = |map: &mut BTreeMap<String, Figure>, key: Option<String>, speed: Option<f64>| {
            if let (Some(key), Some(speed)) = (key, speed) {
                map.insert(key, figure(speed));
                kept = true;
            }
        };
        put(&mut self.disks, machine.disk.as_ref().map(|disk| disk_key(machine, disk)), as_run);
        put(&mut self.memory, Some(of_machine(machine, machine.cpu.as_deref().unwrap_or("memory"))), memory);
        // The software driver's times are nobody's.
        let gpu = machine.gpu.as_ref().filter(|gpu| !gpu.software);
        put(&mut self.links, gpu.map(|gpu| link_key(machine, gpu)), link);
        kept
    }

    /// What a disk delivers to whoever streams weights from it.
    #[must_use]
    pub fn disk(&self, machine: &Machine, disk: &Disk) -> Option<&Figure> {
        self.disks.get(&disk_key(machine, disk)).filter(|figure| figure.bytes_per_second > 0.0)
    }
}

fn disk_key(machine: &Machine, disk: &Disk) -> String {
    of_machine(machine, &format!("{} at {}", disk.key(), disk.mount.display()))
}

fn link_key(machine: &Machine, gpu: &Gpu) -> String {
    of_machine(machine, &format!("{} ({})", gpu.name, gpu.device))
}

fn of_machine(machine: &Machine, what: &str) -> String {
    format!("{}: {what}", machine.host.as_deref().unwrap_or("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{HostResult, IoResult, Latency, PcieResult, Samples};
    use crate::{Bytes, Machine};
    use std::path::PathBuf;

    fn disk(mount: &str) -> Disk {
        Disk {
            mount: PathBuf::from(mount),
            file_system: "ext4".to_owned(),
            source: "/dev/nvme0n1".to_owned(),
            device: Some("nvme0n1".to_owned()),
            model: Some("Fast".to_owned()),
            rotational: None,
            size_bytes: None,
        }
    }

    fn record(software: bool) -> Record {
        let io = |as_run, gigabytes: f64| {
            Entry::Io(IoResult {
                ioengine: "io_uring".to_owned(),
                direct: true,
                rw: "tiles".to_owned(),
                cache: "bypassed".to_owned(),
                bs: Bytes(1),
                iodepth: 1,
                tile: Bytes(1),
                bandwidth: Samples::of(vec![gigabytes * 1e9]),
                iops: 1.0,
                latency: Latency::default(),
                seconds: 1.0,
                bytes: Bytes(1),
                as_run,
            })
        };
        let read = |threads, gigabytes: f64| {
            Entry::Host(HostResult {
                test: "read".to_owned(),
                threads,
                pages: "huge".to_owned(),
                size: Bytes(1),
                isa: "avx2".to_owned(),
                bandwidth: Samples::of(vec![gigabytes * 1e9]),
            })
        };
        let copy = Entry::Pcie(PcieResult {
            test: "host_to_device_memcpy_ce".to_owned(),
            memory: "pinned".to_owned(),
            size: Bytes(1),
            streams: 1,
            bandwidth: Samples::of(vec![25e9]),
            verified: true,
        });
        let gpu = Gpu {
            device: "cuda:0".to_owned(),
            name: "A".to_owned(),
            software,
            compute_capability: "9.0".to_owned(),
            driver_cuda: "13.0".to_owned(),
            driver_release: None,
            memory_bytes: Bytes(1),
            link: None,
        };
        let machine = Machine { disk: Some(disk("/")), gpu: Some(gpu), ..Machine::here() };
        let results = vec![io(false, 9.0), io(true, 3.0), read(1, 14.0), read(2, 28.0), copy];
        Record::new(
            chrono::DateTime::UNIX_EPOCH,
            "narrows bench io .".to_owned(),
            machine,
            Vec::new(),
            results,
        )
    }

    #[test]
    fn what_is_kept_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("figures.json");
        assert_eq!(Figures::read(&path), Figures::default());
        let record = record(false);
        let mut figures = Figures::default();
        assert!(figures.keep(&record));
        assert_eq!((figures.disks.len(), figures.memory.len(), figures.links.len()), (1, 1, 1));
        assert_eq!(figures.memory.values().next().unwrap().bytes_per_second, 28e9);
        std::fs::write(&path, figures.text()).unwrap();
        let read = Figures::read(&path);
        assert_eq!(read, figures);
        // As models are read, not as fast as can be.
        let figure = read.disk(&record.machine, &disk("/")).unwrap();
        assert_eq!((figure.bytes_per_second, figure.date.as_str()), (3e9, "1970-01-01T00:00:00Z"));
        assert!(read.disk(&record.machine, &disk("/other")).is_none());
        let other = Machine { host: Some("another".to_owned()), ..record.machine.clone() };
        assert!(read.disk(&other, &disk("/")).is_none());
        for text in ["", "{", "{\"schema_version\":2,\"disks\":{},\"memory\":{},\"links\":{}}"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Figures::read(&path), Figures::default(), "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_not_kept() {
        let mut figures = Figures::default();
        let nothing = Record { results: Vec::new(), ..record(false) };
        assert!(!figures.keep(&nothing) && figures == Figures::default());
        assert!(figures.keep(&record(true)) && figures.links.is_empty());
    }
}
