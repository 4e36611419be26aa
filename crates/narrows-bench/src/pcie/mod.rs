//! Copies between the host and a device: every kind of host memory, size and number of streams, both directions, and
//! from disk through the host to the device.
//!
//! Tests have the names that nvbandwidth gives them, and times are the device's: copies begin together when all are
//! queued. What arrived is compared with what was sent.

mod disk;
pub mod nvbandwidth;

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use narrows_bytes::Bytes;
use narrows_staging::Budget;
use narrows_staging::device::{
    Carving, DeviceArena, DeviceSlice, HostMemory, Lane, Priority, Stream, Transfer, Transfers,
};
pub use narrows_staging::device::{Device, HostKind};

use crate::io::Step;
use crate::machine::{Gpu, Link};
use crate::record::{Entry, PcieResult, Samples};
use crate::{Error, Result};

/// Which way copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// To the device.
    HostToDevice,
    /// From the device.
    DeviceToHost,
    /// To the device, while as much is copied from it.
    HostToDeviceBidirectional,
    /// From the device, while as much is copied to it.
    DeviceToHostBidirectional,
}

impl Test {
    /// All there are.
    pub const ALL: [Self; 4] = [
        Self::HostToDevice,
        Self::DeviceToHost,
        Self::HostToDeviceBidirectional,
        Self::DeviceToHostBidirectional,
    ];

    /// The name of nvbandwidth.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostToDevice => "host_to_device_memcpy_ce",
            Self::DeviceToHost => "device_to_host_memcpy_ce",
            Self::HostToDeviceBidirectional => "host_to_device_bidirectional_memcpy_ce",
            Self::DeviceToHostBidirectional => "device_to_host_bidirectional_memcpy_ce",
        }
    }

    const fn to_device(self) -> bool {
        matches!(self, Self::HostToDevice | Self::HostToDeviceBidirectional)
    }

    const fn both_ways(self) -> bool {
        matches!(self, Self::HostToDeviceBidirectional | Self::DeviceToHostBidirectional)
    }
}

/// The name of the test that reads a file and copies what was read: nvbandwidth has none for it.
pub const DISK_TO_DEVICE: &str = "disk_to_device";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which ways.
    pub tests: Vec<Test>,
    /// From and to which memory of the host.
    pub memory: Vec<HostKind>,
    /// Sizes of a copy.
    pub sizes: Vec<Bytes>,
    /// Streams that copy at one time, each its own bytes.
    pub streams: Vec<usize>,
    /// How often each case is run, in turn.
    pub loops: usize,
    /// Memory of the host that may be taken.
    pub host: Bytes,
    /// Whether cases that do not fit are left out with a note, or an error.
    pub skip_missing: bool,
    /// A file to copy from, past the page cache, in tiles as models are streamed.
    pub file: Option<PathBuf>,
    /// How long the file is read.
    pub runtime: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// A result for each case.
    pub results: Vec<Entry>,
    /// What did not go as asked.
    pub notes: Vec<String>,
    /// The device, its link as it was right after the copies.
    pub gpu: Gpu,
}

/// Copies of a sample: as many as come to this, and fewer than a queue takes.
const SAMPLE: Bytes = Bytes::mib(256);
const MOST_COPIES: u64 = 64;

/// What the gate clears.
const GATE: u64 = 64 << 20;

#[derive(Clone, Copy, PartialEq)]
struct Case {
    test: Test,
    size: usize,
    streams: usize,
}

/// Copies. `go_on` is asked before every sample.
///
/// # Errors
/// Settings that make no sense, a device that refuses or does not give back what it was given, or
/// [`Error::Interrupted`].
pub fn run(
    device: &Device,
    settings: &Settings,
    go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Report> {
    check(settings)?;
    let mut notes = Vec::new();
    let cases = fitting(device, settings, &mut notes)?;
    let mut results = Vec::new();
    let of = cases.len() * settings.memory.len() * settings.loops;
    let mut step = Step { what: String::new(), done: 0, of };
    if !cases.is_empty() {
        let mut bench = Bench::new(device, &cases)?;
        for &kind in &settings.memory {
            results.extend(bench.kind(kind, &cases, settings, &mut step, &mut notes, go_on)?);
        }
    }
    if let Some(path) = &settings.file {
        step.what = DISK_TO_DEVICE.to_owned();
        results.push(disk::run(device, path, settings, &mut || go_on(&step))?);
    }
    Ok(Report { results, notes, gpu: gpu(device)? })
}

/// The device, its link as it is now.
///
/// # Errors
/// What the driver says.
pub fn gpu(device: &Device) -> Result<Gpu> {
    let (major, minor) = device.compute_capability();
    let driver = device.driver_version();
    let release = fs::read_to_string("/sys/module/nvidia/version").ok();
    let software = device.is_software();
    Ok(Gpu {
        device: format!("cuda:{}", device.ordinal()),
        name: device.name().to_owned(),
        software,
        compute_capability: format!("{major}.{minor}"),
        driver_cuda: format!("{}.{}", driver / 1000, driver % 1000 / 10),
        driver_release: release.filter(|_| !software).map(|text| text.trim().to_owned()),
        memory_bytes: device.total(),
        link: Device::pci_bus_id(device.ordinal())?.filter(|_| !software).and_then(|id| Link::of(&id)),
    })
}

fn check(settings: &Settings) -> Result<()> {
    let wrong = |what: &str| Err(Error::Settings(what.to_owned()));
    let copies = [settings.tests.len(), settings.memory.len(), settings.sizes.len(), settings.streams.len()];
    if copies.contains(&0) && settings.file.is_none() {
        return wrong("nothing to measure");
    }
    if settings.loops == 0 || settings.runtime.is_zero() {
        return wrong("loops and runtime must be more than 0");
    }
    if settings.sizes.contains(&Bytes(0)) {
        return wrong("a copy of 0 bytes takes no time");
    }
    if settings.streams.iter().any(|&streams| streams == 0 || streams > 64) {
        return wrong("1 to 64 streams");
    }
    Ok(())
}

/// The cases that both memories have room for.
fn fitting(device: &Device, settings: &Settings, notes: &mut Vec<String>) -> Result<Vec<Case>> {
    let free = device.free()?.get();
    let gate = GATE.min(free / 16);
    let mut cases = Vec::new();
    for &test in &settings.tests {
        for &streams in &settings.streams {
            for &size in &settings.sizes {
                let all = Bytes(size.get().saturating_mul(streams as u64));
                let both = Bytes(all.get().saturating_mul(if test.both_ways() { 2 } else { 1 }));
                // The device rounds what it gives.
                let on_device = both.get().saturating_add(gate + (4 << 20));
                if on_device > free || both > settings.host {
                    let there = Bytes(free.saturating_sub(gate)).min(settings.host);
                    let what = format!("{}: {both} in copies, and {there} of memory for them", test.name());
                    if !settings.skip_missing {
                        return Err(Error::Settings(what));
                    }
                    notes.push(format!("left out: {what}"));
                    continue;
                }
                cases.push(Case { test, size: size.get() as usize, streams });
            }
        }
    }
    Ok(cases)
}

/// What all cases share: memory of the device, streams, a gate.
struct Bench<'a> {
    device: &'a Device,
    streams: Vec<Stream>,
    /// As long as the largest case: where copies go, and where they come from.
    target: DeviceSlice,
    source: DeviceSlice,
    transfers: Transfers,
    /// Room for one direction.
    one_way: usize,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, cases: &[Case]) -> Result<Self> {
        let most = |of: &dyn Fn(&Case) -> bool| {
            cases.iter().filter(|case| of(case)).map(|case| case.size * case.streams).max().unwrap_or(0)
        };
        let (to, from) = (most(&|case| case.test.to_device()), most(&|case| !case.test.to_device()));
        let other = most(&|case| case.test.both_ways());
        let (to, from) = (to.max(other), from.max(other));
        let gate = GATE.min(device.free()?.get() / 16).max(1);
        let rounding = 3 * narrows_staging::device::DEVICE_ALIGNMENT as u64;
        let size = Bytes((to + from) as u64 + gate + rounding);
        let arena =
            DeviceArena::new(device, &Budget::new(size + Bytes(512)), "copies", size, Carving::Together)?;
        let count = cases.iter().map(|case| case.streams * if case.test.both_ways() { 2 } else { 1 }).max();
        let streams = (0..count.unwrap_or(1)).map(|_| Stream::new(device, Priority::Normal));
        let transfers = Transfers::new(device, arena.carve(gate as usize)?)?;
        let (target, source) = (arena.carve(to)?, arena.carve(from)?);
        let streams = streams.collect::<std::result::Result<_, _>>()?;
        let one_way = to.max(from);
        Ok(Self { device, streams, target, source, transfers, one_way })
    }

    /// All cases with one kind of host memory, which is allocated once: pinning is slow.
    fn kind(
        &mut self,
        kind: HostKind,
        cases: &[Case],
        settings: &Settings,
        step: &mut Step,
        notes: &mut Vec<String>,
        go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
    ) -> Result<Vec<Entry>> {
        step.what = format!("{} memory", kind.name());
        if go_on(step).is_break() {
            return Err(Error::Interrupted);
        }
        let len = self.one_way;
        let budget = Budget::new(Bytes(u64::MAX));
        let allocate = |what| HostMemory::new(self.device, &budget, what, kind, len);
        let pair =
            allocate("copied to the device").and_then(|out| Ok((out, allocate("copied from the device")?)));
        let (mut out, mut back) = match pair {
            Ok(pair) => pair,
            Err(error) if settings.skip_missing && kind != HostKind::Pageable => {
                notes.push(format!("{} memory is left out: {error}", kind.name()));
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
        };
        fill(&mut out.as_mut_slice()[..len], SENT);
        if !self.source.is_empty() {
            self.load_source()?;
        }
        let mut samples = vec![Vec::new(); cases.len()];
        for _ in 0..settings.loops {
            for (case, samples) in cases.iter().zip(&mut samples) {
                step.what = format!("{} {} {}", case.test.name(), kind.name(), Bytes(case.size as u64));
                if go_on(step).is_break() {
                    return Err(Error::Interrupted);
                }
                samples.push(self.sample(case, out.as_slice(), back.as_mut_slice())?);
                step.done += 1;
            }
        }
        let result = |(case, samples): (&Case, Vec<f64>)| {
            Entry::Pcie(PcieResult {
                test: case.test.name().to_owned(),
                memory: kind.name().to_owned(),
                size: Bytes(case.size as u64),
                streams: case.streams,
                bandwidth: Samples::of(samples),
                verified: true,
            })
        };
        Ok(cases.iter().zip(samples).map(result).collect())
    }

    /// Puts what is copied from the device there.
    fn load_source(&self) -> Result<()> {
        const PIECE: usize = 16 << 20;
        let mut piece = vec![0; PIECE.min(self.source.len())];
        for at in (0..self.source.len()).step_by(PIECE) {
            let len = PIECE.min(self.source.len() - at);
            fill_at(&mut piece[..len], RETURNED, at);
            self.streams[0].upload(&piece[..len], &self.source.slice(at..at + len)?)?;
        }
        Ok(())
    }

    /// Bytes per second of the direction that counts.
    fn sample(&mut self, case: &Case, out: &[u8], back: &mut [u8]) -> Result<f64> {
        let Case { test, size, streams } = *case;
        let all = size * streams;
        let repeat = (SAMPLE.get() / all as u64).clamp(1, MOST_COPIES) as usize;
        let parts = |whole: &DeviceSlice| {
            (0..streams)
                .map(|i| whole.slice(i * size..(i + 1) * size))
                .collect::<std::result::Result<Vec<_>, _>>()
        };
        let (to, from) = (test.to_device() || test.both_ways(), !test.to_device() || test.both_ways());
        let targets = if to { parts(&self.target)? } else { Vec::new() };
        let sources = if from { parts(&self.source)? } else { Vec::new() };
        // What is left of the sample before would look like what is to arrive.
        if to {
            self.streams[0].zero(&self.target.slice(0..all)?)?;
            self.streams[0].synchronize()?;
        }
        if from {
            windows(all).for_each(|window| back[window].fill(0));
        }
        // The direction that does not count goes on for longer, so that the other is never alone.
        let repeats = |counts: bool| if counts { repeat } else { 2 * repeat };
        let mut lanes = Vec::new();
        let mut streams = self.streams.iter();
        for (to, from) in targets.iter().zip(out.chunks_exact(size)) {
            let Some(stream) = streams.next() else { break };
            let timed = test.to_device();
            lanes.push(Lane {
                stream,
                transfer: Transfer::ToDevice { from, to },
                repeat: repeats(timed),
                timed,
            });
        }
        for (from, to) in sources.iter().zip(back.chunks_exact_mut(size)) {
            let Some(stream) = streams.next() else { break };
            let timed = !test.to_device();
            lanes.push(Lane {
                stream,
                transfer: Transfer::ToHost { from, to },
                repeat: repeats(timed),
                timed,
            });
        }
        let time = self.transfers.run(&mut lanes)?;
        drop(lanes);
        if to {
            self.verify_device(test, all)?;
        }
        if from {
            for window in windows(all) {
                compare(test.name(), &back[window.clone()], RETURNED, window.start)?;
            }
        }
        Ok((all * repeat) as f64 / time.as_secs_f64().max(1e-9))
    }

    fn verify_device(&self, test: Test, len: usize) -> Result<()> {
        let mut piece = Vec::new();
        for window in windows(len) {
            piece.resize(window.len(), 0);
            self.streams[0].download(&self.target.slice(window.clone())?, &mut piece)?;
            compare(test.name(), &piece, SENT, window.start)?;
        }
        Ok(())
    }
}

/// What is compared of `len` bytes: all of little; of much the beginning, the end and places between. Memory that no
/// cache has is too slow to be read to the last byte.
fn windows(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    const WINDOW: usize = 256 << 10;
    const WINDOWS: usize = 16;
    let count = if len <= WINDOW * WINDOWS { len.div_ceil(WINDOW) } else { WINDOWS };
    (0..count).map(move |i| {
        let start = match len <= WINDOW * WINDOWS {
            true => i * WINDOW,
            false => (len - WINDOW) / (WINDOWS - 1) * i,
        };
        // The last ends where all ends.
        if i + 1 == count { len.saturating_sub(WINDOW).max(start)..len } else { start..start + WINDOW }
    })
}

/// Kinds of contents: no byte of one is where it would be in the other.
const SENT: u64 = 1;
const RETURNED: u64 = 2;

/// The eight bytes at `8 * index`: others wherever one looks, and other ones for each kind.
fn word(kind: u64, index: u64) -> [u8; 8] {
    let mut z = (index ^ kind << 56).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ z >> 29).to_le_bytes()
}

fn fill(bytes: &mut [u8], kind: u64) {
    fill_at(bytes, kind, 0);
}

/// Fills with what belongs at `at`, a multiple of 8.
fn fill_at(bytes: &mut [u8], kind: u64, at: usize) {
    for (chunk, index) in bytes.chunks_mut(8).zip(at as u64 / 8..) {
        let len = chunk.len();
        chunk.copy_from_slice(&word(kind, index)[..len]);
    }
}

fn compare(what: &str, found: &[u8], kind: u64, at: usize) -> Result<()> {
    for (i, &found) in found.iter().enumerate() {
        let at = at + i;
        let sent = word(kind, at as u64 / 8)[at % 8];
        if found != sent {
            return Err(Error::Corrupt { what: what.to_owned(), at, found, sent });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_within_and_reach_both_ends() {
        for len in [1, 8, 1000, 256 << 10, (256 << 10) + 1, 4 << 20, (4 << 20) + 1, 100_000_001, 1 << 30] {
            let all: Vec<_> = windows(len).collect();
            assert_eq!((all[0].start, all.last().map(|w| w.end)), (0, Some(len)), "{len}");
            assert!(all.iter().all(|w| w.start < w.end && w.end <= len), "{len} {all:?}");
            if len <= 4 << 20 {
                assert!(all.windows(2).all(|pair| pair[0].end >= pair[1].start), "{len} {all:?}");
            }
        }
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let mut bytes = vec![0; 100_003];
        fill(&mut bytes, SENT);
        assert!(compare("copy", &bytes, SENT, 0).is_ok() && compare("copy", &bytes[13..], SENT, 13).is_ok());
        assert!(compare("copy", &bytes, RETURNED, 0).is_err());
        bytes[70_001] ^= 1;
        let error = compare("copy", &bytes[1000..], SENT, 1000).unwrap_err();
        assert!(matches!(error, Error::Corrupt { at: 70_001, .. }) && error.is_device(), "{error}");
    }
}
