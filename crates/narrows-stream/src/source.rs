//! Where tiles come from.

use std::time::{Duration, Instant};

use narrows_staging::{Filling, Free, Ready, Region, Slot};

use crate::{Bytes, TileId};

/// Why a source could not deliver a tile.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Something that fills slots with tiles, several at a time and in any order.
///
/// One thread owns it. For files there is [`FileSource`](crate::FileSource); a source of another kind writes to
/// the slot with [`Slot::fill_with`].
pub trait TileSource<M = Region>: Send {
    /// The bytes of memory that a read of this tile needs: its payload and what reading rounds it out to.
    fn capacity(&self, tile: TileId) -> usize;

    /// Starts to read `tile` into `slot`, without waiting for it.
    ///
    /// # Errors
    /// What kept the read from starting, with the slot. It ends the stream.
    fn submit(&mut self, tile: TileId, slot: Slot<Filling, M>) -> Result<(), (SourceError, Slot<Free, M>)>;

    /// Waits until a read is complete, for at most `timeout`. None when the time is over, nothing is in flight, or
    /// the [waker](TileSource::waker) was used.
    fn wait(&mut self, timeout: Option<Duration>) -> Option<Completed<M>>;

    /// How many reads have been submitted and not yet been returned by [`TileSource::wait`].
    fn in_flight(&self) -> usize;

    /// Whether the source puts its work into the trace itself, since it knows better than who asks it when that was.
    fn traces_itself(&self) -> bool {
        false
    }

    /// Demanded tiles that will be submitted, in that order, unless this is called again. For a source that gets tiles
    /// from elsewhere, and can ask for them early.
    ///
    /// # Errors
    /// What makes it impossible to get them. It ends the stream.
    fn expect(&mut self, tiles: &[TileId]) -> Result<(), SourceError> {
        let _ = tiles;
        Ok(())
    }

    /// Tiles that may be demanded soon: a source that gets tiles from elsewhere can have them brought nearer.
    fn announce(&mut self, tiles: &[TileId]) {
        let _ = tiles;
    }

    /// What another thread can end a [`TileSource::wait`] with, or make the next one return at once. A source
    /// without it is waited for a millisecond at a time, as a slot may become free meanwhile.
    fn waker(&self) -> Option<Waker> {
        None
    }
}

/// Ends a [`TileSource::wait`] from another thread.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A read that ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completed<M = Region> {
    /// The filled slot; or why not, with the slot. An error ends the stream.
    pub result: Result<Slot<Ready, M>, (SourceError, Slot<Free, M>)>,
    /// The tag of the slot that was submitted.
    pub tag: u64,
    /// What was moved for it: the payload, rounded out.
    pub moved: Bytes,
    /// When the read was submitted.
    pub submitted: Instant,
    /// When it was complete.
    pub completed: Instant,
}

impl<M> Completed<M> {
    /// A read of the slot that was submitted with the tag `tag`, which took from `submitted` until now and moved
    /// `moved` bytes.
    #[must_use]
    pub fn now(
        result: Result<Slot<Ready, M>, (SourceError, Slot<Free, M>)>,
        tag: u64,
        moved: Bytes,
        submitted: Instant,
    ) -> Self {
        Self { result, tag, moved, submitted, completed: Instant::now() }
    }
}
