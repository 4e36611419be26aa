//! What a config leaves out, beside what transformers' config classes make of it.

use serde_json::{Map, Value, json};

use super::*;
use narrows_model::RopeScaling;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data");

fn read(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{DATA}/{path}")).unwrap()).unwrap()
}

/// An architecture in the words of `tools/make-config-defaults.py`.
fn facts(a: &Facts, config: &Value) -> Value {
    let mut rope = json!({"rope_theta": a.rope.theta});
    let kind = match &a.rope.scaling {
        RopeScaling::None => "default",
        RopeScaling::Linear { factor } => {
            rope["factor"] = (*factor).into();
            "linear"
        }
        RopeScaling::Dynamic { factor, .. } => {
            rope["factor"] = (*factor).into();
            "dynamic"
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, trained } => {
            rope["factor"] = (*factor).into();
            rope["low_freq_factor"] = (*low_freq_factor).into();
            rope["high_freq_factor"] = (*high_freq_factor).into();
            rope["original_max_position_embeddings"] = (*trained).into();
            "llama3"
        }
        RopeScaling::Yarn { factor, trained, .. } => {
            rope["factor"] = (*factor).into();
            rope["original_max_position_embeddings"] = (*trained).into();
            "yarn"
        }
        other => panic!("{other:?}"),
    };
    rope["rope_type"] = kind.into();
    let experts = a.experts.as_ref().map(|e| {
        json!({
            "count": e.count, "per_token": e.per_token, "intermediate_size": e.intermediate_size,
            "normalised": e.normalised, "shared_intermediate_size": e.shared_intermediate_size, "layers": e.layers,
        })
    });
    let mut facts = json!({
        "vocab_size": a.vocab_size, "hidden_size": a.hidden_size, "intermediate_size": a.intermediate_size,
        "layers": a.layers, "heads": a.heads, "kv_heads": a.kv_heads, "head_dim": a.head_dim,
        "norm_eps": a.norm_eps, "rope": rope, "qkv_bias": a.qkv_bias, "o_bias": a.o_bias, "mlp_bias": a.mlp_bias,
        "tied_embeddings": a.tied_embeddings, "windows": a.windows, "experts": experts,
        "eos_token_ids": a.eos_token_ids,
    });
    // Stretched, a model serves more positions than the config says.
    if matches!(a.rope.scaling, RopeScaling::None | RopeScaling::Llama3 { .. }) {
        facts["max_position_embeddings"] = a.max_positions.into();
    } else if config.get("max_position_embeddings").is_some() {
        facts["max_position_embeddings"] = config["max_position_embeddings"].clone();
    }
    facts
}

/// As `config` is with the change that a row of the table is named after.
fn changed(config: &Value, row: &str) -> Value {
    let mut config = config.clone();
    let map = config.as_object_mut().unwrap();
    match (row.strip_suffix("=null"), row.split_once('.')) {
        (Some(key), _) => drop(map.insert(key.to_owned(), Value::Null)),
        (None, Some((outer, inner))) => {
            drop(map[outer].as_object_mut().unwrap().remove(inner).unwrap());
        }
        _ if row.is_empty() => {}
        _ => drop(map.remove(row).unwrap()),
    }
    config
}

/// Whether two values are the same, numbers to the precision of f32.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().unwrap() as f32 == b.as_f64().unwrap() as f32,
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|b| same(value, b)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b,
    }
}

/// Whether transformers resolves a config to numbers that no model can have.
fn unusable(facts: &Map<String, Value>) -> bool {
    let number = |key: &str| facts[key].as_u64().unwrap_or(0);
    let (heads, kv_heads, head_dim) = (number("heads"), number("kv_heads"), number("head_dim"));
    kv_heads == 0
        || heads % kv_heads != 0
        || head_dim % 2 != 0
        || head_dim > 1024
        || number("hidden_size") % heads != 0
        || facts["rope"]["rope_theta"].is_null()
        || facts["experts"]["per_token"].as_u64() > facts["experts"]["count"].as_u64()
}

#[test]
fn what_a_config_leaves_out_is_what_its_class_has() {
    let table = read("config-defaults.json");
    let mut rows = 0;
    for (golden, variants) in table.as_object().unwrap() {
        let config = read(&format!("checkpoints/{golden}/config.json"));
        let full = variants[""].as_object().unwrap();
        // A key that the table does not know would be one that the test leaves out.
        for key in
            config.as_object().unwrap().keys().filter(|key| *key != "model_type" && *key != "architectures")
        {
            assert!(variants.get(key).is_some(), "{golden}: {key}; run tools/make-config-defaults.py");
        }
        for (row, differs) in variants.as_object().unwrap() {
            let config = changed(&config, row);
            let key = row.strip_suffix("=null").unwrap_or(row).rsplit('.').next().unwrap();
            let ours = parse(&config);
            if differs == "refused" {
                // Where transformers takes no `null`, leaving it out may still be what was meant.
                // LlamaConfig alone wants heads to divide the hidden size where their width is given, too.
                let with_width = row == "num_attention_heads" && config.get("head_dim").is_some();
                if !row.ends_with("=null") && !with_width {
                    let error = ours.expect_err(row).to_string();
                    assert!(error.contains(key) || error.contains("layer_types"), "{golden} {row}: {error}");
                }
                continue;
            }
            let mut want = full.clone();
            want.extend(differs.as_object().unwrap().clone());
            match ours {
                Ok(a) => {
                    for (fact, got) in facts(&a, &config).as_object().unwrap() {
                        // Some keys may be null here where no model could be made of them there.
                        let taken = row.ends_with("=null") && want[fact].is_null();
                        assert!(
                            taken || same(got, &want[fact]),
                            "{golden} {row}: {fact} {got} {}",
                            want[fact]
                        );
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    let named = error.contains(key) || error.contains("head_dim");
                    assert!(unusable(&want) && named, "{golden} {row}: {error}");
                }
            }
            rows += 1;
        }
    }
    assert!(rows > 400, "{rows}");
}
