//! Reads from files into slots, many at a time.

mod blocks;
mod files;
#[cfg(target_os = "linux")]
mod mmap;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(target_os = "linux")]
mod uring;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;

use self::blocks::{Device, Engine};
use self::files::{Files, Refused};
#[cfg(not(target_os = "linux"))]
use self::portable::{mmap, uring};
use self::threads::Threads;
use self::uring::Uring;
use crate::{ALIGNMENT, Arena, Error, Filling, Free, Ready, Slot};

/// How files are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoMode {
    /// Directly where the file system can, else through the page cache.
    #[default]
    Auto,
    /// Past the page cache; an error where the file system cannot.
    Direct,
    /// Through the page cache, out of which each tile is dropped when it was read.
    Buffered,
    /// Through a mapping, out of which each tile is dropped when it was copied.
    Mmap,
}

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// io_uring and direct I/O.
    Uring,
    /// Threads and direct I/O.
    DirectThreads,
    /// Threads and the page cache.
    BufferedThreads,
    /// Threads that copy from a mapping.
    Mmap,
}

impl Method {
    /// A few words for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring, direct",
            Self::DirectThreads => "threads, direct",
            Self::BufferedThreads => "threads, buffered",
            Self::Mmap => "mmap",
        }
    }
}

/// The measures of a [`Reader`]. The default is the fastest measured; see the bench `read`.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// How many operations the device has at one time. At least 1.
    pub depth: usize,
    /// The size of an operation in bytes, rounded up to pages.
    pub block: usize,
    /// How many threads read where io_uring does not. At least 1.
    pub threads: usize,
    /// Arenas that slots come from. io_uring pins them, so that it need not at every read; they live as long
    /// as the reader then. Other slots work as well.
    pub arenas: Vec<Arena>,
    /// Whether io_uring may be used.
    pub io_uring: bool,
    /// Whether what is read through the page cache stays there. Weights that do not fit gain nothing by it, and
    /// others lose their pages; whoever measures the page cache wants it.
    pub keep_cached: bool,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            depth: 32,
            block: 512 << 10,
            threads: 8,
            arenas: Vec::new(),
            io_uring: true,
            keep_cached: false,
        }
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The index of the file in the list that the reader was opened with.
    pub file: usize,
    /// Where it starts: anywhere.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

/// A read that has ended.
#[derive(Debug)]
pub struct Completion {
    /// The tile in its slot, or why not, with the slot.
    pub result: Result<Slot<Ready>, (Error, Slot<Free>)>,
    /// The tag of the slot.
    pub tag: u64,
    /// What was moved for it, rounded out to pages; more than that if short reads were read again.
    pub bytes_read: Bytes,
    /// When it was asked for.
    pub submitted: Instant,
    /// When its first block was begun: later than `submitted` where it waited for a thread.
    pub begun: Instant,
    /// When its last byte had arrived.
    pub completed: Instant,
}

/// Reads ranges of files into slots, as many at a time as the device likes.
///
/// A read is cut into blocks, and blocks are started up to the queue's depth, those of the oldest read first.
/// Ranges may start and end anywhere. They are rounded out to pages, so a slot must be bigger than the range:
/// [`Reader::capacity_for`]. The queue is refilled within [`Reader::submit`] and [`Reader::wait`]: a thread
/// should stay in `wait` for as long as it has nothing to submit.
///
/// ```
/// use narrows_staging::{Arena, ArenaOptions, Budget, Bytes, IoMode, Read, Reader, ReaderOptions, Slot};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.bin");
/// # std::fs::write(&path, vec![5; 3_000_000])?;
/// let budget = Budget::new(Bytes::mib(64));
/// let capacity = Reader::capacity_for(1_000_000);
/// let arena = Arena::new(&budget, "staging", Bytes(2 * capacity as u64), ArenaOptions::default())?;
/// let options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
/// let mut reader = Reader::open(&[path], IoMode::Auto, options)?;
///
/// for tag in 0..2 {
///     let slot = Slot::new(arena.carve(capacity)?).fill(tag);
///     let tile = Read { file: 0, offset: 1_000_001 * tag, len: 1_000_000 };
///     reader.submit(tile, slot).map_err(|(error, _slot)| error)?;
/// }
/// while let Some(completion) = reader.wait(None) {
///     let tile = completion.result.map_err(|(error, _slot)| error)?.take();
///     assert_eq!(tile.bytes(), [5; 1_000_000]);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Dropping a reader waits for what has been started, since the kernel writes to the slots until then, and
/// drops those slots. Files may be renamed or deleted meanwhile; cut short, they give [`Error::ShortFile`].
pub struct Reader {
    engine: Engine,
    method: Method,
    notes: Vec<String>,
}

impl Reader {
    /// Opens files, and finds out how to read them.
    ///
    /// # Errors
    /// [`Error::Open`] if a file cannot be opened, [`Error::NoDirect`] if direct I/O was demanded and the file
    /// system has none.
    pub fn open(paths: &[PathBuf], mode: IoMode, options: ReaderOptions) -> Result<Self, Error> {
        let block = options.block.clamp(1, 1 << 30).next_multiple_of(ALIGNMENT);
        let depth = options.depth.clamp(1, 1 << 12);
        let mut notes = Vec::new();
        let (device, method) = match mode {
            IoMode::Auto | IoMode::Direct => match Files::open_direct(paths) {
                Ok(files) => direct(files, depth, &options, &mut notes)?,
                Err(Refused::Open(error)) => return Err(error),
                Err(Refused::Direct(path, source)) if mode == IoMode::Direct => {
                    return Err(Error::NoDirect { path, source });
                }
                Err(Refused::Direct(path, error)) => {
                    notes.push(format!("{}: no direct I/O: {error}; using the page cache", path.display()));
                    buffered(paths, &options)?
                }
            },
            IoMode::Buffered => buffered(paths, &options)?,
            IoMode::Mmap => mapped(paths, &options, &mut notes)?,
        };
        Ok(Self { engine: Engine::new(device, paths.to_vec(), depth, block), method, notes })
    }

    /// How the files are read.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Why not in a better way: lines for the user, none if all is as asked.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How big a slot must be for a range of `len` bytes, wherever it starts.
    #[must_use]
    pub const fn capacity_for(len: usize) -> usize {
        // The worst start is the last byte of a page.
        if len == 0 { 0 } else { len.saturating_add(2 * (ALIGNMENT - 1)) / ALIGNMENT * ALIGNMENT }
    }

    /// Starts to read, or queues that. Does not block.
    ///
    /// # Errors
    /// [`Error::SlotTooSmall`], or [`Error::ShortFile`] for a range beyond any file, with the slot. All else
    /// is reported by [`Reader::wait`].
    ///
    /// # Panics
    /// If there is no such file.
    pub fn submit(&mut self, read: Read, slot: Slot<Filling>) -> Result<(), (Error, Slot<Free>)> {
        self.engine.submit(read, slot)
    }

    /// Waits for the next read that ends, in whatever order. `None`: nothing is in flight, the time is over,
    /// or a [`Waker`] was used.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Option<Completion> {
        self.engine.wait(timeout)
    }

    /// How many reads were submitted and not handed out yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// What another thread can end a [`Reader::wait`] with: when it has freed a slot, or wants to stop.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(self.engine.waker())
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, notes, engine } = self;
        f.debug_struct("Reader")
            .field("method", method)
            .field("notes", notes)
            .field("in_flight", &engine.in_flight())
            .finish()
    }
}

/// Ends a [`Reader::wait`] from another thread.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// Makes the wait under way, or the next one that would block, return `None`.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

type Chosen = (Box<dyn Device>, Method);

fn direct(
    files: Files,
    depth: usize,
    options: &ReaderOptions,
    notes: &mut Vec<String>,
) -> Result<Chosen, Error> {
    let files = Arc::new(files);
    if options.io_uring {
        match Uring::set_up(&files, depth, &options.arenas, notes) {
            Ok(uring) => return Ok((Box::new(uring), Method::Uring)),
            Err(error) => notes.push(format!("io_uring: {error}; using threads")),
        }
    } else {
        notes.push("io_uring: not allowed; using threads".into());
    }
    Ok((threads(files, options, false)?, Method::DirectThreads))
}

fn buffered(paths: &[PathBuf], options: &ReaderOptions) -> Result<Chosen, Error> {
    Ok((threads(Arc::new(Files::open(paths)?), options, true)?, Method::BufferedThreads))
}

fn threads(files: Arc<Files>, options: &ReaderOptions, cached: bool) -> Result<Box<dyn Device>, Error> {
    let reads = files.clone();
    let read_at = Arc::new(move |file, offset, buffer: &mut [u8]| reads.read_at(file, offset, buffer));
    let cached = cached.then_some((files, options.keep_cached));
    let threads = Threads::new(options.threads.max(1), read_at, cached);
    Ok(Box::new(threads.map_err(Error::Threads)?))
}

fn mapped(paths: &[PathBuf], options: &ReaderOptions, notes: &mut Vec<String>) -> Result<Chosen, Error> {
    let files = Arc::new(Files::open(paths)?);
    match mmap::read_at(&files) {
        Ok(read_at) => {
            let cached = Some((files, options.keep_cached));
            let threads = Threads::new(options.threads.max(1), read_at, cached);
            Ok((Box::new(threads.map_err(Error::Threads)?), Method::Mmap))
        }
        Err(error) => {
            notes.push(format!("mmap: {error}; using the page cache"));
            Ok((threads(files, options, true)?, Method::BufferedThreads))
        }
    }
}
