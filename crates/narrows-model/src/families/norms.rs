//! Families whose layers have norms, scales and caps in other places than Llama's: OLMo, EXAONE, Gemma, Granite, Command.

use super::block::{Block, Feed};
use super::mixtures::{count, dense_layers, shared_experts};
use crate::builder::{Head, Mixture, Mlp, Names, NormAs, QkNorm};
use crate::config::{
    Defaults, Facts, GELU_TANH, SILU, cap, factor, limit, size, sliding, switch, window, windows,
};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{Activation, Normalise, Program, Scoring};
use crate::rope::{Pairing, Rope, RopeDefaults};

const OLMO: Defaults = Defaults { vocab: 50_304, eps: 1e-5, eos: &[50_279], ..Defaults::LLAMA };

/// Norms behind each half, and none before.
const AFTER: [Option<&str>; 2] = [Some("post_attention_layernorm"), Some("post_feedforward_layernorm")];

pub(super) fn olmo2(config: &Fields, prefix: &str) -> Result<Program> {
    olmo(config, prefix, "olmo2", &OLMO, None)
}

/// The same with windows, and a rotary embedding that is stretched in full layers only.
pub(super) fn olmo3(config: &Fields, prefix: &str) -> Result<Program> {
    olmo(config, prefix, "olmo3", &Defaults { rope: RopeDefaults::theta(5e5), ..OLMO }, Some(4096))
}

fn olmo(
    config: &Fields,
    prefix: &str,
    family: &'static str,
    defaults: &Defaults,
    default_window: Option<usize>,
) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, family, defaults)?;
    let (layers, rms) = (facts.dims.layers, NormAs::rms(facts.dims.eps));
    let windows = match default_window {
        None => vec![None; layers],
        default => {
            let slides = every_but(config, layers, 4)?;
            windows(config, &slides, window(config, default)?)?
        }
    };
    let bias = switch(config, "attention_bias", false)?;
    let plain = facts.rope(config, Some("sliding_attention"))?.unstretched();
    let (mut b, rope) = facts.begin_with(config, prefix, "model.embed_tokens", Some("full_attention"))?;
    let plain = b.rope(plain);
    let block = Block { before: [None, None], after: AFTER, ..Block::pre_norm(rms) };
    let mlp = Mlp::swiglu(b.dims().intermediate, false);
    for window in windows {
        let rope = if window.is_some() { plain } else { rope };
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.qk_norm = Some(QkNorm { full_width: true, ..QkNorm::per_head(rms) });
        attention.window = window;
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(rms))
}

/// By layer, whether it slides: all but each n-th of `sliding_window_pattern`, unless `layer_types` says otherwise.
pub(super) fn every_but(config: &Fields, layers: usize, default: usize) -> Result<Vec<bool>> {
    let pattern = || {
        // `LLLG` names the layers of a period; a number is its length, whose last layer is full.
        if let Some(text) = config.get("sliding_window_pattern").and_then(|value| value.as_str()) {
            if text.is_empty() || !text.bytes().all(|b| b == b'L' || b == b'G') {
                return Err(config.invalid("sliding_window_pattern", "not a text of L and G"));
            }
            return Ok(text.bytes().cycle().take(layers).map(|b| b == b'L').collect());
        }
        let period = config.usize("sliding_window_pattern")?.unwrap_or(default);
        Ok((1..=layers).map(|n| period > 0 && !n.is_multiple_of(period)).collect())
    };
    let slides = sliding(config, layers, pattern)?;
    for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
        config.note(key);
    }
    Ok(slides)
}

/// Norms behind each half; full layers have no rotary embedding where others slide.
pub(super) fn exaone4(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { vocab: 102_400, intermediate: 16_384, eps: 1e-5, ..Defaults::LLAMA };
    let facts = Facts::read(config, "exaone4", &defaults)?;
    let (layers, rms) = (facts.dims.layers, NormAs::rms(facts.dims.eps));
    let window = window(config, Some(4096))?;
    let slides = every_but(config, layers, 4)?;
    let slides = if window.is_some() { slides } else { vec![false; layers] };
    let (mut b, rope) = facts.begin(config, prefix)?;
    let block = Block { before: [None, None], after: AFTER, ..Block::pre_norm(rms) };
    let mlp = Mlp::swiglu(b.dims().intermediate, false);
    for slides in slides {
        let mut attention = b.attention_facts(rope);
        attention.qk_norm = Some(QkNorm::per_head(rms));
        attention.window = window.filter(|_| slides);
        attention.rope = attention.rope.filter(|_| slides || window.is_none());
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(rms))
}

/// What all Gemmas share.
const GEMMA: Defaults = Defaults {
    vocab: 256_000,
    hidden: 3072,
    intermediate: 24_576,
    layers: 28,
    heads: 16,
    kv_heads: Some(16),
    head_dim: Some(256),
    positions: 8192,
    eos: &[1],
    tied: true,
    ..Defaults::LLAMA
};

const GEMMA_MLP: Mlp = Mlp { act: Activation::GeluTanh, ..Mlp::swiglu(0, false) };

/// Norms before and behind each half.
const FOUR: Block = Block {
    before: [Some("input_layernorm"), Some("pre_feedforward_layernorm")],
    after: AFTER,
    ..Block::pre_norm(NormAs::rms(0.0))
};

/// The Gaussian unit under any of its names: these classes compute its approximation for all of them.
fn any_gelu(config: &Fields) -> Result<()> {
    Facts::only_activation(config, &["gelu", GELU_TANH[0], GELU_TANH[1], GELU_TANH[2]])
}

pub(super) fn gemma(config: &Fields, prefix: &str) -> Result<Program> {
    any_gelu(config)?;
    let facts = Facts::read(config, "gemma", &GEMMA)?;
    let rms = NormAs::rms(facts.dims.eps).plus_one();
    let bias = switch(config, "attention_bias", false)?;
    let (mut b, rope) = facts.begin(config, prefix)?;
    b.scale_hidden((b.dims().hidden as f32).sqrt());
    let mlp = Mlp { width: b.dims().intermediate, ..GEMMA_MLP };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        Block::pre_norm(rms).write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(rms))
}

pub(super) fn gemma2(config: &Fields, prefix: &str) -> Result<Program> {
    gemma2_with(config, prefix, "gemma2", &FOUR)
}

/// Gemma 2 without the norms behind each half.
pub(super) fn vaultgemma(config: &Fields, prefix: &str) -> Result<Program> {
    gemma2_with(config, prefix, "vaultgemma", &Block { after: [None, None], ..FOUR })
}

fn gemma2_with(config: &Fields, prefix: &str, family: &'static str, block: &Block) -> Result<Program> {
    let defaults =
        Defaults { hidden: 2304, intermediate: 9216, layers: 26, heads: 8, kv_heads: Some(4), ..GEMMA };
    any_gelu(config)?;
    let facts = Facts::read(config, family, &defaults)?;
    let slides = sliding(config, facts.dims.layers, || {
        Ok((0..facts.dims.layers).map(|layer| layer.is_multiple_of(2)).collect())
    })?;
    let local = facts.rope(config, None)?;
    four_norms(config, prefix, facts, (&slides, local), [Some(50.0), Some(30.0)], (block, false))
}

pub(super) fn gemma3(config: &Fields, prefix: &str) -> Result<Program> {
    let defaults = Defaults {
        vocab: 262_208,
        hidden: 2304,
        intermediate: 9216,
        layers: 26,
        heads: 8,
        kv_heads: Some(4),
        positions: 131_072,
        rope: RopeDefaults::theta(1e6),
        ..GEMMA
    };
    any_gelu(config)?;
    let facts = Facts::read(config, "gemma3_text", &defaults)?;
    let slides = every_but(config, facts.dims.layers, 6)?;
    let nested = config.object("rope_parameters")?.is_some_and(|all| all.get("sliding_attention").is_some());
    let theta = config.f64("rope_local_base_freq")?.unwrap_or(1e4);
    let local = match nested {
        true => facts.rope(config, Some("sliding_attention"))?,
        false => Rope::plain(theta, facts.dims.head_dim, Pairing::Halves)
            .ok_or_else(|| config.invalid("rope_local_base_freq", "no base of a rotary embedding"))?,
    };
    four_norms(config, prefix, facts, (&slides, local), [None, None], (&FOUR, true))
}

/// Gemma 2 and 3: four norms a layer, windows with a rotary embedding of their own, caps.
fn four_norms(
    config: &Fields,
    prefix: &str,
    facts: Facts,
    (slides, local): (&[bool], Rope),
    caps: [Option<f64>; 2],
    (block, qk_norm): (&Block, bool),
) -> Result<Program> {
    let rms = NormAs::rms(facts.dims.eps).plus_one();
    let windows = windows(config, slides, window(config, Some(4096))?)?;
    let scale = factor(config, "query_pre_attn_scalar", 256.0)?.powf(-0.5);
    let softcap = cap(config, "attn_logit_softcapping", caps[0])?;
    let head = Head { softcap: cap(config, "final_logit_softcapping", caps[1])?, ..Head::llama(rms) };
    let bias = switch(config, "attention_bias", false)?;
    let (mut b, rope) = facts.begin_with(config, prefix, "model.embed_tokens", Some("full_attention"))?;
    let local = b.rope(local);
    b.scale_hidden((b.dims().hidden as f32).sqrt());
    let mlp = Mlp { width: b.dims().intermediate, ..GEMMA_MLP };
    let block = Block { norm: rms, ..*block };
    for (slides, window) in slides.iter().zip(windows) {
        let rope = if *slides { local } else { rope };
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        (attention.scale, attention.softcap, attention.window) = (scale, softcap, window);
        attention.qk_norm = qk_norm.then_some(QkNorm::per_head(rms));
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&head)
}

pub(super) fn granite(config: &Fields, prefix: &str) -> Result<Program> {
    granites(config, prefix, "granite", None)
}

/// The same with experts, all of a layer in two tensors.
pub(super) fn granite_moe(config: &Fields, prefix: &str) -> Result<Program> {
    let count = count(config, 8)?;
    let per_token = config.usize("num_experts_per_tok")?.unwrap_or(2);
    let mixture = Mixture {
        router: "block_sparse_moe.router.layer.weight",
        normalise: Normalise::Sum,
        names: Names::Together {
            gate_up: "block_sparse_moe.input_linear",
            down: "block_sparse_moe.output_linear",
        },
        ..Mixture::softmax(count, per_token, 0)
    };
    granites(config, prefix, "granitemoe", Some(mixture))
}

fn granites(
    config: &Fields,
    prefix: &str,
    family: &'static str,
    mixture: Option<Mixture>,
) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, family, &Defaults::LLAMA)?;
    let rms = NormAs::rms(facts.dims.eps);
    let embedding = factor(config, "embedding_multiplier", 1.0)?;
    let scale = factor(config, "attention_multiplier", 1.0)?;
    let residual = factor(config, "residual_multiplier", 1.0)?;
    let head = Head { scale: 1.0 / factor(config, "logits_scaling", 1.0)?, ..Head::llama(rms) };
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?);
    let mixture = mixture.map(|mixture| Mixture { width: facts.dims.intermediate, ..mixture });
    let (mut b, rope) = facts.begin(config, prefix)?;
    b.scale_hidden(embedding);
    let block = Block { scale: residual, ..Block::pre_norm(rms) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias, attention.scale) = (bias, bias, scale);
        let feed = mixture.as_ref().map_or(Feed::Mlp(&mlp), Feed::Experts);
        block.write(&mut b, &attention, feed)?;
    }
    b.head(&head)
}

/// Command R: one norm a layer, both halves at once.
const COHERE: Defaults = Defaults {
    vocab: 256_000,
    hidden: 8192,
    intermediate: 22_528,
    layers: 40,
    heads: 64,
    positions: 8192,
    eps: 1e-5,
    eos: &[255_001],
    tied: true,
    rope: RopeDefaults { pairing: Pairing::Neighbours, ..RopeDefaults::theta(5e5) },
    keys: crate::config::Keys { eps: "layer_norm_eps", ..crate::config::Keys::LLAMA },
    ..Defaults::LLAMA
};

pub(super) fn cohere(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = cohere_facts(config, "cohere")?;
    let qk_norm = switch(config, "use_qk_norm", false)?;
    let none = vec![false; facts.dims.layers];
    let all = vec![true; none.len()];
    commands(config, prefix, facts, (&none, None), (&all, qk_norm), |_| None)
}

/// Windows on three layers of four; full layers have no rotary embedding.
pub(super) fn cohere2(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let mut facts = cohere_facts(config, "cohere2")?;
    facts.rope.theta = 1e4;
    let slides = every_but(config, facts.dims.layers, 4)?;
    let window = window(config, Some(4096))?;
    commands(config, prefix, facts, (&slides, window), (&slides, false), |_| None)
}

fn cohere_facts(config: &Fields, family: &'static str) -> Result<Facts> {
    let mut facts = Facts::read(config, family, &COHERE)?;
    // The class computes the width of a head, whatever the config says.
    facts.dims.head_dim = facts.dims.hidden / facts.dims.heads;
    Ok(facts)
}

/// Experts beside attention, in layers behind the first dense ones.
pub(super) fn cohere2_moe(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults { rope: RopeDefaults { theta: 1e4, ..COHERE.rope }, ..COHERE };
    let mut facts = Facts::read(config, "cohere2_moe", &defaults)?;
    let layers = facts.dims.layers;
    let dense = dense_layers(config, layers, 0)?;
    // The first, dense layers have a pattern of their own; the others' begins behind them.
    let first = config.usize("first_k_dense_replace")?.unwrap_or(0);
    let (prefix_period, period) = (
        config.usize("prefix_dense_sliding_window_pattern")?.unwrap_or(1),
        config.usize("sliding_window_pattern")?.unwrap_or(4),
    );
    let slides = sliding(config, layers, || {
        let slides = |layer: usize| match layer < first {
            true => prefix_period > 0 && !(layer + 1).is_multiple_of(prefix_period),
            false => period > 0 && !(layer + 1 - first).is_multiple_of(period),
        };
        Ok((0..layers).map(slides).collect())
    })?;
    let window = window(config, Some(4096))?;
    let count = count(config, 8)?;
    let per_token = config.usize("num_experts_per_tok")?.unwrap_or(2);
    let width = facts.dims.intermediate;
    let shared = shared_experts(config, ("num_shared_experts", 0), width)?;
    let (scoring, normalise) = match config.str("expert_selection_fn")? {
        None | Some("softmax") => (Scoring::Softmax, Normalise::Sum),
        Some("sigmoid") => {
            let normalise = switch(config, "norm_topk_prob", true)?;
            (Scoring::Sigmoid, if normalise { Normalise::Sum } else { Normalise::No })
        }
        Some(other) => return Err(config.unsupported("expert_selection_fn", &format!("\"{other}\""))),
    };
    config.note("norm_topk_prob");
    // Routed and shared experts are averaged or added up.
    let half = match config.str("shared_expert_combination_strategy")? {
        None | Some("average") => shared.is_some(),
        Some("sum") => false,
        Some(other) => {
            return Err(config.unsupported("shared_expert_combination_strategy", &format!("\"{other}\"")));
        }
    };
    let scale = if half { 0.5 } else { 1.0 };
    let mixture = Mixture {
        scoring,
        normalise,
        scale,
        shared_scale: scale,
        shared,
        ..Mixture::softmax(count, per_token, width)
    };
    if !config.is_null("prefix_dense_intermediate_size") {
        facts.dims.intermediate = size(config, "prefix_dense_intermediate_size", width, limit::INTERMEDIATE)?;
    }
    config.note("rms_norm_eps");
    let rotated: Vec<bool> =
        slides.iter().zip(&dense).map(|(slides, dense)| *slides || (*dense && prefix_period == 1)).collect();
    commands(config, prefix, facts, (&slides, window), (&rotated, false), |layer| {
        (!dense[layer]).then_some(mixture.clone())
    })
}

fn commands(
    config: &Fields,
    prefix: &str,
    facts: Facts,
    (slides, window): (&[bool], Option<usize>),
    (rotated, qk_norm): (&[bool], bool),
    experts: impl Fn(usize) -> Option<Mixture>,
) -> Result<Program> {
    let norm = NormAs::layer(facts.dims.eps, false);
    let windows = windows(config, slides, window)?;
    let bias = switch(config, "attention_bias", false)?;
    let head = Head { scale: factor(config, "logit_scale", 0.0625)?, ..Head::llama(norm) };
    let (mut b, rope) = facts.begin(config, prefix)?;
    let block = Block { before: [Some("input_layernorm"), None], parallel: true, ..Block::pre_norm(norm) };
    let mlp = Mlp::swiglu(b.dims().intermediate, false);
    for (layer, window) in windows.into_iter().enumerate() {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        attention.window = window;
        attention.rope = attention.rope.filter(|_| rotated[layer]);
        let norm = QkNorm { own_weights: true, ..QkNorm::per_head(norm) };
        attention.qk_norm = qk_norm.then_some(norm);
        let experts = experts(layer);
        block.write(&mut b, &attention, experts.as_ref().map_or(Feed::Mlp(&mlp), Feed::Experts))?;
    }
    b.head(&head)
}
