use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use narrows_bytes::Bytes;

use crate::mapping::Mapping;
use crate::{ALIGNMENT, Budget, Error, Reservation};

/// Below this a huge page saves nothing worth its rounding.
const WORTH_HUGE_PAGES: usize = 4 << 20;

/// How an [`Arena`] is to be mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Ask for huge pages, if the arena is big enough to gain by them. A kernel without them gives small ones.
    pub huge_pages: bool,
    /// Whether to keep the arena out of reach of swapping.
    pub lock: Lock,
}

/// Whether memory is locked (`mlock`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// No.
    #[default]
    No,
    /// Yes, and where the system refuses, go on with a [`Warning`].
    Try,
    /// Yes, and where the system refuses, fail.
    Demand,
}

/// Something that did not go as asked, and need not stop anybody. Worth a line to the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The memory could be swapped out.
    #[error("{size} for {what} are not locked in memory: {source} (see `ulimit -l`)")]
    NotLocked {
        /// What the memory is for.
        what: &'static str,
        /// How much.
        size: Bytes,
        /// Why not.
        source: io::Error,
    },
}

/// One mapping of memory, reserved against a [`Budget`], to be carved into [`Region`]s.
///
/// An arena is carved once: a region that is dropped does not come back. The memory goes, and its bytes return
/// to the budget, when the arena, its clones and all its regions are gone.
#[derive(Clone)]
pub struct Arena(Arc<Shared>);

struct Shared {
    mapping: Mapping,
    carved: AtomicUsize,
    warnings: Vec<Warning>,
    // Dropped last (fields drop in this order): the bytes are free when the mapping is gone, not before.
    reservation: Reservation,
}

impl Arena {
    /// Maps `size` bytes, rounded up to pages.
    ///
    /// # Errors
    /// [`Error::OverBudget`], [`Error::Map`] if the system refuses, [`Error::Lock`] if locking was demanded and
    /// refused.
    pub fn new(
        budget: &Budget,
        what: &'static str,
        size: Bytes,
        options: ArenaOptions,
    ) -> Result<Self, Error> {
        let refused = |source| Error::Map { what, size, source };
        let len = usize::try_from(size.get()).ok().and_then(|n| n.checked_next_multiple_of(ALIGNMENT));
        let len = len.ok_or_else(|| refused(io::ErrorKind::OutOfMemory.into()))?;
        let reservation = budget.reserve(what, Bytes(len as u64))?;
        // The system maps no empty range; a page that is never touched costs nothing.
        let huge = options.huge_pages && len >= WORTH_HUGE_PAGES;
        let mapping = Mapping::new(len.max(ALIGNMENT), huge).map_err(refused)?;
        let mut warnings = Vec::new();
        if options.lock != Lock::No && len > 0 {
            match mapping.lock() {
                Ok(()) => {}
                Err(source) if options.lock == Lock::Demand => {
                    return Err(Error::Lock { what, size, source });
                }
                Err(source) => warnings.push(Warning::NotLocked { what, size, source }),
            }
        }
        Ok(Self(Arc::new(Shared { mapping, carved: AtomicUsize::new(0), warnings, reservation })))
    }

    /// Takes the next `len` bytes, rounded up to pages and starting on one.
    ///
    /// # Errors
    /// [`Error::ArenaFull`] if fewer are left; then nothing is taken.
    pub fn carve(&self, len: usize) -> Result<Region, Error> {
        let rounded = len.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let take = |at: usize| at.checked_add(rounded).filter(|&end| end <= self.len());
        match self.0.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            // SAFETY: at + rounded <= len of the mapping, and the counter only grows, so nobody else is ever
            // given a byte of this range.
            Ok(at) => Ok(unsafe { Region::new(self, at, rounded) }),
            Err(at) => Err(Error::ArenaFull {
                what: self.what(),
                wanted: Bytes(rounded as u64),
                free: Bytes((self.len() - at) as u64),
            }),
        }
    }

    /// What the arena is for.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.0.reservation.what()
    }

    /// How many bytes it has, carved or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.reservation.bytes().get() as usize
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it starts, for whoever registers it with a kernel or a driver. Aligned to pages; the memory stays
    /// there for as long as a clone of the arena does.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.0.mapping.start().as_ptr()
    }

    /// What did not go as asked.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({:?}, {} bytes)", self.what(), self.len())
    }
}

/// A range of an [`Arena`] that has one owner. Starts on a page, and is zero until written.
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the memory where it is.
    _arena: Arena,
}

// SAFETY: A region is the only way to its bytes, like a `Box<[u8]>`.
unsafe impl Send for Region {}
// SAFETY: As above; a shared reference only reads.
unsafe impl Sync for Region {}

impl Region {
    /// # Safety
    /// The range must lie in the arena and belong to no other region.
    unsafe fn new(arena: &Arena, at: usize, len: usize) -> Self {
        debug_assert!(at + len <= arena.0.mapping.len());
        // SAFETY: The caller vouches that the range lies in the mapping.
        let start = unsafe { arena.0.mapping.start().add(at) };
        Self { start, len, _arena: arena.clone() }
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: The range lies in a mapping that `_arena` keeps, was zeroed by the system, and only this
        // region can write to it, which takes `&mut self`, or gives it to a kernel, which takes `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Its bytes, to write to.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: As in `as_slice`, and `&mut self` keeps everyone else out.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Where it starts, to be written to by somebody who knows no slices: a kernel, a driver.
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes at {:p})", self.len, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(size: u64, options: ArenaOptions) -> (Budget, Arena) {
        let budget = Budget::new(Bytes::mib(32));
        let arena = Arena::new(&budget, "test", Bytes(size), options).unwrap();
        (budget, arena)
    }

    #[test]
    fn regions_are_aligned_disjoint_and_zero() {
        let (_, arena) = arena(8 << 20, ArenaOptions { huge_pages: true, lock: Lock::No });
        assert_eq!(arena.as_ptr().align_offset(2 << 20), 0);
        let mut regions: Vec<_> = [1, 4096, 5000, 0, 1 << 20].map(|n| arena.carve(n).unwrap()).into();
        assert_eq!(regions.iter().map(Region::len).collect::<Vec<_>>(), [4096, 4096, 8192, 0, 1 << 20]);
        for (i, region) in regions.iter_mut().enumerate() {
            assert_eq!(region.as_mut_ptr().align_offset(ALIGNMENT), 0);
            assert!(region.as_slice().iter().all(|&b| b == 0));
            region.as_mut_slice().fill(i as u8 + 1);
        }
        for (i, region) in regions.iter().enumerate() {
            assert!(region.as_slice().iter().all(|&b| b == i as u8 + 1));
        }
    }

    #[test]
    fn a_full_arena_says_what_is_left() {
        let (_, arena) = arena(10_000, ArenaOptions::default());
        assert_eq!(arena.len(), 12288);
        let _first = arena.carve(8192).unwrap();
        for len in [4097, usize::MAX] {
            assert!(matches!(
                arena.carve(len),
                Err(Error::ArenaFull { free: Bytes(4096), what: "test", .. })
            ));
        }
        let _last = arena.carve(4096).unwrap();
    }

    #[test]
    fn the_budget_is_free_when_the_last_region_is_gone() {
        let (budget, arena) = arena(5 << 20, ArenaOptions::default());
        assert_eq!(budget.accounts(), [("test", Bytes::mib(5))]);
        let mut region = arena.carve(1 << 20).unwrap();
        drop(arena);
        region.as_mut_slice().fill(9);
        assert_eq!(budget.used(), Bytes::mib(5));
        std::thread::spawn(move || drop(region)).join().unwrap();
        assert_eq!(budget.used(), Bytes(0));
    }

    #[test]
    fn refusals_take_nothing() {
        let budget = Budget::new(Bytes(u64::MAX));
        let options = ArenaOptions { huge_pages: true, lock: Lock::No };
        for size in [u64::MAX, u64::MAX >> 1] {
            let refused = Arena::new(&budget, "too much", Bytes(size), options);
            assert!(matches!(refused, Err(Error::Map { .. })), "{refused:?}");
        }
        assert_eq!(budget.used(), Bytes(0));
        let small = Budget::new(Bytes(4096));
        assert!(matches!(
            Arena::new(&small, "x", Bytes(4097), options),
            Err(Error::OverBudget { wanted: Bytes(8192), .. })
        ));
        assert!(Arena::new(&small, "x", Bytes(0), options).unwrap().carve(1).is_err());
    }

    #[test]
    fn locking_works_or_says_why_not() {
        let budget = Budget::new(Bytes::mib(4));
        let make =
            |lock| Arena::new(&budget, "locked", Bytes::mib(1), ArenaOptions { huge_pages: false, lock });
        let tried = make(Lock::Try).unwrap();
        match make(Lock::Demand) {
            Ok(_) => assert!(tried.warnings().is_empty()),
            Err(error) => {
                assert!(matches!(error, Error::Lock { .. }));
                assert!(tried.warnings()[0].to_string().starts_with("1.0 MiB for locked are not locked"));
            }
        }
    }
}
