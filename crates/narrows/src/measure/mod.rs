//! A quick look at how fast this machine is, for the plan's prediction.

mod cpu;
mod device;
mod disk;

use std::sync::Arc;

use narrows_cpu::Cpu;
use narrows_shard::Encoding;
use narrows_staging::IoMode;
use narrows_stream::Speed;

use crate::device::Device;
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Plan, Speeds};
use crate::tiling;

/// Reads some of the model's weights, if the plan streams any and the disk's speed is not `known`, multiplies with
/// matrices like the model's, and attends to a cache like its own, stored as `kv`; with a device, copies to it.
pub(crate) fn speeds(
    model: &Model,
    plan: &Plan,
    io: IoMode,
    kv: Encoding,
    cpu: &Arc<Cpu>,
    device: Option<&Device>,
    known: Option<Speed>,
) -> Result<Speeds> {
    let disk = disk_speed(model, plan, io, known)?;
    let pieces = pieces(plan);
    let (link, compute, attention) = match (device, &plan.device) {
        (Some(device), Some(on_device)) => {
            let (link, compute) = device::speeds(model, plan, &pieces, on_device, device)?;
            // Few rows are bound by memory, whatever they read of it.
            (link, compute, compute)
        }
        _ => {
            let (compute, attention) = cpu::speeds(model, plan, &pieces, kv, cpu)?;
            (Speeds::default().link, compute, attention)
        }
    };
    Ok(Speeds { disk, compute, attention, link })
}

/// The speed of the disk, as [`speeds`] has it.
pub(crate) fn disk_speed(model: &Model, plan: &Plan, io: IoMode, known: Option<Speed>) -> Result<Speed> {
    match known {
        Some(speed) => Ok(speed),
        None if plan.stream.all_resident() => Ok(Speeds::default().disk),
        None => match model.made()? {
            Some(made) => disk::memory(&made, plan),
            None => disk::disk(model, plan, io),
        },
    }
}

/// Rows of a matrix that a pass multiplies with at a time, by their shape.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    encoding: Encoding,
    rows: usize,
    cols: usize,
    /// How many of them there are in a pass: of experts, in the mean.
    count: f64,
}

impl Piece {
    fn row_bytes(&self) -> usize {
        self.encoding.row_bytes(self.cols).unwrap_or(self.cols).max(1)
    }

    fn bytes(&self) -> f64 {
        self.row_bytes() as f64 * self.rows as f64
    }
}

/// Everything that a pass multiplies with: a small matrix takes another time for each of its bytes than a large one,
/// and a quantised one another than one that is not.
fn pieces(plan: &Plan) -> Vec<Piece> {
    let (walked, experts) = plan.tiling.matrices();
    let bytes = |matrix: &tiling::Matrix| {
        matrix.encoding.row_bytes(matrix.cols).unwrap_or(0) as f64 * matrix.rows as f64
    };
    let experts: Vec<_> = experts.collect();
    let of_experts: f64 = experts.iter().map(|matrix| bytes(matrix)).sum();
    let demanded = plan.stream.demanded_per_pass.get() as f64 / of_experts.max(1.0);
    let mut pieces = Vec::<Piece>::new();
    for (matrix, count) in walked.map(|one| (one, 1.0)).chain(experts.into_iter().map(|one| (one, demanded)))
    {
        for tile in &plan.tiling.tiles[matrix.tiles.clone()] {
            let piece = Piece { encoding: matrix.encoding, rows: tile.rows.len(), cols: matrix.cols, count };
            let same = |other: &&mut Piece| Piece { count, ..**other } == piece;
            match pieces.iter_mut().find(same) {
                Some(other) => other.count += count,
                None => pieces.push(piece),
            }
        }
    }
    pieces.retain(|piece| piece.count > 0.0 && piece.rows > 0);
    pieces
}

/// The speed of a pass that computes on `bytes` in `seconds`.
fn speed(bytes: f64, seconds: f64) -> Speed {
    Speed::measured((bytes / seconds.max(1e-12)).max(1.0))
}

#[cfg(test)]
mod tests {
    use narrows_shard::Bytes;

    use super::*;
    use crate::engine::Engine;
    use crate::plan::Workload;
    use crate::quantisation::Quantisation;
    use crate::synth::Synth;

    #[test]
    fn pieces_are_what_a_pass_multiplies_with() {
        for shape in ["llama-8b", "mixtral-8x7b"] {
            let synth = Synth::new(shape, Some(2)).unwrap();
            let model = Model::of_shape(shape, &synth, &Quantisation::default()).unwrap();
            let workload = Workload { sequences: 1, positions: 8, step_rows: 8, wanted_rows: 8 };
            let builder = Engine::builder().workload(workload).ram(Some(Bytes::mib(900)));
            let plan = builder.plan(&model).unwrap();
            let pieces = pieces(&plan);
            let bytes: f64 = pieces.iter().map(|piece| piece.count * piece.bytes()).sum();
            let pass = (plan.stream.walked + plan.stream.demanded_per_pass).get() as f64;
            assert!((bytes - pass).abs() < 1e-6 * pass, "{shape}: {bytes} of {pass}");
            assert!(pieces.len() < 20, "{shape}: {pieces:?}");
        }
    }
}
