//! The plan against what it promises.

use std::collections::{BTreeMap, HashMap};

use narrows_stream::{
    Access, Bound, Bytes, Error, Group, Need, Place, Plan, Request, Slots, Speed, Tile, plan,
};
use proptest::prelude::*;

fn region(tile: &Tile) -> u64 {
    tile.capacity.get().div_ceil(4096) * 4096
}

fn tile() -> impl Strategy<Value = Tile> {
    let len = prop_oneof![4 => 1_u64..100_000, 1 => Just(65_536), 1 => 1_u64..2_000_000];
    let group = (0..8_u32).prop_map(|group| Access::Demanded(Group(group)));
    let access = prop_oneof![8 => Just(Access::Walked), 1 => Just(Access::Once), 2 => group];
    (len, 0_u64..8192, access)
        .prop_map(|(len, slack, access)| Tile::new(Bytes(len), Bytes(len + slack), access))
}

fn slots() -> impl Strategy<Value = Slots> {
    prop_oneof![
        Just(Slots::Auto),
        (1_usize..9).prop_map(Slots::AtMost),
        (1_usize..9).prop_map(Slots::Exactly)
    ]
}

#[derive(Clone, Debug)]
struct Case {
    tiles: Vec<Tile>,
    slots: Slots,
    needs: Vec<Need>,
    demand_slots: Slots,
    frames: usize,
    share: f64,
}

impl Case {
    fn all(&self) -> u64 {
        self.tiles.iter().map(region).sum::<u64>() + self.needs.iter().map(|n| n.bytes.get()).sum::<u64>()
    }

    fn plan(&self, budget: u64) -> Result<Plan, Error> {
        plan(
            &Request::new(&self.tiles, Bytes(budget))
                .grain(narrows_staging::ALIGNMENT)
                .needs(&self.needs)
                .slots(self.slots)
                .demand(self.demand_slots, self.frames, Bytes(30_000))
                .extra_per_pass(Bytes(1000))
                .speeds(Speed::measured(2e9), Speed::assumed(10e9)),
        )
    }

    fn minimum(&self) -> u64 {
        match self.plan(0) {
            Err(Error::BudgetTooSmall { minimum, .. }) => minimum.get(),
            Ok(plan) => plan.minimum.get(),
            Err(_) => u64::MAX,
        }
    }

    /// A budget between the minimum and a little more than all.
    fn budget(&self) -> u64 {
        let (least, most) = (self.minimum(), self.all() * 11 / 10);
        least + (most.saturating_sub(least) as f64 * self.share) as u64
    }
}

fn case() -> impl Strategy<Value = Case> {
    let tiles = prop::collection::vec(tile(), 0..120);
    let needs = prop::collection::vec((0_u64..300_000).prop_map(|n| Need::new("KV cache", Bytes(n))), 0..3);
    let frames = prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..4];
    (tiles, slots(), needs, slots(), frames, 0.0..1.0).prop_map(
        |(mut tiles, slots, needs, demand_slots, frames, share)| {
            number_groups(&mut tiles);
            Case { tiles, slots, needs, demand_slots, frames, share }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_its_budget_and_its_books(case in case()) {
        let budget = case.budget();
        let plan = case.plan(budget).unwrap();
        prop_assert!(plan.total().get() <= budget);
        let own: u64 = plan.needs.iter().filter(|n| n.what != "KV cache").map(|n| n.bytes.get()).sum();
        prop_assert_eq!(own, plan.arena.get());

        let at = |place| plan.tiles.iter().filter(move |(_, p)| *p == place).map(|(tile, _)| tile);
        let regions: u64 = at(Place::Resident).map(region).sum();
        let slots = plan.slots as u64 * plan.slot_capacity.get();
        let pool = plan.demand_slots as u64 * plan.demand_slot_capacity.get();
        let frame: u64 = plan.frame_slots.iter().map(|bytes| bytes.get()).sum();
        prop_assert_eq!(plan.arena.get(), regions + slots + pool + plan.frames as u64 * frame);
        prop_assert_eq!(plan.resident, at(Place::Resident).map(|tile| tile.len).sum());
        prop_assert_eq!(plan.slot_capacity.get(), at(Place::Streamed).chain(at(Place::Once)).map(region).max().unwrap_or(0));
        prop_assert_eq!(plan.demand_slots == 0, plan.frames == plan.groups.len());
        prop_assert!(plan.frames <= case.frames);
        prop_assert!(at(Place::Demanded).all(|tile| tile.access.group().is_some() && region(tile) <= plan.demand_slot_capacity.get()));
        prop_assert_eq!(plan.groups.iter().map(Vec::len).sum::<usize>(), at(Place::Demanded).count());
        for group in &plan.groups {
            let fits = group.iter().zip(&plan.frame_slots).all(|(id, slot)| region(&plan.tiles[id.index()].0) <= slot.get());
            prop_assert!(fits && group.len() <= plan.frame_slots.len());
        }
        let missed = 30_000 * (plan.groups.len() - plan.frames) as u64 / plan.groups.len().max(1) as u64;
        let read = at(Place::Streamed).map(|tile| tile.len.get()).sum::<u64>() + 1000 + missed;
        prop_assert!(plan.disk_bytes_per_pass.get().abs_diff(read) <= 1);
        prop_assert_eq!(plan.walked, plan.tiles.iter().filter(|(t, _)| t.access == Access::Walked).map(|(t, _)| t.len).sum());
        prop_assert!(plan.walk().all(|id| plan.tiles[id.index()].0.access.group().is_none()));
    }

    #[test]
    fn the_minimum_is_tight(case in case()) {
        let minimum = case.minimum();
        let plan = case.plan(minimum).unwrap();
        prop_assert_eq!(plan.minimum.get(), minimum);
        if minimum > 0 {
            let refused = case.plan(minimum - 1).unwrap_err();
            let Error::BudgetTooSmall { minimum: told, needs, .. } = refused else { return Err(TestCaseError::fail(refused.to_string())) };
            prop_assert_eq!(told.get(), minimum);
            prop_assert_eq!(needs.iter().map(|n| n.bytes).sum::<Bytes>(), told);
        }
    }

    #[test]
    fn everything_fits_or_there_are_slots(case in case()) {
        let all = case.plan(case.budget()).unwrap().all_resident_at.get();
        for budget in [case.budget(), all, all.saturating_sub(1).max(case.minimum())] {
            let plan = case.plan(budget).unwrap();
            let streams = plan.tiles.iter().any(|(_, place)| matches!(place, Place::Streamed | Place::Once));
            prop_assert_eq!(streams, plan.slots > 0);
            prop_assert_eq!(plan.all_resident(), budget >= plan.all_resident_at.get());
        }
    }

    #[test]
    fn more_budget_is_never_slower(case in case(), more in 0_u64..200_000) {
        let budget = case.budget();
        let (less, more) = (case.plan(budget).unwrap(), case.plan(budget + more).unwrap());
        prop_assert!(more.disk_bytes_per_pass <= less.disk_bytes_per_pass);
        prop_assert!(more.seconds_per_pass() <= less.seconds_per_pass());
    }

    /// Small tiles stay before big ones, and among tiles of about one size residency is spread evenly.
    #[test]
    fn residency_is_spread_evenly(case in case()) {
        let plan = case.plan(case.budget()).unwrap();
        let walk: Vec<(u64, bool)> = plan
            .walk()
            .map(|id| plan.tiles[id.index()])
            .filter(|(tile, _)| tile.access == Access::Walked)
            .map(|(tile, place)| (region(&tile), place == Place::Resident))
            .collect();
        let biggest = walk.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
        let mut sizes: BTreeMap<u32, Vec<(f64, bool)>> = BTreeMap::new();
        for &(bytes, resident) in &walk {
            sizes.entry((biggest / bytes).ilog2()).or_default().push((bytes as f64, resident));
        }

        let mut smaller_stream = false;
        for tiles in sizes.values().rev() {
            prop_assert!(!smaller_stream || tiles.iter().all(|(_, resident)| !resident), "{tiles:?}");
            smaller_stream |= tiles.iter().any(|(_, resident)| !resident);

            let bytes = |of: &[(f64, bool)]| of.iter().map(|(bytes, _)| bytes).sum::<f64>();
            let kept = |of: &[(f64, bool)]| of.iter().filter(|(_, r)| *r).map(|(bytes, _)| bytes).sum::<f64>();
            let share = kept(tiles) / bytes(tiles);
            // Half a tile at each end, and half a one in the share itself.
            let most = 1.5 * tiles.iter().map(|(bytes, _)| *bytes).fold(0.0, f64::max) + 2.0;
            for from in 0..tiles.len() {
                for to in from..=tiles.len() {
                    let window = &tiles[from..to];
                    let off = kept(window) - share * bytes(window);
                    prop_assert!(off.abs() <= most, "{from}..{to}: {off} of {tiles:?}");
                }
            }
        }
    }
}

fn uniform(count: usize, slots: Slots, budget: u64) -> Result<Plan, Error> {
    let tiles = vec![Tile::new(Bytes::mib(8), Bytes::mib(8), Access::Walked); count];
    let needs = vec![Need::new("KV cache", Bytes::mib(4))];
    Case { tiles, slots, needs, demand_slots: Slots::Auto, frames: 0, share: 0.0 }.plan(budget << 20)
}

#[test]
fn equal_tiles_fill_the_budget() {
    // 200 MiB - 4 of KV cache - 8 slots of 8 hold 16 tiles, with 4 MiB to spare.
    let plan = uniform(100, Slots::Auto, 200).unwrap();
    assert_eq!((plan.slots, plan.resident, plan.total()), (8, Bytes::mib(128), Bytes::mib(196)));
    assert_eq!(plan.bound, Bound::Disk);
    assert_eq!((plan.minimum, plan.all_resident_at), (Bytes::mib(52), Bytes::mib(804)));

    let plan = uniform(100, Slots::Exactly(3), 200).unwrap();
    assert_eq!((plan.slots, plan.resident), (3, Bytes::mib(168)));

    // Slots before residency, and no more slots than stream.
    assert_eq!(uniform(100, Slots::Auto, 60).unwrap().slots, 7);
    assert_eq!(uniform(100, Slots::AtMost(4), 22).unwrap().slots, 2);
    let plan = uniform(100, Slots::Auto, 803).unwrap();
    assert_eq!((plan.slots, plan.resident), (8, Bytes::mib(728)));
    assert_eq!(uniform(100, Slots::Auto, 804).unwrap().bound, Bound::Compute);
}

#[test]
fn a_refusal_says_what_would_do() {
    let refused = uniform(100, Slots::Auto, 19).unwrap_err().to_string();
    assert_eq!(
        refused,
        "19.0 MiB of memory is too little; the least that works is 52 MiB (slots 48.0 MiB, KV cache 4.0 MiB)"
    );
    assert!(matches!(uniform(1, Slots::Exactly(0), 100), Err(Error::NoSlots)));
}

#[test]
fn a_big_model_is_planned_at_once() {
    // 405B in bf16, cut into tiles of 32 MiB.
    let tiles = vec![Tile::new(Bytes::mib(32), Bytes(33 << 20), Access::Walked); 24_000];
    let case =
        Case { tiles, slots: Slots::Auto, needs: vec![], demand_slots: Slots::Auto, frames: 0, share: 0.0 };
    let plan = case.plan(400 << 30).unwrap();
    assert!(plan.total() > Bytes((400 << 30) - (33 << 20)));
}
