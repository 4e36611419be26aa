//! A stream: the memory that tiles live in and pass through, and the thread that reads them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use narrows_staging::device::{DeviceRegion, Events, Source};
use narrows_staging::{Arena, Free, InUse, Memory, Region, Slot};

use crate::clock::lock;
use crate::demand::Demands;
use crate::pass::Pass;
use crate::reader::{Delivery, Home, Purpose, Reader, Request, Seat, State, Walked};
use crate::shared::{Feed, Shared};
use crate::{Bytes, Error, Monitor, Place, Plan, Stats, TileId, TileSource, Trace, Upload, Waker};

/// Says what a tile is, for errors and traces: `model.layers.3.mlp.up_proj.weight in model-00001.safetensors`.
pub type Describe = Arc<dyn Fn(TileId) -> String + Send + Sync>;

/// What a stream can be told besides its plan.
#[non_exhaustive]
pub struct Options {
    /// Names tiles. The default gives their numbers.
    pub describe: Describe,
    /// Records what happens, for [`Monitor::write_trace`].
    pub trace: Option<Trace>,
}

impl Default for Options {
    fn default() -> Self {
        Self { describe: Arc::new(|tile| format!("tile {}", tile.0)), trace: None }
    }
}

impl Options {
    /// Sets how tiles are named.
    #[must_use]
    pub fn describe(mut self, describe: impl Fn(TileId) -> String + Send + Sync + 'static) -> Self {
        self.describe = Arc::new(describe);
        self
    }

    /// Sets what records.
    #[must_use]
    pub fn trace(mut self, trace: impl Into<Option<Trace>>) -> Self {
        self.trace = trace.into();
        self
    }
}

/// Delivers the tiles of a plan, pass after pass.
///
/// A thread reads ahead for as long as there are free slots, across the end of a pass too: from its start to its
/// end a stream keeps the disk busy. The first pass reads all tiles in order, and the resident ones stay where they
/// are read to.
///
/// The first read that fails ends the stream: its error is the result of the next call, and each later call gives
/// [`Error::Ended`]. Dropping the stream at any moment ends it too; it waits for reads in flight, since they write
/// to memory, but for nothing else.
pub struct Stream<M: Memory = Region> {
    pub(crate) walk: Vec<(TileId, Place)>,
    pub(crate) tiles: Vec<(Bytes, Place)>,
    /// The next step of the walk. Steps count on from pass to pass.
    pub(crate) position: u64,
    /// Tiles that are read once, and were handed out.
    pub(crate) gone: Vec<bool>,
    /// Tiles that stay: for good, or as long as their group has a frame.
    pub(crate) resident: Vec<Option<Arc<Slot<InUse, M>>>>,
    /// Tiles that arrived before they were asked for, by step.
    pub(crate) ahead: BTreeMap<u64, Slot<InUse, M>>,
    pub(crate) demands: Demands<M>,
    pub(crate) reader: ToReader<M>,
    pub(crate) shared: Arc<Shared>,
    /// What the tiles come from, if that is another stream.
    pub(crate) feed: Option<Feed>,
    deliveries: Receiver<Result<Delivery<M>, Error>>,
    ended: bool,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Carves the memory of the plan ([`Plan::arena`] bytes) out of the arena and starts to read.
    ///
    /// The arena is the caller's, so that a source can make it known to the system before (io_uring pins it).
    ///
    /// # Errors
    /// [`Error::Capacity`] if the source needs more memory for a tile than planned, [`Error::Staging`] if the arena
    /// is too small, [`Error::Thread`].
    pub fn start(
        plan: &Plan,
        arena: &Arena,
        source: impl TileSource + 'static,
        options: Options,
    ) -> Result<Self, Error> {
        let carve = |bytes: Bytes| arena.carve(usize::try_from(bytes.get()).unwrap_or(usize::MAX));
        Self::start_in(plan, carve, source, options)
    }

    /// Goes on to the next time that the walk comes to `tile`, or to it among those that were demanded, and takes it
    /// for a copy, if it is here already. This is instead of a [pass](Stream::pass), for one who keeps a tile while
    /// others come.
    ///
    /// # Errors
    /// As [`Pass::next`].
    pub(crate) fn try_fetch(&mut self, tile: TileId) -> Result<Option<Source>, Error> {
        let place = self.go_to_tile(tile)?;
        self.take_deliveries()?;
        let here = match place {
            Place::Demanded => {
                let taken = self.try_demanded();
                return taken.map(|slot| self.source(tile, slot)).transpose();
            }
            Place::Resident => self.resident[tile.index()].is_some(),
            _ => self.ahead.contains_key(&self.position),
        };
        if here { self.fetch(tile).map(Some) } else { Ok(None) }
    }

    /// As [`Stream::try_fetch`], but waits until the tile is here.
    ///
    /// # Errors
    /// As [`Pass::next`].
    pub(crate) fn fetch(&mut self, tile: TileId) -> Result<Source, Error> {
        let slot = match self.go_to_tile(tile)? {
            Place::Demanded => self.arrive_demanded()?.and_then(|arrived| arrived.slot),
            place => self.arrive(tile, place)?,
        };
        self.source(tile, slot)
    }

    fn source(&self, tile: TileId, slot: Option<Slot<InUse>>) -> Result<Source, Error> {
        let staying = || self.resident[tile.index()].clone();
        let source = slot.map(Source::Passing).or_else(|| staying().map(Source::Staying));
        source.ok_or(Error::Gone { tile })
    }

    /// Gives back the slot of a tile that was fetched.
    pub(crate) fn give_back(&self, tile: TileId, slot: Slot<InUse>) {
        match self.tiles[tile.index()].1 {
            Place::Demanded => self.reader.free_demand(slot.release()),
            _ => self.reader.free(slot.release()),
        }
    }

    /// Asks for the groups of these tiles, which come in that order.
    pub(crate) fn demand_tiles(&mut self, tiles: &[TileId]) -> Result<(), Error> {
        self.demand(&self.demands.groups_of(tiles))
    }

    /// As [`Pass::prefetch`], for the groups of these tiles.
    pub(crate) fn prefetch_tiles(&mut self, tiles: &[TileId]) {
        self.prefetch(&self.demands.groups_of(tiles));
    }

    /// The payload of a tile.
    pub(crate) fn len_of(&self, tile: TileId) -> usize {
        self.tiles.get(tile.index()).map_or(0, |(len, _)| len.get() as usize)
    }

    fn go_to_tile(&mut self, tile: TileId) -> Result<Place, Error> {
        if self.tiles.get(tile.index()).is_some_and(|(_, place)| *place == Place::Demanded) {
            let demanded = self.skip_to_demanded(tile);
            return if demanded { Ok(Place::Demanded) } else { Err(Error::NotWalked { tile }) };
        }
        let count = self.walk.len() as u64;
        let step = (self.position..self.position + count)
            .find(|step| self.walk[(step % count) as usize].0 == tile)
            .ok_or(Error::NotWalked { tile })?;
        self.go_to(step);
        Ok(self.walk[(step % count) as usize].1)
    }
}

impl Stream<DeviceRegion> {
    /// As [`Stream::start`], in the memory of a device: tiles come from `upload`, and go to what `carve` gives.
    ///
    /// # Errors
    /// As [`Stream::start`], and those of `carve`.
    pub fn start_on_device(
        plan: &Plan,
        carve: impl FnMut(Bytes) -> Result<DeviceRegion, narrows_staging::Error>,
        upload: Upload,
        options: Options,
    ) -> Result<Self, Error> {
        let feed = Feed {
            host: upload.host().clone(),
            link: upload.link().clone(),
            uses: Arc::new(Mutex::new(upload.uses())),
        };
        let mut stream = Self::start_in(plan, carve, upload, options)?;
        stream.feed = Some(feed);
        Ok(stream)
    }
}

impl<M: Memory> Stream<M> {
    /// As [`Stream::start`], in memory of any kind: `carve` gives as much as it is asked for.
    ///
    /// # Errors
    /// As [`Stream::start`], and those of `carve`.
    pub fn start_in(
        plan: &Plan,
        mut carve: impl FnMut(Bytes) -> Result<M, narrows_staging::Error>,
        source: impl TileSource<M> + 'static,
        options: Options,
    ) -> Result<Self, Error> {
        let Options { describe, trace } = options;
        for (id, (tile, _)) in (0..).map(TileId).zip(&plan.tiles) {
            let (needed, planned) = (Bytes(source.capacity(id) as u64), plan.region(tile));
            if needed > planned {
                return Err(Error::Capacity { tile: describe(id), needed, planned });
            }
        }

        let mut carve = |bytes: Bytes| -> Result<Slot<Free, M>, Error> { Ok(Slot::new(carve(bytes)?)) };
        let place = |id: TileId| plan.tiles[id.index()];
        let mut home = |id: TileId| -> Result<Walked<M>, Error> {
            let home = match place(id) {
                (tile, Place::Resident) => Home::Own(Some(carve(plan.region(&tile))?)),
                (_, Place::Once) => Home::Once { done: false },
                _ => Home::Slots,
            };
            Ok(Walked { tile: id, home })
        };
        let walked = plan.walk().map(&mut home).collect::<Result<_, _>>()?;
        let slots = (0..plan.slots).map(|_| carve(plan.slot_capacity)).collect::<Result<_, _>>()?;
        let pool =
            (0..plan.demand_slots).map(|_| carve(plan.demand_slot_capacity)).collect::<Result<_, _>>()?;
        let frames = (0..plan.frames).flat_map(|frame| {
            plan.frame_slots.iter().enumerate().map(move |(place, bytes)| (Seat { frame, place }, *bytes))
        });
        let seats = frames.map(|(seat, bytes)| Ok((seat, carve(bytes)?))).collect::<Result<_, Error>>()?;

        let shared = Arc::new(Shared::new(describe, trace));
        let (requests, requested) = crossbeam_channel::unbounded();
        let (delivered, deliveries) = crossbeam_channel::unbounded();
        let waker = source.waker();
        // Numbers of its own, so that the reads of two streams can be told apart in one trace.
        let next_tag = if source.traces_itself() { 1 << 32 } else { 0 };
        let reader = Reader {
            woken: waker.is_some(),
            source,
            walk: walked,
            lens: plan.tiles.iter().map(|(tile, _)| tile.len).collect(),
            slots,
            demand_slots: pool,
            seats,
            requests: requested,
            deliveries: delivered,
            shared: shared.clone(),
            state: State::counting_from(next_tag),
        };
        let name = std::any::type_name::<M>().rsplit("::").next().unwrap_or_default().to_owned();
        let thread = thread::Builder::new().name(name).spawn(|| reader.run());
        Ok(Self {
            walk: plan.walk().map(|id| (id, place(id).1)).collect(),
            tiles: plan.tiles.iter().map(|(tile, place)| (tile.len, *place)).collect(),
            position: 0,
            gone: vec![false; plan.tiles.len()],
            resident: plan.tiles.iter().map(|_| None).collect(),
            ahead: BTreeMap::new(),
            demands: Demands::new(plan),
            reader: ToReader { requests: Some(requests), waker },
            shared,
            feed: None,
            deliveries,
            ended: false,
            thread: Some(thread.map_err(Error::Thread)?),
        })
    }

    /// Begins a pass: the next walk over all tiles that are not demanded.
    pub fn pass(&mut self) -> Pass<'_, M> {
        Pass::new(self)
    }

    /// What happened so far. Cheap.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.monitor().stats()
    }

    /// A window into the stream for other threads, and for after its end.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor { shared: self.shared.clone(), feed: self.feed.clone() }
    }

    /// Writes the trace so far: see [`Monitor::write_trace`].
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, out: impl io::Write) -> io::Result<()> {
        self.monitor().write_trace(out)
    }

    /// Waits until `arrived` gives something, and takes what arrives meanwhile.
    pub(crate) fn wait_for<T>(
        &mut self,
        mut arrived: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            self.take_deliveries()?;
            if let Some(arrived) = arrived(self) {
                return Ok(arrived);
            }
            self.shared.meters().compute.stall(Instant::now());
            let delivery = self.deliveries.recv();
            self.shared.meters().compute.resume(Instant::now());
            match delivery {
                Ok(delivery) => self.accept(delivery)?,
                Err(_) => return Err(self.panicked()),
            }
        }
    }

    /// All that is here already goes first: slots of tiles that were skipped become free, errors are heard.
    fn take_deliveries(&mut self) -> Result<(), Error> {
        if self.ended {
            return Err(Error::Ended);
        }
        loop {
            match self.deliveries.try_recv() {
                Ok(delivery) => self.accept(delivery)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.panicked()),
            }
        }
    }

    fn accept(&mut self, delivery: Result<Delivery<M>, Error>) -> Result<(), Error> {
        let Delivery { purpose, tile, slot } = delivery.inspect_err(|_| self.ended = true)?;
        match purpose {
            Purpose::Resident | Purpose::Frame | Purpose::Prefetch => {
                self.resident[tile.index()] = Some(Arc::new(slot))
            }
            Purpose::Step(step) if step < self.position => self.left_out(step, slot),
            Purpose::Step(step) => _ = self.ahead.insert(step, slot),
            Purpose::Ticket(ticket) => self.accept_ticket(ticket, slot),
        }
        Ok(())
    }

    /// Does `work` with the events that are free.
    pub(crate) fn with_events<T>(&self, work: impl FnOnce(&mut Events) -> T) -> T {
        match &self.feed {
            Some(feed) => work(lock(&feed.uses).events()),
            None => work(&mut Events::default()),
        }
    }

    /// Waits for the tile of the present step and goes on to the next; none if the tile stays.
    pub(crate) fn arrive(&mut self, tile: TileId, place: Place) -> Result<Option<Slot<InUse, M>>, Error> {
        let step = self.position;
        let index = tile.index();
        if place == Place::Once && self.gone[index] {
            return Err(Error::Gone { tile });
        }
        let slot = self.wait_for(|stream| match place {
            Place::Resident => stream.resident[index].as_ref().map(|_| None),
            _ => stream.ahead.remove(&step).map(Some),
        })?;
        self.gone[index] = place == Place::Once;
        self.go_to(step + 1);
        Ok(slot)
    }

    /// Goes on to a step; what was read for those before it is not wanted any more.
    pub(crate) fn go_to(&mut self, step: u64) {
        self.position = step;
        self.shared.set_position(step);
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() < step) {
            let (step, slot) = entry.remove_entry();
            self.left_out(step, slot);
        }
    }

    /// Gives back a tile that was read and not wanted. One that is read once has to be read again.
    fn left_out(&self, step: u64, slot: Slot<InUse, M>) {
        let index = (step % (self.walk.len() as u64).max(1)) as usize;
        if self.walk[index].1 == Place::Once {
            self.reader.send(Request::Again(index));
        }
        self.reader.free(slot.release());
    }

    /// A pass is over, at this step.
    pub(crate) fn end_pass(&mut self, step: u64) {
        self.forget_demand();
        self.age_demands();
        self.go_to(step);
        self.shared.meters().passes += 1;
    }

    /// The thread sends an error before it ends, so if it ended without one, it was by a panic.
    fn panicked(&mut self) -> Error {
        self.ended = true;
        Error::Panicked
    }
}

impl<M: Memory> Drop for Stream<M> {
    fn drop(&mut self) {
        self.reader.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the source has been reported as the end of the stream.
            let _ = thread.join();
        }
    }
}

/// The consumer's end of the reader.
pub(crate) struct ToReader<M = Region> {
    /// None once it is closed.
    requests: Option<Sender<Request<M>>>,
    waker: Option<Waker>,
}

impl<M> ToReader<M> {
    /// Tells the reader something. One that has ended needs no telling.
    pub(crate) fn send(&self, request: Request<M>) {
        if let Some(requests) = &self.requests
            && requests.send(request).is_ok()
        {
            self.wake();
        }
    }

    pub(crate) fn free(&self, slot: Slot<Free, M>) {
        self.send(Request::Freed(slot));
    }

    pub(crate) fn free_demand(&self, slot: Slot<Free, M>) {
        self.send(Request::FreedDemand(slot));
    }

    fn close(&mut self) {
        self.requests = None;
        self.wake();
    }

    fn wake(&self) {
        if let Some(wake) = &self.waker {
            wake();
        }
    }
}
