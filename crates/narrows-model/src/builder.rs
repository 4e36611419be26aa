//! Writes a program: the order of calls is the order of the pass.

use std::ops::Range;

use crate::config::{Facts, limit, refuse_unread};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::{
    Activate, Activation, Attend, Dims, Experts, Linear, Make, Norm, NormKind, Op, Output, Part, Program,
    Role, Rotate, Route, Rows, Slice, StateSpec, Value, ValueSpec, VectorId, VectorSpec, WeightId,
    WeightSpec,
};
use crate::program::{Groups, Normalise, RopeId, Scoring};
use crate::rope::Rope;

/// A program being written.
pub(crate) struct Builder<'c> {
    config: &'c Fields,
    program: Program,
    /// Before the name of every tensor.
    prefix: String,
    /// Before the names of a layer's tensors.
    scope: String,
    part: Part,
    /// Operations since the last layer began.
    ops: Vec<Op>,
    /// The residual stream.
    hidden: Value,
}

/// Which norm, with its facts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormAs {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    /// Weights are stored as their distance from one.
    pub(crate) plus_one: bool,
    pub(crate) bias: bool,
}

impl NormAs {
    /// RMS norm with weights as they are.
    pub(crate) const fn rms(eps: f32) -> Self {
        Self { kind: NormKind::Rms, eps, plus_one: false, bias: false }
    }

    /// Layer norm, with a bias or without.
    pub(crate) const fn layer(eps: f32, bias: bool) -> Self {
        Self { kind: NormKind::Layer, eps, plus_one: false, bias }
    }

    /// The same with weights that are stored as their distance from one.
    pub(crate) const fn plus_one(self) -> Self {
        Self { plus_one: true, ..self }
    }
}

/// A norm of queries and keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QkNorm {
    pub(crate) norm: NormAs,
    /// Names of its tensors.
    pub(crate) names: [&'static str; 2],
    /// Over all heads together, and not over each.
    pub(crate) full_width: bool,
    /// Each head has weights of its own.
    pub(crate) own_weights: bool,
    /// Behind the rotation.
    pub(crate) after_rope: bool,
}

impl QkNorm {
    /// Over each head with weights that all share, before the rotation.
    pub(crate) const fn per_head(norm: NormAs) -> Self {
        let names = ["q_norm", "k_norm"];
        Self { norm, names, full_width: false, own_weights: false, after_rope: false }
    }
}

/// The projection to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Qkv {
    /// Three matrices.
    Separate([&'static str; 3]),
    /// One: queries, keys, values.
    Fused(&'static str),
    /// One: for each key head its queries, its key, its value.
    Grouped(&'static str),
}

/// The facts of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) qkv: Qkv,
    pub(crate) qkv_bias: bool,
    pub(crate) out: &'static str,
    pub(crate) out_bias: bool,
    pub(crate) qk_norm: Option<QkNorm>,
    /// A norm of each head of queries and keys, whose weights are tensors of their own.
    pub(crate) norms_by_head: Option<NormAs>,
    /// Queries, keys and values to `-limit..=limit`, behind their norm.
    pub(crate) clip: Option<f32>,
    /// Of queries and of keys.
    pub(crate) rope: Option<(RopeId, RopeId)>,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) window: Option<usize>,
    pub(crate) alibi: bool,
    /// A projection whose sigmoid gates the result.
    pub(crate) gate: Option<&'static str>,
}

/// A projection into two values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Up {
    /// Gate and up projection.
    Gated(&'static str, &'static str),
    /// Both in one matrix, the gate first.
    Fused(&'static str),
    /// No gate.
    Plain(&'static str),
}

/// The facts of an MLP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mlp {
    pub(crate) width: usize,
    pub(crate) act: Activation,
    pub(crate) up: Up,
    pub(crate) down: &'static str,
    pub(crate) bias: bool,
}

impl Mlp {
    /// SwiGLU in three matrices, as Llama has it.
    pub(crate) const fn swiglu(width: usize, bias: bool) -> Self {
        let up = Up::Gated("gate_proj", "up_proj");
        Self { width, act: Activation::Silu, up, down: "down_proj", bias }
    }
}

/// The facts of a layer's experts.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    /// The router's matrix.
    pub(crate) router: &'static str,
    /// A vector that is added to probabilities for the choice alone.
    pub(crate) correction: Option<Correction>,
    /// The matrix whose score weighs the shared expert.
    pub(crate) shared_gate: Option<&'static str>,
    pub(crate) count: usize,
    pub(crate) per_token: usize,
    pub(crate) scoring: Scoring,
    pub(crate) groups: Option<Groups>,
    pub(crate) normalise: Normalise,
    pub(crate) scale: f32,
    /// Names of an expert's matrices between the number and `.weight`.
    pub(crate) names: Names,
    /// Width of an expert.
    pub(crate) width: usize,
    pub(crate) act: Activation,
    /// An expert that every row goes to: where it lies.
    pub(crate) shared: Option<(&'static str, Mlp)>,
    /// What the shared expert gives is multiplied with this.
    pub(crate) shared_scale: f32,
}

/// A vector that corrects a router's choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correction {
    pub(crate) name: &'static str,
    /// It has the shape `[1, experts]`.
    pub(crate) two_dimensional: bool,
}

/// How the matrices of experts are called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names {
    /// Before the number of an expert; gate, up and down behind it. In files of transformers 5 they may lie in two tensors.
    Each { before: &'static str, projections: [&'static str; 3] },
    /// All experts in two tensors: gate and up, `[experts, 2 width, hidden]`, and down.
    Together { gate_up: &'static str, down: &'static str },
}

impl Names {
    /// What most families call them.
    pub(crate) const COMMON: Self =
        Self::Each { before: "mlp.experts.", projections: ["gate_proj", "up_proj", "down_proj"] };
    /// What Mixtral and its relatives do.
    pub(crate) const MIXTRAL: Self =
        Self::Each { before: "block_sparse_moe.experts.", projections: ["w1", "w3", "w2"] };
}

/// What follows the layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) norm: &'static str,
    pub(crate) norm_as: NormAs,
    pub(crate) matrix: &'static str,
    pub(crate) bias: bool,
    /// Factor of logits.
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// Rows of the matrix are divided by their Euclidean norm.
    pub(crate) unit_rows: bool,
}

impl Head {
    pub(crate) const fn llama(norm_as: NormAs) -> Self {
        let (norm, matrix) = ("model.norm", "lm_head");
        Self { norm, norm_as, matrix, bias: false, scale: 1.0, softcap: None, unit_rows: false }
    }
}

impl<'c> Builder<'c> {
    /// Begins a program with the rows of the embedding table of that name.
    pub(crate) fn new(config: &'c Fields, dims: Dims, prefix: &str, embedding: &str) -> Self {
        let hidden = Value(0);
        let program = Program {
            values: vec![ValueSpec { name: "hidden", width: dims.hidden, rows: Rows::Step }],
            dims,
            weights: Vec::new(),
            vectors: Vec::new(),
            states: Vec::new(),
            ropes: Vec::new(),
            prologue: Vec::new(),
            layers: Vec::new(),
            epilogue: Vec::new(),
            logits: hidden,
            head: WeightId(0),
            skipped: Vec::new(),
        };
        let prefix = prefix.to_owned();
        let mut builder = Self {
            config,
            program,
            prefix,
            scope: String::new(),
            part: Part::Embedding,
            ops: Vec::new(),
            hidden,
        };
        let shape = vec![builder.dims().vocab, builder.dims().hidden];
        builder.weight(format!("{embedding}.weight"), shape, Role::Embedding);
        builder.ops.push(Op::Embed { to: hidden });
        builder
    }

    /// The residual stream.
    pub(crate) const fn hidden(&self) -> Value {
        self.hidden
    }

    pub(crate) const fn dims(&self) -> &Dims {
        &self.program.dims
    }

    pub(crate) fn rope(&mut self, rope: Rope) -> RopeId {
        let known = self.program.ropes.iter().position(|known| *known == rope);
        RopeId(known.unwrap_or_else(|| {
            self.program.ropes.push(rope);
            self.program.ropes.len() - 1
        }))
    }

    /// Tensors of such names belong to other parts of the model.
    pub(crate) fn skip(&mut self, beginnings: &[&str]) {
        self.program.skipped.extend(beginnings.iter().map(|name| (*name).to_owned()));
    }

    /// Begins the next layer, whose tensors' names begin with `layers`, a dot and its number.
    pub(crate) fn layer(&mut self, layers: &str) {
        self.end_part();
        let layer = self.program.layers.len();
        self.part = Part::Layer(layer);
        self.scope = format!("{layers}.{layer}.");
    }

    fn end_part(&mut self) {
        let ops = std::mem::take(&mut self.ops);
        match self.part {
            Part::Embedding => self.program.prologue = ops,
            Part::Layer(_) => self.program.layers.push(ops),
            Part::Head => self.program.epilogue = ops,
        }
        if let Part::Layer(_) = self.part {
            self.part = Part::Layer(self.program.layers.len());
        }
    }

    const fn layer_number(&self) -> usize {
        match self.part {
            Part::Layer(layer) => layer,
            _ => 0,
        }
    }

    fn weight(&mut self, name: String, shape: Vec<usize>, role: Role) -> WeightId {
        let name = format!("{}{}{name}", self.prefix, self.scope);
        self.program.weights.push(WeightSpec {
            name,
            shape,
            role,
            part: self.part,
            expert: None,
            within: None,
        });
        WeightId(self.program.weights.len() - 1)
    }

    pub(crate) fn vector(&mut self, name: &str, shape: Vec<usize>, make: Make) -> VectorId {
        let len = shape.iter().product();
        let weight = self.weight(name.to_owned(), shape, Role::Vector);
        self.made(vec![(weight, 0..len)], make)
    }

    fn made(&mut self, parts: Vec<(WeightId, Range<usize>)>, make: Make) -> VectorId {
        self.program.vectors.push(VectorSpec { parts, make });
        VectorId(self.program.vectors.len() - 1)
    }

    fn value(&mut self, name: &'static str, width: usize, rows: Rows) -> Value {
        self.program.values.push(ValueSpec { name, width, rows });
        Value(self.program.values.len() - 1)
    }

    fn width(&self, value: Value) -> usize {
        self.program.values[value.0].width
    }

    fn rows(&self, value: Value) -> Rows {
        self.program.values[value.0].rows
    }

    pub(crate) fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// `hidden *= factor`, unless it is one.
    pub(crate) fn scale_hidden(&mut self, factor: f32) {
        self.scale(self.hidden, factor);
    }

    pub(crate) fn scale(&mut self, value: Value, factor: f32) {
        if factor != 1.0 {
            self.push(Op::Scale { value, factor });
        }
    }

    /// Adds a value to the residual stream.
    pub(crate) fn add(&mut self, from: Value) {
        let to = self.hidden;
        self.push(Op::Add { from, to });
    }

    /// The residual stream, normed by the tensor of that name.
    pub(crate) fn norm(&mut self, name: &str, norm: NormAs) -> Value {
        let to = self.value("normed", self.dims().hidden, Rows::Step);
        self.norm_into(self.hidden, to, name, norm);
        to
    }

    /// Norms rows of a value in place.
    pub(crate) fn norm_in_place(&mut self, value: Value, name: &str, norm: NormAs) {
        self.norm_into(value, value, name, norm);
    }

    fn norm_into(&mut self, from: Value, to: Value, name: &str, norm: NormAs) {
        self.norm_pieces(from, to, name, norm, 1, 1);
    }

    /// Norms each of `heads` pieces of a row; `own` of them have weights of their own.
    fn norm_pieces(&mut self, from: Value, to: Value, name: &str, norm: NormAs, heads: usize, own: usize) {
        let piece = self.width(from) / heads.max(1);
        let make = if norm.plus_one { Make::PlusOne } else { Make::Plain };
        let shape = if own > 1 { vec![own, piece] } else { vec![piece] };
        let weight = self.vector(&format!("{name}.weight"), shape.clone(), make);
        let bias = norm.bias.then(|| self.vector(&format!("{name}.bias"), shape, Make::Plain));
        self.push(Op::Norm(Norm {
            kind: norm.kind,
            add: None,
            from,
            to,
            heads,
            eps: norm.eps,
            weight,
            bias,
        }));
    }

    /// Norms each head, whose weights are tensors of their own.
    pub(crate) fn norm_by_tensors(
        &mut self,
        value: Value,
        heads: usize,
        norm: NormAs,
        name: impl Fn(usize) -> String,
    ) {
        let piece = self.width(value) / heads.max(1);
        let weights = (0..heads).map(|head| (self.weight(name(head), vec![piece], Role::Vector), 0..piece));
        let parts: Vec<_> = weights.collect();
        let weight = self.made(parts, Make::Plain);
        let (kind, eps) = (norm.kind, norm.eps);
        self.push(Op::Norm(Norm { kind, add: None, from: value, to: value, heads, eps, weight, bias: None }));
    }

    fn product(&mut self, name: &str, from: Value, rows: usize, role: Role, to: Vec<Output>, bias: bool) {
        let shape = vec![rows, self.width(from)];
        let weight = self.weight(format!("{name}.weight"), shape, role);
        self.push(Op::Linear(Linear { weight, from, to: to.clone() }));
        if !bias {
            return;
        }
        let bias = self.weight(format!("{name}.bias"), vec![rows], Role::Vector);
        let mut values = Vec::new();
        for output in &to {
            if !values.contains(&output.value) {
                values.push(output.value);
            }
        }
        for value in values {
            let mut parts: Vec<_> = to.iter().filter(|output| output.value == value).collect();
            parts.sort_by_key(|output| output.column);
            let parts = parts.into_iter().map(|output| (bias, output.rows.clone())).collect();
            let vector = self.made(parts, Make::Plain);
            self.push(Op::Bias { vector, to: value });
        }
    }

    /// `W from + bias`, of `rows` rows.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        what: &'static str,
        from: Value,
        rows: usize,
        role: Role,
        bias: bool,
    ) -> Value {
        let value = self.value(what, rows, self.rows(from));
        self.product(name, from, rows, role, vec![Output { rows: 0..rows, value, column: 0 }], bias);
        value
    }

    /// One product that makes several values, one behind the other.
    pub(crate) fn split<const N: usize>(
        &mut self,
        name: &str,
        parts: [(&'static str, usize); N],
        from: Value,
        role: Role,
        bias: bool,
    ) -> [Value; N] {
        let rows = self.rows(from);
        let values = parts.map(|(what, width)| self.value(what, width, rows));
        let mut start = 0;
        let mut to = Vec::new();
        for (value, (_, width)) in values.iter().zip(parts) {
            to.push(Output { rows: start..start + width, value: *value, column: 0 });
            start += width;
        }
        self.product(name, from, start, role, to, bias);
        values
    }

    /// Queries, keys and values.
    fn qkv(&mut self, at: &str, from: Value, a: &Attention) -> [Value; 3] {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let parts = [("query", q), ("key", kv), ("value", kv)];
        match a.qkv {
            Qkv::Separate(names) => {
                let mut values = [Value(0); 3];
                for ((value, name), (what, width)) in values.iter_mut().zip(names).zip(parts) {
                    *value =
                        self.linear(&format!("{at}.{name}"), what, from, width, Role::Attention, a.qkv_bias);
                }
                values
            }
            Qkv::Fused(name) => self.split(&format!("{at}.{name}"), parts, from, Role::Attention, a.qkv_bias),
            Qkv::Grouped(name) => {
                let values = parts.map(|(what, width)| self.value(what, width, Rows::Step));
                let widths = [q / a.kv_heads, a.head_dim, a.head_dim];
                let mut to = Vec::new();
                let mut start = 0;
                for group in 0..a.kv_heads {
                    for (value, width) in values.iter().zip(widths) {
                        to.push(Output { rows: start..start + width, value: *value, column: group * width });
                        start += width;
                    }
                }
                self.product(&format!("{at}.{name}"), from, start, Role::Attention, to, a.qkv_bias);
                values
            }
        }
    }

    /// Attention of the layer to `from`, its tensors below `at`.
    pub(crate) fn attention(&mut self, at: &str, from: Value, a: &Attention) -> Value {
        let [q, k, v] = self.qkv(at, from, a);
        if let Some(norm) = a.qk_norm.filter(|norm| !norm.after_rope) {
            self.qk_norm(at, [q, k], a, norm);
        }
        if let Some(norm) = a.norms_by_head {
            for (value, name, heads) in [(q, "q_layernorm", a.heads), (k, "k_layernorm", a.kv_heads)] {
                self.norm_by_tensors(value, heads, norm, |head| format!("{at}.{name}.norms.{head}.weight"));
            }
        }
        if let Some(limit) = a.clip {
            for value in [q, k, v] {
                self.push(Op::Clamp { value, limit });
            }
        }
        self.attend(at, from, [q, k, v], a)
    }

    pub(crate) fn attend(&mut self, at: &str, from: Value, [q, k, v]: [Value; 3], a: &Attention) -> Value {
        if let Some((of_q, of_k)) = a.rope {
            for (rope, value, heads) in [(of_q, q, a.heads), (of_k, k, a.kv_heads)] {
                self.push(Op::Rotate(Rotate { rope, value, heads, head_dim: a.head_dim }));
            }
        }
        if let Some(norm) = a.qk_norm.filter(|norm| norm.after_rope) {
            self.qk_norm(at, [q, k], a, norm);
        }
        let layer = self.layer_number();
        let (kv_heads, head_dim, window) = (a.kv_heads, a.head_dim, a.window);
        self.program.states.push(StateSpec::Kv { kv_heads, head_dim, window });
        let width = a.heads * head_dim;
        let mut to = self.value("attended", width, Rows::Step);
        self.push(Op::Attend(Attend {
            layer,
            q,
            k,
            v,
            to,
            heads: a.heads,
            kv_heads,
            head_dim,
            scale: a.scale,
            softcap: a.softcap,
            window,
            alibi: a.alibi,
        }));
        if let Some(name) = a.gate {
            let gate = self.linear(&format!("{at}.{name}"), "gate", from, width, Role::Attention, false);
            let gated = self.value("gated", width, Rows::Step);
            self.push(Op::Activate(Activate { kind: Activation::Sigmoid, gate, up: Some(to), to: gated }));
            to = gated;
        }
        let hidden = self.dims().hidden;
        self.linear(&format!("{at}.{}", a.out), "projected", to, hidden, Role::Attention, a.out_bias)
    }

    fn qk_norm(&mut self, at: &str, values: [Value; 2], a: &Attention, norm: QkNorm) {
        for ((value, name), heads) in values.into_iter().zip(norm.names).zip([a.heads, a.kv_heads]) {
            let pieces = if norm.full_width { 1 } else { heads };
            let own = if norm.own_weights { heads } else { 1 };
            self.norm_pieces(value, value, &format!("{at}.{name}"), norm.norm, pieces, own);
        }
    }

    /// An MLP of `from`, its tensors below `at`.
    pub(crate) fn mlp(&mut self, at: &str, from: Value, mlp: &Mlp) -> Value {
        let named = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let activated = self.activated(from, mlp, Role::Mlp, named);
        let hidden = self.dims().hidden;
        self.linear(&named(mlp.down), "projected", activated, hidden, Role::Mlp, mlp.bias)
    }

    fn activated(&mut self, from: Value, mlp: &Mlp, role: Role, named: impl Fn(&str) -> String) -> Value {
        let (width, bias) = (mlp.width, mlp.bias);
        let (gate, up) = match mlp.up {
            Up::Gated(gate, up) => {
                let gate = self.linear(&named(gate), "gate", from, width, role, bias);
                (gate, Some(self.linear(&named(up), "up", from, width, role, bias)))
            }
            Up::Fused(name) => {
                let [gate, up] = self.split(&named(name), [("gate", width), ("up", width)], from, role, bias);
                (gate, Some(up))
            }
            Up::Plain(name) => (self.linear(&named(name), "up", from, width, role, bias), None),
        };
        let to = self.value("activated", width, self.rows(from));
        self.push(Op::Activate(Activate { kind: mlp.act, gate, up, to }));
        to
    }

    /// The experts of a layer on `from`.
    pub(crate) fn experts(&mut self, from: Value, m: &Mixture) -> Result<Value> {
        const MOST: usize = 1 << 12;
        const MOST_IN_ALL: usize = 1 << 17;
        let (hidden, layer) = (self.dims().hidden, self.layer_number());
        if m.count > MOST || m.count.saturating_mul(self.dims().layers) > MOST_IN_ALL {
            let what = format!("{} experts in {} layers are more than allowed", m.count, self.dims().layers);
            return Err(self.config.invalid("num_experts", &what));
        }
        if !(1..=m.count).contains(&m.per_token) {
            let what = format!("{} of {} experts", m.per_token, m.count);
            return Err(self.config.invalid("num_experts_per_tok", &what));
        }
        if m.width == 0 || m.width > limit::INTERMEDIATE {
            return Err(self.config.invalid("moe_intermediate_size", &format!("{} is not a size", m.width)));
        }
        let router = self.vector(m.router, vec![m.count, hidden], Make::Plain);
        let correction = m.correction.map(|correction| {
            let shape = if correction.two_dimensional { vec![1, m.count] } else { vec![m.count] };
            self.vector(correction.name, shape, Make::Plain)
        });
        let shared_gate = m.shared_gate.map(|name| self.vector(name, vec![1, hidden], Make::Plain));
        let scores = self.value("scores", m.count, Rows::Step);
        self.push(Op::Route(Route {
            layer,
            from,
            scores,
            router,
            correction,
            shared_gate,
            count: m.count,
            per_token: m.per_token,
            scoring: m.scoring,
            groups: m.groups,
            normalise: m.normalise,
            scale: m.scale,
        }));
        let shared = m.shared.map(|(at, mlp)| self.mlp(at, from, &mlp));
        let to = self.value("mixed", hidden, Rows::Step);
        self.push(Op::Zero { to });
        match (shared, shared_gate) {
            (Some(from), Some(_)) => self.push(Op::AddShared { from, to }),
            (Some(from), None) => {
                self.scale(from, m.shared_scale);
                self.push(Op::Add { from, to });
            }
            (None, _) => {}
        }
        let taken = self.value("taken", hidden, Rows::Chosen);
        let outer = std::mem::take(&mut self.ops);
        let first = WeightId(self.program.weights.len());
        let made = self.expert(taken, m);
        let body = std::mem::replace(&mut self.ops, outer);
        let each = self.program.weights.len() - first.0;
        // The others are alike; their values are those of the first.
        let of_one = self.program.weights.split_off(first.0);
        for expert in 0..m.count {
            for (which, spec) in of_one.iter().enumerate() {
                let (name, within) =
                    (self.expert_name(m, expert, which), self.expert_slice(m, expert, which));
                self.program.weights.push(WeightSpec { name, within, expert: Some(expert), ..spec.clone() });
            }
        }
        let count = m.count;
        self.push(Op::Experts(Experts { layer, from, taken, body, made, to, first, each, count }));
        Ok(to)
    }

    /// What an expert computes; its matrices have no names yet.
    fn expert(&mut self, taken: Value, m: &Mixture) -> Value {
        let hidden = self.dims().hidden;
        let (up, down) = match m.names {
            Names::Each { .. } => (Up::Gated("gate", "up"), "down"),
            Names::Together { .. } => (Up::Fused("gate_up"), "down"),
        };
        let mlp = Mlp { width: m.width, act: m.act, up, down, bias: false };
        let activated = self.activated(taken, &mlp, Role::Expert, str::to_owned);
        self.linear(down, "made", activated, hidden, Role::Expert, false)
    }

    /// The name of an expert's matrix: gate, up, down; or gate and up in one, down.
    fn expert_name(&self, m: &Mixture, expert: usize, which: usize) -> String {
        let at = format!("{}{}", self.prefix, self.scope);
        match m.names {
            Names::Each { before, projections } => {
                format!("{at}{before}{expert}.{}.weight", projections[which])
            }
            Names::Together { gate_up, down } => {
                format!("{at}{}.{expert}.weight", if which == 0 { gate_up } else { down })
            }
        }
    }

    /// Where it lies in the tensors that hold all experts.
    fn expert_slice(&self, m: &Mixture, expert: usize, which: usize) -> Option<Slice> {
        let at = format!("{}{}", self.prefix, self.scope);
        let (hidden, width, count) = (self.dims().hidden, m.width, m.count);
        let gate_up = |name: String, part: usize| Slice {
            name,
            shape: vec![count, 2 * width, hidden],
            start: (2 * expert + part) * width * hidden,
        };
        let down =
            |name: String| Slice { name, shape: vec![count, hidden, width], start: expert * hidden * width };
        Some(match (m.names, which) {
            (Names::Each { before, .. }, 0 | 1) => gate_up(format!("{at}{before}gate_up_proj"), which),
            (Names::Each { before, .. }, _) => down(format!("{at}{before}down_proj")),
            (Names::Together { gate_up: name, .. }, 0) => gate_up(format!("{at}{name}.weight"), 0),
            (Names::Together { down: name, .. }, _) => down(format!("{at}{name}.weight")),
        })
    }

    /// Ends the layers with norm and head, and the program.
    pub(crate) fn head(mut self, head: &Head) -> Result<Program> {
        self.end_part();
        self.part = Part::Head;
        self.scope = String::new();
        let (hidden, vocab) = (self.dims().hidden, self.dims().vocab);
        let last = self.value("last", hidden, Rows::Wanted);
        self.push(Op::Wanted { from: self.hidden, to: last });
        let normed = self.value("normed", hidden, Rows::Wanted);
        self.norm_into(last, normed, head.norm, head.norm_as);
        self.program.head = WeightId(self.program.weights.len());
        let logits = self.linear(head.matrix, "logits", normed, vocab, Role::Head, head.bias);
        if head.unit_rows {
            let vector = self.made(vec![(self.program.head, 0..vocab)], Make::InverseRowNorms);
            self.push(Op::Multiply { value: logits, vector });
        }
        self.scale(logits, head.scale);
        if let Some(cap) = head.softcap {
            self.push(Op::Softcap { value: logits, cap });
        }
        self.program.logits = logits;
        self.end_part();
        // Heads come last, behind what lies beside them.
        refuse_unread(self.config)?;
        Ok(self.program)
    }

    /// The facts of a layer's attention as Llama has it.
    pub(crate) fn attention_facts(&self, rope: RopeId) -> Attention {
        let d = self.dims();
        Attention {
            heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            qkv: Qkv::Separate(["q_proj", "k_proj", "v_proj"]),
            qkv_bias: false,
            out: "o_proj",
            out_bias: false,
            qk_norm: None,
            norms_by_head: None,
            clip: None,
            rope: Some((rope, rope)),
            scale: (d.head_dim as f32).powf(-0.5),
            softcap: None,
            window: None,
            alibi: false,
            gate: None,
        }
    }
}

impl Facts {
    /// Begins a program whose rotary embedding is the config's, and says by how much it stretches positions.
    pub(crate) fn begin<'c>(self, config: &'c Fields, prefix: &str) -> Result<(Builder<'c>, RopeId)> {
        self.begin_with(config, prefix, "model.embed_tokens", None)
    }

    /// The same with an embedding of another name, and of the rotary embedding of layers of `kind`.
    pub(crate) fn begin_with<'c>(
        mut self,
        config: &'c Fields,
        prefix: &str,
        embedding: &str,
        kind: Option<&str>,
    ) -> Result<(Builder<'c>, RopeId)> {
        let rope = self.rope(config, kind)?;
        self.dims.max_positions = rope.max_positions(self.positions);
        let mut builder = Builder::new(config, self.dims, prefix, embedding);
        let rope = builder.rope(rope);
        Ok((builder, rope))
    }
}
