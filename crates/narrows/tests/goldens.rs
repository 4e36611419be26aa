//! What Hugging Face transformers answers for the checkpoints in `tests/data`, reproduced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows::{
    Bytes, Encoding, Engine, EngineBuilder, Model, Prompt, Quantisation, Request, ScoreInput, Workload,
};
use safetensors::SafeTensors;

/// Largest difference of a logit from transformers in float32.
const TOLERANCE: f32 = 2e-4;

struct Golden {
    ids: Vec<Vec<u32>>,
    /// Per row of ids, `[positions, vocab]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<Vec<u32>>,
}

/// A checkpoint of `tests/data/checkpoints`, or of `tests/data/families`.
fn data(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let checkpoint = data.join("checkpoints").join(name);
    if checkpoint.is_dir() { checkpoint } else { data.join("families").join(name) }
}

fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(data(name).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name| {
        let tensor = tensors.tensor(name).unwrap();
        let ids: Vec<u32> = tensor
            .data()
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap())
            .collect();
        ids.chunks(tensor.shape()[1]).map(<[u32]>::to_vec).collect::<Vec<_>>()
    };
    let tensor = tensors.tensor("logits").unwrap();
    let values: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let row = tensor.shape()[1] * tensor.shape()[2];
    Golden {
        ids: ids("input_ids"),
        logits: values.chunks(row).map(<[f32]>::to_vec).collect(),
        greedy: ids("greedy"),
    }
}

fn engine(dir: &Path, builder: EngineBuilder) -> Engine {
    let workload = Workload::new(8, 1024, 512, 512);
    builder.workload(workload).build(Model::open(dir).unwrap()).unwrap()
}

/// The logits of every row, all rows in one call.
fn logits(engine: &mut Engine, ids: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 0..tokens.len())).collect();
    let mut logits = vec![Vec::new(); ids.len()];
    engine
        .score(&inputs, |input, position, row| {
            assert_eq!(logits[input].len(), position * row.len(), "rows come in order");
            logits[input].extend_from_slice(row);
            Ok(())
        })
        .unwrap();
    logits
}

fn greedy(engine: &mut Engine, ids: &[Vec<u32>], n: usize) -> Vec<Vec<u32>> {
    let requests: Vec<_> = ids
        .iter()
        .map(|ids| Request::new(Prompt::Tokens(ids.clone())).max_new_tokens(n).ignore_eos(true))
        .collect();
    let done = engine.generate(&requests, |_| ControlFlow::Continue(())).unwrap();
    done.completions.into_iter().map(|completion| completion.tokens).collect()
}

fn assert_close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let error = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= TOLERANCE, "{name}: off by {error:e}");
}

/// Logits and greedy tokens of a checkpoint, in one batch and row by row, in place and from its pack.
fn check(name: &str) {
    let golden = golden(name);
    let pack = tempfile::tempdir().unwrap();
    let source = Model::open(data(name)).unwrap();
    let options = narrows_shard::PackOptions::default();
    narrows_shard::pack(
        source.files().unwrap(),
        &source.pack_layout(&Quantisation::default()),
        pack.path(),
        &options,
        &mut |_| (),
    )
    .unwrap();
    let mut in_place = None;
    for dir in [data(name), pack.path().to_owned()] {
        let mut engine = engine(&dir, Engine::builder());
        let batch = logits(&mut engine, &golden.ids);
        for (ours, theirs) in batch.iter().zip(&golden.logits) {
            assert_close(name, ours, theirs);
        }
        for (ids, row) in golden.ids.iter().zip(&batch) {
            let alone = logits(&mut engine, std::slice::from_ref(ids));
            assert!(alone[0] == *row, "{name}: a row alone differs from the same row in a batch");
        }
        let n = golden.greedy[0].len();
        assert_eq!(greedy(&mut engine, &golden.ids, n), golden.greedy, "{name}: one batch");
        for (ids, want) in golden.ids.iter().zip(&golden.greedy) {
            assert_eq!(&greedy(&mut engine, std::slice::from_ref(ids), n)[0], want, "{name}: row by row");
        }
        // A pack holds the same bytes, so it gives the same bits.
        assert!(*in_place.get_or_insert(batch.clone()) == batch, "{name}: the pack differs");
    }
}

macro_rules! goldens {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check($name); })*

        /// No golden lies there untested.
        #[test]
        fn every_golden_is_tested() {
            let mut dirs: Vec<_> = std::fs::read_dir(data("")).unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            let mut tested = vec![$($name,)*];
            dirs.sort();
            tested.sort_unstable();
            assert_eq!(dirs, tested);
        }
    };
}

goldens! {
    llama: "llama",
    llama_v5_config: "llama-v5-config",
    llama_first_config: "llama-first-config",
    llama_biases: "llama-biases",
    llama_multi_query_f32: "llama-multi-query-f32",
    llama3_rope_tied_sharded: "llama3-rope-tied-sharded",
    mistral_sliding_window: "mistral-sliding-window",
    mistral_wide_heads: "mistral-wide-heads",
    qwen2: "qwen2",
    qwen2_window: "qwen2-window",
    qwen3: "qwen3",
    qwen3_tied_biases: "qwen3-tied-biases",
    rope_linear: "rope-linear",
    rope_dynamic: "rope-dynamic",
    rope_yarn: "rope-yarn",
    rope_yarn_mscale: "rope-yarn-mscale",
    mixtral: "mixtral",
    mixtral_window: "mixtral-window",
    qwen2_moe_dense_layer: "qwen2-moe-dense-layer",
    qwen2_moe_windows: "qwen2-moe-windows",
    qwen3_moe: "qwen3-moe",
    qwen3_moe_sparse: "qwen3-moe-sparse",
}

/// The same bits for every chunk and every number of threads.
#[test]
fn steps_and_threads_do_not_change_a_bit() {
    for name in ["mistral-sliding-window", "rope-dynamic", "qwen3", "qwen2-moe-dense-layer", "qwen3-moe"] {
        let ids = golden(name).ids;
        let mut reference = None;
        for (chunk, threads) in [(512, 1), (1, 1), (7, 2), (16, 3), (61, 2)] {
            let builder = Engine::builder().chunk(chunk.try_into().ok()).threads(threads.try_into().ok());
            let logits = logits(&mut engine(&data(name), builder), &ids);
            assert!(
                *reference.get_or_insert(logits.clone()) == logits,
                "{name}: chunk {chunk}, {threads} threads"
            );
        }
    }
}

/// Several sequences of different lengths share steps; each is what it would be alone.
#[test]
fn ragged_steps() {
    let golden = golden("qwen2");
    let ids: Vec<Vec<u32>> = [(0, 24), (1, 3), (0, 1), (1, 17)]
        .iter()
        .map(|&(row, len)| golden.ids[row][..len].to_vec())
        .collect();
    let mut alone = engine(&data("qwen2"), Engine::builder());
    let want: Vec<_> =
        ids.iter().map(|ids| greedy(&mut alone, std::slice::from_ref(ids), 9).remove(0)).collect();
    for chunk in [1, 2, 5, 512] {
        let mut engine = engine(&data("qwen2"), Engine::builder().chunk(chunk.try_into().ok()));
        assert_eq!(greedy(&mut engine, &ids, 9), want, "chunk {chunk}");
        for (ids, logits) in ids.iter().zip(logits(&mut engine, &ids)) {
            assert!(logits == logits_alone(&mut alone, ids), "chunk {chunk}");
        }
    }
}

fn logits_alone(engine: &mut Engine, ids: &[u32]) -> Vec<f32> {
    logits(engine, &[ids.to_vec()]).remove(0)
}

/// A KV cache of 16 bits changes logits a little, and only a little.
#[test]
fn kv_encodings() {
    let golden = golden("llama");
    for (encoding, tolerance) in [(Encoding::F16, 2e-3), (Encoding::Bf16, 2e-2)] {
        let mut engine = engine(&data("llama"), Engine::builder().kv_encoding(Some(encoding)));
        for (ours, theirs) in logits(&mut engine, &golden.ids).iter().zip(&golden.logits) {
            let error = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error > 0.0 && error < tolerance, "{encoding}: off by {error:e}");
        }
    }
}

fn families() -> Vec<String> {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/families");
    let entries = std::fs::read_dir(families).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 47, "{names:?}");
    names
}

/// What transformers, or a model's published code, answers for a golden of every family.
#[test]
fn every_family() {
    families().iter().for_each(|name| check(name));
}

/// The same bits for every chunk, and streamed within the smallest budget.
#[test]
fn every_family_in_pieces() {
    for name in families() {
        let ids = golden(&name).ids;
        let whole = logits(&mut engine(&data(&name), Engine::builder()), &ids);
        let pieces = Engine::builder().chunk(7.try_into().ok()).threads(2.try_into().ok());
        assert!(logits(&mut engine(&data(&name), pieces), &ids) == whole, "{name}: in chunks of 7");
        let workload = Workload::new(2, 256, 64, 64);
        let builder = Engine::builder().without_text().tile(Some(Bytes(1 << 10))).workload(workload);
        let model = Model::open(data(&name)).unwrap();
        let minimum = builder.plan(&model).unwrap().stream.minimum;
        let mut streamed = builder.ram(Some(minimum)).build(model).unwrap();
        assert!(logits(&mut streamed, &ids) == whole, "{name}: within {minimum}");
    }
}

/// The plain loops of `narrows_model::reference`, which say what operations mean, give what transformers gives.
#[test]
fn every_program_means_the_same_in_float64() {
    let checkpoints = ["llama", "rope-yarn-mscale", "qwen2-moe-dense-layer", "mixtral", "qwen3-moe-sparse"];
    for name in families().into_iter().chain(checkpoints.map(str::to_owned)) {
        let model = Model::open(data(&name)).unwrap();
        let golden = golden(&name);
        let (files, program) = (model.files().unwrap(), model.program());
        let (reader, cpu) = (files.reader().unwrap(), narrows_cpu::Cpu::new(1).unwrap());
        let weights: Vec<Vec<f64>> = program
            .weights
            .iter()
            .map(|spec| {
                // A head that is not there is the embedding table.
                let tensor = files.get(&spec.name).or_else(|| files.get(&program.weights[0].name)).unwrap();
                let mut bytes = vec![0; tensor.bytes().get() as usize];
                reader.read(tensor, 0, &mut bytes).unwrap();
                let mut values = vec![0.0; spec.len()];
                cpu.decode(tensor.encoding.unwrap(), &bytes, &mut values).unwrap();
                values.into_iter().map(f64::from).collect()
            })
            .collect();
        let of = |id: narrows::program::WeightId| weights[id.0].clone();
        let ours = narrows::program::reference::logits(program, &of, &golden.ids[0]);
        let ours: Vec<f32> = ours.into_iter().map(|logit| logit as f32).collect();
        assert_close(&name, &ours, &golden.logits[0]);
    }
}

/// The program of every golden as text: a mistake in a family shows as a difference. `NARROWS_UPDATE=1` writes it again.
#[test]
fn every_program_is_what_it_was() {
    let data_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    for part in ["checkpoints", "families"] {
        for entry in std::fs::read_dir(data_dir.join(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let text = Model::open(data(&name)).unwrap().program().to_string();
            let path = data_dir.join("programs").join(format!("{name}.txt"));
            if std::env::var_os("NARROWS_UPDATE").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let known = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(known == text, "{name} is another program than {}:\n{text}", path.display());
        }
    }
}

/// Beyond a length keys of all positions are turned otherwise: a text that grows across it goes on as one that is computed
/// anew for every token.
#[test]
fn a_text_across_the_lengths_of_longrope() {
    let program = Model::open(data("phi3-longrope")).unwrap();
    let trained = program.program().ropes[0].switches_at().unwrap();
    let ids = golden("phi3-longrope").ids;
    let prompt: Vec<u32> = ids.concat().into_iter().cycle().take(trained - 3).collect();
    let mut engine = engine(&data("phi3-longrope"), Engine::builder());
    let grown = greedy(&mut engine, std::slice::from_ref(&prompt), 9).remove(0);
    let mut anew = prompt.clone();
    for _ in 0..9 {
        let logits = logits_alone(&mut engine, &anew);
        let last = &logits[logits.len() - logits.len() / anew.len()..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]).then(b.cmp(a))).unwrap();
        anew.push(best as u32);
    }
    assert_eq!(grown, anew[prompt.len()..]);
}
