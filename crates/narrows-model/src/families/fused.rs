//! Families with fused projections, other norms and MLPs: GLM, Phi, Starcoder, StableLM, Nemotron.

use super::block::{Block, Feed};
use crate::builder::{Head, Mlp, NormAs, Qkv, Up};
use crate::config::{Defaults, Facts, GELU_TANH, Keys, SILU, switch, window};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{Activation, Program};
use crate::rope::{Pairing, RopeDefaults};

const GLM: Defaults = Defaults {
    vocab: 151_552,
    intermediate: 13_696,
    layers: 40,
    kv_heads: Some(2),
    head_dim: Some(128),
    positions: 131_072,
    eps: 1.562_5e-7,
    eos: &[151_329, 151_336, 151_338],
    rope: RopeDefaults { partial: 0.5, pairing: Pairing::Neighbours, ..RopeDefaults::theta(1e4) },
    ..Defaults::LLAMA
};

pub(super) fn glm(config: &Fields, prefix: &str) -> Result<Program> {
    glms(config, prefix, "glm", [None, None])
}

/// The same with norms behind each half.
pub(super) fn glm4(config: &Fields, prefix: &str) -> Result<Program> {
    glms(config, prefix, "glm4", [Some("post_self_attn_layernorm"), Some("post_mlp_layernorm")])
}

fn glms(
    config: &Fields,
    prefix: &str,
    family: &'static str,
    after: [Option<&'static str>; 2],
) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, family, &GLM)?;
    let rms = NormAs::rms(facts.dims.eps);
    let bias = switch(config, "attention_bias", true)?;
    let mlp = Mlp { up: Up::Fused("gate_up_proj"), ..Mlp::swiglu(facts.dims.intermediate, false) };
    let (mut b, rope) = facts.begin(config, prefix)?;
    let block = Block { after, ..Block::pre_norm(rms) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv_bias = bias;
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(rms))
}

pub(super) fn phi3(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 32_064,
        hidden: 3072,
        intermediate: 8192,
        positions: 4096,
        eps: 1e-5,
        eos: &[32_000],
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "phi3", &defaults)?;
    let rms = NormAs::rms(facts.dims.eps);
    let window = window(config, None)?;
    let mlp = Mlp { up: Up::Fused("gate_up_proj"), ..Mlp::swiglu(facts.dims.intermediate, false) };
    let (mut b, rope) = facts.begin(config, prefix)?;
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv = Qkv::Fused("qkv_proj");
        attention.window = window;
        Block::pre_norm(rms).write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(rms))
}

/// One norm a layer, both halves at once, biases everywhere.
pub(super) fn phi(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &GELU_TANH)?;
    let defaults = Defaults {
        vocab: 51_200,
        hidden: 2048,
        intermediate: 8192,
        layers: 24,
        eps: 1e-5,
        rope: RopeDefaults { partial: 0.5, ..RopeDefaults::theta(1e4) },
        keys: Keys { eps: "layer_norm_eps", ..Keys::LLAMA },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "phi", &defaults)?;
    let norm = NormAs::layer(facts.dims.eps, true);
    let mlp = Mlp {
        width: facts.dims.intermediate,
        act: Activation::GeluTanh,
        up: Up::Plain("fc1"),
        down: "fc2",
        bias: true,
    };
    let (mut b, rope) = facts.begin(config, prefix)?;
    let block = Block { before: [Some("input_layernorm"), None], parallel: true, ..Block::pre_norm(norm) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias, attention.out) = (true, true, "dense");
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head { norm: "model.final_layernorm", bias: true, ..Head::llama(norm) })
}

pub(super) fn starcoder2(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &GELU_TANH)?;
    let defaults = Defaults {
        vocab: 49_152,
        hidden: 3072,
        intermediate: 12_288,
        layers: 30,
        heads: 24,
        kv_heads: Some(2),
        positions: 4096,
        eps: 1e-5,
        eos: &[50_256],
        tied: true,
        keys: Keys { eps: "norm_epsilon", ..Keys::LLAMA },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "starcoder2", &defaults)?;
    let norm = NormAs::layer(facts.dims.eps, true);
    let bias = switch(config, "use_bias", true)?;
    let window = window(config, None)?;
    let mlp = Mlp {
        width: facts.dims.intermediate,
        act: Activation::GeluTanh,
        up: Up::Plain("c_fc"),
        down: "c_proj",
        bias,
    };
    match config.str("mlp_type")? {
        None | Some("default") => {}
        Some(other) => return Err(config.unsupported("mlp_type", &format!("\"{other}\""))),
    }
    config.note("norm_type");
    let (mut b, rope) = facts.begin(config, prefix)?;
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias, attention.window) = (bias, bias, window);
        Block::pre_norm(norm).write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(norm))
}

pub(super) fn stablelm(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let defaults = Defaults {
        vocab: 50_304,
        hidden: 2560,
        intermediate: 6912,
        positions: 4096,
        eps: 1e-5,
        eos: &[0],
        rope: RopeDefaults { partial: 0.25, ..RopeDefaults::theta(1e4) },
        keys: Keys { eps: "layer_norm_eps", ..Keys::LLAMA },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "stablelm", &defaults)?;
    let norm = NormAs::layer(facts.dims.eps, true);
    let bias = switch(config, "use_qkv_bias", false)?;
    let parallel = switch(config, "use_parallel_residual", false)?;
    let head_norms = switch(config, "qk_layernorm", false)?;
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let (mut b, rope) = facts.begin(config, prefix)?;
    let second = if parallel { None } else { Some("post_attention_layernorm") };
    let block = Block { before: [Some("input_layernorm"), second], parallel, ..Block::pre_norm(norm) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv_bias = bias;
        attention.norms_by_head = head_norms.then_some(NormAs::layer(norm.eps, false));
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(norm))
}

pub(super) fn nemotron(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &["relu2"])?;
    let defaults = Defaults {
        vocab: 256_000,
        hidden: 6144,
        intermediate: 24_576,
        heads: 48,
        positions: 4096,
        eps: 1e-5,
        eos: &[3],
        rope: RopeDefaults { partial: 0.5, ..RopeDefaults::theta(1e4) },
        keys: Keys { eps: "norm_eps", ..Keys::LLAMA },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "nemotron", &defaults)?;
    let norm = NormAs::layer(facts.dims.eps, true).plus_one();
    let bias = switch(config, "attention_bias", false)?;
    let mlp = Mlp {
        act: Activation::Relu2,
        up: Up::Plain("up_proj"),
        ..Mlp::swiglu(facts.dims.intermediate, switch(config, "mlp_bias", false)?)
    };
    let (mut b, rope) = facts.begin(config, prefix)?;
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        (attention.qkv_bias, attention.out_bias) = (bias, bias);
        Block::pre_norm(norm).write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head::llama(norm))
}
