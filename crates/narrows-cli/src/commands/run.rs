//! `narrows run`

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use narrows::{
    ChatOptions, ChatTemplate, Completion, Engine, Finish, Generation, GenerationDefaults, Message, Model,
    Prompt, Request, Sampling, Stats, Text, Workload,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{SCHEMA_VERSION, builder, chat, check_encoding, given, ram, room, start, too_long, write_trace};
use crate::amounts::{count, per_token, seconds};
use crate::args::{Output, Run, SamplingArgs};
use crate::failure::{Failure, Result};
use crate::input::{read_stdin, text_of};
use crate::interrupt::{self, Interrupt};
use crate::models::locate;
use crate::output::{StatusLine, say, write, write_json};
use crate::tensors::read_ids;

/// Where neither a flag nor the model says: little enough that a slow model's first answer comes.
const MAX_NEW_TOKENS: usize = 64;

#[derive(JsonSchema, Serialize)]
pub(super) struct Report {
    schema_version: u32,
    tokens: Vec<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    finish: Vec<&'static str>,
    sampling: SamplingReport,
    settings: SettingsReport,
    /// Fallbacks, and what was asked for and is not done.
    notes: Vec<String>,
    stats: StatsReport,
}

/// Settings as they took effect, whatever they come from.
#[derive(JsonSchema, Serialize)]
struct SettingsReport {
    /// `cpu` or `cuda:N`.
    device: String,
    ram_bytes: Option<u64>,
    vram_bytes: Option<u64>,
    /// How weights are read; absent where none are.
    io: Option<String>,
    kv_dtype: String,
    /// Positions of the longest sequence at most.
    ctx: usize,
    /// Rows of a step at most.
    chunk: usize,
    threads: usize,
    /// Absent where matrices are not cut.
    tile_bytes: Option<u64>,
    /// Through which weights stream; 0 where none do.
    slots: usize,
    max_new_tokens: usize,
}

impl SettingsReport {
    fn of(engine: &Engine, requests: &[Request]) -> Self {
        let plan = engine.plan();
        Self {
            device: engine.device().map_or("cpu".to_owned(), |device| format!("cuda:{}", device.ordinal())),
            ram_bytes: given(plan.budget),
            vram_bytes: plan.device.as_ref().map(|device| device.budget.get()),
            io: engine.reading().map(str::to_owned),
            kv_dtype: engine.kv_encoding().name().to_owned(),
            ctx: engine.max_positions(),
            chunk: engine.chunk(),
            threads: engine.threads(),
            tile_bytes: given(plan.tile),
            slots: plan.stream.slots,
            max_new_tokens: requests.iter().map(|request| request.max_new_tokens).max().unwrap_or(0),
        }
    }
}

#[derive(JsonSchema, Serialize)]
struct SamplingReport {
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// Absent where nothing is drawn.
    seed: Option<u64>,
}

#[derive(JsonSchema, Serialize)]
struct StatsReport {
    prompt_tokens: usize,
    new_tokens: usize,
    passes: usize,
    time_to_first_token_seconds: f64,
    wall_seconds: f64,
    /// Decode only; absent where no token came of a pass without prompt.
    seconds_per_token: Option<f64>,
    predicted_seconds_per_token: f64,
    bound: String,
    bytes_read: u64,
    peak_rss_bytes: Option<u64>,
    peak_host_bytes: u64,
    peak_device_bytes: Option<u64>,
    pinning_seconds: Option<f64>,
    threads: usize,
    disk: LinkReport,
    h2d: Option<LinkReport>,
    compute: LinkReport,
    /// Absent where the model has no experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<ExpertsReport>,
}

/// Experts that rows were routed to, each counted once a pass and layer, and what was read of them.
#[derive(JsonSchema, Serialize)]
struct ExpertsReport {
    hits: u64,
    hits_on_device: u64,
    misses: u64,
    hit_rate: Option<f64>,
    /// Read from disk for misses.
    bytes: u64,
    /// Read from disk before anything was routed there, and perhaps in vain. What came of it are hits.
    prefetched_bytes: u64,
    /// What it would have been without any in memory.
    routed_bytes: u64,
    /// What walks over all experts would have read.
    dense_bytes: u64,
    bytes_per_pass: u64,
    dense_bytes_per_pass: u64,
}

impl ExpertsReport {
    fn of(engine: &Engine) -> Option<Self> {
        engine.model().program().routers().next()?;
        let (stats, all) = (engine.stream_stats(), engine.model().expert_bytes().get());
        let demands = stats.demands;
        Some(Self {
            hits: demands.hits,
            hits_on_device: demands.hits_on_device,
            misses: demands.misses,
            hit_rate: demands.hit_rate(),
            bytes: demands.bytes.get(),
            prefetched_bytes: demands.prefetched.get(),
            routed_bytes: demands.demanded.get(),
            dense_bytes: all * stats.passes,
            bytes_per_pass: demands.bytes.get() / stats.passes.max(1),
            dense_bytes_per_pass: all,
        })
    }
}

/// What a stage moved, payload only, and how long it was busy or waited for another.
#[derive(JsonSchema, Serialize)]
struct LinkReport {
    bytes: u64,
    bytes_moved: u64,
    busy_seconds: f64,
    stall_seconds: f64,
    bytes_per_second: f64,
}

impl LinkReport {
    fn of(stage: &narrows::StageStats) -> Self {
        Self {
            bytes: stage.bytes.get(),
            bytes_moved: stage.moved.get(),
            busy_seconds: stage.busy.as_secs_f64(),
            stall_seconds: stage.stall.as_secs_f64(),
            bytes_per_second: stage.bytes_per_second(),
        }
    }
}

pub(crate) fn run(output: &Output, args: &Run) -> Result<()> {
    let room = room(&args.compute)?;
    let long = |failure| too_long(&args.compute, failure);
    let prompts = match (&args.ids, args.prompt.as_ref().or(args.words.as_ref())) {
        (Some(path), _) => Input::Ids(read_ids(path, ram(&args.compute)?)?.rows),
        (None, Some(prompt)) => Input::Text(text_of(prompt, room).map_err(long)?),
        (None, None) if std::io::stdin().is_terminal() => Input::Chat,
        (None, None) => Input::Text(read_stdin(room)?),
    };
    let system = args.system.as_deref().map(|text| text_of(text, room).map_err(long)).transpose()?;
    if matches!(prompts, Input::Chat) && output.json {
        return Err(Failure::Usage("--json needs a prompt: -p TEXT or --ids FILE".to_owned()));
    }
    if matches!(prompts, Input::Chat) && args.raw {
        return Err(Failure::Usage(
            "--raw needs a prompt: a chat is what the template makes of it".to_owned(),
        ));
    }
    if matches!(&prompts, Input::Text(text) if text.is_empty()) {
        return Err(Failure::Usage("the prompt is empty".to_owned()));
    }
    let model = Model::open(locate(&args.compute.model)?)?;
    let defaults = GenerationDefaults::read(model.dir())?;
    let sampling = sampling(&args.sampling, &defaults);
    sampling.check()?;
    let mut notes = notes(output, &defaults);
    let as_text = !matches!(prompts, Input::Ids(_));
    let mut stop = args.stop.clone();
    // Token ids need no tokenizer, so what the model's authors stop at counts where there is one.
    if as_text || Text::is_in(model.dir()) {
        stop.extend(defaults.stop_strings.iter().cloned());
    }
    let needs_text = as_text || !stop.is_empty();
    let request = |prompt, default_new: usize| {
        Request::new(prompt)
            .sampling(sampling.clone())
            .max_new_tokens(args.max_new_tokens.unwrap_or(default_new))
            .stop(stop.clone())
            .ignore_eos(args.ignore_eos)
    };
    let default_new = defaults.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let text = needs_text.then(|| Text::read(model.dir()).map(Arc::new)).transpose()?;
    // Only a chat needs the template: what is wrong with it is no matter otherwise.
    let template = match &text {
        Some(text) if as_text && !args.raw => text.chat_template()?,
        _ => None,
    };
    let has_template = template.is_some();
    if let Some(family) = template.and_then(ChatTemplate::own_for) {
        let note = format!("the chat template is narrows' own for {family}; --raw continues a text as it is");
        say(output, &format!("note: {note}"));
        notes.push(note);
    }
    let mut requests: Vec<_> = match prompts {
        Input::Chat => {
            if !has_template {
                let hint = "the model has no chat template; give it a text to continue with -p";
                return Err(Failure::Usage(hint.to_owned()));
            }
            return chat::chat(output, args, system.as_deref(), model, text, |prompt| {
                request(prompt, chat::MAX_NEW_TOKENS)
            });
        }
        Input::Ids(rows) => (0..)
            .zip(rows)
            .map(|(row, ids)| {
                let mut request = request(Prompt::Tokens(ids), default_new);
                // Rows that draw do so independently of each other.
                request.sampling.seed = request.sampling.seed.wrapping_add(row);
                request
            })
            .collect(),
        Input::Text(prompt) => {
            if let Some(text) = &text {
                let all = prompt.len() + system.as_ref().map_or(0, String::len);
                check_encoding(&args.compute, text, all)?;
            }
            let prompt = if has_template {
                Prompt::Chat(messages(system.as_deref(), prompt), chat_options())
            } else if system.is_some() {
                let why =
                    if args.raw { "--raw uses no chat template" } else { "the model has no chat template" };
                return Err(Failure::Usage(format!("--system: {why}")));
            } else {
                Prompt::Text(prompt)
            };
            vec![request(prompt, default_new)]
        }
    };
    let mut lengths = Vec::with_capacity(requests.len());
    for request in &mut requests {
        // A template is run and a text encoded once.
        let prompt = std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new()));
        request.prompt = prompt.encoded_within(text.as_deref(), ram(&args.compute)?)?;
        lengths.push(request.prompt.tokens(text.as_deref())?.len());
    }
    if let (Some(most), None, None) = (defaults.max_length, defaults.max_new_tokens, args.max_new_tokens) {
        for (request, prompt) in requests.iter_mut().zip(&lengths) {
            request.max_new_tokens = request.max_new_tokens.min(most.saturating_sub(*prompt));
        }
    }
    let builder = builder(&args.compute)?;
    let new = requests.iter().map(|request| request.max_new_tokens).max().unwrap_or(0);
    let workload = Workload::generate(
        &lengths,
        new,
        builder.chunk_rows(&model),
        args.compute.ctx.positions(model.program()),
    );
    let tokens = requests.iter().map(|request| request.max_new_tokens).sum();
    let mut engine = start(output, &args.compute, model, workload, text, tokens)?;
    generate(output, args, &mut engine, &requests, notes)
}

/// What the model's authors ask for and does not happen; said, and part of the JSON.
fn notes(output: &Output, defaults: &GenerationDefaults) -> Vec<String> {
    let notes: Vec<_> = match &defaults.not_done[..] {
        [] => Vec::new(),
        keys => vec![format!("generation_config.json asks for {}: not done", keys.join(", "))],
    };
    notes.iter().for_each(|note| say(output, &format!("note: {note}")));
    notes
}

/// What to continue, as the command line gives it.
enum Input {
    Text(String),
    Ids(Vec<Vec<u32>>),
    Chat,
}

fn generate(
    output: &Output,
    args: &Run,
    engine: &mut Engine,
    requests: &[Request],
    mut notes: Vec<String>,
) -> Result<()> {
    let interrupt = Interrupt::listen();
    let to_stdout = !output.json && matches!(requests, [Request { prompt: Prompt::Encoded { .. }, .. }]);
    let stdout = RefCell::new(Ok(()));
    // On a terminal the text itself shows how far it is, once it begins.
    let among_text = to_stdout && std::io::stdout().is_terminal();
    let status = StatusLine::new(output);
    engine.cancel_on(Interrupt::flag());
    let wanted = requests.iter().map(|request| request.max_new_tokens).sum();
    let tokens = watch(engine, &status, Some(wanted));
    let generated = engine.generate(requests, |event| {
        tokens.fetch_add(usize::from(event.token.is_some()), Ordering::Relaxed);
        if to_stdout {
            if among_text && !event.text.is_empty() {
                status.clear();
            }
            *stdout.borrow_mut() = write(event.text);
        }
        if interrupt.came() || stdout.borrow().is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    status.clear();
    let Generation { completions, stats, .. } = generated?;
    stdout.into_inner()?;
    if output.json {
        notes.extend_from_slice(engine.io_notes());
        write_json(&report(engine, requests, &completions, &stats, notes))?;
    } else if to_stdout {
        write("\n")?;
    } else {
        for completion in &completions {
            let ids: Vec<_> = completion.tokens.iter().map(u32::to_string).collect();
            write(&(ids.join(" ") + "\n"))?;
        }
    }
    say(output, &closing_line(engine, &stats, &completions, requests));
    write_trace(engine, args.compute.trace.as_deref())?;
    interrupt.check()
}

/// How long the current pass still takes, for the answer to a signal.
struct PassClock {
    layers: usize,
    start: Instant,
    /// Of a pass of one row, as planned.
    planned: Duration,
}

impl PassClock {
    fn new(engine: &Engine) -> Self {
        let planned = Duration::try_from_secs_f64(engine.plan().seconds_per_token()).unwrap_or_default();
        Self { layers: engine.model().program().dims.layers, start: Instant::now(), planned }
    }

    /// A pass comes to `layer`. Half as much again as the layers so far say is room for a head and for a disk whose
    /// speed changes.
    fn at(&mut self, layer: usize) {
        let left = if layer == 0 {
            self.start = Instant::now();
            self.planned
        } else {
            let layers = (self.layers - layer.min(self.layers) + 1) as f64;
            self.start.elapsed().div_f64(layer as f64).mul_f64(layers)
        };
        interrupt::pass_ends_within(left.mul_f64(1.5));
    }
}

/// Keeps the status line up to date, layer by layer; returns the count of tokens for it, of which so many are `wanted`
/// at most, if that tells how long it takes.
pub(super) fn watch(engine: &mut Engine, status: &StatusLine, wanted: Option<usize>) -> Arc<AtomicUsize> {
    let tokens = Arc::new(AtomicUsize::new(0));
    let (layers, monitor) = (engine.model().program().dims.layers, engine.monitor());
    let (counted, mut status, start) = (Arc::clone(&tokens), status.clone(), Instant::now());
    let mut pass = PassClock::new(engine);
    engine.on_layer(move |layer| {
        pass.at(layer);
        status.set(|| {
            let disk = monitor.stats().disk.bytes_per_second() / 1e9;
            let mut line = format!("layer {}/{layers} | {disk:.2} GB/s disk", layer + 1);
            let Some(wanted) = wanted else { return line };
            let done = counted.load(Ordering::Relaxed);
            line += &format!(" | tok {done}/{wanted}");
            if done > 0 {
                let each = start.elapsed().as_secs_f64() / done as f64;
                let left = each * (wanted.saturating_sub(done)) as f64;
                line += &format!(" | {} | eta {}", per_token(each), seconds(left));
            }
            line
        });
    });
    tokens
}

fn report(
    engine: &Engine,
    requests: &[Request],
    completions: &[Completion],
    stats: &Stats,
    notes: Vec<String>,
) -> Report {
    let streamed = engine.stream_stats();
    let pinned = engine.monitor().pinned();
    let s = requests.first().map_or(Sampling::GREEDY, |request| request.sampling.clone());
    Report {
        schema_version: SCHEMA_VERSION,
        tokens: completions.iter().map(|c| c.tokens.clone()).collect(),
        text: match completions {
            [one] => one.text.clone(),
            _ => None,
        },
        finish: completions.iter().map(|c| c.finish.name()).collect(),
        sampling: SamplingReport {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            seed: (s.temperature > 0.0).then_some(s.seed),
        },
        settings: SettingsReport::of(engine, requests),
        notes,
        stats: StatsReport {
            prompt_tokens: stats.prompt_tokens,
            new_tokens: stats.new_tokens,
            passes: stats.passes,
            time_to_first_token_seconds: stats.first_token.as_secs_f64(),
            wall_seconds: stats.wall.as_secs_f64(),
            seconds_per_token: seconds_per_token(stats),
            predicted_seconds_per_token: engine.plan().seconds_per_token(),
            bound: engine.plan().bound().to_string(),
            bytes_read: engine.bytes_read().get(),
            peak_rss_bytes: narrows::memory::peak_resident().map(narrows::Bytes::get),
            peak_host_bytes: engine.peak_host_bytes().get(),
            threads: engine.threads(),
            peak_device_bytes: engine.peak_device_bytes().map(narrows::Bytes::get),
            pinning_seconds: pinned.and_then(std::result::Result::ok).map(|time| time.as_secs_f64()),
            disk: LinkReport::of(&streamed.disk),
            h2d: streamed.link.as_ref().map(LinkReport::of),
            compute: LinkReport::of(&streamed.compute),
            experts: ExpertsReport::of(engine),
        },
    }
}

pub(super) fn seconds_per_token(stats: &Stats) -> Option<f64> {
    (stats.decode_tokens > 0).then(|| stats.decode.as_secs_f64() / stats.decode_tokens as f64)
}

/// What a generation took, in one line.
fn closing_line(engine: &Engine, stats: &Stats, completions: &[Completion], requests: &[Request]) -> String {
    let mut line = count(stats.new_tokens, "token");
    if let Some(time) = seconds_per_token(stats) {
        let predicted = seconds(engine.plan().seconds_per_token());
        line += &format!(", {} ({:.1} tok/s; predicted {predicted})", per_token(time), 1.0 / time);
    }
    line += &format!(", first after {}", seconds(stats.first_token.as_secs_f64()));
    line += &format!(", {} read", stats.bytes_read);
    let of =
        given(engine.plan().budget).map_or(String::new(), |budget| format!(" of {}", narrows::Bytes(budget)));
    line += &format!(", memory {}{of}", engine.peak_host_bytes());
    if let Some(peak) = narrows::memory::peak_resident() {
        line += &format!(" (process {peak})");
    }
    if let Some(peak) = engine.peak_device_bytes() {
        line += &format!(", peak device memory {peak}");
    }
    if let Some(link) = engine.stream_stats().link.filter(|link| link.bytes.get() > 0) {
        line += &format!(", {} over h2d at {:.2} GB/s", link.bytes, link.bytes_per_second() / 1e9);
    }
    if let Some(rate) = engine.stream_stats().demands.hit_rate() {
        line += &format!(", {:.0} % of the experts that were needed in memory", 100.0 * rate);
    }
    match engine.monitor().pinned() {
        Some(Ok(time)) => line += &format!(", pinned in {:.2} s", time.as_secs_f64()),
        Some(Err(why)) => line += &format!("; {why}"),
        None => {}
    }
    if let ([completion], [request]) = (completions, requests) {
        if request.sampling.temperature > 0.0 {
            line += &format!(", seed {}", request.sampling.seed);
        }
        match completion.finish {
            Finish::Length => line += &format!("; ended at {} tokens (-n)", request.max_new_tokens),
            Finish::Context => line += "; ended at the end of the context (--ctx)",
            Finish::Cancelled => line += "; interrupted",
            _ => {}
        }
    }
    line
}

/// A flag wins over generation_config.json, which wins over greedy.
fn sampling(args: &SamplingArgs, defaults: &GenerationDefaults) -> Sampling {
    // 32 bits: a number that every reader of JSON keeps.
    let seed = args.seed.unwrap_or_else(|| u64::from(RandomState::new().build_hasher().finish() as u32));
    let mut sampling = defaults.sampling(seed);
    let drawn =
        args.temperature.is_some() || args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    if args.greedy {
        let repetition_penalty = std::mem::replace(&mut sampling, Sampling::GREEDY).repetition_penalty;
        sampling.repetition_penalty = repetition_penalty;
    } else if (drawn || args.seed.is_some()) && sampling.temperature == 0.0 {
        // Whoever narrows the choice, or says where the random numbers start, wants to draw.
        sampling.temperature = 1.0;
    }
    let set = |to: &mut f32, from: Option<f32>| *to = from.unwrap_or(*to);
    set(&mut sampling.temperature, args.temperature);
    set(&mut sampling.top_p, args.top_p);
    set(&mut sampling.min_p, args.min_p);
    set(&mut sampling.repetition_penalty, args.repetition_penalty);
    set(&mut sampling.presence_penalty, args.presence_penalty);
    set(&mut sampling.frequency_penalty, args.frequency_penalty);
    sampling.top_k = args.top_k.or(sampling.top_k).filter(|k| *k > 0);
    sampling
}

fn messages(system: Option<&str>, text: String) -> Vec<Message> {
    system.map(|text| Message::new("system", text)).into_iter().chain([Message::new("user", text)]).collect()
}

pub(super) fn chat_options() -> ChatOptions {
    let now = SystemTime::now();
    ChatOptions::new(now, crate::clock::offset(now))
}
