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
        }
    }

    /// The group that a tile belongs to.
    pub(crate) fn group_of(&self, tile: TileId) -> Option<Group> {
        self.group_of.get(tile.index()).copied().flatten()
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
        missed.retain(|group| self.admit(*group, groups));
        let (mut hits, mut reads) = (0, Vec::new());
        for &group in groups {
            // It is read once, whichever of several times it is asked for.
            let new = missed.iter().position(|new| *new == group).map(|index| missed.swap_remove(index));
            let frame = self.demands.frames.of(group);
            hits += u64::from(frame.is_some() && new.is_none());
            for (place, &tile) in self.demands.groups[group.index()].iter().enumerate() {
                let ticket = if frame.is_some() { None } else { Some(self.demands.next_ticket) };
                self.demands.next_ticket += u64::from(ticket.is_some());
                match (frame, ticket) {
                    (Some(frame), _) if new.is_some() => {
                        reads.push((Target::Frame(Seat { frame, place }), tile));
                    }
                    (_, Some(ticket)) => reads.push((Target::Pool(ticket), tile)),
                    _ => {}
                }
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

    /// Gives a group a frame, if it is used more than one that may leave: one that is not demanded now, is here to the
    /// last tile, and is not being copied to a device.
    fn admit(&mut self, group: Group, demanded: &[Group]) -> bool {
        let Demands { groups, frames, .. } = &mut self.demands;
        let at_rest = |tile: &TileId| {
            self.resident[tile.index()].as_ref().is_some_and(|slot| Arc::strong_count(slot) == 1)
        };
        let may_leave = |held: Group| !demanded.contains(&held) && groups[held.index()].iter().all(at_rest);
        let admission = frames.admit(group, may_leave);
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
