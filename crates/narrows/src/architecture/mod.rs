//! The architecture of a model as data: what `config.json` says, checked, with every default filled in.

mod experts;
mod family;
mod rope;
mod weight;

use std::path::Path;

use narrows_shard::{Bytes, Encoding};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Fields;
pub use experts::Experts;
use family::Family;
pub use rope::{Rope, RopeScaling};
pub use weight::{ExpertWeight, LayerWeight, Weight, WeightSpec};

/// What a decoder-only transformer of the Llama shape needs to know about itself.
///
/// Families differ in a few facts (biases, norms on q and k, windows, experts); each is a field here, and nothing
/// downstream asks for the family's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// `model_type` of the config: `llama`, `mistral`, `qwen2` ...
    pub family: &'static str,
    /// Tokens that the embedding and the head know.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP, in layers without experts.
    pub intermediate_size: usize,
    /// The experts of layers that have some instead of one MLP.
    pub experts: Option<Experts>,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Bias on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Bias on the three projections of the MLP.
    pub mlp_bias: bool,
    /// RMS norm over each head of q and k.
    pub qk_norm: bool,
    /// The head may use the embedding table.
    pub tied_embeddings: bool,
    /// Per layer: a query attends at most to this many positions, its own included.
    pub windows: Vec<Option<usize>>,
    /// Positions that the model was made for; `None` where the rotary embedding adapts to any length.
    pub max_positions: Option<usize>,
    /// Tokens that end a text, as the config says.
    pub eos_token_ids: Vec<u32>,
}

/// Sizes above these are mistakes or attacks: several times the largest models known.
mod limit {
    pub(super) const LAYERS: usize = 1 << 12;
    pub(super) const HIDDEN: usize = 1 << 20;
    pub(super) const INTERMEDIATE: usize = 1 << 22;
    pub(super) const HEADS: usize = 1 << 14;
    pub(super) const HEAD_DIM: usize = 1 << 10;
    pub(super) const VOCAB: usize = 1 << 24;
    pub(super) const POSITIONS: usize = 1 << 30;
}

impl Architecture {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// The file is missing or unreadable, a value cannot be true, or the model needs something that is
    /// not computed here (named in the message).
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config = Fields::read_optional(&path)?.ok_or_else(|| Error::Missing {
            path: path.clone(),
            what: "not found; a model directory holds a config.json".to_owned(),
        })?;
        Self::from_config(&config)
    }

    /// Parses the bytes of a `config.json`, naming it `path` in errors. For fuzzing and tests.
    ///
    /// # Errors
    /// As [`Architecture::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_config(&Fields::parse(path, bytes)?)
    }

    fn from_config(config: &Fields) -> Result<Self> {
        let family = Family::of(config)?;
        refuse_unsupported(config)?;

        // What a config leaves out is what its class has; `null` is no size.
        let size = |key: &str, default: usize, max: usize| -> Result<usize> {
            if config.is_null(key) {
                return Err(config.invalid(key, "null is not a size"));
            }
            match config.usize(key)?.unwrap_or(default) {
                0 => Err(config.invalid(key, "0 is not a size")),
                v if v > max => Err(config.invalid(key, &format!("{v} is more than the {max} allowed"))),
                v => Ok(v),
            }
        };
        let defaults = &family.defaults;
        let hidden_size = size("hidden_size", defaults.hidden_size, limit::HIDDEN)?;
        let heads = size("num_attention_heads", defaults.heads, limit::HEADS)?;
        let kv_heads = match config.is_null("num_key_value_heads") {
            true => heads,
            false => size("num_key_value_heads", defaults.kv_heads.unwrap_or(heads), limit::HEADS)?,
        };
        if heads % kv_heads != 0 {
            return Err(config.invalid(
                "num_key_value_heads",
                &format!("{kv_heads} does not divide the {heads} attention heads"),
            ));
        }
        let head_dim = match defaults.head_dim.filter(|_| !config.is_null("head_dim")) {
            Some(default) => size("head_dim", default, limit::HEAD_DIM)?,
            None if config.get("head_dim").is_some() => size("head_dim", 0, limit::HEAD_DIM)?,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(config.invalid(
                    "num_attention_heads",
                    &format!("{heads} does not divide the hidden size {hidden_size}"),
                ));
            }
        };
        if head_dim % 2 != 0 || head_dim > limit::HEAD_DIM {
            return Err(config.invalid(
                "head_dim",
                &format!("{head_dim}; rotary embeddings need an even one up to {}", limit::HEAD_DIM),
            ));
        }
        let layers = size("num_hidden_layers", defaults.layers, limit::LAYERS)?;
        let max_position_embeddings =
            size("max_position_embeddings", defaults.max_positions, limit::POSITIONS)?;
        let rope = Rope::from_config(config, defaults.rope_theta, head_dim, max_position_embeddings)?;
        let norm_eps = config.f64("rms_norm_eps")?.unwrap_or(defaults.norm_eps);
        if !(norm_eps >= 0.0 && norm_eps.is_finite()) {
            return Err(config.invalid("rms_norm_eps", "not a small positive number"));
        }
        let intermediate_size = size("intermediate_size", defaults.intermediate_size, limit::INTERMEDIATE)?;
        Ok(Self {
            family: family.model_type,
            vocab_size: size("vocab_size", defaults.vocab_size, limit::VOCAB)?,
            hidden_size,
            intermediate_size,
            experts: Experts::from_config(config, family, layers)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: norm_eps as f32,
            max_positions: rope.max_positions(max_position_embeddings),
            rope,
            qkv_bias: family.qkv_bias.resolve(config)?,
            o_bias: family.o_bias.resolve(config)?,
            mlp_bias: family.mlp_bias.resolve(config)?,
            qk_norm: family.qk_norm,
            tied_embeddings: config.bool("tie_word_embeddings")?.unwrap_or(false),
            windows: family.windows(config, layers)?,
            eos_token_ids: match config.keys().any(|key| key == "eos_token_id") {
                true => config.token_ids("eos_token_id")?,
                false => defaults.eos_token_id.into_iter().collect(),
            },
        })
    }

    /// Width of all query heads together.
    #[must_use]
    pub const fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    #[must_use]
    pub const fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Size of the KV cache of a sequence of `positions` positions; at the end of the range on overflow.
    #[must_use]
    pub fn kv_bytes(&self, encoding: Encoding, positions: usize) -> Bytes {
        let row = encoding.row_bytes(self.head_dim).unwrap_or(usize::MAX) as u64;
        let heads = [self.layers, 2, self.kv_heads, positions];
        Bytes(heads.into_iter().fold(row, |bytes, n| bytes.saturating_mul(n as u64)))
    }

    /// The scale of attention scores, `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn attention_scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// Width of the widest gated MLP: of a layer, of an expert, or of the shared one.
    #[must_use]
    pub fn widest_mlp(&self) -> usize {
        let Some(experts) = &self.experts else { return self.intermediate_size };
        let dense = if experts.layers.contains(&false) { self.intermediate_size } else { 0 };
        dense.max(experts.intermediate_size).max(experts.shared_intermediate_size.unwrap_or(0))
    }

    /// The experts of a layer, if it has some.
    #[must_use]
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers[layer])
    }

    /// Every weight in the order in which a pass uses them.
    pub fn weights(&self) -> impl Iterator<Item = WeightSpec> + '_ {
        weight::in_pass_order(self)
    }
}

/// Refuses what would silently change the result.
fn refuse_unsupported(config: &Fields) -> Result<()> {
    if let Some(quantization) = config.object("quantization_config")? {
        let method = quantization.str("quant_method")?.unwrap_or("an unnamed method").to_owned();
        return Err(config.unsupported("quantization_config", &format!("({method})")));
    }
    // Newer configs write `hidden_activation` or `hidden_act`; the names `silu` and `swish` are one function.
    for key in ["hidden_act", "hidden_activation"] {
        match config.str(key)? {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(config.unsupported(key, &format!("\"{other}\""))),
        }
    }
    // Scalings and caps that relatives of Llama carry; each multiplies or bends a value if it is not neutral.
    const NEUTRAL: [(&str, f64); 9] = [
        ("attention_multiplier", f64::NAN),
        ("attn_logit_softcapping", f64::NAN),
        ("embedding_multiplier", 1.0),
        ("final_logit_softcapping", f64::NAN),
        ("logit_scale", 1.0),
        ("logits_scaling", 1.0),
        ("partial_rotary_factor", 1.0),
        ("residual_multiplier", 1.0),
        ("scale_emb", 1.0),
    ];
    for (key, neutral) in NEUTRAL {
        if let Some(value) = config.f64(key)?
            && value != neutral
        {
            return Err(config.unsupported(key, &value.to_string()));
        }
    }
    // Layers of other kinds: a config that names them is not the plain decoder that is computed here.
    for key in ["no_rope_layers", "text_config", "cross_attention_layers"] {
        refuse_unless_neutral(config, key)?;
    }
    Ok(())
}

fn refuse_unless_neutral(config: &Fields, key: &str) -> Result<()> {
    let neutral = match config.get(key) {
        None | Some(Value::Bool(false)) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Number(n)) => n.as_u64() == Some(0),
        Some(_) => false,
    };
    if neutral { Ok(()) } else { Err(config.unsupported(key, "in this kind of model")) }
}

#[cfg(test)]
mod tests;
