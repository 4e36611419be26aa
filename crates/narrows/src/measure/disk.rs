//! The disk that weights come from.

use std::time::{Duration, Instant};

use narrows_shard::Bytes;
use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Reader, ReaderOptions, Slot};
use narrows_stream::Speed;

use super::speed;
use crate::error::Result;
use crate::made::Made;
use crate::model::Model;
use crate::plan::Plan;
use crate::tiling::RowTile;

/// Long enough for a disk to come to its speed, short enough not to be noticed. Where a pass takes longer, the look may
/// too: what others ask of a disk changes from one tenth of a second to the next.
const TIME: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(1);

/// The size of a slot and how many there are: of those of the walk and those of experts, the ones that hold more.
fn slots(plan: &Plan) -> (Bytes, usize) {
    let stream = &plan.stream;
    let pools = [(stream.slot_capacity, stream.slots), (stream.demand_slot_capacity, stream.demand_slots)];
    let [walked, demanded] = pools.map(|(size, count)| size.get() * count as u64);
    pools[usize::from(demanded > walked)]
}

/// Copies weights that are made in memory to where the stream would have them.
pub(super) fn memory(made: &Made, plan: &Plan) -> Result<Speed> {
    let (slot, _) = slots(plan);
    let budget = Budget::new(plan.budget);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let mut memory = Arena::new(&budget, "measuring", slot, options)?.carve(slot.get() as usize)?;
    let fits = |tile: &&RowTile| tile.read.len as u64 <= slot.get();
    let (mut start, mut bytes) = (Instant::now(), 0);
    for (count, tile) in plan.tiling.tiles.iter().filter(fits).cycle().enumerate() {
        made.read(tile.read.file, tile.read.offset, &mut memory.as_mut_slice()[..tile.read.len])?;
        // The first puts pages in place.
        if count == 0 {
            start = Instant::now();
            continue;
        }
        bytes += tile.read.len;
        if start.elapsed() > TIME / 3 {
            break;
        }
    }
    Ok(speed(bytes as f64, start.elapsed().as_secs_f64()))
}

/// Reads tiles as the stream would, through as many slots.
pub(super) fn disk(model: &Model, plan: &Plan, io: IoMode) -> Result<Speed> {
    let (slot, slots) = slots(plan);
    let budget = Budget::new(plan.budget);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let arena = Arena::new(&budget, "measuring", Bytes(slot.get() * slots as u64), options)?;
    let options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
    let mut reader = Reader::open(&model.paths()?, io, options)?;
    let mut free = Vec::new();
    for _ in 0..slots {
        free.push(Slot::new(arena.carve(slot.get() as usize)?));
    }
    // Slots that were filled once are in place, and the disk is at work: from then on the clock runs.
    let fits = |tile: &&RowTile| Reader::capacity_for(tile.read.len) <= slot.get() as usize;
    let mut tiles = plan.tiling.tiles.iter().filter(fits).cycle();
    let pass = Duration::try_from_secs_f64(plan.stream.disk_seconds).unwrap_or(LONGEST);
    let time = pass.clamp(TIME, LONGEST);
    let mut warm_up = slots;
    let (mut start, mut bytes) = (Instant::now(), 0);
    loop {
        while start.elapsed() < time
            && let Some(slot) = free.pop()
            && let Some(tile) = tiles.next()
        {
            reader.submit(tile.read, slot.fill(0)).map_err(|(error, _)| error)?;
        }
        let Some(completion) = reader.wait(None) else { break };
        let used = completion.result.map_err(|(error, _)| error)?.take();
        if warm_up > 0 {
            warm_up -= 1;
            start = Instant::now();
        } else {
            bytes += used.bytes().len();
        }
        free.push(used.release());
    }
    Ok(speed(bytes as f64, start.elapsed().as_secs_f64()))
}
