//! A source that completes reads in any order, stalls, wakes for nothing and fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use narrows_staging::{Filling, Free, Slot};
use narrows_stream::{Bytes, Completed, Place, Plan, SourceError, TileId, TileSource, Waker};

/// Splitmix64: enough randomness to be nasty with.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

pub(crate) fn content(tile: TileId, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(31).wrapping_add(tile.0 * 7) as u8).collect()
}

/// What the source saw, for the test to look at.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) reads: Vec<TileId>,
    pub(crate) in_flight: Vec<TileId>,
    pub(crate) too_many: bool,
    pub(crate) most_demanded: usize,
    pub(crate) failed: bool,
}

pub(crate) struct Nasty {
    plan: Plan,
    rng: Rng,
    pending: Vec<(TileId, Slot<Filling>, Instant)>,
    /// Fails the read that is the so-manieth to be submitted (false) or completed (true).
    fail: Option<(usize, bool)>,
    submitted: usize,
    completed: usize,
    /// Set by the waker.
    woken: Option<Arc<AtomicBool>>,
    log: Arc<Mutex<Log>>,
}

impl Nasty {
    pub(crate) fn new(plan: &Plan, seed: u64, fail: Option<(usize, bool)>) -> (Self, Arc<Mutex<Log>>) {
        let log = Arc::new(Mutex::new(Log::default()));
        let woken = seed.is_multiple_of(2).then(Arc::default);
        let (rng, log2, plan) = (Rng(seed), log.clone(), plan.clone());
        let pending = Vec::new();
        (Self { plan, rng, pending, fail, submitted: 0, completed: 0, woken, log }, log2)
    }

    fn refuse(&self) -> SourceError {
        self.log.lock().unwrap().failed = true;
        "input/output error".into()
    }
}

impl TileSource for Nasty {
    fn capacity(&self, tile: TileId) -> usize {
        self.plan.tiles[tile.index()].0.capacity.get() as usize
    }

    fn submit(&mut self, tile: TileId, slot: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
        self.submitted += 1;
        if self.fail == Some((self.submitted, false)) {
            return Err((self.refuse(), slot.abandon()));
        }
        let mut log = self.log.lock().unwrap();
        log.reads.push(tile);
        log.in_flight.push(tile);
        let place = |tile: &TileId| self.plan.tiles[tile.index()].1;
        let count = |at| log.in_flight.iter().filter(|tile| place(tile) == at).count();
        let demanded = count(Place::Demanded);
        let seats = self.plan.demand_slots + self.plan.frames * self.plan.frame_slots.len();
        let over = count(Place::Streamed) > self.plan.slots || demanded > seats;
        log.too_many |= over;
        log.most_demanded = log.most_demanded.max(demanded);
        drop(log);
        self.pending.push((tile, slot, Instant::now()));
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Option<Completed> {
        let woken = self.woken.as_ref().is_some_and(|woken| woken.swap(false, Ordering::SeqCst));
        if self.rng.one_in(20) {
            thread::sleep(Duration::from_millis(1));
        }
        if woken || self.pending.is_empty() || timeout.is_some() && self.rng.one_in(3) {
            return None;
        }
        let (tile, slot, submitted) = self.pending.swap_remove(self.rng.below(self.pending.len()));
        let mut log = self.log.lock().unwrap();
        let at = log.in_flight.iter().position(|&other| other == tile).unwrap();
        log.in_flight.swap_remove(at);
        drop(log);
        self.completed += 1;
        let tag = slot.tag();
        let result = if self.fail == Some((self.completed, true)) {
            Err((self.refuse(), slot.abandon()))
        } else {
            let (tile, len) = (tile, self.plan.tiles[tile.index()].0.len.get() as usize);
            let slack = slot.capacity() - len;
            let start = self.rng.below(slack + 1);
            slot.fill_with(|bytes| {
                bytes.fill(0xee);
                bytes[start..start + len].copy_from_slice(&content(tile, len));
                Ok(start..start + len)
            })
        };
        Some(Completed::now(result, tag, Bytes(4096), submitted))
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn waker(&self) -> Option<Waker> {
        let woken = self.woken.clone()?;
        Some(Box::new(move || woken.store(true, Ordering::SeqCst)))
    }
}
