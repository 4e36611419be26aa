//! Checkpoints as they are found: other names, other files, one tensor for all experts. They give what the tidy ones give,
//! bit for bit, in place and packed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use narrows::{Engine, Error, Model, Quantisation, ScoreInput, Workload};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Which file holds which tensor.
type Index = BTreeMap<String, String>;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/checkpoints").join(name)
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    tensors.tensors().into_iter().map(|(name, view)| (name, owned(view))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        let (dtype, shape, data) = tensor;
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A golden with its tensors and config changed.
fn changed(base: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(golden(base).join("config.json")).unwrap()).unwrap();
    let mut tensors = read(&golden(base).join("model.safetensors"));
    change(&mut tensors, &mut config);
    write(&dir.path().join("model.safetensors"), &tensors);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn logits(dir: &Path) -> Vec<f32> {
    let tokens: Vec<u32> = (3..40).collect();
    let workload = Workload::new(1, 64, 64, 64);
    let mut engine = Engine::builder().workload(workload).build(Model::open(dir).unwrap()).unwrap();
    let mut logits = Vec::new();
    let input = ScoreInput::new(&tokens, 0..tokens.len());
    engine
        .score(&[input], |_, _, row| {
            logits.extend_from_slice(row);
            Ok(())
        })
        .unwrap();
    logits
}

fn pack(source: &Path, out: &Path, quantisation: &Quantisation) {
    let model = Model::open(source).unwrap();
    let layout = model.pack_layout(quantisation);
    let options = narrows_shard::PackOptions { consume_source: false, threads: 2 };
    narrows_shard::pack(model.files().unwrap(), &layout, out, &options, &mut |_| {}).unwrap();
}

/// Bytes of the shards of a pack.
fn shards(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let shards = entries.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    shards
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

/// Checks that `dir` is the golden `base` in all but its spelling.
#[track_caller]
fn same(base: &str, dir: &Path) {
    let want = logits(&golden(base));
    assert!(logits(dir) == want, "in place");
    let packs = tempfile::tempdir().unwrap();
    for (i, quantisation) in
        [Quantisation::default(), Quantisation::all(Some(narrows::Encoding::Q8))].iter().enumerate()
    {
        let (ours, theirs) = (packs.path().join(format!("{i}")), packs.path().join(format!("{i}-tidy")));
        pack(dir, &ours, quantisation);
        pack(&golden(base), &theirs, quantisation);
        assert!(shards(&ours) == shards(&theirs), "packed as {quantisation:?}");
        if i == 0 {
            assert!(logits(&ours) == want, "packed");
        }
    }
}

fn rename(tensors: &mut Tensors, to: impl Fn(&str) -> String) {
    *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (to(&name), tensor)).collect();
}

#[test]
fn prefixes_may_be_missing_or_doubled() {
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    for base in ["llama", "qwen2", "qwen3-tied-biases", "mixtral", "qwen3-moe"] {
        same(base, changed(base, |tensors, _| rename(tensors, bare)).path());
    }
    same("llama", changed("llama", |tensors, _| rename(tensors, |name| format!("model.{name}"))).path());
    let base = |tensors: &mut Tensors, config: &mut Value| {
        rename(tensors, bare);
        config["architectures"] = json!(["Qwen3Model"]);
    };
    same("qwen3-tied-biases", changed("qwen3-tied-biases", base).path());
}

#[test]
fn a_tied_model_may_store_its_head_alone() {
    let head = |tensors: &mut Tensors, _: &mut Value| {
        let table = tensors.remove("model.embed_tokens.weight").unwrap();
        tensors.insert("lm_head.weight".into(), table);
    };
    let dir = changed("qwen3-tied-biases", head);
    same("qwen3-tied-biases", dir.path());
    // Where it is not tied, an embedding is missing.
    let untied = changed("llama", |tensors, _| drop(tensors.remove("model.embed_tokens.weight")));
    let error = Model::open(untied.path()).unwrap_err().to_string();
    assert!(error.contains("model.embed_tokens.weight is missing"), "{error}");
}

#[test]
fn buffers_that_nothing_uses_change_nothing_and_weights_do() {
    let buffer = |name: &'static str, dtype: Dtype| {
        move |tensors: &mut Tensors, _: &mut Value| {
            tensors.insert(name.into(), (dtype, vec![4], vec![1; 4 * dtype.bitsize() / 8]));
        }
    };
    for (name, dtype) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32),
        ("model.rotary_emb.inv_freq", Dtype::F64),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", Dtype::BF16),
        ("model.embed_positions.position_ids", Dtype::I64),
        ("model.statistics", Dtype::F64),
        ("model.layers.0.self_attn.mask", Dtype::BOOL),
    ] {
        same("llama", changed("llama", buffer(name, dtype)).path());
    }
    for (name, dtype) in [
        ("model.layers.0.self_attn.q_proj.bias", Dtype::BF16),
        ("model.layers.0.self_attn.q_proj.bias", Dtype::F64),
        ("model.layers.0.self_attn.q_norm.weight", Dtype::F32),
        ("model.layers.0.post_feedforward_layernorm.weight", Dtype::F16),
        ("score.weight", Dtype::F32),
    ] {
        let error = Model::open(changed("llama", buffer(name, dtype)).path()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains(name)), "{error}");
    }
    let lost = "model.layers.1.self_attn.k_proj.bias";
    let error = Model::open(changed("qwen2", |tensors, _| drop(tensors.remove(lost))).path()).unwrap_err();
    assert!(error.to_string().contains(lost), "{error}");
}

/// What `save_pretrained(save_original_format=False)` of transformers 5 writes of mixtures.
fn fuse(tensors: &mut Tensors, projections: [&str; 3]) {
    let mut fused: BTreeMap<String, Vec<(usize, u8, Vec<u8>)>> = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut rest = Tensors::new();
    for (name, (dtype, shape, data)) in std::mem::take(tensors) {
        let name = name.replace(".block_sparse_moe.", ".mlp.");
        let Some((layer, expert)) = name.split_once("experts.") else {
            rest.insert(name, (dtype, shape, data));
            continue;
        };
        let (number, projection) = expert.split_once('.').unwrap();
        let which = projections.iter().position(|p| format!("{p}.weight") == projection).unwrap();
        let name = format!("{layer}experts.{}", if which < 2 { "gate_up_proj" } else { "down_proj" });
        let rows = if which < 2 { 2 * shape[0] } else { shape[0] };
        shapes.insert(name.clone(), (dtype, [rows, shape[1]]));
        fused.entry(name).or_default().push((number.parse().unwrap(), which as u8, data));
    }
    for (name, mut parts) in fused {
        parts.sort();
        let (dtype, [rows, cols]) = shapes[&name];
        let data = parts.into_iter().flat_map(|(.., data)| data).collect::<Vec<_>>();
        let experts = data.len() * 8 / dtype.bitsize() / rows / cols;
        rest.insert(name, (dtype, vec![experts, rows, cols], data));
    }
    *tensors = rest;
}

#[test]
fn all_experts_of_a_layer_may_be_one_tensor() {
    let qwen = ["gate_proj", "up_proj", "down_proj"];
    for (base, projections) in [
        ("mixtral", ["w1", "w3", "w2"]),
        ("mixtral-window", ["w1", "w3", "w2"]),
        ("qwen2-moe-dense-layer", qwen),
        ("qwen3-moe", qwen),
        ("qwen3-moe-sparse", qwen),
    ] {
        let dir = changed(base, |tensors, _| fuse(tensors, projections));
        same(base, dir.path());
        let names = read(&dir.path().join("model.safetensors"));
        assert!(names.keys().any(|name| name.ends_with("mlp.experts.gate_up_proj")), "{base}");
    }
    // Stored with inputs as rows they are refused by the name of their tensor.
    let transposed = changed("mixtral", |tensors, _| {
        fuse(tensors, ["w1", "w3", "w2"]);
        let (_, shape, _) = tensors.get_mut("model.layers.0.mlp.experts.gate_up_proj").unwrap();
        shape.swap(1, 2);
    });
    let error = Model::open(transposed.path()).unwrap_err().to_string();
    assert!(error.contains("experts.gate_up_proj") && error.contains("inputs as rows"), "{error}");
}

/// As `index-quirks` of those who met them: entries that no file has, tensors in two files, a file laid over others.
#[test]
fn an_index_may_be_untidy() {
    let tensors = read(&golden("llama").join("model.safetensors"));
    let build = |change: &dyn Fn(&mut [Tensors; 2], &mut Index)| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(golden("llama").join("config.json"), dir.path().join("config.json")).unwrap();
        let mut files = [Tensors::new(), Tensors::new()];
        let mut index = BTreeMap::new();
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            files[i % 2].insert(name.clone(), tensor.clone());
            index.insert(name.clone(), format!("model-{}.safetensors", i % 2));
        }
        change(&mut files, &mut index);
        for (i, file) in files.iter().enumerate() {
            write(&dir.path().join(format!("model-{i}.safetensors")), file);
        }
        let json = json!({"metadata": {}, "weight_map": index}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), json).unwrap();
        dir
    };
    let norm = "model.norm.weight";
    let stale = build(&|_, index| {
        index.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "model-0.safetensors".into());
        index.insert(norm.into(), "model-0.safetensors".into());
    });
    same("llama", stale.path());
    let twice = build(&|files, _| {
        let tensor = tensors[norm].clone();
        files.iter_mut().for_each(|file| drop(file.insert(norm.into(), tensor.clone())));
    });
    same("llama", twice.path());
    // The last file counts, as in transformers.
    let overlaid = build(&|files, index| {
        let (dtype, shape, data) = tensors[norm].clone();
        files[0].insert(norm.into(), (dtype, shape, vec![0; data.len()]));
        files[1].insert(norm.into(), tensors[norm].clone());
        index.insert(norm.into(), "model-1.safetensors".into());
    });
    same("llama", overlaid.path());
}
