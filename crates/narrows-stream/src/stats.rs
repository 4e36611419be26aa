//! What each stage did with its time.

use std::time::{Duration, Instant};

use crate::Bytes;

/// What a stream did so far, or between two moments (see [`Stats::since`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reading.
    pub disk: StageStats,
    /// Copying to the device, by its clock; none where tiles are used in host memory.
    pub link: Option<StageStats>,
    /// Computing, as far as it holds tiles.
    pub compute: StageStats,
    /// The payload of the resident tiles that are in host memory by now.
    pub resident: Bytes,
    /// The payload of those that are on the device.
    pub resident_on_device: Bytes,
    /// The payload that was handed out from slots, having been read for that; the rest came from tiles that stay.
    /// Unlike `disk.bytes`, this has nothing of what is read ahead.
    pub streamed: Bytes,
    /// Groups of tiles that passes demanded.
    pub demands: DemandStats,
    /// Passes that ended.
    pub passes: u64,
}

/// What was demanded, and found or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DemandStats {
    /// Groups that were in memory when they were demanded, or on their way.
    pub hits: u64,
    /// Those of them that were in the memory of the device that computes.
    pub hits_on_device: u64,
    /// Groups that had to be read.
    pub misses: u64,
    /// The payload of all groups that were demanded.
    pub demanded: Bytes,
    /// The payload that was read of groups that missed.
    pub bytes: Bytes,
    /// The payload that was read before it was demanded, whether it was in the end or not. Groups that are found
    /// because of it are hits.
    pub prefetched: Bytes,
}

impl DemandStats {
    /// Hits among all groups that were demanded; none if none was.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            hits_on_device: self.hits_on_device.saturating_sub(earlier.hits_on_device),
            misses: self.misses.saturating_sub(earlier.misses),
            demanded: self.demanded.saturating_sub(earlier.demanded),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            prefetched: self.prefetched.saturating_sub(earlier.prefetched),
        }
    }
}

impl Stats {
    /// What happened since `earlier`, a snapshot of the same stream. `resident` stays as it is now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            disk: self.disk.since(&earlier.disk),
            link: self.link.map(|link| link.since(&earlier.link.unwrap_or_default())),
            compute: self.compute.since(&earlier.compute),
            resident: self.resident,
            resident_on_device: self.resident_on_device,
            streamed: self.streamed.saturating_sub(earlier.streamed),
            demands: self.demands.since(&earlier.demands),
            passes: self.passes.saturating_sub(earlier.passes),
        }
    }
}

/// What one stage did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageStats {
    /// Payload that went through.
    pub bytes: Bytes,
    /// The same, rounded out to what was really moved.
    pub moved: Bytes,
    /// Time with something to do: at least one read in flight, a tile held.
    pub busy: Duration,
    /// Time lost to another stage: no read in flight for want of a free slot, computing without its next tile.
    pub stall: Duration,
    /// Time from the first beginning (a read submitted, a tile handed out) to the last end.
    pub wall: Duration,
}

impl StageStats {
    /// Payload over wall clock, in bytes per second; zero where nothing happened.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        let seconds = self.wall.as_secs_f64();
        if seconds > 0.0 { self.bytes.get() as f64 / seconds } else { 0.0 }
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            moved: self.moved.saturating_sub(earlier.moved),
            busy: self.busy.saturating_sub(earlier.busy),
            stall: self.stall.saturating_sub(earlier.stall),
            wall: self.wall.saturating_sub(earlier.wall),
        }
    }
}

/// Measures a [`StageStats`] while it happens. Knows no clock: it is told what time it is.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: Bytes,
    moved: Bytes,
    busy: Stopwatch,
    stall: Stopwatch,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Meter {
    /// There is something to do, from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.stall.stop(now);
        self.busy.start(now);
        self.first.get_or_insert(now);
    }

    /// Something has been done.
    pub(crate) fn done(&mut self, bytes: Bytes, moved: Bytes, now: Instant) {
        self.bytes += bytes;
        self.moved += moved;
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
    }

    /// There is nothing to do any more.
    pub(crate) fn idle(&mut self, now: Instant) {
        self.busy.stop(now);
    }

    /// There is nothing to do for want of what another stage has, until [`Meter::begin`] or [`Meter::resume`].
    pub(crate) fn stall(&mut self, now: Instant) {
        self.stall.start(now);
    }

    /// The stall is over.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.stall.stop(now);
    }

    pub(crate) fn stats(&self, now: Instant) -> StageStats {
        StageStats {
            bytes: self.bytes,
            moved: self.moved,
            busy: self.busy.total(now),
            stall: self.stall.total(now),
            wall: match (self.first, self.last) {
                (Some(first), Some(last)) => last.saturating_duration_since(first),
                _ => Duration::ZERO,
            },
        }
    }
}

/// Adds up spans of time.
#[derive(Debug, Default)]
struct Stopwatch {
    total: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    fn start(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn stop(&mut self, now: Instant) {
        self.total = self.total(now);
        self.since = None;
    }

    fn total(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_by_the_clock() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut meter = Meter::default();
        assert_eq!(meter.stats(at(5)), StageStats::default());

        // Two reads that overlap, a stall, and one more that is still under way.
        meter.begin(at(10));
        meter.begin(at(12));
        meter.done(Bytes(100), Bytes(128), at(20));
        meter.done(Bytes(100), Bytes(128), at(30));
        meter.idle(at(30));
        meter.stall(at(31));
        meter.stall(at(33));
        let early = meter.stats(at(35));
        assert_eq!((early.busy, early.stall, early.wall), (ms(20), ms(4), ms(20)));
        assert_eq!(early.bytes_per_second(), 10_000.0);
        meter.begin(at(41));
        let late = meter.stats(at(50));
        assert_eq!((late.busy, late.stall, late.wall), (ms(29), ms(10), ms(20)));

        meter.done(Bytes(50), Bytes(64), at(60));
        meter.idle(at(60));
        let part = meter.stats(at(99)).since(&early);
        assert_eq!((part.bytes, part.moved), (Bytes(50), Bytes(64)));
        assert_eq!((part.busy, part.stall, part.wall), (ms(19), ms(6), ms(30)));
    }
}
