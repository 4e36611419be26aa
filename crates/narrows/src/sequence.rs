//! A sequence of tokens and its KV cache.

use narrows_cpu::KvView;
use narrows_shard::{Bytes, Encoding};
use narrows_staging::{Budget, Reservation};

use crate::architecture::Architecture;
use crate::error::{Error, Result};

/// One sequence: how far it has come, and the keys and values of every position so far.
#[derive(Debug)]
pub(crate) struct Sequence {
    len: usize,
    capacity: usize,
    /// Positions that the rotary embedding is told of: a prompt counts whole, however it is cut into steps.
    announced: usize,
    encoding: Encoding,
    kv_heads: usize,
    head_dim: usize,
    layers: Vec<LayerCache>,
    /// The part of the KV budget that the caches take.
    memory: Reservation,
}

/// Keys and values of one layer, each `[kv_heads, capacity, head_dim]`: a head's positions lie together.
#[derive(Debug, Default)]
struct LayerCache {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Sequence {
    /// An empty sequence with room for `capacity` positions.
    pub(crate) fn new(
        architecture: &Architecture,
        encoding: Encoding,
        capacity: usize,
        budget: &Budget,
    ) -> Result<Self> {
        let layers = architecture.layers;
        let mut sequence = Self {
            len: 0,
            capacity: 0,
            announced: 0,
            encoding,
            kv_heads: architecture.kv_heads,
            head_dim: architecture.head_dim,
            layers: std::iter::repeat_with(LayerCache::default).take(layers).collect(),
            memory: budget.reserve("KV cache", Bytes(0))?,
        };
        sequence.grow(capacity)?;
        Ok(sequence)
    }

    /// Makes room for `capacity` positions, keeping what is there.
    pub(crate) fn grow(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let out_of_memory = |needed: Option<u64>| Error::OutOfMemory {
            what: "the KV cache",
            needed: Bytes(needed.unwrap_or(u64::MAX)),
        };
        let head_bytes = self.encoding.row_bytes(self.head_dim).ok_or_else(|| out_of_memory(None))?;
        let buffer = head_bytes.checked_mul(self.kv_heads).and_then(|bytes| bytes.checked_mul(capacity));
        let total = buffer.and_then(|bytes| (bytes as u64).checked_mul(2 * self.layers.len() as u64));
        let buffer = buffer.ok_or_else(|| out_of_memory(None))?;
        let total = total.ok_or_else(|| out_of_memory(None))?;
        self.memory
            .grow(Bytes(total).saturating_sub(self.memory.bytes()))
            .map_err(|_| out_of_memory(Some(total)))?;
        let (old, new) = (self.capacity * head_bytes, capacity * head_bytes);
        let used = self.len * head_bytes;
        for LayerCache { keys, values } in &mut self.layers {
            for cache in [keys, values] {
                let mut grown = Vec::new();
                grown.try_reserve_exact(buffer).map_err(|_| out_of_memory(Some(total)))?;
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

    /// Positions computed so far.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Positions that it has room for.
    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says that the sequence will reach `len` positions before any of its results is looked at.
    ///
    /// A rotary embedding that depends on the length (dynamic NTK) sees a prompt as one whole, in however
    /// many steps it is computed.
    pub(crate) fn announce(&mut self, len: usize) {
        self.announced = self.announced.max(len);
    }

    /// Forgets every position from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.announced = self.len;
    }

    pub(crate) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }

    /// The length that the rotary embedding of the row at `position` is made for.
    pub(crate) fn rope_length(&self, position: usize) -> usize {
        self.announced.max(position + 1)
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
    pub(crate) fn write(
        &mut self,
        cpu: &narrows_cpu::Cpu,
        layer: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) -> Result<()> {
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
