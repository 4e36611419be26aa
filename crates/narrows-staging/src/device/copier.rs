use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::result;

use super::error::Doing as _;
use super::host::Pinned;
use super::{Device, DeviceError, DeviceSlice, Event, Priority, Stream};
use crate::{Arena, Error, Filling, Free, InUse, Memory, Ready, Slot};

/// A range of device memory that tiles are copied to by one stream and used by another.
pub struct DeviceRegion(Box<Region>);

struct Region {
    slice: DeviceSlice,
    user: Stream,
    filled: Event,
    used: Event,
}

impl DeviceRegion {
    /// Makes a slot's memory of `slice`, which work on the stream `user` will use.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(slice: DeviceSlice, user: &Stream) -> Result<Self, DeviceError> {
        let device = user.device();
        let (filled, used) = (Event::new(device)?, Event::new(device)?);
        Ok(Self(Box::new(Region { slice, user: user.clone(), filled, used })))
    }

    /// The memory.
    #[must_use]
    pub fn slice(&self) -> &DeviceSlice {
        &self.0.slice
    }
}

impl Memory for DeviceRegion {
    fn capacity(&self) -> usize {
        self.0.slice.len()
    }

    fn acquire(&self) -> Result<(), Error> {
        Ok(self.0.user.wait(&self.0.filled)?)
    }

    fn release(&self) -> Result<(), Error> {
        Ok(self.0.used.record(&self.0.user)?)
    }

    fn mark(&self, recycled: Option<Event>) -> Result<Option<Event>, Error> {
        let event = match recycled {
            Some(event) => event,
            None => Event::timed(self.0.user.device())?,
        };
        event.record(&self.0.user)?;
        Ok(Some(event))
    }
}

impl fmt::Debug for DeviceRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceRegion({:?})", self.0.slice)
    }
}

/// A tile in host memory that is to be copied.
#[derive(Debug)]
pub enum Source {
    /// In a slot that is free again after the copy.
    Passing(Slot<InUse>),
    /// In one that keeps the tile.
    Staying(Arc<Slot<InUse>>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Passing(slot) => slot.bytes(),
            Self::Staying(slot) => slot.bytes(),
        }
    }
}

/// A copy that is done.
#[derive(Debug)]
pub struct Copied {
    /// Where it came from.
    pub source: Source,
    /// The tag of the slot that it went to.
    pub tag: u64,
    /// When the device began it and when it was done, by the device's clock: from the making of the copier.
    pub time: Range<Duration>,
}

/// Copies tiles from slots of the host to slots of a device, on a stream of its own and in order.
///
/// A copy is only queued: the tile is there when what waits for it ([`Memory::acquire`]) runs. The copier keeps
/// the host's slot until the device has read it.
pub struct Copier {
    stream: Stream,
    made: Arc<Event>,
    flying: VecDeque<Flying>,
    clocks: Vec<Clock>,
    // After the copies in flight, which `drop` waits for.
    pinned: Vec<Pinned>,
}

struct Flying {
    source: Source,
    tag: u64,
    clock: Clock,
}

struct Clock {
    start: Event,
    end: Event,
}

impl Copier {
    /// Makes the stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        let stream = Stream::new(device, Priority::High)?;
        let made = Event::timed(device)?;
        made.record(&stream)?;
        let made = Arc::new(made);
        Ok(Self { stream, made, flying: VecDeque::new(), clocks: Vec::new(), pinned: Vec::new() })
    }

    /// Pins an arena, so that the device reads it by itself and at the speed of the link. Without, copies from
    /// it work too: the driver stages them, at less than half the speed. Gives the time it took.
    ///
    /// # Errors
    /// What the driver says: often that the system's limit on locked memory is too low.
    pub fn pin(&mut self, arena: &Arena) -> Result<Duration, DeviceError> {
        let start = Instant::now();
        if !arena.is_empty() {
            self.pinned.push(Pinned::new(self.stream.device(), arena)?);
        }
        Ok(start.elapsed())
    }

    /// Queues a copy behind the last use of the slot that it goes to.
    ///
    /// # Errors
    /// The tile is bigger than the slot, or what the driver says; with the slot.
    pub fn copy(
        &mut self,
        from: Source,
        to: Slot<Filling, DeviceRegion>,
    ) -> Result<Slot<Ready, DeviceRegion>, (Error, Slot<Free, DeviceRegion>)> {
        let len = from.bytes().len();
        match self.queue(from, to.tag(), to.memory()) {
            Ok(()) => Ok(to.complete(0..len)),
            Err(error) => Err((error.into(), to.abandon())),
        }
    }

    fn queue(&mut self, source: Source, tag: u64, to: &DeviceRegion) -> Result<(), DeviceError> {
        let bytes = source.bytes();
        let target = to.0.slice.slice(0..bytes.len())?;
        let clock = match self.clocks.pop() {
            Some(clock) => clock,
            None => {
                let device = self.stream.device();
                Clock { start: Event::timed(device)?, end: Event::timed(device)? }
            }
        };
        self.stream.wait(&to.0.used)?;
        clock.start.record(&self.stream)?;
        self.stream.device().bind()?;
        // SAFETY: `target` is as long as `bytes`. The host's slot is kept in `flying`, where nobody writes to it,
        // until the copy is done; and the copier waits for that before it goes.
        let queued =
            unsafe { result::memcpy_htod_async(target.address(), bytes, self.stream.raw().cu_stream()) };
        let recorded = queued
            .doing("copying to the device")
            .and_then(|()| clock.end.record(&self.stream))
            .and_then(|()| to.0.filled.record(&self.stream));
        let flying = Flying { source, tag, clock };
        if let Err(error) = recorded {
            // The copy may be under way, and no event says when it is done: neither slot may be used before.
            if self.stream.synchronize().is_err() {
                mem::forget(flying);
            }
            return Err(error);
        }
        self.flying.push_back(flying);
        Ok(())
    }

    /// The making of the copier, from which times of the device are counted.
    #[must_use]
    pub const fn origin(&self) -> &Arc<Event> {
        &self.made
    }

    /// How many copies are queued and not yet given back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Waits for the oldest copy; none if none is queued.
    ///
    /// # Errors
    /// What the driver says, also of kernels that failed meanwhile. The slot is lost then, and its memory is never
    /// freed, as the device may still read it.
    pub fn wait(&mut self) -> Result<Option<Copied>, DeviceError> {
        let Some(Flying { source, tag, clock }) = self.flying.pop_front() else { return Ok(None) };
        if let Err(error) = clock.end.synchronize() {
            mem::forget(source);
            return Err(error);
        }
        let time = self.made.until(&clock.start)?..self.made.until(&clock.end)?;
        self.clocks.push(clock);
        Ok(Some(Copied { source, tag, time }))
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        if self.stream.synchronize().is_err() {
            // What the device may still read is never freed.
            mem::forget(mem::take(&mut self.flying));
        }
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copier({} in flight)", self.flying.len())
    }
}
