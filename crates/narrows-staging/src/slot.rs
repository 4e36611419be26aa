use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{Event, Events};
use crate::{Error, Region};

/// What slots are made of: memory of the host, or of a device.
///
/// Work on a device is queued long before it is done. A slot is filled and used in turns all the same, since
/// both sides queue their work behind the other's: what that takes is up to the memory.
pub trait Memory: fmt::Debug + Send + 'static {
    /// How many bytes fit.
    fn capacity(&self) -> usize;

    /// Whoever uses the tile is about to: orders that behind the filling.
    ///
    /// # Errors
    /// Those of a device.
    fn acquire(&self) -> Result<(), Error> {
        Ok(())
    }

    /// A point in the work that uses the tile, where that is done later than it is asked for; `spare` has events
    /// that are free to be recorded again. None where it is done at once.
    ///
    /// # Errors
    /// Those of a device.
    fn mark(&self, spare: &mut Events) -> Result<Option<Arc<Event>>, Error> {
        let _ = spare;
        Ok(None)
    }

    /// All use of the tile has been asked for: orders the next filling behind it. Gives the point at which the use
    /// ends, as [`Memory::mark`] does.
    ///
    /// # Errors
    /// Those of a device. The memory must not be filled again then.
    fn release(&self, spare: &mut Events) -> Result<Option<Arc<Event>>, Error> {
        let _ = spare;
        Ok(None)
    }
}

impl Memory for Region {
    fn capacity(&self) -> usize {
        self.len()
    }
}

/// A staging buffer that holds one tile, in the state `S`.
///
/// ```text
/// Free --fill--> Filling --a read--> Ready --take--> InUse --release--> Free
///                   \--abandon, or the read failed--------------------->/
/// ```
///
/// A transition consumes the slot, so nobody holds a slot in a state that it has left: bytes cannot be looked
/// at while a disk writes them, nor overwritten while somebody computes on them. A resident tile is a slot that
/// is never released.
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost to its arena"]
pub struct Slot<S, M = Region> {
    memory: M,
    state: S,
}

/// Holds nothing.
#[derive(Debug)]
pub struct Free(());

/// Being written to.
#[derive(Debug)]
pub struct Filling {
    tag: u64,
}

/// Holds a tile that nobody has looked at yet.
#[derive(Debug)]
pub struct Ready {
    tag: u64,
    payload: Range<usize>,
}

/// Holds a tile that somebody computes on.
#[derive(Debug)]
pub struct InUse {
    tag: u64,
    payload: Range<usize>,
}

impl<S, M: Memory> Slot<S, M> {
    /// How many bytes fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// The memory.
    #[must_use]
    pub const fn memory(&self) -> &M {
        &self.memory
    }
}

impl<M: Memory> Slot<Free, M> {
    /// Makes a slot of memory.
    pub const fn new(memory: M) -> Self {
        Self { memory, state: Free(()) }
    }

    /// Gives the slot to the tile `tag` (a number that means something to the caller only).
    pub fn fill(self, tag: u64) -> Slot<Filling, M> {
        Slot { memory: self.memory, state: Filling { tag } }
    }
}

impl<M: Memory> Slot<Filling, M> {
    /// The tile it is for.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.state.tag
    }

    /// Gives up.
    pub fn abandon(self) -> Slot<Free, M> {
        Slot::new(self.memory)
    }

    /// The tile has arrived.
    pub(crate) fn complete(self, payload: Range<usize>) -> Slot<Ready, M> {
        assert!(
            payload.start <= payload.end && payload.end <= self.capacity(),
            "a tile lies within its slot"
        );
        let Filling { tag } = self.state;
        Slot { memory: self.memory, state: Ready { tag, payload } }
    }
}

impl Slot<Filling> {
    /// Lets `write` put the tile here and say where it lies: for sources that are no files.
    ///
    /// # Errors
    /// What `write` returns, with the slot.
    ///
    /// # Panics
    /// If what `write` returns is no range within the slot.
    pub fn fill_with<E>(
        mut self,
        write: impl FnOnce(&mut [u8]) -> Result<Range<usize>, E>,
    ) -> Result<Slot<Ready>, (E, Slot<Free>)> {
        match write(self.memory.as_mut_slice()) {
            Ok(payload) => Ok(self.complete(payload)),
            Err(error) => Err((error, self.abandon())),
        }
    }

    /// Where the tile is to be written to.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }
}

impl<M: Memory> Slot<Ready, M> {
    /// The tile that it holds.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.state.tag
    }

    /// Starts to use it.
    pub fn take(self) -> Slot<InUse, M> {
        let Ready { tag, payload } = self.state;
        Slot { memory: self.memory, state: InUse { tag, payload } }
    }
}

impl<M: Memory> Slot<InUse, M> {
    /// The tile that it holds.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.state.tag
    }

    /// Where in the memory the tile lies.
    #[must_use]
    pub fn payload(&self) -> Range<usize> {
        self.state.payload.clone()
    }

    /// Ends the use.
    pub fn release(self) -> Slot<Free, M> {
        Slot::new(self.memory)
    }
}

impl Slot<InUse> {
    /// The bytes of the tile. They may start anywhere in a page.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory.as_slice()[self.payload()]
    }
}

#[cfg(test)]
mod tests {
    use narrows_bytes::Bytes;

    use super::*;
    use crate::{Arena, ArenaOptions, Budget};

    fn slot() -> Slot<Free> {
        let arena =
            Arena::new(&Budget::new(Bytes(8192)), "slot", Bytes(8192), ArenaOptions::default()).unwrap();
        Slot::new(arena.carve(8000).unwrap())
    }

    #[test]
    fn goes_round() {
        let mut slot = slot();
        for tag in 0..3_u8 {
            let filling = slot.fill(tag.into());
            assert_eq!((filling.tag(), filling.capacity()), (tag.into(), 8192));
            let ready = filling.fill_with(|bytes| {
                bytes[5..9].fill(tag);
                Ok::<_, ()>(5..9)
            });
            let used = ready.unwrap().take();
            assert_eq!((used.tag(), used.bytes()), (tag.into(), &[tag; 4][..]));
            slot = used.release();
        }
        let (error, slot) = slot.fill(1).fill_with(|_| Err("no")).unwrap_err();
        assert_eq!((error, slot.capacity()), ("no", 8192));
    }

    #[test]
    #[should_panic(expected = "within its slot")]
    fn a_tile_beyond_the_slot_is_refused() {
        let _ = slot().fill(0).fill_with(|_| Ok::<_, ()>(8000..8193));
    }
}
