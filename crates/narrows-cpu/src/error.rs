use narrows_shard::Encoding;
use narrows_shard::blocks::RowError;

use crate::Isa;

/// Why an operation was refused. Nothing has been written when an operation returns one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice does not have the length that the other arguments call for.
    #[error("{what} has length {found}, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// The length it must have, in elements of its slice.
        expected: usize,
        /// The length it has.
        found: usize,
    },
    /// A slice is not a whole number of rows.
    #[error("{what} has length {found}, which is not a whole number of rows of {row}")]
    Ragged {
        /// Which argument.
        what: &'static str,
        /// The length of a row.
        row: usize,
        /// The length of the slice.
        found: usize,
    },
    /// An index or a range ends beyond what it points into.
    #[error("{what} reaches {end}, beyond {limit}")]
    Beyond {
        /// What was indexed.
        what: &'static str,
        /// The first index after what was asked for.
        end: usize,
        /// How much there is.
        limit: usize,
    },
    /// A size that must be at least one is zero.
    #[error("{what} must not be zero")]
    Zero {
        /// Which size.
        what: &'static str,
    },
    /// A size in bytes or elements is more than the address space.
    #[error("the size of {what} overflows")]
    Overflow {
        /// Which size.
        what: &'static str,
    },
    /// The query heads cannot be shared evenly among the key-value heads.
    #[error("{heads} query heads cannot share {kv_heads} key-value heads evenly")]
    Heads {
        /// Query heads.
        heads: usize,
        /// Key-value heads.
        kv_heads: usize,
    },
    /// The rows of one attention call differ in what must be the same for all.
    #[error("the rows of one attention call have KV caches of different {what}")]
    Mixed {
        /// What differs.
        what: &'static str,
    },
    /// Something is in an encoding that only weights can be in.
    #[error("{what} cannot be in {encoding}")]
    Quantised {
        /// What.
        what: &'static str,
        /// The encoding.
        encoding: Encoding,
    },
    /// A row holds what cannot be quantised.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A rotary embedding needs an even head dimension.
    #[error("a head of odd dimension {head_dim} has no two halves to rotate")]
    OddHead {
        /// The head dimension.
        head_dim: usize,
    },
    /// This machine cannot run the instruction set that was asked for.
    #[error("this machine does not support {}", .0.name())]
    Isa(Isa),
    /// The operating system refused to start the threads.
    #[error("cannot start the compute threads")]
    Threads(#[source] std::io::Error),
}

/// `Ok` where `found == expected`.
pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, expected, found }) }
}

/// How many rows of `row` elements make `found` elements.
pub(crate) fn check_rows(what: &'static str, found: usize, row: usize) -> Result<usize, Error> {
    match (found / row.max(1), row) {
        (_, 0) => Err(Error::Zero { what }),
        (rows, _) if rows * row == found => Ok(rows),
        _ => Err(Error::Ragged { what, row, found }),
    }
}

/// The product of sizes that a caller chose.
pub(crate) fn product(what: &'static str, sizes: &[usize]) -> Result<usize, Error> {
    sizes.iter().try_fold(1_usize, |n, &size| n.checked_mul(size)).ok_or(Error::Overflow { what })
}
