//! From a file to the device, as tiles of a model go: read past the page cache into registered memory, copied from
//! there while the next are read.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;
use narrows_staging::device::{
    Carving, Copied, Copier, DEVICE_ALIGNMENT, Device, DeviceArena, DeviceRegion, Events, Priority, Source,
    Stream,
};
use narrows_staging::{
    Arena, ArenaOptions, Budget, Free, InUse, IoMode, Memory as _, Read, Reader, ReaderOptions, Slot,
};

use super::{DISK_TO_DEVICE, Settings};
use crate::record::{Entry, PcieResult, Samples};
use crate::{Error, Result};

/// A tile, as models are cut.
const TILE: u64 = 8 << 20;
/// Slots of the host: as many as a plan gives unless told otherwise, some 64 MiB.
const HOST_SLOTS: usize = 8;
/// Slots of the device: two copies queued, one tile used, one given back.
const DEVICE_SLOTS: usize = 4;
/// Copies in flight: a link is at its speed with two.
const COPIES: usize = 2;

pub(super) fn run(
    device: &Device,
    path: &Path,
    settings: &Settings,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Entry> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    let tile = TILE.min(size) as usize;
    if size < 4096 {
        return Err(Error::TooSmall { path: path.to_owned(), size: Bytes(size), wanted: Bytes(4096) });
    }
    let mut samples = Vec::new();
    for _ in 0..settings.loops {
        samples.push(Pipeline::new(device, path, size, tile)?.sample(settings.runtime, go_on)?);
    }
    Ok(Entry::Pcie(PcieResult {
        test: DISK_TO_DEVICE.to_owned(),
        memory: "registered".to_owned(),
        size: Bytes(tile as u64),
        streams: 1,
        bandwidth: Samples::of(samples),
        verified: true,
    }))
}

struct Pipeline<'a> {
    path: &'a Path,
    /// Tiles of the file, which is read in turn.
    count: u64,
    tile: usize,
    copier: Copier,
    reader: Reader,
    host: Vec<Slot<Free>>,
    device: Vec<Slot<Free, DeviceRegion>>,
    /// Tiles whose copies are queued, the oldest first.
    flying: VecDeque<Slot<InUse, DeviceRegion>>,
    /// Tiles that are on the device.
    arrived: u64,
    /// Where tiles are used.
    user: Stream,
    events: Events,
}

impl<'a> Pipeline<'a> {
    fn new(device: &Device, path: &'a Path, size: u64, tile: usize) -> Result<Self> {
        let capacity = Reader::capacity_for(tile);
        let budget = Budget::new(Bytes(u64::MAX));
        let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
        let arena = Arena::new(&budget, "tiles", Bytes((HOST_SLOTS * capacity) as u64), options)?;
        let mut host = Vec::new();
        for _ in 0..HOST_SLOTS {
            let mut region = arena.carve(capacity)?;
            region.as_mut_slice().fill(1);
            host.push(Slot::new(region));
        }
        let rounded = tile.next_multiple_of(DEVICE_ALIGNMENT) as u64;
        let on_device = Bytes(DEVICE_SLOTS as u64 * rounded);
        let device_arena = DeviceArena::new(device, &budget, "tiles", on_device, Carving::Together)?;
        let user = Stream::new(device, Priority::Normal)?;
        let region = || -> Result<_> { Ok(Slot::new(DeviceRegion::new(device_arena.carve(tile)?, &user))) };
        let slots = (0..DEVICE_SLOTS).map(|_| region()).collect::<Result<_>>()?;
        let mut copier = Copier::new(device)?;
        copier.pin(&arena)?;
        let options = ReaderOptions { arenas: vec![arena], ..ReaderOptions::default() };
        let reader = Reader::open(&[path.to_owned()], IoMode::Auto, options)?;
        let (count, flying) = (size / tile as u64, VecDeque::new());
        Ok(Self {
            path,
            count,
            tile,
            copier,
            reader,
            host,
            device: slots,
            flying,
            arrived: 0,
            user,
            events: Events::default(),
        })
    }

    /// Bytes per second that arrive on the device, by the host's clock, between two arrivals.
    fn sample(mut self, runtime: Duration, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<f64> {
        let (mut next, mut asked) = (0, Instant::now());
        // The first tiles find everything empty: from the last of them on the clock runs.
        let warm_up = (HOST_SLOTS + DEVICE_SLOTS) as u64;
        let mut clock: Option<(Instant, u64)> = None;
        loop {
            while let Some(slot) = self.host.pop() {
                let offset = next % self.count * self.tile as u64;
                let read = Read { file: 0, offset, len: self.tile };
                self.reader.submit(read, slot.fill(next)).map_err(|(error, _)| error)?;
                next += 1;
            }
            let Some(done) = self.reader.wait(None) else {
                return Err(Error::Settings("the reader has nothing in flight".to_owned()));
            };
            let tile = done.result.map_err(|(error, _)| error)?.take();
            while self.flying.len() >= COPIES || self.device.is_empty() {
                self.land()?;
            }
            let Some(slot) = self.device.pop() else { continue };
            let tag = tile.tag();
            let copied =
                self.copier.copy(Source::Passing(tile), slot.fill(tag)).map_err(|(error, _)| error)?;
            self.flying.push_back(copied.take());
            match clock {
                None if self.arrived >= warm_up => clock = Some((Instant::now(), self.arrived)),
                Some((start, before)) if start.elapsed() >= runtime => {
                    let seconds = start.elapsed().as_secs_f64();
                    let bytes = (self.arrived - before) * self.tile as u64;
                    self.finish()?;
                    return Ok(bytes as f64 / seconds);
                }
                _ => {}
            }
            if asked.elapsed() > Duration::from_millis(50) {
                asked = Instant::now();
                if go_on().is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
    }

    /// Waits for the oldest copy and frees both of its slots, the device's behind a step that would use it.
    fn land(&mut self) -> Result<()> {
        if let Some(Copied { source: Source::Passing(slot), .. }) = self.copier.wait()? {
            self.host.push(slot.release());
        }
        if let Some(slot) = self.flying.pop_front() {
            slot.memory().acquire()?;
            if let Some(used) = slot.memory().release(&mut self.events)? {
                self.events.give(used);
            }
            self.device.push(slot.release());
            self.arrived += 1;
        }
        Ok(())
    }

    /// Waits for what is queued, and compares the last tile with the file.
    fn finish(mut self) -> Result<()> {
        while self.copier.wait()?.is_some() {}
        let Some(slot) = self.flying.pop_back() else { return Ok(()) };
        slot.memory().acquire()?;
        let mut found = vec![0; self.tile];
        self.user.download(&slot.memory().slice().slice(0..self.tile)?, &mut found)?;
        let mut sent = vec![0; self.tile];
        let offset = slot.tag() % self.count * self.tile as u64;
        let failed = |source| Error::File { path: self.path.to_owned(), source };
        let mut file = File::open(self.path).map_err(failed)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).map_err(failed)?;
        std::io::Read::read_exact(&mut file, &mut sent).map_err(failed)?;
        match found.iter().zip(&sent).position(|(found, sent)| found != sent) {
            None => Ok(()),
            Some(at) => {
                Err(Error::Corrupt { what: DISK_TO_DEVICE.to_owned(), at, found: found[at], sent: sent[at] })
            }
        }
    }
}
