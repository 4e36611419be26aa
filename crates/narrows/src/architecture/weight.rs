//! The weights of a model: their names in a checkpoint, their shapes, and the order in which a pass uses them.

use super::Architecture;

/// A weight by its place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// The embedding table, `[vocab, hidden]`.
    Embedding,
    /// A weight of a layer.
    Layer(usize, LayerWeight),
    /// A weight of an expert of a layer.
    Expert(usize, usize, ExpertWeight),
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
    Router,
    SharedExpertGate,
    SharedGateProj,
    SharedUpProj,
    SharedDownProj,
}

/// A weight of one expert, in the order in which it uses them.
#[allow(missing_docs)] // As those of `LayerWeight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExpertWeight {
    GateProj,
    UpProj,
    DownProj,
}

impl Weight {
    /// Whether it is a matrix that is small, needed early and in full precision: one that decides about routing.
    #[must_use]
    pub const fn routes(self) -> bool {
        matches!(self, Self::Layer(_, LayerWeight::Router | LayerWeight::SharedExpertGate))
    }
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
    /// One expert.
    Expert,
    /// The expert that every row goes to.
    Shared,
    /// The number of experts.
    Experts,
    One,
}

/// What a weight depends on.
#[derive(Clone, Copy)]
enum When {
    Always,
    QkvBias,
    OBias,
    QkNorm,
    /// The layer has one MLP.
    Dense,
    /// It has one, with biases.
    DenseBias,
    /// It has experts.
    Sparse,
    /// It has experts, and one that every row goes to.
    SharedExpert,
}

use Dim::{Expert, Experts, Head, Hidden, Intermediate, Kv, One, Q, Shared};
use ExpertWeight as E;
use LayerWeight::{
    AttentionNorm, DownBias, DownProj, GateBias, GateProj, KBias, KNorm, KProj, MlpNorm, OBias, OProj, QBias,
    QNorm, QProj, Router, SharedDownProj, SharedExpertGate, SharedGateProj, SharedUpProj, UpBias, UpProj,
    VBias, VProj,
};
use When::{Always, Dense, DenseBias, OBias as OutputBias, QkNorm, QkvBias, SharedExpert, Sparse};

/// Every weight that a layer can have. Names as in `modeling_llama.py` and its relatives.
const TABLE: [(LayerWeight, &str, &[Dim], When); 23] = [
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
    (GateProj, "mlp.gate_proj.weight", &[Intermediate, Hidden], Dense),
    (GateBias, "mlp.gate_proj.bias", &[Intermediate], DenseBias),
    (UpProj, "mlp.up_proj.weight", &[Intermediate, Hidden], Dense),
    (UpBias, "mlp.up_proj.bias", &[Intermediate], DenseBias),
    (DownProj, "mlp.down_proj.weight", &[Hidden, Intermediate], Dense),
    (DownBias, "mlp.down_proj.bias", &[Hidden], DenseBias),
    // Families differ in the name of the router.
    (Router, "", &[Experts, Hidden], Sparse),
    (SharedExpertGate, "mlp.shared_expert_gate.weight", &[One, Hidden], SharedExpert),
    (SharedGateProj, "mlp.shared_expert.gate_proj.weight", &[Shared, Hidden], SharedExpert),
    (SharedUpProj, "mlp.shared_expert.up_proj.weight", &[Shared, Hidden], SharedExpert),
    (SharedDownProj, "mlp.shared_expert.down_proj.weight", &[Hidden, Shared], SharedExpert),
];

/// The weights of an expert.
const EXPERT: [(ExpertWeight, [Dim; 2]); 3] =
    [(E::GateProj, [Expert, Hidden]), (E::UpProj, [Expert, Hidden]), (E::DownProj, [Hidden, Expert])];

impl ExpertWeight {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = EXPERT.len();
}

impl LayerWeight {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = TABLE.len();

    /// Whether `name` is that of a weight which some model has in a layer.
    pub(crate) fn is_named(name: &str) -> bool {
        TABLE.iter().any(|(_, suffix, ..)| !suffix.is_empty() && name.ends_with(suffix))
    }
}

pub(super) fn in_pass_order(a: &Architecture) -> impl Iterator<Item = WeightSpec> + '_ {
    let width = |dim: Dim| match dim {
        Hidden => a.hidden_size,
        Intermediate => a.intermediate_size,
        Q => a.q_size(),
        Kv => a.kv_size(),
        Head => a.head_dim,
        Expert => a.experts.as_ref().map_or(0, |experts| experts.intermediate_size),
        Shared => a.experts.as_ref().and_then(|experts| experts.shared_intermediate_size).unwrap_or(0),
        Experts => a.experts.as_ref().map_or(0, |experts| experts.count),
        One => 1,
    };
    let there = |when: When, layer: usize| match (when, a.experts_of(layer)) {
        (Always, _) => true,
        (QkvBias, _) => a.qkv_bias,
        (OutputBias, _) => a.o_bias,
        (QkNorm, _) => a.qk_norm,
        (Dense, experts) => experts.is_none(),
        (DenseBias, experts) => a.mlp_bias && experts.is_none(),
        (Sparse, experts) => experts.is_some(),
        (SharedExpert, experts) => experts.is_some_and(|experts| experts.shared_intermediate_size.is_some()),
    };
    let shape = move |dims: &[Dim]| dims.iter().map(|dim| width(*dim)).collect::<Vec<_>>();
    let one = |weight, name: &str, shape: &[usize]| WeightSpec {
        weight,
        name: name.to_owned(),
        shape: shape.to_owned(),
    };
    let of_layer = move |layer: usize| {
        let there = TABLE.iter().filter(move |(.., when)| there(*when, layer));
        there.map(move |(weight, suffix, dims, _)| {
            let suffix = match (weight, a.experts_of(layer)) {
                (Router, Some(experts)) => experts.names.router,
                _ => suffix,
            };
            WeightSpec {
                weight: Weight::Layer(layer, *weight),
                name: format!("model.layers.{layer}.{suffix}"),
                shape: shape(dims),
            }
        })
    };
    let of_experts = move |layer: usize| {
        let experts = a.experts_of(layer);
        let each =
            experts.into_iter().flat_map(|experts| (0..experts.count).map(move |e| (experts.names, e)));
        each.flat_map(move |(names, e)| {
            EXPERT.iter().zip(names.projections).map(move |((weight, dims), projection)| WeightSpec {
                weight: Weight::Expert(layer, e, *weight),
                name: format!("model.layers.{layer}.{}{e}.{projection}", names.expert),
                shape: shape(dims),
            })
        })
    };
    let layers = (0..a.layers).flat_map(move |layer| of_layer(layer).chain(of_experts(layer)));
    std::iter::once(one(Weight::Embedding, "model.embed_tokens.weight", &[a.vocab_size, a.hidden_size]))
        .chain(layers)
        .chain([
            one(Weight::FinalNorm, "model.norm.weight", &[a.hidden_size]),
            one(Weight::Head, "lm_head.weight", &[a.vocab_size, a.hidden_size]),
        ])
}
