//! The engine: a model loaded and ready to score and to generate.

mod builder;
mod feed;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use narrows_model::Program;
use narrows_shard::{Bytes, Encoding};
use narrows_staging::{Budget, Reservation};

pub use self::builder::EngineBuilder;
pub use self::feed::Feed;
use crate::compute::Compute;
use crate::decoder::Segment;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generation_config::GenerationDefaults;
use crate::model::Model;
use crate::plan::Plan;
use crate::sequence::Sequence;
use crate::text::Text;

/// How many positions a sequence may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
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
    pub fn positions(self, program: &Program) -> usize {
        match self {
            Self::Positions(n) => n,
            Self::Auto => program.dims.max_positions.unwrap_or(usize::MAX),
        }
    }
}

/// A model ready to score and to generate.
pub struct Engine {
    model: Model,
    defaults: GenerationDefaults,
    pub(crate) decoder: Compute,
    text: Option<Arc<Text>>,
    /// What [`Text::stop_tokens_of`] says, once asked for.
    stop_tokens: OnceLock<Vec<u32>>,
    /// What the tokenizer takes of the budget, or will take.
    text_memory: Reservation,
    /// Rows of a step at most, and of them with logits.
    pub(crate) chunk: usize,
    pub(crate) wanted: usize,
    kv_encoding: Encoding,
    position_bytes: Bytes,
    threads: usize,
    reading: Option<&'static str>,
    device: Option<Device>,
    kv_budget: Budget,
    context: Context,
    plan: Plan,
    budget: Budget,
    notes: Vec<String>,
    /// Held for as long as what they are for.
    _reserved: Vec<Reservation>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.model.dir()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Default settings: all threads, a cap of 80 % of the memory that is available, float32 KV cache, the context
    /// that a request needs, and one sequence of 512 positions at a time.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
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

    /// How keys and values are cached.
    #[must_use]
    pub const fn kv_encoding(&self) -> Encoding {
        self.kv_encoding
    }

    /// How files of weights are read, in a few words; `None` where no files are.
    #[must_use]
    pub const fn reading(&self) -> Option<&'static str> {
        self.reading
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

    /// Ends what is computed between two steps once `flag` is set, so that a long prompt can be given up, too:
    /// generations finish as [`Finish::Cancelled`](crate::Finish::Cancelled), scores end with [`Error::Cancelled`].
    pub fn cancel_on(&mut self, flag: Arc<AtomicBool>) {
        self.cancelled = flag;
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The tokenizer and chat template, read when first asked for: a model runs on token ids without them.
    ///
    /// # Errors
    /// As [`Text::read`].
    pub fn text(&mut self) -> Result<Arc<Text>> {
        if let Some(text) = &self.text {
            return Ok(Arc::clone(text));
        }
        // Refused before it is read, if it was not planned for and nothing is left.
        if self.text_memory.bytes() == Bytes(0) {
            self.text_memory.grow(self.model.text_memory()?)?;
        }
        let text = Arc::new(Text::read(self.model.dir())?);
        self.text_memory.grow(text.memory().saturating_sub(self.text_memory.bytes()))?;
        self.text = Some(Arc::clone(&text));
        Ok(text)
    }

    /// The tokens that end a text or a turn by the tokenizer's files and its family's code, read without the tokenizer.
    pub(crate) fn stop_tokens(&self) -> Result<Vec<u32>> {
        if let Some(text) = &self.text {
            return Ok(text.stop_tokens());
        }
        if let Some(tokens) = self.stop_tokens.get() {
            return Ok(tokens.clone());
        }
        let tokens = if self.model.is_made() { Vec::new() } else { Text::stop_tokens_of(self.model.dir())? };
        Ok(self.stop_tokens.get_or_init(|| tokens).clone())
    }

    /// Positions that a sequence may have at most.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.context.positions(self.model.program())
    }

    /// Refuses what cannot be computed before any work is done.
    pub(crate) fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Request("the prompt is empty: there is no token to start from".to_owned()));
        }
        let vocab = self.model.program().dims.vocab;
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

    /// Refuses a sequence that would not fit if it were the only one.
    pub(crate) fn check_capacity(&self, prompt: usize, new: usize) -> Result<()> {
        let needed = self.capacity(prompt, new);
        let planned = (self.kv_budget.cap().get() / self.position_bytes.get().max(1)) as usize;
        if needed > planned { Err(Error::BeyondWorkload { needed, planned }) } else { Ok(()) }
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
    /// An input is empty, has a token outside the vocabulary, or is longer than the context; `each` fails; the flag of
    /// [`Engine::cancel_on`] is set.
    pub fn score(
        &mut self,
        inputs: &[ScoreInput<'_>],
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        for input in inputs {
            self.check_prompt(input.tokens)?;
        }
        let vocab = self.model.program().dims.vocab;
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
                return self.model.unchanged();
            }
            if self.is_cancelled() {
                return Err(Error::Cancelled);
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
#[non_exhaustive]
pub struct ScoreInput<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Positions whose logits are wanted.
    pub wanted: Range<usize>,
}

impl<'a> ScoreInput<'a> {
    /// The logits of the positions `wanted` of `tokens`.
    #[must_use]
    pub const fn new(tokens: &'a [u32], wanted: Range<usize>) -> Self {
        Self { tokens, wanted }
    }
}
