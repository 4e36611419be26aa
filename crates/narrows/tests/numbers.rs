//! Weights that are no numbers: said, with layer and position, and never a text.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows::{Engine, Error, Model, Request, Sampling, ScoreInput};
use serde_json::Value;

const NAN: [u8; 2] = 0x7fc0_u16.to_le_bytes();
const INFINITY: [u8; 2] = 0x7f80_u16.to_le_bytes();

/// A checkpoint of the goldens in which a tensor, or its rows from `row` on, holds nothing but `value`.
fn broken(name: &str, tensor: &str, value: [u8; 2], row: usize) -> (tempfile::TempDir, PathBuf) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/checkpoints").join(name);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let entry = &json[tensor];
    assert_eq!(entry["dtype"], "BF16", "{tensor}");
    let at = |i: usize| 8 + header + entry["data_offsets"][i].as_u64().unwrap() as usize;
    let row_bytes = (at(1) - at(0)) / entry["shape"][0].as_u64().unwrap() as usize;
    for pair in bytes[at(0) + row * row_bytes..at(1)].chunks_exact_mut(2) {
        pair.copy_from_slice(&value);
    }
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn weights_that_are_no_numbers() {
    for (name, tensor, value, row, expected) in [
        ("llama", "model.norm.weight", NAN, 0, ("the logits", None, 2)),
        ("llama", "lm_head.weight", INFINITY, 0, ("the logits", None, 2)),
        // One token in a thousand is enough, and an infinity of any sign.
        ("llama", "lm_head.weight", 0xff80_u16.to_le_bytes(), 100, ("the logits", None, 2)),
        ("llama", "model.layers.0.mlp.down_proj.weight", NAN, 0, ("the activations", Some(0), 0)),
        ("llama", "model.layers.1.self_attn.v_proj.weight", INFINITY, 0, ("the activations", Some(1), 0)),
        (
            "mixtral",
            "model.layers.1.block_sparse_moe.gate.weight",
            NAN,
            0,
            ("the router's scores", Some(1), 0),
        ),
        (
            "mixtral",
            "model.layers.2.block_sparse_moe.gate.weight",
            INFINITY,
            1,
            ("the router's scores", Some(2), 0),
        ),
        (
            "qwen2-moe-windows",
            "model.layers.1.mlp.shared_expert_gate.weight",
            NAN,
            0,
            ("the router's scores", Some(1), 0),
        ),
    ] {
        let (_dir, path) = broken(name, tensor, value, row);
        let mut engine = Engine::builder().build(Model::open(&path).unwrap()).unwrap();
        let right = |error: Error| {
            let Error::NotFinite { what, layer, position } = error else {
                panic!("{name} {tensor}: {error}")
            };
            assert_eq!((what, layer, position), expected, "{name} {tensor}");
        };
        for sampling in [Sampling::GREEDY, Sampling::drawn(0.8, 1)] {
            let request = Request::new(vec![1, 5, 9]).max_new_tokens(4).sampling(sampling);
            right(engine.generate(&[request], |event| panic!("{event:?}")).unwrap_err());
        }
        let each = |_, position, _: &[f32]| panic!("{name} {tensor}: logits at {position}");
        let input = [ScoreInput::new(&[1, 5, 9], 2..3)];
        right(engine.score(&input, each).unwrap_err());
        let (what, layer, _) = expected;
        let perplexity = engine.perplexity(&[1, 5, 9, 7], 3, 1, |_| ()).unwrap_err();
        assert!(
            matches!(perplexity, Error::NotFinite { what: w, layer: l, .. } if (w, l) == (what, layer)),
            "{perplexity}"
        );
    }
}

/// The step that meets them ends the text; what came before was heard.
#[test]
fn a_token_that_is_no_number() {
    let (_dir, path) = broken("llama", "model.embed_tokens.weight", NAN, 100);
    let mut engine = Engine::builder().build(Model::open(&path).unwrap()).unwrap();
    let go_on = |_: narrows::Event<'_>| ControlFlow::Continue(());
    let request = |tokens: Vec<u32>| Request::new(tokens).max_new_tokens(1);
    assert_eq!(engine.generate(&[request(vec![1, 5])], go_on).unwrap().stats.new_tokens, 1);
    let error = engine.generate(&[request(vec![1, 5, 9, 101, 7])], go_on).unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { what: "the activations", layer: Some(0), position: 3 }),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "the activations of layer 0 are not finite (NaN or infinity) at position 3"
    );
    assert_eq!(engine.generate(&[request(vec![1, 5])], go_on).unwrap().stats.new_tokens, 1);
}
