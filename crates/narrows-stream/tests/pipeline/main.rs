//! The pipeline against a source that does its worst.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod nasty;

use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use narrows_staging::{Arena, ArenaOptions, Budget, Filling, Free, Slot};
use narrows_stream::{
    Access, Bytes, Completed, Error, Options, Place, Plan, Request, Slots, SourceError, Speed, Stream, Tile,
    TileId, TileSource, Trace, plan,
};
use proptest::prelude::*;

use self::nasty::{Nasty, Rng, content};

#[derive(Clone, Debug)]
struct Case {
    tiles: Vec<Tile>,
    slots: usize,
    demand_slots: usize,
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
    let tile =
        (1_u64..20_000, 0_u64..5000, prop::bool::weighted(0.2)).prop_map(|(len, slack, demanded)| Tile {
            len: Bytes(len),
            capacity: Bytes(len + slack),
            access: if demanded { Access::Demanded } else { Access::Walked },
        });
    let rare = || prop_oneof![Just(1_000_000_usize), 2_usize..20];
    (
        (prop::collection::vec(tile, 1..40), 1_usize..8, 1_usize..4, 0.0..1.1, any::<u64>(), 1_usize..6),
        (rare(), rare(), rare()),
        prop::option::weighted(0.3, (1_usize..80, any::<bool>())),
        prop_oneof![Just(1_000_000_usize), 0_usize..100],
    )
        .prop_map(
            |(
                (tiles, slots, demand_slots, share, seed, passes),
                (skips, demands, leaves),
                fail,
                drop_after,
            )| {
                Case {
                    tiles,
                    slots,
                    demand_slots,
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

fn planned(case: &Case) -> Plan {
    let mut request = Request {
        tiles: &case.tiles,
        budget: Bytes(0),
        grain: narrows_staging::ALIGNMENT,
        needs: &[],
        slots: Slots::Exactly(case.slots),
        demand_slots: case.demand_slots,
        extra_per_pass: Bytes(0),
        disk: Speed::assumed(1e9),
        compute: Speed::assumed(1e9),
    };
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
    let describe = Arc::new(|tile: TileId| format!("blocks.{}.weight", tile.0));
    Stream::start(plan, &arena, source, Options { describe, trace }).unwrap()
}

/// What a run came to.
#[derive(Default)]
struct Outcome {
    calls: usize,
    held: u64,
    held_from_slots: u64,
    whole_passes: bool,
}

/// Walks the passes of a case and checks all that is delivered. `Ok(None)` if it dropped the stream on purpose.
fn drive(case: &Case, plan: &Plan, stream: &mut Stream) -> Result<Option<Outcome>, Error> {
    let mut rng = Rng(case.seed ^ 1);
    let mut out = Outcome { whole_passes: true, ..Outcome::default() };
    let on_demand: Vec<_> = (0..)
        .map(TileId)
        .zip(&plan.tiles)
        .filter(|(_, (_, p))| *p == Place::Demanded)
        .map(|(id, _)| id)
        .collect();
    let check = |out: &mut Outcome, held: &narrows_stream::Held<'_>, wanted: TileId| {
        let (tile, place) = plan.tiles[wanted.index()];
        assert_eq!(held.tile(), wanted);
        assert!(held.bytes() == content(wanted, tile.len.get() as usize), "the bytes of {wanted:?}");
        out.held += tile.len.get();
        out.held_from_slots += if place == Place::Resident { 0 } else { tile.len.get() };
    };
    for _ in 0..case.passes {
        let mut pass = stream.pass();
        for tile in plan.walk() {
            if out.calls >= case.drop_after {
                return Ok(None);
            }
            out.calls += 1;
            assert_eq!(pass.peek(), Some(tile));
            if !on_demand.is_empty() && rng.one_in(case.demands) {
                let ids: Vec<_> = (0..rng.below(7)).map(|_| on_demand[rng.below(on_demand.len())]).collect();
                let take = if rng.one_in(4) { rng.below(ids.len() + 1) } else { ids.len() + 1 };
                let mut demanded = pass.demand(&ids)?;
                let mut taken = 0;
                while taken < take
                    && let Some(held) = demanded.next()?
                {
                    check(&mut out, &held, ids[taken]);
                    taken += 1;
                }
                assert_eq!(taken, take.min(ids.len()));
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
            assert_eq!(stats.streamed, Bytes(out.held_from_slots));
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
    let tile = |i| Tile {
        len: Bytes(1000),
        capacity: Bytes(4096),
        access: if i >= tiles { Access::Demanded } else { Access::Walked },
    };
    Case {
        tiles: (0..tiles + demanded).map(tile).collect(),
        slots,
        demand_slots: 2,
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

#[test]
fn demands_are_checked() {
    let case = simple(4, 3, 2, 0.5);
    let plan = planned(&case);
    let (source, _) = Nasty::new(&plan, 4, None);
    let mut stream = start(&plan, source, 0);
    let mut pass = stream.pass();
    for wrong in [TileId(0), TileId(7), TileId(u32::MAX)] {
        assert!(
            matches!(pass.demand(&[TileId(4), wrong]), Err(Error::NotDemanded { tile }) if tile == wrong)
        );
    }
    assert!(pass.demand(&[]).unwrap().next().unwrap().is_none());
    // All are asked for and none is taken; then again, and two are.
    drop(pass.demand(&[TileId(4), TileId(5), TileId(6)]).unwrap());
    let ids = [TileId(6), TileId(6), TileId(5)];
    let mut demanded = pass.demand(&ids).unwrap();
    assert_eq!(demanded.next().unwrap().unwrap().tile(), TileId(6));
    assert_eq!(demanded.next().unwrap().unwrap().bytes(), content(TileId(6), 1000));
}

#[test]
fn demands_that_are_dropped_lose_no_slot() {
    for demand_slots in 1..4 {
        within_a_minute(move || {
            let plan = planned(&Case { demand_slots, ..simple(4, 4, 2, 0.5) });
            let (source, log) = Nasty::new(&plan, 5, None);
            let mut stream = start(&plan, source, 0);
            let mut pass = stream.pass();
            let ids: Vec<_> = (4..8).map(TileId).collect();
            let mut take = |count: usize| {
                let mut demanded = pass.demand(&ids).unwrap();
                for id in &ids[..count] {
                    assert_eq!(demanded.next().unwrap().unwrap().bytes(), content(*id, 1000));
                }
                // Sometimes the rest is on its way already when it is forgotten.
                thread::sleep(Duration::from_micros(count as u64 % 2 * 300));
            };
            let mut rng = Rng(6);
            (0..100).for_each(|_| take(rng.below(5)));
            // All slots are back, and all are used.
            take(4);
            log.lock().unwrap().most_demanded = 0;
            take(4);
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
    drop(pass.demand(&[TileId(5), TileId(6), TileId(7)]).unwrap());
    assert_eq!(pass.demand(&[TileId(4)]).unwrap().next().unwrap().unwrap().tile(), TileId(4));
    let read = log.lock().unwrap().reads.iter().filter(|tile| tile.0 >= 4).count();
    assert!(read <= 2, "{read}");
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
