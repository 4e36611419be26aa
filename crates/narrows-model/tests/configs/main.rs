//! What configs come to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test may")]

mod defaults;
mod facts;

use std::path::Path;

use facts::Facts;
use narrows_model::{Program, Result};
use proptest::prelude::*;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    })
}

/// A Llama with some keys changed; `null` takes a key away.
fn with(changes: Value) -> Value {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(key),
            value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    config
}

fn parse(config: &Value) -> Result<Facts> {
    Program::parse(Path::new("config.json"), config.to_string().as_bytes()).map(|program| Facts::of(&program))
}

#[test]
fn defaults_are_those_of_the_family() {
    let llama = parse(&with(json!({"num_key_value_heads": null, "max_position_embeddings": null}))).unwrap();
    assert_eq!((llama.kv_heads, llama.head_dim, llama.max_positions), (4, 16, Some(2048)));
    assert!(!llama.qkv_bias && !llama.qk_norm && llama.windows == [None; 3]);
    assert_eq!(llama.rope.theta, 10_000.0);

    let mistral = parse(&with(json!({"model_type": "mistral"}))).unwrap();
    assert_eq!(mistral.windows, [Some(4096); 3]);
    let mut no_window = with(json!({"model_type": "mistral"}));
    no_window["sliding_window"] = Value::Null;
    assert_eq!(parse(&no_window).unwrap().windows, [None; 3]);

    let qwen2 = parse(&with(json!({"model_type": "qwen2"}))).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.windows == [None; 3]);

    let qwen3 = parse(&with(json!({"model_type": "qwen3", "attention_bias": true}))).unwrap();
    assert!(qwen3.qk_norm && qwen3.qkv_bias && qwen3.o_bias);
    assert_eq!(qwen3.head_dim, 128);

    let by_class = parse(&with(json!({"model_type": null, "architectures": ["Qwen2ForCausalLM"]}))).unwrap();
    assert_eq!(by_class.family, "qwen2");
}

#[test]
fn windows_by_layer() {
    let window = |changes: Value| {
        let mut config =
            with(json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8}));
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parse(&config).map(|a| a.windows)
    };
    assert_eq!(window(json!({"max_window_layers": 1})).unwrap(), [None, Some(8), Some(8)]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert_eq!(window(json!({"layer_types": types})).unwrap(), [Some(8), None, Some(8)]);
    assert!(window(json!({"layer_types": ["full_attention"]})).is_err());
    assert!(
        window(json!({"layer_types": ["full_attention", "linear_attention", "full_attention"]})).is_err()
    );
    assert!(window(json!({"layer_types": types, "use_sliding_window": false})).is_err());
}

#[test]
fn both_styles_of_rope() {
    let scaling = json!({"type": "linear", "factor": 4.0});
    let v4 = parse(&with(json!({"rope_theta": 5e5, "rope_scaling": scaling}))).unwrap();
    let v5 = json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}});
    let v5 = parse(&with(v5)).unwrap();
    assert_eq!(v4.rope, v5.rope);
    assert_eq!(v4.max_positions, Some(1024));
    assert_eq!(v4.rope.inverse_frequencies(1000)[0], 0.25);

    let dynamic = parse(&with(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}))).unwrap();
    assert_eq!(dynamic.max_positions, None);
    assert_eq!(dynamic.rope.inverse_frequencies(256), dynamic.rope.inverse_frequencies(1));
    assert!(dynamic.rope.inverse_frequencies(512)[7] < dynamic.rope.inverse_frequencies(256)[7]);
}

fn mixture(changes: Value) -> Value {
    let mut config = with(json!({"model_type": "qwen2_moe", "num_hidden_layers": 5, "num_experts": 6}));
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

#[test]
fn experts_by_layer() {
    let layers = |changes: Value| parse(&mixture(changes)).unwrap().experts.map(|experts| experts.layers);
    let every = |layers: [u8; 5]| Some(layers.map(|sparse| sparse > 0).to_vec());
    assert_eq!(layers(json!({})), every([1; 5]));
    assert_eq!(layers(json!({"decoder_sparse_step": 2})), every([0, 1, 0, 1, 0]));
    assert_eq!(layers(json!({"mlp_only_layers": [0, 3, 99]})), every([0, 1, 1, 0, 1]));
    assert_eq!(layers(json!({"num_experts": 0})), None);
    assert_eq!(layers(json!({"decoder_sparse_step": 6})), None);

    let experts = parse(&mixture(json!({}))).unwrap().experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size), (6, 4, 1408));
    assert_eq!((experts.shared_intermediate_size, experts.normalised), (Some(5632), false));
    let mixtral = parse(&with(json!({"model_type": "mixtral"}))).unwrap();
    assert_eq!(mixtral.windows, [None; 3]);
    let experts = mixtral.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size), (8, 2, 160));
    assert!(experts.normalised && experts.shared_intermediate_size.is_none());
    let qwen3 = parse(&with(json!({"model_type": "qwen3_moe", "num_local_experts": 16}))).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.experts.unwrap().count), (16, 16));
    let windows = |changes: Value| parse(&mixture(changes)).unwrap().windows;
    let window = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3});
    assert_eq!(windows(window), [Some(8), None, Some(8), None, None]);
}

#[test]
fn mixtures_that_cannot_be_are_refused_by_name() {
    for (changes, named) in [
        (json!({"num_experts_per_tok": 7}), "num_experts_per_tok"),
        (json!({"num_experts_per_tok": 0}), "num_experts_per_tok"),
        (json!({"num_experts": 1 << 20}), "more than allowed"),
        (json!({"num_local_experts": 5}), "num_experts"),
        (json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        (json!({"mlp_only_layers": ["first"]}), "mlp_only_layers"),
        (json!({"moe_intermediate_size": 0}), "moe_intermediate_size"),
        (json!({"shared_expert_intermediate_size": 0}), "shared_expert_intermediate_size"),
    ] {
        let error = parse(&mixture(changes.clone())).unwrap_err().to_string();
        assert!(error.contains(named), "{changes}: {error}");
    }
    for key in ["num_experts", "num_local_experts"] {
        let error = parse(&with(json!({key: 4}))).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
        assert!(parse(&with(json!({key: 0}))).is_ok());
    }
}

/// Each change must be refused, and the message must name what it names.
#[test]
fn refused_by_name() {
    for (changes, named) in [
        (json!({"model_type": "martian"}), "martian"),
        (json!({"model_type": null}), "model_type"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}), "short_factor"),
        (json!({"rope_scaling": {"rope_type": "helix", "factor": 2.0}}), "helix"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "rotary"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": -3.0}}), "rotary"),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.01}}),
            "partial_rotary",
        ),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "full_attention"),
        (json!({"rope_theta": -1.0}), "rotary"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_attention_heads": 5}), "attention heads"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"hidden_size": -64}), "hidden_size"),
        (json!({"hidden_size": 1_u64 << 40}), "hidden_size"),
        (json!({"hidden_size": "64"}), "hidden_size"),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "factor"),
        (json!({"num_hidden_layers": 1_000_000_000}), "num_hidden_layers"),
        (json!({"head_dim": 15}), "head_dim"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (json!({"eos_token_id": "two"}), "eos_token_id"),
    ] {
        let error = parse(&with(changes.clone())).expect_err(&changes.to_string()).to_string();
        assert!(error.contains(named) && error.contains("config.json"), "{changes}: {error}");
    }
    for key in ["hidden_size", "num_hidden_layers", "vocab_size", "rope_theta"] {
        let mut config = llama();
        config[key] = Value::Null;
        let error = parse(&config).expect_err(key).to_string();
        assert!(error.contains(key) && error.contains("null"), "{error}");
    }
    for text in ["", "{", "[]", "null", "{\"model_type\": 3}"] {
        assert!(Program::parse(Path::new("config.json"), text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn weights_in_the_order_of_a_pass() {
    let config = with(json!({"model_type": "qwen2"})).to_string();
    let program = Program::parse(Path::new("config.json"), config.as_bytes()).unwrap();
    let names: Vec<_> = program.weights.into_iter().map(|spec| spec.name).collect();
    assert_eq!(names[0], "model.embed_tokens.weight");
    assert_eq!(
        names[1..5],
        [
            "input_layernorm.weight",
            "self_attn.q_proj.weight",
            "self_attn.q_proj.bias",
            "self_attn.k_proj.weight"
        ]
        .map(|suffix| format!("model.layers.0.{suffix}"))
    );
    assert_eq!(names[names.len() - 2..], ["model.norm.weight", "lm_head.weight"]);
    assert_eq!(names.len(), 3 + 3 * 12);
}

/// A key that the family does not read is refused where it may change a result, and left alone where it cannot.
#[test]
fn keys_that_are_not_read() {
    for (changes, named) in [
        (json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        (json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        (json!({"use_parallel_residual": true}), "use_parallel_residual"),
        (json!({"no_rope_layers": [1, 0, 1]}), "no_rope_layers"),
        (json!({"text_config": {"hidden_size": 3}}), "text_config"),
        (json!({"hidden_twist": 3}), "hidden_twist"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 3}}), "rope_scaling.twist"),
    ] {
        let error = parse(&with(changes.clone())).expect_err(&changes.to_string()).to_string();
        assert!(error.contains(named), "{changes}: {error}");
    }
    for changes in [
        json!({"embedding_multiplier": 1.0, "residual_multiplier": 1}),
        json!({"use_cache": true, "initializer_range": 0.02, "torch_dtype": "bfloat16", "_name_or_path": "x"}),
        json!({"attention_dropout": 0.1, "bos_token_id": 1, "transformers_version": "5.0.0", "auto_map": {"a": "b"}}),
        json!({"use_parallel_residual": false, "no_rope_layers": [], "hidden_twist": 0}),
        json!({"hidden_twist": "NaN", "num_nextn_predict_layers": 1, "rope_scaling": {}}),
    ] {
        assert!(parse(&with(changes.clone())).is_ok(), "{changes}");
    }
}

proptest! {
    /// Whatever a config says, the answer comes at once, and what is accepted has sane sizes.
    #[test]
    fn any_values(values in prop::collection::vec((0usize..14, prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!({"rope_type": "yarn", "factor": 4})),
        Just(json!({"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 1})),
    ]), 1..6)) {
        const KEYS: [&str; 14] = [
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
            "rope_scaling", "sliding_window", "tie_word_embeddings", "eos_token_id",
        ];
        let mut config = llama();
        for (key, value) in values {
            config[KEYS[key]] = value;
        }
        if let Ok(a) = parse(&config) {
            prop_assert!(a.heads % a.kv_heads == 0 && a.head_dim % 2 == 0 && a.windows.len() == a.layers);
            prop_assert!(a.rope.inverse_frequencies(100_000).iter().all(|f| f.is_finite()));
        }
    }
}

/// No number that a config of any family may have is more than an error, and what is accepted has weights of sane sizes.
#[test]
fn absurd_numbers_in_every_family() {
    const KEYS: [&str; 30] = [
        "attention_multiplier",
        "first_k_dense_replace",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "kv_channels",
        "logit_scale",
        "max_position_embeddings",
        "moe_intermediate_size",
        "moe_k",
        "moe_layer_end_index",
        "moe_layer_interval",
        "moe_num_experts",
        "moe_num_shared_experts",
        "moe_topk",
        "multi_query_group_num",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "num_local_experts",
        "num_shared_experts",
        "prefix_dense_intermediate_size",
        "rotary_dim",
        "sliding_window",
        "sliding_window_pattern",
        "topk_group",
    ];
    let mut accepted = 0;
    for family in narrows_model::known() {
        for key in KEYS {
            for value in
                [json!(0), json!(1), json!(3), json!(-1), json!(1_u64 << 45), json!(u64::MAX), json!(1e308)]
            {
                let layers = if family == "chatglm" { "num_layers" } else { "num_hidden_layers" };
                let mut config = json!({
                    "model_type": family, "hidden_size": 64, "num_attention_heads": 4, layers: 2,
                });
                config[key] = value.clone();
                if let Ok(program) = Program::parse(Path::new("config.json"), config.to_string().as_bytes()) {
                    accepted += 1;
                    for spec in &program.weights {
                        let len = spec.shape.iter().try_fold(1_usize, |len, dim| len.checked_mul(*dim));
                        assert!(len.is_some_and(|len| len > 0), "{family} {key} {value}: {spec:?}");
                    }
                }
            }
        }
    }
    assert!(accepted > 1000, "{accepted}");
}
