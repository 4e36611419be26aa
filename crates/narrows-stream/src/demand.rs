//! Tiles that a pass asks for by group, from the consumer's side.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use narrows_staging::{InUse, Memory, Region, Slot};

use crate::frames::{Admission, Frames};
use crate::reader::{Request, Seat, Target};
use crate::stream::Stream;
use crate::{Error, Group, Plan, TileId};

/// What was demanded, and where it is.
pub(crate) struct Demands<M: Memory = Region> {
    groups: Vec<Vec<TileId>>,
    /// By tile.
    group_of: Vec<Option<Group>>,
    frames: Frames,
    /// What was asked for and not taken yet.
    queue: VecDeque<Wanted>,
    /// Tiles of the pool that arrived before they were taken.
    arrived: BTreeMap<u64, Slot<InUse, M>>,
    /// Tickets below this are wanted by nobody any more.
    ticket: u64,
    next_ticket: u64,
    /// Groups with frames that are being prefetched, as far as it is not known that they are here.
    prefetching: Vec<Group>,
}

/// A demanded tile that is here.
pub(crate) struct Arrived<M: Memory> {
    pub(crate) tile: TileId,
    /// None if the tile stays.
    pub(crate) slot: Option<Slot<InUse, M>>,
}

#[derive(Clone, Copy)]
struct Wanted {
    tile: TileId,
    /// None if the tile stays.
    ticket: Option<u64>,
}

impl<M: Memory> Demands<M> {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            groups: plan.groups.clone(),
            group_of: plan.tiles.iter().map(|(tile, _)| tile.access.group()).collect(),
            frames: Frames::new(plan.groups.len(), plan.frames),
            queue: VecDeque::new(),
            arrived: BTreeMap::new(),
            ticket: 0,
            next_ticket: 0,
            prefetching: Vec::new(),
        }
    }

    /// The groups that tiles belong to, in their order.
    pub(crate) fn groups_of(&self, tiles: &[TileId]) -> Vec<Group> {
        let group = |tile: &TileId| self.group_of.get(tile.index()).copied().flatten();
        let mut groups: Vec<_> = tiles.iter().filter_map(group).collect();
        groups.dedup();
        groups
    }

    fn tiles(&self, group: Group) -> &[TileId] {
        self.groups.get(group.index()).map_or(&[], Vec::as_slice)
    }
}

impl<M: Memory> Stream<M> {
    /// Asks for groups, and forgets what was asked for before.
    pub(crate) fn demand(&mut self, groups: &[Group]) -> Result<(), Error> {
        if let Some(&group) = groups.iter().find(|group| self.demands.tiles(**group).is_empty()) {
            return Err(Error::NoGroup { group });
        }
        self.demands.queue.clear();
        self.forget_tickets_below(self.demands.next_ticket);
        groups.iter().for_each(|group| self.demands.frames.used(*group));
        let mut missed: Vec<_> =
            groups.iter().copied().filter(|group| self.demands.frames.of(*group).is_none()).collect();
        // Those used most choose their frames first.
        self.demands.frames.sort(&mut missed);
        missed.dedup();
        missed.retain(|group| self.admit(*group, 0.0, groups));
        self.note_prefetched();
        let (mut hits, mut reads) = (0, Vec::new());
        for &group in groups {
            // It is read once, whichever of several times it is asked for.
            let new = missed.iter().position(|new| *new == group).map(|index| missed.swap_remove(index));
            let frame = self.demands.frames.of(group);
            hits += u64::from(frame.is_some() && new.is_none());
            for (place, &tile) in self.demands.groups[group.index()].iter().enumerate() {
                let ticket = if frame.is_some() { None } else { Some(self.demands.next_ticket) };
                self.demands.next_ticket += u64::from(ticket.is_some());
                let seat = frame.map(|frame| Seat { frame, place });
                let target = match (seat, ticket) {
                    (Some(seat), _) if new.is_some() => Some(Target::Frame(seat)),
                    // It has waited long enough.
                    (Some(seat), _) if self.demands.prefetching.contains(&group) => {
                        Some(Target::Prefetched(seat))
                    }
                    (_, ticket) => ticket.map(Target::Pool),
                };
                reads.extend(target.map(|target| (target, tile)));
                self.demands.queue.push_back(Wanted { tile, ticket });
            }
        }
        let demanded = self.demands.queue.iter().map(|wanted| self.tiles[wanted.tile.index()].0).sum();
        let mut meters = self.shared.meters();
        meters.demands.demanded += demanded;
        meters.demands.hits += hits;
        meters.demands.misses += groups.len() as u64 - hits;
        drop(meters);
        self.reader.send(Request::Demand(reads));
        Ok(())
    }

    /// See [`Pass::prefetch`](crate::Pass::prefetch).
    pub(crate) fn prefetch(&mut self, groups: &[Group]) {
        self.note_prefetched();
        let new = |group: &Group| {
            let tiles = self.demands.tiles(*group);
            !tiles.is_empty() && self.demands.frames.of(*group).is_none()
        };
        let mut wanted: Vec<_> = groups.iter().copied().filter(new).collect();
        if wanted.is_empty() || !self.demands.prefetching.is_empty() {
            return;
        }
        if self.feed.is_some() {
            // What is in the memory of the host is near enough; what is not is asked for there.
            let tiles = wanted.iter().flat_map(|group| self.demands.tiles(*group).iter().copied()).collect();
            return self.reader.send(Request::Announce(tiles));
        }
        self.demands.frames.sort(&mut wanted);
        wanted.dedup();
        let demanded: Vec<_> = self.demands.queue.iter().map(|wanted| wanted.tile).collect();
        let mut kept = self.demands.groups_of(&demanded);
        kept.extend_from_slice(groups);
        wanted.retain(|group| self.admit(*group, 1.0, &kept));
        let mut reads = Vec::new();
        for group in &wanted {
            let Some(frame) = self.demands.frames.of(*group) else { continue };
            let seat = |place| Seat { frame, place };
            reads.extend((0..).map(seat).zip(self.demands.tiles(*group).iter().copied()));
        }
        self.demands.prefetching = wanted;
        self.reader.send(Request::Prefetch(reads));
    }

    /// Whether a group may have to be read when it is demanded.
    pub(crate) fn may_miss(&self) -> bool {
        self.demands.frames.count() < self.demands.groups.len()
    }

    /// Which groups that were prefetched are here by now.
    fn note_prefetched(&mut self) {
        let Demands { groups, prefetching, .. } = &mut self.demands;
        let coming =
            |group: &Group| groups[group.index()].iter().any(|tile| self.resident[tile.index()].is_none());
        prefetching.retain(coming);
    }

    /// Gives a group a frame if, with `expected` uses to come, it is used more than one that may leave: one that is not
    /// demanded now, is here to the last tile, and is not being copied to a device.
    fn admit(&mut self, group: Group, expected: f64, demanded: &[Group]) -> bool {
        let Demands { groups, frames, .. } = &mut self.demands;
        let at_rest = |tile: &TileId| {
            self.resident[tile.index()].as_ref().is_some_and(|slot| Arc::strong_count(slot) == 1)
        };
        let may_leave = |held: Group| !demanded.contains(&held) && groups[held.index()].iter().all(at_rest);
        let admission = frames.admit(group, expected, may_leave);
        if let Some(admission) = &admission {
            self.vacate(admission);
        }
        admission.is_some()
    }

    /// Empties a frame for those who come.
    fn vacate(&mut self, admission: &Admission) {
        let Some(leaves) = admission.leaves else { return };
        for (place, tile) in self.demands.groups[leaves.index()].iter().enumerate() {
            if let Some(slot) = self.resident[tile.index()].take().and_then(Arc::into_inner) {
                let seat = Seat { frame: admission.frame, place };
                self.reader.send(Request::Vacated(seat, slot.release()));
            }
        }
    }

    /// Waits for the next tile that was asked for: in a slot that passes by, or none if the tile stays.
    pub(crate) fn arrive_demanded(&mut self) -> Result<Option<Arrived<M>>, Error> {
        let Some(&wanted) = self.demands.queue.front() else { return Ok(None) };
        let slot = self.wait_for(|stream| stream.take_demanded(wanted))?;
        Ok(Some(Arrived { tile: wanted.tile, slot }))
    }

    /// Whether the next tile that was asked for is this one, when those before it are forgotten.
    pub(crate) fn skip_to_demanded(&mut self, tile: TileId) -> bool {
        while let Some(wanted) = self.demands.queue.front().filter(|wanted| wanted.tile != tile) {
            if let Some(ticket) = wanted.ticket {
                self.forget_tickets_below(ticket + 1);
            }
            self.demands.queue.pop_front();
        }
        !self.demands.queue.is_empty()
    }

    /// As [`Stream::arrive_demanded`], but none if the tile is not here yet.
    pub(crate) fn try_demanded(&mut self) -> Option<Option<Slot<InUse, M>>> {
        let wanted = *self.demands.queue.front()?;
        self.take_demanded(wanted)
    }

    fn take_demanded(&mut self, wanted: Wanted) -> Option<Option<Slot<InUse, M>>> {
        let slot = match wanted.ticket {
            Some(ticket) => {
                let slot = self.demands.arrived.remove(&ticket)?;
                self.demands.ticket = ticket + 1;
                Some(slot)
            }
            None => {
                self.resident[wanted.tile.index()].as_ref()?;
                None
            }
        };
        self.demands.queue.pop_front();
        Some(slot)
    }

    /// A tile of the pool is here.
    pub(crate) fn accept_ticket(&mut self, ticket: u64, slot: Slot<InUse, M>) {
        if ticket < self.demands.ticket {
            self.reader.free_demand(slot.release());
        } else {
            self.demands.arrived.insert(ticket, slot);
        }
    }

    /// What nobody takes any more.
    pub(crate) fn forget_demand(&mut self) {
        if !self.demands.queue.is_empty() {
            self.demands.queue.clear();
            self.forget_tickets_below(self.demands.next_ticket);
            self.reader.send(Request::Demand(Vec::new()));
        }
    }

    /// What was used in this pass counts less from the next on.
    pub(crate) fn age_demands(&mut self) {
        self.demands.frames.age();
    }

    fn forget_tickets_below(&mut self, ticket: u64) {
        self.demands.ticket = ticket;
        while let Some(entry) = self.demands.arrived.first_entry().filter(|entry| *entry.key() < ticket) {
            self.reader.free_demand(entry.remove().release());
        }
    }
}
