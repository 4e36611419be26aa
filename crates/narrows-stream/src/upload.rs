//! Tiles on a device: copied there as a stream of the host delivers them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use narrows_staging::device::{Copied, Copier, DeviceRegion, Source};
use narrows_staging::{Arena, Filling, Free, Slot};

use crate::clock::{Link, Uses, lock};
use crate::shared::Shared;
use crate::trace::{Event, Stage};
use crate::{Bytes, Completed, SourceError, Stream, TileId, TileSource};

/// A source of tiles on a device: the tiles of a stream of the host, copied.
///
/// A tile counts as delivered when its copy is queued; whoever uses it waits on the device, not here.
pub struct Upload {
    host: Stream,
    copier: Copier,
    made: Instant,
    to_pin: Option<Arena>,
    delivered: VecDeque<Completed<DeviceRegion>>,
    /// The tiles of the copies in flight.
    flying: VecDeque<TileId>,
    link: Arc<Mutex<Link>>,
}

impl Upload {
    /// Copies tiles of `host`, which go through `arena`. The arena is pinned when the first tile is asked for, so
    /// that this goes on beside the first reads.
    #[must_use]
    pub fn new(host: Stream, arena: &Arena, copier: Copier) -> Self {
        Self {
            host,
            copier,
            made: Instant::now(),
            to_pin: Some(arena.clone()),
            delivered: VecDeque::new(),
            flying: VecDeque::new(),
            link: Arc::default(),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Shared> {
        &self.host.shared
    }

    /// Nothing used yet, by the clock of the copier.
    pub(crate) fn uses(&self) -> Uses {
        Uses::new(self.copier.origin().clone(), self.made)
    }

    pub(crate) fn link(&self) -> &Arc<Mutex<Link>> {
        &self.link
    }

    /// The tile in host memory. While the disk is at it, slots that were copied go back to the disk.
    fn fetch(&mut self, tile: TileId) -> Result<Source, SourceError> {
        loop {
            if let Some(source) = self.host.try_fetch(tile)? {
                return Ok(source);
            }
            match self.copier.wait()? {
                Some(copied) => self.reclaim(copied),
                None => return Ok(self.host.fetch(tile)?),
            }
        }
    }

    fn reclaim(&mut self, copied: Copied) {
        let Copied { source, tag, time } = copied;
        let Some(tile) = self.flying.pop_front() else { return };
        if let Source::Passing(slot) = source {
            self.host.give_back(tile, slot);
        }
        let bytes = Bytes(self.host.len_of(tile) as u64);
        lock(&self.link).meter.add(bytes, &time);
        let (start, end) = (self.made + time.start, self.made + time.end);
        let event = Event { stage: Stage::Link, tile, pass: 0, read: tag, bytes, start, end };
        self.host.shared.record(event);
    }

    fn pin(&mut self) {
        if let Some(arena) = self.to_pin.take() {
            let pinned = self.copier.pin(&arena).map_err(|error| {
                format!(
                    "{} of host memory are not pinned, so copies to the device take more than twice as long: {error}",
                    Bytes(arena.len() as u64)
                )
            });
            lock(&self.link).pinned = Some(pinned);
        }
    }

    fn queue(
        &mut self,
        tile: TileId,
        slot: Slot<Filling, DeviceRegion>,
    ) -> Result<(), (SourceError, Slot<Free, DeviceRegion>)> {
        let (tag, submitted) = (slot.tag(), Instant::now());
        let source = match self.fetch(tile) {
            Ok(source) => source,
            Err(error) => return Err((error, slot.abandon())),
        };
        let ready = match self.copier.copy(source, slot) {
            Ok(ready) => ready,
            Err((error, slot)) => return Err((error.into(), slot)),
        };
        self.flying.push_back(tile);
        let completed = Instant::now();
        let moved = Bytes(0);
        self.delivered.push_back(Completed { result: Ok(ready), tag, moved, submitted, completed });
        Ok(())
    }
}

impl TileSource<DeviceRegion> for Upload {
    fn capacity(&self, tile: TileId) -> usize {
        self.host.len_of(tile)
    }

    fn submit(
        &mut self,
        tile: TileId,
        slot: Slot<Filling, DeviceRegion>,
    ) -> Result<(), (SourceError, Slot<Free, DeviceRegion>)> {
        self.pin();
        self.queue(tile, slot)
    }

    fn wait(&mut self, _timeout: Option<Duration>) -> Option<Completed<DeviceRegion>> {
        if let Some(completed) = self.delivered.pop_front() {
            return Some(completed);
        }
        // A copy takes less than a millisecond, or the device has failed: what fails here fails the next copy too,
        // where there is a tile to name.
        match self.copier.wait() {
            Ok(Some(copied)) => self.reclaim(copied),
            Ok(None) => {}
            Err(_) => _ = self.flying.pop_front(),
        }
        None
    }

    fn expect(&mut self, tiles: &[TileId]) -> Result<(), SourceError> {
        Ok(self.host.demand_tiles(tiles)?)
    }

    fn announce(&mut self, tiles: &[TileId]) {
        self.host.prefetch_tiles(tiles);
    }

    fn in_flight(&self) -> usize {
        self.delivered.len() + self.copier.in_flight()
    }

    fn traces_itself(&self) -> bool {
        true
    }
}
