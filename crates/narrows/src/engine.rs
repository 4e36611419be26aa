//! The engine: a model loaded and ready to score and to generate.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use narrows_cpu::Cpu;
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{Carving, Copier, DeviceArena, DeviceRegion, Priority, Stream as DeviceStream};
use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Reader, ReaderOptions, Reservation};
use narrows_stream::{FileSource, Options as StreamOptions, Stream, TileId, Trace, Upload};

use crate::architecture::Architecture;
use crate::backend::{CpuBackend, CudaBackend};
use crate::compute::Compute;
use crate::decoder::{Decoder, Segment};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::measure;
use crate::model::Model;
use crate::plan::{self, DevicePlan, DeviceSettings, Plan, Settings, Speeds, Workload};
use crate::sampling::GenerationDefaults;
use crate::sequence::Sequence;
use crate::text::Text;
use crate::weights::Weights;

/// How many positions a sequence may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Context {
    /// What the request needs, up to what the model was made for.
    #[default]
    Auto,
    /// Exactly this many at most, even beyond what the model was made for.
    Positions(usize),
}

impl Context {
    /// Positions that a sequence may have at most.
    #[must_use]
    pub fn positions(self, architecture: &Architecture) -> usize {
        match self {
            Self::Positions(n) => n,
            Self::Auto => architecture.max_positions.unwrap_or(usize::MAX),
        }
    }
}

/// Settings of an engine. Nothing is read or allocated before [`EngineBuilder::build`].
#[derive(Clone, Debug)]
#[must_use]
pub struct EngineBuilder {
    threads: Option<NonZeroUsize>,
    chunk: Option<NonZeroUsize>,
    kv_encoding: Option<Encoding>,
    context: Context,
    ram: Option<Bytes>,
    device: Option<Device>,
    vram: Option<Bytes>,
    carving: Carving,
    io: IoMode,
    slots: Option<NonZeroUsize>,
    tile: Option<Bytes>,
    workload: Workload,
    speeds: Speeds,
    text: Option<Arc<Text>>,
    trace: bool,
}

/// Events that a trace keeps, the latest: some hundred passes of a small model, some of a large one.
const TRACE_EVENTS: usize = 1 << 16;

impl EngineBuilder {
    /// Threads that compute; all that the machine has if not set.
    pub const fn threads(mut self, threads: Option<NonZeroUsize>) -> Self {
        self.threads = threads;
        self
    }

    /// Rows that one step computes at most; as many as 256 MiB of activations hold, up to 512, if not set.
    pub const fn chunk(mut self, rows: Option<NonZeroUsize>) -> Self {
        self.chunk = rows;
        self
    }

    /// How keys and values are cached; float32 on the CPU and bfloat16 on a device if not set.
    pub const fn kv_encoding(mut self, encoding: Option<Encoding>) -> Self {
        self.kv_encoding = encoding;
        self
    }

    /// How many positions a sequence may have.
    pub const fn context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// A hard cap on memory for weights, staging, KV cache and activations together; none if not set.
    pub const fn ram(mut self, budget: Option<Bytes>) -> Self {
        self.ram = budget;
        self
    }

    /// Computes on a device instead of the CPU.
    pub fn device(mut self, device: Option<Device>) -> Self {
        self.device = device;
        self
    }

    /// A hard cap on the device's memory, with all that is in use of it before: weights, slots, KV cache,
    /// activations and the context; all that is free if not set.
    pub const fn vram(mut self, budget: Option<Bytes>) -> Self {
        self.vram = budget;
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
    pub const fn slots(mut self, slots: Option<NonZeroUsize>) -> Self {
        self.slots = slots;
        self
    }

    /// Size of a tile at most; 8 MiB if not set.
    pub const fn tile(mut self, tile: Option<Bytes>) -> Self {
        self.tile = tile;
        self
    }

    /// The most that will be asked at a time. Memory for it is set aside; a request for more is refused.
    pub const fn workload(mut self, workload: Workload) -> Self {
        self.workload = workload;
        self
    }

    /// How fast the machine is, for the plan's prediction; nothing else depends on it.
    pub const fn speeds(mut self, speeds: Speeds) -> Self {
        self.speeds = speeds;
        self
    }

    /// A tokenizer that was read already. Without it, one is read when first asked for.
    pub fn text(mut self, text: Option<Arc<Text>>) -> Self {
        self.text = text;
        self
    }

    /// Keeps a trace of what is read and computed when.
    pub const fn trace(mut self, trace: bool) -> Self {
        self.trace = trace;
        self
    }

    /// Rows of a step that the settings come to for `architecture`.
    #[must_use]
    pub fn chunk_rows(&self, architecture: &Architecture) -> usize {
        self.chunk.map_or_else(|| default_chunk(architecture), NonZeroUsize::get)
    }

    /// Decides from the headers alone where every weight will be, and predicts how long a pass will take.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], with the smallest budget that works.
    pub fn plan(&self, model: &Model) -> Result<Plan> {
        let settings = Settings {
            device: self.device.as_ref().map(|device| self.device_settings(device)).transpose()?,
            budget: self.ram.unwrap_or(Bytes(u64::MAX)),
            workload: self.workload,
            kv_encoding: self.kv(),
            tokenizer: self.text.as_ref().map_or(Bytes(0), |text| text.memory()),
            slots: self.slots.map(NonZeroUsize::get),
            tile: self.tile,
            trace: if self.trace { Trace::memory(TRACE_EVENTS) } else { Bytes(0) },
            speeds: self.speeds,
        };
        Plan::new(model, &settings)
    }

    fn device_settings(&self, device: &Device) -> Result<DeviceSettings> {
        let context = device.reserved_bytes();
        let budget = match self.vram {
            Some(budget) if budget > device.available() => {
                return Err(Error::VramBeyondDevice {
                    budget,
                    device: device.name().to_owned(),
                    available: device.available(),
                });
            }
            Some(budget) => budget,
            None => device.available(),
        };
        Ok(DeviceSettings { budget, context })
    }

    fn kv(&self) -> Encoding {
        self.kv_encoding.unwrap_or(if self.device.is_some() { Encoding::Bf16 } else { Encoding::F32 })
    }

    /// Measures how fast this machine is, for [`EngineBuilder::speeds`]: reads some of the weights if `plan`
    /// streams any, and multiplies a matrix. Takes less than a second and a quarter of the plan's budget.
    ///
    /// # Errors
    /// The weights cannot be read, or threads cannot be started.
    pub fn measure(&self, model: &Model, plan: &Plan) -> Result<Speeds> {
        measure::speeds(model, plan, self.io, &self.cpu()?, self.device.as_ref())
    }

    /// Plans, and starts to read the weights; they are there when a request needs them.
    ///
    /// # Errors
    /// A file cannot be read, a budget is too small, threads cannot be started, or the device refuses.
    pub fn build(self, model: Model) -> Result<Engine> {
        let plan = self.plan(&model)?;
        let budget = Budget::new(plan.budget);
        let cpu = self.cpu()?;
        let threads = cpu.threads();
        let defaults = GenerationDefaults::read(model.dir())?;
        let mut reserved = Vec::new();
        for (what, bytes) in &plan.host_needs {
            reserved.push(budget.reserve(what, *bytes)?);
        }
        if let Some(text) = &self.text {
            reserved.push(budget.reserve("tokenizer", text.memory())?);
        }

        let trace = self.trace.then(|| Trace::new(&budget, TRACE_EVENTS)).transpose()?;
        let options = || {
            let names = Arc::clone(&plan.tiling);
            let describe = Arc::new(move |tile: TileId| names.describe(tile.index()));
            StreamOptions { describe, trace: trace.clone() }
        };
        // Weights are read from end to end in every pass: few large pages spare the processor much looking up.
        let arena_options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
        let arena = Arena::new(&budget, "weights", plan.stream.arena, arena_options)?;
        let reader_options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
        let reader = Reader::open(&model.paths(), self.io, reader_options)?;
        let notes = reader.notes().to_vec();
        let source = FileSource::new(reader, plan.tiling.tiles.iter().map(|tile| tile.read).collect());
        let stream = Stream::start(&plan.stream, &arena, source, options())?;
        let decoder = match (&self.device, &plan.device) {
            (Some(device), Some(on_device)) => {
                let host = Host { stream, arena };
                let (decoder, context) = self.on_device(&model, &plan, device, on_device, host, options())?;
                reserved.push(context);
                Compute::Cuda(Box::new(decoder))
            }
            _ => {
                let a = model.architecture().clone();
                let mut backend = CpuBackend::new(cpu, a.clone(), self.kv());
                let weights = Weights::new(&model, Arc::clone(&plan.tiling), stream, &mut backend)?;
                Compute::Cpu(Box::new(Decoder::new(a, weights, backend)))
            }
        };
        Ok(Engine {
            chunk: self.chunk_rows(model.architecture()).min(plan.workload.step_rows),
            wanted: plan.workload.wanted_rows,
            kv_budget: Budget::new(plan.kv),
            position_bytes: model.architecture().kv_bytes(self.kv(), 1),
            threads,
            model,
            defaults,
            decoder,
            text: self.text,
            context: self.context,
            device: self.device,
            plan,
            budget,
            notes,
            reserved,
        })
    }

    /// The decoder on a device, and what the context takes of the device's budget.
    fn on_device(
        &self,
        model: &Model,
        plan: &Plan,
        device: &Device,
        on_device: &DevicePlan,
        host: Host,
        options: StreamOptions,
    ) -> Result<(Decoder<CudaBackend>, Reservation)> {
        let a = model.architecture().clone();
        let vram = Budget::new(on_device.budget);
        let context = vram.reserve("CUDA context", device.reserved_bytes())?;
        let rest = on_device.stream.total().saturating_sub(device.reserved_bytes());
        let arena = DeviceArena::new(device.raw(), &vram, "weights and steps", rest, self.carving)?;
        let compute = DeviceStream::new(device.raw(), Priority::Normal)?;
        let mut backend = CudaBackend::new(
            device.clone(),
            compute.clone(),
            arena.clone(),
            a.clone(),
            (self.kv(), plan.kv),
            plan::limits(plan.workload),
        )?;
        let carve = |bytes: Bytes| Ok(DeviceRegion::new(arena.carve(bytes.get() as usize)?, &compute)?);
        let upload = Upload::new(host.stream, &host.arena, Copier::new(device.raw())?);
        let stream = Stream::start_on_device(&on_device.stream, carve, upload, options)?;
        let weights = Weights::new(model, Arc::clone(&plan.tiling), stream, &mut backend)?;
        Ok((Decoder::new(a, weights, backend), context))
    }

    fn cpu(&self) -> Result<Cpu> {
        let threads = match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        Ok(Cpu::new(threads.get())?)
    }
}

/// Weights in host memory, on their way to a device.
struct Host {
    stream: Stream,
    arena: Arena,
}

/// Rows of a step unless set otherwise: as many as 256 MiB of activations hold, with logits for each, up to
/// 512. It depends on the model alone, so that results never depend on a budget.
fn default_chunk(architecture: &Architecture) -> usize {
    const ACTIVATION_BYTES: usize = 256 << 20;
    (ACTIVATION_BYTES / CpuBackend::activation_bytes(architecture, 1, 1)).clamp(1, 512)
}

/// A model ready to score and to generate.
pub struct Engine {
    model: Model,
    defaults: GenerationDefaults,
    pub(crate) decoder: Compute,
    text: Option<Arc<Text>>,
    /// Rows of a step at most, and of them with logits.
    pub(crate) chunk: usize,
    pub(crate) wanted: usize,
    position_bytes: Bytes,
    threads: usize,
    device: Option<Device>,
    kv_budget: Budget,
    context: Context,
    plan: Plan,
    budget: Budget,
    notes: Vec<String>,
    reserved: Vec<Reservation>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.model.dir()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Default settings: all threads, no cap on memory, float32 KV cache, the context that a request needs, and
    /// the workload of one sequence of 512 positions.
    pub fn builder() -> EngineBuilder {
        EngineBuilder {
            threads: None,
            chunk: None,
            kv_encoding: None,
            context: Context::Auto,
            ram: None,
            device: None,
            vram: None,
            carving: Carving::Together,
            io: IoMode::Auto,
            slots: None,
            tile: None,
            workload: Workload { sequences: 1, positions: 512, step_rows: 512, wanted_rows: 1 },
            speeds: Speeds::default(),
            text: None,
            trace: false,
        }
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What `generation_config.json` asks for.
    #[must_use]
    pub const fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// Threads that compute.
    #[must_use]
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// Payload read from the model's files so far: tiles, vectors and rows of the embedding.
    #[must_use]
    pub fn bytes_read(&self) -> Bytes {
        self.stream_stats().disk.bytes + Bytes(self.decoder.bytes_read())
    }

    /// What the stream of weights has moved, and how long each stage was busy or waited.
    #[must_use]
    pub fn stream_stats(&self) -> narrows_stream::Stats {
        self.decoder.stats()
    }

    /// A window into the stream of weights for other threads.
    #[must_use]
    pub fn monitor(&self) -> narrows_stream::Monitor {
        self.decoder.monitor()
    }

    /// The plan.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The most memory that was taken of the budget.
    #[must_use]
    pub fn peak_host_bytes(&self) -> Bytes {
        self.budget.peak()
    }

    /// What the reader fell back to, and why; a line each.
    #[must_use]
    pub fn io_notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes the trace as Chrome JSON, if [`EngineBuilder::trace`] asked for one.
    ///
    /// # Errors
    /// `to` cannot be written.
    pub fn write_trace(&self, to: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.decoder.monitor().write_trace(to)
    }

    /// Calls `hook(layer)` before each layer of each pass, for progress displays.
    pub fn on_layer(&mut self, hook: impl FnMut(usize) + Send + 'static) {
        self.decoder.on_layer(Box::new(hook));
    }

    /// The tokenizer and chat template, read when first asked for: a model runs on token ids without them.
    ///
    /// # Errors
    /// As [`Text::read`].
    pub fn text(&mut self) -> Result<Arc<Text>> {
        if let Some(text) = &self.text {
            return Ok(Arc::clone(text));
        }
        let text = Arc::new(Text::read(self.model.dir())?);
        self.reserved.push(self.budget.reserve("tokenizer", text.memory())?);
        self.text = Some(Arc::clone(&text));
        Ok(text)
    }

    /// Positions that a sequence may have at most.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.context.positions(self.model.architecture())
    }

    /// Refuses what cannot be computed before any work is done.
    pub(crate) fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Request("the prompt is empty: there is no token to start from".to_owned()));
        }
        let vocab = self.model.architecture().vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(Error::Request(format!("token id {token} is outside the vocabulary of {vocab}")));
        }
        let context = self.max_positions();
        if tokens.len() > context {
            return Err(Error::PromptTooLong { prompt: tokens.len(), context });
        }
        Ok(())
    }

    /// Positions of a sequence of `prompt` tokens and, within the context, `new` more.
    pub(crate) fn capacity(&self, prompt: usize, new: usize) -> usize {
        prompt.saturating_add(new).min(self.max_positions())
    }

    /// An empty sequence of that capacity.
    pub(crate) fn sequence(&self, prompt: usize, new: usize) -> Result<Sequence> {
        let capacity = self.capacity(prompt, new);
        Sequence::new(self.decoder.cache(), self.position_bytes, capacity, &self.kv_budget)
    }

    /// An empty sequence that is to be the only one, and may grow: on a device, where growing takes the old memory
    /// and the new at a time, it gets all there is at once.
    pub(crate) fn sequence_for_all(&self, prompt: usize, new: usize) -> Result<Sequence> {
        match &self.device {
            Some(_) => self.sequence(self.plan.workload.positions.max(self.capacity(prompt, new)), 0),
            None => self.sequence(prompt, new),
        }
    }

    /// What is in use of the device's memory, as its driver reports it: the engine takes all of its share when it is
    /// built, so this is its peak too.
    #[must_use]
    pub fn peak_device_bytes(&self) -> Option<Bytes> {
        self.device.as_ref().and_then(|device| device.used().ok())
    }

    /// The device that computes, if it is not the CPU.
    #[must_use]
    pub const fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Computes the logits of whole sequences and hands those of `wanted` positions to `each`, in order:
    /// `each(input, position, logits)`, with `logits` `[vocab]`.
    ///
    /// Sequences share steps, so that short ones cost no pass of their own.
    ///
    /// # Errors
    /// An input is empty, has a token outside the vocabulary, or is longer than the context; `each` fails.
    pub fn score(
        &mut self,
        inputs: &[ScoreInput<'_>],
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        for input in inputs {
            self.check_prompt(input.tokens)?;
        }
        let vocab = self.model.architecture().vocab_size;
        let mut waiting = inputs.iter().enumerate();
        let mut active: VecDeque<(usize, &ScoreInput<'_>, Sequence)> = VecDeque::new();
        loop {
            // Enough sequences to fill a step.
            let mut rows: usize = active.iter().map(|(_, input, seq)| input.tokens.len() - seq.len()).sum();
            while rows < self.chunk
                && let Some((index, input)) = waiting.next()
            {
                let mut sequence = self.sequence(input.tokens.len(), 0)?;
                sequence.announce(input.tokens.len());
                rows += input.tokens.len();
                active.push_back((index, input, sequence));
            }
            if active.is_empty() {
                return Ok(());
            }
            let (mut room, mut wanted_room) = (self.chunk, self.wanted);
            let mut told = Vec::new();
            let mut segments = Vec::new();
            for (index, input, sequence) in &mut active {
                let start = sequence.len();
                // No more rows with logits than there is memory for.
                let first_wanted = input.wanted.start.clamp(start, input.tokens.len());
                let rows = room.min((first_wanted - start).saturating_add(wanted_room));
                let tokens = &input.tokens[start..input.tokens.len().min(start + rows)];
                room -= tokens.len();
                let wanted = input.wanted.start.max(start)..input.wanted.end.min(start + tokens.len());
                wanted_room -= wanted.len();
                told.extend(wanted.clone().map(|position| (*index, position)));
                let wanted = if wanted.is_empty() { 0..0 } else { wanted.start - start..wanted.end - start };
                if !tokens.is_empty() {
                    segments.push(Segment { sequence, tokens, wanted });
                }
            }
            let logits = self.decoder.step(&mut segments)?;
            for ((index, position), row) in told.into_iter().zip(logits.chunks_exact(vocab)) {
                each(index, position, row)?;
            }
            active.retain(|(_, input, sequence)| sequence.len() < input.tokens.len());
        }
    }
}

/// A sequence to score.
#[derive(Clone, Debug)]
pub struct ScoreInput<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Positions whose logits are wanted.
    pub wanted: Range<usize>,
}
