//! The facts of a program that tests compare.

use narrows_model::{Normalise, Op, Program, Role, Rope};

/// What a Llama-like program says of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) family: &'static str,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm_eps: f32,
    pub(crate) max_positions: Option<usize>,
    pub(crate) tied_embeddings: bool,
    pub(crate) eos_token_ids: Vec<u32>,
    pub(crate) rope: Rope,
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) qkv_bias: bool,
    pub(crate) o_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) experts: Option<Experts>,
}

/// What it says of its experts.
#[derive(Debug)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    pub(crate) per_token: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) normalised: bool,
    pub(crate) shared_intermediate_size: Option<usize>,
    pub(crate) layers: Vec<bool>,
}

impl Facts {
    pub(crate) fn of(program: &Program) -> Self {
        let d = program.dims.clone();
        let has = |end: &str| program.weights.iter().any(|spec| spec.name.ends_with(end));
        let rows = |role: Role, end: &str| {
            program.weights.iter().find(|s| s.role == role && s.name.ends_with(end)).map(|s| s.shape[0])
        };
        let eps = program.ops().find_map(|op| match op {
            Op::Norm(norm) => Some(norm.eps),
            _ => None,
        });
        let experts = program.routers().next().map(|route| Experts {
            count: route.count,
            per_token: route.per_token,
            intermediate_size: rows(Role::Expert, ".weight").unwrap(),
            normalised: route.normalise == Normalise::Sum,
            shared_intermediate_size: rows(Role::Mlp, "shared_expert.gate_proj.weight"),
            layers: (0..d.layers).map(|layer| program.router(layer).is_some()).collect(),
        });
        Self {
            family: d.family,
            vocab_size: d.vocab,
            hidden_size: d.hidden,
            intermediate_size: d.intermediate,
            layers: d.layers,
            heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            norm_eps: eps.unwrap(),
            max_positions: d.max_positions,
            tied_embeddings: d.tied,
            eos_token_ids: d.eos,
            rope: program.ropes[0].clone(),
            windows: program.attentions().map(|attention| attention.window).collect(),
            qkv_bias: has("q_proj.bias"),
            o_bias: has("o_proj.bias"),
            mlp_bias: has("down_proj.bias"),
            qk_norm: has("q_norm.weight"),
            experts,
        }
    }
}
