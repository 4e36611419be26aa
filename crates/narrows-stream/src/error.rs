//! Everything that can go wrong between a plan and the last tile.

use std::io;

use crate::{Bytes, Group, Need, SourceError, TileId};

/// Why a plan or a stream cannot be. Each is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The budget does not hold even the smallest working set.
    #[error("{budget} of memory is too little; the least that works is {} ({})", whole_mib(*minimum), list(needs))]
    BudgetTooSmall {
        /// What was given.
        budget: Bytes,
        /// The smallest budget that works.
        minimum: Bytes,
        /// What makes up the minimum.
        needs: Vec<Need>,
    },

    /// A plan was asked for slots by number, and the number is zero.
    #[error("streaming needs at least one slot")]
    NoSlots,

    /// The budget or the arena does not hold what was planned, or the system does not give it.
    #[error(transparent)]
    Staging(#[from] narrows_staging::Error),

    /// The source needs more memory for a tile than the plan was told.
    #[error("{tile}: planned with {planned}, but its source needs {needed}")]
    Capacity {
        /// The tile, as its description says.
        tile: String,
        /// What the source asks for.
        needed: Bytes,
        /// What the plan set aside.
        planned: Bytes,
    },

    /// The system gave no thread to read in.
    #[error("cannot start a thread to read in: {0}")]
    Thread(io::Error),

    /// A tile could not be read. Ends the stream.
    #[error("{tile}: {source}")]
    Read {
        /// The tile, as its description says.
        tile: String,
        /// Why.
        source: SourceError,
    },

    /// The source delivered a tile of another length than planned. Ends the stream.
    #[error("{tile}: {found} were read, not {expected}")]
    WrongLength {
        /// The tile, as its description says.
        tile: String,
        /// What came.
        found: Bytes,
        /// What was planned.
        expected: Bytes,
    },

    /// The source completed a read that it was not given: a bug in it. Ends the stream.
    #[error("a read that nobody asked for was completed (tag {tag})")]
    UnknownRead {
        /// The tag that the source gave.
        tag: u64,
    },

    /// The source panicked. Ends the stream.
    #[error("the source of tiles panicked")]
    Panicked,

    /// An earlier call was told the error that ended the stream.
    #[error("the stream has ended")]
    Ended,

    /// All tiles of the pass have been walked.
    #[error("the pass is over")]
    PassOver,

    /// A tile was fetched that is not walked, and was not demanded.
    #[error("{tile:?} is no tile of the walk, and was not demanded")]
    NotWalked {
        /// The tile.
        tile: TileId,
    },

    /// A tile that is read only once was asked for again.
    #[error("{tile:?} is read only once, and was")]
    Gone {
        /// The tile.
        tile: TileId,
    },

    /// A group was demanded that has no tiles.
    #[error("{group:?} has no tiles")]
    NoGroup {
        /// The group.
        group: Group,
    },
}

/// Rounded up, so that a budget typed as it is shown works.
fn whole_mib(bytes: Bytes) -> String {
    format!("{} MiB", bytes.get().div_ceil(Bytes::mib(1).get()))
}

fn list(needs: &[Need]) -> String {
    let shown: Vec<_> = needs.iter().map(|need| format!("{} {}", need.what, need.bytes)).collect();
    shown.join(", ")
}
