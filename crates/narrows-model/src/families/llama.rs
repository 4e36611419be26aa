//! Llama and families of its shape.

use super::block::{Block, Feed};
use crate::builder::{Attention, Builder, Head, Mlp, NormAs, QkNorm, Up};
use crate::config::{Defaults, Facts, SILU, sliding, switch, window, windows};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{Activation, Program, RopeId};
use crate::rope::{Pairing, RopeDefaults};

/// Layers of Llama's order with one MLP; `of_layer` says how the attention of a layer differs.
pub(super) fn dense(
    mut b: Builder<'_>,
    rope: RopeId,
    mlp: &Mlp,
    of_layer: impl Fn(usize, &mut Attention),
) -> Result<Program> {
    let (layers, rms) = (b.dims().layers, NormAs::rms(b.dims().eps));
    let block = Block::pre_norm(rms);
    for layer in 0..layers {
        let mut attention = b.attention_facts(rope);
        of_layer(layer, &mut attention);
        block.write(&mut b, &attention, Feed::Mlp(mlp))?;
    }
    b.head(&Head::llama(rms))
}

pub(super) fn llama(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "llama", &Defaults::LLAMA)?;
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?);
    let (b, rope) = facts.begin(config, prefix)?;
    // Its class has no window, whatever the config says.
    config.note("sliding_window");
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (bias, bias))
}

pub(super) const MISTRAL: Defaults =
    Defaults { intermediate: 14_336, kv_heads: Some(8), positions: 131_072, ..Defaults::LLAMA };

pub(super) fn mistral(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "mistral", &MISTRAL)?;
    let window = all_layers(config, Some(4096))?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| a.window = window)
}

/// The window of a class whose layers are all alike.
pub(super) fn all_layers(config: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    if config.get("layer_types").is_some() {
        return Err(config.unsupported("layer_types", "in this kind of model"));
    }
    window(config, default)
}

/// YaRN, and queries that grow with their position.
pub(super) fn ministral3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 131_072,
        head_dim: Some(128),
        layers: 34,
        positions: 262_144,
        eps: 1e-5,
        rope: RopeDefaults { temperature: true, ..RopeDefaults::theta(1e6) },
        ..MISTRAL
    };
    let facts = Facts::read(config, "ministral3", &defaults)?;
    let window = all_layers(config, None)?;
    if config.get("rope_parameters").is_none() && config.get("rope_scaling").is_none() {
        return Err(config.invalid("rope_parameters", "missing"));
    }
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let mut of_keys = facts.rope(config, None)?;
    of_keys.temperature = None;
    let (mut b, of_queries) = facts.begin(config, prefix)?;
    let of_keys = b.rope(of_keys);
    dense(b, of_queries, &mlp, |_, a| {
        a.rope = Some((of_queries, of_keys));
        a.window = window;
    })
}

/// InternLM 1: Llama with biases around attention.
pub(super) fn internlm(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "internlm", &Defaults { vocab: 103_168, ..Defaults::LLAMA })?;
    let bias = switch(config, "bias", true)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (bias, bias))
}

pub(super) fn internlm3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 128_512,
        intermediate: 10_240,
        layers: 48,
        kv_heads: Some(2),
        head_dim: Some(128),
        positions: 32_768,
        eps: 1e-5,
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "internlm3", &defaults)?;
    // The published code's switches, and those of transformers.
    let (all, attention) = (switch(config, "bias", false)?, switch(config, "attention_bias", false)?);
    let (qkv_bias, bias) = (switch(config, "qkv_bias", false)? || attention, all || attention);
    let mlp = Mlp::swiglu(facts.dims.intermediate, all || switch(config, "mlp_bias", false)?);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (qkv_bias, bias))
}

pub(super) fn seed_oss(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 155_136,
        intermediate: 27_648,
        layers: 64,
        heads: 80,
        kv_heads: Some(8),
        head_dim: Some(128),
        positions: 524_288,
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "seed_oss", &defaults)?;
    let qkv_bias = switch(config, "attention_bias", true)?;
    let out_bias = switch(config, "attention_out_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (qkv_bias, out_bias))
}

/// An MLP without a gate.
pub(super) fn arcee(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &["relu2"])?;
    let defaults = Defaults {
        hidden: 2560,
        intermediate: 18_432,
        positions: 4096,
        eps: 1e-5,
        eos: &[128_001],
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "arcee", &defaults)?;
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp {
        act: Activation::Relu2,
        up: Up::Plain("up_proj"),
        ..Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?)
    };
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (bias, bias))
}

/// A norm of queries and keys behind the rotation.
pub(super) fn hunyuan_dense(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { vocab: 290_943, eps: 1e-5, ..Defaults::LLAMA };
    let facts = Facts::read(config, "hunyuan_v1_dense", &defaults)?;
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let norm = hunyuan_norm(facts.dims.eps);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.qk_norm = Some(norm);
    })
}

pub(super) const fn hunyuan_norm(eps: f32) -> QkNorm {
    let names = ["query_layernorm", "key_layernorm"];
    QkNorm { names, after_rope: true, ..QkNorm::per_head(NormAs::rms(eps)) }
}

/// Some layers have no rotary embedding.
pub(super) fn smollm3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 128_256,
        hidden: 2048,
        layers: 36,
        heads: 16,
        kv_heads: Some(4),
        positions: 32_768,
        tied: true,
        eos: &[128_001],
        ..Defaults::theta(2e6)
    };
    let facts = Facts::read(config, "smollm3", &defaults)?;
    let layers = facts.dims.layers;
    let rotated = rotated_layers(config, layers)?;
    let window = match switch(config, "use_sliding_window", false)? {
        true => window(config, None)?,
        false => None,
    };
    let slides = sliding(config, layers, || Ok(rotated.iter().map(|rotated| !rotated).collect()))?;
    let windows = match window {
        Some(_) => windows(config, &slides, window)?,
        None => vec![None; layers],
    };
    config.note("sliding_window");
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.rope = a.rope.filter(|_| rotated[layer]);
        a.window = windows[layer];
    })
}

/// By layer, whether it has a rotary embedding: `no_rope_layers` says 1 where it has.
fn rotated_layers(config: &Fields, layers: usize) -> Result<Vec<bool>> {
    let interval = config.usize("no_rope_layer_interval")?.unwrap_or(4);
    let Some(list) = config.array("no_rope_layers")?.filter(|list| !list.is_empty()) else {
        return Ok((1..=layers).map(|n| interval == 0 || !n.is_multiple_of(interval)).collect());
    };
    if list.len() != layers {
        let what = format!("{} entries for {layers} layers", list.len());
        return Err(config.invalid("no_rope_layers", &what));
    }
    Ok(list.iter().map(|rotated| rotated.as_u64().is_some_and(|rotated| rotated != 0)).collect())
}

/// Neighbours turn together.
pub(super) fn ernie4_5(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "ernie4_5", &ERNIE)?;
    let bias = switch(config, "use_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, bias);
    let (b, rope) = facts.begin(config, prefix)?;
    dense(b, rope, &mlp, |_, a| (a.qkv_bias, a.out_bias) = (bias, bias))
}

pub(super) const ERNIE: Defaults = Defaults {
    vocab: 103_424,
    hidden: 1024,
    intermediate: 3072,
    layers: 18,
    heads: 16,
    kv_heads: Some(2),
    head_dim: Some(128),
    positions: 131_072,
    eps: 1e-5,
    tied: true,
    rope: RopeDefaults { pairing: Pairing::Neighbours, ..RopeDefaults::theta(5e5) },
    ..Defaults::LLAMA
};
