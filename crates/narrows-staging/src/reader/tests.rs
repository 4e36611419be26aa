//! The engine on a device that does its worst, and the devices by themselves.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::blocks::{Done, Op};
use super::*;
use crate::{ArenaOptions, Budget, Region};

/// A file in memory, read in adversarial order.
struct Fake {
    file: Vec<u8>,
    depth: usize,
    pending: Vec<Op>,
    seed: u64,
    /// Stop short, interrupt, put off, return early.
    nasty: bool,
    /// A bad byte.
    bad: Option<u64>,
    /// Nothing ends while this is set.
    stalled: Arc<AtomicBool>,
    woken: Arc<AtomicBool>,
}

impl Fake {
    fn new(file: Vec<u8>, depth: usize) -> Self {
        Self {
            file,
            depth,
            pending: Vec::new(),
            seed: 1,
            nasty: false,
            bad: None,
            stalled: Arc::default(),
            woken: Arc::default(),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % below as u64) as usize
    }

    fn read(&mut self, op: &Op) -> io::Result<usize> {
        if self.nasty && self.random(6) == 0 {
            return Err([io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock][self.random(2)].into());
        }
        if self.bad.is_some_and(|bad| (op.offset..op.offset + op.len as u64).contains(&bad)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let rest = self.file.get(op.offset as usize..).unwrap_or_default();
        let mut n = rest.len().min(op.len);
        // As a disk does: whole pages, and perhaps some of the next.
        if self.nasty && n > ALIGNMENT && self.random(2) == 0 {
            n = ALIGNMENT + self.random(self.file.len() - op.offset as usize - ALIGNMENT).min(n - ALIGNMENT);
        }
        let rest = &self.file[self.file.len().min(op.offset as usize)..];
        // SAFETY: The buffer is this device's until `wait` reports the operation.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), op.buffer, n) };
        Ok(n)
    }
}

// SAFETY: Buffers are written to in `read` only, of operations that are pending; then they leave the list.
unsafe impl Device for Fake {
    fn start(&mut self, op: Op) {
        assert!(op.len > 0 && op.len.is_multiple_of(ALIGNMENT) && op.offset.is_multiple_of(ALIGNMENT as u64));
        assert_eq!(op.buffer.align_offset(ALIGNMENT), 0);
        let start = op.buffer.addr();
        for other in &self.pending {
            let disjoint = start + op.len <= other.buffer.addr() || other.buffer.addr() + other.len <= start;
            assert!(disjoint && op.token != other.token);
        }
        self.pending.push(op);
        assert!(self.pending.len() <= self.depth);
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        while self.stalled.load(Ordering::Relaxed) {
            if self.woken.swap(false, Ordering::Relaxed) {
                return true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            std::thread::yield_now();
        }
        let early = self.nasty && self.random(3) == 0;
        for _ in 0..1 + self.random(3) {
            if !self.pending.is_empty() && !early {
                let i = self.random(self.pending.len());
                let op = self.pending.swap_remove(i);
                done.push(Done { token: op.token, begun: None, result: self.read(&op) });
            }
        }
        self.woken.swap(false, Ordering::Relaxed)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let woken = self.woken.clone();
        Arc::new(move || woken.store(true, Ordering::Relaxed))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        assert!(self.pending.is_empty(), "buffers went before their reads ended");
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 13) as u8).collect()
}

fn region(len: usize) -> Region {
    let budget = Budget::new(Bytes(u64::MAX));
    let arena = Arena::new(&budget, "test", Bytes(len as u64), ArenaOptions::default());
    arena.unwrap().carve(len).unwrap()
}

fn engine(fake: Fake, block: usize) -> Engine {
    let depth = fake.depth;
    Engine::new(Box::new(fake), vec!["model.bin".into()], depth, block)
}

fn read(offset: u64, len: usize) -> Read {
    Read { file: 0, offset, len }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_tile_arrives_once_and_whole(
        len in 0_usize..150_000,
        reads in prop::collection::vec((0_u64..160_000, 0_usize..70_000), 1..12),
        block in (1_usize..9).prop_map(|n| n * ALIGNMENT),
        depth in 1_usize..9,
        slots in 1_usize..5,
        seed in 1_u64..,
        nasty: bool,
        bad in prop::option::of(0_u64..150_000),
        drop_early in prop::option::weighted(0.1, 0_usize..12),
    ) {
        let file = bytes(len);
        let mut fake = Fake::new(file.clone(), depth);
        (fake.seed, fake.nasty, fake.bad) = (seed, nasty, bad);
        let mut engine = engine(fake, block);
        let mut free: Vec<_> = (0..slots).map(|_| Slot::new(region(Reader::capacity_for(70_000)))).collect();
        let mut todo: Vec<(usize, (u64, usize))> = reads.iter().copied().enumerate().collect();
        let mut flying = HashMap::new();
        let mut ended = 0;
        loop {
            if drop_early == Some(ended) {
                return Ok(());
            }
            while !todo.is_empty() && let Some(slot) = free.pop() {
                let (tag, (offset, len)) = todo.pop().unwrap();
                prop_assert!(engine.submit(read(offset, len), slot.fill(tag as u64)).is_ok());
                flying.insert(tag as u64, (offset, len));
            }
            prop_assert_eq!(engine.in_flight(), flying.len());
            let timeout = (seed % 2 == 0).then_some(Duration::ZERO);
            let Some(completion) = engine.wait(timeout) else {
                if flying.is_empty() { break }
                prop_assert!(timeout.is_some());
                continue;
            };
            let (offset, len) = flying.remove(&completion.tag).expect("a tile ends once");
            ended += 1;
            prop_assert!(completion.submitted <= completion.begun && completion.begun <= completion.completed);
            let there = file.len().saturating_sub(offset as usize).min(len);
            let pages = offset / 4096 * 4096..(offset + len as u64).next_multiple_of(4096);
            let is_bad = len > 0 && bad.is_some_and(|bad| pages.contains(&bad));
            match completion.result {
                Ok(slot) => {
                    let used = slot.take();
                    prop_assert_eq!(there, if offset as usize > file.len() { 0 } else { len });
                    prop_assert!(!is_bad);
                    prop_assert_eq!(used.bytes(), if len == 0 { &[] } else { &file[offset as usize..][..len] });
                    let rounded = if len == 0 { 0 } else { pages.end - pages.start };
                    let moved = completion.bytes_read.get();
                    prop_assert!(if nasty { moved >= rounded } else { moved == rounded }, "{} {}", moved, rounded);
                    free.push(used.release());
                }
                Err((error, slot)) => {
                    match error {
                        Error::ShortFile { path, offset: o, wanted, found } => {
                            prop_assert_eq!((path, o, wanted), ("model.bin".into(), offset, len as u64));
                            prop_assert!(there < len);
                            // A bad block before the end can hide how long the file is, but not make it longer.
                            prop_assert!(found == there as u64 || is_bad && found >= there as u64);
                        }
                        Error::Io { offset, source, .. } => {
                            prop_assert!(is_bad && source.raw_os_error() == Some(5));
                            let bad = bad.unwrap();
                            prop_assert!(offset <= bad && bad < offset + block as u64);
                        }
                        other => prop_assert!(false, "{}", other),
                    }
                    free.push(slot);
                }
            }
        }
        prop_assert_eq!((ended, free.len()), (reads.len(), slots));
    }

    #[test]
    fn capacity_for_is_enough_and_tight(offset in 0_u64..10_000, len in 1_usize..100_000) {
        let rounded = |offset: u64| (offset + len as u64).next_multiple_of(4096) - offset / 4096 * 4096;
        let capacity = Reader::capacity_for(len) as u64;
        prop_assert!(rounded(offset) <= capacity);
        prop_assert_eq!((0..4096).map(rounded).max(), Some(capacity));
    }
}

#[test]
fn the_queue_is_kept_full_across_tiles() {
    let fake = Fake::new(bytes(1 << 20), 6);
    fake.stalled.store(true, Ordering::Relaxed);
    let stalled = fake.stalled.clone();
    let mut engine = engine(fake, 8192);
    for tag in 0..4 {
        let slot = Slot::new(region(5 * 8192)).fill(tag);
        engine.submit(read(tag * 40_960, 40_960), slot).map_err(|(error, _)| error).unwrap();
    }
    // Five blocks of the first tile and one of the second: as deep as it may be.
    assert_eq!((engine.started(), engine.in_flight()), (6, 4));
    stalled.store(false, Ordering::Relaxed);
    let mut tags: Vec<_> = (0..4).map(|_| engine.wait(None).unwrap().tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3]);
    assert!(engine.wait(None).is_none());
}

#[test]
fn a_stalled_disk_can_be_waited_for_or_left() {
    let fake = Fake::new(bytes(8192), 2);
    let stalled = fake.stalled.clone();
    stalled.store(true, Ordering::Relaxed);
    let mut engine = engine(fake, 4096);
    engine.submit(read(0, 8192), Slot::new(region(8192)).fill(0)).map_err(|(error, _)| error).unwrap();
    let start = Instant::now();
    assert!(engine.wait(Some(Duration::from_millis(30))).is_none());
    assert!(start.elapsed() >= Duration::from_millis(30));
    let wake = engine.waker();
    let other = std::thread::spawn(move || wake());
    assert!(engine.wait(None).is_none());
    other.join().unwrap();
    assert_eq!(engine.in_flight(), 1);
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        stalled.store(false, Ordering::Relaxed);
    });
    assert!(engine.wait(None).unwrap().result.is_ok());
    other.join().unwrap();
}

#[test]
fn an_operation_put_off_for_ever_fails() {
    struct Never(Vec<usize>);
    // SAFETY: Never writes.
    unsafe impl Device for Never {
        fn start(&mut self, op: Op) {
            self.0.push(op.token);
        }
        fn wait(&mut self, _: Option<Duration>, done: &mut Vec<Done>) -> bool {
            let result = || Err(io::ErrorKind::Interrupted.into());
            done.extend(self.0.drain(..).map(|token| Done { token, begun: None, result: result() }));
            false
        }
        fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
            Arc::new(|| {})
        }
    }
    let mut engine = Engine::new(Box::new(Never(Vec::new())), vec!["m".into()], 1, 4096);
    engine.set_patience(20);
    engine.submit(read(5, 7), Slot::new(region(4096)).fill(3)).map_err(|(error, _)| error).unwrap();
    let (error, _) = engine.wait(None).unwrap().result.unwrap_err();
    assert!(error.to_string().starts_with("m: cannot read at offset 0: "), "{error}");
}

#[test]
fn what_cannot_be_read_is_refused_with_the_slot() {
    let mut engine = engine(Fake::new(bytes(9000), 2), 4096);
    let (error, slot) = engine.submit(read(4095, 2), Slot::new(region(4096)).fill(0)).unwrap_err();
    assert!(matches!(error, Error::SlotTooSmall { wanted: Bytes(8192), capacity: Bytes(4096) }));
    for offset in [u64::MAX, i64::MAX as u64 - 1] {
        let (error, _) = engine.submit(read(offset, 2), Slot::new(region(4096)).fill(0)).unwrap_err();
        assert!(matches!(error, Error::ShortFile { found: 0, wanted: 2, .. }));
    }
    assert!(engine.submit(read(4096, 4096), slot.fill(1)).is_ok());
    assert_eq!(engine.wait(None).unwrap().bytes_read, Bytes(4096));
}

/// Wakes a device that has nothing to do, twice.
fn wakes(device: &mut dyn Device) {
    for _ in 0..2 {
        let wake = device.waker();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            wake();
        });
        let start = Instant::now();
        let mut done = Vec::new();
        while !device.wait(Some(Duration::from_secs(1)), &mut done) {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        assert!(done.is_empty());
        other.join().unwrap();
        assert!(!device.wait(Some(Duration::from_millis(1)), &mut done));
    }
}

#[test]
fn threads_are_woken() {
    wakes(&mut Threads::new(2, Arc::new(|_, _, _: &mut [u8]| Ok(0)), None).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn a_ring_is_woken_and_says_so_when_taken_away() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(8192)).unwrap();
    let files = Arc::new(Files::open(&[file.path().to_owned()]).unwrap());
    let Ok(mut ring) = Uring::set_up(&files, 2, &[], &mut Vec::new()) else { return };
    wakes(&mut ring);

    let mut engine = Engine::new(Box::new(ring.taken_away()), vec!["m".into()], 2, 4096);
    engine.submit(read(0, 8192), Slot::new(region(8192)).fill(3)).map_err(|(error, _)| error).unwrap();
    let (error, _) = engine.wait(None).unwrap().result.unwrap_err();
    assert!(error.to_string().starts_with("m: cannot read at offset 0: Operation not permitted"), "{error}");
    assert_eq!(engine.in_flight(), 0);
}
