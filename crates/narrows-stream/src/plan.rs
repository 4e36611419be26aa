//! The plan: a pure function from tiles, budget and speeds to what stays in memory and how fast a pass will be.

use crate::residency::{self, Weight};
use crate::{Access, Bytes, Error, Tile, TileId};

/// Slots made unasked hold about this much: enough for the tile in use and deep reads behind it.
const DEFAULT_SLOT_BYTES: u64 = 64 << 20;

/// How many slots are made unasked: few where tiles are big, never so many that they are mere bookkeeping.
const DEFAULT_SLOTS: std::ops::RangeInclusive<u64> = 4..=16;

/// Below this many slots, reading and computing could not overlap.
const FEWEST_SLOTS: u64 = 2;

/// What slots made unasked for a walk from disk hold at least, or an eighth of the walk. Tiles arrive in order: while
/// one is late, those behind it wait in their slots, and nothing is asked of the disk in their place.
const FEWEST_SLOT_BYTES: u64 = 48 << 20;

/// What a plan is made from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// All tiles; those that are not demanded stand in the order in which a pass walks them.
    pub tiles: &'a [Tile],
    /// The hard cap on memory for all of it together.
    pub budget: Bytes,
    /// What regions of that memory are aligned to: a tile takes a multiple of it.
    pub grain: usize,
    /// What else lives in the budget: KV cache, activations, tokenizer ...
    pub needs: &'a [Need],
    /// How many tiles can be on their way at a time.
    pub slots: Slots,
    /// How many demanded tiles can be on their way at a time; unused where no tile is demanded.
    pub demand_slots: Slots,
    /// How many groups of demanded tiles may have memory to stay in.
    pub frames: usize,
    /// What a pass is expected to demand.
    pub demanded_per_pass: Bytes,
    /// What a pass reads from disk besides tiles: rows of an embedding.
    pub extra_per_pass: Bytes,
    /// How fast tiles come: what the disk reads, or the link carries.
    pub disk: Speed,
    /// How fast weights are computed on, once in memory.
    pub compute: Speed,
}

impl<'a> Request<'a> {
    /// All `tiles` in `budget`, with slots as many as [`Slots::Auto`] makes in host memory, nothing else in the budget,
    /// no memory for demanded tiles to stay in, and the speeds of a mid-range NVMe disk and a desktop's memory.
    #[must_use]
    pub const fn new(tiles: &'a [Tile], budget: Bytes) -> Self {
        Self {
            tiles,
            budget,
            grain: narrows_staging::ALIGNMENT,
            needs: &[],
            slots: Slots::Auto,
            demand_slots: Slots::Auto,
            frames: 0,
            demanded_per_pass: Bytes(0),
            extra_per_pass: Bytes(0),
            disk: Speed::assumed(3e9),
            compute: Speed::assumed(20e9),
        }
    }

    /// Sets what regions of the memory are aligned to.
    #[must_use]
    pub const fn grain(mut self, grain: usize) -> Self {
        self.grain = grain;
        self
    }

    /// Sets what else lives in the budget.
    #[must_use]
    pub const fn needs(mut self, needs: &'a [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// Sets how many tiles can be on their way at a time.
    #[must_use]
    pub const fn slots(mut self, slots: Slots) -> Self {
        self.slots = slots;
        self
    }

    /// Sets how many demanded tiles can be on their way at a time, how many groups of them may have memory to stay in,
    /// and what a pass is expected to demand.
    #[must_use]
    pub const fn demand(mut self, slots: Slots, frames: usize, per_pass: Bytes) -> Self {
        self.demand_slots = slots;
        self.frames = frames;
        self.demanded_per_pass = per_pass;
        self
    }

    /// Sets what a pass reads from disk besides tiles.
    #[must_use]
    pub const fn extra_per_pass(mut self, bytes: Bytes) -> Self {
        self.extra_per_pass = bytes;
        self
    }

    /// Sets how fast tiles come, and how fast they are computed on.
    #[must_use]
    pub const fn speeds(mut self, disk: Speed, compute: Speed) -> Self {
        self.disk = disk;
        self.compute = compute;
        self
    }
}

/// Memory taken, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What takes it, as the user is to read it: `KV cache`.
    pub what: String,
    /// How much it takes.
    pub bytes: Bytes,
}

impl Need {
    /// So many bytes for that.
    pub fn new(what: impl Into<String>, bytes: Bytes) -> Self {
        Self { what: what.into(), bytes }
    }
}

/// How many slots streamed tiles pass through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slots {
    /// About 64 MiB of them, 4 to 16; fewer in a budget that holds no more, but two at least, and for a walk about
    /// 48 MiB of them, or an eighth of it.
    #[default]
    Auto,
    /// As many as [`Slots::Auto`] makes, but no more than that; at least two.
    AtMost(usize),
    /// As many as that, or as there are tiles. One is enough to be correct, two to overlap.
    Exactly(usize),
}

/// A speed and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Speed {
    /// Bytes of weights per second.
    pub bytes_per_second: f64,
    /// Whether it was measured on this machine, or is a guess.
    pub measured: bool,
}

impl Speed {
    /// A speed that was measured here.
    #[must_use]
    pub const fn measured(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, measured: true }
    }

    /// A speed that is a guess.
    #[must_use]
    pub const fn assumed(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, measured: false }
    }

    fn seconds(self, bytes: Bytes) -> f64 {
        if bytes == Bytes(0) { 0.0 } else { bytes.get() as f64 / self.bytes_per_second }
    }
}

/// Where a tile lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In memory, from the first pass on.
    Resident,
    /// On disk, read in each pass.
    Streamed,
    /// On disk, read in the first pass.
    Once,
    /// On disk, read when asked for.
    Demanded,
}

/// The stage that a pass waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// Reading takes longer than computing.
    Disk,
    /// Computing takes longer than reading.
    Compute,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Disk => "disk",
            Self::Compute => "compute",
        })
    }
}

/// What stays, what streams, what it takes and how fast it will be.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Each tile and where it lives, by its number.
    pub tiles: Vec<(Tile, Place)>,
    /// What regions of memory are aligned to.
    pub grain: usize,
    /// The slots that streamed tiles pass through: none where nothing streams.
    pub slots: usize,
    /// The size of each of these slots: the biggest streamed tile's capacity, rounded up to the grain of memory.
    pub slot_capacity: Bytes,
    /// The slots that demanded tiles pass through.
    pub demand_slots: usize,
    /// The size of each of these.
    pub demand_slot_capacity: Bytes,
    /// The tiles of each group, in order.
    pub groups: Vec<Vec<TileId>>,
    /// How many groups have a frame: memory that a group stays in once it was demanded, until others are used more.
    pub frames: usize,
    /// How many groups would have one, were there memory enough.
    pub most_frames: usize,
    /// What a frame is made of: a slot of this size for the first tile of a group, for the second ...
    pub frame_slots: Vec<Bytes>,
    /// The payload of the resident tiles.
    pub resident: Bytes,
    /// The payload that a pass walks, resident or not.
    pub walked: Bytes,
    /// What a pass is expected to demand besides.
    pub demanded_per_pass: Bytes,
    /// What the stream allocates: resident tiles, slots, demand slots and frames.
    pub arena: Bytes,
    /// What everything takes, by name; the sum is at most the budget.
    pub needs: Vec<Need>,
    /// The smallest budget that works.
    pub minimum: Bytes,
    /// The smallest budget in which everything that may stay does, once it was read.
    pub all_resident_at: Bytes,
    /// What a pass reads from disk, once the resident tiles are there and if all groups are demanded equally often.
    pub disk_bytes_per_pass: Bytes,
    /// How long reading that takes.
    pub disk_seconds: f64,
    /// How long computing on all weights takes.
    pub compute_seconds: f64,
    /// The stage that takes longer.
    pub bound: Bound,
}

impl Plan {
    /// The predicted time of a pass: stages overlap, so the longer of them.
    #[must_use]
    pub fn seconds_per_pass(&self) -> f64 {
        self.disk_seconds.max(self.compute_seconds)
    }

    /// What everything takes together: at most the budget.
    #[must_use]
    pub fn total(&self) -> Bytes {
        self.needs.iter().map(|need| need.bytes).sum()
    }

    /// Whether everything that may stay does, once it was read.
    #[must_use]
    pub fn all_resident(&self) -> bool {
        self.frames == self.most_frames && self.tiles.iter().all(|(_, place)| *place != Place::Streamed)
    }

    pub(crate) fn region(&self, tile: &Tile) -> Bytes {
        region(tile, self.grain)
    }

    /// The tiles of a pass, in order.
    pub fn walk(&self) -> impl Iterator<Item = TileId> {
        (0..)
            .map(TileId)
            .zip(&self.tiles)
            .filter(|(_, (_, place))| *place != Place::Demanded)
            .map(|(id, _)| id)
    }
}

/// The tiles that each group is made of.
fn groups(tiles: &[Tile]) -> Vec<Vec<TileId>> {
    let mut groups: Vec<Vec<TileId>> = Vec::new();
    for (id, tile) in (0..).map(TileId).zip(tiles) {
        if let Some(group) = tile.access.group() {
            groups.resize_with(groups.len().max(group.index() + 1), Vec::new);
            groups[group.index()].push(id);
        }
    }
    groups
}

/// Decides which tiles stay in the budget, and predicts what a pass takes.
///
/// Slots come first, then residency: with few slots the disk is not at its speed, and each resident tile saves the
/// same time wherever it is. Demanded tiles come last, since what is walked is used in every pass: groups of them get
/// frames when everything else stays. More budget never predicts a longer pass.
///
/// # Errors
/// [`Error::BudgetTooSmall`], with the smallest budget that works; [`Error::NoSlots`].
pub fn plan(request: &Request<'_>) -> Result<Plan, Error> {
    if request.slots == Slots::Exactly(0) {
        return Err(Error::NoSlots);
    }
    let of = |access| request.tiles.iter().filter(move |tile| tile.access == access).collect::<Vec<&Tile>>();
    let (walked, once) = (of(Access::Walked), of(Access::Once));
    let demanded = || request.tiles.iter().filter(|tile| matches!(tile.access, Access::Demanded(_)));
    let region = |tile: &Tile| region(tile, request.grain);
    let biggest = |tiles: &mut dyn Iterator<Item = &Tile>| tiles.map(region).max().unwrap_or(Bytes(0));
    let weights: Vec<Weight> =
        walked.iter().map(|tile| Weight { region: region(tile).get(), len: tile.len.get() }).collect();

    let all: Bytes = walked.iter().map(|tile| region(tile)).sum();
    let slot = biggest(&mut walked.iter().chain(&once).copied());
    let once_slot = biggest(&mut once.iter().copied());
    let demand_slot = biggest(&mut demanded());
    let (fewest_demanded, wanted_demanded) =
        slot_counts(request.demand_slots, demand_slot, demanded().count() as u64, Bytes(0));
    let least_pool = times(fewest_demanded, demand_slot);
    let groups = groups(request.tiles);
    let frame_slots = frame_slots(&groups, |tile: TileId| region(&request.tiles[tile.index()]));
    let frame: Bytes = frame_slots.iter().copied().sum();
    let all_frames = times(groups.len() as u64, frame);
    let fixed: Bytes = request.needs.iter().map(|need| need.bytes).sum();

    let (fewest, wanted) = slot_counts(request.slots, slot, (walked.len() + once.len()) as u64, all);
    // With all that is walked in memory, slots are needed for what passes through once.
    let everything = all + times(fewest.min(once.len() as u64), once_slot);
    let least = times(fewest, slot).min(everything);
    let most_frames = request.frames.min(groups.len());
    let may_all_stay = most_frames == groups.len();
    let wanted_pool = times(wanted_demanded, demand_slot);
    let everything_at = match most_frames {
        _ if may_all_stay => fixed + everything + all_frames,
        0 => fixed + everything + least_pool,
        // Frames come after all slots that are ever wanted.
        most => {
            let once_slots = times(wanted.min(once.len() as u64), once_slot);
            fixed + all + once_slots + wanted_pool + times(most as u64, frame)
        }
    };
    let minimum = (fixed + least_pool + least).min(everything_at);
    let needs = |resident: Bytes, slots: Bytes, pool: Bytes, frames: Bytes| {
        let own = [
            ("resident weights", resident),
            ("slots", slots),
            ("slots for demanded tiles", pool),
            ("frames for demanded tiles", frames),
        ];
        let own = own.into_iter().filter(|(_, bytes)| *bytes > Bytes(0));
        own.map(|(what, bytes)| Need::new(what, bytes)).chain(request.needs.iter().cloned()).collect()
    };
    if request.budget < minimum {
        let needs = if minimum == fixed + least_pool + least {
            needs(Bytes(0), least, least_pool, Bytes(0))
        } else {
            needs(all, everything.saturating_sub(all), Bytes(0), all_frames)
        };
        return Err(Error::BudgetTooSmall { budget: request.budget, minimum, needs });
    }

    // All groups have a frame, or some tiles pass through the pool.
    let all_framed = may_all_stay && request.budget >= everything_at;
    let least_demanded = if all_framed { all_frames } else { least_pool };
    let room = request.budget.saturating_sub(fixed + least_demanded);
    let resident = if everything <= room {
        vec![true; walked.len()]
    } else {
        // What does not make another slot makes no tile resident either: a smaller tile kept in its place would go
        // when the budget grows by enough for the slot, and the pass would take longer.
        let more_demanded = wanted_pool.saturating_sub(least_pool);
        residency::choose(&weights, room.saturating_sub(times(wanted, slot) + more_demanded).get())
    };

    let streamed = || walked.iter().zip(&resident).filter(|(_, resident)| !**resident).map(|(tile, _)| *tile);
    let kept = || walked.iter().zip(&resident).filter(|(_, resident)| **resident).map(|(tile, _)| *tile);
    let passing = (streamed().count() + once.len()) as u64;
    let slot_capacity = biggest(&mut streamed().chain(once.iter().copied()));
    let resident_regions = kept().map(region).sum();
    let affordable =
        room.saturating_sub(resident_regions).get().checked_div(slot_capacity.get()).unwrap_or(0);
    let slots = wanted.min(affordable).max(fewest).min(passing);
    let slot_bytes = times(slots, slot_capacity);
    let (demand_slots, frames) = if all_framed {
        (0, groups.len())
    } else {
        let fitting = |left: Bytes, one: Bytes| left.get().checked_div(one.get()).unwrap_or(0);
        let left = room.saturating_sub(resident_regions) + least_pool;
        let pool = fitting(left.saturating_sub(slot_bytes), demand_slot);
        // Frames get what no slot will ever want, or more memory could mean fewer of them.
        let wanted_slots = times(wanted.min(passing), slot_capacity) + wanted_pool;
        let frames = fitting(left.saturating_sub(wanted_slots), frame) as usize;
        let most = if streamed().next().is_none() { most_frames } else { 0 };
        (wanted_demanded.min(pool).max(fewest_demanded), most.min(frames))
    };
    let pool = times(demand_slots, demand_slot);
    let frame_bytes = times(frames as u64, frame);
    let walked_len: Bytes = walked.iter().map(|tile| tile.len).sum();
    let unframed = (groups.len() - frames) as f64 / groups.len().max(1) as f64;
    let missed = Bytes((request.demanded_per_pass.get() as f64 * unframed) as u64);
    let disk_bytes_per_pass =
        streamed().map(|tile| tile.len).sum::<Bytes>() + request.extra_per_pass + missed;
    let disk_seconds = request.disk.seconds(disk_bytes_per_pass);
    let compute_seconds =
        request.compute.seconds(walked_len + request.extra_per_pass + request.demanded_per_pass);

    let mut places = resident.iter().map(|&kept| if kept { Place::Resident } else { Place::Streamed });
    let place = |tile: &Tile| match tile.access {
        Access::Demanded(_) => Place::Demanded,
        Access::Once => Place::Once,
        Access::Walked => places.next().unwrap_or(Place::Streamed),
    };
    let places: Vec<Place> = request.tiles.iter().map(place).collect();
    Ok(Plan {
        tiles: request.tiles.iter().copied().zip(places).collect(),
        grain: request.grain,
        slots: slots as usize,
        slot_capacity,
        demand_slots: demand_slots as usize,
        demand_slot_capacity: demand_slot,
        groups,
        frames,
        most_frames,
        frame_slots,
        resident: kept().map(|tile| tile.len).sum(),
        walked: walked_len,
        demanded_per_pass: request.demanded_per_pass,
        arena: resident_regions + slot_bytes + pool + frame_bytes,
        needs: needs(resident_regions, slot_bytes, pool, frame_bytes),
        minimum,
        all_resident_at: everything_at,
        disk_bytes_per_pass,
        disk_seconds,
        compute_seconds,
        bound: if disk_seconds > compute_seconds { Bound::Disk } else { Bound::Compute },
    })
}

/// The fewest slots that will do for a walk of so many bytes, and how many it should be.
fn slot_counts(slots: Slots, slot: Bytes, tiles: u64, walk: Bytes) -> (u64, u64) {
    match slots {
        Slots::Exactly(count) => ((count as u64).min(tiles), (count as u64).min(tiles)),
        Slots::Auto | Slots::AtMost(_) => {
            let (fewest, most) = match slots {
                Slots::AtMost(most) => (0, most as u64),
                _ => (FEWEST_SLOT_BYTES.min(walk.get() / 8) / slot.get().max(1), u64::MAX),
            };
            let count = DEFAULT_SLOT_BYTES / slot.get().max(1);
            let count = count.clamp(*DEFAULT_SLOTS.start(), *DEFAULT_SLOTS.end()).min(most).max(FEWEST_SLOTS);
            (fewest.clamp(FEWEST_SLOTS, count).min(tiles), count.min(tiles))
        }
    }
}

/// Slots that any group fits into, tile by tile.
fn frame_slots(groups: &[Vec<TileId>], region: impl Fn(TileId) -> Bytes) -> Vec<Bytes> {
    let mut slots: Vec<Bytes> = Vec::new();
    for group in groups {
        slots.resize(slots.len().max(group.len()), Bytes(0));
        for (slot, tile) in slots.iter_mut().zip(group) {
            *slot = (*slot).max(region(*tile));
        }
    }
    slots
}

/// What a tile takes in memory.
fn region(tile: &Tile, grain: usize) -> Bytes {
    let grain = grain.max(1) as u64;
    Bytes(tile.capacity.max(tile.len).get().div_ceil(grain).max(1).saturating_mul(grain))
}

fn times(count: u64, bytes: Bytes) -> Bytes {
    Bytes(bytes.get().saturating_mul(count))
}
