//! Steps on the CPU: everything in float32.

use std::mem;
use std::ops::Range;

use narrows_cpu::{AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::Region;
use narrows_stream::Held;

use super::{Activation, Backend, Step, Tile};
use crate::architecture::Architecture;
use crate::decoder::first_not_finite;
use crate::error::{Error, Result};
use crate::routing::Routing;
use crate::sequence::{Cache, Sequence};

/// The processor of this machine.
pub(crate) struct CpuBackend {
    cpu: Cpu,
    architecture: Architecture,
    kv_encoding: Encoding,
    /// By [`Activation`]. They grow with the largest step and are reused.
    activations: [Vec<f32>; Activation::ALL.len()],
    /// `[n, head_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    rows: Vec<(usize, usize)>,
    wanted: Vec<usize>,
    /// Rows and weights of a mixture.
    routed: (Vec<u32>, Vec<f32>),
}

impl CpuBackend {
    pub(crate) fn new(cpu: Cpu, architecture: Architecture, kv_encoding: Encoding) -> Self {
        Self {
            cpu,
            architecture,
            kv_encoding,
            activations: [const { Vec::new() }; Activation::ALL.len()],
            cos: Vec::new(),
            sin: Vec::new(),
            rows: Vec::new(),
            wanted: Vec::new(),
            routed: Default::default(),
        }
    }

    /// Bytes of activations of a step of `rows` rows of which `wanted` come to logits.
    pub(crate) fn activation_bytes(a: &Architecture, rows: usize, wanted: usize) -> usize {
        let width = |activation: &Activation| activation.width(a) * 4;
        let (logits, others): (Vec<_>, Vec<_>) =
            Activation::ALL.iter().partition(|activation| **activation == Activation::Logits);
        let routed = a.experts.as_ref().map_or(0, |experts| 8 * Routing::most_rows(experts, 1));
        let row: usize = others.into_iter().map(width).sum::<usize>() + 4 * a.head_dim + routed;
        row * rows + logits.into_iter().map(width).sum::<usize>() * wanted
    }

    /// Lends an activation to be written while others are read.
    fn take(&mut self, activation: Activation) -> Vec<f32> {
        mem::take(&mut self.activations[activation as usize])
    }

    fn put(&mut self, activation: Activation, values: Vec<f32>) {
        self.activations[activation as usize] = values;
    }

    fn get(&self, activation: Activation) -> &[f32] {
        &self.activations[activation as usize]
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
        Cache::Host(HostCache::new(&self.architecture, self.kv_encoding))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector> {
        Ok(values)
    }

    fn begin(&mut self, step: &Step<'_>, _sequences: &mut [&mut Sequence]) -> Result<()> {
        let n = step.rows.len();
        for activation in Activation::ALL {
            let rows = if activation == Activation::Logits { step.wanted.len() } else { n };
            let width = activation.width(&self.architecture);
            resize(&mut self.activations[activation as usize], rows * width);
        }
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        self.wanted.clear();
        self.wanted.extend_from_slice(step.wanted);
        for (table, values) in [(&mut self.cos, step.cos), (&mut self.sin, step.sin)] {
            resize(table, values.len());
            table.copy_from_slice(values);
        }
        let hidden = &mut self.activations[Activation::Hidden as usize];
        Ok(self.cpu.decode(step.encoding, step.embeddings, hidden)?)
    }

    fn norm(&mut self, add: bool, weight: &Vec<f32>, eps: f32, _encoding: Encoding) -> Result<()> {
        let mut hidden = self.take(Activation::Hidden);
        if add {
            self.cpu.add(self.get(Activation::Projected), &mut hidden)?;
        }
        self.cpu.rms_norm(&hidden, weight, eps, &mut self.activations[Activation::Normed as usize])?;
        self.put(Activation::Hidden, hidden);
        Ok(())
    }

    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, Region>,
        from: Activation,
        to: Activation,
    ) -> Result<()> {
        let mut y = self.take(to);
        let weights = Matrix::new(tile.encoding, tile.rows.len(), tile.cols, held.bytes())?;
        self.cpu.linear(weights, self.get(from), RowsMut::new(&mut y, tile.of, tile.rows.start)?)?;
        self.put(to, y);
        Ok(())
    }

    fn add_bias(&mut self, bias: &Vec<f32>, to: Activation) -> Result<()> {
        Ok(self.cpu.add_bias(bias, &mut self.activations[to as usize])?)
    }

    fn norm_heads(&mut self, heads: Activation, weight: &Vec<f32>, eps: f32) -> Result<()> {
        Ok(self.cpu.rms_norm_in_place(&mut self.activations[heads as usize], weight, eps)?)
    }

    fn attention(
        &mut self,
        layer: usize,
        window: Option<usize>,
        sequences: &mut [&mut Sequence],
        _encoding: Encoding,
    ) -> Result<()> {
        let a = &self.architecture;
        let Self { cpu, activations, cos, sin, rows, .. } = self;
        for (activation, heads) in [(Activation::Query, a.heads), (Activation::Key, a.kv_heads)] {
            cpu.rope(&mut activations[activation as usize], heads, a.head_dim, cos, sin)?;
        }
        let width = a.kv_size();
        let keys = activations[Activation::Key as usize].chunks_exact(width);
        let values = activations[Activation::Value as usize].chunks_exact(width);
        for (&(sequence, position), (key, value)) in rows.iter().zip(keys.zip(values)) {
            sequences[sequence].host_cache()?.write(cpu, layer, position, key, value)?;
        }
        let attention = rows
            .iter()
            .map(|&(sequence, position)| {
                Ok(AttentionRow { kv: sequences[sequence].host_view(layer)?, position, window })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut attended = mem::take(&mut activations[Activation::Attended as usize]);
        let query = &activations[Activation::Query as usize];
        cpu.attention(query, &attention, a.heads, a.attention_scale(), &mut attended)?;
        activations[Activation::Attended as usize] = attended;
        Ok(())
    }

    fn shape_mlp(&mut self, rows: usize, width: usize) {
        let hidden = Activation::Expert.width(&self.architecture);
        let mlp = [Activation::Gate, Activation::Up, Activation::Activated].map(|mlp| (mlp, width));
        for (activation, width) in
            mlp.into_iter().chain([(Activation::Routed, hidden), (Activation::Expert, hidden)])
        {
            resize(&mut self.activations[activation as usize], rows * width);
        }
    }

    fn scores(&mut self, router: &Vec<f32>, count: usize) -> Result<&[f32]> {
        let cols = self.architecture.hidden_size;
        let mut scores = self.take(Activation::Scores);
        resize(&mut scores, self.rows.len() * count);
        let router = Matrix::new(Encoding::F32, count, cols, bytemuck::cast_slice(router))?;
        self.cpu.linear(router, self.get(Activation::Normed), RowsMut::new(&mut scores, count, 0)?)?;
        self.put(Activation::Scores, scores);
        Ok(self.get(Activation::Scores))
    }

    fn route(&mut self, routing: &Routing) -> Result<()> {
        self.routed.0.clone_from(&routing.rows);
        self.routed.1.clone_from(&routing.weights);
        self.activations[Activation::Projected as usize].fill(0.0);
        Ok(())
    }

    fn take_rows(&mut self, chosen: Range<usize>, _encoding: Encoding) -> Result<()> {
        let mut routed = self.take(Activation::Routed);
        let (normed, cols) = (self.get(Activation::Normed), self.architecture.hidden_size);
        self.cpu.gather_rows(normed, cols, &self.routed.0[chosen], &mut routed)?;
        self.put(Activation::Routed, routed);
        Ok(())
    }

    fn add_expert(&mut self, chosen: Range<usize>) -> Result<()> {
        let mut projected = self.take(Activation::Projected);
        let (rows, weights) = (&self.routed.0[chosen.clone()], &self.routed.1[chosen]);
        let (expert, cols) = (self.get(Activation::Expert), self.architecture.hidden_size);
        self.cpu.scatter_add(expert, cols, rows, weights, &mut projected)?;
        self.put(Activation::Projected, projected);
        Ok(())
    }

    fn swiglu(&mut self, _encoding: Encoding) -> Result<()> {
        self.activations.swap(Activation::Gate as usize, Activation::Activated as usize);
        let mut activated = self.take(Activation::Activated);
        self.cpu.swiglu(&mut activated, self.get(Activation::Up))?;
        self.put(Activation::Activated, activated);
        Ok(())
    }

    fn finish(&mut self, weight: &Vec<f32>, eps: f32, _encoding: Encoding) -> Result<()> {
        let mut hidden = self.take(Activation::Hidden);
        self.cpu.add(self.get(Activation::Projected), &mut hidden)?;
        let width = self.architecture.hidden_size;
        for (to, row) in self.wanted.iter().enumerate() {
            hidden.copy_within(row * width..(row + 1) * width, to * width);
        }
        let wanted = self.wanted.len() * width;
        let normed = &mut self.activations[Activation::Normed as usize];
        normed.truncate(wanted);
        self.cpu.rms_norm(&hidden[..wanted], weight, eps, normed)?;
        self.put(Activation::Hidden, hidden);
        Ok(())
    }

    fn not_finite(&self) -> Option<usize> {
        first_not_finite(self.get(Activation::Projected), self.architecture.hidden_size)
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        Ok(&mut self.activations[Activation::Logits as usize])
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
    pub(crate) fn new(a: &Architecture, encoding: Encoding) -> Self {
        Self {
            encoding,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            capacity: 0,
            layers: std::iter::repeat_with(LayerCache::default).take(a.layers).collect(),
        }
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
