//! What the reader thread, the consumer and whoever watches them have in common.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::stats::Meter;
use crate::trace::{Event, Trace};
use crate::{Bytes, Describe, Stats};

pub(crate) struct Shared {
    /// Steps of the walk below this are wanted by nobody any more.
    position: AtomicU64,
    meters: Mutex<Meters>,
    trace: Option<Mutex<Trace>>,
    pub(crate) describe: Describe,
}

/// Everything that is counted, under one lock so that a snapshot is of one moment.
#[derive(Default)]
pub(crate) struct Meters {
    pub(crate) disk: Meter,
    pub(crate) compute: Meter,
    pub(crate) resident: Bytes,
    pub(crate) streamed: Bytes,
    pub(crate) passes: u64,
}

impl Shared {
    pub(crate) fn new(describe: Describe, trace: Option<Trace>) -> Self {
        Self { position: AtomicU64::new(0), meters: Mutex::default(), trace: trace.map(Mutex::new), describe }
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
            lock(trace).record(event);
        }
    }
}

/// Counters stay true even if a thread that held them panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at a stream from outside: from another thread, in the middle of a pass, after its end.
#[derive(Clone)]
pub struct Monitor(pub(crate) Arc<Shared>);

impl Monitor {
    /// What the stream did so far. Cheap.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let now = Instant::now();
        let meters = self.0.meters();
        Stats {
            disk: meters.disk.stats(now),
            compute: meters.compute.stats(now),
            resident: meters.resident,
            streamed: meters.streamed,
            passes: meters.passes,
        }
    }

    /// Writes the trace so far in Chrome's format, which Perfetto opens: a row for computing, as many for the disk
    /// as reads overlapped, and an arrow from each read to the first use of what it read. Empty if the stream was
    /// started without a trace.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, out: impl io::Write) -> io::Result<()> {
        // A copy, so that a slow disk under the trace does not hold up the stream.
        let events = self.0.trace.as_ref().map(|trace| lock(trace).events()).unwrap_or_default();
        crate::trace::write(events, &*self.0.describe, out)
    }
}
