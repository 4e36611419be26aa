//! The facts of a config that most families have, with the defaults of each.

use serde_json::Value;

use crate::error::Result;
use crate::fields::Fields;
use crate::program::Dims;
use crate::rope::{Rope, RopeDefaults};

/// Sizes above these are mistakes or attacks: several times the largest models known.
pub(crate) mod limit {
    pub(crate) const LAYERS: usize = 1 << 12;
    pub(crate) const HIDDEN: usize = 1 << 20;
    pub(crate) const INTERMEDIATE: usize = 1 << 22;
    pub(crate) const HEADS: usize = 1 << 14;
    pub(crate) const HEAD_DIM: usize = 1 << 10;
    pub(crate) const VOCAB: usize = 1 << 24;
    pub(crate) const POSITIONS: usize = 1 << 30;
}

/// The values of keys that a config leaves out: those of the family's config class in Hugging Face transformers
/// (`configuration_*.py`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// `None`: as many as query heads.
    pub(crate) kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) positions: usize,
    pub(crate) rope: RopeDefaults,
    pub(crate) eps: f64,
    pub(crate) eos: &'static [u32],
    pub(crate) tied: bool,
    pub(crate) keys: Keys,
}

/// What the config calls them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub(crate) vocab: &'static str,
    pub(crate) intermediate: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) kv_heads: &'static str,
    pub(crate) head_dim: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) eps: &'static str,
}

impl Keys {
    pub(crate) const LLAMA: Self = Self {
        vocab: "vocab_size",
        intermediate: "intermediate_size",
        layers: "num_hidden_layers",
        kv_heads: "num_key_value_heads",
        head_dim: "head_dim",
        positions: "max_position_embeddings",
        eps: "rms_norm_eps",
    };
}

impl Defaults {
    /// What Llama has; the others say how they differ.
    pub(crate) const LLAMA: Self = Self {
        vocab: 32_000,
        hidden: 4096,
        intermediate: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        positions: 2048,
        rope: RopeDefaults::theta(10_000.0),
        eps: 1e-6,
        eos: &[2],
        tied: false,
        keys: Keys::LLAMA,
    };

    /// Llama's with another base of the rotary embedding.
    pub(crate) const fn theta(theta: f64) -> Self {
        Self { rope: RopeDefaults::theta(theta), ..Self::LLAMA }
    }
}

/// What a config says, each value read once and checked.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) dims: Dims,
    /// Positions as the config has them, before a rotary embedding stretches them.
    pub(crate) positions: usize,
    pub(crate) rope: RopeDefaults,
}

/// A size between one and `max`; `null` is none.
pub(crate) fn size(config: &Fields, key: &str, default: usize, max: usize) -> Result<usize> {
    if config.is_null(key) {
        return Err(config.invalid(key, "null is not a size"));
    }
    match config.usize(key)?.unwrap_or(default) {
        0 => Err(config.invalid(key, "0 is not a size")),
        v if v > max => Err(config.invalid(key, &format!("{v} is more than the {max} allowed"))),
        v => Ok(v),
    }
}

/// A small number that a norm adds under its root.
pub(crate) fn epsilon(config: &Fields, key: &str, default: f64) -> Result<f32> {
    let eps = config.f64(key)?.unwrap_or(default);
    match eps >= 0.0 && eps.is_finite() {
        true => Ok(eps as f32),
        false => Err(config.invalid(key, "not a small positive number")),
    }
}

/// A factor or cap.
pub(crate) fn factor(config: &Fields, key: &str, default: f64) -> Result<f32> {
    let factor = config.f64(key)?.unwrap_or(default) as f32;
    match factor.is_finite() && factor != 0.0 {
        true => Ok(factor),
        false => Err(config.invalid(key, &format!("{factor} is no factor"))),
    }
}

/// A cap on scores or logits, where there is one.
pub(crate) fn cap(config: &Fields, key: &str, default: Option<f64>) -> Result<Option<f32>> {
    let given = if config.is_null(key) { None } else { config.f64(key)?.or(default) };
    match given {
        Some(cap) if cap > 0.0 && (cap as f32).is_finite() => Ok(Some(cap as f32)),
        Some(cap) => Err(config.invalid(key, &format!("{cap} is no cap"))),
        None => Ok(None),
    }
}

/// Whether a switch is on.
pub(crate) fn switch(config: &Fields, key: &str, default: bool) -> Result<bool> {
    Ok(config.bool(key)?.unwrap_or(default))
}

impl Facts {
    pub(crate) fn read(config: &Fields, family: &'static str, defaults: &Defaults) -> Result<Self> {
        let keys = &defaults.keys;
        let hidden = size(config, "hidden_size", defaults.hidden, limit::HIDDEN)?;
        let heads = size(config, "num_attention_heads", defaults.heads, limit::HEADS)?;
        let kv_heads = match config.is_null(keys.kv_heads) {
            true => heads,
            false => size(config, keys.kv_heads, defaults.kv_heads.unwrap_or(heads), limit::HEADS)?,
        };
        if heads % kv_heads != 0 {
            return Err(config
                .invalid(keys.kv_heads, &format!("{kv_heads} does not divide the {heads} attention heads")));
        }
        let head_dim = match defaults.head_dim.filter(|_| !config.is_null(keys.head_dim)) {
            Some(default) => size(config, keys.head_dim, default, limit::HEAD_DIM)?,
            None if config.get(keys.head_dim).is_some() => size(config, keys.head_dim, 0, limit::HEAD_DIM)?,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(config.invalid(
                    "num_attention_heads",
                    &format!("{heads} does not divide the hidden size {hidden}"),
                ));
            }
        };
        if head_dim % 2 != 0 || head_dim > limit::HEAD_DIM {
            return Err(config.invalid(
                keys.head_dim,
                &format!("{head_dim}; rotary embeddings need an even one up to {}", limit::HEAD_DIM),
            ));
        }
        let positions = size(config, keys.positions, defaults.positions, limit::POSITIONS)?;
        let dims = Dims {
            family,
            vocab: size(config, keys.vocab, defaults.vocab, limit::VOCAB)?,
            hidden,
            intermediate: size(config, keys.intermediate, defaults.intermediate, limit::INTERMEDIATE)?,
            layers: size(config, keys.layers, defaults.layers, limit::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            eps: epsilon(config, keys.eps, defaults.eps)?,
            tied: switch(config, "tie_word_embeddings", defaults.tied)?,
            max_positions: Some(positions),
            eos: match config.keys().any(|key| key == "eos_token_id") {
                true => config.token_ids("eos_token_id")?,
                false => defaults.eos.to_vec(),
            },
        };
        Ok(Self { dims, positions, rope: defaults.rope })
    }

    /// The rotary embedding, of layers of `kind` where the config tells kinds apart.
    pub(crate) fn rope(&self, config: &Fields, kind: Option<&str>) -> Result<Rope> {
        Rope::read(config, self.dims.head_dim, self.positions, self.rope, kind)
    }

    /// Refuses an MLP with another activation function than that of these names.
    pub(crate) fn only_activation(config: &Fields, names: &[&str]) -> Result<()> {
        // Newer configs write `hidden_activation` or `hidden_act`.
        for key in ["hidden_act", "hidden_activation"] {
            match config.str(key)? {
                None => {}
                Some(name) if names.contains(&name) => {}
                Some(other) => return Err(config.unsupported(key, &format!("\"{other}\""))),
            }
        }
        Ok(())
    }
}

/// Names of the one function `x * sigmoid(x)`.
pub(crate) const SILU: [&str; 2] = ["silu", "swish"];

/// Names of the Gaussian unit approximated by a hyperbolic tangent.
pub(crate) const GELU_TANH: [&str; 3] = ["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];

/// Which layers attend through a window.
pub(crate) fn window(config: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    match config.usize("sliding_window")? {
        Some(0) => Err(config.invalid("sliding_window", "0 is not a window")),
        Some(n) => Ok(Some(n)),
        // `null` says that there is none; an absent key means the class default.
        None if config.is_null("sliding_window") => Ok(None),
        None => Ok(default),
    }
}

/// By layer, whether it slides: `layer_types`, or `pattern` where there is none.
pub(crate) fn sliding(
    config: &Fields,
    layers: usize,
    pattern: impl FnOnce() -> Result<Vec<bool>>,
) -> Result<Vec<bool>> {
    let Some(types) = config.array("layer_types")? else { return pattern() };
    if types.len() != layers {
        let what = format!("{} entries for {layers} layers", types.len());
        return Err(config.invalid("layer_types", &what));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some("full_attention" | "attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(config.unsupported("layer_types", &kind.to_string())),
    };
    types.iter().map(slides).collect()
}

/// By layer, the window: of those that slide, of size `window`.
pub(crate) fn windows(config: &Fields, slides: &[bool], window: Option<usize>) -> Result<Vec<Option<usize>>> {
    if window.is_none() && slides.contains(&true) && config.get("layer_types").is_some() {
        return Err(config.invalid("layer_types", "sliding_attention without a sliding_window"));
    }
    Ok(slides.iter().map(|slides| window.filter(|_| *slides)).collect())
}

/// Keys that no result depends on, whatever they say: of training, of transformers' own bookkeeping, of generation (which
/// has a file of its own) and of parts that other keys switch.
const HARMLESS: [&str; 70] = [
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bf16",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bias_dropout_fusion",
    "cache_implementation",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "decoder_start_token_id",
    "do_sample",
    "diversity_penalty",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "fp16",
    "fp32",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "model_max_length",
    "model_name",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "onnx_safe",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "rescale_prenorm_residual",
    "return_dict",
    "return_dict_in_generate",
    "router_jitter_noise",
    "router_z_loss_coef",
    "seq_length",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "time_step_limit",
    "tokenizer_class",
    "tokenizer_type",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Parts of names of keys that no result depends on.
const HARMLESS_PARTS: [&str; 15] = [
    "_token_id",
    "_token_index",
    "aux_loss",
    "dropout",
    "drop_prob",
    "dtype",
    "flash_attn",
    "initializer",
    "_init",
    "init_",
    "mtp",
    "num_nextn_predict",
    "pdrop",
    "unsloth",
    "version",
];

/// Refuses a config with keys that the family did not read and that may change a result.
pub(crate) fn refuse_unread(config: &Fields) -> Result<()> {
    for (key, value) in config.unread() {
        let name = key.rsplit('.').next().unwrap_or(&key);
        let harmless = name.starts_with('_')
            || HARMLESS.contains(&name)
            || HARMLESS_PARTS.iter().any(|part| name.contains(part))
            || neutral(name, &value);
        if !harmless {
            let mut text = value.to_string();
            if let Some((end, _)) = text.char_indices().nth(40) {
                text.truncate(end);
                text += "...";
            }
            return Err(config.unsupported(&key, &text));
        }
    }
    Ok(())
}

/// Whether a value says that something is not there, or is a number that nothing could be computed with.
fn neutral(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.iter().all(|value| neutral(name, value)),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => match name {
            // Layers that are all alike.
            "layer_types" => text == "full_attention",
            "mlp_layer_types" => text == "dense",
            _ => matches!(text.as_str(), "" | "NaN" | "Infinity" | "-Infinity"),
        },
        Value::Number(n) => {
            let one = name.contains("multiplier")
                || name.contains("scal")
                || name.contains("factor")
                || name == "scale_emb";
            n.as_f64() == Some(if one { 1.0 } else { 0.0 })
        }
        Value::Bool(true) => false,
    }
}
