//! The engine: a model loaded and ready to score and to generate.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use narrows_cpu::Cpu;
use narrows_shard::{Bytes, Encoding};

use crate::architecture::Architecture;
use crate::decoder::{Decoder, Segment};
use crate::error::{Error, Result};
use crate::model::Model;
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

/// Settings of an engine. Nothing is read or allocated before [`EngineBuilder::build`].
#[derive(Clone, Debug)]
#[must_use]
pub struct EngineBuilder {
    threads: Option<NonZeroUsize>,
    chunk: Option<NonZeroUsize>,
    kv_encoding: Encoding,
    context: Context,
}

impl EngineBuilder {
    /// Threads that compute; all that the machine has if not set.
    pub const fn threads(mut self, threads: Option<NonZeroUsize>) -> Self {
        self.threads = threads;
        self
    }

    /// Rows that one step computes at most; as many as 256 MiB of activations hold if not set, up to 512.
    pub const fn chunk(mut self, rows: Option<NonZeroUsize>) -> Self {
        self.chunk = rows;
        self
    }

    /// How keys and values are cached; float32 if not set.
    pub const fn kv_encoding(mut self, encoding: Encoding) -> Self {
        self.kv_encoding = encoding;
        self
    }

    /// How many positions a sequence may have.
    pub const fn context(mut self, context: Context) -> Self {
        self.context = context;
        self
    }

    /// Loads the model; `progress` hears the bytes of every tensor read.
    ///
    /// # Errors
    /// A file cannot be read, memory is short, or threads cannot be started.
    pub fn build(self, model: Model, progress: &mut dyn FnMut(Bytes)) -> Result<Engine> {
        let threads = match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let cpu = Cpu::new(threads.get())?;
        let defaults = GenerationDefaults::read(model.dir())?;
        let weights = Weights::load(&model, &cpu, progress)?;
        let chunk = self.chunk.map_or_else(|| default_chunk(model.architecture()), NonZeroUsize::get);
        let decoder = Decoder::new(model.architecture().clone(), weights, cpu);
        Ok(Engine {
            model,
            defaults,
            decoder,
            text: None,
            chunk,
            kv_encoding: self.kv_encoding,
            context: self.context,
        })
    }
}

fn default_chunk(architecture: &Architecture) -> usize {
    const ACTIVATION_BYTES: usize = 256 << 20;
    (ACTIVATION_BYTES / Decoder::row_bytes(architecture)).clamp(1, 512)
}

/// A loaded model.
pub struct Engine {
    model: Model,
    defaults: GenerationDefaults,
    pub(crate) decoder: Decoder,
    text: Option<Arc<Text>>,
    pub(crate) chunk: usize,
    kv_encoding: Encoding,
    context: Context,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.model.dir()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Default settings: all threads, float32 KV cache, the context that a request needs.
    pub const fn builder() -> EngineBuilder {
        EngineBuilder { threads: None, chunk: None, kv_encoding: Encoding::F32, context: Context::Auto }
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
    pub fn threads(&self) -> usize {
        self.decoder.cpu().threads()
    }

    /// Bytes read from the model's files so far.
    #[must_use]
    pub const fn bytes_read(&self) -> Bytes {
        Bytes(self.decoder.bytes_read())
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
        self.text = Some(Arc::clone(&text));
        Ok(text)
    }

    /// Positions that a sequence may have at most.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        match self.context {
            Context::Positions(n) => n,
            Context::Auto => self.decoder.architecture().max_positions.unwrap_or(usize::MAX),
        }
    }

    /// Refuses what cannot be computed before any work is done.
    pub(crate) fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Request("the prompt is empty: there is no token to start from".to_owned()));
        }
        let vocab = self.decoder.architecture().vocab_size;
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
        Sequence::new(self.decoder.architecture(), self.kv_encoding, self.capacity(prompt, new))
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
        let vocab = self.decoder.architecture().vocab_size;
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
            let mut room = self.chunk;
            let mut told = Vec::new();
            let mut segments = Vec::new();
            for (index, input, sequence) in &mut active {
                let start = sequence.len();
                let tokens = &input.tokens[start..input.tokens.len().min(start + room)];
                room -= tokens.len();
                let wanted = input.wanted.start.max(start)..input.wanted.end.min(start + tokens.len());
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
