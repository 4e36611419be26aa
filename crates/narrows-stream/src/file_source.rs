//! Tiles that are ranges of files.

use std::time::Duration;

use narrows_staging::{Completion, Filling, Free, Read, Reader, Slot};

use crate::{Access, Bytes, Completed, SourceError, Tile, TileId, TileSource, Waker};

/// Reads tiles out of files, with direct I/O where there is any.
#[derive(Debug)]
pub struct FileSource {
    reader: Reader,
    ranges: Vec<Read>,
}

impl FileSource {
    /// A source whose tile *n* is the *n*-th range. Ranges name the files that the reader was opened with.
    #[must_use]
    pub const fn new(reader: Reader, ranges: Vec<Read>) -> Self {
        Self { reader, ranges }
    }

    /// What a plan is to know of a range: needs no open file.
    #[must_use]
    pub fn tile(range: &Read, access: Access) -> Tile {
        Tile { len: Bytes(range.len as u64), capacity: Bytes(Reader::capacity_for(range.len) as u64), access }
    }
}

impl TileSource for FileSource {
    fn capacity(&self, tile: TileId) -> usize {
        self.ranges.get(tile.index()).map_or(0, |range| Reader::capacity_for(range.len))
    }

    fn submit(&mut self, tile: TileId, slot: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
        let Some(&range) = self.ranges.get(tile.index()) else {
            return Err(("no range of a file was given for this tile".into(), slot.abandon()));
        };
        self.reader.submit(range, slot).map_err(|(error, slot)| (error.into(), slot))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Option<Completed> {
        let Completion { result, tag, bytes_read, submitted, completed, .. } = self.reader.wait(timeout)?;
        let result = result.map_err(|(error, slot)| (error.into(), slot));
        Some(Completed { result, tag, moved: bytes_read, submitted, completed })
    }

    fn in_flight(&self) -> usize {
        self.reader.in_flight()
    }

    fn waker(&self) -> Option<Waker> {
        let waker = self.reader.waker();
        Some(Box::new(move || waker.wake()))
    }
}
