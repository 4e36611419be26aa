//! What a request needs and what the plan makes of it.

use std::sync::Arc;

use narrows_model::StateSpec;
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{DEVICE_ALIGNMENT, DevicePool};
use narrows_stream::{Access, FileSource, Need, Place, Slots, Speed, Tile};

use crate::backend::{CpuBackend, CudaBackend, Limits};
use crate::decoder::Decoder;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::lower::Lowered;
use crate::model::Model;
use crate::state;
use crate::tiling::Tiling;

/// The most that will be asked of an engine at a time; memory for it is set aside before any weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Up to `sequences` at a time with `positions` together, in steps of up to `step_rows` rows of which
    /// `wanted_rows` come to logits.
    #[must_use]
    pub const fn new(sequences: usize, positions: usize, step_rows: usize, wanted_rows: usize) -> Self {
        Self { sequences, positions, step_rows, wanted_rows }
    }

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
        let sequences = |rows: usize| rows.div_ceil(longest.max(1));
        Self {
            // Those that fill a step, and one of which a part is done.
            sequences: (sequences(step_rows) + 1).min(sequences(rows)).max(1),
            // A step is filled with whole sequences; the first may be partly done, the last not needed whole. And
            // as they come and go, there may be a gap between them that the next does not fit into.
            positions: rows.min(step_rows.saturating_add(longest.saturating_mul(3))),
            step_rows,
            wanted_rows: step_rows,
        }
    }
}

/// How fast this machine reads weights from disk and computes on them, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Speeds {
    /// From the disk that holds the model.
    pub disk: Speed,
    /// From memory, by the matrix-vector product of one row: on the CPU, or on the device that computes.
    pub compute: Speed,
    /// From the KV cache, by attention of one row.
    pub attention: Speed,
    /// From pinned memory to the device.
    pub link: Speed,
}

impl Default for Speeds {
    /// A mid-range NVMe disk, a desktop's memory, and eight lanes of PCIe 4, assumed.
    fn default() -> Self {
        let memory = Speed::assumed(20e9);
        Self { disk: Speed::assumed(3e9), compute: memory, attention: memory, link: Speed::assumed(12e9) }
    }
}

/// Where every weight of a model will be, and how long a pass will take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Tiles in host memory: residency, slots, prediction.
    pub stream: narrows_stream::Plan,
    /// The same in a device's memory, if a device computes.
    pub device: Option<DevicePlan>,
    /// What requests were planned for.
    pub workload: Workload,
    /// The cap on memory.
    pub budget: Bytes,
    /// Size of the KV caches.
    pub kv: Bytes,
    /// How long attention reads them in a pass of one row of each sequence, when they are full.
    pub kv_seconds: f64,
    /// What is needed of host memory besides weights, slots and what is made later.
    pub(crate) host_needs: Vec<(&'static str, Bytes)>,
    /// Memory of the tokenizer.
    pub(crate) tokenizer: Bytes,
    /// Size of a tile at most; the end of the range where matrices are not cut.
    pub tile: Bytes,
    pub(crate) tiling: Arc<Tiling>,
}

/// Where weights will be in a device's memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DevicePlan {
    /// Tiles in the device's memory. What it calls the disk is the link to the device.
    pub stream: narrows_stream::Plan,
    /// The cap on the device's memory.
    pub budget: Bytes,
    /// What of it is left for the page tables of the host's memory, which is pinned.
    pub page_tables: Bytes,
    /// Whether it is no device of this machine: see [`crate::AssumedDevice`].
    pub assumed: bool,
}

/// The stage that a pass waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// Reading from disk takes longest.
    Disk,
    /// Copying to the device does.
    Link,
    /// Computing does.
    Compute,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Disk => "disk",
            Self::Link => "h2d",
            Self::Compute => "compute",
        })
    }
}

/// What a plan is to know of the device that computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceSettings {
    pub(crate) budget: Bytes,
    pub(crate) context: Bytes,
    pub(crate) assumed: bool,
}

/// What a plan is made from besides the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) device: Option<DeviceSettings>,
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

/// Where there is room for fewer slots of [`TILE`] than [`ENOUGH_SLOTS`]: more of these fit, so that reads go on while
/// one is computed on and another is late. Quantised weights take a good part of the time of a read to compute on.
const SMALL_TILE: Bytes = Bytes::mib(4);
const ENOUGH_SLOTS: usize = 8;

/// Where weights are copied to a device once: the fewer tiles the fewer kernels, but tiles still pass through the
/// host's memory.
const DEVICE_TILE: Bytes = Bytes::mib(64);

/// The most slots that a stream in host memory makes unasked.
const HOST_SLOTS: usize = 16;

/// A link is at its speed with two copies queued, while a third tile is computed on and a fourth given back.
const DEVICE_SLOTS: usize = 4;

impl Plan {
    /// Plans from headers alone: nothing is read, nothing allocated.
    pub(crate) fn new(model: &Model, settings: &Settings) -> Result<Self> {
        if let Some(tile) = settings.tile {
            return Self::with_tile(model, settings, tile);
        }
        // What is never moved again need not be cut: threads meet once a matrix and not once a tile.
        let uncut = if settings.device.is_some() { DEVICE_TILE } else { Bytes(u64::MAX) };
        if let Ok(plan) = Self::with_tile(model, settings, uncut)
            && plan.all_resident()
        {
            return Ok(plan);
        }
        let plan = Self::with_tile(model, settings, TILE)?;
        let passing = plan.stream.tiles.iter().filter(|(_, place)| *place == Place::Streamed).count();
        let few = plan.stream.slots < passing.min(ENOUGH_SLOTS);
        if settings.device.is_some() || settings.slots.is_some() || !few {
            return Ok(plan);
        }
        let Ok(mut small) = Self::with_tile(model, settings, SMALL_TILE) else { return Ok(plan) };
        // What works, if less well, is not refused.
        small.stream.minimum = plan.stream.minimum;
        Ok(small)
    }

    fn with_tile(model: &Model, settings: &Settings, tile: Bytes) -> Result<Self> {
        let w = settings.workload.at_least_a_row();
        let tiling = Tiling::new(model, tile);
        let device = settings.device.map(|device| device_plan(model, settings, &device, w, &tiling));
        let device = device.transpose()?;
        let host_needs = host_needs(model, settings, w);
        let stream = host_plan(model, settings, &host_needs, w, &tiling, device.as_ref())?;
        let kv = kv_bytes(model, settings, w);
        let (budget, tokenizer, tiling) = (settings.budget, settings.tokenizer, Arc::new(tiling));
        let read = kv_read(model, settings, w).get() as f64;
        let kv_seconds = read / settings.speeds.attention.bytes_per_second;
        Ok(Self { stream, device, workload: w, budget, kv, kv_seconds, host_needs, tokenizer, tile, tiling })
    }

    /// Whether nothing that a pass walks is moved.
    #[must_use]
    pub fn all_resident(&self) -> bool {
        self.device.as_ref().map_or(&self.stream, |device| &device.stream).all_resident()
    }

    /// The stage that a pass waits for.
    #[must_use]
    pub fn bound(&self) -> Bound {
        let compute = self.compute_seconds();
        match (self.stream.disk_seconds, self.link_seconds()) {
            (disk, link) if disk > link.max(compute) => Bound::Disk,
            (_, link) if link > compute => Bound::Link,
            _ => Bound::Compute,
        }
    }

    /// How long a pass computes: on all weights, and over the positions of all sequences at their longest.
    #[must_use]
    pub fn compute_seconds(&self) -> f64 {
        let weights = self.device.as_ref().map_or(&self.stream, |device| &device.stream).compute_seconds;
        weights + self.kv_seconds
    }

    /// How long a pass copies to the device.
    #[must_use]
    pub fn link_seconds(&self) -> f64 {
        self.device.as_ref().map_or(0.0, |device| device.stream.disk_seconds)
    }

    /// The predicted time of a pass: stages overlap, so the longest of them.
    #[must_use]
    pub fn seconds_per_pass(&self) -> f64 {
        self.stream.disk_seconds.max(self.link_seconds()).max(self.compute_seconds())
    }

    /// Predicted seconds per token of decoding: a pass makes a token for each sequence.
    #[must_use]
    pub fn seconds_per_token(&self) -> f64 {
        self.seconds_per_pass() / self.workload.sequences.max(1) as f64
    }
}

/// Caches of a device's sequences start at multiples of its alignment.
fn kv_bytes(model: &Model, settings: &Settings, w: Workload) -> Bytes {
    let kv = state::bytes(model.program(), settings.kv_encoding, w.positions);
    match settings.device {
        Some(_) => kv + Bytes((DEVICE_ALIGNMENT * w.sequences.max(1)) as u64),
        None => kv,
    }
}

/// What a pass of one row of each sequence reads of the KV caches when they are full.
fn kv_read(model: &Model, settings: &Settings, w: Workload) -> Bytes {
    let each = (w.positions / w.sequences.max(1)) as u64;
    let of_layer = |state: &StateSpec| {
        let StateSpec::Kv { kv_heads, head_dim, window } = state;
        let row = settings.kv_encoding.row_bytes(*head_dim).unwrap_or(usize::MAX) as u64;
        let positions = window.map_or(each, |window| each.min(window as u64));
        row.saturating_mul(2 * *kv_heads as u64).saturating_mul(positions)
    };
    let bytes = model.program().states.iter().map(of_layer).fold(0, u64::saturating_add);
    Bytes(bytes.saturating_mul(w.sequences as u64))
}

/// What steps need of a device, for a workload.
pub(crate) fn limits(w: Workload) -> Limits {
    Limits { rows: w.step_rows, wanted: w.wanted_rows, longest: w.positions }
}

fn device_plan(
    model: &Model,
    settings: &Settings,
    device: &DeviceSettings,
    w: Workload,
    tiling: &Tiling,
) -> Result<DevicePlan> {
    let lowered = Lowered::for_device(model.shared_program(), |id| model.operand(id));
    let tile = |len: usize, access| Tile::new(Bytes(len as u64), Bytes(len as u64), access);
    let tiles: Vec<_> = tiling.tiles.iter().map(|row| tile(row.read.len, row.access)).collect();
    let vectors = CudaBackend::vector_bytes(model.vector_lens());
    let page_tables = Device::page_tables(pinned_at_most(settings, tiling));
    let needs = [
        Need::new("CUDA context", device.context),
        Need::new("page tables", page_tables),
        Need::new("KV cache", Bytes(DevicePool::rounded(kv_bytes(model, settings, w).get() as usize) as u64)),
        Need::new("activations", CudaBackend::activation_bytes(&lowered, limits(w))),
        Need::new("norms and biases", vectors),
    ];
    let slots = settings.slots.map_or(Slots::AtMost(DEVICE_SLOTS), Slots::Exactly);
    let request = narrows_stream::Request::new(&tiles, device.budget)
        .grain(DEVICE_ALIGNMENT)
        .needs(&needs)
        .slots(slots)
        .demand(slots, usize::MAX, model.demanded_bytes(w.sequences))
        .speeds(settings.speeds.link, settings.speeds.compute);
    let stream = narrows_stream::plan(&request).map_err(|error| does_not_fit("VRAM", error))?;
    Ok(DevicePlan { stream, budget: device.budget, page_tables, assumed: device.assumed })
}

/// The host's memory for weights, which is pinned and is planned after the device's, has at most so many bytes: all tiles
/// and all slots, within the host's budget.
fn pinned_at_most(settings: &Settings, tiling: &Tiling) -> Bytes {
    let capacities =
        || tiling.tiles.iter().map(|tile| FileSource::tile(&tile.read, tile.access).capacity.get());
    let slots = settings.slots.unwrap_or(HOST_SLOTS).min(tiling.tiles.len()) as u64;
    let slots = slots.saturating_mul(capacities().max().unwrap_or(0));
    // Demanded tiles have slots of their own.
    let all = capacities().fold(slots.saturating_mul(2), u64::saturating_add);
    Bytes(all).min(settings.budget)
}

/// What steps need of the host's memory: all, or what is left to do there where a device computes.
fn host_needs(model: &Model, settings: &Settings, w: Workload) -> Vec<(&'static str, Bytes)> {
    let program = model.program();
    let tables = Bytes(Decoder::<CpuBackend>::table_bytes(program, w.step_rows) as u64);
    if settings.device.is_some() {
        // The upload of the tables is a copy of them; of norms and biases one at a time comes by.
        let scores = program.routers().map(|route| route.count).max().unwrap_or(0) * w.step_rows;
        let read_back = Bytes(4 * (w.wanted_rows * program.dims.vocab + scores) as u64);
        return vec![("steps", tables + tables + read_back)];
    }
    let lowered = Lowered::in_float(model.shared_program());
    let activations = Bytes(CpuBackend::activation_bytes(&lowered, w.step_rows, w.wanted_rows) as u64);
    let vectors = model.vector_lens().map(|len| 4 * len as u64).sum();
    vec![
        ("KV cache", kv_bytes(model, settings, w)),
        ("activations", tables + activations),
        ("norms and biases", Bytes(vectors)),
    ]
}

fn host_plan(
    model: &Model,
    settings: &Settings,
    host_needs: &[(&'static str, Bytes)],
    w: Workload,
    tiling: &Tiling,
    device: Option<&DevicePlan>,
) -> Result<narrows_stream::Plan> {
    let on_device = |tile: usize| {
        device.is_some_and(|device| matches!(device.stream.tiles.get(tile), Some((_, Place::Resident))))
    };
    let tiles: Vec<_> = (0..)
        .zip(&tiling.tiles)
        .map(|(index, tile)| {
            let access = if on_device(index) { Access::Once } else { tile.access };
            FileSource::tile(&tile.read, access)
        })
        .collect();
    let mut needs: Vec<_> = host_needs.iter().map(|(what, bytes)| Need::new(*what, *bytes)).collect();
    // Tables were made with the model.
    let optional = [
        ("tokenizer", settings.tokenizer),
        ("trace", settings.trace),
        ("tables of weights", model.table_bytes()),
    ];
    needs.extend(optional.iter().filter(|need| need.1 > Bytes(0)).map(|need| Need::new(need.0, need.1)));
    // What has a frame on the device is rarely asked of the host.
    let groups = tiling.experts.iter().map(Vec::len).sum::<usize>();
    let on_device = device.map_or(0, |device| device.stream.frames);
    let demanded = model.demanded_bytes(w.sequences);
    let embedding_row = model.embedding().tensor.bytes().get() / model.program().dims.vocab as u64;
    let slots = settings.slots.map_or(Slots::Auto, Slots::Exactly);
    let demanded = (demanded.get() as f64 * (groups - on_device) as f64 / groups.max(1) as f64) as u64;
    let request = narrows_stream::Request::new(&tiles, settings.budget)
        .needs(&needs)
        .slots(slots)
        .demand(slots, groups - on_device, Bytes(demanded))
        .extra_per_pass(Bytes(embedding_row * w.sequences as u64))
        .speeds(settings.speeds.disk, settings.speeds.compute);
    narrows_stream::plan(&request).map_err(|error| does_not_fit("RAM", error))
}

fn does_not_fit(memory: &'static str, error: narrows_stream::Error) -> Error {
    match error {
        narrows_stream::Error::BudgetTooSmall { minimum, budget, .. } => {
            Error::DoesNotFit { memory, minimum, budget }
        }
        error => error.into(),
    }
}
