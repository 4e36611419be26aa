//! Generation: requests in, tokens and text out, any number of sequences in one pass.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use narrows_shard::Bytes;

use crate::decoder::Segment;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::sampling::{Sampler, Sampling};
use crate::sequence::Sequence;
use crate::text::{ChatOptions, Message, StopMatcher, Text, TextStream};

/// What to continue. Text and lists of token ids convert into it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Prompt {
    /// Text, as it is.
    Text(String),
    /// A chat, put into the form that the model's template gives it.
    Chat(Vec<Message>, ChatOptions),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Token ids of a text or a chat: [`Prompt::encoded`] makes them.
    Encoded {
        /// What the model is given.
        tokens: Vec<u32>,
        /// Whether it answers them, as a chat, or goes on with them.
        reply: bool,
    },
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl Prompt {
    /// The token ids that the model is given.
    ///
    /// # Errors
    /// It is text and there is no tokenizer, or no chat template for a chat; or they refuse it.
    pub fn tokens(&self, text: Option<&Text>) -> Result<Vec<u32>> {
        self.tokens_within(text, None)
    }

    fn tokens_within(&self, text: Option<&Text>, budget: Option<Bytes>) -> Result<Vec<u32>> {
        let encode = |text: &Text, prompt: &str, special_tokens| {
            if let Some(budget) = budget {
                text.check_encoding(prompt.len(), budget)?;
            }
            text.encode(prompt, special_tokens)
        };
        let need_text = || text.ok_or_else(|| Error::Request("a text prompt needs a tokenizer".to_owned()));
        match self {
            Self::Text(prompt) if prompt.is_empty() => Ok(Vec::new()),
            Self::Text(prompt) => encode(need_text()?, prompt, true),
            Self::Chat(messages, options) => {
                let text = need_text()?;
                let template = text
                    .chat_template()?
                    .ok_or_else(|| Error::Request("the model has no chat template".to_owned()))?;
                // The template writes the special tokens itself.
                encode(text, &template.render(messages, options)?, false)
            }
            Self::Tokens(tokens) | Self::Encoded { tokens, .. } => Ok(tokens.clone()),
        }
    }

    /// The same prompt, rendered and encoded, so that it need not be again.
    ///
    /// # Errors
    /// As [`Prompt::tokens`].
    pub fn encoded(self, text: Option<&Text>) -> Result<Self> {
        self.encoded_within(text, None)
    }

    /// The same, if encoding what there is to encode takes no more than `budget` together with the tokenizer: a chat is as
    /// long as its template makes it.
    ///
    /// # Errors
    /// As [`Prompt::tokens`], and [`Error::DoesNotFit`].
    pub fn encoded_within(self, text: Option<&Text>, budget: Option<Bytes>) -> Result<Self> {
        let reply = match self {
            Self::Text(_) => false,
            Self::Chat(..) => true,
            Self::Tokens(_) | Self::Encoded { .. } => return Ok(self),
        };
        Ok(Self::Encoded { tokens: self.tokens_within(text, budget)?, reply })
    }
}

/// One text to generate.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Texts that end the generation; they are not part of the result.
    pub stop: Vec<String>,
    /// Goes on after a token that ends a text.
    pub ignore_eos: bool,
}

impl Request {
    /// A greedy request for 64 tokens.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        let prompt = prompt.into();
        Self { prompt, sampling: Sampling::GREEDY, max_new_tokens: 64, stop: Vec::new(), ignore_eos: false }
    }

    /// Sets how tokens are chosen.
    pub const fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets how many tokens to generate at most.
    pub const fn max_new_tokens(mut self, n: usize) -> Self {
        self.max_new_tokens = n;
        self
    }

    /// Sets the texts that end the generation.
    pub fn stop(mut self, stop: Vec<String>) -> Self {
        self.stop = stop;
        self
    }

    /// Sets whether to go on after a token that ends a text.
    pub const fn ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string came up.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller ended it.
    Cancelled,
}

impl Finish {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// News of a text being generated.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Event<'a> {
    /// Which request.
    pub request: usize,
    /// A new token; `None` for the last of the text that was held back.
    pub token: Option<u32>,
    /// Text that is now certain; often empty, never half a character.
    pub text: &'a str,
}

/// A finished text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The new tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// The new text; `None` for a prompt of token ids without stop strings.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a generation took.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of all prompts that were computed; what a session still had is not among them.
    pub prompt_tokens: usize,
    /// New tokens of all requests.
    pub new_tokens: usize,
    /// Passes over the weights.
    pub passes: usize,
    /// From the start to the first new token.
    pub first_token: Duration,
    /// From the start to the end.
    pub wall: Duration,
    /// Time of the passes in which no prompt token was computed, and the tokens that came of them.
    pub decode: Duration,
    /// See `decode`.
    pub decode_tokens: usize,
    /// Bytes read from the model's files since it was opened, its loading included.
    pub bytes_read: Bytes,
}

/// Finished texts and what they took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generation {
    /// In the order of the requests.
    pub completions: Vec<Completion>,
    /// All requests together.
    pub stats: Stats,
}

/// A sequence being generated.
struct Running<'t> {
    /// `None` while it waits for memory, and after its end in a batch, where others wait for it.
    sequence: Option<Sequence>,
    prompt_len: usize,
    /// Tokens not yet computed: the rest of the prompt, or the token just chosen.
    pending: Vec<u32>,
    /// Lengths beyond which keys of all positions are turned otherwise.
    switches_at: Vec<usize>,
    /// The prompt, where there are such lengths.
    prompt: Vec<u32>,
    in_prompt: bool,
    sampler: Sampler,
    stream: Option<TextStream<'t>>,
    stops: StopMatcher,
    eos: Vec<u32>,
    max_new_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    finish: Option<Finish>,
}

impl Engine {
    /// Generates all requests together: every pass over the weights serves all of them whose sequences fit into the
    /// memory that was set aside. The others begin, in their order, as those end; what comes of a request does not
    /// depend on it.
    ///
    /// `on_event` hears of every token; breaking ends all texts after the tokens of the current pass.
    ///
    /// # Errors
    /// A request cannot be served (nothing is computed then), or a pass fails.
    pub fn generate(
        &mut self,
        requests: &[Request],
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let text = self.text_for(requests)?;
        let mut running = requests
            .iter()
            .map(|request| {
                let tokens = self.prompt_tokens(request, text.as_deref())?;
                self.check_capacity(tokens.len(), request.max_new_tokens)?;
                self.start(request, None, &tokens, text.as_deref())
            })
            .collect::<Result<Vec<_>>>()?;
        let stats = self.run(&mut running, true, on_event)?;
        Ok(Generation { completions: running.into_iter().map(|r| r.split().1).collect(), stats })
    }

    /// A conversation that keeps its KV cache between requests.
    pub const fn session(&mut self) -> Session<'_> {
        Session { engine: self, kept: None }
    }

    fn prompt_tokens(&self, request: &Request, text: Option<&Text>) -> Result<Vec<u32>> {
        request.sampling.check()?;
        let room = text.map(|text| self.encoding_room(text));
        let tokens = request.prompt.tokens_within(text, room)?;
        self.check_prompt(&tokens)?;
        Ok(tokens)
    }

    /// What the tokenizer and the encoding of a prompt may take together while the weights are there: what the plan leaves
    /// of the budget, and in any case four bytes of text for each position.
    fn encoding_room(&self, text: &Text) -> Bytes {
        let plan = self.plan();
        let left = plan.budget.saturating_sub(plan.stream.total());
        text.memory() + left.max(Text::encoding_memory(self.max_positions().saturating_mul(4)))
    }

    fn text_for(&mut self, requests: &[Request]) -> Result<Option<std::sync::Arc<Text>>> {
        let needed = requests.iter().any(|r| !matches!(r.prompt, Prompt::Tokens(_)) || !r.stop.is_empty());
        needed.then(|| self.text()).transpose()
    }

    fn start<'t>(
        &self,
        request: &Request,
        mut sequence: Option<Sequence>,
        prompt: &[u32],
        text: Option<&'t Text>,
    ) -> Result<Running<'t>> {
        let eos = if request.ignore_eos { Vec::new() } else { self.eos_token_ids(text)? };
        let as_text = !matches!(request.prompt, Prompt::Tokens(_)) || !request.stop.is_empty();
        // Raw text goes on in the middle of a sentence, where a leading space counts; a reply starts anew.
        let goes_on = matches!(request.prompt, Prompt::Text(_) | Prompt::Encoded { reply: false, .. });
        let context = if goes_on { prompt } else { &[] };
        if let Some(sequence) = &mut sequence {
            sequence.announce(prompt.len());
        }
        let switches_at: Vec<_> =
            self.model().program().ropes.iter().filter_map(narrows_model::Rope::switches_at).collect();
        Ok(Running {
            pending: prompt[sequence.as_ref().map_or(0, Sequence::len)..].to_vec(),
            prompt: if switches_at.is_empty() { Vec::new() } else { prompt.to_vec() },
            switches_at,
            in_prompt: true,
            prompt_len: prompt.len(),
            sequence,
            sampler: Sampler::new(request.sampling.clone(), prompt),
            stream: text.filter(|_| as_text).map(|text| TextStream::new(text, context)),
            stops: StopMatcher::new(&request.stop),
            eos,
            max_new_tokens: request.max_new_tokens,
            tokens: Vec::new(),
            text: String::new(),
            finish: (request.max_new_tokens == 0).then_some(Finish::Length),
        })
    }

    /// Tokens that end a text: those of generation_config.json, else of config.json, and the tokenizer's, which
    /// counts whether or not there is text.
    fn eos_token_ids(&self, text: Option<&Text>) -> Result<Vec<u32>> {
        let configured = match &self.defaults().eos_token_ids {
            ids if ids.is_empty() => &self.model().program().dims.eos,
            ids => ids,
        };
        let of_tokenizer = match text {
            Some(text) => text.stop_tokens(),
            None => self.stop_tokens()?,
        };
        Ok(configured.iter().copied().chain(of_tokenizer).collect())
    }

    /// Lets those that wait begin, in their order, for as long as there is memory.
    fn admit(&self, running: &mut [Running<'_>]) -> Result<()> {
        let mut others = running.iter().any(|r| r.sequence.is_some());
        for r in running.iter_mut().filter(|r| r.finish.is_none() && r.sequence.is_none()) {
            match self.sequence(r.prompt_len, r.max_new_tokens) {
                Ok(mut sequence) => {
                    sequence.announce(r.prompt_len);
                    r.sequence = Some(sequence);
                    others = true;
                }
                Err(Error::OutOfMemory { .. }) if others => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Serves all of `running` until each has an end. Those that end give their memory back if `release` says so.
    fn run(
        &mut self,
        running: &mut [Running<'_>],
        release: bool,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Stats> {
        let start = Instant::now();
        let vocab = self.model().program().dims.vocab;
        let mut stats = Stats::default();
        while running.iter().any(|r| r.finish.is_none()) {
            if self.is_cancelled() {
                running.iter_mut().for_each(|r| r.finish = r.finish.or(Some(Finish::Cancelled)));
                break;
            }
            self.admit(running)?;
            let pass_start = Instant::now();
            let (mut room, mut wanted) = (self.chunk, self.wanted);
            let mut prompt_rows = 0;
            let mut segments = Vec::new();
            // Of each text in this pass: which one, how many rows, and whether it comes to a new token.
            let mut served = Vec::new();
            for (index, r) in running.iter_mut().enumerate().filter(|(_, r)| r.finish.is_none()) {
                // No more rows with logits than there is memory for.
                if room == 0 || wanted == 0 {
                    break;
                }
                let Some(sequence) = &mut r.sequence else { break };
                let rows = r.pending.len().min(room);
                room -= rows;
                let complete = rows == r.pending.len();
                wanted -= usize::from(complete);
                prompt_rows += if r.in_prompt { rows } else { 0 };
                served.push((index, rows, complete));
                segments.push(Segment {
                    sequence,
                    tokens: &r.pending[..rows],
                    wanted: if complete { rows - 1..rows } else { 0..0 },
                });
            }
            let logits = self.decoder.step(&mut segments)?;
            drop(segments);
            stats.passes += 1;
            stats.prompt_tokens += prompt_rows;
            let new_before = stats.new_tokens;
            let mut rows_of_logits = logits.chunks_exact_mut(vocab);
            let mut go_on = ControlFlow::Continue(());
            for (index, rows, complete) in served {
                let r = &mut running[index];
                r.pending.drain(..rows);
                if !complete {
                    continue;
                }
                r.in_prompt = false;
                let Some(row) = rows_of_logits.next() else { continue };
                let token = r.sampler.next(row);
                if stats.new_tokens == 0 {
                    stats.first_token = start.elapsed();
                }
                stats.new_tokens += 1;
                let text = r.accept(token)?;
                if on_event(Event { request: index, token: Some(token), text: &text }).is_break() {
                    go_on = ControlFlow::Break(());
                }
            }
            if prompt_rows == 0 {
                stats.decode += pass_start.elapsed();
                stats.decode_tokens += stats.new_tokens - new_before;
            }
            if go_on.is_break() {
                for r in running.iter_mut().filter(|r| r.finish.is_none()) {
                    r.finish = Some(Finish::Cancelled);
                }
            }
            for r in running.iter_mut().filter(|r| release && r.finish.is_some()) {
                r.sequence = None;
            }
        }
        for (index, r) in running.iter_mut().enumerate() {
            let text = r.flush()?;
            if !text.is_empty() {
                let _ = on_event(Event { request: index, token: None, text: &text });
            }
        }
        stats.wall = start.elapsed();
        stats.bytes_read = self.bytes_read();
        // Weights that were written to meanwhile were not one model.
        self.model().unchanged()?;
        Ok(stats)
    }
}

impl Running<'_> {
    /// Takes a new token; returns the text that it makes certain.
    fn accept(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        if self.eos.contains(&token) {
            self.finish = Some(Finish::Eos);
            return Ok(String::new());
        }
        let piece = match &mut self.stream {
            Some(stream) => stream.push(token)?,
            None => String::new(),
        };
        let (text, stopped) = self.stops.push(&piece);
        self.text += &text;
        self.finish = if stopped {
            Some(Finish::Stop)
        } else if self.tokens.len() >= self.max_new_tokens {
            Some(Finish::Length)
        } else if self.sequence.as_ref().is_none_or(|sequence| sequence.len() >= sequence.capacity()) {
            Some(Finish::Context)
        } else {
            self.pending.push(token);
            self.begin_again();
            None
        };
        Ok(text)
    }

    /// Where the next position makes the sequence longer than its keys were turned for, all is computed once more.
    fn begin_again(&mut self) {
        let Some(sequence) = &mut self.sequence else { return };
        let (len, all) = (sequence.len(), self.prompt_len + self.tokens.len());
        let before = sequence.rope_length(len.saturating_sub(1));
        if self.switches_at.iter().any(|at| before <= *at && len + 1 > *at) && len + 1 == all {
            sequence.truncate(0);
            sequence.announce(all);
            self.pending = self.prompt.iter().chain(&self.tokens).copied().collect();
        }
    }

    /// The text that was held back, once nothing can follow it.
    fn flush(&mut self) -> Result<String> {
        if self.finish == Some(Finish::Stop) {
            return Ok(String::new());
        }
        let rest = match &mut self.stream {
            Some(stream) => stream.finish()?,
            None => String::new(),
        };
        let (mut text, stopped) = self.stops.push(&rest);
        if stopped {
            self.finish = Some(Finish::Stop);
        } else {
            text += &self.stops.finish();
        }
        self.text += &text;
        Ok(text)
    }

    fn split(self) -> (Option<Sequence>, Completion) {
        let completion = Completion {
            tokens: self.tokens,
            text: self.stream.is_some().then_some(self.text),
            finish: self.finish.unwrap_or(Finish::Cancelled),
        };
        (self.sequence, completion)
    }
}

/// A conversation: what a request's prompt shares with the last one is not computed again.
#[derive(Debug)]
pub struct Session<'e> {
    engine: &'e mut Engine,
    /// The cache and the tokens in it.
    kept: Option<(Sequence, Vec<u32>)>,
}

impl Session<'_> {
    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        self.engine
    }

    /// Generates one request.
    ///
    /// # Errors
    /// As [`Engine::generate`]. The session then starts afresh.
    pub fn generate(
        &mut self,
        request: &Request,
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Completion, Stats)> {
        let engine = &mut *self.engine;
        let text = engine.text_for(std::slice::from_ref(request))?;
        let prompt = engine.prompt_tokens(request, text.as_deref())?;
        // Keys rotated for a shorter sequence would not be those of a fresh run: such a cache is given back first.
        let reusable = !engine.model().program().depends_on_length();
        engine.check_capacity(prompt.len(), request.max_new_tokens)?;
        let sequence = match self.kept.take().filter(|_| reusable) {
            Some((mut sequence, tokens)) => {
                let common = tokens.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                // The last token is always computed: its logits are the next token's.
                sequence.truncate(common.min(prompt.len() - 1));
                sequence.grow(engine.capacity(prompt.len(), request.max_new_tokens))?;
                sequence
            }
            None => engine.sequence_for_all(prompt.len(), request.max_new_tokens)?,
        };
        let mut running = [engine.start(request, Some(sequence), &prompt, text.as_deref())?];
        let stats = engine.run(&mut running, false, on_event)?;
        let [running] = running;
        let (sequence, completion) = running.split();
        let mut tokens = prompt;
        tokens.extend_from_slice(&completion.tokens);
        self.kept = sequence.map(|sequence| {
            tokens.truncate(sequence.len());
            (sequence, tokens)
        });
        Ok((completion, stats))
    }
}
