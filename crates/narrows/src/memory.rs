//! How much memory there is to give to an engine.

use narrows_shard::Bytes;

pub use narrows_staging::system::{available_memory, memory_limit, peak_resident, resident};

/// What the program `narrows` takes of memory outside every cap, at most: its code and libraries as far as they are
/// used, stacks of threads, what the allocator keeps back, headers of files. `tools/budget-sweep` measures it.
pub const PROGRAM: Bytes = Bytes::mib(16);

/// Share of the available memory that an engine takes unless told otherwise.
const SHARE: f64 = 0.8;

/// The memory that an engine takes unless told otherwise: 80 % of what is available besides [`PROGRAM`]. `None` where the system does not
/// say how much that is.
#[must_use]
pub fn automatic() -> Option<Bytes> {
    share(SHARE)
}

/// A share of the memory that is available besides [`PROGRAM`]: 0.5 is half of it, and 1 leaves nothing but that.
#[must_use]
pub fn share(share: f64) -> Option<Bytes> {
    available_memory().map(|available| Bytes((available.saturating_sub(PROGRAM).get() as f64 * share) as u64))
}
