use std::io;
use std::path::PathBuf;

use narrows_bytes::Bytes;

/// What can go wrong with memory and reads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The budget has no room for this.
    #[error("{what} needs {wanted}, but only {free} of the budget of {cap} are free")]
    OverBudget {
        /// What the bytes were for.
        what: &'static str,
        /// How many were asked for.
        wanted: Bytes,
        /// How many were left.
        free: Bytes,
        /// The whole budget.
        cap: Bytes,
    },
    /// The arena is carved up.
    #[error("the arena {what:?} has {free} left, not {wanted}")]
    ArenaFull {
        /// What the arena is for.
        what: &'static str,
        /// How many bytes were asked for, rounded up to pages.
        wanted: Bytes,
        /// How many are left.
        free: Bytes,
    },
    /// The system has no memory to give.
    #[error("cannot map {size} for {what}: {source}")]
    Map {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        size: Bytes,
        /// Why not.
        source: io::Error,
    },
    /// The system refuses to lock memory, and that was demanded.
    #[error("cannot lock {size} for {what} in memory: {source} (see `ulimit -l`)")]
    Lock {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        size: Bytes,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Direct I/O was demanded of a file system that has none.
    #[error("{}: no direct I/O on this file system ({source}); the page cache reads it", path.display())]
    NoDirect {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A read, rounded out to blocks, is bigger than the slot it is for.
    #[error("a read of {wanted} does not fit into a slot of {capacity}")]
    SlotTooSmall {
        /// The rounded size.
        wanted: Bytes,
        /// The size of the slot.
        capacity: Bytes,
    },
    /// A file ends inside the range to be read: it was cut short.
    #[error("{}: {wanted} bytes at offset {offset} were to be read, but the file ends after {found} of them", path.display())]
    ShortFile {
        /// Which file.
        path: PathBuf,
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        wanted: u64,
        /// How much of it there is.
        found: u64,
    },
    /// A read failed.
    #[error("{}: cannot read at offset {offset}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Where the operation that failed starts.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A device cannot do it.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The threads that read cannot be started.
    #[error("cannot start the reader threads: {0}")]
    Threads(io::Error),
}
