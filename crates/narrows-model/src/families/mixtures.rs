//! Families with experts, and what they share.

use super::block::{Block, Feed};
use super::llama::{ERNIE, MISTRAL, all_layers, hunyuan_norm};
use super::norms::every_but;
use crate::builder::{Attention, Builder, Correction, Head, Mixture, Mlp, Names, NormAs, QkNorm};
use crate::config::{Defaults, Facts, SILU, cap, factor, limit, size, sliding, switch, window, windows};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{Activation, Groups, Normalise, Program, RopeId, Scoring};
use crate::rope::RopeDefaults;

impl Mixture {
    /// Softmax over all experts, the best of them, in the names that most files have.
    pub(super) const fn softmax(count: usize, per_token: usize, width: usize) -> Self {
        Self {
            router: "mlp.gate.weight",
            correction: None,
            shared_gate: None,
            count,
            per_token,
            scoring: Scoring::Softmax,
            groups: None,
            normalise: Normalise::No,
            scale: 1.0,
            names: Names::COMMON,
            width,
            act: Activation::Silu,
            shared: None,
            shared_scale: 1.0,
        }
    }
}

/// The number of experts. Transformers takes either name, and writes one or the other, depending on its version.
pub(super) fn count(config: &Fields, default: usize) -> Result<usize> {
    const KEYS: [&str; 2] = ["num_local_experts", "num_experts"];
    match (config.usize(KEYS[0])?, config.usize(KEYS[1])?) {
        (Some(a), Some(b)) if a != b => Err(config.invalid(KEYS[1], &format!("{b}, but {} is {a}", KEYS[0]))),
        (one, other) => Ok(one.or(other).unwrap_or(default)),
    }
}

/// The experts that every row goes to, as one MLP of their widths together; how many says a key, or its default.
pub(super) fn shared_experts(
    config: &Fields,
    (key, default): (&str, usize),
    width: usize,
) -> Result<Option<(&'static str, Mlp)>> {
    let count = config.usize(key)?.unwrap_or(default);
    match count.checked_mul(width).filter(|all| *all <= limit::INTERMEDIATE) {
        Some(0) => Ok(None),
        Some(all) => Ok(Some(("mlp.shared_experts", Mlp::swiglu(all, false)))),
        None => Err(config.invalid(key, &format!("{count} of width {width} are more than allowed"))),
    }
}

/// By layer, whether it has one MLP: `mlp_layer_types`, or the first `first_k_dense_replace`.
pub(super) fn dense_layers(config: &Fields, layers: usize, default: usize) -> Result<Vec<bool>> {
    let first = config.usize("first_k_dense_replace")?.unwrap_or(default);
    // Older configs say that every layer behind them has experts.
    if config.usize("moe_layer_freq").ok().flatten().is_some_and(|every| every != 1) {
        return Err(config.unsupported("moe_layer_freq", "other than 1"));
    }
    let Some(types) = config.array("mlp_layer_types")? else {
        return Ok((0..layers).map(|layer| layer < first).collect());
    };
    if types.len() != layers {
        let what = format!("{} entries for {layers} layers", types.len());
        return Err(config.invalid("mlp_layer_types", &what));
    }
    let dense = |kind: &serde_json::Value| match kind.as_str() {
        Some("dense") => Ok(true),
        Some("sparse") => Ok(false),
        _ => Err(config.unsupported("mlp_layer_types", &kind.to_string())),
    };
    types.iter().map(dense).collect()
}

/// Layers of Llama's order, each with an MLP or experts, and the head.
fn layers(
    mut b: Builder<'_>,
    rope: RopeId,
    block: &Block,
    head: &Head,
    mlp: &Mlp,
    of_layer: impl Fn(usize, &mut Attention) -> Option<Mixture>,
) -> Result<Program> {
    for layer in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        let mixture = of_layer(layer, &mut attention);
        block.write(&mut b, &attention, mixture.as_ref().map_or(Feed::Mlp(mlp), Feed::Experts))?;
    }
    b.head(head)
}

pub(super) fn mixtral(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { rope: RopeDefaults::theta(1e6), eps: 1e-5, ..MISTRAL };
    let facts = Facts::read(config, "mixtral", &defaults)?;
    let window = all_layers(config, None)?;
    let count = count(config, 8)?;
    let per_token = config.usize("num_experts_per_tok")?.unwrap_or(2);
    let mixture = Mixture {
        router: "block_sparse_moe.gate.weight",
        // A softmax over the chosen alone is the same as probabilities that are made to add up to one.
        normalise: Normalise::Sum,
        names: Names::MIXTRAL,
        ..Mixture::softmax(count, per_token, facts.dims.intermediate)
    };
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |_, a| {
        a.window = window;
        (count > 0).then_some(mixture.clone())
    })
}

/// The routing of DeepSeek V3, which many have: sigmoids, a correction for the choice alone, groups, a factor.
struct V3 {
    count: (&'static str, usize),
    per_token: usize,
    width: usize,
    shared: (&'static str, usize),
    /// The key of the factor of weights, and its default.
    scale: (&'static str, f64),
    correction: &'static str,
    /// Whether weights add up to one where the config says nothing.
    normalised: bool,
}

const V3: V3 = V3 {
    count: ("n_routed_experts", 128),
    per_token: 8,
    width: 1408,
    shared: ("n_shared_experts", 1),
    scale: ("routed_scaling_factor", 1.0),
    correction: "mlp.gate.e_score_correction_bias",
    normalised: true,
};

impl V3 {
    fn read(&self, config: &Fields) -> Result<Mixture> {
        match config.str("scoring_func")? {
            None | Some("sigmoid") => {}
            Some(other) => return Err(config.unsupported("scoring_func", &format!("\"{other}\""))),
        }
        match config.str("topk_method")? {
            None | Some("noaux_tc") => {}
            Some(other) => return Err(config.unsupported("topk_method", &format!("\"{other}\""))),
        }
        let count = size(config, self.count.0, self.count.1, limit::HIDDEN)?;
        let per_token = size(config, "num_experts_per_tok", self.per_token, limit::HIDDEN)?;
        let width = size(config, "moe_intermediate_size", self.width, limit::INTERMEDIATE)?;
        let shared = shared_experts(config, self.shared, width)?;
        let groups = config.usize("n_group")?.unwrap_or(1);
        let chosen = config.usize("topk_group")?.unwrap_or(1);
        if groups > 1 && (!count.is_multiple_of(groups) || !(1..=groups).contains(&chosen)) {
            return Err(config.invalid("n_group", &format!("{chosen} of {groups} groups of {count} experts")));
        }
        let normalise = switch(config, "norm_topk_prob", self.normalised)?;
        Ok(Mixture {
            scoring: Scoring::Sigmoid,
            correction: Some(Correction { name: self.correction, two_dimensional: false }),
            groups: (groups > 1).then_some(Groups { count: groups, chosen, best: 2 }),
            normalise: if normalise { Normalise::SumAnd(1e-20) } else { Normalise::No },
            scale: factor(config, self.scale.0, self.scale.1)?,
            shared,
            ..Mixture::softmax(count, per_token, width)
        })
    }
}

pub(super) fn glm4_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 151_552,
        intermediate: 10_944,
        layers: 46,
        heads: 96,
        kv_heads: Some(8),
        positions: 131_072,
        eps: 1e-5,
        eos: &[],
        rope: RopeDefaults { partial: 0.5, ..RopeDefaults::theta(1e4) },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "glm4_moe", &defaults)?;
    let mixture = V3.read(config)?;
    let dense = dense_layers(config, facts.dims.layers, 1)?;
    let bias = switch(config, "attention_bias", false)?;
    let qk_norm = switch(config, "use_qk_norm", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (mut b, rope) = facts.begin(config, prefix)?;
    // Layers that predict further tokens lie behind the others.
    let behind = format!("model.layers.{}.", b.dims().layers);
    b.skip(&[&behind]);
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |layer, a| {
        a.qkv_bias = bias;
        a.qk_norm = qk_norm.then_some(QkNorm::per_head(rms));
        (!dense[layer]).then_some(mixture.clone())
    })
}

pub(super) fn dots1(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 152_064,
        hidden: 4608,
        intermediate: 10_944,
        layers: 62,
        kv_heads: Some(32),
        eos: &[],
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "dots1", &defaults)?;
    let mixture = V3 { shared: ("n_shared_experts", 0), normalised: false, ..V3 }.read(config)?;
    let dense = dense_layers(config, facts.dims.layers, 0)?;
    let slides = sliding(config, facts.dims.layers, || Ok(vec![false; facts.dims.layers]))?;
    let windows = windows(config, &slides, window(config, Some(4096))?)?;
    let bias = switch(config, "attention_bias", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.qk_norm = Some(QkNorm::per_head(rms));
        a.window = windows[layer];
        (!dense[layer]).then_some(mixture.clone())
    })
}

pub(super) fn exaone_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults =
        Defaults { vocab: 102_400, intermediate: 16_384, eps: 1e-5, eos: &[53], ..Defaults::LLAMA };
    let facts = Facts::read(config, "exaone_moe", &defaults)?;
    let of = V3 {
        count: ("num_experts", 64),
        width: 1024,
        shared: ("num_shared_experts", 1),
        scale: ("routed_scaling_factor", 2.5),
        correction: "mlp.e_score_correction_bias",
        ..V3
    };
    let mixture = of.read(config)?;
    let dense = dense_layers(config, facts.dims.layers, 1)?;
    let window = window(config, Some(4096))?;
    let slides = every_but(config, facts.dims.layers, 4)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (mut b, rope) = facts.begin(config, prefix)?;
    b.skip(&["mtp."]);
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |layer, a| {
        a.qk_norm = Some(QkNorm::per_head(rms));
        a.window = window.filter(|_| slides[layer]);
        a.rope = a.rope.filter(|_| slides[layer] || window.is_none());
        (!dense[layer]).then_some(mixture.clone())
    })
}

/// Hunyuan 3.
pub(super) fn hy_v3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 120_832,
        intermediate: 13_312,
        layers: 80,
        heads: 64,
        kv_heads: Some(8),
        head_dim: Some(128),
        positions: 131_072,
        eps: 1e-5,
        eos: &[],
        rope: RopeDefaults::theta(11_158_840.0),
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "hy_v3", &defaults)?;
    let of = V3 {
        count: ("num_experts", 192),
        width: 1536,
        shared: ("num_shared_experts", 1),
        scale: ("router_scaling_factor", 2.826),
        correction: "mlp.expert_bias",
        ..V3
    };
    let routing = of.read(config)?;
    let shared = routing.shared.map(|(_, mlp)| ("mlp.shared_mlp", mlp));
    let mixture = Mixture { router: "mlp.router.gate.weight", shared, ..routing };
    config.note("enable_moe_fp32_combine");
    let dense = dense_layers(config, facts.dims.layers, 1)?;
    let bias = switch(config, "attention_bias", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.qk_norm = Some(QkNorm::per_head(rms));
        (!dense[layer]).then_some(mixture.clone())
    })
}

pub(super) fn minimax_m2(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 200_064,
        hidden: 3072,
        intermediate: 1536,
        layers: 62,
        heads: 48,
        kv_heads: Some(8),
        head_dim: Some(128),
        positions: 196_608,
        rope: RopeDefaults::theta(5e6),
        eos: &[200_020],
        ..Defaults::LLAMA
    };
    let mut facts = Facts::read(config, "minimax_m2", &defaults)?;
    let rotary = size(config, "rotary_dim", facts.dims.head_dim, facts.dims.head_dim)?;
    facts.rope.partial = rotary as f64 / facts.dims.head_dim as f64;
    for (key, wanted) in [("scoring_func", "sigmoid"), ("qk_norm_type", "per_layer")] {
        if let Some(other) = config.str(key)?.filter(|given| *given != wanted) {
            return Err(config.unsupported(key, &format!("\"{other}\"")));
        }
    }
    let qk_norm = switch(config, "use_qk_norm", true)?;
    let corrected = switch(config, "use_routing_bias", true)?;
    let per_token = size(config, "num_experts_per_tok", 8, limit::HIDDEN)?;
    let correction = Correction { name: "block_sparse_moe.e_score_correction_bias", two_dimensional: false };
    let mixture = Mixture {
        router: "block_sparse_moe.gate.weight",
        scoring: Scoring::Sigmoid,
        correction: corrected.then_some(correction),
        normalise: Normalise::Sum,
        names: Names::MIXTRAL,
        ..Mixture::softmax(count(config, 256)?, per_token, facts.dims.intermediate)
    };
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |_, a| {
        let norm = QkNorm { full_width: true, ..QkNorm::per_head(rms) };
        a.qk_norm = qk_norm.then_some(norm);
        Some(mixture.clone())
    })
}

/// Trinity: four norms, a gate on what attention gives, a rotary embedding in layers that slide.
pub(super) fn afmoe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 200_192,
        hidden: 2048,
        intermediate: 6144,
        heads: 16,
        head_dim: Some(128),
        positions: 16_384,
        eps: 1e-5,
        eos: &[],
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "afmoe", &defaults)?;
    let (count, per_token) = (count(config, 64)?, size(config, "num_experts_per_tok", 6, limit::HIDDEN)?);
    let width = size(config, "moe_intermediate_size", 1408, limit::INTERMEDIATE)?;
    let shared = shared_experts(config, ("num_shared_experts", 2), width)?;
    let mixture = Mixture {
        router: "mlp.router.gate.weight",
        correction: Some(Correction { name: "mlp.expert_bias", two_dimensional: false }),
        scoring: Scoring::Sigmoid,
        normalise: Normalise::SumAnd(1e-20),
        scale: factor(config, "route_scale", 1.0)?,
        shared,
        ..Mixture::softmax(count, per_token, width)
    };
    let dense = config.usize("num_dense_layers")?.unwrap_or(1);
    let period = config.usize("global_attn_every_n_layers")?.unwrap_or(4);
    let slides = sliding(config, facts.dims.layers, || {
        Ok((1..=facts.dims.layers).map(|n| period > 0 && !n.is_multiple_of(period)).collect())
    })?;
    let windows = windows(config, &slides, window(config, Some(1024))?)?;
    let bias = switch(config, "attention_bias", false)?;
    let scaled = switch(config, "mup_enabled", false)?;
    for key in
        ["score_func", "route_norm", "n_group", "topk_group", "num_limited_groups", "num_expert_groups"]
    {
        match config.get(key).map(ToString::to_string).as_deref() {
            None | Some("1" | "true" | "\"sigmoid\"") => {}
            Some(other) => return Err(config.unsupported(key, other)),
        }
    }
    config.note("load_balance_coeff");
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (mut b, rope) = facts.begin(config, prefix)?;
    if scaled {
        b.scale_hidden((b.dims().hidden as f32).sqrt());
    }
    let block = Block {
        before: [Some("input_layernorm"), Some("pre_mlp_layernorm")],
        after: [Some("post_attention_layernorm"), Some("post_mlp_layernorm")],
        ..Block::pre_norm(rms)
    };
    layers(b, rope, &block, &Head::llama(rms), &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.qk_norm = Some(QkNorm::per_head(rms));
        a.window = windows[layer];
        a.rope = a.rope.filter(|_| slides[layer]);
        a.gate = Some("gate_proj");
        (layer >= dense).then_some(mixture.clone())
    })
}

pub(super) fn ernie4_5_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        hidden: 2560,
        intermediate: 12_288,
        layers: 28,
        heads: 20,
        kv_heads: Some(4),
        head_dim: None,
        ..ERNIE
    };
    let facts = Facts::read(config, "ernie4_5_moe", &defaults)?;
    let count_of = size(config, "moe_num_experts", 64, limit::HIDDEN)?;
    let per_token = size(config, "moe_k", 6, limit::HIDDEN)?;
    let width = size(config, "moe_intermediate_size", 1536, limit::INTERMEDIATE)?;
    let shared = shared_experts(config, ("moe_num_shared_experts", 2), width)?;
    let correction = Correction { name: "mlp.moe_statics.e_score_correction_bias", two_dimensional: true };
    let mixture = Mixture {
        correction: Some(correction),
        normalise: Normalise::SumAtLeast(factor(config, "moe_norm_min", 1e-12)?),
        shared,
        ..Mixture::softmax(count_of, per_token, width)
    };
    let first = config.usize("moe_layer_start_index")?.unwrap_or(1);
    // -1 is the last layer.
    let last = match config.get("moe_layer_end_index").and_then(serde_json::Value::as_i64) {
        None | Some(-1) => facts.dims.layers.saturating_sub(1),
        Some(last) => usize::try_from(last).unwrap_or(0),
    };
    let interval = config.usize("moe_layer_interval")?.unwrap_or(1).max(1);
    let bias = switch(config, "use_bias", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, bias));
    let (mut b, rope) = facts.begin(config, prefix)?;
    b.skip(&["model.mtp_"]);
    layers(b, rope, &Block::pre_norm(rms), &Head { bias, ..Head::llama(rms) }, &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        let sparse = (first..=last).contains(&layer) && (layer + 1).is_multiple_of(interval);
        sparse.then_some(mixture.clone())
    })
}

pub(super) fn hunyuan_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { vocab: 290_943, eps: 1e-5, ..Defaults::LLAMA };
    let facts = Facts::read(config, "hunyuan_v1_moe", &defaults)?;
    let layer_count = facts.dims.layers;
    // A number, or one for each layer.
    let each = |key: &str, default: usize| -> Result<Vec<usize>> {
        match config.get(key).and_then(serde_json::Value::as_array) {
            Some(list) if list.len() == layer_count => list
                .iter()
                .map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
                .collect::<Option<_>>()
                .ok_or_else(|| config.invalid(key, "not a list of numbers")),
            Some(list) => {
                Err(config.invalid(key, &format!("{} entries for {layer_count} layers", list.len())))
            }
            None => Ok(vec![config.usize(key)?.unwrap_or(default); layer_count]),
        }
    };
    let per_token = each("moe_topk", 1)?;
    let width = match config.get("moe_intermediate_size") {
        Some(_) => each("moe_intermediate_size", 0)?,
        None => vec![facts.dims.intermediate; layer_count],
    };
    let count = each("num_experts", 1)?;
    let bias = switch(config, "attention_bias", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let norm = hunyuan_norm(facts.dims.eps);
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |layer, a| {
        (a.qkv_bias, a.out_bias) = (bias, bias);
        a.qk_norm = Some(norm);
        Some(Mixture {
            router: "mlp.gate.wg.weight",
            normalise: Normalise::Sum,
            shared: Some(("mlp.shared_mlp", mlp)),
            ..Mixture::softmax(count[layer], per_token[layer], width[layer])
        })
    })
}

pub(super) fn olmoe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 50_304,
        hidden: 2048,
        intermediate: 2048,
        layers: 16,
        heads: 16,
        positions: 4096,
        eps: 1e-5,
        eos: &[50_279],
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "olmoe", &defaults)?;
    let normalise = switch(config, "norm_topk_prob", false)?;
    let per_token = size(config, "num_experts_per_tok", 8, limit::HIDDEN)?;
    let mixture = Mixture {
        normalise: if normalise { Normalise::Sum } else { Normalise::No },
        ..Mixture::softmax(count(config, 64)?, per_token, facts.dims.intermediate)
    };
    let clip = cap(config, "clip_qkv", None)?;
    let bias = switch(config, "attention_bias", false)?;
    let (rms, mlp) = (NormAs::rms(facts.dims.eps), Mlp::swiglu(facts.dims.intermediate, false));
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(rms), &Head::llama(rms), &mlp, |_, a| {
        (a.qkv_bias, a.out_bias, a.clip) = (bias, bias, clip);
        a.qk_norm = Some(QkNorm { full_width: true, ..QkNorm::per_head(rms) });
        Some(mixture.clone())
    })
}

/// Phi-3.5-MoE.
pub(super) fn phimoe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 32_064,
        intermediate: 6400,
        kv_heads: Some(8),
        positions: 131_072,
        eps: 1e-5,
        rope: RopeDefaults::theta(1e6),
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "phimoe", &defaults)?;
    let jitter = config.f64("router_jitter_noise")?.unwrap_or(0.01) as f32;
    let per_token = size(config, "num_experts_per_tok", 2, limit::HIDDEN)?;
    if per_token > 2 {
        return Err(config.unsupported("num_experts_per_tok", &format!("{per_token} with a sparse mixer")));
    }
    let mixture = Mixture {
        router: "block_sparse_moe.gate.weight",
        scoring: Scoring::SparseMixer(jitter),
        names: Names::MIXTRAL,
        ..Mixture::softmax(count(config, 16)?, per_token, facts.dims.intermediate)
    };
    config.note("input_jitter_noise");
    let window = all_layers(config, None)?;
    let bias = switch(config, "attention_bias", false)?;
    let norm = NormAs::layer(facts.dims.eps, true);
    let head = Head { bias: switch(config, "lm_head_bias", false)?, ..Head::llama(norm) };
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let (b, rope) = facts.begin(config, prefix)?;
    layers(b, rope, &Block::pre_norm(norm), &head, &mlp, |_, a| {
        (a.qkv_bias, a.out_bias, a.window) = (bias, bias, window);
        Some(mixture.clone())
    })
}
