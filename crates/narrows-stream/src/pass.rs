//! A walk over the tiles, from the consumer's side.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use narrows_staging::{InUse, Memory, Region, Slot};

use crate::clock::{Use, lock};
use crate::stream::Stream;
use crate::trace::{Event, Stage};
use crate::{Error, Group, Place, TileId};

/// One walk over all tiles, in order. Dropped early, it leaves out the tiles that it has not come to.
pub struct Pass<'a, M: Memory = Region> {
    stream: &'a mut Stream<M>,
    number: u64,
    end: u64,
}

impl<'a, M: Memory> Pass<'a, M> {
    pub(crate) fn new(stream: &'a mut Stream<M>) -> Self {
        let count = stream.walk.len() as u64;
        // A pass that was leaked may have left the stream in the middle.
        let number = stream.position.div_ceil(count.max(1));
        stream.go_to(number * count);
        Self { stream, number, end: (number + 1) * count }
    }

    /// The tile that [`Pass::next`] will give; none at the end.
    #[must_use]
    pub fn peek(&self) -> Option<TileId> {
        self.here().map(|(tile, _)| tile)
    }

    /// How many tiles are left to walk.
    #[must_use]
    pub fn remaining(&self) -> usize {
        (self.end - self.stream.position) as usize
    }

    /// Waits for the next tile of the walk.
    ///
    /// # Errors
    /// [`Error::PassOver`] at the end; [`Error::Read`] if this or a later tile could not be read.
    #[expect(clippy::should_implement_trait, reason = "what it gives borrows from the pass, one at a time")]
    pub fn next(&mut self) -> Result<Held<'_, M>, Error> {
        let (tile, place) = self.here().ok_or(Error::PassOver)?;
        let slot = self.stream.arrive(tile, place)?;
        Held::new(self.stream, tile, self.number, slot)
    }

    /// Leaves out the next tile: it is not waited for, and not read if there is still time.
    ///
    /// # Errors
    /// [`Error::PassOver`] at the end.
    pub fn skip(&mut self) -> Result<(), Error> {
        self.here().ok_or(Error::PassOver)?;
        self.stream.go_to(self.stream.position + 1);
        Ok(())
    }

    /// Asks for groups of demanded tiles. Those that are not in memory are read ahead of all that is read for the
    /// walk. What was asked for before and not taken is forgotten.
    ///
    /// # Errors
    /// [`Error::NoGroup`] for a group without tiles.
    pub fn demand(&mut self, groups: &[Group]) -> Result<(), Error> {
        self.stream.demand(groups)
    }

    /// Names groups that will probably be demanded soon. Those that are used more than others in memory take their
    /// places, and are read when there is nothing else to read. It is only a hint: most of all, it is of none while
    /// groups of an earlier one are still being read.
    pub fn prefetch(&mut self, groups: &[Group]) {
        self.stream.prefetch(groups);
    }

    /// Whether a group may have to be read when it is demanded.
    #[must_use]
    pub fn may_miss(&self) -> bool {
        self.stream.may_miss()
    }

    /// Waits for the next tile of the groups asked for, in the order asked and in the order of their tiles; none after
    /// the last. The walk may go on in between.
    ///
    /// # Errors
    /// [`Error::Read`] if this or another tile could not be read.
    pub fn next_demanded(&mut self) -> Result<Option<Held<'_, M>>, Error> {
        let Some(arrived) = self.stream.arrive_demanded()? else { return Ok(None) };
        Held::new(self.stream, arrived.tile, self.number, arrived.slot).map(Some)
    }

    fn here(&self) -> Option<(TileId, Place)> {
        let step = self.stream.position.checked_sub(self.number * self.stream.walk.len() as u64)?;
        self.stream.walk.get(step as usize).copied()
    }
}

impl<M: Memory> Drop for Pass<'_, M> {
    fn drop(&mut self) {
        self.stream.end_pass(self.end);
    }
}

/// A tile in memory. Dropping it gives its slot to a tile to come; a resident tile stays.
pub struct Held<'a, M: Memory = Region> {
    stream: &'a Stream<M>,
    tile: TileId,
    pass: u64,
    since: Instant,
    /// None if the tile stays.
    slot: Option<Slot<InUse, M>>,
    /// Where work is done later than it is asked for, and nobody has failed: when this was.
    begun: Option<Arc<narrows_staging::device::Event>>,
}

impl<'a, M: Memory> Held<'a, M> {
    fn new(
        stream: &'a Stream<M>,
        tile: TileId,
        pass: u64,
        slot: Option<Slot<InUse, M>>,
    ) -> Result<Self, Error> {
        let since = Instant::now();
        stream.shared.meters().compute.begin(since);
        let mut held = Self { stream, tile, pass, since, slot, begun: None };
        if let Some(slot) = held.slot() {
            let named = |error: narrows_staging::Error| Error::Read {
                tile: (stream.shared.describe)(tile),
                source: error.into(),
            };
            slot.memory().acquire().map_err(named)?;
            let begun = stream.with_events(|events| slot.memory().mark(events)).map_err(named)?;
            held.begun = begun;
        }
        Ok(held)
    }

    /// Which tile it is.
    #[must_use]
    pub const fn tile(&self) -> TileId {
        self.tile
    }

    /// The memory that the tile is in, and where in it.
    #[must_use]
    pub fn memory(&self) -> Option<(&M, Range<usize>)> {
        self.slot().map(|slot| (slot.memory(), slot.payload()))
    }

    fn slot(&self) -> Option<&Slot<InUse, M>> {
        self.slot.as_ref().or(self.stream.resident[self.tile.index()].as_deref())
    }
}

impl Held<'_> {
    /// Its payload. It may start at any address.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slot().map_or(&[], Slot::<InUse>::bytes)
    }
}

impl<M: Memory> Drop for Held<'_, M> {
    fn drop(&mut self) {
        let Self { stream, tile, pass, since, .. } = *self;
        let end = Instant::now();
        let (len, place) = stream.tiles[tile.index()];
        let read = self.slot().map_or(0, Slot::<InUse, M>::tag);
        let ended = self.slot().map_or(Ok(None), |slot| {
            // What stays for good is never filled again.
            stream.with_events(|events| match place {
                Place::Resident => slot.memory().mark(events),
                _ => slot.memory().release(events),
            })
        });
        // A device that takes no orders any more has failed: what its slots hold is not written over.
        let released = ended.is_ok();
        let marks = self.begun.take().zip(ended.ok().flatten());
        let passes_by = self.slot.is_some();
        if let Some(slot) = self.slot.take().filter(|_| released) {
            let slot = slot.release();
            match place {
                Place::Demanded => stream.reader.free_demand(slot),
                _ => stream.reader.free(slot),
            }
        }
        let mut meters = stream.shared.meters();
        meters.compute.done(len, len, end);
        meters.compute.idle(end);
        if passes_by {
            meters.streamed += len;
        }
        drop(meters);
        if let Some(feed) = &stream.feed {
            if let Some((begun, ended)) = marks {
                lock(&feed.uses).push(Use { tile, pass, read, bytes: len, begun, ended });
            }
            feed.harvest(&stream.shared);
            return;
        }
        stream.shared.record(Event {
            stage: Stage::Compute,
            tile,
            pass,
            read,
            bytes: len,
            start: since,
            end,
        });
    }
}
