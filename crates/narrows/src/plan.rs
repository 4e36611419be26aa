//! What a request needs and what the plan makes of it.

use std::sync::Arc;

use narrows_shard::{Bytes, Encoding};
use narrows_stream::{FileSource, Need, Slots, Speed};

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tiling::Tiling;

/// The most that will be asked of an engine at a time; memory for it is set aside before any weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Sequences at a time.
    pub sequences: usize,
    /// Positions that their KV caches hold together.
    pub positions: usize,
    /// Rows of a step.
    pub step_rows: usize,
    /// Rows of a step whose logits are wanted.
    pub wanted_rows: usize,
}

impl Workload {
    /// Generation of up to `new` tokens after each of `prompts` (their lengths), in steps of `chunk` rows, within
    /// a context of `context` positions.
    #[must_use]
    pub fn generate(prompts: &[usize], new: usize, chunk: usize, context: usize) -> Self {
        let rows: usize = prompts.iter().sum();
        let step_rows = rows.max(1).min(chunk);
        let positions = |prompt: &usize| prompt.saturating_add(new).min(context);
        Self {
            sequences: prompts.len(),
            positions: prompts.iter().map(positions).fold(0, usize::saturating_add),
            step_rows,
            wanted_rows: prompts.len().min(step_rows),
        }
    }

    /// A step of no rows would never come to an end.
    fn at_least_a_row(self) -> Self {
        Self { step_rows: self.step_rows.max(1), wanted_rows: self.wanted_rows.max(1), ..self }
    }

    /// The logits of `rows` positions in sequences of up to `longest`, in steps of `chunk` rows.
    #[must_use]
    pub fn score(longest: usize, rows: usize, chunk: usize) -> Self {
        let step_rows = rows.max(1).min(chunk);
        Self {
            sequences: 1,
            // A step is filled with whole sequences; the first may be partly done, the last not needed whole.
            positions: rows.min(step_rows.saturating_add(longest.saturating_mul(2))),
            step_rows,
            wanted_rows: step_rows,
        }
    }
}

/// How fast this machine reads weights from disk and computes on them, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// From the disk that holds the model.
    pub disk: Speed,
    /// From memory, by the matrix-vector product of one row.
    pub compute: Speed,
}

impl Default for Speeds {
    /// A mid-range NVMe disk and a desktop's memory, assumed.
    fn default() -> Self {
        Self { disk: Speed::assumed(3e9), compute: Speed::assumed(20e9) }
    }
}

/// Where every weight of a model will be, and how long a pass will take.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Tiles, residency, slots, prediction.
    pub stream: narrows_stream::Plan,
    /// What requests were planned for.
    pub workload: Workload,
    /// The cap on memory.
    pub budget: Bytes,
    /// Size of the KV caches.
    pub kv: Bytes,
    /// Size of a tile at most; the end of the range where matrices are not cut.
    pub tile: Bytes,
    pub(crate) tiling: Arc<Tiling>,
}

/// What a plan is made from besides the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) budget: Bytes,
    pub(crate) workload: Workload,
    pub(crate) kv_encoding: Encoding,
    pub(crate) tokenizer: Bytes,
    pub(crate) slots: Option<usize>,
    pub(crate) tile: Option<Bytes>,
    pub(crate) trace: Bytes,
    pub(crate) speeds: Speeds,
}

/// Where weights stream: large enough for a disk to be at its speed with few slots, small enough for a few
/// slots to be little memory.
const TILE: Bytes = Bytes::mib(8);

impl Plan {
    /// Plans from headers alone: nothing is read, nothing allocated.
    pub(crate) fn new(model: &Model, settings: &Settings) -> Result<Self> {
        if let Some(tile) = settings.tile {
            return Self::with_tile(model, settings, tile);
        }
        // What is never moved again need not be cut: threads meet once a matrix and not once a tile.
        match Self::with_tile(model, settings, Bytes(u64::MAX)) {
            Ok(plan) if plan.stream.all_resident() => Ok(plan),
            _ => Self::with_tile(model, settings, TILE),
        }
    }

    fn with_tile(model: &Model, settings: &Settings, tile: Bytes) -> Result<Self> {
        let a = model.architecture();
        let w = settings.workload.at_least_a_row();
        let tiling = Tiling::new(model, tile);
        let tiles: Vec<_> = tiling.tiles.iter().map(|tile| FileSource::tile(&tile.read, narrows_stream::Access::Walked)).collect();
        let kv = a.kv_bytes(settings.kv_encoding, w.positions);
        let vectors = model.vectors().map(|located| 4 * located.tensor.shape[0] as u64).sum();
        let mut needs = vec![
            Need::new("KV cache", kv),
            Need::new("activations", Bytes(Decoder::activation_bytes(a, w.step_rows, w.wanted_rows) as u64)),
            Need::new("norms and biases", Bytes(vectors)),
        ];
        let optional = [("tokenizer", settings.tokenizer), ("trace", settings.trace)];
        needs.extend(optional.iter().filter(|need| need.1 > Bytes(0)).map(|need| Need::new(need.0, need.1)));
        let embedding_row = model.embedding().tensor.bytes().get() / a.vocab_size as u64;
        let stream = narrows_stream::plan(&narrows_stream::Request {
            tiles: &tiles,
            budget: settings.budget,
            needs: &needs,
            slots: settings.slots.map_or(Slots::Auto, Slots::Exactly),
            demand_slots: 0,
            extra_per_pass: Bytes(embedding_row * w.sequences as u64),
            disk: settings.speeds.disk,
            compute: settings.speeds.compute,
        })
        .map_err(|error| match error {
            narrows_stream::Error::BudgetTooSmall { minimum, budget, .. } => {
                Error::DoesNotFit { minimum, budget }
            }
            error => error.into(),
        })?;
        Ok(Self { stream, workload: w, budget: settings.budget, kv, tile, tiling: Arc::new(tiling) })
    }

    /// Predicted seconds per token of decoding: a pass makes a token for each sequence.
    #[must_use]
    pub fn seconds_per_token(&self) -> f64 {
        self.stream.seconds_per_pass() / self.workload.sequences.max(1) as f64
    }
}
