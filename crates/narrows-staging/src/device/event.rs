use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaEvent, sys};

use super::error::Doing as _;
use super::{Device, DeviceError, Stream};

/// A point in a stream. Recorded again and again; a wait means the last record before it.
pub struct Event(CudaEvent);

impl Event {
    /// Makes an event that knows when it happened.
    ///
    /// # Errors
    /// What the driver says.
    pub fn timed(device: &Device) -> Result<Self, DeviceError> {
        Self::new(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// As [`Event::timed`], and a thread that waits for it sleeps. The device interrupts the processor for each
    /// record of such an event: it is for what threads wait for, and for nothing else.
    ///
    /// # Errors
    /// What the driver says.
    pub fn waited_for(device: &Device) -> Result<Self, DeviceError> {
        Self::new(device, sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)
    }

    fn new(device: &Device, flags: sys::CUevent_flags) -> Result<Self, DeviceError> {
        Ok(Self(device.context().new_event(Some(flags)).doing("making an event")?))
    }

    pub(super) const fn raw(&self) -> &CudaEvent {
        &self.0
    }

    /// Puts the event behind what is queued on `stream`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        self.0.record(stream.raw()).doing("recording an event")
    }

    /// Whether it has happened.
    ///
    /// # Errors
    /// What the driver says, also of kernels and copies that failed since.
    pub fn happened(&self) -> Result<bool, DeviceError> {
        // The driver's other calls bind the context themselves; this one asks whatever context the thread has.
        self.0.context().bind_to_thread().doing("choosing the device")?;
        self.0.try_is_complete().doing("asking for an event")
    }

    /// Blocks until it has happened.
    ///
    /// # Errors
    /// As [`Event::happened`].
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.0.synchronize().doing("waiting for an event")
    }

    /// The device's time from `self` to `later`; both have happened. The driver gives milliseconds in float32: a
    /// time of an hour is right to a quarter of a millisecond. See [`Clock`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn until(&self, later: &Self) -> Result<Duration, DeviceError> {
        let milliseconds = self.0.elapsed_ms(&later.0).doing("asking for a time")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}

/// Events that are recorded again once nothing refers to their last record.
#[derive(Debug, Default)]
pub struct Events {
    spare: VecDeque<Arc<Event>>,
}

impl Events {
    /// Takes an event; `make` makes one where none is free.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn take(
        &mut self,
        make: impl FnOnce() -> Result<Event, DeviceError>,
    ) -> Result<Arc<Event>, DeviceError> {
        for _ in 0..self.spare.len() {
            let Some(event) = self.spare.pop_front() else { break };
            // Nobody else has it, so nobody can begin to wait for what it meant last.
            if Arc::strong_count(&event) == 1 {
                return Ok(event);
            }
            self.spare.push_back(event);
        }
        make().map(Arc::new)
    }

    /// Gives an event back, which others may still wait for.
    pub fn give(&mut self, event: Arc<Event>) {
        self.spare.push_back(event);
    }
}

/// Times of a device since a first event, right to a microsecond however long ago that is: each is taken from an event
/// at most some seconds back, since the driver's own times lose a digit whenever they grow by one.
#[derive(Debug)]
pub struct Clock {
    anchor: Arc<Event>,
    at: Duration,
}

impl Clock {
    /// After so long the clock counts from a later event. In float32 times up to here are right to 0.06 us.
    const ANCHORED: Duration = Duration::from_secs(1);

    /// A clock that began at `origin`.
    #[must_use]
    pub const fn new(origin: Arc<Event>) -> Self {
        Self { anchor: origin, at: Duration::ZERO }
    }

    /// When `event` happened. It happened after those asked for before, or at most a second earlier.
    ///
    /// # Errors
    /// What the driver says.
    pub fn at(&mut self, event: &Arc<Event>) -> Result<Duration, DeviceError> {
        let since = self.anchor.until(event)?;
        let at = self.at + since;
        if since >= Self::ANCHORED {
            (self.anchor, self.at) = (event.clone(), at);
        }
        Ok(at)
    }
}
