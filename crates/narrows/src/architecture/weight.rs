//! The weights of a model: their names in a checkpoint, their shapes, and the order in which a pass uses them.

use super::Architecture;

/// A weight by its place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// The embedding table, `[vocab, hidden]`.
    Embedding,
    /// A weight of a layer.
    Layer(usize, LayerWeight),
    /// The norm before the head, `[hidden]`.
    FinalNorm,
    /// The head, `[vocab, hidden]`; with tied embeddings it may be the embedding table.
    Head,
}

/// A weight of one layer, in the order in which the layer uses them.
#[allow(missing_docs)] // The names are those of the checkpoint, see `TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerWeight {
    AttentionNorm,
    QProj,
    QBias,
    KProj,
    KBias,
    VProj,
    VBias,
    QNorm,
    KNorm,
    OProj,
    OBias,
    MlpNorm,
    GateProj,
    GateBias,
    UpProj,
    UpBias,
    DownProj,
    DownBias,
}

impl LayerWeight {
    /// Whether it is one of the projections around attention.
    #[must_use]
    pub const fn is_attention(self) -> bool {
        matches!(self, Self::QProj | Self::KProj | Self::VProj | Self::OProj)
    }
}

/// One weight of an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Its place.
    pub weight: Weight,
    /// Its name in the checkpoint.
    pub name: String,
    /// `[rows, cols]` of a matrix, `[len]` of a vector.
    pub shape: Vec<usize>,
}

/// Widths that shapes are made of.
#[derive(Clone, Copy)]
enum Dim {
    Hidden,
    Intermediate,
    /// All query heads.
    Q,
    /// All key heads.
    Kv,
    /// One head.
    Head,
}

/// What a weight depends on.
#[derive(Clone, Copy)]
enum When {
    Always,
    QkvBias,
    OBias,
    MlpBias,
    QkNorm,
}

use Dim::{Head, Hidden, Intermediate, Kv, Q};
use LayerWeight::{
    AttentionNorm, DownBias, DownProj, GateBias, GateProj, KBias, KNorm, KProj, MlpNorm, OBias, OProj, QBias,
    QNorm, QProj, UpBias, UpProj, VBias, VProj,
};
use When::{Always, MlpBias, OBias as OutputBias, QkNorm, QkvBias};

/// Every weight that a layer can have. Names as in `modeling_llama.py` and its relatives.
const TABLE: [(LayerWeight, &str, &[Dim], When); 18] = [
    (AttentionNorm, "input_layernorm.weight", &[Hidden], Always),
    (QProj, "self_attn.q_proj.weight", &[Q, Hidden], Always),
    (QBias, "self_attn.q_proj.bias", &[Q], QkvBias),
    (KProj, "self_attn.k_proj.weight", &[Kv, Hidden], Always),
    (KBias, "self_attn.k_proj.bias", &[Kv], QkvBias),
    (VProj, "self_attn.v_proj.weight", &[Kv, Hidden], Always),
    (VBias, "self_attn.v_proj.bias", &[Kv], QkvBias),
    (QNorm, "self_attn.q_norm.weight", &[Head], QkNorm),
    (KNorm, "self_attn.k_norm.weight", &[Head], QkNorm),
    (OProj, "self_attn.o_proj.weight", &[Hidden, Q], Always),
    (OBias, "self_attn.o_proj.bias", &[Hidden], OutputBias),
    (MlpNorm, "post_attention_layernorm.weight", &[Hidden], Always),
    (GateProj, "mlp.gate_proj.weight", &[Intermediate, Hidden], Always),
    (GateBias, "mlp.gate_proj.bias", &[Intermediate], MlpBias),
    (UpProj, "mlp.up_proj.weight", &[Intermediate, Hidden], Always),
    (UpBias, "mlp.up_proj.bias", &[Intermediate], MlpBias),
    (DownProj, "mlp.down_proj.weight", &[Hidden, Intermediate], Always),
    (DownBias, "mlp.down_proj.bias", &[Hidden], MlpBias),
];

impl LayerWeight {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = TABLE.len();
}

pub(super) fn in_pass_order(a: &Architecture) -> impl Iterator<Item = WeightSpec> + '_ {
    let width = |dim: Dim| match dim {
        Hidden => a.hidden_size,
        Intermediate => a.intermediate_size,
        Q => a.q_size(),
        Kv => a.kv_size(),
        Head => a.head_dim,
    };
    let there = |when: When| match when {
        Always => true,
        QkvBias => a.qkv_bias,
        OutputBias => a.o_bias,
        MlpBias => a.mlp_bias,
        QkNorm => a.qk_norm,
    };
    let one = |weight, name: &str, shape: &[usize]| WeightSpec {
        weight,
        name: name.to_owned(),
        shape: shape.to_owned(),
    };
    let layers = (0..a.layers).flat_map(move |layer| {
        TABLE.iter().filter(move |(.., when)| there(*when)).map(move |(weight, suffix, dims, _)| WeightSpec {
            weight: Weight::Layer(layer, *weight),
            name: format!("model.layers.{layer}.{suffix}"),
            shape: dims.iter().map(|dim| width(*dim)).collect(),
        })
    });
    std::iter::once(one(Weight::Embedding, "model.embed_tokens.weight", &[a.vocab_size, a.hidden_size]))
        .chain(layers)
        .chain([
            one(Weight::FinalNorm, "model.norm.weight", &[a.hidden_size]),
            one(Weight::Head, "lm_head.weight", &[a.vocab_size, a.hidden_size]),
        ])
}
