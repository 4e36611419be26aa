//! The weights as a pass asks for them: tiles from the stream, vectors and rows of the embedding from here.

use std::sync::Arc;

use narrows_cpu::Cpu;
use narrows_shard::Encoding;
use narrows_stream::{Access, Stream};

use crate::architecture::{ExpertWeight, LayerWeight, Weight};
use crate::backend::{Activation, Backend, Tile};
use crate::error::{Error, Result};
use crate::model::{Located, Model, WeightReader};
use crate::tiling::{Matrix, Tiling};

/// All weights of a model.
pub(crate) struct Weights<B: Backend> {
    stream: Stream<B::Memory>,
    tiling: Arc<Tiling>,
    vectors: Vectors<B>,
    embedding: Embedding,
}

/// Norms, biases and routers, decoded: they are small, every pass needs all of them, and every operation wants
/// float32.
struct Vectors<B: Backend> {
    layers: Vec<[Option<B::Vector>; LayerWeight::COUNT]>,
    final_norm: Option<B::Vector>,
}

/// The embedding table, which stays on disk: a step reads the rows of its tokens.
struct Embedding {
    table: Located,
    reader: WeightReader,
    row_bytes: usize,
    bytes_read: u64,
}

impl<B: Backend> Weights<B> {
    /// Reads the vectors and takes over the stream, which is reading the tiles already.
    pub(crate) fn new(
        model: &Model,
        tiling: Arc<Tiling>,
        stream: Stream<B::Memory>,
        backend: &mut B,
    ) -> Result<Self> {
        let mut reader = model.reader()?;
        let mut open = None;
        let cpu = Cpu::new(1)?;
        let mut layers: Vec<_> = std::iter::repeat_with(|| [const { None }; LayerWeight::COUNT])
            .take(model.architecture().layers)
            .collect();
        let mut final_norm = None;
        let mut bytes_read = 0;
        for located in model.vectors() {
            // Beside the files of the stream one is open: there may be hundreds, and limits are low.
            if open.replace(located.tensor.file) != Some(located.tensor.file) {
                reader.release();
            }
            let len = located.tensor.shape.iter().product();
            let mut bytes = vec![0; row_bytes(located.encoding, len)?];
            reader.read(&located.tensor, 0, &mut bytes)?;
            bytes_read += bytes.len() as u64;
            let mut values = vec![0.0; len];
            cpu.decode(located.encoding, &bytes, &mut values)?;
            let vector = Some(backend.vector(values)?);
            match located.weight {
                Weight::Layer(layer, weight) => layers[layer][weight as usize] = vector,
                _ => final_norm = vector,
            }
        }
        reader.release();
        let table = model.embedding().clone();
        let row_bytes = row_bytes(table.encoding, model.architecture().hidden_size)?;
        Ok(Self {
            stream,
            tiling,
            vectors: Vectors { layers, final_norm },
            embedding: Embedding { table, reader, row_bytes, bytes_read },
        })
    }

    /// Payload read outside the stream: vectors, and rows of the embedding.
    pub(crate) const fn bytes_read(&self) -> u64 {
        self.embedding.bytes_read
    }

    pub(crate) const fn stream(&self) -> &Stream<B::Memory> {
        &self.stream
    }

    /// How the embedding table is stored.
    pub(crate) const fn embedding_encoding(&self) -> Encoding {
        self.embedding.table.encoding
    }

    /// Reads the embeddings of `tokens` as they are stored, `[tokens, hidden]`.
    pub(crate) fn read_embeddings(&mut self, tokens: &[u32], out: &mut Vec<u8>) -> Result<()> {
        let Embedding { table, reader, row_bytes, bytes_read } = &mut self.embedding;
        out.resize(tokens.len() * *row_bytes, 0);
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(*row_bytes)) {
            reader.read(&table.tensor, u64::from(*token) * row.len() as u64, row)?;
            *bytes_read += row.len() as u64;
        }
        Ok(())
    }

    /// Begins a walk over all tiles. Matrices must be asked for in their order.
    pub(crate) fn pass(&mut self) -> Pass<'_, B> {
        Pass { tiles: self.stream.pass(), tiling: &self.tiling, vectors: &self.vectors }
    }
}

/// One walk over the weights.
pub(crate) struct Pass<'w, B: Backend> {
    tiles: narrows_stream::Pass<'w, B::Memory>,
    tiling: &'w Tiling,
    vectors: &'w Vectors<B>,
}

impl<'w, B: Backend> Pass<'w, B> {
    /// An error of a device with the tile that it was noticed at: the next, or the last. A device does late what it
    /// is asked for, so it need not be the tile that failed, but it is in this pass and not after it.
    pub(crate) fn named(&self, error: Error) -> Error {
        let named = matches!(error, Error::Tile { .. } | Error::Stream(_));
        if named || !error.is_device() {
            return error;
        }
        let last = self.tiling.tiles.len().saturating_sub(1);
        let tile = self.tiles.peek().map_or(last, narrows_stream::TileId::index);
        Error::Tile { tile: self.tiling.describe(tile), source: Box::new(error) }
    }

    /// A bias or norm of a layer, if the architecture has it.
    pub(crate) fn vector(&self, layer: usize, weight: LayerWeight) -> Option<&'w B::Vector> {
        self.vectors.layers[layer][weight as usize].as_ref()
    }

    /// The norm before the head.
    pub(crate) fn final_norm(&self) -> Result<&'w B::Vector> {
        self.vectors
            .final_norm
            .as_ref()
            .ok_or_else(|| Error::Request("the last norm is not loaded".to_owned()))
    }

    /// A matrix of a layer, if the architecture has it.
    pub(crate) fn matrix(&self, layer: usize, weight: LayerWeight) -> Option<&'w Matrix> {
        self.tiling.layers[layer][weight as usize].as_ref()
    }

    /// A matrix of an expert of a layer.
    pub(crate) fn expert_matrix(
        &self,
        layer: usize,
        expert: usize,
        weight: ExpertWeight,
    ) -> Option<&'w Matrix> {
        self.tiling.experts[layer][expert].matrices[weight as usize].as_ref()
    }

    /// The encoding of what the head is multiplied with.
    pub(crate) fn head_operand(&self) -> Encoding {
        operand(self.tiling.head.as_ref())
    }

    /// Asks for experts of a layer, whose matrices must be asked for in that order from then on.
    pub(crate) fn demand(&mut self, layer: usize, experts: impl Iterator<Item = usize>) -> Result<()> {
        let groups: Vec<_> = experts.map(|expert| self.tiling.experts[layer][expert].group).collect();
        Ok(self.tiles.demand(&groups)?)
    }

    /// Names experts of a layer that will probably be demanded.
    pub(crate) fn prefetch(&mut self, layer: usize, experts: impl Iterator<Item = usize>) {
        let groups: Vec<_> = experts.map(|expert| self.tiling.experts[layer][expert].group).collect();
        self.tiles.prefetch(&groups);
    }

    /// Whether an expert may have to be read when it is demanded.
    pub(crate) fn may_miss(&self) -> bool {
        self.tiles.may_miss()
    }

    /// `to[i, :] = W from[i, :]`. Matrices are asked for in the order of the walk, those of experts in the order in
    /// which these were demanded; one that the architecture lacks leaves `to` alone.
    pub(crate) fn linear(
        &mut self,
        backend: &mut B,
        matrix: Option<&Matrix>,
        from: Activation,
        to: Activation,
    ) -> Result<()> {
        matrix.map_or(Ok(()), |matrix| self.multiply(backend, matrix, from, to))
    }

    /// The logits of the rows that are wanted; if none are, the head's tiles are passed over.
    pub(crate) fn head(&mut self, backend: &mut B, none_wanted: bool) -> Result<()> {
        let Some(matrix) = &self.tiling.head else { return Ok(()) };
        if none_wanted {
            for _ in matrix.tiles.clone() {
                self.tiles.skip()?;
            }
            return Ok(());
        }
        self.multiply(backend, matrix, Activation::Normed, Activation::Logits)
    }

    /// Computes tile by tile: rows of the matrix are columns of the result, so no sum is ever split.
    fn multiply(&mut self, backend: &mut B, matrix: &Matrix, from: Activation, to: Activation) -> Result<()> {
        for tile in matrix.tiles.clone() {
            let held = match self.tiling.tiles[tile].access {
                Access::Demanded(_) => self.tiles.next_demanded()?,
                _ => Some(self.tiles.next()?),
            };
            let held = held.filter(|held| held.tile().index() == tile).ok_or_else(|| {
                Error::Request(format!("{} was asked for out of order", self.tiling.describe(tile)))
            })?;
            let name = || self.tiling.describe(tile);
            let rows = self.tiling.tiles[tile].rows.clone();
            let tile =
                Tile { encoding: matrix.encoding, rows, of: matrix.rows, cols: matrix.cols, name: &name };
            backend.linear(&tile, &held, from, to)?;
        }
        Ok(())
    }
}

/// The encoding of what a matrix is multiplied with.
pub(crate) fn operand(matrix: Option<&Matrix>) -> Encoding {
    matrix.map_or(Encoding::F32, |matrix| matrix.encoding.operand())
}

fn row_bytes(encoding: Encoding, cols: usize) -> Result<usize> {
    encoding.row_bytes(cols).ok_or_else(|| Error::Request(format!("a row of {cols} weights")))
}
