//! `narrows run`

use std::cell::RefCell;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use narrows::{
    ChatOptions, Completion, Engine, Finish, Generation, GenerationDefaults, Message, Model, Prompt, Request,
    Sampling, Stats, Text, Workload,
};
use serde::Serialize;

use super::{SCHEMA_VERSION, builder, chat, start, write_trace};
use crate::args::{Output, Run, SamplingArgs};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::memory;
use crate::output::{StatusLine, say, write, write_json};
use crate::tensors::read_ids;

/// Where neither a flag nor the model says: little enough that a slow model's first answer comes.
const MAX_NEW_TOKENS: usize = 64;

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    tokens: Vec<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    finish: Vec<&'static str>,
    sampling: SamplingReport,
    stats: StatsReport,
}

#[derive(Serialize)]
struct SamplingReport {
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    seed: u64,
}

#[derive(Serialize)]
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
#[derive(Serialize)]
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
        engine.model().architecture().experts.as_ref()?;
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
#[derive(Serialize)]
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
    let prompts = match (&args.ids, &args.prompt) {
        (Some(path), _) => Input::Ids(read_ids(path)?),
        (None, Some(prompt)) if prompt != "-" => Input::Text(prompt.clone()),
        (None, None) if std::io::stdin().is_terminal() => Input::Chat,
        (None, _) => Input::Text(read_stdin()?),
    };
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
    let model = Model::open(&args.compute.model)?;
    let defaults = GenerationDefaults::read(model.dir())?;
    let sampling = sampling(&args.sampling, &defaults);
    sampling.check()?;
    let request = |prompt, default_new: usize| {
        Request::new(prompt)
            .sampling(sampling.clone())
            .max_new_tokens(args.max_new_tokens.unwrap_or(default_new))
            .stop(args.stop.clone())
            .ignore_eos(args.ignore_eos)
    };
    let default_new = defaults.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let needs_text = !matches!(prompts, Input::Ids(_)) || !args.stop.is_empty();
    let text = needs_text.then(|| Text::read(model.dir()).map(Arc::new)).transpose()?;
    let template = text.as_ref().and_then(|text| text.chat_template());
    let requests: Vec<_> = match prompts {
        Input::Chat => {
            if template.is_none() {
                let hint = "the model has no chat template; give it a text to continue with -p";
                return Err(Failure::Usage(hint.to_owned()));
            }
            return chat::chat(output, args, model, text, |prompt| request(prompt, chat::MAX_NEW_TOKENS));
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
        Input::Text(text) => {
            let prompt = match template {
                Some(_) if !args.raw => Prompt::Chat(messages(args.system.as_deref(), text), chat_options()),
                None if args.system.is_some() => {
                    return Err(Failure::Usage("--system: the model has no chat template".to_owned()));
                }
                _ => Prompt::Text(text),
            };
            vec![request(prompt, default_new)]
        }
    };
    let lengths = requests
        .iter()
        .map(|request| Ok(request.prompt.tokens(text.as_deref())?.len()))
        .collect::<Result<Vec<_>>>()?;
    let builder = builder(&args.compute)?;
    let a = model.architecture();
    let new = requests.first().map_or(0, |request| request.max_new_tokens);
    let workload = Workload::generate(&lengths, new, builder.chunk_rows(a), args.compute.ctx.positions(a));
    let mut engine = start(output, &args.compute, model, workload, text)?;
    generate(output, args, &mut engine, &requests)
}

/// What to continue, as the command line gives it.
enum Input {
    Text(String),
    Ids(Vec<Vec<u32>>),
    Chat,
}

fn generate(output: &Output, args: &Run, engine: &mut Engine, requests: &[Request]) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let to_stdout =
        !output.json && matches!(requests, [Request { prompt: Prompt::Text(_) | Prompt::Chat(..), .. }]);
    let stdout = RefCell::new(Ok(()));
    // On a terminal the text itself shows how far it is.
    let quiet = to_stdout && std::io::stdout().is_terminal();
    let status = StatusLine::new(&Output { quiet: quiet || output.quiet, ..output.clone() });
    let tokens = watch(engine, &status, requests);
    let generated = engine.generate(requests, |event| {
        tokens.fetch_add(usize::from(event.token.is_some()), Ordering::Relaxed);
        if to_stdout {
            *stdout.borrow_mut() = write(event.text);
        }
        if interrupt.came() || stdout.borrow().is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    status.clear();
    let Generation { completions, stats } = generated?;
    stdout.into_inner()?;
    if output.json {
        write_json(&report(engine, requests, &completions, &stats))?;
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

/// Keeps the status line up to date, layer by layer; returns the count of tokens for it.
fn watch(engine: &mut Engine, status: &StatusLine, requests: &[Request]) -> Arc<AtomicUsize> {
    let tokens = Arc::new(AtomicUsize::new(0));
    let (layers, monitor) = (engine.model().architecture().layers, engine.monitor());
    let wanted: usize = requests.iter().map(|request| request.max_new_tokens).sum();
    let (counted, mut status, start) = (Arc::clone(&tokens), status.clone(), Instant::now());
    engine.on_layer(move |layer| {
        status.set(|| {
            let done = counted.load(Ordering::Relaxed);
            let disk = monitor.stats().disk.bytes_per_second() / 1e9;
            let mut line =
                format!("layer {}/{layers} | {disk:.2} GB/s disk | tok {done}/{wanted}", layer + 1);
            if done > 0 {
                let seconds = start.elapsed().as_secs_f64() / done as f64;
                line += &format!(
                    " | {seconds:.2} s/tok | eta {:.0} s",
                    seconds * (wanted.saturating_sub(done)) as f64
                );
            }
            line
        });
    });
    tokens
}

fn report(engine: &Engine, requests: &[Request], completions: &[Completion], stats: &Stats) -> Report {
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
            seed: s.seed,
        },
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
            peak_rss_bytes: memory::peak_resident().map(narrows::Bytes::get),
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

fn seconds_per_token(stats: &Stats) -> Option<f64> {
    (stats.decode_tokens > 0).then(|| stats.decode.as_secs_f64() / stats.decode_tokens as f64)
}

/// What a generation took, in one line.
pub(super) fn closing_line(
    engine: &Engine,
    stats: &Stats,
    completions: &[Completion],
    requests: &[Request],
) -> String {
    let mut line = format!("{} tokens", stats.new_tokens);
    if let Some(seconds) = seconds_per_token(stats) {
        line += &format!(", {seconds:.3} s/token ({:.1} tok/s)", 1.0 / seconds);
    }
    line += &format!(", first after {:.2} s", stats.first_token.as_secs_f64());
    line += &format!(", {} read", stats.bytes_read);
    if let Some(peak) = memory::peak_resident() {
        line += &format!(", peak memory {peak}");
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
            Finish::Eos | Finish::Stop => {}
        }
    }
    line
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|source| Failure::File { path: "stdin".into(), source })?;
    // The newline that ends a line of shell input is not part of the prompt.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// A flag wins over generation_config.json, which wins over greedy.
fn sampling(args: &SamplingArgs, defaults: &GenerationDefaults) -> Sampling {
    let seed = args.seed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::from(d.subsec_nanos()) ^ d.as_secs() << 30)
    });
    let mut sampling = defaults.sampling(seed);
    let drawn =
        args.temperature.is_some() || args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    if args.greedy {
        sampling = Sampling { repetition_penalty: sampling.repetition_penalty, ..Sampling::GREEDY };
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
    sampling.top_k = args.top_k.or(sampling.top_k);
    sampling
}

fn messages(system: Option<&str>, text: String) -> Vec<Message> {
    system.map(|text| Message::new("system", text)).into_iter().chain([Message::new("user", text)]).collect()
}

pub(super) fn chat_options() -> ChatOptions {
    ChatOptions {
        add_generation_prompt: true,
        now: chrono::Local::now().naive_local(),
        variables: std::collections::BTreeMap::new(),
    }
}
