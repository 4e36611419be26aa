//! The same bits whatever the memory: budgets down to the smallest, ways of reading, slots, tiles, packs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows::{
    Bytes, Encoding, Engine, EngineBuilder, Error, IoMode, Model, Prompt, Quantisation, Request, ScoreInput,
    Synth, Workload,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/checkpoints").join(name)
}

fn ids() -> Vec<Vec<u32>> {
    (0..3).map(|row| (0..20 + row).map(|i| (i * 37 + row * 11 + 5) % 190).collect()).collect()
}

const WORKLOAD: Workload = Workload::new(3, 120, 8, 8);

/// Logits of all rows, then three greedy tokens after each: prefill in chunks, and decoding.
fn answer(dir: &Path, builder: EngineBuilder) -> (Vec<f32>, Vec<Vec<u32>>, Engine) {
    let builder = builder.chunk(NonZeroUsize::new(8)).workload(WORKLOAD);
    let mut engine = builder.build(Model::open(dir).unwrap()).unwrap();
    let ids = ids();
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 3..tokens.len())).collect();
    let mut logits = Vec::new();
    engine
        .score(&inputs, |_, _, row| {
            logits.extend_from_slice(row);
            Ok(())
        })
        .unwrap();
    let requests: Vec<_> = ids
        .into_iter()
        .map(|ids| Request::new(Prompt::Tokens(ids)).max_new_tokens(3).ignore_eos(true))
        .collect();
    let done = engine.generate(&requests, |_| ControlFlow::Continue(())).unwrap();
    (logits, done.completions.into_iter().map(|c| c.tokens).collect(), engine)
}

/// The smallest budget, as a refusal tells it.
fn least(builder: &EngineBuilder, model: &Model) -> Bytes {
    match builder.clone().ram(Some(Bytes(1))).plan(model) {
        Err(Error::DoesNotFit { minimum, .. }) => minimum,
        other => panic!("a byte of memory was enough: {other:?}"),
    }
}

fn minimum(dir: &Path, builder: &EngineBuilder) -> Bytes {
    let builder = builder.clone().chunk(NonZeroUsize::new(8)).workload(WORKLOAD);
    least(&builder, &Model::open(dir).unwrap())
}

fn pack(name: &str, quantisation: &Quantisation) -> tempfile::TempDir {
    let pack = tempfile::tempdir().unwrap();
    let source = Model::open(data(name)).unwrap();
    let options = narrows_shard::PackOptions::default();
    let layout = source.pack_layout(quantisation);
    narrows_shard::pack(source.files().unwrap(), &layout, pack.path(), &options, &mut |_| ()).unwrap();
    pack
}

/// That all of `dirs` answer as the first does with all of its weights in memory, with little memory, in tiles of
/// every size and however they are read.
fn check_every_memory(dirs: &[&Path]) {
    let (logits, tokens, engine) = answer(dirs[0], Engine::builder());
    assert!(engine.plan().stream.all_resident());
    let all = engine.plan().stream.total();
    let tile = Some(Bytes(8 << 10));
    let mut builders = Vec::new();
    for dir in dirs {
        let small_tiles = Engine::builder().tile(tile);
        let least = minimum(dir, &small_tiles);
        for part in 0..5 {
            let ram = Bytes(least.get() + (all.get() - least.get()) * part / 5);
            builders.push((dir, small_tiles.clone().ram(Some(ram))));
        }
        for io in [IoMode::Auto, IoMode::Buffered, IoMode::Mmap] {
            builders.push((dir, small_tiles.clone().ram(Some(least)).io(io)));
        }
        for (slots, tile) in [(2, 5 << 10), (3, 16 << 10), (5, 1), (8, 1 << 20)] {
            let builder = Engine::builder().slots(NonZeroUsize::new(slots)).tile(Some(Bytes(tile)));
            let least = minimum(dir, &builder);
            builders.push((dir, builder.ram(Some(least))));
        }
    }
    for (dir, builder) in builders {
        let (got_logits, got_tokens, engine) = answer(dir, builder.clone());
        assert!(got_logits == logits, "{}: {builder:?}", dir.display());
        assert_eq!(got_tokens, tokens, "{}: {builder:?}", dir.display());
        assert!(engine.peak_host_bytes() <= engine.plan().budget, "{}: {builder:?}", dir.display());
    }
}

#[test]
fn one_answer_whatever_the_memory() {
    for name in
        ["llama3-rope-tied-sharded", "qwen2", "llama-multi-query-f32", "qwen2-moe-dense-layer", "qwen3-moe"]
    {
        let pack = pack(name, &Quantisation::default());
        check_every_memory(&[&data(name), pack.path()]);
    }
}

#[test]
fn one_answer_from_a_quantised_pack_whatever_the_memory() {
    let (q8, nf4) = (Some(Encoding::Q8), Some(Encoding::Nf4));
    for quantisation in [
        Quantisation::all(q8),
        Quantisation::all(nf4),
        Quantisation { layers: nf4, attention: q8, head: None },
    ] {
        for name in ["qwen2", "llama-multi-query-f32", "qwen2-moe-dense-layer"] {
            check_every_memory(&[pack(name, &quantisation).path()]);
        }
    }
}

/// A byte below the smallest budget is refused with that budget, and the smallest works.
#[test]
fn the_smallest_budget_is_told() {
    let (dir, builder) = (data("llama"), Engine::builder().chunk(NonZeroUsize::new(8)).workload(WORKLOAD));
    let least = minimum(&dir, &Engine::builder());
    let model = || Model::open(&dir).unwrap();
    assert!(builder.clone().ram(Some(least)).build(model()).is_ok());
    let error = builder.ram(Some(Bytes(least.get() - 1))).build(model()).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { minimum, .. } if minimum == least), "{error}");
}

/// A look at the machine needs no more memory than the run that it is for: with one slot, and with slots of one size
/// for the walk and of another for experts.
#[test]
fn little_memory_is_enough_to_measure() {
    // Little of the budget is for anything but slots.
    let workload = Workload::new(1, 1, 1, 1);
    for (name, slots) in [("llama", NonZeroUsize::new(1)), ("mixtral", None), ("qwen2-moe-windows", None)] {
        let model = Model::open(data(name)).unwrap();
        let builder = Engine::builder().workload(workload).slots(slots);
        let all = builder.clone().plan(&model).unwrap().stream.total();
        let minimum = least(&builder, &model);
        for part in [0, 2] {
            let ram = Bytes(minimum.get() + (all.get() - minimum.get()) * part / 40);
            let builder = builder.clone().ram(Some(ram));
            let plan = builder.plan(&model).unwrap();
            let speeds =
                builder.measure(&model, &plan, None).unwrap_or_else(|e| panic!("{name}, {ram}: {e}"));
            assert!(speeds.disk.measured && speeds.disk.bytes_per_second > 1.0, "{name}, {ram}: {speeds:?}");
        }
    }
}

/// What is resident is read once; a pass reads what streams, and the embeddings of its tokens.
#[test]
fn bytes_per_token_are_exact() {
    let dir = data("qwen3");
    let builder = Engine::builder().tile(Some(Bytes(4 << 10))).workload(Workload::new(1, 64, 8, 1));
    let model = || Model::open(&dir).unwrap();
    let all = builder.plan(&model()).unwrap().stream.all_resident_at;
    for ram in [Bytes(all.get() * 3 / 4), all] {
        let mut engine = builder.clone().ram(Some(ram)).build(model()).unwrap();
        let plan = engine.plan().clone();
        let run = |engine: &mut Engine, n| {
            let request = Request::new(Prompt::Tokens(vec![5, 6, 7])).max_new_tokens(n).ignore_eos(true);
            engine.generate(&[request], |_| ControlFlow::Continue(())).unwrap();
            engine.stream_stats()
        };
        let before = run(&mut engine, 1);
        let after = run(&mut engine, 6).since(&before);
        assert_eq!(after.passes, 6);
        // What passes were handed from slots: reading runs ahead of them.
        let streamed = plan.stream.walked.get() - plan.stream.resident.get();
        assert_eq!(after.streamed, Bytes(6 * streamed));
        assert_eq!(before.resident, plan.stream.resident);
    }
}

/// Experts are read when a row is routed to them and they are not in memory, and no others; with little memory and
/// with enough, prompts and single tokens.
#[test]
fn only_routed_experts_are_read() {
    for (name, layers, per_token) in
        [("mixtral", 3, 2), ("qwen2-moe-dense-layer", 3, 2), ("qwen3-moe-sparse", 2, 4)]
    {
        let model = || Model::open(data(name)).unwrap();
        let opened = model();
        let experts = opened.program().routers().next().unwrap();
        assert_eq!(opened.program().routers().count(), layers);
        let one = opened.expert_bytes().get() / (layers * experts.count) as u64;
        let builder = Engine::builder().tile(Some(Bytes(2 << 10))).chunk(NonZeroUsize::new(8));
        let builder = builder.workload(Workload::new(1, 64, 8, 1));
        let all = builder.plan(&model()).unwrap().stream.all_resident_at.get();
        let minimum = least(&builder, &model());
        for part in 0..=4 {
            let ram = Bytes(minimum.get() + (all - minimum.get()) * part / 4);
            let mut engine = builder.clone().ram(Some(ram)).build(model()).unwrap();
            let mut run = |n| {
                let request = Request::new(Prompt::Tokens(vec![5, 6, 7])).max_new_tokens(n).ignore_eos(true);
                engine.generate(&[request], |_| ControlFlow::Continue(())).unwrap();
                engine.stream_stats()
            };
            let before = run(1);
            let after = run(17);
            let demands = after.demands;
            assert_eq!(demands.bytes, Bytes(demands.misses * one), "{name} in {ram}");
            assert_eq!(demands.demanded, Bytes((demands.hits + demands.misses) * one), "{name} in {ram}");
            // One pass over the prompt again, and a token each.
            let later = after.since(&before).demands;
            let prompt = before.demands.hits + before.demands.misses;
            assert_eq!(later.hits + later.misses, prompt + 16 * (layers * per_token) as u64, "{name}");
            match part {
                0 => assert_eq!(demands.hits, 0, "{name}: there is no memory to keep anything in"),
                4 => assert!(demands.misses <= (layers * experts.count) as u64, "{name}: each is read once"),
                _ => {}
            }
            assert!(engine.peak_host_bytes() <= ram);
        }
    }
}

/// A request beyond the workload is refused before anything is computed, and the engine goes on.
#[test]
fn more_than_planned_is_refused() {
    let workload = Workload::new(1, 16, 8, 1);
    let mut engine = Engine::builder().workload(workload).build(Model::open(data("llama")).unwrap()).unwrap();
    let request = |n| Request::new(Prompt::Tokens(vec![5; 4])).max_new_tokens(n).ignore_eos(true);
    let error = engine.generate(&[request(40)], |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::BeyondWorkload { needed: 44, planned: 16 }), "{error}");
    assert_eq!(engine.generate(&[request(8)], |_| ControlFlow::Continue(())).unwrap().stats.new_tokens, 8);
}

/// A file that shrinks while it is streamed ends the run with its name, in every way of reading.
#[test]
fn truncated_while_running() {
    for io in [IoMode::Auto, IoMode::Buffered, IoMode::Mmap] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(data("llama").join(file), dir.path().join(file)).unwrap();
        }
        let builder =
            Engine::builder().tile(Some(Bytes(4 << 10))).io(io).workload(Workload::new(1, 300, 1, 1));
        let model = || Model::open(dir.path()).unwrap();
        let least = least(&builder, &model());
        let mut engine = builder.ram(Some(least)).build(model()).unwrap();
        let request = Request::new(Prompt::Tokens(vec![5])).max_new_tokens(250).ignore_eos(true);
        let mut tokens = 0;
        let error = engine
            .generate(&[request], |_| {
                tokens += 1;
                if tokens == 3 {
                    let file = std::fs::File::options()
                        .write(true)
                        .open(dir.path().join("model.safetensors"))
                        .unwrap();
                    file.set_len(100_000).unwrap();
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{io:?}: {error}");
    }
}

/// A session computes only what is new, and says what a fresh run says.
#[test]
fn sessions_reuse_their_cache() {
    for name in ["llama", "rope-dynamic"] {
        let workload = Workload::new(1, 80, 40, 1);
        let start = || Engine::builder().workload(workload).build(Model::open(data(name)).unwrap()).unwrap();
        let request =
            |tokens: &[u32]| Request::new(Prompt::Tokens(tokens.to_vec())).max_new_tokens(6).ignore_eos(true);
        let (mut kept, mut engine) = (start(), start());
        let mut session = kept.session();
        let mut prompt: Vec<u32> = (5..35).collect();
        for turn in 0..3 {
            let (reply, stats) = session.generate(&request(&prompt), |_| ControlFlow::Continue(())).unwrap();
            let fresh = engine.generate(&[request(&prompt)], |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(reply.tokens, fresh.completions[0].tokens, "{name}, turn {turn}");
            // The last reply's last token was never computed, and four more came.
            let new = if turn == 0 || name == "rope-dynamic" { prompt.len() } else { 5 };
            assert_eq!(stats.prompt_tokens, new, "{name}, turn {turn}");
            prompt.extend(reply.tokens);
            prompt.extend([7, 8, 9, 10 + turn]);
        }
    }
}

/// A workload of nothing still has steps of a row, which end.
#[test]
fn a_workload_of_no_rows() {
    let workload = Workload::new(1, 16, 0, 0);
    let mut engine = Engine::builder().workload(workload).build(Model::open(data("llama")).unwrap()).unwrap();
    let mut rows = 0;
    let tokens = [5, 6, 7];
    let count = |_, _, _: &[f32]| {
        rows += 1;
        Ok(())
    };
    engine.score(&[ScoreInput::new(&tokens, 0..3)], count).unwrap();
    assert_eq!(rows, 3);
}

/// Weights that no file holds are the same wherever they are read from, and cost what files would.
#[test]
fn made_weights_are_weights() {
    let quantised = Quantisation { head: None, ..Quantisation::all(Some(Encoding::Nf4)) };
    for (shape, quantisation) in [
        ("llama-1.1b", Quantisation::default()),
        ("llama-1.1b", quantised),
        ("qwen3-30b-a3b", Quantisation::all(Some(Encoding::Nf4))),
    ] {
        let workload = Workload::new(1, 8, 8, 8);
        let model = || Model::of_shape(shape, &Synth::new(shape, Some(1)).unwrap(), &quantisation).unwrap();
        let score = |ram: Option<Bytes>| {
            let mut engine = Engine::builder().workload(workload).ram(ram).build(model()).unwrap();
            let (tokens, mut all) = ([1, 2, 3], Vec::new());
            let input = [ScoreInput::new(&tokens, 0..3)];
            let each = |_, _, logits: &[f32]| {
                all.extend_from_slice(logits);
                Ok(())
            };
            engine.score(&input, each).unwrap();
            (all, engine.plan().all_resident())
        };
        let plan = Engine::builder().workload(workload).ram(Some(Bytes(u64::MAX))).plan(&model()).unwrap();
        let (resident, all) = score(None);
        assert!(all && resident.iter().all(|logit| logit.is_finite()) && resident.iter().any(|l| *l != 0.0));
        let less = Bytes(plan.stream.total().get() / 2);
        let (streamed, all) = score(Some(less));
        assert!(!all && streamed == resident, "{shape}");
        assert!(model().packed_as(&quantisation).unwrap().files().is_err());
        let described = Engine::builder().build(model().packed_as(&quantisation).unwrap());
        assert!(matches!(described, Err(Error::NoFiles { .. })));
    }
}
