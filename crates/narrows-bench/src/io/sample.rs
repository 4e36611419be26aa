//! One sample: reads for a while, at a constant depth.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;
use narrows_staging::{
    ALIGNMENT, Arena, ArenaOptions, Budget, Free, Lock, Method, Read, Reader, ReaderOptions, Slot,
};

use super::file::Target;
use super::{Cache, Case, IoEngine, Rw, Settings, mode, options};
use crate::random::SplitMix;
use crate::{Error, Result};

/// Where tiles begin in a page: in the middle of it, as tensors of a checkpoint do.
const OFF_PAGE: u64 = 1022;

const HUGE_PAGE: u64 = 2 << 20;

/// What was read while the clock ran.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Of each read that ended while the clock ran, in seconds.
    pub(super) latencies: Vec<f64>,
}

impl Sample {
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// The name of a reader's method here.
pub(super) const fn engine(method: Method) -> IoEngine {
    match method {
        Method::Uring => IoEngine::IoUring,
        Method::DirectThreads => IoEngine::Threads,
        Method::BufferedThreads => IoEngine::Buffered,
        Method::Mmap => IoEngine::Mmap,
    }
}

/// The ranges that are read, without end.
struct Walk {
    rw: Rw,
    tile: u64,
    /// How many fit.
    count: u64,
    next: u64,
    random: SplitMix,
}

impl Walk {
    fn next(&mut self) -> Read {
        let index = match self.rw {
            Rw::RandRead => self.random.next() % self.count,
            Rw::Read | Rw::Tiles => self.next % self.count,
        };
        self.next += 1;
        let offset = index * self.tile + if self.rw == Rw::Tiles { OFF_PAGE } else { 0 };
        Read { file: 0, offset, len: self.tile as usize }
    }
}

/// Reads until `ramp_time` and then `runtime` are over.
///
/// The clock starts at the end of one read and stops at the end of another, with as many in flight at both ends: so
/// what was begun before it and what was not finished after it weigh the same.
pub(super) fn take(
    target: &Target,
    case: &Case,
    settings: &Settings,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Sample> {
    let tile = case.tile(settings);
    let (mut reader, mut free) = open(target, case, tile)?;
    let spare = if case.rw == Rw::Tiles { ALIGNMENT as u64 } else { 0 };
    let count = (target.size.get().saturating_sub(spare) / tile).max(1);
    let mut walk = Walk { rw: case.rw, tile, count, next: 0, random: SplitMix(0) };
    let mut sample = Sample { bytes: 0, seconds: 0.0, latencies: Vec::new() };
    let begin = Instant::now();
    let mut clock: Option<Instant> = None;
    let mut asked = begin;
    loop {
        while let Some(slot) = free.pop() {
            reader.submit(walk.next(), slot.fill(0)).map_err(|(error, _)| error)?;
        }
        let Some(done) = reader.wait(None) else {
            return Err(Error::Settings("the reader has nothing in flight".to_owned()));
        };
        let used = done.result.map_err(|(error, _)| error)?.take();
        if let Some(start) = clock {
            sample.bytes += used.bytes().len() as u64;
            sample.latencies.push((done.completed - done.begun).as_secs_f64());
            let elapsed = done.completed.saturating_duration_since(start);
            if elapsed >= settings.runtime {
                sample.seconds = elapsed.as_secs_f64();
                break;
            }
        } else if done.completed.saturating_duration_since(begin) >= settings.ramp_time {
            clock = Some(done.completed);
        }
        free.push(used.release());
        if asked.elapsed() > Duration::from_millis(50) {
            asked = Instant::now();
            if go_on().is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(sample)
}

/// A reader at the depth of the case, and slots to keep it there. They are in place when this returns: the first
/// touch of a page is no business of the disk.
fn open(target: &Target, case: &Case, tile: u64) -> Result<(Reader, Vec<Slot<Free>>)> {
    let capacity = match case.rw {
        Rw::Read | Rw::RandRead => tile as usize,
        Rw::Tiles => Reader::capacity_for(tile as usize),
    };
    let slots = case.slots(tile);
    // Whole huge pages and enough of them, as the arenas of a run have: in small ones a request to the disk breaks
    // into too many segments.
    let size = slots as u64 * capacity.next_multiple_of(ALIGNMENT) as u64;
    let size = Bytes(size.max(2 * HUGE_PAGE).next_multiple_of(HUGE_PAGE));
    let budget = Budget::new(size);
    let arena = Arena::new(&budget, "blocks", size, ArenaOptions { huge_pages: true, lock: Lock::No })?;
    let mut free = Vec::with_capacity(slots);
    for _ in 0..slots {
        let mut region = arena.carve(capacity)?;
        region.as_mut_slice().fill(1);
        free.push(Slot::new(region));
    }
    let options = ReaderOptions {
        // A thread that is done finds its next block waiting, as a job of fio's has it at hand.
        depth: case.asked(),
        block: case.bs.get() as usize,
        threads: case.iodepth,
        arenas: vec![arena],
        keep_cached: case.cache == Cache::Warm,
        ..options(case.engine)
    };
    let reader = Reader::open(std::slice::from_ref(&target.path), mode(case.engine), options)?;
    Ok((reader, free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_stay_in_the_file_and_reach_all_of_it() {
        let size = 1_000_000_u64;
        for (rw, tile) in [(Rw::Read, 4096), (Rw::RandRead, 4096), (Rw::Tiles, 100_000)] {
            let count = (size - ALIGNMENT as u64) / tile;
            let mut walk = Walk { rw, tile, count, next: 0, random: SplitMix(0) };
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 * count {
                let read = walk.next();
                assert!(read.offset + read.len as u64 <= size, "{rw:?} {read:?}");
                assert!(rw == Rw::Tiles || read.offset.is_multiple_of(4096));
                seen.insert(read.offset);
            }
            assert_eq!(seen.len() as u64, count, "{rw:?}");
        }
    }
}
