//! The pipeline against a source that does its worst.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod nasty;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use narrows_staging::{Arena, ArenaOptions, Budget, Filling, Free, Slot};
use narrows_stream::{
    Access, Bytes, Completed, Error, Group, Options, Pass, Place, Plan, Request, Slots, SourceError, Speed,
    Stream, Tile, TileId, TileSource, Trace, plan,
};
use proptest::prelude::*;

use self::nasty::{Nasty, Rng, content};

#[derive(Clone, Debug)]
struct Case {
    tiles: Vec<Tile>,
    slots: usize,
    demand_slots: usize,
    /// How many groups of demanded tiles may stay.
    frames: usize,
    share: f64,
    seed: u64,
    passes: usize,
    /// How often tiles are skipped, demanded, passes left early: one in so many.
    skips: usize,
    demands: usize,
    leaves: usize,
    fail: Option<(usize, bool)>,
    /// Drops the stream after so many calls.
    drop_after: usize,
}

fn case() -> impl Strategy<Value = Case> {
    // About every third tile is demanded, in groups of three, here and there.
    let tile = (1_u64..20_000, 0_u64..5000, 0_usize..30).prop_map(|(len, slack, kind)| {
        let access = if kind < 10 { Access::Demanded(Group(kind as u32 / 2)) } else { Access::Walked };
        Tile::new(Bytes(len), Bytes(len + slack), access)
    });
    let rare = || prop_oneof![Just(1_000_000_usize), 2_usize..20];
    (
        (
            prop::collection::vec(tile, 1..40),
            1_usize..8,
            (1_usize..4, 0_usize..6),
            0.0..1.1,
            any::<u64>(),
            1_usize..6,
        ),
        (rare(), rare(), rare()),
        prop::option::weighted(0.3, (1_usize..80, any::<bool>())),
        prop_oneof![Just(1_000_000_usize), 0_usize..100],
    )
        .prop_map(
            |(
                (mut tiles, slots, (demand_slots, frames), share, seed, passes),
                (skips, demands, leaves),
                fail,
                drop_after,
            )| {
                number_groups(&mut tiles);
                Case {
                    tiles,
                    slots,
                    demand_slots,
                    frames,
                    share,
                    seed,
                    passes,
                    skips,
                    demands,
                    leaves,
                    fail,
                    drop_after,
                }
            },
        )
}

/// Groups have numbers without gaps.
fn number_groups(tiles: &mut [Tile]) {
    let mut numbers = HashMap::new();
    for tile in tiles {
        if let Access::Demanded(group) = &mut tile.access {
            let next = numbers.len() as u32;
            *group = Group(*numbers.entry(*group).or_insert(next));
        }
    }
}

fn planned(case: &Case) -> Plan {
    let mut request = Request::new(&case.tiles, Bytes(0))
        .grain(narrows_staging::ALIGNMENT)
        .needs(&[])
        .slots(Slots::Exactly(case.slots))
        .demand(Slots::Exactly(case.demand_slots), case.frames, Bytes(0))
        .extra_per_pass(Bytes(0))
        .speeds(Speed::assumed(1e9), Speed::assumed(1e9));
    let least = match plan(&request) {
        Err(Error::BudgetTooSmall { minimum, .. }) => minimum.get(),
        other => other.unwrap().minimum.get(),
    };
    request.budget = Bytes(u64::MAX);
    let most = plan(&request).unwrap().all_resident_at.get();
    request.budget = Bytes(least + (most.saturating_sub(least) as f64 * case.share) as u64);
    plan(&request).unwrap()
}

fn start(plan: &Plan, source: impl TileSource + 'static, trace: usize) -> Stream {
    let budget = Budget::new(plan.arena + Trace::memory(trace));
    let arena = Arena::new(&budget, "weights", plan.arena, ArenaOptions::default()).unwrap();
    let trace = Some(Trace::new(&budget, trace).unwrap());
    let describe = |tile: TileId| format!("blocks.{}.weight", tile.0);
    Stream::start(plan, &arena, source, Options::default().describe(describe).trace(trace)).unwrap()
}

/// What a run came to.
#[derive(Default)]
struct Outcome {
    calls: usize,
    held: u64,
    held_from_slots: u64,
    demanded: u64,
    groups: u64,
    whole_passes: bool,
}

/// Walks the passes of a case and checks all that is delivered. `Ok(None)` if it dropped the stream on purpose.
fn drive(case: &Case, plan: &Plan, stream: &mut Stream) -> Result<Option<Outcome>, Error> {
    let mut rng = Rng(case.seed ^ 1);
    let mut out = Outcome { whole_passes: true, ..Outcome::default() };
    let check = |out: &mut Outcome, held: &narrows_stream::Held<'_>, wanted: TileId| {
        let (tile, place) = plan.tiles[wanted.index()];
        assert_eq!(held.tile(), wanted);
        assert!(held.bytes() == content(wanted, tile.len.get() as usize), "the bytes of {wanted:?}");
        out.held += tile.len.get();
        match place {
            Place::Resident => {}
            Place::Demanded => out.demanded += tile.len.get(),
            _ => out.held_from_slots += tile.len.get(),
        }
    };
    for _ in 0..case.passes {
        let mut pass = stream.pass();
        let mut wanted = VecDeque::new();
        for tile in plan.walk() {
            if out.calls >= case.drop_after {
                return Ok(None);
            }
            out.calls += 1;
            assert_eq!(pass.peek(), Some(tile));
            if !plan.groups.is_empty() && rng.one_in(case.demands) {
                let count = plan.groups.len();
                let groups: Vec<_> =
                    (0..rng.below(5)).map(|_| Group(rng.below(count).min(rng.below(count)) as u32)).collect();
                pass.demand(&groups)?;
                out.groups += groups.len() as u64;
                wanted = groups.iter().flat_map(|group| plan.groups[group.index()].clone()).collect();
            }
            if rng.one_in(4) {
                pass.prefetch(&[Group(rng.below(6) as u32), Group(rng.below(20) as u32)]);
            }
            // Some at once, some when the walk went on, and some never.
            while rng.below(8) > 0
                && let Some(held) = pass.next_demanded()?
            {
                check(&mut out, &held, wanted.pop_front().unwrap());
            }
            if rng.one_in(case.skips) {
                out.whole_passes = false;
                pass.skip()?;
            } else {
                let held = pass.next()?;
                if rng.one_in(30) {
                    thread::sleep(Duration::from_micros(200));
                }
                check(&mut out, &held, tile);
            }
            if rng.one_in(case.leaves) {
                out.whole_passes = false;
                break;
            }
        }
        if out.whole_passes {
            assert_eq!(pass.remaining(), 0);
            assert!(matches!(pass.next(), Err(Error::PassOver)));
            assert!(matches!(pass.skip(), Err(Error::PassOver)));
        }
    }
    Ok(Some(out))
}

fn run(case: &Case) {
    let plan = planned(case);
    let (source, log) = Nasty::new(&plan, case.seed, case.fail);
    let mut stream = start(&plan, source, 100);
    let monitor = stream.monitor();
    match drive(case, &plan, &mut stream) {
        Ok(None) => {}
        Ok(Some(out)) => {
            let stats = stream.stats();
            assert_eq!(stats.passes, case.passes as u64);
            assert_eq!(stats.compute.bytes, Bytes(out.held));
            assert_eq!(stats.demands.hits + stats.demands.misses, out.groups);
            assert!(stats.streamed >= Bytes(out.held_from_slots));
            assert!(stats.streamed <= Bytes(out.held_from_slots + out.demanded));
            if plan.frames == 0 {
                assert_eq!(stats.streamed, Bytes(out.held_from_slots + out.demanded));
                assert_eq!(stats.demands.hits, 0);
            }
            let demands = stats.demands;
            assert!(demands.bytes <= demands.demanded);
            if plan.frames == 0 {
                assert_eq!(demands.prefetched, Bytes(0));
            }
            if plan.frames == plan.groups.len() {
                assert!(stats.demands.misses <= plan.groups.len() as u64);
            }
            assert!(stats.disk.bytes >= Bytes(out.held_from_slots));
            assert!(stats.resident <= plan.resident);
            if out.whole_passes {
                assert_eq!(stats.resident, plan.resident);
            }
        }
        Err(error) => {
            assert!(log.lock().unwrap().failed);
            let Error::Read { tile, .. } = &error else { panic!("{error}") };
            assert!(tile.starts_with("blocks."));
            assert_eq!(error.to_string(), format!("{tile}: input/output error"));
            if plan.walk().next().is_some() {
                assert!(matches!(stream.pass().next(), Err(Error::Ended)));
            }
        }
    }
    drop(stream);
    let log = log.lock().unwrap();
    assert!(!log.too_many, "more in flight than there are slots");
    assert!(log.failed || log.in_flight.is_empty(), "waited for what was in flight");
    let mut seen = HashSet::new();
    let resident = |tile: &&TileId| plan.tiles[tile.index()].1 == Place::Resident;
    assert!(log.reads.iter().filter(resident).all(|&tile| seen.insert(tile)), "resident tiles are read once");
    let mut trace = Vec::new();
    monitor.write_trace(&mut trace).unwrap();
    serde_json::from_slice::<serde_json::Value>(&trace).unwrap();
}

/// Fails instead of hanging.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        _ => thread.join().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_tile_once_per_pass_in_order(case in case()) {
        within_a_minute(move || run(&case));
    }
}

fn simple(tiles: u32, demanded: u32, slots: usize, share: f64) -> Case {
    let access = |i| if i >= tiles { Access::Demanded(Group(i - tiles)) } else { Access::Walked };
    let tile = |i| Tile::new(Bytes(1000), Bytes(4096), access(i));
    Case {
        tiles: (0..tiles + demanded).map(tile).collect(),
        slots,
        demand_slots: 2,
        frames: 0,
        share,
        seed: 7,
        passes: 3,
        skips: 1_000_000,
        demands: 1_000_000,
        leaves: 1_000_000,
        fail: None,
        drop_after: 1_000_000,
    }
}

#[test]
fn nothing_is_read_twice_when_all_fits() {
    let case = simple(10, 0, 3, 1.0);
    let plan = planned(&case);
    assert!(plan.all_resident());
    let (source, log) = Nasty::new(&plan, 2, None);
    let mut stream = start(&plan, source, 0);
    drive(&case, &plan, &mut stream).unwrap();
    let before = stream.stats();
    drive(&case, &plan, &mut stream).unwrap();
    let later = stream.stats().since(&before);
    assert_eq!((later.disk.bytes, later.streamed, later.passes), (Bytes(0), Bytes(0), 3));
    assert_eq!(later.compute.bytes, Bytes(30_000));
    assert_eq!(log.lock().unwrap().reads.len(), 10);
}

#[test]
fn skipped_tiles_are_not_read_if_there_is_time() {
    // With one slot the reader is never more than a tile ahead.
    let case = simple(20, 0, 1, 0.0);
    let plan = planned(&case);
    let (source, log) = Nasty::new(&plan, 3, None);
    let mut stream = start(&plan, source, 0);
    let mut pass = stream.pass();
    let _ = pass.next().unwrap().bytes();
    for _ in 1..19 {
        pass.skip().unwrap();
    }
    assert_eq!(pass.next().unwrap().tile(), TileId(19));
    drop(pass);
    drop(stream);
    let reads = &log.lock().unwrap().reads;
    assert!(reads.len() <= 5, "{reads:?}");
}

/// Takes `count` tiles of those that were demanded; each has a group of its own, behind `first` walked tiles.
fn take(pass: &mut Pass<'_>, groups: &[u32], first: u32, count: usize) {
    pass.demand(&groups.iter().map(|group| Group(*group)).collect::<Vec<_>>()).unwrap();
    for group in &groups[..count] {
        let held = pass.next_demanded().unwrap().unwrap();
        assert_eq!(held.tile(), TileId(first + group));
        assert_eq!(held.bytes(), content(TileId(first + group), 1000));
    }
    if count == groups.len() {
        assert!(pass.next_demanded().unwrap().is_none());
    }
}

#[test]
fn demands_are_checked() {
    let case = simple(4, 3, 2, 0.5);
    let plan = planned(&case);
    let (source, _) = Nasty::new(&plan, 4, None);
    let mut stream = start(&plan, source, 0);
    let mut pass = stream.pass();
    for wrong in [Group(3), Group(u32::MAX)] {
        assert!(matches!(pass.demand(&[Group(1), wrong]), Err(Error::NoGroup { group }) if group == wrong));
    }
    take(&mut pass, &[], 4, 0);
    // All are asked for and none is taken; then again, and two are.
    take(&mut pass, &[0, 1, 2], 4, 0);
    take(&mut pass, &[2, 2, 1], 4, 2);
    drop(pass);
    // What a pass left is not there for the next.
    assert!(stream.pass().next_demanded().unwrap().is_none());
}

#[test]
fn demands_that_are_dropped_lose_no_slot() {
    for demand_slots in 1..4 {
        within_a_minute(move || {
            let plan = planned(&Case { demand_slots, ..simple(4, 4, 2, 0.5) });
            let (source, log) = Nasty::new(&plan, 5, None);
            let mut stream = start(&plan, source, 0);
            let mut pass = stream.pass();
            let mut take_some = |count: usize| {
                take(&mut pass, &[0, 1, 2, 3], 4, count);
                // Sometimes the rest is on its way already when it is forgotten.
                thread::sleep(Duration::from_micros(count as u64 % 2 * 300));
            };
            let mut rng = Rng(6);
            (0..100).for_each(|_| take_some(rng.below(5)));
            // All slots are back, and all are used.
            take_some(4);
            log.lock().unwrap().most_demanded = 0;
            take_some(4);
            assert_eq!(log.lock().unwrap().most_demanded, demand_slots);
        });
    }
}

#[test]
fn what_is_demanded_no_more_is_not_read() {
    let plan = planned(&Case { demand_slots: 1, ..simple(4, 4, 2, 0.5) });
    let (source, log) = Nasty::new(&plan, 8, None);
    let mut stream = start(&plan, source, 0);
    let mut pass = stream.pass();
    // One slot, which only the next wait of this thread can free, so at most one of these is read.
    take(&mut pass, &[1, 2, 3], 4, 0);
    take(&mut pass, &[0], 4, 1);
    let read = log.lock().unwrap().reads.iter().filter(|tile| tile.0 >= 4).count();
    assert!(read <= 2, "{read}");
}

#[test]
fn groups_that_are_used_most_stay() {
    within_a_minute(|| {
        let plan = planned(&Case { frames: 2, ..simple(4, 6, 2, 9.0) });
        assert_eq!((plan.frames, plan.demand_slots), (2, 2));
        let (source, log) = Nasty::new(&plan, 9, None);
        let mut stream = start(&plan, source, 0);
        for rare in [0, 1, 2, 3, 0, 1] {
            let mut pass = stream.pass();
            // 4 and 5 are used in every pass, one of the others besides.
            take(&mut pass, &[4, rare, 5], 4, 3);
        }
        let reads = |tile| log.lock().unwrap().reads.iter().filter(|read| read.0 == tile).count();
        assert_eq!((reads(8), reads(9)), (1, 2), "a rare one was there first");
        let demands = stream.stats().demands;
        assert_eq!((demands.hits, demands.misses), (9, 9));
        assert_eq!((demands.bytes, demands.demanded), (Bytes(9000), Bytes(18_000)));
        assert_eq!(demands.hit_rate(), Some(0.5));
    });
}

#[test]
fn what_is_prefetched_is_found() {
    within_a_minute(|| {
        let plan = planned(&Case { frames: 3, ..simple(4, 6, 2, 9.0) });
        let (source, log) = Nasty::new(&plan, 11, None);
        let mut stream = start(&plan, source, 0);
        let mut pass = stream.pass();
        assert!(pass.may_miss());
        take(&mut pass, &[0, 1], 4, 2);
        let reads = |tile| log.lock().unwrap().reads.iter().filter(|read| read.0 == tile).count();
        // Into the free frame; group 1 stays, as it is named too, and what does not exist is no matter.
        pass.prefetch(&[Group(1), Group(2), Group(99)]);
        while reads(6) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        take(&mut pass, &[1, 2], 4, 2);
        drop(pass);
        let demands = stream.stats().demands;
        assert_eq!((demands.hits, demands.misses), (2, 2));
        assert_eq!((demands.bytes, demands.prefetched), (Bytes(2000), Bytes(1000)));

        // At once, and then demanded before there was time for it, with another that goes first.
        for _ in 0..50 {
            let mut pass = stream.pass();
            pass.prefetch(&[Group(3), Group(4)]);
            take(&mut pass, &[5, 4, 3], 4, 3);
            drop(pass);
            take(&mut stream.pass(), &[0, 1, 2], 4, 3);
        }
        let demands = stream.stats().demands;
        assert_eq!(demands.hits + demands.misses, 4 + 300);
        assert_eq!(demands.bytes, Bytes(1000 * demands.misses));
    });
}

#[test]
fn nothing_is_read_twice_when_all_groups_have_frames() {
    within_a_minute(|| {
        let plan = planned(&Case { frames: 6, ..simple(4, 6, 2, 1.0) });
        assert!(plan.all_resident() && plan.demand_slots == 0);
        let (source, log) = Nasty::new(&plan, 10, None);
        let mut stream = start(&plan, source, 0);
        for pass in 0..20 {
            take(&mut stream.pass(), &[pass % 6, 5 - pass % 3], 4, 1 + pass as usize % 2);
        }
        let reads = log.lock().unwrap().reads.iter().filter(|tile| tile.0 >= 4).count();
        assert!(reads <= 6, "{reads}");
    });
}

#[test]
fn a_source_that_needs_more_than_planned_is_refused() {
    struct Big(Nasty);
    impl TileSource for Big {
        fn capacity(&self, _: TileId) -> usize {
            5000
        }
        fn submit(&mut self, tile: TileId, slot: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
            self.0.submit(tile, slot)
        }
        fn wait(&mut self, timeout: Option<Duration>) -> Option<Completed> {
            self.0.wait(timeout)
        }
        fn in_flight(&self) -> usize {
            self.0.in_flight()
        }
    }
    let plan = planned(&simple(4, 0, 2, 0.5));
    let arena = Arena::new(&Budget::new(plan.arena), "weights", plan.arena, ArenaOptions::default()).unwrap();
    let refused = Stream::start(&plan, &arena, Big(Nasty::new(&plan, 0, None).0), Options::default());
    let Err(error) = refused else { panic!("started") };
    assert_eq!(error.to_string(), "tile 0: planned with 4.0 KiB, but its source needs 4.9 KiB");
}

#[test]
fn a_source_that_panics_ends_the_stream() {
    struct Panics;
    impl TileSource for Panics {
        fn capacity(&self, _: TileId) -> usize {
            0
        }
        fn submit(&mut self, _: TileId, _: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
            panic!("on purpose")
        }
        fn wait(&mut self, _: Option<Duration>) -> Option<Completed> {
            None
        }
        fn in_flight(&self) -> usize {
            0
        }
    }
    let plan = planned(&simple(4, 0, 2, 0.5));
    let mut stream = start(&plan, Panics, 0);
    assert!(matches!(stream.pass().next(), Err(Error::Panicked)));
    assert!(matches!(stream.pass().next(), Err(Error::Ended)));
}
