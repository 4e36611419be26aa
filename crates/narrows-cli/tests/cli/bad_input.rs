//! Every bad input: one error line with the file and what is wrong, its exit code, no panic.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Ran, args, checkpoint, copy_dir, demo, edit_config, edit_header, run, save_ids};

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

/// Breaks a copy of a checkpoint and asks for logits.
fn broken(base: &str, change: impl FnOnce(&Path)) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&checkpoint(base), &model);
    change(&model);
    let (ids, out) = (dir.path().join("ids.safetensors"), dir.path().join("out.safetensors"));
    save_ids(&ids, &[&[5, 6, 7]]);
    let ran = run(args!["logits", &model, "--ids", &ids, "--out", &out]);
    assert!(!out.exists(), "half a result was left behind");
    ran
}

fn header(edit: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Ran {
    broken("llama", |dir| edit_header(dir, edit))
}

fn config(key: &str, value: Value) -> Ran {
    broken("llama", |dir| edit_config(dir, key, value))
}

fn weights(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Ran {
    broken("llama", |dir| {
        let path = dir.join("model.safetensors");
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    })
}

#[test]
fn damaged_files() {
    let file = "model.safetensors";
    weights(|bytes| bytes[..100].to_vec()).refused(4, file);
    weights(|bytes| bytes[..bytes.len() - 7].to_vec()).refused(4, file);
    weights(|bytes| [bytes, vec![0; 3]].concat()).refused(4, file);
    weights(|_| Vec::new()).refused(4, file);
    weights(|bytes| [&(1_u64 << 62).to_le_bytes(), &bytes[8..]].concat()).refused(4, file);
    weights(|bytes| [&bytes[..8], b"\xff\xfe{{{{", &bytes[14..]].concat()).refused(4, file);
}

#[test]
fn headers_that_lie() {
    let file = "model.safetensors";
    header(|h| h[Q]["data_offsets"] = json!([1_u64 << 40, (1_u64 << 40) + 8192])).refused(4, file);
    header(|h| h[Q]["data_offsets"].as_array_mut().unwrap().reverse()).refused(4, file);
    header(|h| h[Q]["data_offsets"][0] = json!(0)).refused(4, file);
    header(|h| h[Q]["shape"] = json!([1_u64 << 33, 1_u64 << 33])).refused(4, file);
    header(|h| h[Q]["dtype"] = json!("F7")).refused(4, "F7");
    header(|h| h[Q]["dtype"] = json!("I16")).refused(4, Q);
    header(|h| h[Q]["shape"] = json!([32, 128])).refused(4, Q);
    header(|h| {
        let tensor = h.remove(Q).unwrap();
        h.insert("renamed".to_owned(), tensor);
    })
    .refused(4, Q);
}

#[test]
fn tensors_that_the_config_does_not_know() {
    // A bias in the file that the config denies would be left out of the sum.
    broken("qwen2", |dir| {
        edit_config(dir, "model_type", json!("llama"));
        edit_config(dir, "architectures", json!(["LlamaForCausalLM"]));
    })
    .refused(4, "bias");
}

#[test]
fn missing_files() {
    broken("llama", |dir| fs::remove_file(dir.join("model.safetensors")).unwrap()).refused(3, "");
    broken("llama", |dir| fs::remove_file(dir.join("config.json")).unwrap()).refused(3, "config.json");
    let sharded = "llama3-rope-tied-sharded";
    let lost = "model-00002-of-00003.safetensors";
    let ran = broken(sharded, |dir| fs::remove_file(dir.join(lost)).unwrap());
    assert!(ran.err.contains(lost), "{}", ran.err);
    assert!(matches!(ran.code, Some(3 | 4)));
    let index = "model.safetensors.index.json";
    broken(sharded, |dir| fs::write(dir.join(index), "[]").unwrap()).refused(4, index);
    run(args!["run", "no-such-model", "-p", "x"]).refused(3, "no-such-model");
}

#[test]
fn configs_that_cannot_be() {
    broken("llama", |dir| fs::write(dir.join("config.json"), "{").unwrap()).refused(4, "config.json");
    for (key, value) in [
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(4000)),
        ("hidden_size", json!(1_u64 << 40)),
        ("hidden_size", json!(-64)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(16_000_000)),
        ("model_type", json!("martian")),
        ("hidden_act", json!("frobnicate")),
        ("rope_scaling", json!({"rope_type": "helix", "factor": 2.0})),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
    ] {
        config(key, value).refused(4, "");
    }
}

#[test]
fn token_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (ids, out) = (dir.path().join("ids.safetensors"), dir.path().join("out.safetensors"));
    let model = checkpoint("llama");
    for (bad, word) in [(320, "320"), (-1, "-1")] {
        save_ids(&ids, &[&[5, bad]]);
        run(args!["logits", &model, "--ids", &ids, "--out", &out]).refused(2, word);
    }
    save_ids(&ids, &[&[]]);
    run(args!["run", &model, "--ids", &ids]).refused(2, "empty");
    fs::write(&ids, "not tensors").unwrap();
    run(args!["run", &model, "--ids", &ids]).refused(2, "ids.safetensors");
    run(args!["run", &model, "--ids", dir.path().join("nowhere")]).refused(2, "nowhere");
    save_ids(&ids, &[&[5; 40]]);
    run(args!["run", &model, "--ids", &ids, "--ctx", "16"]).refused(7, "40");
    run(args!["logits", &model, "--ids", &ids, "--out", dir.path().join("no/such/dir/o")])
        .refused(9, "no/such/dir");
}

#[test]
fn texts() {
    run(args!["run", checkpoint("llama"), "-p", "hello"]).refused(4, "tokenizer.json");
    run(args!["run", demo(), "-p", ""]).refused(2, "empty");
    run(args!["run", demo(), "-p", "-"]).refused(2, "empty");
    run(args!["run", demo(), "-p", "and ".repeat(600)]).refused(7, "512");
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&demo(), dir.path());
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    run(args!["run", dir.path(), "-p", "x"]).refused(4, "tokenizer.json");
    run(args!["eval", demo(), "-f", "no-such-text"]).refused(2, "no-such-text");
    let text = demo().join("heldout.txt");
    run(args!["eval", demo(), "-f", &text, "--window", "64", "--stride", "64"]).refused(2, "stride");
    run(args!["eval", demo(), "-f", &text, "--window", "1000", "--stride", "64"]).refused(7, "1000");
}

#[test]
fn command_lines() {
    for line in [
        "run models/demo --frobnicate",
        "run models/demo -p x --kv-dtype int3",
        "run models/demo -p x --ctx 0",
        "run models/demo -p x --ctx many",
        "run models/demo -p x --chunk 0",
        "run models/demo -p x --threads 0",
        "run models/demo -p x --greedy --temperature 1",
        "run models/demo -p x --ids y",
        "logits models/demo",
        "",
    ] {
        let ran = run(line.split_whitespace());
        assert_eq!(ran.code, Some(2), "{line}: {}", ran.err);
        assert!(ran.out.is_empty());
    }
    for flags in
        [["--temperature", "-1"], ["--top-p", "1.5"], ["--min-p", "nan"], ["--repetition-penalty", "0"]]
    {
        let ran = run(args!["run", demo(), "-p", "x", flags[0], flags[1]]);
        assert_eq!(ran.code, Some(2), "{flags:?}: {}", ran.err);
    }
}

#[test]
fn context_of_no_size_on_earth() {
    run(args!["run", demo(), "-p", "x", "-n", "1000000000000", "--ctx", "1000000000000"]).refused(5, "RAM");
}

/// A padded batch, as a tokenizer writes it.
#[test]
fn attention_masks() {
    let dir = tempfile::tempdir().unwrap();
    let (ids, out) = (dir.path().join("ids.safetensors"), dir.path().join("out.safetensors"));
    let save = |mask: &[i64], more: &str| {
        let bytes = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (tokens, mask) = (bytes(&[5, 6, 7, 0, 0, 8]), bytes(mask));
        let view =
            |data| safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 3], data).unwrap();
        let all = [("input_ids", view(&tokens)), ("attention_mask", view(&mask)), (more, view(&mask))];
        fs::write(&ids, safetensors::serialize(all, None).unwrap()).unwrap();
    };
    let continued = |ids: &Path| {
        run(args!["run", checkpoint("llama"), "--ids", ids, "-n", "3", "--greedy", "--ignore-eos"])
    };
    let alone = |tokens: &[i64]| {
        let file = dir.path().join("alone");
        save_ids(&file, &[tokens]);
        continued(&file).ok().out
    };
    save(&[1, 1, 1, 0, 0, 1], "other");
    assert_eq!(continued(&ids).ok().out, alone(&[5, 6, 7]) + &alone(&[8]));
    run(args!["logits", checkpoint("llama"), "--ids", &ids, "--out", &out]).refused(2, "attention_mask");
    for bad in [[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1], [1, 1, 2, 1, 1, 1]] {
        save(&bad, "other");
        continued(&ids).refused(2, "attention_mask");
    }
    save(&[1; 6], "position_ids");
    continued(&ids).refused(2, "position_ids");
}
