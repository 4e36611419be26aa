//! The thread that owns the source and keeps it busy.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use narrows_staging::{Free, InUse, Memory, Region, Slot};

use crate::shared::Shared;
use crate::trace::{Event, Stage};
use crate::{Bytes, Completed, Error, TileId, TileSource};

/// How long to wait for a source that cannot be woken, before looking for free slots.
const POLL: Duration = Duration::from_millis(1);

/// In the first pass resident tiles need no slot, so nothing else limits how many are in flight.
const READS_AT_ONCE: usize = 16;

/// Enough to keep a disk going.
const PREFETCHES_AT_ONCE: usize = 2;

/// What the consumer tells the reader. That it is gone, it tells by closing the channel.
pub(crate) enum Request<M = Region> {
    /// A slot of the walk is free again.
    Freed(Slot<Free, M>),
    /// A slot for demanded tiles is free again.
    FreedDemand(Slot<Free, M>),
    /// The tile at this index of the walk, which is read once, was left out.
    Again(usize),
    /// A slot of a frame is free: its group has left.
    Vacated(Seat, Slot<Free, M>),
    /// Forget what was demanded before and not begun, but for what has a frame; read these.
    Demand(Vec<(Target, TileId)>),
    /// Read these when there is nothing else to read.
    Prefetch(Vec<(Seat, TileId)>),
    /// These may be demanded soon: for a source that can get them nearer.
    Announce(Vec<TileId>),
}

/// A slot of a frame: the frame, and the place of the tile in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub(crate) frame: usize,
    pub(crate) place: usize,
}

/// Where a demanded tile goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Into the next free slot for demanded tiles; it is told by this ticket.
    Pool(u64),
    /// Into the frame of its group.
    Frame(Seat),
    /// The same, but it is being prefetched, if it was not read already.
    Prefetched(Seat),
}

impl Target {
    const fn seat(self) -> Option<Seat> {
        match self {
            Self::Pool(_) => None,
            Self::Frame(seat) | Self::Prefetched(seat) => Some(seat),
        }
    }
}

/// A tile that has arrived.
pub(crate) struct Delivery<M = Region> {
    pub(crate) purpose: Purpose,
    pub(crate) tile: TileId,
    pub(crate) slot: Slot<InUse, M>,
}

/// What a tile was read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To stay.
    Resident,
    /// For this step of the walk. Steps count on from pass to pass.
    Step(u64),
    /// For a demand.
    Ticket(u64),
    /// To stay in the frame of its group.
    Frame,
    /// The same, before it is demanded.
    Prefetch,
}

/// A tile of the walk, from the reader's side.
pub(crate) struct Walked<M = Region> {
    pub(crate) tile: TileId,
    pub(crate) home: Home<M>,
}

/// Where a tile of the walk goes.
pub(crate) enum Home<M = Region> {
    /// Into the next free slot, in each pass.
    Slots,
    /// Into the next free slot, until that was done once.
    Once {
        /// Whether it was.
        done: bool,
    },
    /// Into memory of its own, which is here until the tile is read.
    Own(Option<Slot<Free, M>>),
}

struct Pending {
    purpose: Purpose,
    tile: TileId,
    /// The pass that it is read for.
    pass: u64,
}

pub(crate) struct Reader<S, M = Region> {
    pub(crate) source: S,
    pub(crate) walk: Vec<Walked<M>>,
    /// The payload of every tile, by its number.
    pub(crate) lens: Vec<Bytes>,
    pub(crate) slots: Vec<Slot<Free, M>>,
    pub(crate) demand_slots: Vec<Slot<Free, M>>,
    /// Slots of frames whose tiles are not read yet.
    pub(crate) seats: BTreeMap<Seat, Slot<Free, M>>,
    pub(crate) requests: Receiver<Request<M>>,
    pub(crate) deliveries: Sender<Result<Delivery<M>, Error>>,
    pub(crate) shared: Arc<Shared>,
    /// Whether a request ends a wait of the source.
    pub(crate) woken: bool,
    pub(crate) state: State,
}

#[derive(Default)]
pub(crate) struct State {
    /// The next step of the walk that may need reading.
    cursor: u64,
    demanded: VecDeque<(Target, TileId)>,
    prefetch: VecDeque<(Seat, TileId)>,
    pending: HashMap<u64, Pending>,
    next_tag: u64,
}

impl State {
    /// Nothing done yet; reads are numbered from `next_tag`.
    pub(crate) fn counting_from(next_tag: u64) -> Self {
        Self { next_tag, ..Self::default() }
    }
}

impl<S: TileSource<M>, M: Memory> Reader<S, M> {
    /// Reads until the consumer is gone or a read has failed.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.serve() {
            // A consumer that is gone does not want to know.
            let _ = self.deliveries.send(Err(error));
        }
        // What is in flight writes to slots, so they outlive it.
        while self.source.in_flight() > 0 {
            let _ = self.source.wait(None);
        }
        self.shared.meters().disk.idle(Instant::now());
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            loop {
                match self.requests.try_recv() {
                    Ok(request) => self.accept(request)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.submit_demanded()?;
            let starved = self.submit_walk()?;
            self.submit_prefetch()?;
            if self.source.in_flight() > 0 {
                let timeout = if self.woken { None } else { Some(POLL) };
                if let Some(completed) = self.source.wait(timeout) {
                    self.deliver(completed)?;
                }
            } else {
                if starved {
                    self.shared.meters().disk.stall(Instant::now());
                }
                match self.requests.recv() {
                    Ok(request) => self.accept(request)?,
                    Err(_) => return Ok(()),
                }
            }
        }
    }

    fn accept(&mut self, request: Request<M>) -> Result<(), Error> {
        match request {
            Request::Freed(slot) => self.slots.push(slot),
            Request::FreedDemand(slot) => self.demand_slots.push(slot),
            Request::Again(index) => self.walk[index].home = Home::Once { done: false },
            Request::Vacated(seat, slot) => {
                // Whoever was asked for here has come and left: a demand may have overtaken its prefetch. Read again,
                // it would take the seat of the one who comes.
                self.state.demanded.retain(|(target, _)| target.seat() != Some(seat));
                self.state.prefetch.retain(|(other, _)| *other != seat);
                self.seats.insert(seat, slot);
            }
            Request::Demand(tiles) => {
                // A group whose frame is half full could neither be used nor leave.
                let demanded = &mut self.state.demanded;
                let seats: Vec<_> = tiles.iter().filter_map(|(target, _)| target.seat()).collect();
                demanded.retain(|(target, _)| target.seat().is_some_and(|seat| !seats.contains(&seat)));
                demanded.extend(tiles);
                let expected: Vec<_> = demanded.iter().map(|(_, tile)| *tile).collect();
                let first = expected.first().copied().unwrap_or(TileId(0));
                self.source.expect(&expected).map_err(|error| self.failed(first, error))?;
            }
            Request::Prefetch(tiles) => self.state.prefetch.extend(tiles),
            Request::Announce(tiles) => self.source.announce(&tiles),
        }
        Ok(())
    }

    /// Somebody waits for these, so they go before what is read ahead.
    fn submit_demanded(&mut self) -> Result<(), Error> {
        while let Some(&(target, tile)) = self.state.demanded.front() {
            let (purpose, slot) = match target {
                Target::Pool(ticket) => (Purpose::Ticket(ticket), self.demand_slots.pop()),
                Target::Frame(seat) => (Purpose::Frame, self.seats.remove(&seat)),
                Target::Prefetched(seat) => (Purpose::Prefetch, self.seats.remove(&seat)),
            };
            let Some(slot) = slot else {
                match target {
                    Target::Pool(_) => break,
                    // A seat that is not free has its tile, or will have it soon.
                    Target::Frame(_) | Target::Prefetched(_) => _ = self.state.demanded.pop_front(),
                }
                continue;
            };
            self.state.demanded.pop_front();
            let pass = self.pass_of(self.shared.position());
            self.submit(Pending { purpose, tile, pass }, slot)?;
        }
        Ok(())
    }

    /// Nobody waits for these, so they are read a few at a time, and only while nothing is read that somebody waits
    /// for: what is demanded meanwhile finds the disk nearly free.
    fn submit_prefetch(&mut self) -> Result<(), Error> {
        while self.source.in_flight() < PREFETCHES_AT_ONCE && self.state.demanded.is_empty() {
            let prefetching = |pending: &Pending| pending.purpose == Purpose::Prefetch;
            if !self.state.pending.values().all(prefetching) {
                break;
            }
            let Some((seat, tile)) = self.state.prefetch.pop_front() else { break };
            // One that was demanded meanwhile is there.
            if let Some(slot) = self.seats.remove(&seat) {
                let pass = self.pass_of(self.shared.position());
                self.submit(Pending { purpose: Purpose::Prefetch, tile, pass }, slot)?;
            }
        }
        Ok(())
    }

    /// Reads ahead as far as there are slots; true if it could go on, had it another slot.
    fn submit_walk(&mut self) -> Result<bool, Error> {
        while let Some((step, index)) = self.next_step() {
            let Walked { tile, home } = &mut self.walk[index];
            let tile = *tile;
            let (purpose, slot) = match home {
                // The tile was not read yet: it would be no step otherwise.
                Home::Own(slot) if self.source.in_flight() < READS_AT_ONCE => {
                    (Purpose::Resident, slot.take())
                }
                Home::Own(_) => return Ok(false),
                Home::Slots => (Purpose::Step(step), self.slots.pop()),
                Home::Once { done } => {
                    let slot = self.slots.pop();
                    *done = slot.is_some();
                    (Purpose::Step(step), slot)
                }
            };
            let Some(slot) = slot else { return Ok(true) };
            self.state.cursor = step + 1;
            let pass = self.pass_of(step);
            self.submit(Pending { purpose, tile, pass }, slot)?;
        }
        Ok(false)
    }

    /// The next step that needs a read, with its index in the walk; none if all tiles are in memory to stay.
    fn next_step(&mut self) -> Option<(u64, usize)> {
        // What the consumer has passed or skipped is not read any more.
        let from = self.state.cursor.max(self.shared.position());
        let count = self.walk.len() as u64;
        let steps = (from..from + count).map(|step| (step, (step % count) as usize));
        let unread =
            |home: &Home<M>| matches!(home, Home::Slots | Home::Once { done: false } | Home::Own(Some(_)));
        steps.into_iter().find(|&(_, index)| unread(&self.walk[index].home))
    }

    fn submit(&mut self, pending: Pending, slot: Slot<Free, M>) -> Result<(), Error> {
        let tag = self.state.next_tag;
        self.state.next_tag += 1;
        // Before the read, so that the disk is never seen moving bytes while idle.
        self.shared.meters().disk.begin(Instant::now());
        let tile = pending.tile;
        self.state.pending.insert(tag, pending);
        self.source.submit(tile, slot.fill(tag)).map_err(|(source, _)| self.failed(tile, source))
    }

    fn deliver(&mut self, completed: Completed<M>) -> Result<(), Error> {
        let Completed { result, tag, moved, submitted, completed } = completed;
        let idle = self.source.in_flight() == 0;
        let Some(Pending { purpose, tile, pass }) = self.state.pending.remove(&tag) else {
            return Err(Error::UnknownRead { tag });
        };
        if idle {
            self.shared.meters().disk.idle(completed);
        }
        let slot = result.map_err(|(source, _)| self.failed(tile, source))?.take();
        let (len, found) = (self.lens[tile.index()], Bytes(slot.payload().len() as u64));
        if found != len {
            return Err(Error::WrongLength { tile: (self.shared.describe)(tile), found, expected: len });
        }
        let mut meters = self.shared.meters();
        meters.disk.done(len, moved, completed);
        match purpose {
            Purpose::Resident => meters.resident += len,
            Purpose::Ticket(_) | Purpose::Frame => meters.demands.bytes += len,
            Purpose::Prefetch => meters.demands.prefetched += len,
            Purpose::Step(_) => {}
        }
        drop(meters);
        let (start, end) = (submitted, completed);
        if !self.source.traces_itself() {
            self.shared.record(Event { stage: Stage::Disk, tile, pass, read: tag, bytes: moved, start, end });
        }
        // If the consumer is gone, the next look at its requests ends this.
        let _ = self.deliveries.send(Ok(Delivery { purpose, tile, slot }));
        Ok(())
    }

    fn failed(&self, tile: TileId, source: crate::SourceError) -> Error {
        Error::Read { tile: (self.shared.describe)(tile), source }
    }

    fn pass_of(&self, step: u64) -> u64 {
        step / (self.walk.len() as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrows_staging::Filling;

    /// Memory in which nothing is stored.
    #[derive(Debug)]
    struct Nowhere;

    impl Memory for Nowhere {
        fn capacity(&self) -> usize {
            4096
        }
    }

    /// A source that only notes what it is asked for.
    #[derive(Default)]
    struct Notes(Vec<(TileId, Slot<Filling, Nowhere>)>);

    impl TileSource<Nowhere> for Notes {
        fn capacity(&self, _: TileId) -> usize {
            4096
        }

        fn submit(
            &mut self,
            tile: TileId,
            slot: Slot<Filling, Nowhere>,
        ) -> Result<(), (crate::SourceError, Slot<Free, Nowhere>)> {
            self.0.push((tile, slot));
            Ok(())
        }

        fn wait(&mut self, _: Option<Duration>) -> Option<Completed<Nowhere>> {
            None
        }

        fn in_flight(&self) -> usize {
            self.0.len()
        }
    }

    const SEAT: Seat = Seat { frame: 0, place: 0 };

    /// What is read after these requests, which wait for the reader before it looks at the first of them.
    fn reads(free: &[Seat], requests: Vec<Request<Nowhere>>) -> Vec<TileId> {
        let (_requests, requested) = crossbeam_channel::unbounded();
        let mut reader = Reader {
            source: Notes::default(),
            walk: Vec::new(),
            lens: vec![Bytes(1); 2],
            slots: Vec::new(),
            demand_slots: Vec::new(),
            seats: free.iter().map(|&seat| (seat, Slot::new(Nowhere))).collect(),
            requests: requested,
            deliveries: crossbeam_channel::unbounded().0,
            shared: Arc::new(Shared::new(Arc::new(|tile| format!("{tile:?}")), None)),
            woken: true,
            state: State::default(),
        };
        for request in requests {
            reader.accept(request).unwrap();
        }
        reader.submit_demanded().unwrap();
        reader.submit_prefetch().unwrap();
        reader.source.0.into_iter().map(|(tile, _)| tile).collect()
    }

    /// The first was prefetched, demanded, found there and sent away, all before the reader heard of the demand.
    #[test]
    fn who_has_left_does_not_take_the_seat_of_who_comes() {
        let [first, second] = [TileId(0), TileId(1)];
        let vacated = || Request::Vacated(SEAT, Slot::new(Nowhere));
        let demands = [Target::Frame(SEAT), Target::Prefetched(SEAT)].map(|seat| vec![(seat, first)]);
        for demand in demands {
            let next = Request::Prefetch(vec![(SEAT, second)]);
            assert_eq!(reads(&[], vec![Request::Demand(demand), vacated(), next]), [second]);
        }
        let prefetches = [first, second].map(|tile| Request::Prefetch(vec![(SEAT, tile)]));
        let [first_asked, second_asked] = prefetches;
        assert_eq!(reads(&[], vec![first_asked, vacated(), second_asked]), [second]);
    }

    #[test]
    fn what_is_demanded_is_not_prefetched_again() {
        let tile = TileId(0);
        let prefetch = Request::Prefetch(vec![(SEAT, tile)]);
        let demand = Request::Demand(vec![(Target::Prefetched(SEAT), tile)]);
        assert_eq!(reads(&[SEAT], vec![prefetch, demand]), [tile]);
    }
}
