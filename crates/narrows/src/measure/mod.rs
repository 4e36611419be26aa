//! A quick look at how fast this machine is, for the plan's prediction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use narrows_cpu::{Cpu, Matrix, RowsMut};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{
    Carving, Copier, DEVICE_ALIGNMENT, DeviceArena, DeviceRegion, Event, Priority, Source, Stream,
};
use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Memory as _, Reader, ReaderOptions, Slot};
use narrows_stream::Speed;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::made::Made;
use crate::model::Model;
use crate::plan::{DevicePlan, Plan, Speeds};
use crate::tiling::{self, RowTile};

/// Long enough for a disk to come to its speed, short enough not to be noticed.
const DISK_TIME: Duration = Duration::from_millis(300);
/// More than most caches hold.
const COMPUTE_BYTES: u64 = 512 << 20;
/// More than a device's caches hold, and milliseconds on any link.
const DEVICE_BYTES: u64 = 256 << 20;

/// Reads some of the model's weights, if the plan streams any and the disk's speed is not `known`, and multiplies
/// matrices; with a device, copies to it.
pub(crate) fn speeds(
    model: &Model,
    plan: &Plan,
    io: IoMode,
    cpu: &Cpu,
    device: Option<&Device>,
    known: Option<Speed>,
) -> Result<Speeds> {
    let disk = match known {
        Some(speed) => speed,
        None if plan.stream.all_resident() => Speeds::default().disk,
        None => match model.made()? {
            Some(made) => memory(&made, plan)?,
            None => disk(model, plan, io)?,
        },
    };
    let (link, compute) = match (device, &plan.device) {
        (Some(device), Some(on_device)) => device_speeds(model, plan, on_device, device)?,
        _ => (Speeds::default().link, compute(model, plan, cpu)?),
    };
    Ok(Speeds { disk, compute, link })
}

/// What a pass multiplies with that is stored in one way.
struct Share {
    encoding: Encoding,
    /// Of a pass.
    bytes: f64,
    /// Of a matrix, in the mean.
    matrix: f64,
}

/// A pack's head is stored in another way than its layers, and takes another time for each of its bytes.
fn shares(plan: &Plan) -> Vec<Share> {
    let (walked, experts) = plan.tiling.matrices();
    let size = |matrix: &tiling::Matrix| {
        let row = matrix.encoding.row_bytes(matrix.cols).unwrap_or(0);
        row as f64 * matrix.rows as f64
    };
    let (mut totals, mut counts) = (Vec::<(Encoding, [f64; 2])>::new(), Vec::new());
    for (matrix, kind) in walked.map(|one| (one, 0)).chain(experts.map(|one| (one, 1))) {
        let index = totals.iter().position(|(encoding, _)| *encoding == matrix.encoding);
        let index = index.unwrap_or_else(|| {
            totals.push((matrix.encoding, [0.0; 2]));
            counts.push(0.0);
            counts.len() - 1
        });
        totals[index].1[kind] += size(matrix);
        counts[index] += 1.0;
    }
    let of_experts: f64 = totals.iter().map(|(_, [_, experts])| experts).sum();
    let demanded = plan.stream.demanded_per_pass.get() as f64 / of_experts.max(1.0);
    let share = |((encoding, [walked, experts]), count): ((Encoding, [f64; 2]), f64)| Share {
        encoding,
        bytes: walked + experts * demanded,
        matrix: (walked + experts) / count,
    };
    totals.into_iter().zip(counts).map(share).filter(|share| share.bytes > 0.0).collect()
}

/// The speed of all shares together, of each of which it is known how long a byte takes.
fn together(shares: &[Share], seconds_per_byte: &[f64]) -> Speed {
    let bytes: f64 = shares.iter().map(|share| share.bytes).sum();
    let seconds: f64 = shares.iter().zip(seconds_per_byte).map(|(share, each)| share.bytes * each).sum();
    Speed::measured((bytes / seconds.max(1e-12)).max(1.0))
}

/// Copies pinned memory to a device, and multiplies a matrix there: by the device's clock.
fn device_speeds(
    model: &Model,
    plan: &Plan,
    on_device: &DevicePlan,
    device: &Device,
) -> Result<(Speed, Speed)> {
    let cols = model.architecture().hidden_size;
    let shares = shares(plan);
    let row_of = |encoding: Encoding| encoding.row_bytes(cols).unwrap_or(cols).max(1);
    let row = shares.iter().map(|share| row_of(share.encoding)).max().unwrap_or(cols);
    let spare = on_device.budget.saturating_sub(device.reserved_bytes());
    let most =
        DEVICE_BYTES.min(spare.get() / 4).min(plan.budget.get() / 4).min(on_device.stream.walked.get());
    let rows = (most as usize / row).max(1);
    let len = rows * row;
    let budget = Budget::new(Bytes(plan.budget.get().saturating_add(on_device.budget.get())));
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let host = Arena::new(&budget, "measuring", Bytes(len as u64), options)?;
    let least = shares.iter().map(|share| row_of(share.encoding)).min().unwrap_or(row);
    let most_rows = len / least;
    let vectors = 4 * (most_rows + cols);
    let size = Bytes((len + vectors + 3 * DEVICE_ALIGNMENT) as u64);
    let arena = DeviceArena::new(device.raw(), &budget, "measuring", size, Carving::Together)?;
    let compute = Stream::new(device.raw(), Priority::Normal)?;
    let mut copier = Copier::new(device.raw())?;
    // Memory that cannot be pinned is as slow in the run.
    let _ = copier.pin(&host);
    let filled = Slot::new(host.carve(len)?).fill(0).fill_with(|bytes| {
        bytes.fill(0x3c);
        Ok::<_, Error>(0..len)
    });
    let source = Arc::new(filled.map_err(|(error, _)| error)?.take());
    let mut slot = Slot::new(DeviceRegion::new(arena.carve(len)?, &compute)?);
    let mut link = Vec::new();
    for _ in 0..3 {
        let ready = copier.copy(Source::Staying(source.clone()), slot.fill(0)).map_err(|(error, _)| error)?;
        slot = ready.take().release();
        let time = copier.wait()?.map_or(0.0, |copied| (copied.time.end - copied.time.start).as_secs_f64());
        link.push(time.max(1e-9));
    }
    let (x, y) = (arena.carve(4 * cols)?, arena.carve(4 * most_rows)?);
    compute.zero(&x)?;
    slot.memory().acquire()?;
    let (start, end) = (Event::timed(device.raw())?, Event::timed(device.raw())?);
    let mut each = Vec::new();
    for share in &shares {
        let (row, encoding) = (row_of(share.encoding), share.encoding);
        let rows = len / row;
        let operand = x.slice(0..cols * encoding.operand().row_bytes(1).unwrap_or(4))?;
        let bytes = slot.memory().slice().slice(0..rows * row)?;
        let result = y.slice(0..4 * rows)?;
        let weights = narrows_kernels::Matrix::new(&bytes, encoding, rows, cols)?;
        let mut times = Vec::new();
        for _ in 0..3 {
            start.record(&compute)?;
            let y = narrows_kernels::RowsMut::new(&result, rows, 0)?;
            device.kernels().linear(&compute, &weights, &operand, &y)?;
            end.record(&compute)?;
            end.synchronize()?;
            times.push(start.until(&end)?.as_secs_f64().max(1e-9));
        }
        times.sort_by(f64::total_cmp);
        each.push(times[1] / (rows * row) as f64);
    }
    // The median: others use the link too.
    link.sort_by(f64::total_cmp);
    Ok((Speed::measured(len as f64 / link[1]), together(&shares, &each)))
}

fn compute(model: &Model, plan: &Plan, cpu: &Cpu) -> Result<Speed> {
    let cols = model.architecture().hidden_size;
    let shares = shares(plan);
    let most = (COMPUTE_BYTES / shares.len().max(1) as u64).min(plan.budget.get() / 4) as f64;
    // Pages as those of the weights will be; written to, since pages never written to are all one page, which
    // never leaves the cache.
    let budget = Budget::new(plan.budget);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let mut each = Vec::new();
    for share in &shares {
        let row = share.encoding.row_bytes(cols).unwrap_or(cols).max(1);
        let rows = (most.min(share.bytes) as usize / row).max(1);
        let arena = Arena::new(&budget, "measuring", Bytes((rows * row) as u64), options)?;
        let mut weights = arena.carve(rows * row)?;
        weights.as_mut_slice().fill(0x3c);
        let weights = &weights.as_slice()[..rows * row];
        let (x, mut y) = (vec![0.0; cols], vec![0.0; rows]);
        // In pieces of the size of the model's matrices: threads meet after each.
        let piece = (share.matrix as usize / row).clamp(1, rows);
        let mut seconds = [0.0; 5];
        for seconds in &mut seconds {
            let start = Instant::now();
            for (weights, y) in weights.chunks(piece * row).zip(y.chunks_mut(piece)) {
                let rows = y.len();
                cpu.linear(Matrix::new(share.encoding, rows, cols, weights)?, &x, RowsMut::new(y, rows, 0)?)?;
            }
            *seconds = start.elapsed().as_secs_f64().max(1e-9);
        }
        // Neither luck nor what others do at the moment, which takes more than half of so short a look now and then.
        seconds.sort_by(f64::total_cmp);
        each.push(seconds[1] / weights.len() as f64);
    }
    Ok(together(&shares, &each))
}

/// Copies weights that are made in memory to where the stream would have them.
fn memory(made: &Made, plan: &Plan) -> Result<Speed> {
    let slot = plan.stream.slot_capacity.max(plan.stream.demand_slot_capacity);
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
        if start.elapsed() > DISK_TIME / 3 {
            break;
        }
    }
    Ok(Speed::measured((bytes as f64 / start.elapsed().as_secs_f64().max(1e-9)).max(1.0)))
}

fn disk(model: &Model, plan: &Plan, io: IoMode) -> Result<Speed> {
    // Where only experts are read, they have slots of their own.
    let slot = plan.stream.slot_capacity.max(plan.stream.demand_slot_capacity);
    let slots = plan.stream.slots.max(plan.stream.demand_slots).max(2);
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
    let mut warm_up = slots;
    let (mut start, mut bytes) = (Instant::now(), 0);
    loop {
        while start.elapsed() < DISK_TIME
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
    Ok(Speed::measured((bytes as f64 / start.elapsed().as_secs_f64()).max(1.0)))
}
