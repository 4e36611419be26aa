//! The operations of a decoder, and the hardware that does them.
//!
//! A backend holds the activations of a step; the decoder names them and says what becomes of them. Weights come
//! to it tile by tile in the memory that its stream delivers to.

mod cpu;
mod cuda;

use std::ops::Range;

use narrows_shard::Encoding;
use narrows_staging::Memory;
use narrows_stream::Held;

use crate::architecture::Architecture;
use crate::error::Result;
use crate::routing::Routing;
use crate::sequence::{Cache, Sequence};

pub(crate) use cpu::{CpuBackend, HostCache};
pub(crate) use cuda::{CudaBackend, DeviceCache, Limits};

/// The activations of a step of `n` rows, `[n, width]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// The residual stream, `[n, hidden]`, in f32.
    Hidden,
    /// What goes into the projections of a half of a layer, or into the head: rows of `Hidden`, normed.
    Normed,
    /// `[n, heads * head_dim]`
    Query,
    /// `[n, kv_heads * head_dim]`
    Key,
    /// `[n, kv_heads * head_dim]`
    Value,
    /// What attention makes of them, `[n, heads * head_dim]`.
    Attended,
    /// `[rows, width]` as [`Backend::shape_mlp`] says, and so are the next two.
    Gate,
    /// See `Gate`.
    Up,
    /// What the activation function makes of them.
    Activated,
    /// What comes back from a half of a layer and is to be added to `Hidden`.
    Projected,
    /// What a router says of each row, `[n, experts]`.
    Scores,
    /// Rows of `Normed` that go to an expert.
    Routed,
    /// What an expert makes of them.
    Expert,
    /// `[wanted, vocab]`
    Logits,
}

impl Activation {
    /// Every activation.
    pub(crate) const ALL: [Self; 14] = [
        Self::Hidden,
        Self::Normed,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Attended,
        Self::Gate,
        Self::Up,
        Self::Activated,
        Self::Projected,
        Self::Scores,
        Self::Routed,
        Self::Expert,
        Self::Logits,
    ];

    /// Elements of a row; of those of the MLP in the widest layer or expert.
    pub(crate) fn width(self, a: &Architecture) -> usize {
        let experts = a.experts.as_ref();
        match self {
            Self::Hidden | Self::Normed | Self::Projected => a.hidden_size,
            Self::Query | Self::Attended => a.q_size(),
            Self::Key | Self::Value => a.kv_size(),
            Self::Gate | Self::Up | Self::Activated => a.widest_mlp(),
            Self::Scores => experts.map_or(0, |experts| experts.count),
            Self::Routed | Self::Expert => experts.map_or(0, |_| a.hidden_size),
            Self::Logits => a.vocab_size,
        }
    }
}

/// What a step is about, for all layers alike.
pub(crate) struct Step<'a> {
    /// The rows: which of the sequences, and the position in it.
    pub(crate) rows: &'a [(usize, usize)],
    /// The embeddings of the rows as they are stored, `[n, hidden]`.
    pub(crate) embeddings: &'a [u8],
    /// How they are stored.
    pub(crate) encoding: Encoding,
    /// Cosines and sines of the rotary embedding, `[n, head_dim / 2]` each.
    pub(crate) cos: &'a [f32],
    /// See `cos`.
    pub(crate) sin: &'a [f32],
    /// The rows whose logits are wanted.
    pub(crate) wanted: &'a [usize],
}

/// Rows of a matrix, in a tile.
pub(crate) struct Tile<'a> {
    /// How the matrix is stored.
    pub(crate) encoding: Encoding,
    /// Its rows that are here.
    pub(crate) rows: Range<usize>,
    /// All its rows.
    pub(crate) of: usize,
    /// Its columns.
    pub(crate) cols: usize,
    /// What it is, for messages.
    pub(crate) name: &'a dyn Fn() -> String,
}

/// One kind of hardware that computes steps.
///
/// Calls come in the order of the decoder. What goes into a matrix product (`Normed`, `Attended`, `Activated`) is
/// made in the encoding of the matrix, where the backend cares.
pub(crate) trait Backend: Send {
    /// What weights arrive in.
    type Memory: Memory;
    /// A norm's weights or a bias.
    type Vector: Send;

    /// A KV cache with room for nothing.
    fn cache(&self) -> Cache;

    /// Takes a norm or a bias.
    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector>;

    /// Begins a step: `Hidden` becomes the embeddings.
    fn begin(&mut self, step: &Step<'_>, sequences: &mut [&mut Sequence]) -> Result<()>;

    /// `Hidden += Projected`, if `add`; then `Normed = norm(Hidden) * weight`.
    fn norm(&mut self, add: bool, weight: &Self::Vector, eps: f32, encoding: Encoding) -> Result<()>;

    /// Columns `tile.rows` of `to` become `from` times the rows in the tile.
    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, Self::Memory>,
        from: Activation,
        to: Activation,
    ) -> Result<()>;

    /// Adds a bias to every row.
    fn add_bias(&mut self, bias: &Self::Vector, to: Activation) -> Result<()>;

    /// Norms every head of `Query` or `Key`.
    fn norm_heads(&mut self, heads: Activation, weight: &Self::Vector, eps: f32) -> Result<()>;

    /// Rotates `Query` and `Key`, stores `Key` and `Value` in the caches of the sequences, and attends:
    /// `Attended` comes of `Query` and the caches.
    fn attention(
        &mut self,
        layer: usize,
        window: Option<usize>,
        sequences: &mut [&mut Sequence],
        encoding: Encoding,
    ) -> Result<()>;

    /// From here on an MLP of that width is computed on so many rows: `Gate`, `Up` and `Activated` are
    /// `[rows, width]`, `Routed` and `Expert` `[rows, hidden]`.
    fn shape_mlp(&mut self, rows: usize, width: usize);

    /// `Scores[i, :] = W Normed[i, :]` for `W` of `[count, hidden]` and `Normed` in float32. Waits for them.
    fn scores(&mut self, router: &Self::Vector, count: usize) -> Result<&[f32]>;

    /// Takes the rows and weights of a mixture, and clears `Projected`, which they are to be added up in.
    fn route(&mut self, routing: &Routing) -> Result<()>;

    /// `Routed` becomes the rows of `Normed`, made in `encoding`, that the routing has in this range.
    fn take_rows(&mut self, chosen: Range<usize>, encoding: Encoding) -> Result<()>;

    /// Adds `Expert` to the rows of `Projected` that the routing has in this range, by its weights.
    fn add_expert(&mut self, chosen: Range<usize>) -> Result<()>;

    /// `Activated = silu(Gate) * Up`.
    fn swiglu(&mut self, encoding: Encoding) -> Result<()>;

    /// Ends the layers: `Hidden += Projected`, and `Hidden` becomes its wanted rows, normed, in `Normed`.
    fn finish(&mut self, weight: &Self::Vector, eps: f32, encoding: Encoding) -> Result<()>;

    /// A row of `Projected` that has NaN or infinity in it, where that can be seen without waiting. What is not seen
    /// here is seen in the logits.
    fn not_finite(&self) -> Option<usize> {
        None
    }

    /// Waits for `Logits`.
    fn logits(&mut self) -> Result<&mut [f32]>;
}
