//! Everything that can go wrong between a plan and the last tile.

use crate::{Bytes, Need};

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
}

/// Rounded up, so that a budget typed as it is shown works.
fn whole_mib(bytes: Bytes) -> String {
    format!("{} MiB", bytes.get().div_ceil(Bytes::mib(1).get()))
}

fn list(needs: &[Need]) -> String {
    let shown: Vec<_> = needs.iter().map(|need| format!("{} {}", need.what, need.bytes)).collect();
    shown.join(", ")
}
