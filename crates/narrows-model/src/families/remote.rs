//! Families whose code was published with their weights and not in transformers: ChatGLM, Baichuan, InternLM 2, Qwen 1.

use super::block::{Block, Feed};
use crate::builder::{Builder, Head, Mlp, NormAs, Qkv, Up};
use crate::config::{Defaults, Facts, Keys, SILU, factor, switch};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::Program;
use crate::rope::{Pairing, RopeDefaults};

/// ChatGLM 2 and 3, and GLM-4-9B as it was first published: the network of GLM under its first names.
pub(super) fn chatglm(config: &Fields, prefix: &str) -> Result<Program> {
    let kv_heads = match switch(config, "multi_query_attention", false)? {
        true => "multi_query_group_num",
        false => "num_attention_heads",
    };
    let ratio = factor(config, "rope_ratio", 1.0)?;
    let pairing = match switch(config, "original_rope", true)? {
        true => Pairing::Neighbours,
        false => Pairing::Halves,
    };
    let defaults = Defaults {
        vocab: 65_024,
        intermediate: 13_696,
        layers: 28,
        positions: 2048,
        eps: 1e-5,
        rope: RopeDefaults { partial: 0.5, pairing, ..RopeDefaults::theta(1e4 * f64::from(ratio)) },
        keys: Keys {
            vocab: "padded_vocab_size",
            intermediate: "ffn_hidden_size",
            layers: "num_layers",
            kv_heads,
            head_dim: "kv_channels",
            positions: "seq_length",
            eps: "layernorm_epsilon",
        },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "chatglm", &defaults)?;
    for (key, wanted) in
        [("rmsnorm", true), ("post_layer_norm", true), ("apply_residual_connection_post_layernorm", false)]
    {
        if config.bool(key)?.is_some_and(|given| given != wanted) {
            return Err(config.unsupported(key, &(!wanted).to_string()));
        }
    }
    // The first cancels itself, the others are how the code computes what is computed here in float32.
    for key in [
        "apply_query_key_layer_scaling",
        "attention_softmax_in_fp32",
        "fp32_residual_connection",
        "vocab_size",
        "multi_query_group_num",
        "interleaved_qkv",
    ] {
        config.note(key);
    }
    let bias = switch(config, "add_bias_linear", false)?;
    let qkv_bias = switch(config, "add_qkv_bias", false)? || bias;
    let rms = NormAs::rms(facts.dims.eps);
    let (mut b, rope) = facts.begin_with(config, prefix, "transformer.embedding.word_embeddings", None)?;
    b.skip(&["transformer.rotary_pos_emb."]);
    let block =
        Block { layers: "transformer.encoder.layers", at: ["self_attention", "mlp"], ..Block::pre_norm(rms) };
    let mlp = Mlp {
        up: Up::Fused("dense_h_to_4h"),
        down: "dense_4h_to_h",
        ..Mlp::swiglu(b.dims().intermediate, bias)
    };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv = Qkv::Fused("query_key_value");
        (attention.qkv_bias, attention.out, attention.out_bias) = (qkv_bias, "dense", bias);
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head {
        norm: "transformer.encoder.final_layernorm",
        matrix: "transformer.output_layer",
        ..Head::llama(rms)
    })
}

/// Baichuan 1 and 2. The larger of each has no rotary embedding, but scores that sink with the distance.
pub(super) fn baichuan(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let alibi = config.get("max_position_embeddings").is_none();
    let positions = if alibi { "model_max_length" } else { "max_position_embeddings" };
    let defaults = Defaults {
        vocab: 64_000,
        positions: 4096,
        keys: Keys { positions, ..Keys::LLAMA },
        ..Defaults::LLAMA
    };
    let facts = Facts::read(config, "baichuan", &defaults)?;
    // Of Baichuan 2, whose head has rows of length one.
    let unit_rows = facts.dims.vocab == 125_696 || config.get("z_loss_weight").is_some();
    let rms = NormAs::rms(facts.dims.eps);
    let mlp = Mlp::swiglu(facts.dims.intermediate, false);
    let (mut b, rope) = match alibi {
        true => (Builder::new(config, facts.dims, prefix, "model.embed_tokens"), None),
        false => {
            let (b, rope) = facts.begin(config, prefix)?;
            (b, Some((rope, rope)))
        }
    };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(crate::program::RopeId(0));
        attention.qkv = Qkv::Fused("W_pack");
        (attention.rope, attention.alibi) = (rope, alibi);
        Block::pre_norm(rms).write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head { unit_rows, ..Head::llama(rms) })
}

/// InternLM 2: queries, keys and values of a group of heads lie together.
pub(super) fn internlm2(config: &Fields, prefix: &str) -> Result<Program> {
    Facts::only_activation(config, &SILU)?;
    let facts = Facts::read(config, "internlm2", &Defaults { vocab: 103_168, ..Defaults::LLAMA })?;
    let bias = switch(config, "bias", false)?;
    let rms = NormAs::rms(facts.dims.eps);
    let (mut b, rope) = facts.begin_with(config, prefix, "model.tok_embeddings", None)?;
    let block = Block {
        before: [Some("attention_norm"), Some("ffn_norm")],
        at: ["attention", "feed_forward"],
        ..Block::pre_norm(rms)
    };
    let mlp = Mlp { up: Up::Gated("w1", "w3"), down: "w2", ..Mlp::swiglu(b.dims().intermediate, false) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv = Qkv::Grouped("wqkv");
        (attention.qkv_bias, attention.out, attention.out_bias) = (bias, "wo", bias);
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head { matrix: "output", ..Head::llama(rms) })
}

/// Qwen 1, within the length that it was trained for.
pub(super) fn qwen1(config: &Fields, prefix: &str) -> Result<Program> {
    let defaults = Defaults {
        vocab: 151_936,
        intermediate: 22_016,
        positions: 8192,
        eos: &[],
        rope: RopeDefaults::theta(config.f64("rotary_emb_base")?.unwrap_or(1e4)),
        keys: Keys {
            head_dim: "kv_channels",
            positions: "seq_length",
            eps: "layer_norm_epsilon",
            ..Keys::LLAMA
        },
        ..Defaults::LLAMA
    };
    let mut facts = Facts::read(config, "qwen", &defaults)?;
    if config.f64("rotary_pct")?.is_some_and(|part| part != 1.0) {
        return Err(config.unsupported("rotary_pct", "other than 1"));
    }
    if !switch(config, "scale_attn_weights", true)? {
        return Err(config.unsupported("scale_attn_weights", "false"));
    }
    if !switch(config, "no_bias", true)? {
        return Err(config.unsupported("no_bias", "false"));
    }
    // Beyond the trained length only.
    for key in ["use_dynamic_ntk", "use_logn_attn", "max_position_embeddings", "softmax_in_fp32"] {
        config.note(key);
    }
    if facts.dims.intermediate < 2 {
        return Err(config.invalid("intermediate_size", "1 is twice no size"));
    }
    facts.dims.intermediate /= 2;
    let rms = NormAs::rms(facts.dims.eps);
    let (mut b, rope) = facts.begin_with(config, prefix, "transformer.wte", None)?;
    let block = Block {
        layers: "transformer.h",
        before: [Some("ln_1"), Some("ln_2")],
        at: ["attn", "mlp"],
        ..Block::pre_norm(rms)
    };
    // The second projection is the gate.
    let mlp = Mlp { up: Up::Gated("w2", "w1"), down: "c_proj", ..Mlp::swiglu(b.dims().intermediate, false) };
    for _ in 0..b.dims().layers {
        let mut attention = b.attention_facts(rope);
        attention.qkv = Qkv::Fused("c_attn");
        (attention.qkv_bias, attention.out) = (true, "c_proj");
        block.write(&mut b, &attention, Feed::Mlp(&mlp))?;
    }
    b.head(&Head { norm: "transformer.ln_f", ..Head::llama(rms) })
}
