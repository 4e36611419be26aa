//! The weights as a pass asks for them: tiles from the stream, vectors and rows of the embedding from here.

use std::sync::Arc;

use narrows_cpu::Cpu;
use narrows_model::{Linear, Make, Value, VectorId, VectorSpec, WeightId};
use narrows_shard::Encoding;
use narrows_stream::{Access, Stream};

use crate::backend::{Backend, Tile, Vectors};
use crate::error::{Error, Result};
use crate::model::{Located, Model, WeightReader};
use crate::tiling::{Matrix, Tiling};

/// All weights of a model.
pub(crate) struct Weights<B: Backend> {
    stream: Stream<B::Memory>,
    tiling: Arc<Tiling>,
    /// Norms, biases and routers, decoded: they are small, every pass needs all of them, and every operation wants
    /// float32.
    vectors: Vectors<B::Vector>,
    /// Those that are used on the host.
    host_vectors: Vec<(VectorId, Vec<f32>)>,
    embedding: Embedding,
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
        let program = model.program();
        let mut loading =
            Loading { model, reader: model.reader()?, open: None, cpu: Cpu::new(1)?, bytes_read: 0 };
        let on_host: Vec<_> = program.routers().filter_map(|route| route.correction).collect();
        let mut vectors = Vec::with_capacity(program.vectors.len());
        let mut host_vectors = Vec::new();
        for (id, spec) in program.vectors.iter().enumerate() {
            let values = loading.vector(spec)?;
            if on_host.contains(&VectorId(id)) {
                host_vectors.push((VectorId(id), values.clone()));
            }
            vectors.push(backend.vector(values)?);
        }
        let Loading { mut reader, bytes_read, .. } = loading;
        reader.release();
        let table = model.embedding().clone();
        let row_bytes = row_bytes(table.encoding, program.dims.hidden)?;
        Ok(Self {
            stream,
            tiling,
            vectors: Vectors(vectors),
            host_vectors,
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
        let Self { stream, tiling, vectors, host_vectors, .. } = self;
        Pass { tiles: stream.pass(), tiling, vectors, host_vectors }
    }
}

/// Reads vectors while an engine is built.
struct Loading<'m> {
    model: &'m Model,
    reader: WeightReader,
    /// The file that is open.
    open: Option<usize>,
    cpu: Cpu,
    bytes_read: u64,
}

impl Loading<'_> {
    /// The values of a vector.
    fn vector(&mut self, spec: &VectorSpec) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(spec.parts.iter().map(|(_, range)| range.len()).sum());
        for (weight, range) in &spec.parts {
            let model = self.model;
            let located = model.weight(*weight)?;
            // Beside the files of the stream one is open: there may be hundreds, and limits are low.
            if self.open.replace(located.tensor.file) != Some(located.tensor.file) {
                self.reader.release();
            }
            match spec.make {
                Make::InverseRowNorms => self.row_norms(located, range.clone(), &mut values)?,
                Make::Plain | Make::PlusOne => {
                    let start = row_bytes(located.encoding, range.start)? as u64;
                    self.read(located, start, range.len(), &mut values)?;
                }
            }
        }
        if spec.make == Make::PlusOne {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    fn read(&mut self, located: &Located, start: u64, len: usize, values: &mut Vec<f32>) -> Result<()> {
        let mut bytes = vec![0; row_bytes(located.encoding, len)?];
        self.reader.read(&located.tensor, start, &mut bytes)?;
        self.bytes_read += bytes.len() as u64;
        let from = values.len();
        values.resize(from + len, 0.0);
        Ok(self.cpu.decode(located.encoding, &bytes, &mut values[from..])?)
    }

    /// One over the Euclidean norm of each row of a matrix.
    fn row_norms(
        &mut self,
        located: &Located,
        rows: std::ops::Range<usize>,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        let cols = located.tensor.shape.last().copied().unwrap_or(0);
        let each = row_bytes(located.encoding, cols)? as u64;
        let mut row = Vec::with_capacity(cols);
        for index in rows {
            row.clear();
            self.read(located, index as u64 * each, cols, &mut row)?;
            let squares: f64 = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            values.push((1.0 / squares.sqrt().max(f64::from(f32::MIN_POSITIVE))) as f32);
        }
        Ok(())
    }
}

/// One walk over the weights.
pub(crate) struct Pass<'w, B: Backend> {
    tiles: narrows_stream::Pass<'w, B::Memory>,
    tiling: &'w Tiling,
    vectors: &'w Vectors<B::Vector>,
    host_vectors: &'w [(VectorId, Vec<f32>)],
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

    /// The vectors of the program.
    pub(crate) const fn vectors(&self) -> &'w Vectors<B::Vector> {
        self.vectors
    }

    /// A vector that the host uses.
    pub(crate) fn host_vector(&self, id: VectorId) -> Result<&'w [f32]> {
        let found = self.host_vectors.iter().find(|(known, _)| *known == id);
        found.map(|(_, values)| &values[..]).ok_or(Error::Internal("a vector is not on the host"))
    }

    /// Asks for experts of a layer, whose matrices must be asked for in that order from then on.
    pub(crate) fn demand(&mut self, layer: usize, experts: impl Iterator<Item = usize>) -> Result<()> {
        let groups: Vec<_> = experts.map(|expert| self.tiling.experts[layer][expert]).collect();
        Ok(self.tiles.demand(&groups)?)
    }

    /// Names experts of a layer that will probably be demanded.
    pub(crate) fn prefetch(&mut self, layer: usize, experts: impl Iterator<Item = usize>) {
        let groups: Vec<_> = experts.map(|expert| self.tiling.experts[layer][expert]).collect();
        self.tiles.prefetch(&groups);
    }

    /// Whether an expert may have to be read when it is demanded.
    pub(crate) fn may_miss(&self) -> bool {
        self.tiles.may_miss()
    }

    /// `to[i, :] = W from[i, :]` for the matrix `weight`, which may be another expert's than the operation names.
    /// Matrices are asked for in the order of the walk, those of experts in the order in which these were demanded.
    ///
    /// Computes tile by tile: rows of the matrix are columns of the results, so no sum is ever split.
    pub(crate) fn linear(
        &mut self,
        backend: &mut B,
        linear: &Linear,
        weight: WeightId,
        from: Value,
    ) -> Result<()> {
        let matrix = self.matrix(weight)?;
        for tile in matrix.tiles.clone() {
            let held = match self.tiling.tiles[tile].access {
                Access::Demanded(_) => self.tiles.next_demanded()?,
                _ => Some(self.tiles.next()?),
            };
            let held = held
                .filter(|held| held.tile().index() == tile)
                .ok_or(Error::Internal("a matrix was asked for out of order"))?;
            let name = || self.tiling.describe(tile);
            let rows = self.tiling.tiles[tile].rows.clone();
            for output in &linear.to {
                let part = rows.start.max(output.rows.start)..rows.end.min(output.rows.end);
                if part.is_empty() {
                    continue;
                }
                let column = output.column + part.start - output.rows.start;
                let part = part.start - rows.start..part.end - rows.start;
                let (encoding, cols) = (matrix.encoding, matrix.cols);
                let tile = Tile { encoding, rows: rows.len(), part, cols, name: &name };
                backend.linear(&tile, &held, from, output.value, column)?;
            }
        }
        Ok(())
    }

    /// Passes over the tiles of a matrix.
    pub(crate) fn skip(&mut self, weight: WeightId) -> Result<()> {
        for _ in self.matrix(weight)?.tiles.clone() {
            self.tiles.skip()?;
        }
        Ok(())
    }

    fn matrix(&self, weight: WeightId) -> Result<&'w Matrix> {
        self.tiling.matrix(weight).ok_or(Error::Internal("a matrix has no tiles"))
    }
}

fn row_bytes(encoding: Encoding, cols: usize) -> Result<usize> {
    encoding.row_bytes(cols).ok_or_else(|| Error::Request(format!("a row of {cols} weights")))
}
