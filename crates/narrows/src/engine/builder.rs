//! What an engine is made from, and its making.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use narrows_cpu::{Cpu, Isa};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{Carving, Copier, DeviceArena, DeviceRegion, Priority, Stream as DeviceStream};
use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Reader, ReaderOptions, Reservation};
use narrows_stream::{FileSource, Options as StreamOptions, Speed, Stream, TileId, Trace, Upload};

use super::{Context, Engine};
use crate::backend::{CpuBackend, CudaBackend};
use crate::compute::Compute;
use crate::decoder::Decoder;
use crate::device::{AssumedDevice, Device};
use crate::error::{Error, Result};
use crate::generation_config::GenerationDefaults;
use crate::lower::Lowered;
use crate::made::MadeSource;
use crate::measure;
use crate::memory;
use crate::model::Model;
use crate::plan::{self, DevicePlan, DeviceSettings, Plan, Settings, Speeds, Workload};
use crate::state;
use crate::text::Text;
use crate::weights::Weights;

/// Settings of an engine. Nothing is read or allocated before [`EngineBuilder::build`].
#[derive(Clone, Debug)]
#[must_use]
pub struct EngineBuilder {
    threads: Option<NonZeroUsize>,
    isa: Option<Isa>,
    chunk: Option<NonZeroUsize>,
    kv_encoding: Option<Encoding>,
    context: Context,
    ram: Option<Bytes>,
    /// The cap where none is set, if the system says how much there is.
    automatic: Option<Bytes>,
    device: Option<Device>,
    /// Planned for where there is no device.
    assumed: Option<AssumedDevice>,
    vram: Option<Bytes>,
    carving: Carving,
    io: IoMode,
    slots: Option<NonZeroUsize>,
    tile: Option<Bytes>,
    workload: Workload,
    /// Set by themselves, and then instead of the workload's.
    sequences: Option<usize>,
    positions: Option<usize>,
    speeds: Option<Speeds>,
    text: Option<Arc<Text>>,
    without_text: bool,
    trace: bool,
}

/// Events that a trace keeps, the latest: some hundred passes of a small model, some of a large one.
const TRACE_EVENTS: usize = 1 << 16;

impl Default for EngineBuilder {
    fn default() -> Self {
        Self {
            threads: None,
            isa: None,
            chunk: None,
            kv_encoding: None,
            context: Context::Auto,
            ram: None,
            automatic: memory::automatic(),
            device: None,
            assumed: None,
            vram: None,
            carving: Carving::Together,
            io: IoMode::Auto,
            slots: None,
            tile: None,
            workload: Workload { sequences: 1, positions: 512, step_rows: 512, wanted_rows: 1 },
            sequences: None,
            positions: None,
            speeds: None,
            text: None,
            without_text: false,
            trace: false,
        }
    }
}

impl EngineBuilder {
    /// Threads that compute; all that the machine has if not set.
    pub fn threads(mut self, threads: impl Into<Option<NonZeroUsize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// The instruction set that computes on the CPU; the fastest that the machine has if not set.
    pub fn isa(mut self, isa: impl Into<Option<Isa>>) -> Self {
        self.isa = isa.into();
        self
    }

    /// Rows that one step computes at most; as many as 256 MiB of activations hold, up to 512, if not set.
    pub fn chunk(mut self, rows: impl Into<Option<NonZeroUsize>>) -> Self {
        self.chunk = rows.into();
        self
    }

    /// How keys and values are cached; float32 on the CPU and bfloat16 on a device if not set.
    pub fn kv_encoding(mut self, encoding: impl Into<Option<Encoding>>) -> Self {
        self.kv_encoding = encoding.into();
        self
    }

    /// How many positions a sequence may have.
    pub const fn context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// A hard cap on memory for weights, staging, KV cache, activations and tokenizer together. If not set it is
    /// [`memory::automatic`], 80 % of what is available when the builder is made; where the system does not say
    /// what is, there is none. `Bytes(u64::MAX)` is no cap either.
    pub fn ram(mut self, budget: impl Into<Option<Bytes>>) -> Self {
        self.ram = budget.into();
        self
    }

    /// Computes on a device instead of the CPU.
    pub fn device(mut self, device: impl Into<Option<Device>>) -> Self {
        self.device = device.into();
        self
    }

    /// Plans for a device that is not on this machine, as if it were; [`EngineBuilder::build`] then refuses. A
    /// [`EngineBuilder::device`] that is there goes before it.
    pub fn assume_device(mut self, device: impl Into<Option<AssumedDevice>>) -> Self {
        self.assumed = device.into();
        self
    }

    /// A hard cap on the device's memory, with all that is in use of it before: weights, slots, KV cache,
    /// activations and the context; all that is free if not set.
    pub fn vram(mut self, budget: impl Into<Option<Bytes>>) -> Self {
        self.vram = budget.into();
        self
    }

    /// How ranges of the device's memory are allocated: apart is for tests.
    pub const fn carving(mut self, carving: Carving) -> Self {
        self.carving = carving;
        self
    }

    /// How weights are read.
    pub const fn io(mut self, io: IoMode) -> Self {
        self.io = io;
        self
    }

    /// Slots that streamed weights pass through; as many as hold about 64 MiB if not set.
    pub fn slots(mut self, slots: impl Into<Option<NonZeroUsize>>) -> Self {
        self.slots = slots.into();
        self
    }

    /// Size of a tile at most; 8 MiB if not set.
    pub fn tile(mut self, tile: impl Into<Option<Bytes>>) -> Self {
        self.tile = tile.into();
        self
    }

    /// The most that will be asked at a time. Memory for it is set aside; requests that do not fit together take
    /// turns, and one that does not fit alone is refused.
    pub const fn workload(mut self, workload: Workload) -> Self {
        self.workload = workload;
        self
    }

    /// How many sequences are computed together at most; 1 if not set. More of them take turns.
    pub const fn sequences(mut self, sequences: usize) -> Self {
        self.sequences = Some(sequences);
        self
    }

    /// Positions that each of the sequences may have, prompt and new tokens together; 512 if not set.
    pub const fn positions(mut self, positions: usize) -> Self {
        self.positions = Some(positions);
        self
    }

    /// The workload that the settings come to.
    fn planned_workload(&self, model: &Model) -> Workload {
        let w = self.workload;
        if self.sequences.is_none() && self.positions.is_none() {
            return w;
        }
        let sequences = self.sequences.unwrap_or(w.sequences).max(1);
        let each = self.positions.unwrap_or(w.positions / w.sequences.max(1));
        let positions = sequences.saturating_mul(each);
        let step_rows = self.chunk_rows(model).min(positions);
        Workload { sequences, positions, step_rows, wanted_rows: sequences.min(step_rows) }
    }

    /// How fast the machine is, for the plan's prediction; nothing else depends on it. If not set it is
    /// [`EngineBuilder::assumed_speeds`].
    pub const fn speeds(mut self, speeds: Speeds) -> Self {
        self.speeds = Some(speeds);
        self
    }

    /// Speeds of which none is measured: those of [`Speeds::default`], and where a device computes those of the assumed
    /// one, or of a small one.
    #[must_use]
    pub fn assumed_speeds(&self) -> Speeds {
        let device = match (&self.device, self.assumed) {
            (Some(device), _) => AssumedDevice::new(device.total()),
            (None, Some(assumed)) => assumed,
            (None, None) => return Speeds::default(),
        };
        let AssumedDevice { link, bandwidth, .. } = device;
        // Few rows are bound by memory, whatever they read of it.
        Speeds { link, compute: bandwidth, attention: bandwidth, ..Speeds::default() }
    }

    /// A tokenizer that was read already. Without it, one is read when first asked for; the plan has set its memory
    /// aside by then.
    pub fn text(mut self, text: impl Into<Option<Arc<Text>>>) -> Self {
        self.text = text.into();
        self
    }

    /// Sets no memory aside for a tokenizer: all prompts will be token ids, and none has stop strings.
    pub const fn without_text(mut self) -> Self {
        self.without_text = true;
        self
    }

    /// Keeps a trace of what is read and computed when.
    pub const fn trace(mut self, trace: bool) -> Self {
        self.trace = trace;
        self
    }

    /// Rows of a step that the settings come to for a model.
    #[must_use]
    pub fn chunk_rows(&self, model: &Model) -> usize {
        self.chunk.map_or_else(|| default_chunk(model), NonZeroUsize::get)
    }

    /// Decides from the headers alone where every weight will be, and predicts how long a pass will take.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], with the smallest budget that works.
    pub fn plan(&self, model: &Model) -> Result<Plan> {
        let settings = Settings {
            device: self.device_settings()?,
            budget: self.ram.or(self.automatic).unwrap_or(Bytes(u64::MAX)),
            workload: self.planned_workload(model),
            kv_encoding: self.kv(),
            tokenizer: self.text_memory(model)?,
            slots: self.slots.map(NonZeroUsize::get),
            tile: self.tile,
            trace: if self.trace { Trace::memory(TRACE_EVENTS) } else { Bytes(0) },
            speeds: self.speeds.unwrap_or_else(|| self.assumed_speeds()),
        };
        Plan::new(model, &settings)
    }

    /// What the tokenizer takes, or will take once it is read.
    fn text_memory(&self, model: &Model) -> Result<Bytes> {
        match &self.text {
            Some(text) => Ok(text.memory()),
            None if self.without_text => Ok(Bytes(0)),
            None => model.text_memory(),
        }
    }

    /// What a plan is to know of the device that computes, or that is assumed to.
    fn device_settings(&self) -> Result<Option<DeviceSettings>> {
        let (context, available, name) = match (&self.device, &self.assumed) {
            (Some(device), _) => (device.reserved_bytes(), device.available(), device.name()),
            (None, Some(assumed)) => (assumed.reserved_bytes(), assumed.memory, "the assumed device"),
            (None, None) => return Ok(None),
        };
        let budget = self.vram.unwrap_or(available);
        if budget > available {
            return Err(Error::VramBeyondDevice { budget, device: name.to_owned(), available });
        }
        Ok(Some(DeviceSettings { budget, context, assumed: self.device.is_none() }))
    }

    fn kv(&self) -> Encoding {
        let on_device = self.device.is_some() || self.assumed.is_some();
        self.kv_encoding.unwrap_or(if on_device { Encoding::Bf16 } else { Encoding::F32 })
    }

    /// Measures how fast this machine is, for [`EngineBuilder::speeds`]: reads some of the weights if `plan`
    /// streams any and the speed of the `disk` is not known from before, multiplies with matrices like the model's and
    /// attends to a cache. Takes about a second and a quarter of the plan's budget. Of an assumed device nothing can be
    /// measured: its speeds are assumed.
    ///
    /// # Errors
    /// The weights cannot be read, or threads cannot be started.
    pub fn measure(&self, model: &Model, plan: &Plan, disk: Option<Speed>) -> Result<Speeds> {
        if self.device.is_none() && self.assumed.is_some() {
            let disk = measure::disk_speed(model, plan, self.io, disk)?;
            return Ok(Speeds { disk, ..self.assumed_speeds() });
        }
        measure::speeds(model, plan, self.io, self.kv(), &self.cpu()?, self.device.as_ref(), disk)
    }

    /// Plans, and starts to read the weights; they are there when a request needs them.
    ///
    /// # Errors
    /// A file cannot be read, a budget is too small, threads cannot be started, or the device refuses.
    pub fn build(self, model: Model) -> Result<Engine> {
        if self.device.is_none() && self.assumed.is_some() {
            let what = "a device that is assumed computes nothing: it is there for plans";
            return Err(Error::Request(what.to_owned()));
        }
        let plan = self.plan(&model)?;
        let budget = Budget::new(plan.budget);
        let cpu = self.cpu()?;
        let threads = cpu.threads();
        let defaults = if model.is_made() {
            GenerationDefaults::default()
        } else {
            GenerationDefaults::read(model.dir())?
        };
        let mut reserved = Vec::new();
        for (what, bytes) in &plan.host_needs {
            reserved.push(budget.reserve(what, *bytes)?);
        }
        let text_memory = budget.reserve("tokenizer", plan.tokenizer)?;
        reserved.push(budget.reserve("tables of weights", model.table_bytes())?);

        let trace = self.trace.then(|| Trace::new(&budget, TRACE_EVENTS)).transpose()?;
        let options = || {
            let names = Arc::clone(&plan.tiling);
            StreamOptions::default()
                .describe(move |tile: TileId| names.describe(tile.index()))
                .trace(trace.clone())
        };
        // Weights are read from end to end in every pass: few large pages spare the processor much looking up.
        let arena_options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
        let arena = Arena::new(&budget, "weights", plan.stream.arena, arena_options)?;
        let ranges = plan.tiling.tiles.iter().map(|tile| tile.read).collect();
        let (mut notes, mut reading) = (Vec::new(), None);
        let stream = if let Some(made) = model.made()? {
            Stream::start(&plan.stream, &arena, MadeSource::new(made, ranges), options())?
        } else {
            let reader_options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
            let reader = Reader::open(&model.paths()?, self.io, reader_options)?;
            notes.extend_from_slice(reader.notes());
            reading = Some(reader.method().name());
            Stream::start(&plan.stream, &arena, FileSource::new(reader, ranges), options())?
        };
        let decoder = match (&self.device, &plan.device) {
            (Some(device), Some(on_device)) => {
                let host = Host { stream, arena };
                let (decoder, taken) = self.on_device(&model, &plan, device, on_device, host, options())?;
                reserved.extend(taken);
                Compute::Cuda(Box::new(decoder))
            }
            _ => {
                let lowered = Arc::new(Lowered::in_float(model.shared_program()));
                let mut backend = CpuBackend::new(cpu, Arc::clone(&lowered), self.kv());
                let weights = Weights::new(&model, Arc::clone(&plan.tiling), stream, &mut backend)?;
                Compute::Cpu(Box::new(Decoder::new(lowered, weights, backend)))
            }
        };
        Ok(Engine {
            kv_encoding: self.kv(),
            reading,
            chunk: self.chunk_rows(&model).min(plan.workload.step_rows),
            wanted: plan.workload.wanted_rows,
            kv_budget: Budget::new(plan.kv),
            position_bytes: state::bytes(model.program(), self.kv(), 1),
            threads,
            model,
            defaults,
            decoder,
            text: self.text,
            stop_tokens: OnceLock::new(),
            text_memory,
            context: self.context,
            device: self.device,
            plan,
            budget,
            notes,
            _reserved: reserved,
            cancelled: Arc::default(),
        })
    }

    /// The decoder on a device, and what context and page tables take of the device's budget.
    fn on_device(
        &self,
        model: &Model,
        plan: &Plan,
        device: &Device,
        on_device: &DevicePlan,
        host: Host,
        options: StreamOptions,
    ) -> Result<(Decoder<CudaBackend>, [Reservation; 2])> {
        let lowered = Arc::new(Lowered::for_device(model.shared_program(), |id| model.operand(id)));
        let vram = Budget::new(on_device.budget);
        let context = vram.reserve("CUDA context", device.reserved_bytes())?;
        let page_tables = vram.reserve("page tables", on_device.page_tables)?;
        let taken = device.reserved_bytes() + on_device.page_tables;
        let rest = on_device.stream.total().saturating_sub(taken);
        let arena = DeviceArena::new(device.raw(), &vram, "weights and steps", rest, self.carving)?;
        let compute = DeviceStream::new(device.raw(), Priority::Normal)?;
        let mut backend = CudaBackend::new(
            device.clone(),
            compute.clone(),
            arena.clone(),
            Arc::clone(&lowered),
            (self.kv(), plan.kv),
            plan::limits(plan.workload),
        )?;
        let carve = |bytes: Bytes| Ok(DeviceRegion::new(arena.carve(bytes.get() as usize)?, &compute));
        let upload = Upload::new(host.stream, &host.arena, Copier::new(device.raw())?);
        let stream = Stream::start_on_device(&on_device.stream, carve, upload, options)?;
        let weights = Weights::new(model, Arc::clone(&plan.tiling), stream, &mut backend)?;
        Ok((Decoder::new(lowered, weights, backend), [context, page_tables]))
    }

    /// Threads that compute on the CPU.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        let all = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.unwrap_or_else(all).get()
    }

    fn cpu(&self) -> Result<Arc<Cpu>> {
        Ok(Arc::new(Cpu::with_isa(self.thread_count(), self.isa.unwrap_or_else(Isa::best))?))
    }
}

/// Weights in host memory, on their way to a device.
struct Host {
    stream: Stream,
    arena: Arena,
}

/// Rows of a step unless set otherwise: as many as 256 MiB of activations hold, with logits for each, up to
/// 512. It depends on the model alone, so that results never depend on a budget.
fn default_chunk(model: &Model) -> usize {
    const ACTIVATION_BYTES: usize = 256 << 20;
    let lowered = Lowered::in_float(model.shared_program());
    (ACTIVATION_BYTES / CpuBackend::activation_bytes(&lowered, 1, 1).max(1)).clamp(1, 512)
}
