//! Tiles in, blocks out: what all devices have in common.
//!
//! A tile is cut into blocks, and the blocks of all tiles submitted are kept in the device's queue up to its
//! depth, oldest tile first. Blocks come back in any order, short, interrupted or failed; a tile is handed out
//! when its last block is done.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;

use super::{Completion, Read};
use crate::{ALIGNMENT, Error, Filling, Free, Slot};

/// One read, aligned in the file, in memory and in length.
pub(super) struct Op {
    /// Comes back in [`Done`].
    pub(super) token: usize,
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) buffer: *mut u8,
    pub(super) len: usize,
}

// SAFETY: The buffer belongs to whoever holds the operation (see `Device`), on whichever thread.
unsafe impl Send for Op {}

/// An operation has ended.
pub(super) struct Done {
    pub(super) token: usize,
    /// When it was begun, if that was later than it was asked for.
    pub(super) begun: Option<Instant>,
    /// How many bytes were read.
    pub(super) result: io::Result<usize>,
}

/// Something that reads. Tests have one that misbehaves.
///
/// # Safety
/// Between `start` and its `Done`, which comes exactly once, a device owns the buffer of an operation. After
/// that it never touches it again. A result of `n` means that `n <= len` and that the first `n` bytes were
/// written.
pub(super) unsafe trait Device: Send {
    /// Starts an operation, perhaps only with the next `flush` or `wait`.
    fn start(&mut self, op: Op);

    /// Passes on what was started. Does not block.
    fn flush(&mut self) {}

    /// Blocks until an operation is done, somebody wakes it, or the time is over; may return early. Says
    /// whether it was woken.
    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> bool;

    /// Ends a `wait`, or the next one, from another thread.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// A range is going to be read.
    fn tile_begins(&self, _file: usize, _offset: u64, _len: u64) {}

    /// A range is not going to be read again soon.
    fn tile_ends(&self, _file: usize, _offset: u64, _len: u64) {}
}

/// How often an operation may be put off (EAGAIN) before that counts as an error: seconds.
const PATIENCE: u32 = 10_000;

pub(super) struct Engine {
    device: Box<dyn Device>,
    paths: Vec<PathBuf>,
    block_size: usize,
    /// By number; numbers are used again.
    tiles: Vec<Option<Tile>>,
    /// The tiles that still have blocks to start, oldest first.
    queue: VecDeque<usize>,
    /// As many as the queue is deep. Their index is the token.
    blocks: Vec<Block>,
    idle_blocks: Vec<usize>,
    done: Vec<Done>,
    finished: VecDeque<Completion>,
    woken: bool,
    patience: u32,
}

struct Tile {
    slot: Slot<Filling>,
    read: Read,
    submitted: Instant,
    begun: Option<Instant>,
    /// Where in the file the slot starts.
    start: u64,
    /// From there to the last page that is touched.
    len: usize,
    /// Where the next block begins. Positions in a tile count from `start`.
    next: usize,
    outstanding: usize,
    moved: u64,
    failure: Option<Error>,
}

impl Tile {
    /// Where the payload starts.
    fn head(&self) -> usize {
        (self.read.offset - self.start) as usize
    }

    /// Where it ends. Nobody needs the bytes from there to the end of the page; the file may not have them.
    fn payload_end(&self) -> usize {
        self.head() + self.read.len
    }
}

#[derive(Clone, Default)]
struct Block {
    tile: usize,
    /// Where the operation under way begins.
    at: usize,
    /// What is there already. More than `at` after a read that stopped within a page.
    reached: usize,
    end: usize,
    put_off: u32,
}

impl Engine {
    /// `depth` and `block_size` must not be zero, `block_size` a multiple of the alignment.
    pub(super) fn new(device: Box<dyn Device>, paths: Vec<PathBuf>, depth: usize, block_size: usize) -> Self {
        Self {
            device,
            paths,
            block_size,
            tiles: Vec::new(),
            queue: VecDeque::new(),
            blocks: vec![Block::default(); depth],
            idle_blocks: (0..depth).collect(),
            done: Vec::new(),
            finished: VecDeque::new(),
            woken: false,
            patience: PATIENCE,
        }
    }

    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: u32) {
        self.patience = patience;
    }

    pub(super) fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.device.waker()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.tiles.iter().flatten().count() + self.finished.len()
    }

    pub(super) fn submit(&mut self, read: Read, slot: Slot<Filling>) -> Result<(), (Error, Slot<Free>)> {
        assert!(read.file < self.paths.len(), "a reader reads only the files it was opened with");
        // No file is longer than this, and positions within it need no checks below.
        let end = read.offset.checked_add(read.len as u64).filter(|&end| end <= i64::MAX as u64 - 0xffff);
        let Some(end) = end else {
            return Err((self.short(read, 0), slot.abandon()));
        };
        let start = read.offset - read.offset % ALIGNMENT as u64;
        let len = if read.len == 0 { 0 } else { end.next_multiple_of(ALIGNMENT as u64) - start };
        if len > slot.capacity() as u64 {
            let capacity = Bytes(slot.capacity() as u64);
            return Err((Error::SlotTooSmall { wanted: Bytes(len), capacity }, slot.abandon()));
        }
        let tile = Tile {
            slot,
            read,
            submitted: Instant::now(),
            begun: None,
            start,
            len: len as usize,
            next: 0,
            outstanding: 0,
            moved: 0,
            failure: None,
        };
        let number = self.tiles.iter().position(Option::is_none).unwrap_or(self.tiles.len());
        if number == self.tiles.len() {
            self.tiles.push(None);
        }
        self.tiles[number] = Some(tile);
        if len == 0 {
            self.finish(number);
        } else {
            self.device.tile_begins(read.file, start, len);
            self.queue.push_back(number);
            self.start_blocks();
        }
        Ok(())
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(completion) = self.finished.pop_front() {
                return Some(completion);
            }
            if mem::take(&mut self.woken) || self.started() == 0 {
                return None;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            self.turn(left);
            if left == Some(Duration::ZERO) {
                return self.finished.pop_front();
            }
        }
    }

    /// How many operations the device has.
    pub(super) fn started(&self) -> usize {
        self.blocks.len() - self.idle_blocks.len()
    }

    /// Waits for the device once, and keeps its queue full.
    fn turn(&mut self, timeout: Option<Duration>) {
        let mut done = mem::take(&mut self.done);
        self.woken |= self.device.wait(timeout, &mut done);
        for Done { token, begun, result } in done.drain(..) {
            self.begun(token, begun);
            self.block_done(token, result);
        }
        self.done = done;
        self.start_blocks();
    }

    fn start_blocks(&mut self) {
        while let Some(&number) = self.queue.front()
            && let Some(tile) = &mut self.tiles[number]
            && let Some(token) = self.idle_blocks.pop()
        {
            let at = tile.next;
            tile.next = tile.len.min(at + self.block_size);
            tile.outstanding += 1;
            self.blocks[token] = Block { tile: number, at, reached: at, end: tile.next, put_off: 0 };
            if tile.next == tile.len {
                self.queue.pop_front();
            }
            self.start(token);
        }
        self.device.flush();
    }

    fn start(&mut self, token: usize) {
        let Block { tile, at, end, .. } = self.blocks[token];
        let Some(tile) = &mut self.tiles[tile] else { return };
        debug_assert!(at < end && end <= tile.len && tile.len <= tile.slot.capacity());
        // SAFETY: at < len <= capacity.
        let buffer = unsafe { tile.slot.as_mut_ptr().add(at) };
        let Read { file, .. } = tile.read;
        self.device.start(Op { token, file, offset: tile.start + at as u64, buffer, len: end - at });
    }

    /// A tile is begun with the first of its blocks.
    fn begun(&mut self, token: usize, begun: Option<Instant>) {
        if let (Some(tile), Some(begun)) = (&mut self.tiles[self.blocks[token].tile], begun) {
            tile.begun = Some(tile.begun.map_or(begun, |first| first.min(begun)));
        }
    }

    fn block_done(&mut self, token: usize, result: io::Result<usize>) {
        let block = &mut self.blocks[token];
        let number = block.tile;
        let Some(tile) = &mut self.tiles[number] else { return };
        match result {
            Ok(n) => {
                debug_assert!(n <= block.end - block.at);
                tile.moved += n.next_multiple_of(ALIGNMENT) as u64;
                let got = block.at + n;
                if got >= block.end.min(tile.payload_end()) {
                    // All there.
                } else if got > block.reached {
                    // Short: go on from where it stopped, or from the start of that page. This happens even
                    // where the tile has failed already, so that the same file gives the same error.
                    block.reached = got;
                    block.at = got - got % ALIGNMENT;
                    block.put_off = 0;
                    return self.start(token);
                } else {
                    // No step further: this is the end of the file. Blocks behind it see it as well, in any
                    // order; the first of them knows best.
                    let mut found = (got.saturating_sub(tile.head())) as u64;
                    if let Some(Error::ShortFile { found: other, .. }) = tile.failure {
                        found = found.min(other);
                        tile.failure = None;
                    }
                    let read = tile.read;
                    self.fail(number, self.short(read, found));
                }
            }
            Err(error) if passes(&error) && block.put_off < self.patience => {
                block.put_off += 1;
                if block.put_off > 16 {
                    thread::sleep(Duration::from_millis(1));
                }
                return self.start(token);
            }
            Err(source) => {
                let (path, offset) = (self.paths[tile.read.file].clone(), tile.start + block.at as u64);
                self.fail(number, Error::Io { path, offset, source });
            }
        }
        self.idle_blocks.push(token);
        if let Some(tile) = &mut self.tiles[number] {
            tile.outstanding -= 1;
            if tile.outstanding == 0 && tile.next == tile.len {
                self.finish(number);
            }
        }
    }

    /// The first error of a tile stays, and what was not started yet never is.
    fn fail(&mut self, number: usize, error: Error) {
        if let Some(tile) = &mut self.tiles[number] {
            tile.failure.get_or_insert(error);
            tile.next = tile.len;
        }
        self.queue.retain(|&queued| queued != number);
    }

    fn finish(&mut self, number: usize) {
        let Some(tile) = self.tiles[number].take() else { return };
        if tile.len > 0 {
            self.device.tile_ends(tile.read.file, tile.start, tile.len as u64);
        }
        let payload = tile.head()..tile.payload_end();
        let tag = tile.slot.tag();
        self.finished.push_back(Completion {
            tag,
            bytes_read: Bytes(tile.moved),
            submitted: tile.submitted,
            begun: tile.begun.unwrap_or(tile.submitted),
            completed: Instant::now(),
            result: match tile.failure {
                None => Ok(tile.slot.complete(if tile.len == 0 { 0..0 } else { payload })),
                Some(error) => Err((error, tile.slot.abandon())),
            },
        });
    }

    fn short(&self, read: Read, found: u64) -> Error {
        let Read { file, offset, len } = read;
        Error::ShortFile { path: self.paths[file].clone(), offset, wanted: len as u64, found }
    }
}

/// Whether the same operation may well succeed next time.
fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// What is started must end before the buffers may go.
impl Drop for Engine {
    fn drop(&mut self) {
        let mut started = self.started();
        while started > 0 {
            self.done.clear();
            self.device.wait(None, &mut self.done);
            started -= self.done.len();
        }
    }
}
