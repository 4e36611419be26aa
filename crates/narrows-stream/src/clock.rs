//! What is done on a device, by the device's clock: the host only queues it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narrows_staging::device::{Clock, Event, Events};

use crate::{Bytes, StageStats, TileId};

/// Counters stay true even if a thread that held them panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// What went over the link.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) meter: DeviceMeter,
    /// How long pinning took, or why memory is not pinned.
    pub(crate) pinned: Option<Result<Duration, String>>,
}

/// The use of a tile that was asked for.
pub(crate) struct Use {
    pub(crate) tile: TileId,
    pub(crate) pass: u64,
    pub(crate) read: u64,
    pub(crate) bytes: Bytes,
    pub(crate) begun: Arc<Event>,
    pub(crate) ended: Arc<Event>,
}

/// The uses of tiles on a device: asked for, and done.
pub(crate) struct Uses {
    clock: Clock,
    made: Instant,
    queued: VecDeque<Use>,
    events: Events,
    meter: DeviceMeter,
}

impl Uses {
    /// Counts the device's time from `origin`, which happened at `made`.
    pub(crate) fn new(origin: Arc<Event>, made: Instant) -> Self {
        let (queued, events, meter) = (VecDeque::new(), Events::default(), DeviceMeter::default());
        Self { clock: Clock::new(origin), made, queued, events, meter }
    }

    /// The events of uses that are done, to be recorded again.
    pub(crate) const fn events(&mut self) -> &mut Events {
        &mut self.events
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
            && let (Ok(start), Ok(end)) = (self.clock.at(&front.begun), self.clock.at(&front.ended))
            && let Some(front) = self.queued.pop_front()
        {
            self.meter.add(front.bytes, &(start..end));
            done.push((front, self.made + start..self.made + end));
        }
        done
    }

    /// Takes back the events of a use.
    pub(crate) fn recycle(&mut self, done: Use) {
        self.events.give(done.begun);
        self.events.give(done.ended);
    }
}
