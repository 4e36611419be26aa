use std::io;

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
}
