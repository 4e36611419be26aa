//! The weights as a pass asks for them: tiles from the stream, vectors and rows of the embedding from here.

use std::sync::Arc;

use narrows_cpu::{Cpu, Matrix, RowsMut};
use narrows_shard::{Encoding, Reader};
use narrows_staging::{Budget, Reservation};
use narrows_stream::Stream;

use crate::architecture::{LayerWeight, Weight};
use crate::error::{Error, Result};
use crate::model::{Located, Model};
use crate::tiling::{self, Tiling};

/// All weights of a model.
pub(crate) struct Weights {
    stream: Stream,
    tiling: Arc<Tiling>,
    vectors: Vectors,
    embedding: Embedding,
}

/// Norms and biases, decoded: they are small, every pass needs all of them, and every operation wants float32.
struct Vectors {
    layers: Vec<[Vec<f32>; LayerWeight::COUNT]>,
    final_norm: Vec<f32>,
    _memory: Reservation,
}

/// The embedding table, which stays on disk: a step reads the rows of its tokens.
struct Embedding {
    table: Located,
    reader: Reader,
    bytes_read: u64,
}

impl Weights {
    /// Reads the vectors and takes over the stream, which is reading the tiles already.
    pub(crate) fn new(
        model: &Model,
        tiling: Arc<Tiling>,
        stream: Stream,
        cpu: &Cpu,
        budget: &Budget,
    ) -> Result<Self> {
        let reader = model.reader()?;
        let mut layers: Vec<_> = std::iter::repeat_with(|| [const { Vec::new() }; LayerWeight::COUNT])
            .take(model.architecture().layers)
            .collect();
        let mut final_norm = Vec::new();
        let values: usize = model.vectors().map(|located| located.tensor.shape[0]).sum();
        let memory = budget.reserve("norms and biases", narrows_shard::Bytes(4 * values as u64))?;
        let mut bytes_read = 0;
        for located in model.vectors() {
            let len = located.tensor.shape[0];
            let mut bytes = vec![0; row_bytes(located.encoding, len)?];
            reader.read(&located.tensor, 0, &mut bytes)?;
            bytes_read += bytes.len() as u64;
            let mut values = vec![0.0; len];
            cpu.decode(located.encoding, &bytes, &mut values)?;
            match located.weight {
                Weight::Layer(layer, weight) => layers[layer][weight as usize] = values,
                _ => final_norm = values,
            }
        }
        Ok(Self {
            stream,
            tiling,
            vectors: Vectors { layers, final_norm, _memory: memory },
            embedding: Embedding { table: model.embedding().clone(), reader, bytes_read },
        })
    }

    /// Payload read outside the stream: vectors, and rows of the embedding.
    pub(crate) const fn bytes_read(&self) -> u64 {
        self.embedding.bytes_read
    }

    pub(crate) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The embeddings of `tokens`, `[tokens, hidden]`.
    pub(crate) fn embed(&mut self, cpu: &Cpu, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        let Embedding { table, reader, bytes_read } = &mut self.embedding;
        let hidden = out.len() / tokens.len().max(1);
        let mut row = vec![0; row_bytes(table.encoding, hidden)?];
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            reader.read(&table.tensor, u64::from(*token) * row.len() as u64, &mut row)?;
            *bytes_read += row.len() as u64;
            cpu.decode(table.encoding, &row, out)?;
        }
        Ok(())
    }

    /// Begins a walk over all tiles. Matrices must be asked for in their order.
    pub(crate) fn pass(&mut self) -> Pass<'_> {
        Pass { tiles: self.stream.pass(), tiling: &self.tiling, vectors: &self.vectors }
    }
}

/// One walk over the weights.
pub(crate) struct Pass<'w> {
    tiles: narrows_stream::Pass<'w>,
    tiling: &'w Tiling,
    vectors: &'w Vectors,
}

impl<'w> Pass<'w> {
    /// A bias or norm of a layer, if the architecture has it.
    pub(crate) fn vector(&self, layer: usize, weight: LayerWeight) -> Option<&'w [f32]> {
        Some(self.vectors.layers[layer][weight as usize].as_slice()).filter(|values| !values.is_empty())
    }

    /// The norm before the head.
    pub(crate) fn final_norm(&self) -> &'w [f32] {
        &self.vectors.final_norm
    }

    /// `y[i, :] = W x[i, :]` for a matrix of a layer; `x` is `[n, cols]`, `y` is `[n, rows]`.
    pub(crate) fn linear(
        &mut self,
        cpu: &Cpu,
        layer: usize,
        weight: LayerWeight,
        x: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        match &self.tiling.layers[layer][weight as usize] {
            Some(matrix) => self.multiply(cpu, matrix, x, y),
            None => Ok(()),
        }
    }

    /// `y[i, :] = head x[i, :]`; with no rows the head's tiles are passed over.
    pub(crate) fn head(&mut self, cpu: &Cpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        match &self.tiling.head {
            Some(matrix) => self.multiply(cpu, matrix, x, y),
            None => Ok(()),
        }
    }

    /// Computes tile by tile: rows of the matrix are columns of `y`, so no sum is ever split.
    fn multiply(&mut self, cpu: &Cpu, matrix: &tiling::Matrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        for tile in matrix.tiles.clone() {
            if x.is_empty() {
                self.tiles.skip()?;
                continue;
            }
            let rows = &self.tiling.tiles[tile].rows;
            let held = self.tiles.next()?;
            if held.tile().index() != tile {
                return Err(Error::Request(format!("tile {} came in place of {tile}", held.tile().index())));
            }
            let weights = Matrix::new(matrix.encoding, rows.len(), matrix.cols, held.bytes())?;
            cpu.linear(weights, x, RowsMut::new(y, matrix.rows, rows.start)?)?;
        }
        Ok(())
    }
}

fn row_bytes(encoding: Encoding, cols: usize) -> Result<usize> {
    encoding.row_bytes(cols).ok_or_else(|| Error::Request(format!("a row of {cols} weights")))
}
