//! The operations of a program, and the hardware that does them.
//!
//! A backend holds the values of a step; the decoder runs the program's operations on them. Weights come to it tile by
//! tile in the memory that its stream delivers to.

mod cpu;
mod cuda;

use std::ops::Range;

use narrows_model::{Norm, Op, Route, Value, VectorId};
use narrows_shard::Encoding;
use narrows_staging::Memory;
use narrows_stream::Held;

use crate::error::{Error, Result};
use crate::routing::Routing;
use crate::sequence::{Cache, Sequence};

pub(crate) use cpu::{CpuBackend, HostCache};
pub(crate) use cuda::{CudaBackend, DeviceCache, Limits};

/// What a step is about, for all layers alike.
pub(crate) struct Step<'a> {
    /// The rows: which of the sequences, and the position in it.
    pub(crate) rows: &'a [(usize, usize)],
    /// The embeddings of the rows as they are stored, `[n, hidden]`.
    pub(crate) embeddings: &'a [u8],
    /// How they are stored.
    pub(crate) encoding: Encoding,
    /// Cosines and sines of each rotary embedding, `[n, dims / 2]` each.
    pub(crate) angles: &'a [(Vec<f32>, Vec<f32>)],
    /// The rows whose logits are wanted.
    pub(crate) wanted: &'a [usize],
}

/// Rows of a matrix.
pub(crate) struct Tile<'a> {
    /// How the matrix is stored.
    pub(crate) encoding: Encoding,
    /// Its rows that are in the tile's memory.
    pub(crate) rows: usize,
    /// Those of them to multiply with.
    pub(crate) part: Range<usize>,
    /// Its columns.
    pub(crate) cols: usize,
    /// Its name, for messages.
    pub(crate) name: &'a dyn Fn() -> String,
}

/// Vectors of a program, by [`VectorId`].
pub(crate) struct Vectors<V>(pub(crate) Vec<V>);

impl<V> Vectors<V> {
    pub(crate) fn get(&self, id: VectorId) -> Result<&V> {
        self.0.get(id.0).ok_or(Error::Internal("a vector is not loaded"))
    }
}

/// One kind of hardware that computes steps.
///
/// Operations come in the order of the program. Values that go into a matrix product alone are made in the encoding of
/// the matrix, where the backend cares.
pub(crate) trait Backend: Send {
    /// What weights arrive in.
    type Memory: Memory;
    /// A norm's weights or a bias.
    type Vector: Send;

    /// A KV cache with room for nothing.
    fn cache(&self) -> Cache;

    /// Takes a vector.
    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector>;

    /// Begins a step: the residual stream, [`Value`] 0, becomes the embeddings.
    fn begin(&mut self, step: &Step<'_>, sequences: &mut [&mut Sequence]) -> Result<()>;

    /// Every operation but products with matrices, norms and what concerns routing.
    fn run(
        &mut self,
        op: &Op,
        vectors: &Vectors<Self::Vector>,
        sequences: &mut [&mut Sequence],
    ) -> Result<()>;

    /// A norm, and the addition before it.
    fn norm(&mut self, norm: &Norm, vectors: &Vectors<Self::Vector>) -> Result<()>;

    /// Columns of `to` from `column` on become `from` times the part of the tile.
    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, Self::Memory>,
        from: Value,
        to: Value,
        column: usize,
    ) -> Result<()>;

    /// Scores of `count` outputs of the matrix `[count, hidden]` in `vector`, in float32. Waits for them.
    fn scores(
        &mut self,
        route: &Route,
        vector: VectorId,
        count: usize,
        vectors: &Vectors<Self::Vector>,
    ) -> Result<&[f32]>;

    /// Takes the rows and weights of a mixture.
    fn route(&mut self, routing: &Routing) -> Result<()>;

    /// From here on values of chosen rows have so many.
    fn choose(&mut self, rows: usize);

    /// `to` becomes the rows of `from` that the routing has in this range.
    fn take_rows(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()>;

    /// Adds `from` to the rows of `to` that the routing has in this range, by its weights.
    fn add_routed(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()>;

    /// A row of the residual stream that has NaN or infinity in it, where that can be seen without waiting. What is not
    /// seen here is seen in the logits.
    fn not_finite(&self) -> Option<usize> {
        None
    }

    /// Waits for the logits, `[wanted, vocab]`.
    fn logits(&mut self) -> Result<&mut [f32]>;
}
