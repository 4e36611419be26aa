//! Qwen 2 and 3, with and without experts.

use super::block::{Block, Feed};
use super::mixtures::count;
use crate::builder::{Builder, Head, Mixture, Mlp, NormAs, QkNorm};
use crate::config::{Defaults, Facts, SILU, limit, size, sliding, switch, window, windows};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{Normalise, Program, RopeId};

pub(super) const QWEN: Defaults = Defaults {
    vocab: 151_936,
    intermediate: 22_016,
    kv_heads: Some(32),
    positions: 32_768,
    eos: &[],
    ..Defaults::LLAMA
};

const MOE: Defaults = Defaults { hidden: 2048, layers: 24, ..QWEN };

/// The facts that these families differ in.
struct Qwen<'a> {
    qkv_bias: bool,
    o_bias: bool,
    qk_norm: bool,
    windows: &'a [Option<usize>],
    mixture: Option<&'a Mixture>,
    /// By layer, whether it has experts.
    sparse: &'a [bool],
}

fn layers(mut b: Builder<'_>, rope: RopeId, with: &Qwen<'_>) -> Result<Program> {
    let (layers, rms) = (b.dims().layers, NormAs::rms(b.dims().eps));
    let mlp = Mlp::swiglu(b.dims().intermediate, false);
    for layer in 0..layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv_bias = with.qkv_bias;
        attention.out_bias = with.o_bias;
        attention.qk_norm = with.qk_norm.then_some(QkNorm::per_head(rms));
        attention.window = with.windows[layer];
        let sparse = with.sparse.get(layer).is_some_and(|sparse| *sparse);
        let feed = with.mixture.filter(|_| sparse).map_or(Feed::Mlp(&mlp), Feed::Experts);
        Block::pre_norm(rms).write(&mut b, &attention, feed)?;
    }
    b.head(&Head::llama(rms))
}

/// The window of layers that have one, which takes a switch.
fn switched(config: &Fields) -> Result<Option<usize>> {
    config.note("sliding_window");
    match switch(config, "use_sliding_window", false)? {
        true => window(config, Some(4096)),
        false => Ok(None),
    }
}

/// By layer, the window: of layers that `layer_types` names, or of those that `slides` of a layer and `max_window_layers`.
fn by_layer(
    config: &Fields,
    layers: usize,
    slides: impl Fn(usize, usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let window = switched(config)?;
    let pattern = || {
        let limit = config.usize("max_window_layers")?.unwrap_or(28);
        Ok((0..layers).map(|layer| slides(layer, limit)).collect())
    };
    let slides = sliding(config, layers, pattern)?;
    windows(config, &slides, window)
}

fn no_experts(config: &Fields) -> Result<()> {
    match count(config, 0)? {
        0 => Ok(()),
        n => Err(config.unsupported("num_experts", &format!("{n} in this kind of model"))),
    }
}

pub(super) fn qwen2(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    no_experts(config)?;
    let facts = Facts::read(config, "qwen2", &QWEN)?;
    let windows = by_layer(config, facts.dims.layers, |layer, limit| layer >= limit)?;
    let (b, rope) = facts.begin(config, prefix)?;
    let with =
        Qwen { qkv_bias: true, o_bias: false, qk_norm: false, windows: &windows, mixture: None, sparse: &[] };
    layers(b, rope, &with)
}

pub(super) fn qwen3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    no_experts(config)?;
    let facts = Facts::read(config, "qwen3", &Defaults { head_dim: Some(128), ..QWEN })?;
    let windows = by_layer(config, facts.dims.layers, |layer, limit| layer >= limit)?;
    let bias = switch(config, "attention_bias", false)?;
    let (b, rope) = facts.begin(config, prefix)?;
    let with =
        Qwen { qkv_bias: bias, o_bias: bias, qk_norm: true, windows: &windows, mixture: None, sparse: &[] };
    layers(b, rope, &with)
}

/// By layer, whether it has experts.
fn sparse(config: &Fields, layers: usize, count: usize) -> Result<Vec<bool>> {
    let step = config.usize("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(config.invalid("decoder_sparse_step", "0 is not a step"));
    }
    let mut sparse: Vec<bool> = (1..=layers).map(|n| count > 0 && n.is_multiple_of(step)).collect();
    for dense in config.array("mlp_only_layers")?.into_iter().flatten() {
        let layer = dense.as_u64().and_then(|layer| usize::try_from(layer).ok());
        let layer = layer.ok_or_else(|| config.invalid("mlp_only_layers", "not a list of layers"))?;
        // Like transformers, which only asks whether a layer is listed.
        if let Some(sparse) = sparse.get_mut(layer) {
            *sparse = false;
        }
    }
    Ok(sparse)
}

/// The experts of both families with their defaults.
fn mixture(config: &Fields, defaults: (usize, usize, usize)) -> Result<Mixture> {
    let (experts, chosen, width) = defaults;
    let count = count(config, experts)?;
    let per_token = config.usize("num_experts_per_tok")?.unwrap_or(chosen);
    let width = size(config, "moe_intermediate_size", width, limit::INTERMEDIATE)?;
    let normalise = switch(config, "norm_topk_prob", false)?;
    let normalise = if normalise { Normalise::Sum } else { Normalise::No };
    Ok(Mixture { normalise, ..Mixture::softmax(count, per_token, width) })
}

pub(super) fn qwen2_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { intermediate: 5632, heads: 16, kv_heads: Some(16), ..MOE };
    let facts = Facts::read(config, "qwen2_moe", &defaults)?;
    let windows =
        by_layer(config, facts.dims.layers, |layer, limit| layer < limit && layer.is_multiple_of(2))?;
    let width = size(config, "shared_expert_intermediate_size", 5632, limit::INTERMEDIATE)?;
    let mixture = Mixture {
        shared_gate: Some("mlp.shared_expert_gate.weight"),
        shared: Some(("mlp.shared_expert", Mlp::swiglu(width, false))),
        ..mixture(config, (60, 4, 1408))?
    };
    let sparse = sparse(config, facts.dims.layers, mixture.count)?;
    let qkv_bias = switch(config, "qkv_bias", true)?;
    let (b, rope) = facts.begin(config, prefix)?;
    let with = Qwen {
        qkv_bias,
        o_bias: false,
        qk_norm: false,
        windows: &windows,
        mixture: Some(&mixture),
        sparse: &sparse,
    };
    layers(b, rope, &with)
}

pub(super) fn qwen3_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "qwen3_moe", &Defaults { intermediate: 6144, kv_heads: Some(4), ..MOE })?;
    let windows = vec![switched(config)?; facts.dims.layers];
    let mixture = mixture(config, (128, 8, 768))?;
    let sparse = sparse(config, facts.dims.layers, mixture.count)?;
    let bias = switch(config, "attention_bias", false)?;
    let (b, rope) = facts.begin(config, prefix)?;
    let with = Qwen {
        qkv_bias: bias,
        o_bias: bias,
        qk_norm: true,
        windows: &windows,
        mixture: Some(&mixture),
        sparse: &sparse,
    };
    layers(b, rope, &with)
}
