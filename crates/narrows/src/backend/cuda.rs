//! Steps on a CUDA device: residual stream and sums in float32, operands of matrix products in the encoding of the
//! matrix.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use narrows_kernels::{
    Activation, AttentionShape, Kernels, KvLayout, KvRow, Matrix, PieceNormShape, RowsMut, Segment,
};
use narrows_model::{
    Attend, Norm, NormKind, Op, Pairing, Program, Rotate, Route, Rows, Value, VectorId, alibi_slopes,
};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::device::{
    DEVICE_ALIGNMENT, DeviceArena, DevicePool, DeviceRegion, DeviceSlice, Pooled, Stream,
};
use narrows_stream::Held;

use super::{Backend, Step, Tile, Vectors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::lower::Lowered;
use crate::routing::{self, Routing};
use crate::sequence::{Cache, Sequence};
use crate::state;

/// A CUDA device.
pub(crate) struct CudaBackend {
    device: Device,
    stream: Stream,
    lowered: Arc<Lowered>,
    arena: DeviceArena,
    kv: DevicePool,
    layout: KvLayout,
    /// For as many rows as a step has at most.
    buffers: Vec<DeviceSlice>,
    /// Operands of products that take a value in another encoding than it is made in.
    operands: DeviceSlice,
    /// The value and the encoding that `operands` holds.
    held: Option<(Value, Encoding)>,
    /// What a step is about, uploaded as one: see [`Tables`].
    tables: DeviceSlice,
    /// The routing of a mixture, uploaded as one: rows and weights.
    routed: DeviceSlice,
    scratch: DeviceSlice,
    /// The slopes of attentions that have some, by their number of heads.
    slopes: BTreeMap<usize, DeviceSlice>,
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
    /// Rows of the expert at hand.
    chosen: usize,
    /// The parts of `routed`: rows and weights.
    routed: Option<(DeviceSlice, DeviceSlice)>,
    segments: Vec<Segment>,
    tables: Option<Tables<DeviceSlice, Vec<(DeviceSlice, DeviceSlice)>>>,
}

/// The parts of what a step is about.
struct Tables<T, A> {
    embeddings: T,
    /// `[n]`, `0..n` as u32: the embeddings are gathered in their order.
    ids: T,
    /// Cosines and sines of each rotary embedding.
    angles: A,
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

/// Bytes of all tables of a step of `n` rows.
fn table_bytes(program: &Program, n: usize, wanted: usize) -> usize {
    // Embeddings as much as the widest encoding takes.
    let parts = [n * program.dims.hidden * 4, n * 4, n * size_of::<KvRow>(), wanted * 4];
    let angles: usize = program.ropes.iter().map(|rope| 2 * rounded(n * (rope.dims / 2) * 4)).sum();
    parts.map(rounded).iter().sum::<usize>() + angles
}

const fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(DEVICE_ALIGNMENT)
}

/// Bytes of each buffer; operands take up to those of a float.
fn buffer_bytes(lowered: &Lowered, limits: Limits) -> impl Iterator<Item = usize> + '_ {
    let rows = move |wanted: bool| if wanted { limits.wanted } else { limits.rows };
    lowered.buffers.iter().map(move |buffer| 4 * rows(buffer.wanted) * buffer.width)
}

/// An activation function as kernels name it.
const fn function(kind: narrows_model::Activation) -> Activation {
    match kind {
        narrows_model::Activation::Silu => Activation::Silu,
        narrows_model::Activation::GeluTanh => Activation::GeluTanh,
        narrows_model::Activation::Relu2 => Activation::Relu2,
        narrows_model::Activation::Sigmoid => Activation::Sigmoid,
    }
}

/// Bytes of the widest operand that a product takes in another encoding than it is made in.
fn operand_bytes(lowered: &Lowered, limits: Limits) -> usize {
    4 * lowered.cast * limits.rows.max(limits.wanted)
}

/// The numbers of heads of attentions whose scores sink with the distance.
fn slopes_of(program: &Program) -> BTreeSet<usize> {
    program.attentions().filter(|attend| attend.alibi).map(|attend| attend.heads).collect()
}

impl CudaBackend {
    /// Device memory for a step within `limits`.
    pub(crate) fn activation_bytes(lowered: &Lowered, limits: Limits) -> Bytes {
        let buffers: usize = buffer_bytes(lowered, limits).map(rounded).sum();
        let tables = table_bytes(&lowered.program, limits.rows, limits.wanted);
        let scratch = rounded(Self::scratch_bytes(&lowered.program, limits));
        let routed = rounded(Self::routed_bytes(&lowered.program, limits));
        let slopes: usize = slopes_of(&lowered.program).into_iter().map(|heads| rounded(4 * heads)).sum();
        Bytes((buffers + rounded(operand_bytes(lowered, limits)) + tables + routed + scratch + slopes) as u64)
    }

    fn routed_bytes(program: &Program, limits: Limits) -> usize {
        2 * rounded(4 * routing::most_rows(program, limits.rows))
    }

    fn scratch_bytes(program: &Program, limits: Limits) -> usize {
        let bytes =
            |a: &Attend| Kernels::attention_scratch_bytes(limits.rows, a.heads, a.head_dim, limits.longest);
        program.attentions().map(bytes).max().unwrap_or(0)
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
        lowered: Arc<Lowered>,
        kv: (Encoding, Bytes),
        limits: Limits,
    ) -> Result<Self> {
        let program = &lowered.program;
        let (kv_encoding, kv_bytes) = kv;
        let kv = DevicePool::new("KV caches", arena.carve(DevicePool::rounded(kv_bytes.get() as usize))?);
        let (kv_heads, head_dim) = state::shape(program);
        let layout = KvLayout { encoding: kv_encoding, kv_heads, head_dim };
        let carve = |bytes| arena.carve(bytes);
        let buffers = buffer_bytes(&lowered, limits).map(carve).collect::<std::result::Result<_, _>>()?;
        let operands = arena.carve(operand_bytes(&lowered, limits))?;
        let tables = arena.carve(table_bytes(program, limits.rows, limits.wanted))?;
        let routed = arena.carve(Self::routed_bytes(program, limits))?;
        let scratch = arena.carve(Self::scratch_bytes(program, limits))?;
        let mut slopes = BTreeMap::new();
        for heads in slopes_of(program) {
            let slice = arena.carve(4 * heads)?;
            stream.upload(bytemuck::cast_slice(&alibi_slopes(heads)), &slice)?;
            slopes.insert(heads, slice);
        }
        Ok(Self {
            device,
            stream,
            arena,
            kv,
            layout,
            buffers,
            operands,
            held: None,
            tables,
            routed,
            scratch,
            slopes,
            packed: Vec::new(),
            logits: Vec::new(),
            scores: Vec::new(),
            step: Now::default(),
            lowered,
        })
    }

    fn kernels(&self) -> &Kernels {
        self.device.kernels()
    }

    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Step => self.step.rows,
            Rows::Wanted => self.step.wanted,
            Rows::Chosen => self.step.chosen,
        }
    }

    /// The rows of a value that the step has, in the encoding that it is made in.
    fn get(&self, value: Value) -> Result<DeviceSlice> {
        let placed = self.lowered.values[value.0];
        let row = placed.encoding.row_bytes(placed.width).unwrap_or(usize::MAX);
        let len = row.saturating_mul(self.rows(placed.rows));
        Ok(self.buffers[placed.buffer].slice(0..len)?)
    }

    fn encoding(&self, value: Value) -> Encoding {
        self.lowered.values[value.0].encoding
    }

    /// A value as the operand of a product.
    fn operand(&mut self, value: Value, encoding: Encoding) -> Result<DeviceSlice> {
        let placed = self.lowered.values[value.0];
        if placed.encoding == encoding {
            return self.get(value);
        }
        let row = encoding.row_bytes(placed.width).unwrap_or(usize::MAX);
        let operand = self.operands.slice(0..row.saturating_mul(self.rows(placed.rows)))?;
        if self.held != Some((value, encoding)) {
            let from = self.get(value)?;
            self.kernels().activate(&self.stream, Activation::Identity, &from, None, encoding, &operand)?;
            self.held = Some((value, encoding));
        }
        Ok(operand)
    }

    /// Says that a value is about to be written: what was made of it is no longer what it is.
    fn written(&mut self, value: Value) {
        if self.held.is_some_and(|(held, _)| held == value) {
            self.held = None;
        }
    }

    fn tables(&self) -> Result<&Tables<DeviceSlice, Vec<(DeviceSlice, DeviceSlice)>>> {
        self.step.tables.as_ref().ok_or(Error::Internal("no step has begun"))
    }

    /// Rows and weights of the routing in a range.
    fn routed(&self, chosen: Range<usize>) -> Result<(DeviceSlice, DeviceSlice)> {
        let (rows, weights) = self.step.routed.as_ref().ok_or(Error::Internal("nothing was routed"))?;
        let bytes = 4 * chosen.start..4 * chosen.end;
        Ok((rows.slice(bytes.clone())?, weights.slice(bytes)?))
    }

    /// Puts the parts of a step one behind the other, each aligned, and uploads them as one.
    fn upload(&mut self, step: &Step<'_>, kv: &[KvRow]) -> Result<()> {
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
            angles: step
                .angles
                .iter()
                .map(|(cos, sin)| Ok((put(bytemuck::cast_slice(cos))?, put(bytemuck::cast_slice(sin))?)))
                .collect::<Result<_>>()?,
            kv: put(bytemuck::cast_slice(kv))?,
            wanted: put(bytemuck::cast_slice(&wanted))?,
        };
        self.stream.upload(&self.packed, &self.tables.slice(0..self.packed.len())?)?;
        self.step.tables = Some(parts);
        Ok(())
    }

    fn attend(&mut self, a: &Attend) -> Result<()> {
        let (stream, kernels) = (&self.stream, self.kernels());
        let tables = self.tables()?;
        let (q, k, v) = (self.get(a.q)?, self.get(a.k)?, self.get(a.v)?);
        kernels.kv_write(stream, &k, &v, &tables.kv, &self.layout, a.layer)?;
        let slopes = a.alibi.then(|| self.slopes.get(&a.heads).ok_or(Error::Internal("no slopes are there")));
        let shape = AttentionShape {
            heads: a.heads,
            scale: a.scale,
            softcap: a.softcap,
            slopes: slopes.transpose()?,
            window: a.window,
            segments: &self.step.segments,
        };
        let (out, encoding) = (self.get(a.to)?, self.encoding(a.to));
        Ok(kernels.attention(
            stream,
            &q,
            &tables.kv,
            &self.layout,
            a.layer,
            &shape,
            &self.scratch,
            encoding,
            &out,
        )?)
    }
}

impl CudaBackend {
    fn rotate(&self, rotate: &Rotate) -> Result<()> {
        let (stream, kernels) = (&self.stream, self.kernels());
        let (cos, sin) = &self.tables()?.angles[rotate.rope.0];
        let Rotate { heads, head_dim, .. } = *rotate;
        let (x, rope) = (self.get(rotate.value)?, &self.lowered.program.ropes[rotate.rope.0]);
        let neighbours = rope.pairing == Pairing::Neighbours;
        if rope.dims == head_dim && !neighbours {
            return Ok(kernels.rope(stream, &x, heads, head_dim, cos, sin)?);
        }
        Ok(kernels.rope_in_part(stream, &x, heads, head_dim, neighbours, cos, sin)?)
    }

    /// Norms whose result is float32 whatever takes it.
    fn piece_norm(&self, norm: &Norm, piece: usize, vectors: &Vectors<DeviceSlice>) -> Result<()> {
        if self.encoding(norm.to) != Encoding::F32 {
            return Err(Error::Internal("such a norm is made in float32"));
        }
        let (from, to) = (self.get(norm.from)?, self.get(norm.to)?);
        if let Some(add) = norm.add {
            self.kernels().add(&self.stream, &self.get(add)?, &from)?;
        }
        let shape = PieceNormShape {
            piece,
            centred: norm.kind == NormKind::Layer,
            weight: vectors.get(norm.weight)?,
            bias: norm.bias.map(|id| vectors.get(id)).transpose()?,
            eps: norm.eps,
        };
        Ok(self.kernels().piece_norm(&self.stream, &from, &shape, &to)?)
    }
}

impl Backend for CudaBackend {
    type Memory = DeviceRegion;
    type Vector = DeviceSlice;

    fn cache(&self) -> Cache {
        let layers = self.lowered.program.states.len();
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
        self.held = None;
        self.upload(step, &kv)?;
        let (hidden, width) = (self.get(Value(0))?, self.lowered.program.dims.hidden);
        let tables = self.tables()?;
        let (table, ids) = (&tables.embeddings, &tables.ids);
        Ok(self.kernels().embed(&self.stream, table, step.encoding, width, ids, &hidden)?)
    }

    fn run(
        &mut self,
        op: &Op,
        vectors: &Vectors<DeviceSlice>,
        _sequences: &mut [&mut Sequence],
    ) -> Result<()> {
        for value in crate::lower::writes(op) {
            self.written(value);
        }
        let (stream, kernels) = (&self.stream, self.kernels());
        match op {
            // The step began with them.
            Op::Embed { .. } => Ok(()),
            Op::Bias { vector, to } => {
                Ok(kernels.add_bias(stream, vectors.get(*vector)?, &self.get(*to)?)?)
            }
            Op::Rotate(rotate) => self.rotate(rotate),
            Op::Attend(attend) => self.attend(attend),
            Op::Activate(a) => {
                let up = a.up.map(|up| self.get(up)).transpose()?;
                let (gate, to, encoding) = (self.get(a.gate)?, self.get(a.to)?, self.encoding(a.to));
                Ok(kernels.activate(stream, function(a.kind), &gate, up.as_ref(), encoding, &to)?)
            }
            Op::Add { from, to } => Ok(kernels.add(stream, &self.get(*from)?, &self.get(*to)?)?),
            Op::Zero { to } => Ok(stream.zero(&self.get(*to)?)?),
            Op::Wanted { from, to } => {
                let width = self.lowered.values[from.0].width;
                let (from, to) = (self.get(*from)?, self.get(*to)?);
                Ok(kernels.embed(stream, &from, Encoding::F32, width, &self.tables()?.wanted, &to)?)
            }
            Op::Scale { value, factor } => Ok(kernels.scale(stream, *factor, &self.get(*value)?)?),
            Op::Softcap { value, cap } => Ok(kernels.softcap(stream, *cap, &self.get(*value)?)?),
            Op::Clamp { value, limit } => Ok(kernels.clamp(stream, *limit, &self.get(*value)?)?),
            Op::Multiply { value, vector } => {
                Ok(kernels.multiply(stream, vectors.get(*vector)?, &self.get(*value)?)?)
            }
            Op::Norm(norm) => self.norm(norm, vectors),
            Op::Linear(_) | Op::Route(_) | Op::AddShared { .. } | Op::Experts(_) => {
                Err(Error::Internal("the decoder runs this operation itself"))
            }
        }
    }

    fn norm(&mut self, norm: &Norm, vectors: &Vectors<DeviceSlice>) -> Result<()> {
        self.written(norm.to);
        if norm.add.is_some() {
            self.written(norm.from);
        }
        let weight = vectors.get(norm.weight)?;
        let piece = self.lowered.values[norm.from.0].width / norm.heads.max(1);
        let own = weight.len() != 4 * piece;
        if norm.kind == NormKind::Layer || own || norm.bias.is_some() {
            return self.piece_norm(norm, piece, vectors);
        }
        let from = self.get(norm.from)?;
        if norm.from == norm.to {
            return Ok(self.kernels().rms_norm_in_place(&self.stream, &from, weight, norm.eps)?);
        }
        let delta = norm.add.map(|add| self.get(add)).transpose()?;
        let (to, encoding) = (self.get(norm.to)?, self.encoding(norm.to));
        Ok(self.kernels().rms_norm(&self.stream, &from, delta.as_ref(), weight, norm.eps, encoding, &to)?)
    }

    fn linear(
        &mut self,
        tile: &Tile<'_>,
        held: &Held<'_, DeviceRegion>,
        from: Value,
        to: Value,
        column: usize,
    ) -> Result<()> {
        let mut multiply = || -> Result<()> {
            let (memory, payload) = held.memory().ok_or(Error::Internal("a tile without memory"))?;
            let bytes = memory.slice().slice(payload)?;
            let weights = Matrix::new(&bytes, tile.encoding, tile.rows, tile.cols)?;
            let weights = weights.slice(tile.part.clone())?;
            let x = self.operand(from, tile.encoding.operand())?;
            self.written(to);
            let y = self.get(to)?;
            let y = RowsMut::new(&y, self.lowered.values[to.0].width, column)?;
            Ok(self.kernels().linear(&self.stream, &weights, &x, &y)?)
        };
        multiply().map_err(|error| Error::Tile { tile: (tile.name)(), source: Box::new(error) })
    }

    fn scores(
        &mut self,
        route: &Route,
        vector: VectorId,
        count: usize,
        vectors: &Vectors<DeviceSlice>,
    ) -> Result<&[f32]> {
        let cols = self.lowered.values[route.from.0].width;
        let router = Matrix::new(vectors.get(vector)?, Encoding::F32, count, cols)?;
        let len = self.step.rows * count;
        let scores = self.buffers[self.lowered.values[route.scores.0].buffer].slice(0..4 * len)?;
        let x = self.get(route.from)?;
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
        Ok(())
    }

    fn choose(&mut self, rows: usize) {
        self.step.chosen = rows;
        // Chosen rows are others now.
        self.held = self.held.filter(|(value, _)| self.lowered.values[value.0].rows != Rows::Chosen);
    }

    fn take_rows(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()> {
        self.written(to);
        let (rows, _) = self.routed(chosen)?;
        let (placed, encoding) = (self.lowered.values[from.0], self.encoding(from));
        let (from, to) = (self.get(from)?, self.get(to)?);
        Ok(self.kernels().gather_rows(&self.stream, &from, encoding, placed.width, &rows, &to)?)
    }

    fn add_routed(&mut self, from: Value, to: Value, chosen: Range<usize>) -> Result<()> {
        let (rows, weights) = self.routed(chosen)?;
        let width = self.lowered.values[from.0].width;
        let (from, to) = (self.get(from)?, self.get(to)?);
        Ok(self.kernels().scatter_add(&self.stream, &from, width, &rows, &weights, &to)?)
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        let len = self.step.wanted * self.lowered.program.dims.vocab;
        self.logits.reserve_exact(len.saturating_sub(self.logits.len()));
        self.logits.resize(len, 0.0);
        let logits = self.get(self.lowered.program.logits)?;
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
