//! A quick look at how fast this machine is, for the plan's prediction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use narrows_cpu::{Cpu, Matrix, RowsMut};
use narrows_shard::Bytes;
use narrows_staging::device::{
    Carving, Copier, DEVICE_ALIGNMENT, DeviceArena, DeviceRegion, Event, Priority, Source, Stream,
};
use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Memory as _, Reader, ReaderOptions, Slot};
use narrows_stream::Speed;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{DevicePlan, Plan, Speeds};
use crate::tiling::RowTile;

/// Long enough for a disk to come to its speed, short enough not to be noticed.
const DISK_TIME: Duration = Duration::from_millis(300);
/// More than most caches hold.
const COMPUTE_BYTES: usize = 512 << 20;
/// More than a device's caches hold, and milliseconds on any link.
const DEVICE_BYTES: u64 = 256 << 20;

/// Reads some of the model's weights, if the plan streams any and the disk's speed is not `known`, and multiplies a
/// matrix; with a device, copies to it.
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
        None => disk(model, plan, io)?,
    };
    match (device, &plan.device) {
        (Some(device), Some(on_device)) => {
            let (link, compute) = device_speeds(model, plan, on_device, device)?;
            Ok(Speeds { disk, compute, link })
        }
        _ => Ok(Speeds { disk, compute: compute(model, plan, cpu)?, link: Speeds::default().link }),
    }
}

/// Copies pinned memory to a device, and multiplies a matrix there: by the device's clock.
fn device_speeds(
    model: &Model,
    plan: &Plan,
    on_device: &DevicePlan,
    device: &Device,
) -> Result<(Speed, Speed)> {
    let head = model.head();
    let cols = model.architecture().hidden_size;
    let row = head.encoding.row_bytes(cols).unwrap_or(cols);
    let spare = on_device.budget.saturating_sub(device.reserved_bytes());
    let most =
        DEVICE_BYTES.min(spare.get() / 4).min(plan.budget.get() / 4).min(on_device.stream.walked.get());
    let rows = (most as usize / row).max(1);
    let len = rows * row;
    let budget = Budget::new(Bytes(plan.budget.get().saturating_add(on_device.budget.get())));
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let host = Arena::new(&budget, "measuring", Bytes(len as u64), options)?;
    let vectors = 4 * (rows + cols);
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
    let (x, y) = (arena.carve(4 * cols)?, arena.carve(4 * rows)?);
    compute.zero(&x)?;
    slot.memory().acquire()?;
    let operand = x.slice(0..row)?;
    let weights = narrows_kernels::Matrix::new(slot.memory().slice(), head.encoding, rows, cols)?;
    let (start, end) = (Event::timed(device.raw())?, Event::timed(device.raw())?);
    let mut times = Vec::new();
    for _ in 0..3 {
        start.record(&compute)?;
        let y = narrows_kernels::RowsMut::new(&y, rows, 0)?;
        device.kernels().linear(&compute, &weights, &operand, &y)?;
        end.record(&compute)?;
        end.synchronize()?;
        times.push(start.until(&end)?.as_secs_f64().max(1e-9));
    }
    // The median: others use the link too.
    link.sort_by(f64::total_cmp);
    times.sort_by(f64::total_cmp);
    Ok((Speed::measured(len as f64 / link[1]), Speed::measured(len as f64 / times[1])))
}

fn compute(model: &Model, plan: &Plan, cpu: &Cpu) -> Result<Speed> {
    let head = model.head();
    let cols = model.architecture().hidden_size;
    let row = head.encoding.row_bytes(cols).unwrap_or(cols);
    let most = (COMPUTE_BYTES as u64).min(plan.budget.get() / 4).min(plan.stream.walked.get());
    let rows = (most as usize / row).max(1);
    // Pages as those of the weights will be; written to, since pages never written to are all one page, which
    // never leaves the cache.
    let budget = Budget::new(plan.budget);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let mut weights =
        Arena::new(&budget, "measuring", Bytes((rows * row) as u64), options)?.carve(rows * row)?;
    weights.as_mut_slice().fill(0x3c);
    let weights = &weights.as_slice()[..rows * row];
    let (x, mut y) = (vec![0.0; cols], vec![0.0; rows]);
    // In pieces of the size of the model's matrices: threads meet after each.
    let matrices = plan.tiling.matrices().max(1) as u64;
    let piece = (plan.stream.walked.get() / matrices / row as u64).clamp(1, rows as u64) as usize;
    let mut seconds = [0.0; 5];
    for seconds in &mut seconds {
        let start = Instant::now();
        for (weights, y) in weights.chunks(piece * row).zip(y.chunks_mut(piece)) {
            let rows = y.len();
            cpu.linear(Matrix::new(head.encoding, rows, cols, weights)?, &x, RowsMut::new(y, rows, 0)?)?;
        }
        *seconds = start.elapsed().as_secs_f64().max(1e-9);
    }
    // The median: others use the machine too.
    seconds.sort_by(f64::total_cmp);
    Ok(Speed::measured(weights.len() as f64 / seconds[2]))
}

fn disk(model: &Model, plan: &Plan, io: IoMode) -> Result<Speed> {
    // Where only experts are read, they have slots of their own.
    let slot = plan.stream.slot_capacity.max(plan.stream.demand_slot_capacity);
    let slots = plan.stream.slots.max(plan.stream.demand_slots).max(2);
    let budget = Budget::new(plan.budget);
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let arena = Arena::new(&budget, "measuring", Bytes(slot.get() * slots as u64), options)?;
    let options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
    let mut reader = Reader::open(&model.paths(), io, options)?;
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
