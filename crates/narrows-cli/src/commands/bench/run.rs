//! `narrows bench run`

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use narrows::program::Role;
use narrows::{Bytes, Context, Engine, Feed, Model, Quantisation, StreamStats, Workload};
use narrows_bench::host::{self, Pages, Test as HostTest};
use narrows_bench::io::Step;
use narrows_bench::{Entry, RunResult};

use super::{Session, memory};
use crate::args::bench::BenchRun;
use crate::args::{Compute, Output, QuantPart, Ram, SpeedsFrom};
use crate::commands::plan::parameters;
use crate::commands::{builder, open_or_shape, start};
use crate::failure::{Failure, Result};

/// Memory that is read to see how fast it is, and for how long: a second with all repetitions.
const READ: Bytes = Bytes::mib(512);
const READ_TIME: Duration = Duration::from_millis(100);

/// A prompt, or new tokens, after some positions.
#[derive(Clone, Copy)]
struct Test {
    prompt: usize,
    new: usize,
    depth: usize,
}

impl Test {
    fn tokens(self) -> usize {
        self.prompt + self.new
    }

    /// As llama-bench calls it.
    fn name(self) -> String {
        let name = if self.new > 0 { format!("tg{}", self.new) } else { format!("pp{}", self.prompt) };
        if self.depth > 0 { format!("{name} @ d{}", self.depth) } else { name }
    }
}

pub(super) fn run(output: &Output, args: &BenchRun) -> Result<()> {
    let tests = tests(args)?;
    let mut session = Session::begin(output)?;
    let quantisation = Quantisation::all(args.quant.and_then(QuantPart::encoding));
    let open = || open_or_shape(&args.model, &quantisation, args.layers);
    let model = open()?;
    if !model.is_made() && (args.quant.is_some() || args.layers.is_some()) {
        let what = "--quant and --layers are for shapes: files are what they are";
        return Err(Failure::Usage(what.to_owned()));
    }
    let mut notes = Vec::new();
    if model.is_made() {
        notes.push(format!(
            "{}: random weights, made in memory and copied from there where they stream: nothing was read from disk",
            args.model.display()
        ));
    } else {
        session.machine.disk = narrows_bench::Disk::behind(model.dir());
    }
    let roof = Roof::measured(&mut session, args)?;
    let mut results = Vec::new();
    let of = args.ram.len() * tests.len();
    for (done, (ram, test)) in
        args.ram.iter().flat_map(|ram| tests.iter().map(move |test| (ram, test))).enumerate()
    {
        let step = Step { what: test.name(), done, of };
        let _ = session.go_on(&step);
        session.interrupt.check()?;
        let one = One { output, args, ram: *ram, test: *test, roof: &roof };
        results.push(Entry::Run(Box::new(one.run(open()?, &mut session, &step)?)));
    }
    session.status.clear();
    let record = session.record(results, notes);
    session.end(&args.output, &record)
}

/// Prompts first, as llama-bench has them.
fn tests(args: &BenchRun) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for &depth in &args.depth {
        tests.extend(args.prompt.iter().map(|&prompt| Test { prompt, new: 0, depth }));
        tests.extend(args.gen_tokens.iter().map(|&new| Test { prompt: 0, new, depth }));
    }
    // Nothing of one is how the other is asked for alone.
    tests.retain(|test| test.tokens() > 0);
    if tests.is_empty() {
        return Err(Failure::Usage("nothing to measure: -p and -n are 0".to_owned()));
    }
    if let Some(test) = tests.iter().find(|test| test.tokens().saturating_add(test.depth) > MOST_POSITIONS) {
        return Err(Failure::Usage(format!("{}: more than {MOST_POSITIONS} positions", test.name())));
    }
    Ok(tests)
}

/// Beyond what any model was made for.
const MOST_POSITIONS: usize = 1 << 24;

/// What bounds the host: reads of memory, and multiply-adds.
struct Roof {
    memory: f64,
    flops: f64,
}

impl Roof {
    fn measured(session: &mut Session<'_>, args: &BenchRun) -> Result<Self> {
        let threads = args.threads.map_or(session.machine.threads, std::num::NonZeroUsize::get);
        let settings = host::Settings {
            tests: vec![HostTest::Read, HostTest::Flops],
            threads: vec![threads],
            pages: vec![Pages::Huge],
            size: READ.min(memory()),
            runtime: READ_TIME,
            loops: 3,
            memory: memory(),
        };
        let result = host::run(&settings, &mut |step| session.go_on(step));
        let mut roof = Self { memory: 1.0, flops: 1.0 };
        for entry in session.results(result)?.results {
            match entry {
                Entry::Host(result) => roof.memory = result.bandwidth.bytes_per_second.max(1.0),
                Entry::Flops(result) => roof.flops = result.flops_per_second.max(1.0),
                _ => {}
            }
        }
        Ok(roof)
    }
}

/// One test within one budget.
struct One<'a> {
    output: &'a Output,
    args: &'a BenchRun,
    ram: Ram,
    test: Test,
    roof: &'a Roof,
}

impl One<'_> {
    fn compute(&self) -> Compute {
        let args = self.args;
        Compute {
            model: args.model.clone(),
            ctx: Context::Positions(self.test.depth + self.test.tokens()),
            kv_dtype: args.kv_dtype,
            chunk: args.chunk,
            threads: args.threads,
            device: args.device,
            ram: self.ram,
            vram: args.vram,
            io: args.io,
            speeds: SpeedsFrom::Measured,
            slots: None,
            tile: None,
            trace: None,
        }
    }

    fn run(&self, model: Model, session: &mut Session<'_>, step: &Step) -> Result<RunResult> {
        let Self { test, args, .. } = *self;
        let compute = self.compute();
        let chunk = builder(&compute)?.chunk_rows(&model);
        let step_rows = test.prompt.max(test.depth).clamp(1, chunk);
        let workload = Workload::new(1, test.depth + test.tokens(), step_rows, 1);
        let vocab = model.program().dims.vocab;
        // Any tokens will do: what they are costs nothing. The embeddings of few would stay in the disk's cache.
        let token = |i: usize| (i.wrapping_mul(7919) % vocab.max(1)) as u32;
        let tokens: Vec<u32> = (0..test.depth + test.tokens()).map(token).collect();
        let test_time = crate::clock::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let mut engine = start(self.output, &compute, model, workload, None, 0)?;
        let mut seconds = Vec::new();
        let mut feed = engine.feed(tokens.len())?;
        for tokens in tokens[..test.depth].chunks(chunk) {
            session.interrupt.check()?;
            feed.push(tokens)?;
        }
        // The first step brings in what stays in memory.
        let warm_up = test.depth + if test.new > 0 { 1 } else { test.prompt.min(chunk) };
        feed.push(&tokens[test.depth..warm_up])?;
        let before = feed.engine().stream_stats();
        let began = Instant::now();
        for _ in 0..args.repetitions.get() {
            let _ = session.go_on(step);
            session.interrupt.check()?;
            feed.truncate(test.depth);
            let start = Instant::now();
            self.once(&mut feed, &tokens[test.depth..], session)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let wall = began.elapsed();
        let stats = engine.stream_stats().since(&before);
        let mut result = self.result(&engine, &stats, wall);
        result.test_time = test_time;
        result.cpu_info.clone_from(&session.machine.cpu);
        result.set_samples(test.tokens(), &seconds);
        Ok(result)
    }

    /// The whole prompt, or token by token.
    fn once(&self, feed: &mut Feed<'_>, tokens: &[u32], session: &Session<'_>) -> Result<()> {
        let at_once = if self.test.new > 0 { 1 } else { tokens.len() };
        for tokens in tokens.chunks(at_once) {
            session.interrupt.check()?;
            feed.push(tokens)?;
        }
        Ok(())
    }

    fn result(&self, engine: &Engine, stats: &StreamStats, wall: Duration) -> RunResult {
        let Self { args, test, .. } = *self;
        let (model, plan) = (engine.model(), engine.plan());
        let made = model.is_made();
        let share = |stall: Duration| stall.as_secs_f64() / wall.as_secs_f64().max(1e-9);
        let read = stats.disk.bytes;
        let kv = args.kv_dtype.map_or(if engine.device().is_some() { "bf16" } else { "f32" }, |kv| kv.name());
        let (bound_ts, bound) = self.bound(engine);
        let name = args.model.file_name().unwrap_or(args.model.as_os_str()).to_string_lossy().into_owned();
        let quant = args.quant.and_then(QuantPart::encoding);
        RunResult {
            model: name + &quant.map_or(String::new(), |quant| format!(" {quant}")),
            model_type: model_type(model),
            model_size: model.weight_bytes(),
            model_n_params: parameters(model),
            gpu_info: engine.device().map(|device| device.name().to_owned()),
            backend: engine.device().map_or("cpu".to_owned(), |device| format!("cuda:{}", device.ordinal())),
            n_threads: engine.threads(),
            n_batch: engine.chunk(),
            type_k: kv.to_owned(),
            type_v: kv.to_owned(),
            n_prompt: test.prompt,
            n_gen: test.new,
            n_depth: test.depth,
            test: test.name(),
            budget_bytes: plan.budget,
            vram_bytes: plan.device.as_ref().map(|device| device.budget),
            source: if made { "memory" } else { "disk" }.to_owned(),
            passes: stats.passes,
            bytes_disk: if made { Bytes(0) } else { read },
            bytes_memory: if made { read } else { Bytes(0) },
            bytes_pcie: stats.link.map_or(Bytes(0), |link| link.bytes),
            stall_disk: share(stats.disk.stall),
            stall_pcie: stats.link.map(|link| share(link.stall)),
            stall_compute: share(stats.compute.stall),
            predicted_ts: (test.new > 0).then(|| 1.0 / plan.seconds_per_token().max(1e-12)),
            bound_ts,
            bound,
            ..RunResult::default()
        }
    }

    /// The law: tokens of a pass, times the bandwidth, over the bytes of a pass; for each thing that has a bandwidth,
    /// of which the slowest counts.
    fn bound(&self, engine: &Engine) -> (f64, String) {
        let Self { test, roof, .. } = *self;
        let (model, plan) = (engine.model(), engine.plan());
        let passes = if test.new > 0 { test.new } else { test.prompt.div_ceil(engine.chunk().max(1)) } as f64;
        // Attention reads what there is: half of what is new, in the mean.
        let positions = test.depth as f64 + test.tokens() as f64 / 2.0;
        let bytes = (plan.stream.walked + plan.stream.demanded_per_pass).get() as f64;
        let kv = positions * engine.position_bytes().get() as f64;
        // Two operations for each weight that a row is multiplied with.
        let routed = model.expert_bytes().get() as f64;
        let active =
            (bytes / (bytes + routed - plan.stream.demanded_per_pass.get() as f64).max(1.0)).min(1.0);
        let weights = kept_parameters(model) as f64 * active;
        let mut stages =
            vec![(if model.is_made() { "copies" } else { "disk" }, plan.stream.disk_seconds * passes)];
        if engine.device().is_some() {
            stages.push(("h2d", plan.link_seconds() * passes));
            // What the device's memory delivers is known from the product that the plan was made with.
            stages.push(("compute", (plan.compute_seconds() - plan.kv_seconds) * passes));
        } else {
            stages.push(("memory", (bytes + kv) / roof.memory * passes));
            stages.push(("arithmetic", 2.0 * weights * test.tokens() as f64 / roof.flops));
        }
        let slowest = stages.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("memory", 1.0));
        (test.tokens() as f64 / slowest.1.max(1e-12), slowest.0.to_owned())
    }
}

/// Elements of all weights but of an embedding table of its own.
fn kept_parameters(model: &Model) -> u64 {
    let tied = model.tensors().all(|(spec, _)| spec.role != Role::Head);
    let kept = model.tensors().filter(|(spec, _)| spec.role != Role::Embedding || tied);
    kept.map(|(_, tensor)| tensor.shape.iter().product::<usize>() as u64).sum()
}

/// Family, size and encodings, as llama-bench has them.
fn model_type(model: &Model) -> String {
    let matrices = model.tensors().filter(|(spec, tensor)| {
        tensor.shape.len() == 2 && !matches!(spec.role, Role::Embedding | Role::Head)
    });
    let encodings: BTreeSet<_> =
        matrices.filter_map(|(_, tensor)| tensor.encoding.map(|encoding| encoding.name())).collect();
    let encodings: Vec<_> = encodings.into_iter().collect();
    let size = match parameters(model) as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    };
    format!("{} {size} {}", model.program().dims.family, encodings.join(" and "))
}
