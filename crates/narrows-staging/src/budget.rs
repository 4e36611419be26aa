use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narrows_bytes::Bytes;

use crate::Error;

/// A hard cap on memory, accounted to the byte.
///
/// Clones share the cap. Nothing here allocates what it accounts for; whoever reserves promises to hold no
/// more than that.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    cap: Bytes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u64,
    peak: u64,
    /// In the order of their first reservation, which is the order in which a reader wants to see them.
    accounts: Vec<(&'static str, u64)>,
}

impl Budget {
    /// A budget of which nothing is used yet.
    #[must_use]
    pub fn new(cap: Bytes) -> Self {
        Self(Arc::new(Shared { cap, state: Mutex::default() }))
    }

    /// Takes `bytes` out of the budget for `what`, until the reservation is dropped.
    ///
    /// # Errors
    /// [`Error::OverBudget`] if fewer are free; then nothing is taken.
    pub fn reserve(&self, what: &'static str, bytes: Bytes) -> Result<Reservation, Error> {
        self.take(what, bytes)?;
        Ok(Reservation { budget: self.clone(), what, bytes })
    }

    /// The cap.
    #[must_use]
    pub fn cap(&self) -> Bytes {
        self.0.cap
    }

    /// What is reserved now.
    #[must_use]
    pub fn used(&self) -> Bytes {
        Bytes(self.state().used)
    }

    /// What is not.
    #[must_use]
    pub fn free(&self) -> Bytes {
        self.cap().saturating_sub(self.used())
    }

    /// The most that was ever reserved at one time.
    #[must_use]
    pub fn peak(&self) -> Bytes {
        Bytes(self.state().peak)
    }

    /// What is reserved now, by what it is for; they add up to [`Budget::used`] at one moment.
    #[must_use]
    pub fn accounts(&self) -> Vec<(&'static str, Bytes)> {
        self.state().accounts.iter().filter(|(_, n)| *n > 0).map(|&(what, n)| (what, Bytes(n))).collect()
    }

    fn take(&self, what: &'static str, Bytes(wanted): Bytes) -> Result<(), Error> {
        let mut state = self.state();
        let cap = self.0.cap;
        let free = cap.get().saturating_sub(state.used);
        if wanted > free {
            return Err(Error::OverBudget { what, wanted: Bytes(wanted), free: Bytes(free), cap });
        }
        state.used += wanted;
        state.peak = state.peak.max(state.used);
        match state.accounts.iter_mut().find(|(name, _)| *name == what) {
            Some((_, bytes)) => *bytes += wanted,
            None => state.accounts.push((what, wanted)),
        }
        Ok(())
    }

    fn give_back(&self, what: &'static str, Bytes(bytes): Bytes) {
        let mut state = self.state();
        state.used -= bytes;
        if let Some((_, account)) = state.accounts.iter_mut().find(|(name, _)| *name == what) {
            *account -= bytes;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way, so a poisoned state is still a true one.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("cap", &self.cap()).field("accounts", &self.accounts()).finish()
    }
}

/// Bytes taken out of a [`Budget`]; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives its bytes back"]
pub struct Reservation {
    budget: Budget,
    what: &'static str,
    bytes: Bytes,
}

impl Reservation {
    /// How many bytes this holds.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// What they are for.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Takes `more` bytes for the same purpose.
    ///
    /// # Errors
    /// [`Error::OverBudget`] if fewer are free; then the reservation stays as it was.
    pub fn grow(&mut self, more: Bytes) -> Result<(), Error> {
        self.budget.take(self.what, more)?;
        self.bytes += more;
        Ok(())
    }

    /// Parts with up to `bytes` of its bytes: to hold them apart, or to drop them.
    pub fn split(&mut self, bytes: Bytes) -> Reservation {
        let bytes = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        Reservation { budget: self.budget.clone(), what: self.what, bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.what, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 3] = ["weights", "kv cache", "staging"];

    proptest! {
        #[test]
        fn never_over_and_exact(cap in 0_u64..1000, steps in prop::collection::vec((0_u8..4, 0_u64..400, 0_usize..8), 0..60)) {
            let budget = Budget::new(Bytes(cap));
            let mut held: Vec<Reservation> = Vec::new();
            let mut peak = 0;
            for (step, bytes, i) in steps {
                let used: u64 = held.iter().map(|r| r.bytes().get()).sum();
                let fits = used + bytes <= cap;
                let count = held.len();
                match step {
                    0 => match budget.reserve(NAMES[i % 3], Bytes(bytes)) {
                        Ok(r) => { prop_assert!(fits); held.push(r); }
                        Err(Error::OverBudget { what, wanted, free, cap: c }) => {
                            prop_assert!(!fits);
                            prop_assert_eq!((what, wanted, free, c), (NAMES[i % 3], Bytes(bytes), Bytes(cap - used), Bytes(cap)));
                        }
                        Err(other) => prop_assert!(false, "{}", other),
                    },
                    1 if count > 0 => drop(held.swap_remove(i % count)),
                    2 if count > 0 => prop_assert_eq!(held[i % count].grow(Bytes(bytes)).is_ok(), fits),
                    3 if count > 0 => { let part = held[i % count].split(Bytes(bytes)); held.push(part); }
                    _ => {}
                }
                let used: u64 = held.iter().map(|r| r.bytes().get()).sum();
                peak = peak.max(used);
                prop_assert!(used <= cap);
                prop_assert_eq!(budget.used(), Bytes(used));
                prop_assert_eq!(budget.free(), Bytes(cap - used));
                prop_assert_eq!(budget.peak(), Bytes(peak));
                for (what, bytes) in budget.accounts() {
                    let sum: Bytes = held.iter().filter(|r| r.what() == what).map(Reservation::bytes).sum();
                    prop_assert_eq!(bytes, sum);
                }
                prop_assert_eq!(budget.accounts().into_iter().map(|(_, b)| b).sum::<Bytes>(), budget.used());
            }
            held.clear();
            prop_assert_eq!(budget.used(), Bytes(0));
            prop_assert_eq!(budget.peak(), Bytes(peak));
        }
    }

    #[test]
    fn threads_share_one_cap() {
        let budget = Budget::new(Bytes(1000));
        std::thread::scope(|scope| {
            for t in 0..4 {
                let budget = budget.clone();
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for i in 0..2000_u64 {
                        match budget.reserve(NAMES[t % 3], Bytes(i % 97)) {
                            Ok(r) => held.push(r),
                            Err(_) => held.clear(),
                        }
                        assert!(budget.used() <= budget.cap());
                    }
                });
            }
        });
        assert_eq!(budget.used(), Bytes(0));
        assert!(budget.accounts().is_empty());
        assert!(budget.peak() <= budget.cap() && budget.peak() > Bytes(900));
    }
}
