//! The weights in memory, as a pass asks for them.

use narrows_cpu::{Cpu, Matrix, RowsMut};
use narrows_shard::{Bytes, Encoding, Reader, Tensor};

use crate::architecture::{LayerWeight, Weight};
use crate::error::{Error, Result};
use crate::model::{Located, Model};

/// All weights of a model that a pass walks, and the means to read rows of the embedding table.
pub(crate) struct Weights {
    layers: Vec<[Option<Held>; LayerWeight::COUNT]>,
    final_norm: Vec<f32>,
    head: Held,
    embedding: Located,
    reader: Reader,
    bytes_read: u64,
}

/// A weight in memory.
enum Held {
    /// Bias or norm, decoded.
    Vector(Vec<f32>),
    /// As stored.
    Matrix { encoding: Encoding, rows: usize, cols: usize, bytes: Vec<u8> },
}

impl Weights {
    /// Reads all weights; `progress` hears of every tensor's bytes.
    pub(crate) fn load(model: &Model, cpu: &Cpu, progress: &mut dyn FnMut(Bytes)) -> Result<Self> {
        let reader = model.reader()?;
        let mut bytes_read = 0;
        let mut read = |located: &Located| -> Result<Held> {
            let bytes = read_tensor(&reader, &located.tensor)?;
            bytes_read += bytes.len() as u64;
            progress(Bytes(bytes.len() as u64));
            Ok(match located.tensor.shape[..] {
                [rows, cols] => Held::Matrix { encoding: located.encoding, rows, cols, bytes },
                _ => {
                    let mut values = vec![0.0; located.tensor.shape.iter().product()];
                    cpu.decode(located.encoding, &bytes, &mut values)?;
                    Held::Vector(values)
                }
            })
        };
        let mut layers: Vec<_> = std::iter::repeat_with(|| [const { None }; LayerWeight::COUNT])
            .take(model.architecture().layers)
            .collect();
        let mut final_norm = Vec::new();
        for located in model.located() {
            match located.weight {
                Weight::Embedding | Weight::Head => {}
                Weight::Layer(layer, weight) => layers[layer][weight as usize] = Some(read(located)?),
                Weight::FinalNorm => {
                    if let Held::Vector(values) = read(located)? {
                        final_norm = values;
                    }
                }
            }
        }
        let head = read(model.head())?;
        Ok(Self { layers, final_norm, head, embedding: model.embedding().clone(), reader, bytes_read })
    }

    /// Bytes read from the files so far.
    pub(crate) const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The embeddings of `tokens`, `[tokens, hidden]`, read from the file row by row.
    pub(crate) fn embed(&mut self, cpu: &Cpu, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        let hidden = out.len() / tokens.len().max(1);
        let mut row = vec![0; row_bytes(self.embedding.encoding, hidden)?];
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            self.reader.read(&self.embedding.tensor, u64::from(*token) * row.len() as u64, &mut row)?;
            self.bytes_read += row.len() as u64;
            cpu.decode(self.embedding.encoding, &row, out)?;
        }
        Ok(())
    }

    /// A bias or norm of a layer, if the architecture has it.
    pub(crate) fn vector(&self, layer: usize, weight: LayerWeight) -> Option<&[f32]> {
        match &self.layers[layer][weight as usize] {
            Some(Held::Vector(values)) => Some(values),
            _ => None,
        }
    }

    /// The norm before the head.
    pub(crate) fn final_norm(&self) -> &[f32] {
        &self.final_norm
    }

    /// `y[i, :] = W x[i, :]` for a matrix of a layer; `x` is `[n, cols]`, `y` is `[n, rows]`.
    pub(crate) fn linear(
        &self,
        cpu: &Cpu,
        layer: usize,
        weight: LayerWeight,
        x: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        match &self.layers[layer][weight as usize] {
            Some(held) => held.linear(cpu, x, y),
            None => Ok(()),
        }
    }

    /// `y[i, :] = head x[i, :]`.
    pub(crate) fn head(&self, cpu: &Cpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.head.linear(cpu, x, y)
    }
}

impl Held {
    fn linear(&self, cpu: &Cpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        if let Self::Matrix { encoding, rows, cols, bytes } = self {
            let matrix = Matrix::new(*encoding, *rows, *cols, bytes)?;
            cpu.linear(matrix, x, RowsMut::new(y, *rows, 0)?)?;
        }
        Ok(())
    }
}

/// A tensor's bytes. Its length was checked against the file's, so it is no larger than what is on disk.
fn read_tensor(reader: &Reader, tensor: &Tensor) -> Result<Vec<u8>> {
    let needed = tensor.range.end - tensor.range.start;
    let mut bytes = Vec::new();
    let out_of_memory = || Error::OutOfMemory { what: "a weight", needed: Bytes(needed) };
    let len = usize::try_from(needed).map_err(|_| out_of_memory())?;
    bytes.try_reserve_exact(len).map_err(|_| out_of_memory())?;
    bytes.resize(len, 0);
    reader.read(tensor, 0, &mut bytes)?;
    Ok(bytes)
}

fn row_bytes(encoding: Encoding, cols: usize) -> Result<usize> {
    encoding.row_bytes(cols).ok_or_else(|| Error::Request(format!("a row of {cols} weights")))
}
