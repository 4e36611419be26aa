//! What the reader thread, the consumer and whoever watches them have in common.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::clock::{Link, Uses, lock};
use crate::stats::{DemandStats, Meter};
use crate::trace::{Event, Stage, Trace};
use crate::{Bytes, Describe, Stats};

pub(crate) struct Shared {
    /// Steps of the walk below this are wanted by nobody any more.
    position: AtomicU64,
    meters: Mutex<Meters>,
    trace: Option<Trace>,
    pub(crate) describe: Describe,
}

/// Everything that is counted, under one lock so that a snapshot is of one moment.
#[derive(Default)]
pub(crate) struct Meters {
    pub(crate) disk: Meter,
    pub(crate) compute: Meter,
    pub(crate) resident: Bytes,
    pub(crate) streamed: Bytes,
    pub(crate) demands: DemandStats,
    pub(crate) passes: u64,
}

impl Shared {
    pub(crate) fn new(describe: Describe, trace: Option<Trace>) -> Self {
        Self { position: AtomicU64::new(0), meters: Mutex::default(), trace, describe }
    }

    /// Relaxed, as the position orders nothing: a reader that sees it late reads a tile that is then dropped.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    pub(crate) fn set_position(&self, step: u64) {
        self.position.store(step, Ordering::Relaxed);
    }

    pub(crate) fn meters(&self) -> MutexGuard<'_, Meters> {
        lock(&self.meters)
    }

    pub(crate) fn record(&self, event: Event) {
        if let Some(trace) = &self.trace {
            trace.record(event);
        }
    }
}

/// Looks at a stream from outside: from another thread, in the middle of a pass, after its end.
#[derive(Clone)]
pub struct Monitor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) feed: Option<Feed>,
}

/// What a stream on a device is fed by: a stream of the host and the link.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) host: Arc<Shared>,
    pub(crate) link: Arc<Mutex<Link>>,
    pub(crate) uses: Arc<Mutex<Uses>>,
}

impl Feed {
    /// Looks for what the device has done by now, and puts it into the trace.
    pub(crate) fn harvest(&self, shared: &Shared) {
        let mut uses = lock(&self.uses);
        for (done, time) in uses.done() {
            shared.record(Event {
                stage: Stage::Compute,
                tile: done.tile,
                pass: done.pass,
                read: done.read,
                bytes: done.bytes,
                start: time.start,
                end: time.end,
            });
            uses.recycle(done);
        }
    }
}

impl Monitor {
    /// What the stream did so far. Cheap.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let now = Instant::now();
        if let Some(feed) = &self.feed {
            feed.harvest(&self.shared);
        }
        let meters = self.shared.meters();
        let here = (meters.disk.stats(now), meters.resident, meters.demands);
        let of_host = |feed: &Feed| {
            let host = feed.host.meters();
            // What misses the device is asked of the host, and may be there.
            let hits = here.2.hits + host.demands.hits;
            let demanded = here.2.demanded;
            let demands = DemandStats { hits, hits_on_device: here.2.hits, demanded, ..host.demands };
            (host.disk.stats(now), host.resident, demands)
        };
        let (disk, resident, demands) = self.feed.as_ref().map_or(here, of_host);
        let link = self.feed.as_ref().map(|feed| lock(&feed.link).meter.stats());
        Stats {
            disk,
            link,
            compute: match &self.feed {
                Some(feed) => lock(&feed.uses).stats(),
                None => meters.compute.stats(now),
            },
            resident,
            resident_on_device: if self.feed.is_some() { meters.resident } else { Bytes(0) },
            streamed: meters.streamed,
            demands,
            passes: meters.passes,
        }
    }

    /// How long it took to pin the memory that a device reads, or why it is not pinned. None before it was tried,
    /// and where no device is.
    #[must_use]
    pub fn pinned(&self) -> Option<Result<Duration, String>> {
        self.feed.as_ref().and_then(|feed| lock(&feed.link).pinned.clone())
    }

    /// Writes the trace so far in Chrome's format, which Perfetto opens: a row for computing, as many for the disk
    /// as reads overlapped, and an arrow from each read to the first use of what it read. Empty if the stream was
    /// started without a trace.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, out: impl io::Write) -> io::Result<()> {
        // A copy, so that a slow disk under the trace does not hold up the stream.
        if let Some(feed) = &self.feed {
            feed.harvest(&self.shared);
        }
        let events = self.shared.trace.as_ref().map(Trace::events).unwrap_or_default();
        crate::trace::write(events, &*self.shared.describe, out)
    }
}
