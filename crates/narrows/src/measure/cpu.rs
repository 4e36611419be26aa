//! The CPU that computes.

use std::time::Instant;

use narrows_cpu::{AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::{Arena, ArenaOptions, Budget, Region};
use narrows_stream::Speed;

use super::{Piece, speed};
use crate::error::Result;
use crate::model::Model;
use crate::plan::Plan;

/// More than most caches hold.
const BYTES: u64 = 512 << 20;
/// Of a cache at most: its speed is the same from there on.
const CACHE: usize = 64 << 20;
/// What is computed on between two looks at the clock: milliseconds.
const SAMPLE: f64 = 32e6;

/// How often everything is looked at, in turn: what others do at the moment falls on some of the looks at each.
const ROUNDS: usize = 9;

/// Multiplies with pieces of the shapes that the model's have, one after the other, as a pass does.
pub(super) fn compute(plan: &Plan, pieces: &[Piece], cpu: &Cpu) -> Result<Speed> {
    let largest = pieces.iter().map(|piece| piece.bytes() as u64).max().unwrap_or(1);
    let of_a_pass: f64 = pieces.iter().map(|piece| piece.count * piece.bytes()).sum();
    let weights = memory(plan, Bytes(BYTES.min(plan.budget.get() / 4).min(of_a_pass as u64).max(largest)))?;
    let weights = weights.as_slice();
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
    let pass = pieces.iter().zip(seconds).map(|(piece, seconds)| piece.count * median(seconds)).sum();
    Ok(speed(of_a_pass, pass))
}

/// Attends from a row to as many positions as a sequence of the workload will have, in one layer's cache after the
/// other. `None` where there are none.
pub(super) fn attention(model: &Model, plan: &Plan, encoding: Encoding, cpu: &Cpu) -> Result<Option<Speed>> {
    let a = model.architecture();
    let most = CACHE.min(plan.budget.get() as usize / 4) / 2;
    let of_a_position = a.kv_heads * encoding.row_bytes(a.head_dim).unwrap_or(0);
    let positions = plan.workload.positions / plan.workload.sequences.max(1);
    let positions = positions.min(most / of_a_position.max(1));
    let len = positions * of_a_position;
    if len == 0 {
        return Ok(None);
    }
    let caches = (most / len).clamp(1, a.layers.max(1));
    let kv = memory(plan, Bytes((caches * 2 * len) as u64))?;
    let width = a.heads * a.head_dim;
    let (q, mut out) = (vec![0.0; width], vec![0.0; width]);
    let mut seconds = [0.0; ROUNDS];
    for seconds in &mut seconds {
        let start = Instant::now();
        for cache in kv.as_slice()[..caches * 2 * len].chunks(2 * len) {
            let (keys, values) = cache.split_at(len);
            let (kv_heads, head_dim) = (a.kv_heads, a.head_dim);
            let kv = KvView { encoding, keys, values, capacity: positions, kv_heads, head_dim };
            let row = AttentionRow { kv, position: positions - 1, window: None };
            cpu.attention(&q, &[row], a.heads, a.attention_scale(), &mut out)?;
        }
        *seconds = start.elapsed().as_secs_f64();
    }
    Ok(Some(speed((caches * 2 * len) as f64, median(seconds))))
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
