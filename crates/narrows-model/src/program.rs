//! A program: every operation of a pass over a model, in order, with the weights that it reads.

use std::ops::Range;

use crate::rope::Rope;

/// An intermediate result of a step: an index into [`Program::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub usize);

/// A weight: an index into [`Program::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// A vector made of weights: an index into [`Program::vectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorId(pub usize);

/// A rotary embedding: an index into [`Program::ropes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeId(pub usize);

/// What a model computes for a step of rows, and which weights it needs for that.
///
/// Layers are separate lists, since a step can be interrupted between them; the order of all operations is the order of
/// the pass, and so are the weights'.
#[derive(Clone, Debug)]
pub struct Program {
    /// The facts that a model is described by.
    pub dims: Dims,
    /// Intermediate results.
    pub values: Vec<ValueSpec>,
    /// Weights in the order in which a pass first needs them; the embedding table first.
    pub weights: Vec<WeightSpec>,
    /// Vectors that operations take, made of weights that stay in memory.
    pub vectors: Vec<VectorSpec>,
    /// What a sequence remembers, by layer.
    pub states: Vec<StateSpec>,
    /// Rotary embeddings; layers may have different ones.
    pub ropes: Vec<Rope>,
    /// From the embeddings of a step's tokens on.
    pub prologue: Vec<Op>,
    /// The layers.
    pub layers: Vec<Vec<Op>>,
    /// To the logits of the wanted rows.
    pub epilogue: Vec<Op>,
    /// The logits.
    pub logits: Value,
    /// The matrix of the head; with tied embeddings it may be absent from a checkpoint.
    pub head: WeightId,
    /// Beginnings of names of tensors that belong to other parts of a model, as vision towers: they are left alone.
    pub skipped: Vec<String>,
}

/// The facts of a model that hold for all its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// `model_type` of the config: `llama`, `mistral`, `qwen2` ...
    pub family: &'static str,
    /// Tokens that the embedding and the head know.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP in layers without experts.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The head may use the embedding table.
    pub tied: bool,
    /// Positions that the model was made for; `None` where the rotary embedding adapts to any length.
    pub max_positions: Option<usize>,
    /// Tokens that end a text, as the config says.
    pub eos: Vec<u32>,
}

/// The rows of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Those of the step.
    Step,
    /// Those whose logits are wanted.
    Wanted,
    /// Those that are routed to the expert at hand.
    Chosen,
}

/// An intermediate result, `[rows, width]` in float32.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueSpec {
    /// What it is, in a printed program.
    pub name: &'static str,
    /// Its columns.
    pub width: usize,
    /// Its rows.
    pub rows: Rows,
}

/// What a weight is to the model: decides which encoding a pack has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The embedding table: rows are read one by one.
    Embedding,
    /// A projection to queries, keys and values, or from what attention gives.
    Attention,
    /// Any other matrix of a layer.
    Mlp,
    /// A matrix of an expert.
    Expert,
    /// What becomes a vector: norms, biases, and matrices that decide about routing.
    Vector,
    /// The matrix of the head.
    Head,
}

/// Where a weight belongs, in a pack and in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// A layer, by number.
    Layer(usize),
    /// What comes behind the layers.
    Head,
}

/// One weight of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// `[rows, cols]` of a matrix, `[len]` of a vector.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// Where it belongs.
    pub part: Part,
    /// The expert that it belongs to.
    pub expert: Option<usize>,
    /// Where else it may lie: as rows of a larger tensor.
    pub within: Option<Slice>,
}

/// Rows of a tensor that holds several weights, one behind the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Name of the tensor.
    pub name: String,
    /// Its shape: `[experts, rows, cols]`.
    pub shape: Vec<usize>,
    /// Where the weight begins, in elements.
    pub start: usize,
}

/// A vector that operations take, in float32.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSpec {
    /// Weights, and which elements of them, one behind the other.
    pub parts: Vec<(WeightId, Range<usize>)>,
    /// What is made of them.
    pub make: Make,
}

/// What a vector is made of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// Themselves.
    Plain,
    /// One more than each: norms that are stored as their distance from one.
    PlusOne,
    /// One over the Euclidean norm of each row of the matrix: `parts` are rows.
    InverseRowNorms,
}

/// What a sequence remembers of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateSpec {
    /// Keys and values of every position.
    Kv {
        /// Heads.
        kv_heads: usize,
        /// Width of a key and of a value.
        head_dim: usize,
        /// A query attends at most to this many positions, its own included.
        window: Option<usize>,
    },
}

/// One operation. Operands are values, vectors, and matrices that are streamed.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Rows of the embedding table.
    Embed {
        /// The result.
        to: Value,
    },
    /// A norm of rows or heads.
    Norm(Norm),
    /// A product with a streamed matrix.
    Linear(Linear),
    /// `to += vector`, every row.
    Bias {
        /// The vector.
        vector: VectorId,
        /// The value.
        to: Value,
    },
    /// Rotary position embedding, in place.
    Rotate(Rotate),
    /// Stores keys and values in the state, and attends.
    Attend(Attend),
    /// An activation function, and the product with what it gates.
    Activate(Activate),
    /// `to += from`.
    Add {
        /// The addend.
        from: Value,
        /// The sum.
        to: Value,
    },
    /// `value *= factor`.
    Scale {
        /// The value.
        value: Value,
        /// The factor.
        factor: f32,
    },
    /// `value = cap * tanh(value / cap)`.
    Softcap {
        /// The value.
        value: Value,
        /// The cap.
        cap: f32,
    },
    /// Every element to `-limit..=limit`.
    Clamp {
        /// The value.
        value: Value,
        /// The limit.
        limit: f32,
    },
    /// `value *= vector`, every row.
    Multiply {
        /// The value.
        value: Value,
        /// The vector.
        vector: VectorId,
    },
    /// The wanted rows.
    Wanted {
        /// Of these.
        from: Value,
        /// The result.
        to: Value,
    },
    /// A router's scores, and the experts that each row goes to.
    Route(Route),
    /// `to = 0`.
    Zero {
        /// The value.
        to: Value,
    },
    /// `to += weight * from` by the weight that the router gave the shared expert of each row.
    AddShared {
        /// What the shared expert made.
        from: Value,
        /// The sum.
        to: Value,
    },
    /// An MLP for each chosen expert, on its rows.
    Experts(Experts),
}

/// `to = norm(from) * weight + bias`; `from += add` first where there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Which norm.
    pub kind: NormKind,
    /// What is added to `from` first. Only lowering makes such a norm.
    pub add: Option<Value>,
    /// The operand.
    pub from: Value,
    /// The result, which may be the operand.
    pub to: Value,
    /// Into how many pieces a row falls, each with a norm of its own.
    pub heads: usize,
    /// What is added under the root.
    pub eps: f32,
    /// As wide as a head, or as a row.
    pub weight: VectorId,
    /// As wide as the weight.
    pub bias: Option<VectorId>,
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square.
    Rms,
    /// The mean is taken off first.
    Layer,
}

/// `to[i, :] = W from[i, :]`: rows of the matrix are columns of the results.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The matrix.
    pub weight: WeightId,
    /// The operand.
    pub from: Value,
    /// Where its rows go, in their order: a fused projection has several results.
    pub to: Vec<Output>,
}

/// Rows of a matrix, and the columns that they make.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Rows of the matrix.
    pub rows: Range<usize>,
    /// The value.
    pub value: Value,
    /// The first of its columns.
    pub column: usize,
}

/// Rotates the heads of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotate {
    /// By which embedding.
    pub rope: RopeId,
    /// What.
    pub value: Value,
    /// Its heads.
    pub heads: usize,
    /// Their width.
    pub head_dim: usize,
}

/// Attention of each row to the positions of its sequence, up to its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Attend {
    /// The layer, whose state it is.
    pub layer: usize,
    /// Queries.
    pub q: Value,
    /// Keys of the step.
    pub k: Value,
    /// Values of the step.
    pub v: Value,
    /// The result.
    pub to: Value,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The factor of scores.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, behind the factor.
    pub softcap: Option<f32>,
    /// At most so many positions, its own included.
    pub window: Option<usize>,
    /// Scores sink with the distance, by head (ALiBi, arXiv:2108.12409).
    pub alibi: bool,
}

/// `to = act(gate) * up`, or `act(gate)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate {
    /// The function.
    pub kind: Activation,
    /// Its operand.
    pub gate: Value,
    /// The other factor.
    pub up: Option<Value>,
    /// The result.
    pub to: Value,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// The Gaussian unit, approximated by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)^2`
    Relu2,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
}

/// Chooses the experts of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The layer.
    pub layer: usize,
    /// The operand, in float32.
    pub from: Value,
    /// The scores, `[rows, count]`.
    pub scores: Value,
    /// The router's matrix, `[count, hidden]`, as a vector.
    pub router: VectorId,
    /// Added to probabilities for the choice alone.
    pub correction: Option<VectorId>,
    /// The matrix, `[1, hidden]`, whose score's sigmoid weighs the shared expert.
    pub shared_gate: Option<VectorId>,
    /// Experts.
    pub count: usize,
    /// How many a row goes to.
    pub per_token: usize,
    /// How scores become probabilities.
    pub scoring: Scoring,
    /// Experts are chosen within some groups only.
    pub groups: Option<Groups>,
    /// What the weights of the chosen are divided by.
    pub normalise: Normalise,
    /// What they are multiplied with in the end.
    pub scale: f32,
}

/// How a router's scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// The sparse mixer of Phi-3.5-MoE, by its jitter: one expert at a time, each by a softmax over the scores that come
    /// near the greatest.
    SparseMixer(f32),
}

/// Groups of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// How many of them a row's experts may be in.
    pub chosen: usize,
    /// A group's score is the sum of so many of its best experts'.
    pub best: usize,
}

/// What the weights of chosen experts are divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Normalise {
    /// Nothing.
    No,
    /// Their sum.
    Sum,
    /// Their sum and this.
    SumAnd(f32),
    /// The greater of their sum and this.
    SumAtLeast(f32),
}

/// `to += weight * body(from)` for each chosen expert, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// The layer.
    pub layer: usize,
    /// The operand of all rows.
    pub from: Value,
    /// The rows of it that the expert at hand has.
    pub taken: Value,
    /// What the first expert computes; the weights of the next are `each` further.
    pub body: Vec<Op>,
    /// What it makes.
    pub made: Value,
    /// The sum.
    pub to: Value,
    /// The weights of the first expert.
    pub first: WeightId,
    /// Weights of an expert.
    pub each: usize,
    /// Experts.
    pub count: usize,
}

impl Program {
    /// All operations in order, those inside experts behind the operation that holds them.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        let outer = self.prologue.iter().chain(self.layers.iter().flatten()).chain(&self.epilogue);
        outer.flat_map(|op| {
            let body = match op {
                Op::Experts(experts) => &experts.body[..],
                _ => &[],
            };
            std::iter::once(op).chain(body)
        })
    }

    /// The routers, one for each layer with experts.
    pub fn routers(&self) -> impl Iterator<Item = &Route> {
        self.ops().filter_map(|op| match op {
            Op::Route(route) => Some(route),
            _ => None,
        })
    }

    /// The router of a layer, if it has experts.
    #[must_use]
    pub fn router(&self, layer: usize) -> Option<&Route> {
        self.layers.get(layer)?.iter().find_map(|op| match op {
            Op::Route(route) => Some(route),
            _ => None,
        })
    }

    /// Attention, layer by layer.
    pub fn attentions(&self) -> impl Iterator<Item = &Attend> {
        self.ops().filter_map(|op| match op {
            Op::Attend(attend) => Some(attend),
            _ => None,
        })
    }

    /// Whether keys cached at one length of the sequence would be rotated differently at another.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        self.ropes.iter().any(Rope::depends_on_length)
    }

    /// The weight of an expert that stands where `weight`, one of the first expert's, does.
    #[must_use]
    pub const fn of_expert(experts: &Experts, expert: usize, weight: WeightId) -> WeightId {
        WeightId(weight.0 + expert * experts.each)
    }

    /// Elements of a vector.
    #[must_use]
    pub fn vector_len(&self, vector: &VectorSpec) -> usize {
        vector.parts.iter().map(|(_, range)| range.len()).sum()
    }
}

impl WeightSpec {
    /// Its elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What each head's scores lose for a position of distance (`_get_interleave` of `modeling_baichuan.py`): a geometric
/// sequence where the number of heads is a power of two; otherwise those of the next lower power, then every second one of
/// the next higher.
#[must_use]
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = 1_usize << heads.max(1).ilog2();
    let of = |count: usize, head: usize| 2_f64.powf(-8.0 * (head + 1) as f64 / count as f64) as f32;
    let rest = (0..heads - power.min(heads)).map(|head| of(2 * power, 2 * head));
    (0..power.min(heads)).map(|head| of(power, head)).chain(rest).collect()
}
