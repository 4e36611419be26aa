use std::fmt;
use std::time::Duration;

use cudarc::driver::sys;

use super::error::Doing as _;
use super::stream::same_length;
use super::{Device, DeviceError, DeviceSlice, Event, Priority, Stream};

/// A copy between host and device. Both sides are of one length.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// From the host.
    ToDevice {
        /// What is copied.
        from: &'a [u8],
        /// Where to.
        to: &'a DeviceSlice,
    },
    /// To the host.
    ToHost {
        /// What is copied.
        from: &'a DeviceSlice,
        /// Where to.
        to: &'a mut [u8],
    },
}

/// One copy on one stream, again and again.
#[derive(Debug)]
pub struct Lane<'a> {
    /// Where it is queued.
    pub stream: &'a Stream,
    /// What is copied.
    pub transfer: Transfer<'a>,
    /// How often.
    pub repeat: usize,
    /// Whether its end counts; if not it is there to be in the way of others.
    pub timed: bool,
}

/// Copies that begin together, timed by the device.
///
/// What it costs to queue a copy is no time of the link: all streams wait at a gate until everything is queued,
/// which is as long as the device takes to clear some memory many times over.
pub struct Transfers {
    gate: Stream,
    busy: DeviceSlice,
    opened: Event,
}

/// How often the gate clears its memory: of 64 MiB, a millisecond on the fastest devices.
const CLEARINGS: usize = 32;

impl Transfers {
    /// Makes the gate; `busy` is what it clears, the more the better, and up to 64 MiB.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device, busy: DeviceSlice) -> Result<Self, DeviceError> {
        let (gate, opened) = (Stream::new(device, Priority::Normal)?, Event::timed(device)?);
        Ok(Self { gate, busy, opened })
    }

    /// Does the copies of all lanes, and gives the time from the first of them to the last one that is timed.
    /// Blocks until all are done.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if the sides of a copy differ, or what the driver says.
    pub fn run(&mut self, lanes: &mut [Lane<'_>]) -> Result<Duration, DeviceError> {
        for lane in lanes.iter() {
            let (from, to) = match &lane.transfer {
                Transfer::ToDevice { from, to } => (from.len(), to.len()),
                Transfer::ToHost { from, to } => (from.len(), to.len()),
            };
            same_length("bytes copied between host and device", from, to)?;
        }
        let queued = self.queue(lanes);
        // Whatever was queued, the device may be using the borrowed memory until here. If this fails the device has
        // failed as a whole, and copies nothing any more.
        let mut waited = Ok(());
        for lane in lanes.iter() {
            waited = waited.and(lane.stream.synchronize());
        }
        let ends = queued?;
        waited?;
        let times = ends.iter().map(|end| self.opened.until(end)).collect::<Result<Vec<_>, _>>()?;
        Ok(times.into_iter().max().unwrap_or_default())
    }

    fn queue(&self, lanes: &mut [Lane<'_>]) -> Result<Vec<Event>, DeviceError> {
        for _ in 0..CLEARINGS {
            self.gate.zero(&self.busy)?;
        }
        self.opened.record(&self.gate)?;
        for lane in lanes.iter() {
            lane.stream.wait(&self.opened)?;
        }
        let most = lanes.iter().map(|lane| lane.repeat).max().unwrap_or(0);
        for turn in 0..most {
            for lane in lanes.iter_mut().filter(|lane| turn < lane.repeat) {
                queue_one(lane)?;
            }
        }
        let mut ends = Vec::new();
        for lane in lanes.iter().filter(|lane| lane.timed) {
            let end = Event::timed(lane.stream.device())?;
            end.record(lane.stream)?;
            ends.push(end);
        }
        Ok(ends)
    }
}

fn queue_one(lane: &mut Lane<'_>) -> Result<(), DeviceError> {
    lane.stream.device().bind()?;
    let stream = lane.stream.raw().cu_stream();
    match &mut lane.transfer {
        Transfer::ToDevice { from: [], .. } | Transfer::ToHost { to: [], .. } => Ok(()),
        Transfer::ToDevice { from, to } => {
            // SAFETY: `to` is as long as `from` and lives in an allocation that it keeps; `from` stays borrowed until
            // the stream has been waited for.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.address(), from.as_ptr().cast(), from.len(), stream) }
                .result()
                .doing("copying to the device")
        }
        Transfer::ToHost { from, to } => {
            // SAFETY: As above; `to` is borrowed mutably until the stream has been waited for, and nobody looks at it.
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from.address(), from.len(), stream) }
                .result()
                .doing("copying from the device")
        }
    }
}

impl fmt::Debug for Transfers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transfers")
    }
}
