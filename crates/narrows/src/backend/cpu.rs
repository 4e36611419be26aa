//! Steps on the CPU: everything in float32.

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use narrows_cpu::{Activation, AttentionRow, Cpu, KvView, Matrix, RowsMut, Scores};
use narrows_model::{
    Attend, Norm, NormKind, Op, Pairing, Program, Route, Rows, Value, VectorId, alibi_slopes,
};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::Region;
use narrows_stream::Held;

use super::{Backend, Step, Tile, Vectors};
use crate::decoder::first_not_finite;
use crate::error::{Error, Result};
use crate::lower::Lowered;
use crate::routing::{self, Routing};
use crate::sequence::{Cache, Sequence};
use crate::state;

/// The processor of this machine.
pub(crate) struct CpuBackend {
    cpu: Arc<Cpu>,
    lowered: Arc<Lowered>,
    kv_encoding: Encoding,
    /// They grow with the largest step and are reused.
    buffers: Vec<Vec<f32>>,
    /// The step being computed.
    step: Now,
    /// Rows and weights of a mixture.
    routed: (Vec<u32>, Vec<f32>),
}

/// What a step is about.
#[derive(Default)]
struct Now {
    rows: Vec<(usize, usize)>,
    wanted: Vec<usize>,
    /// Rows of the expert at hand.
    chosen: usize,
    angles: Vec<(Vec<f32>, Vec<f32>)>,
}

impl CpuBackend {
    pub(crate) fn new(cpu: Arc<Cpu>, lowered: Arc<Lowered>, kv_encoding: Encoding) -> Self {
        let buffers = vec![Vec::new(); lowered.buffers.len()];
        Self { cpu, lowered, kv_encoding, buffers, step: Now::default(), routed: Default::default() }
    }

    /// Bytes of values of a step of `rows` rows of which `wanted` come to logits.
    pub(crate) fn activation_bytes(lowered: &Lowered, rows: usize, wanted: usize) -> usize {
        let program = &lowered.program;
        let (of_row, of_wanted) = lowered.widths();
        let angles: usize = program.ropes.iter().map(|rope| rope.dims).sum();
        let row = 4 * (of_row + angles) + 8 * routing::most_rows(program, 1);
        row * rows + 4 * of_wanted * wanted
    }

    /// Elements that a value has in the step.
    fn len(&self, value: Value) -> usize {
        let placed = self.lowered.values[value.0];
        placed.width * self.rows(placed.rows)
    }

    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Step => self.step.rows.len(),
            Rows::Wanted => self.step.wanted.len(),
            Rows::Chosen => self.step.chosen,
        }
    }

    fn get(&self, value: Value) -> &[f32] {
        &self.buffers[self.lowered.values[value.0].buffer][..self.len(value)]
    }

    fn get_mut(&mut self, value: Value) -> &mut [f32] {
        let len = self.len(value);
        &mut self.buffers[self.lowered.values[value.0].buffer][..len]
    }

    /// Lends a value to be written while others are read: `work(self, values)`.
    fn with<R>(&mut self, value: Value, work: impl FnOnce(&Self, &mut [f32]) -> Result<R>) -> Result<R> {
        let (buffer, len) = (self.lowered.values[value.0].buffer, self.len(value));
        let mut values = mem::take(&mut self.buffers[buffer]);
        let result = match values.get_mut(..len) {
            Some(values) => work(self, values),
            None => Err(Error::Internal("a value shares memory with its operand")),
        };
        self.buffers[buffer] = values;
        result
    }

    fn attend(&mut self, a: &Attend, sequences: &mut [&mut Sequence]) -> Result<()> {
        let width = a.kv_heads * a.head_dim;
        let (keys, values) = (self.get(a.k).chunks_exact(width), self.get(a.v).chunks_exact(width));
        for (&(sequence, position), (key, value)) in self.step.rows.iter().zip(keys.zip(values)) {
            sequences[sequence].host_cache()?.write(&self.cpu, a.layer, position, key, value)?;
        }
        let rows = self.step.rows.iter().map(|&(sequence, position)| {
            let kv = sequences[sequence].host_view(a.layer)?;
            Ok(AttentionRow { kv, position, window: a.window })
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        self.with(a.to, |backend, to| {
            let slopes = a.alibi.then(|| alibi_slopes(a.heads));
            let scores = Scores { scale: a.scale, softcap: a.softcap, slopes: slopes.as_deref() };
            Ok(backend.cpu.attention(backend.get(a.q), &rows, a.heads, scores, to)?)
        })
    }
}

/// An activation function as the processor's operations name it.
const fn function(kind: narrows_model::Activation) -> Activation {
    match kind {
        narrows_model::Activation::Silu => Activation::Silu,
        narrows_model::Activation::GeluTanh => Activation::GeluTanh,
        narrows_model::Activation::Relu2 => Activation::Relu2,
        narrows_model::Activation::Sigmoid => Activation::Sigmoid,
    }
}

/// Makes a buffer that long without taking more memory than that, as a growing `Vec` otherwise would.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.reserve_exact(len.saturating_sub(buffer.len()));
    buffer.resize(len, 0.0);
}

impl Backend for CpuBackend {
    type Memory = Region;
    type Vector = Vec<f32>;

    fn cache(&self) -> Cache {
        Cache::Host(HostCache::new(&self.lowered.program, self.kv_encoding))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector> {
        Ok(values)
    }

    fn begin(&mut self, step: &Step<'_>, _sequences: &mut [&mut Sequence]) -> Result<()> {
        let n = step.rows.len();
        for (buffer, spec) in self.buffers.iter_mut().zip(&self.lowered.buffers) {
            let rows = if spec.wanted { step.wanted.len() } else { n };
            resize(buffer, rows * spec.width);
        }
        let now = &mut self.step;
        now.rows.clear();
        now.rows.extend_from_slice(step.rows);
        now.wanted.clear();
        now.wanted.extend_from_slice(step.wanted);
        now.angles.resize_with(step.angles.len(), Default::default);
        for (tables, given) in now.angles.iter_mut().zip(step.angles) {
            for (table, values) in [(&mut tables.0, &given.0), (&mut tables.1, &given.1)] {
                resize(table, values.len());
                table.copy_from_slice(values);
            }
        }
        self.with(Value(0), |backend, hidden| {
            Ok(backend.cpu.decode(step.encoding, step.embeddings, hidden)?)
        })
    }

    fn run(&mut self, op: &Op, vectors: &Vectors<Vec<f32>>, sequences: &mut [&mut Sequence]) -> Result<()> {
        match op {
            // The step began with them.
            Op::Embed { .. } => Ok(()),
            Op::Bias { vector, to } => {
                let bias = vectors.get(*vector)?;
                self.with(*to, |backend, to| Ok(backend.cpu.add_bias(bias, to)?))
            }
            Op::Rotate(rotate) => self.with(rotate.value, |backend, x| {
                let (cos, sin) = &backend.step.angles[rotate.rope.0];
                let (heads, head_dim) = (rotate.heads, rotate.head_dim);
                let rope = &backend.lowered.program.ropes[rotate.rope.0];
                let neighbours = rope.pairing == Pairing::Neighbours;
                Ok(backend.cpu.rope_in_part(x, heads, head_dim, neighbours, cos, sin)?)
            }),
            Op::Attend(attend) => self.attend(attend, sequences),
            Op::Activate(a) => self.with(a.to, |backend, to| {
                let up = a.up.map(|up| backend.get(up));
                Ok(backend.cpu.activate(function(a.kind), backend.get(a.gate), up, to)?)
            }),
            Op::Add { from, to } => {
                self.with(*to, |backend, to| Ok(backend.cpu.add(backend.get(*from), to)?))
            }
            Op::Zero { to } => {
                self.get_mut(*to).fill(0.0);
                Ok(())
            }
            Op::Wanted { from, to } => self.with(*to, |backend, to| {
                let from = backend.get(*from);
                let width = from.len() / backend.step.rows.len().max(1);
                for (to, row) in to.chunks_exact_mut(width.max(1)).zip(&backend.step.wanted) {
                    to.copy_from_slice(&from[row * width..(row + 1) * width]);
                }
                Ok(())
            }),
            Op::Scale { value, factor } => self.with(*value, |backend, x| {
                backend.cpu.scale(*factor, x);
                Ok(())
            }),
            Op::Softcap { value, cap } => self.with(*value, |backend, x| {
                backend.cpu.softcap(*cap, x);
                Ok(())
            }),
            Op::Clamp { value, limit } => self.with(*value, |backend, x| {
                backend.cpu.clamp(*limit, x);
                Ok(())
            }),
            Op::Multiply { value, vector } => {
                let factors = vectors.get(*vector)?;
                self.with(*value, |backend, x| Ok(backend.cpu.multiply(factors, x)?))
            }
            Op::Norm(norm) => self.norm(norm, vectors),
            Op::Linear(_) | Op::Route(_) | Op::AddShared { .. } | Op::Experts(_) => {
                Err(Error::Internal("the decoder runs this operation itself"))
            }
        }
    }

    fn norm(&mut self, norm: &Norm, vectors: &Vectors<Vec<f32>>) -> Result<()> {
        if let Some(add) = norm.add {
            self.with(norm.from, |backend, from| Ok(backend.cpu.add(backend.get(add), from)?))?;
        }
        let weight = vectors.get(norm.weight)?;
        let bias = norm.bias.map(|id| vectors.get(id)).transpose()?;
        let piece = self.lowered.values[norm.from.0].width / norm.heads.max(1);
        self.with(norm.to, |backend, to| {
            if norm.from != norm.to {
                to.copy_from_slice(backend.get(norm.from));
            }
            let cpu = &backend.cpu;
            match norm.kind {
                NormKind::Rms if weight.len() == piece => Ok(cpu.rms_norm_in_place(to, weight, norm.eps)?),
                NormKind::Rms => Ok(cpu.rms_norm_pieces(to, piece, weight, norm.eps)?),
                NormKind::Layer => {
                    let bias = bias.map(|bias| &bias[..]);
                    Ok(cpu.layer_norm_in_place(to, piece, weight, bias, norm.eps)?)
                }
            }
        })
    }

    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, Region>,
        from: Value,
        to: Value,
        column: usize,
    ) -> Result<()> {
        let stride = self.lowered.values[to.0].width;
        self.with(to, |backend, to| {
            let weights = Matrix::new(tile.encoding, tile.rows, tile.cols, held.bytes())?;
            let weights = weights.slice(tile.part.clone())?;
            Ok(backend.cpu.linear(weights, backend.get(from), RowsMut::new(to, stride, column)?)?)
        })
    }

    fn scores(
        &mut self,
        route: &Route,
        vector: VectorId,
        count: usize,
        vectors: &Vectors<Vec<f32>>,
    ) -> Result<&[f32]> {
        let (router, cols) = (vectors.get(vector)?, self.lowered.values[route.from.0].width);
        let len = self.step.rows.len() * count;
        self.with(route.scores, |backend, scores| {
            let scores = scores.get_mut(..len).ok_or(Error::Internal("more scores than experts"))?;
            let router = Matrix::new(Encoding::F32, count, cols, bytemuck::cast_slice(router))?;
            Ok(backend.cpu.linear(router, backend.get(route.from), RowsMut::new(scores, count, 0)?)?)
        })?;
        Ok(&self.get(route.scores)[..len])
    }

    fn route(&mut self, routing: &Routing) -> Result<()> {
        self.routed.0.clone_from(&routing.rows);
        self.routed.1.clone_from(&routing.weights);
        Ok(())
    }

    fn choose(&mut self, rows: usize) {
        self.step.chosen = rows;
    }

    fn take_rows(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()> {
        let cols = self.lowered.values[from.0].width;
        self.with(to, |backend, to| {
            Ok(backend.cpu.gather_rows(backend.get(from), cols, &backend.routed.0[chosen], to)?)
        })
    }

    fn add_routed(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()> {
        let cols = self.lowered.values[from.0].width;
        self.with(to, |backend, to| {
            let (rows, weights) = (&backend.routed.0[chosen.clone()], &backend.routed.1[chosen]);
            Ok(backend.cpu.scatter_add(backend.get(from), cols, rows, weights, to)?)
        })
    }

    fn not_finite(&self) -> Option<usize> {
        first_not_finite(self.get(Value(0)), self.lowered.program.dims.hidden)
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        let logits = self.lowered.program.logits;
        Ok(self.get_mut(logits))
    }
}

/// Keys and values of every layer in host memory.
#[derive(Debug)]
pub(crate) struct HostCache {
    encoding: Encoding,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer, each `[kv_heads, capacity, head_dim]`: a head's positions lie together.
#[derive(Debug, Default)]
struct LayerCache {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl HostCache {
    /// A cache with room for nothing.
    pub(crate) fn new(program: &Program, encoding: Encoding) -> Self {
        let (kv_heads, head_dim) = state::shape(program);
        let layers = program.states.iter().map(|_| LayerCache::default()).collect();
        Self { encoding, kv_heads, head_dim, capacity: 0, layers }
    }

    /// Makes room for `capacity` positions, keeping the first `used`.
    pub(crate) fn grow(&mut self, capacity: usize, used: usize) -> Result<()> {
        let out_of_memory = |needed: usize| Error::OutOfMemory {
            what: "the KV cache",
            needed: Bytes((needed as u64).saturating_mul(2 * self.layers.len() as u64)),
        };
        let head = self.encoding.row_bytes(self.head_dim).ok_or_else(|| out_of_memory(usize::MAX))?;
        let buffer = head.checked_mul(self.kv_heads).and_then(|bytes| bytes.checked_mul(capacity));
        let buffer = buffer.ok_or_else(|| out_of_memory(usize::MAX))?;
        let (old, new, used) = (self.capacity * head, capacity * head, used * head);
        let error = out_of_memory(buffer);
        for LayerCache { keys, values } in &mut self.layers {
            for cache in [keys, values] {
                let mut grown = Vec::new();
                if grown.try_reserve_exact(buffer).is_err() {
                    return Err(error);
                }
                grown.resize(buffer, 0);
                for head in 0..self.kv_heads {
                    let from = head * old..head * old + used;
                    grown[head * new..head * new + used].copy_from_slice(&cache[from]);
                }
                *cache = grown;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    pub(crate) fn view(&self, layer: usize) -> KvView<'_> {
        let LayerCache { keys, values } = &self.layers[layer];
        KvView {
            encoding: self.encoding,
            keys,
            values,
            capacity: self.capacity,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Stores the key and value of `position`, each `[kv_heads, head_dim]`.
    fn write(&mut self, cpu: &Cpu, layer: usize, position: usize, key: &[f32], value: &[f32]) -> Result<()> {
        let LayerCache { keys, values } = &mut self.layers[layer];
        for (source, cache) in [(key, keys), (value, values)] {
            let row = cache.len() / (self.kv_heads * self.capacity);
            for (head, source) in source.chunks_exact(self.head_dim).enumerate() {
                let start = (head * self.capacity + position) * row;
                cpu.encode(source, self.encoding, &mut cache[start..start + row])?;
            }
        }
        Ok(())
    }
}
