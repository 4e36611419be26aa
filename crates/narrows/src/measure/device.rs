//! A device that computes, and the link to it.

use std::sync::Arc;

use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{
    Carving, Copier, DEVICE_ALIGNMENT, DeviceArena, DeviceRegion, Event, Priority, Source, Stream,
};
use narrows_staging::{Arena, ArenaOptions, Budget, Memory as _, Slot};
use narrows_stream::Speed;

use super::{Piece, speed};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::plan::{DevicePlan, Plan};

/// More than a device's caches hold, and milliseconds on any link.
const BYTES: u64 = 256 << 20;

/// Copies pinned memory to a device, and multiplies a matrix there: by the device's clock.
pub(super) fn speeds(
    model: &Model,
    plan: &Plan,
    pieces: &[Piece],
    on_device: &DevicePlan,
    device: &Device,
) -> Result<(Speed, Speed)> {
    let cols = model.program().dims.hidden;
    let shares = by_encoding(pieces);
    let row_of = |encoding: Encoding| encoding.row_bytes(cols).unwrap_or(cols).max(1);
    let row = shares.iter().map(|&(encoding, _)| row_of(encoding)).max().unwrap_or(cols);
    let spare = on_device.budget.saturating_sub(device.reserved_bytes());
    let most = BYTES.min(spare.get() / 4).min(plan.budget.get() / 4).min(on_device.stream.walked.get());
    let rows = (most as usize / row).max(1);
    let len = rows * row;
    let budget = Budget::new(Bytes(plan.budget.get().saturating_add(on_device.budget.get())));
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let host = Arena::new(&budget, "measuring", Bytes(len as u64), options)?;
    let least = shares.iter().map(|&(encoding, _)| row_of(encoding)).min().unwrap_or(row);
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
    let mut slot = Slot::new(DeviceRegion::new(arena.carve(len)?, &compute));
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
    let mut seconds = 0.0;
    for &(encoding, bytes_per_pass) in &shares {
        let row = row_of(encoding);
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
        seconds += bytes_per_pass * times[1] / (rows * row) as f64;
    }
    // The median: others use the link too.
    link.sort_by(f64::total_cmp);
    let bytes = shares.iter().map(|(_, bytes)| bytes).sum();
    Ok((speed(len as f64, link[1]), speed(bytes, seconds)))
}

/// What a pass multiplies with, in bytes: a pack's head is stored in another way than its layers. Shapes matter little
/// to a device.
fn by_encoding(pieces: &[Piece]) -> Vec<(Encoding, f64)> {
    let mut shares = Vec::<(Encoding, f64)>::new();
    for piece in pieces {
        match shares.iter_mut().find(|(encoding, _)| *encoding == piece.encoding) {
            Some((_, bytes)) => *bytes += piece.count * piece.bytes(),
            None => shares.push((piece.encoding, piece.count * piece.bytes())),
        }
    }
    shares
}
