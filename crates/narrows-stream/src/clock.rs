//! What is done on a device, by the device's clock: the host only queues it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narrows_staging::device::Event;

use crate::{Bytes, StageStats, TileId};

/// Adds up spans of a device's time.
#[derive(Debug, Default)]
pub(crate) struct DeviceMeter {
    bytes: Bytes,
    busy: Duration,
    first: Option<Duration>,
    last: Duration,
}

impl DeviceMeter {
    pub(crate) fn add(&mut self, bytes: Bytes, time: &Range<Duration>) {
        self.bytes += bytes;
        self.busy += time.end.saturating_sub(time.start);
        self.first.get_or_insert(time.start);
        self.last = self.last.max(time.end);
    }

    pub(crate) fn stats(&self) -> StageStats {
        let wall = self.first.map_or(Duration::ZERO, |first| self.last.saturating_sub(first));
        let (busy, bytes) = (self.busy, self.bytes);
        StageStats { bytes, moved: bytes, busy, stall: wall.saturating_sub(busy), wall }
    }
}

/// The use of a tile that was asked for.
pub(crate) struct Use {
    pub(crate) tile: TileId,
    pub(crate) pass: u64,
    pub(crate) read: u64,
    pub(crate) bytes: Bytes,
    pub(crate) begun: Event,
    pub(crate) ended: Event,
}

/// The uses of tiles on a device: asked for, and done.
pub(crate) struct Uses {
    origin: Arc<Event>,
    made: Instant,
    queued: VecDeque<Use>,
    spare: Vec<Event>,
    meter: DeviceMeter,
}

impl Uses {
    /// Counts the device's time from `origin`, which happened at `made`.
    pub(crate) fn new(origin: Arc<Event>, made: Instant) -> Self {
        let (queued, spare, meter) = (VecDeque::new(), Vec::new(), DeviceMeter::default());
        Self { origin, made, queued, spare, meter }
    }

    /// An event that is not needed any more.
    pub(crate) fn spare(&mut self) -> Option<Event> {
        self.spare.pop()
    }

    pub(crate) fn push(&mut self, use_of_tile: Use) {
        self.queued.push_back(use_of_tile);
    }

    pub(crate) fn stats(&self) -> StageStats {
        self.meter.stats()
    }

    /// Those that are done by now, in order, with when that was. A device that has failed has done nothing more.
    pub(crate) fn done(&mut self) -> Vec<(Use, Range<Instant>)> {
        let mut done = Vec::new();
        while let Some(front) = self.queued.front()
            && let Ok(true) = front.ended.happened()
            && let (Ok(start), Ok(end)) = (self.origin.until(&front.begun), self.origin.until(&front.ended))
            && let Some(front) = self.queued.pop_front()
        {
            self.meter.add(front.bytes, &(start..end));
            done.push((front, self.made + start..self.made + end));
        }
        done
    }

    /// Takes back the events of a use.
    pub(crate) fn recycle(&mut self, done: Use) {
        self.spare.extend([done.begun, done.ended]);
    }
}
