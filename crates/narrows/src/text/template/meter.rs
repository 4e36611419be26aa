//! What a template may use: a count of work, in which everything that takes time or memory is paid before it is done.

use std::cell::Cell;
use std::fmt;

/// Why a template does not render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error(pub(super) String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) type Result<T> = std::result::Result<T, Error>;

/// An error with this text.
pub(super) fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(Error(text.into()))
}

/// Units of work of a template in any case; a second or so.
const WORK: u64 = 16 << 20;
/// More of them for each byte that it is given.
const WORK_PER_BYTE: u64 = 8;
/// Units at most, however much it is given.
const MAX_WORK: u64 = 64 << 20;
/// Bytes of text that a unit pays for, to look at or to hold: 16 Mi units are 256 MiB.
const BYTES_PER_UNIT: u64 = 16;
/// How deep values may be nested.
pub(super) const MAX_DEPTH: u32 = 200;
/// How deep macros, loops and expressions may be nested while they are evaluated.
const MAX_CALLS: u32 = 8_000;

/// Counts the work of one template.
#[derive(Debug)]
pub(super) struct Meter {
    left: Cell<u64>,
    calls: Cell<u32>,
}

impl Meter {
    /// For a template that is given `bytes` of text.
    pub(super) fn new(bytes: usize) -> Self {
        let work = WORK.saturating_add((bytes as u64).saturating_mul(WORK_PER_BYTE)).min(MAX_WORK);
        Self { left: Cell::new(work), calls: Cell::new(0) }
    }

    /// Pays for `units`.
    pub(super) fn work(&self, units: usize) -> Result<()> {
        match self.left.get().checked_sub(units as u64) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                fail("it takes too long or too much memory")
            }
        }
    }

    /// Pays for text of so many bytes.
    pub(super) fn bytes(&self, bytes: usize) -> Result<()> {
        self.work(1 + bytes / BYTES_PER_UNIT as usize)
    }

    /// Pays for a list of `n` values.
    pub(super) fn values(&self, n: usize) -> Result<()> {
        self.work(n.saturating_mul(3).saturating_add(4))
    }

    /// One level deeper.
    pub(super) fn enter(&self) -> Result<()> {
        self.work(2)?;
        if self.calls.get() >= MAX_CALLS {
            return fail("it is nested too deeply");
        }
        self.calls.set(self.calls.get() + 1);
        Ok(())
    }

    /// Back from a level.
    pub(super) fn leave(&self) {
        self.calls.set(self.calls.get().saturating_sub(1));
    }
}
