use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::result;

use super::error::Doing as _;
use super::host::Pinned;
use super::{Clock, Device, DeviceError, DeviceSlice, Event, Events, Priority, Stream};
use crate::{Arena, Error, Filling, Free, InUse, Memory, Ready, Slot};

/// A range of device memory that tiles are copied to by one stream and used by another.
pub struct DeviceRegion(Box<Region>);

struct Region {
    slice: DeviceSlice,
    user: Stream,
    /// The last copy, until it has been waited for; the copier's.
    filled: Mutex<Option<Arc<Event>>>,
    /// The end of the last use, until a copy has waited for it.
    used: Mutex<Option<Arc<Event>>>,
}

impl DeviceRegion {
    /// Makes a slot's memory of `slice`, which work on the stream `user` will use.
    #[must_use]
    pub fn new(slice: DeviceSlice, user: &Stream) -> Self {
        let (filled, used) = (Mutex::default(), Mutex::default());
        Self(Box::new(Region { slice, user: user.clone(), filled, used }))
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
        let mut filled = held(&self.0.filled);
        if let Some(event) = filled.as_ref() {
            self.0.user.wait(event)?;
        }
        // What is queued on that stream from here on comes after the copy.
        *filled = None;
        Ok(())
    }

    fn mark(&self, spare: &mut Events) -> Result<Option<Arc<Event>>, Error> {
        let event = spare.take(|| Event::timed(self.0.user.device()))?;
        event.record(&self.0.user)?;
        Ok(Some(event))
    }

    fn release(&self, spare: &mut Events) -> Result<Option<Arc<Event>>, Error> {
        // Given up first, so that it is free to be taken.
        *held(&self.0.used) = None;
        let event = self.mark(spare)?;
        held(&self.0.used).clone_from(&event);
        Ok(event)
    }
}

fn held(event: &Mutex<Option<Arc<Event>>>) -> MutexGuard<'_, Option<Arc<Event>>> {
    event.lock().unwrap_or_else(PoisonError::into_inner)
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
    clock: Clock,
    /// When the last copy that was waited for was done.
    last: Duration,
    flying: VecDeque<Flying>,
    /// What threads wait for: the ends of copies.
    ends: Events,
    starts: Events,
    // After the copies in flight, which `drop` waits for.
    pinned: Vec<Pinned>,
}

struct Flying {
    source: Source,
    tag: u64,
    /// None where the copy begins as the one before it ends.
    start: Option<Arc<Event>>,
    end: Arc<Event>,
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
        Ok(Self {
            stream,
            clock: Clock::new(made.clone()),
            made,
            last: Duration::ZERO,
            flying: VecDeque::new(),
            ends: Events::default(),
            starts: Events::default(),
            pinned: Vec::new(),
        })
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
        let device = self.stream.device().clone();
        // Between two copies that keep the link busy there is one event and nothing else: each wait and each record
        // more costs the link microseconds. So a use that has ended is not waited for, and a copy behind another begins
        // when that one ends.
        let used = held(&to.0.used).clone();
        let waits = match &used {
            Some(used) if !used.happened()? => {
                self.stream.wait(used)?;
                true
            }
            _ => false,
        };
        let behind = match self.flying.back() {
            Some(last) if !waits => !last.end.happened()?,
            _ => false,
        };
        let start = match behind {
            true => None,
            false => {
                let start = self.starts.take(|| Event::timed(&device))?;
                start.record(&self.stream)?;
                Some(start)
            }
        };
        let end = self.ends.take(|| Event::waited_for(&device))?;
        device.bind()?;
        // SAFETY: `target` is as long as `bytes`. The host's slot is kept in `flying`, where nobody writes to it,
        // until the copy is done; and the copier waits for that before it goes.
        let queued =
            unsafe { result::memcpy_htod_async(target.address(), bytes, self.stream.raw().cu_stream()) };
        let recorded = queued.doing("copying to the device").and_then(|()| end.record(&self.stream));
        let flying = Flying { source, tag, start, end: end.clone() };
        if let Err(error) = recorded {
            // The copy may be under way, and no event says when it is done: neither slot may be used before.
            if self.stream.synchronize().is_err() {
                mem::forget(flying);
            }
            return Err(error);
        }
        *held(&to.0.used) = None;
        *held(&to.0.filled) = Some(end);
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
        let Some(Flying { source, tag, start, end }) = self.flying.pop_front() else { return Ok(None) };
        if let Err(error) = end.synchronize() {
            mem::forget(source);
            return Err(error);
        }
        let began = match &start {
            Some(start) => self.clock.at(start)?,
            None => self.last,
        };
        self.last = self.clock.at(&end)?.max(began);
        start.into_iter().for_each(|start| self.starts.give(start));
        self.ends.give(end);
        Ok(Some(Copied { source, tag, time: began..self.last }))
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
