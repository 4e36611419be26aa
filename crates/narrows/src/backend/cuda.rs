//! Steps on a CUDA device: residual stream and sums in float32, operands of matrix products in the encoding of the
//! matrix.

use std::ops::Range;

use narrows_kernels::{AttentionShape, Kernels, KvLayout, KvRow, Matrix, RowsMut, Segment};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{
    DEVICE_ALIGNMENT, DeviceArena, DevicePool, DeviceRegion, DeviceSlice, Pooled, Stream,
};
use narrows_stream::Held;

use super::{Activation, Backend, Step, Tile};
use crate::architecture::Architecture;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::routing::Routing;
use crate::sequence::{Cache, Sequence};

/// A CUDA device.
pub(crate) struct CudaBackend {
    device: Device,
    stream: Stream,
    architecture: Architecture,
    arena: DeviceArena,
    kv: DevicePool,
    layout: KvLayout,
    /// By [`Activation`], for as many rows as a step has at most.
    activations: Vec<DeviceSlice>,
    /// What a step is about, uploaded as one: see [`Tables`].
    tables: DeviceSlice,
    /// The routing of a mixture, uploaded as one: rows and weights.
    routed: DeviceSlice,
    scratch: DeviceSlice,
    packed: Vec<u8>,
    logits: Vec<f32>,
    scores: Vec<f32>,
    step: Now,
}

/// The step being computed.
#[derive(Default)]
struct Now {
    rows: usize,
    wanted: usize,
    /// Rows and width of the MLP being computed.
    mlp: (usize, usize),
    /// The parts of `routed`: rows and weights.
    routed: Option<(DeviceSlice, DeviceSlice)>,
    segments: Vec<Segment>,
    tables: Option<Tables<DeviceSlice>>,
}

/// The parts of what a step is about.
struct Tables<T> {
    embeddings: T,
    /// `[n]`, `0..n` as u32: the embeddings are gathered in their order.
    ids: T,
    cos: T,
    sin: T,
    /// `[KvRow; n]`
    kv: T,
    wanted: T,
}

/// Sizes that a step has at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Rows.
    pub(crate) rows: usize,
    /// Rows with logits.
    pub(crate) wanted: usize,
    /// Positions of the longest sequence.
    pub(crate) longest: usize,
}

impl Tables<usize> {
    /// Bytes of each part for a step of `n` rows.
    fn bytes(a: &Architecture, n: usize, wanted: usize) -> Self {
        let half = n * (a.head_dim / 2) * 4;
        Self {
            // As much as the widest encoding takes.
            embeddings: n * a.hidden_size * 4,
            ids: n * 4,
            cos: half,
            sin: half,
            kv: n * size_of::<KvRow>(),
            wanted: wanted * 4,
        }
    }

    fn total(&self) -> usize {
        [self.embeddings, self.ids, self.cos, self.sin, self.kv, self.wanted].map(rounded).iter().sum()
    }
}

const fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(DEVICE_ALIGNMENT)
}

/// Bytes of an activation; operands take up to those of a float.
fn bytes(activation: Activation, a: &Architecture, limits: Limits) -> usize {
    let rows = if activation == Activation::Logits { limits.wanted } else { limits.rows };
    rows * activation.width(a) * 4
}

impl CudaBackend {
    /// Device memory for a step within `limits`.
    pub(crate) fn activation_bytes(a: &Architecture, limits: Limits) -> Bytes {
        let activations: usize =
            Activation::ALL.iter().map(|activation| rounded(bytes(*activation, a, limits))).sum();
        let tables = Tables::bytes(a, limits.rows, limits.wanted).total();
        let scratch = rounded(Self::scratch_bytes(a, limits));
        Bytes((activations + tables + rounded(Self::routed_bytes(a, limits)) + scratch) as u64)
    }

    fn routed_bytes(a: &Architecture, limits: Limits) -> usize {
        let rows = a.experts.as_ref().map_or(0, |experts| Routing::most_rows(experts, limits.rows));
        2 * rounded(4 * rows)
    }

    fn scratch_bytes(a: &Architecture, limits: Limits) -> usize {
        Kernels::attention_scratch_bytes(limits.rows, a.heads, a.head_dim, limits.longest)
    }

    /// Device memory for norms and biases of `lens` elements.
    pub(crate) fn vector_bytes(lens: impl Iterator<Item = usize>) -> Bytes {
        Bytes(lens.map(|len| rounded(4 * len) as u64).sum())
    }

    /// Carves what steps need out of `arena`, with caches of `kv` bytes in that encoding.
    pub(crate) fn new(
        device: Device,
        stream: Stream,
        arena: DeviceArena,
        architecture: Architecture,
        kv: (Encoding, Bytes),
        limits: Limits,
    ) -> Result<Self> {
        let a = &architecture;
        let (kv_encoding, kv_bytes) = kv;
        let kv = DevicePool::new("KV caches", arena.carve(DevicePool::rounded(kv_bytes.get() as usize))?);
        let layout = KvLayout { encoding: kv_encoding, kv_heads: a.kv_heads, head_dim: a.head_dim };
        let carve = |activation: &Activation| arena.carve(bytes(*activation, a, limits));
        let activations = Activation::ALL.iter().map(carve).collect::<std::result::Result<_, _>>()?;
        let tables = arena.carve(Tables::bytes(a, limits.rows, limits.wanted).total())?;
        let routed = arena.carve(Self::routed_bytes(a, limits))?;
        let scratch = arena.carve(Self::scratch_bytes(a, limits))?;
        Ok(Self {
            device,
            stream,
            architecture,
            arena,
            kv,
            layout,
            activations,
            tables,
            routed,
            scratch,
            packed: Vec::new(),
            logits: Vec::new(),
            scores: Vec::new(),
            step: Now::default(),
        })
    }

    fn kernels(&self) -> &Kernels {
        self.device.kernels()
    }

    /// The rows of an activation that the step has.
    fn get(&self, activation: Activation, encoding: Encoding) -> Result<DeviceSlice> {
        let width = activation.width(&self.architecture);
        let (rows, width) = match activation {
            Activation::Logits => (self.step.wanted, width),
            Activation::Gate | Activation::Up | Activation::Activated => self.step.mlp,
            Activation::Routed | Activation::Expert => (self.step.mlp.0, width),
            // At the head only the wanted rows are left.
            _ => (self.step.rows, width),
        };
        let len = encoding.row_bytes(width).unwrap_or(usize::MAX).saturating_mul(rows);
        Ok(self.activations[activation as usize].slice(0..len)?)
    }

    fn f32s(&self, activation: Activation) -> Result<DeviceSlice> {
        self.get(activation, Encoding::F32)
    }

    fn tables(&self) -> Result<&Tables<DeviceSlice>> {
        self.step.tables.as_ref().ok_or_else(|| Error::Request("no step has begun".to_owned()))
    }

    /// Rows and weights of the routing in a range.
    fn routed(&self, chosen: Range<usize>) -> Result<(DeviceSlice, DeviceSlice)> {
        let none = || Error::Request("nothing was routed".to_owned());
        let (rows, weights) = self.step.routed.as_ref().ok_or_else(none)?;
        let bytes = 4 * chosen.start..4 * chosen.end;
        Ok((rows.slice(bytes.clone())?, weights.slice(bytes)?))
    }

    /// Puts the parts of a step one behind the other, each aligned, and uploads them as one.
    fn upload(&mut self, step: &Step<'_>, kv: &[KvRow]) -> Result<Tables<DeviceSlice>> {
        let ids: Vec<u32> = (0..).take(step.rows.len()).collect();
        let wanted: Vec<u32> = step.wanted.iter().map(|row| *row as u32).collect();
        self.packed.clear();
        let Self { packed, tables, .. } = self;
        let mut put = |bytes: &[u8]| {
            let start = packed.len();
            packed.extend_from_slice(bytes);
            packed.resize(rounded(packed.len()), 0);
            tables.slice(start..start + bytes.len())
        };
        let parts = Tables {
            embeddings: put(step.embeddings)?,
            ids: put(bytemuck::cast_slice(&ids))?,
            cos: put(bytemuck::cast_slice(step.cos))?,
            sin: put(bytemuck::cast_slice(step.sin))?,
            kv: put(bytemuck::cast_slice(kv))?,
            wanted: put(bytemuck::cast_slice(&wanted))?,
        };
        self.stream.upload(&self.packed, &self.tables.slice(0..self.packed.len())?)?;
        Ok(parts)
    }
}

impl Backend for CudaBackend {
    type Memory = DeviceRegion;
    type Vector = DeviceSlice;

    fn cache(&self) -> Cache {
        let layers = self.architecture.layers;
        Cache::Device(DeviceCache::new(self.kv.clone(), self.stream.clone(), self.layout, layers))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<DeviceSlice> {
        let slice = self.arena.carve(4 * values.len())?;
        self.stream.upload(bytemuck::cast_slice(&values), &slice)?;
        Ok(slice)
    }

    fn begin(&mut self, step: &Step<'_>, sequences: &mut [&mut Sequence]) -> Result<()> {
        let mut kv = Vec::with_capacity(step.rows.len());
        self.step.segments.clear();
        for (index, &(sequence, position)) in step.rows.iter().enumerate() {
            let cache = sequences[sequence].device_cache()?;
            kv.push(KvRow {
                base: cache.address(),
                capacity: cache.capacity as u32,
                position: position as u32,
            });
            match self.step.segments.last_mut() {
                Some(last) if index > 0 && step.rows[index - 1].0 == sequence => last.rows += 1,
                _ => self.step.segments.push(Segment { rows: 1, position }),
            }
        }
        self.step.rows = step.rows.len();
        self.step.wanted = step.wanted.len();
        let tables = self.upload(step, &kv)?;
        let hidden = self.f32s(Activation::Hidden)?;
        let width = self.architecture.hidden_size;
        let (table, ids) = (&tables.embeddings, &tables.ids);
        self.kernels().embed(&self.stream, table, step.encoding, width, ids, &hidden)?;
        self.step.tables = Some(tables);
        Ok(())
    }

    fn norm(&mut self, add: bool, weight: &DeviceSlice, eps: f32, encoding: Encoding) -> Result<()> {
        let (hidden, normed) = (self.f32s(Activation::Hidden)?, self.get(Activation::Normed, encoding)?);
        let delta = if add { Some(self.f32s(Activation::Projected)?) } else { None };
        Ok(self.kernels().rms_norm(&self.stream, &hidden, delta.as_ref(), weight, eps, encoding, &normed)?)
    }

    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, DeviceRegion>,
        from: Activation,
        to: Activation,
    ) -> Result<()> {
        let multiply = || -> Result<()> {
            let (memory, payload) =
                held.memory().ok_or_else(|| Error::Request("a tile without memory".to_owned()))?;
            let bytes = memory.slice().slice(payload)?;
            let weights = Matrix::new(&bytes, tile.encoding, tile.rows.len(), tile.cols)?;
            let x = self.get(from, tile.encoding.operand())?;
            let y = self.f32s(to)?;
            let y = RowsMut::new(&y, tile.of, tile.rows.start)?;
            Ok(self.kernels().linear(&self.stream, &weights, &x, &y)?)
        };
        multiply().map_err(|error| Error::Tile { tile: (tile.name)(), source: Box::new(error) })
    }

    fn add_bias(&mut self, bias: &DeviceSlice, to: Activation) -> Result<()> {
        Ok(self.kernels().add_bias(&self.stream, bias, &self.f32s(to)?)?)
    }

    fn norm_heads(&mut self, heads: Activation, weight: &DeviceSlice, eps: f32) -> Result<()> {
        Ok(self.kernels().rms_norm_in_place(&self.stream, &self.f32s(heads)?, weight, eps)?)
    }

    fn attention(
        &mut self,
        layer: usize,
        window: Option<usize>,
        _sequences: &mut [&mut Sequence],
        encoding: Encoding,
    ) -> Result<()> {
        let (a, stream, kernels) = (&self.architecture, &self.stream, self.kernels());
        let tables = self.tables()?;
        let (q, k, v) =
            (self.f32s(Activation::Query)?, self.f32s(Activation::Key)?, self.f32s(Activation::Value)?);
        kernels.rope(stream, &q, a.heads, a.head_dim, &tables.cos, &tables.sin)?;
        kernels.rope(stream, &k, a.kv_heads, a.head_dim, &tables.cos, &tables.sin)?;
        kernels.kv_write(stream, &k, &v, &tables.kv, &self.layout, layer)?;
        let shape = AttentionShape {
            heads: a.heads,
            scale: a.attention_scale(),
            window,
            segments: &self.step.segments,
        };
        let out = self.get(Activation::Attended, encoding)?;
        Ok(kernels.attention(
            stream,
            &q,
            &tables.kv,
            &self.layout,
            layer,
            &shape,
            &self.scratch,
            encoding,
            &out,
        )?)
    }

    fn shape_mlp(&mut self, rows: usize, width: usize) {
        self.step.mlp = (rows, width);
    }

    fn scores(&mut self, router: &DeviceSlice, count: usize) -> Result<&[f32]> {
        let router = Matrix::new(router, Encoding::F32, count, self.architecture.hidden_size)?;
        let len = self.step.rows * count;
        let scores = self.activations[Activation::Scores as usize].slice(0..4 * len)?;
        let x = self.f32s(Activation::Normed)?;
        self.kernels().linear(&self.stream, &router, &x, &RowsMut::new(&scores, count, 0)?)?;
        self.scores.resize(len, 0.0);
        self.stream.download(&scores, bytemuck::cast_slice_mut(&mut self.scores))?;
        Ok(&self.scores)
    }

    fn route(&mut self, routing: &Routing) -> Result<()> {
        let (rows, weights): (&[u8], &[u8]) =
            (bytemuck::cast_slice(&routing.rows), bytemuck::cast_slice(&routing.weights));
        let start = rounded(rows.len());
        self.packed.clear();
        self.packed.extend_from_slice(rows);
        self.packed.resize(start, 0);
        self.packed.extend_from_slice(weights);
        self.stream.upload(&self.packed, &self.routed.slice(0..self.packed.len())?)?;
        let parts = (self.routed.slice(0..rows.len())?, self.routed.slice(start..start + weights.len())?);
        self.step.routed = Some(parts);
        Ok(self.stream.zero(&self.f32s(Activation::Projected)?)?)
    }

    fn take_rows(&mut self, chosen: Range<usize>, encoding: Encoding) -> Result<()> {
        let (rows, _) = self.routed(chosen)?;
        let (normed, routed) =
            (self.get(Activation::Normed, encoding)?, self.get(Activation::Routed, encoding)?);
        let width = self.architecture.hidden_size;
        Ok(self.kernels().gather_rows(&self.stream, &normed, encoding, width, &rows, &routed)?)
    }

    fn add_expert(&mut self, chosen: Range<usize>) -> Result<()> {
        let (rows, weights) = self.routed(chosen)?;
        let (expert, projected) = (self.f32s(Activation::Expert)?, self.f32s(Activation::Projected)?);
        let width = self.architecture.hidden_size;
        Ok(self.kernels().scatter_add(&self.stream, &expert, width, &rows, &weights, &projected)?)
    }

    fn swiglu(&mut self, encoding: Encoding) -> Result<()> {
        let (gate, up) = (self.f32s(Activation::Gate)?, self.f32s(Activation::Up)?);
        let activated = self.get(Activation::Activated, encoding)?;
        Ok(self.kernels().swiglu(&self.stream, &gate, &up, encoding, &activated)?)
    }

    fn finish(&mut self, weight: &DeviceSlice, eps: f32, encoding: Encoding) -> Result<()> {
        if self.step.wanted == 0 {
            return Ok(());
        }
        let (hidden, projected) = (self.f32s(Activation::Hidden)?, self.f32s(Activation::Projected)?);
        self.kernels().add(&self.stream, &projected, &hidden)?;
        let wanted = self.tables()?.wanted.clone();
        // From here on the step has only the rows that come to logits.
        self.step.rows = self.step.wanted;
        let gathered = self.f32s(Activation::Projected)?;
        let width = self.architecture.hidden_size;
        self.kernels().embed(&self.stream, &hidden, Encoding::F32, width, &wanted, &gathered)?;
        let normed = self.get(Activation::Normed, encoding)?;
        Ok(self.kernels().rms_norm(&self.stream, &gathered, None, weight, eps, encoding, &normed)?)
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        let len = self.step.wanted * self.architecture.vocab_size;
        self.logits.reserve_exact(len.saturating_sub(self.logits.len()));
        self.logits.resize(len, 0.0);
        let logits = self.f32s(Activation::Logits)?;
        self.stream.download(&logits, bytemuck::cast_slice_mut(&mut self.logits))?;
        Ok(&mut self.logits)
    }
}

/// Keys and values of every layer in device memory.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    pool: DevicePool,
    stream: Stream,
    layout: KvLayout,
    layers: usize,
    capacity: usize,
    memory: Option<Pooled>,
}

impl DeviceCache {
    /// A cache with room for nothing.
    pub(crate) const fn new(pool: DevicePool, stream: Stream, layout: KvLayout, layers: usize) -> Self {
        Self { pool, stream, layout, layers, capacity: 0, memory: None }
    }

    /// Bytes of a cache of `capacity` positions.
    pub(crate) fn bytes(layout: &KvLayout, layers: usize, capacity: usize) -> usize {
        layout.layer_bytes(capacity).and_then(|bytes| bytes.checked_mul(layers)).unwrap_or(usize::MAX)
    }

    /// Makes room for `capacity` positions, keeping the first `used`.
    pub(crate) fn grow(&mut self, capacity: usize, used: usize) -> Result<()> {
        let bytes = Self::bytes(&self.layout, self.layers, capacity);
        if used == 0 {
            // The old range first: nobody needs it.
            self.memory = None;
        }
        let grown = self.pool.take(bytes)?;
        if let Some(old) = self.memory.take().filter(|_| used > 0) {
            let row = self.layout.encoding.row_bytes(self.layout.head_dim).unwrap_or(usize::MAX);
            // Keys and values of every head of every layer: runs of positions.
            for run in 0..self.layers * 2 * self.layout.kv_heads {
                let from = run * self.capacity * row;
                let to = run * capacity * row;
                self.stream.copy(
                    &old.slice().slice(from..from + used * row)?,
                    &grown.slice().slice(to..to + used * row)?,
                )?;
            }
        }
        self.memory = Some(grown);
        self.capacity = capacity;
        Ok(())
    }

    fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.slice().address())
    }
}
