use std::ops::Range;

use crate::Region;

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
pub struct Slot<S> {
    region: Region,
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

impl<S> Slot<S> {
    /// How many bytes fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.region.len()
    }
}

impl Slot<Free> {
    /// Makes a slot of a region.
    pub fn new(region: Region) -> Self {
        Self { region, state: Free(()) }
    }

    /// Gives the slot to the tile `tag` (a number that means something to the caller only).
    pub fn fill(self, tag: u64) -> Slot<Filling> {
        Slot { region: self.region, state: Filling { tag } }
    }

    /// The region, to use for something else.
    #[must_use]
    pub fn into_region(self) -> Region {
        self.region
    }
}

impl Slot<Filling> {
    /// The tile it is for.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.state.tag
    }

    /// Gives up.
    pub fn abandon(self) -> Slot<Free> {
        Slot::new(self.region)
    }

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
        match write(self.region.as_mut_slice()) {
            Ok(payload) => Ok(self.complete(payload)),
            Err(error) => Err((error, self.abandon())),
        }
    }

    /// The tile has arrived.
    pub(crate) fn complete(self, payload: Range<usize>) -> Slot<Ready> {
        assert!(
            payload.start <= payload.end && payload.end <= self.capacity(),
            "a tile lies within its slot"
        );
        let Filling { tag } = self.state;
        Slot { region: self.region, state: Ready { tag, payload } }
    }

    /// Where the tile is to be written to.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.region.as_mut_ptr()
    }
}

impl Slot<Ready> {
    /// The tile that it holds.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.state.tag
    }

    /// Starts to use it.
    pub fn take(self) -> Slot<InUse> {
        let Ready { tag, payload } = self.state;
        Slot { region: self.region, state: InUse { tag, payload } }
    }
}

impl Slot<InUse> {
    /// The tile that it holds.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.state.tag
    }

    /// The bytes of the tile. They may start anywhere in a page.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.region.as_slice()[self.state.payload.clone()]
    }

    /// Ends the use.
    pub fn release(self) -> Slot<Free> {
        Slot::new(self.region)
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
