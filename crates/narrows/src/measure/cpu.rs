//! The CPU that computes.

use std::sync::Arc;
use std::time::Instant;

use narrows_cpu::{AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_model::{Op, Program};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::{Arena, ArenaOptions, Budget, Region};
use narrows_stream::Speed;

use super::{Piece, speed};
use crate::backend::{Backend as _, CpuBackend, Step, Vectors};
use crate::error::Result;
use crate::lower::Lowered;
use crate::model::Model;
use crate::plan::Plan;
use crate::state;

/// More than most caches hold.
const BYTES: u64 = 512 << 20;
/// Of a cache at most: its speed is the same from there on.
const CACHE: usize = 64 << 20;
/// What is computed on between two looks at the clock: milliseconds.
const SAMPLE: f64 = 32e6;

/// How often everything is looked at, in turn: what others do at the moment falls on some of the looks at each.
const ROUNDS: usize = 9;

/// Speeds of products, with what a pass does between them, and of attention to a cache stored as `kv`.
pub(super) fn speeds(
    model: &Model,
    plan: &Plan,
    pieces: &[Piece],
    kv: Encoding,
    cpu: &Arc<Cpu>,
) -> Result<(Speed, Speed)> {
    let caches = Caches::new(model.program(), plan, kv);
    let largest = pieces.iter().map(|piece| piece.bytes() as u64).max().unwrap_or(1);
    let of_a_pass: f64 = pieces.iter().map(|piece| piece.count * piece.bytes()).sum();
    let weights = BYTES.min(plan.budget.get() / 4).min(of_a_pass as u64).max(largest);
    let memory = memory(plan, Bytes(weights.max(caches.bytes() as u64)))?;
    let products = products(pieces, &memory.as_slice()[..weights as usize], cpu)?;
    let compute = speed(of_a_pass, products + between(model, cpu)?);
    let attention = caches.attend(model.program(), memory.as_slice(), cpu)?;
    Ok((compute, attention.unwrap_or(compute)))
}

/// How long a pass multiplies: with pieces of the shapes that the model's have, one after the other.
fn products(pieces: &[Piece], weights: &[u8], cpu: &Cpu) -> Result<f64> {
    let (longest, most_rows) = pieces.iter().fold((0, 0), |(x, y), p| (x.max(p.cols), y.max(p.rows)));
    let (x, mut y) = (vec![0.0; longest], vec![0.0; most_rows]);
    let mut seconds = vec![[0.0; ROUNDS]; pieces.len()];
    let mut at = 0;
    for round in 0..ROUNDS {
        for (piece, seconds) in pieces.iter().zip(&mut seconds) {
            let len = piece.row_bytes() * piece.rows;
            let repeats = (SAMPLE / len as f64).clamp(1.0, piece.count.max(1.0)).ceil() as usize;
            let start = Instant::now();
            for _ in 0..repeats {
                if at + len > weights.len() {
                    at = 0;
                }
                let w = Matrix::new(piece.encoding, piece.rows, piece.cols, &weights[at..at + len])?;
                cpu.linear(w, &x[..piece.cols], RowsMut::new(&mut y[..piece.rows], piece.rows, 0)?)?;
                at += len;
            }
            seconds[round] = start.elapsed().as_secs_f64() / repeats as f64;
        }
    }
    Ok(pieces.iter().zip(seconds).map(|(piece, seconds)| piece.count * median(seconds)).sum())
}

/// How long a pass of one row takes for what is neither a product with weights nor attention: sums, norms, rotation
/// and activation. It is a fiftieth of a token of a small quantised model, and less of others.
fn between(model: &Model, cpu: &Arc<Cpu>) -> Result<f64> {
    let program = model.program();
    let lowered = Arc::new(Lowered::in_float(model.shared_program()));
    let mut backend = CpuBackend::new(Arc::clone(cpu), Arc::clone(&lowered), Encoding::F32);
    // Zeros stay zeros: what gets smaller with every layer would become subnormal, which takes longer.
    let vectors = program.vectors.iter().map(|vector| vec![0.0; program.vector_len(vector)]);
    let vectors = Vectors(vectors.collect());
    let angles = program.ropes.iter().map(|rope| (vec![1.0; rope.dims / 2], vec![0.0; rope.dims / 2]));
    let step = Step {
        rows: &[(0, 0)],
        embeddings: &vec![0; 4 * program.dims.hidden],
        encoding: Encoding::F32,
        angles: &angles.collect::<Vec<_>>(),
        wanted: &[0],
    };
    backend.begin(&step, &mut [])?;
    backend.choose(1);
    let mut seconds = [0.0; ROUNDS];
    for seconds in &mut seconds {
        let start = Instant::now();
        for op in lowered.layers.iter().flatten() {
            match op {
                Op::Linear(_) | Op::Attend(_) | Op::Route(_) | Op::AddShared { .. } => {}
                Op::Experts(experts) => {
                    let chosen = program.router(experts.layer).map_or(1, |route| route.per_token);
                    for op in std::iter::repeat_n(&experts.body, chosen).flatten() {
                        if !matches!(op, Op::Linear(_)) {
                            backend.run(op, &vectors, &mut [])?;
                        }
                    }
                }
                op => backend.run(op, &vectors, &mut [])?,
            }
        }
        *seconds = start.elapsed().as_secs_f64();
    }
    Ok(median(seconds))
}

/// KV caches of one layer each, as long as those of a sequence of the workload will be.
struct Caches {
    encoding: Encoding,
    positions: usize,
    /// Bytes of the keys of a layer, and of its values.
    len: usize,
    /// How many there are: those of all layers and, so that none was looked at lately, as many as fit.
    count: usize,
}

impl Caches {
    fn new(program: &Program, plan: &Plan, encoding: Encoding) -> Self {
        let (kv_heads, head_dim) = state::shape(program);
        let most = CACHE.min(plan.budget.get() as usize / 4) / 2;
        let of_a_position = kv_heads * encoding.row_bytes(head_dim).unwrap_or(0);
        let positions = plan.workload.positions / plan.workload.sequences.max(1);
        let positions = positions.min(most / of_a_position.max(1));
        let len = positions * of_a_position;
        Self { encoding, positions, len, count: most.checked_div(len).unwrap_or(0) }
    }

    fn bytes(&self) -> usize {
        self.count * 2 * self.len
    }

    /// Attends from a row to one layer's cache after the other: weights come between them in a pass, so each time
    /// to those that were not looked at for longest. `None` where there are no positions.
    fn attend(&self, program: &Program, memory: &[u8], cpu: &Cpu) -> Result<Option<Speed>> {
        let Self { encoding, positions, len, count } = *self;
        let Some(a) = program.attentions().next().filter(|_| count > 0) else { return Ok(None) };
        let layers = program.layers.len().clamp(1, count);
        let mut next = memory[..self.bytes()].chunks(2 * len).cycle();
        let width = a.heads * a.head_dim;
        let (q, mut out) = (vec![0.0; width], vec![0.0; width]);
        let mut seconds = [0.0; ROUNDS];
        for seconds in &mut seconds {
            let start = Instant::now();
            for cache in next.by_ref().take(layers) {
                let (keys, values) = cache.split_at(len);
                let (kv_heads, head_dim) = (a.kv_heads, a.head_dim);
                let kv = KvView { encoding, keys, values, capacity: positions, kv_heads, head_dim };
                let row = AttentionRow { kv, position: positions - 1, window: None };
                cpu.attention(&q, &[row], a.heads, a.scale.into(), &mut out)?;
            }
            *seconds = start.elapsed().as_secs_f64();
        }
        Ok(Some(speed((layers * 2 * len) as f64, median(seconds))))
    }
}

fn median(mut seconds: [f64; ROUNDS]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[ROUNDS / 2]
}

/// Pages as those of the weights will be; written to, since pages never written to are all one page, which never
/// leaves the cache.
fn memory(plan: &Plan, len: Bytes) -> Result<Region> {
    let budget = Budget::new(Bytes(plan.budget.get().max(len.get())));
    let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
    let mut region = Arena::new(&budget, "measuring", len, options)?.carve(len.get() as usize)?;
    region.as_mut_slice().fill(0x3c);
    Ok(region)
}
