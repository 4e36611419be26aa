//! `narrows run`

use std::cell::RefCell;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use narrows::{
    ChatOptions, Completion, Engine, Finish, Generation, GenerationDefaults, Message, Prompt, Request,
    Sampling, Stats,
};
use serde::Serialize;

use super::{SCHEMA_VERSION, chat, kv_bytes, load};
use crate::args::{Output, Run, SamplingArgs};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::memory;
use crate::output::{say, write, write_json};
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
    bytes_read: u64,
    peak_rss_bytes: Option<u64>,
    threads: usize,
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
    if matches!(&prompts, Input::Text(text) if text.is_empty()) {
        return Err(Failure::Usage("the prompt is empty".to_owned()));
    }
    let new = args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let (sequences, longest) = match &prompts {
        Input::Ids(rows) => (rows.len(), rows[0].len()),
        // A token has a byte of text or more.
        Input::Text(text) => (1, text.len()),
        Input::Chat => (1, 0),
    };
    let mut engine = load(output, &args.compute, |model| {
        // A text's tokens are known once its tokenizer is read; this early only ids can be counted.
        let positions = if matches!(prompts, Input::Ids(_)) { longest.saturating_add(new) } else { 0 };
        kv_bytes(model, &args.compute, sequences, positions)
    })?;
    let sampling = sampling(&args.sampling, engine.defaults());
    let request = |prompt, default_new: usize| {
        Request::new(prompt)
            .sampling(sampling.clone())
            .max_new_tokens(args.max_new_tokens.unwrap_or(default_new))
            .stop(args.stop.clone())
            .ignore_eos(args.ignore_eos)
    };
    let default_new = engine.defaults().max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    match prompts {
        Input::Chat => chat::chat(output, &mut engine, args.system.as_deref(), |prompt| {
            request(prompt, chat::MAX_NEW_TOKENS)
        }),
        Input::Ids(rows) => {
            let requests: Vec<_> = (0..)
                .zip(rows)
                .map(|(row, ids)| {
                    let mut request = request(Prompt::Tokens(ids), default_new);
                    // Rows that draw do so independently of each other.
                    request.sampling.seed = request.sampling.seed.wrapping_add(row);
                    request
                })
                .collect();
            generate(output, &mut engine, &requests)
        }
        Input::Text(text) => {
            let prompt = match engine.text()?.chat_template() {
                Some(_) if !args.raw => Prompt::Chat(messages(args.system.as_deref(), text), chat_options()),
                None if args.system.is_some() => {
                    return Err(Failure::Usage("--system: the model has no chat template".to_owned()));
                }
                _ => Prompt::Text(text),
            };
            generate(output, &mut engine, &[request(prompt, default_new)])
        }
    }
}

/// What to continue, as the command line gives it.
enum Input {
    Text(String),
    Ids(Vec<Vec<u32>>),
    Chat,
}

fn generate(output: &Output, engine: &mut Engine, requests: &[Request]) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let to_stdout =
        !output.json && matches!(requests, [Request { prompt: Prompt::Text(_) | Prompt::Chat(..), .. }]);
    let stdout = RefCell::new(Ok(()));
    let Generation { completions, stats } = engine.generate(requests, |event| {
        if to_stdout {
            *stdout.borrow_mut() = write(event.text);
        }
        if interrupt.came() || stdout.borrow().is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
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
    say(output, &closing_line(&stats, &completions, requests));
    interrupt.check()
}

fn report(engine: &Engine, requests: &[Request], completions: &[Completion], stats: &Stats) -> Report {
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
            bytes_read: engine.bytes_read().get(),
            peak_rss_bytes: memory::peak_resident().map(narrows::Bytes::get),
            threads: engine.threads(),
        },
    }
}

fn seconds_per_token(stats: &Stats) -> Option<f64> {
    (stats.decode_tokens > 0).then(|| stats.decode.as_secs_f64() / stats.decode_tokens as f64)
}

/// What a generation took, in one line.
pub(super) fn closing_line(stats: &Stats, completions: &[Completion], requests: &[Request]) -> String {
    let mut line = format!("{} tokens", stats.new_tokens);
    if let Some(seconds) = seconds_per_token(stats) {
        line += &format!(", {seconds:.3} s/token ({:.1} tok/s)", 1.0 / seconds);
    }
    line += &format!(", first after {:.2} s", stats.first_token.as_secs_f64());
    line += &format!(", {} read", stats.bytes_read);
    if let Some(peak) = memory::peak_resident() {
        line += &format!(", peak memory {peak}");
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
