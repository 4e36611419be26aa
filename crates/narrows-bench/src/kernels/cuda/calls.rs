//! What is called for a case, and its operands.

use narrows_kernels::{AttentionShape, Kernels, KvLayout, KvRow, Matrix, RowsMut, Segment};
use narrows_shard::Encoding;
use narrows_staging::device::DeviceSlice;

use super::super::{Case, Operation, too_large};
use super::{Loaded, OnDevice, noise};
use crate::Result;

/// Sets of operands that rotate at most: of the smallest they are more than a cache holds all the same.
const MOST_SETS: usize = 1 << 14;
/// Of caches, whose rows have a table for each.
const MOST_CACHES: usize = 256;

/// Queues a case for the n-th time.
pub(super) type Call<'a> = Box<dyn Fn(usize) -> Result<()> + 'a>;

impl<'a> OnDevice<'a> {
    /// A case, ready to run.
    pub(super) fn call(&'a self, case: &Case) -> Result<Call<'a>> {
        let Loaded { kernels, .. } = self.on;
        let (stream, encoding, rows) = (&self.stream, case.encoding, case.rows);
        let weights = case.weights().ok_or_else(|| too_large(case))?;
        let operand = encoding.operand().row_bytes(1).unwrap_or(1);
        let sets = |lens: &[usize]| self.sets(Encoding::F32, lens, MOST_SETS);
        // Of rows of activations.
        let elements = rows * case.width();
        Ok(match (case.operation, &case.shape[..]) {
            (Operation::Linear, &[out, cols]) => {
                let sets = self.sets(encoding, &[weights], MOST_SETS)?;
                let x = self.numbers(encoding.operand(), rows * cols)?;
                let y = self.range(4 * rows * out)?;
                Box::new(move |n| {
                    let matrix = Matrix::new(&sets[n % sets.len()][0], encoding, out, cols)?;
                    Ok(kernels.linear(stream, &matrix, &x, &RowsMut::new(&y, out, 0)?)?)
                })
            }
            (Operation::Dequantise, &[out, cols]) => {
                let sets = self.sets(encoding, &[weights, 2 * out * cols], MOST_SETS)?;
                Box::new(move |n| {
                    let [weights, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    let matrix = Matrix::new(weights, encoding, out, cols)?;
                    Ok(kernels.dequantise(stream, &matrix, Encoding::Bf16, to)?)
                })
            }
            (Operation::Attention, &[heads, kv_heads, head_dim, positions]) => {
                let sets = self.sets(encoding, &[weights], MOST_CACHES)?;
                let first = positions - rows;
                let caches: Vec<_> = sets.iter().map(|set| set[0].address()).collect();
                let tables = self.tables(&caches, positions, first, rows)?;
                let (q, out) = (self.numbers(Encoding::F32, elements)?, self.range(operand * elements)?);
                let scratch = Kernels::attention_scratch_bytes(rows, heads, head_dim, positions);
                let scratch = self.range(scratch)?;
                let layout = KvLayout { encoding, kv_heads, head_dim };
                let scale = (head_dim as f32).powf(-0.5);
                Box::new(move |n| {
                    let _caches = &sets;
                    let segments = [Segment { rows, position: first }];
                    let shape = AttentionShape {
                        heads,
                        scale,
                        softcap: None,
                        slopes: None,
                        window: None,
                        segments: &segments,
                    };
                    let table = &tables[n % tables.len()];
                    let to = encoding.operand();
                    Ok(kernels.attention(stream, &q, table, &layout, 0, &shape, &scratch, to, &out)?)
                })
            }
            (Operation::RmsNorm, &[width]) => {
                let sets = sets(&[4 * elements, operand * elements])?;
                let weight = self.numbers(Encoding::F32, width)?;
                Box::new(move |n| {
                    let [x, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.rms_norm(stream, x, None, &weight, 1e-5, encoding, to)?)
                })
            }
            (Operation::AddRmsNorm, &[width]) => {
                let sets = sets(&[4 * elements, 4 * elements, operand * elements])?;
                let weight = self.numbers(Encoding::F32, width)?;
                Box::new(move |n| {
                    let [x, delta, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.rms_norm(stream, x, Some(delta), &weight, 1e-5, encoding, to)?)
                })
            }
            (Operation::HeadNorm, &[_, head_dim]) => {
                let sets = sets(&[4 * elements])?;
                let weight = self.numbers(Encoding::F32, head_dim)?;
                Box::new(move |n| {
                    Ok(kernels.rms_norm_in_place(stream, &sets[n % sets.len()][0], &weight, 1e-5)?)
                })
            }
            (Operation::Rope, &[heads, head_dim]) => {
                let sets = sets(&[4 * elements])?;
                let angles = noise(rows * head_dim / 2);
                let of = |f: fn(f32) -> f32| -> Vec<f32> { angles.iter().map(|&angle| f(angle)).collect() };
                let cos = self.upload(bytemuck::cast_slice(&of(f32::cos)))?;
                let sin = self.upload(bytemuck::cast_slice(&of(f32::sin)))?;
                Box::new(move |n| {
                    let x = &sets[n % sets.len()][0];
                    Ok(kernels.rope(stream, x, heads, head_dim, &cos, &sin)?)
                })
            }
            (Operation::Swiglu, _) => {
                let sets = sets(&[4 * elements, 4 * elements, operand * elements])?;
                Box::new(move |n| {
                    let [gate, up, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.swiglu(stream, gate, up, encoding, to)?)
                })
            }
            (Operation::Add, _) => {
                let sets = sets(&[4 * elements, 4 * elements])?;
                Box::new(move |n| {
                    let [a, x] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.add(stream, a, x)?)
                })
            }
            (Operation::GatherRows, &[width]) => {
                let sets = self.sets(encoding, &[2 * operand * elements, operand * elements], MOST_SETS)?;
                let named = self.every_other(rows)?;
                Box::new(move |n| {
                    let [x, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.gather_rows(stream, x, encoding, width, &named, to)?)
                })
            }
            (Operation::ScatterAdd, &[width]) => {
                let sets = sets(&[4 * elements, 2 * 4 * elements])?;
                let (named, weights) = (self.every_other(rows)?, self.numbers(Encoding::F32, rows)?);
                Box::new(move |n| {
                    let [y, to] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.scatter_add(stream, y, width, &named, &weights, to)?)
                })
            }
            (Operation::KvWrite, &[kv_heads, head_dim]) => {
                let layout = KvLayout { encoding, kv_heads, head_dim };
                let cache = layout.layer_bytes(rows).ok_or_else(|| too_large(case))?;
                let sets = self.sets(Encoding::F32, &[4 * elements, 4 * elements, cache], MOST_CACHES)?;
                let caches: Vec<_> = sets.iter().map(|set| set[2].address()).collect();
                let tables = self.tables(&caches, rows, 0, rows)?;
                Box::new(move |n| {
                    let [k, v, _] = &sets[n % sets.len()][..] else { return Ok(()) };
                    Ok(kernels.kv_write(stream, k, v, &tables[n % tables.len()], &layout, 0)?)
                })
            }
            (Operation::Argmax, _) => {
                let (sets, out) = (sets(&[4 * elements])?, self.range(4 * rows)?);
                Box::new(move |n| Ok(kernels.argmax(stream, &sets[n % sets.len()][0], &out)?))
            }
            (Operation::TopK, &[_, k]) => {
                let sets = sets(&[4 * elements])?;
                let (values, indices) = (self.range(4 * rows * k)?, self.range(4 * rows * k)?);
                Box::new(move |n| {
                    Ok(kernels.top_k(stream, &sets[n % sets.len()][0], k, &values, &indices)?)
                })
            }
            _ => return Err(too_large(case)),
        })
    }

    /// The numbers of every other row.
    fn every_other(&self, rows: usize) -> Result<DeviceSlice> {
        let named: Vec<u32> = (0..rows as u32).map(|row| 2 * row).collect();
        self.upload(bytemuck::cast_slice(&named))
    }

    /// For each of some caches, where the rows of a case are in it.
    fn tables(&self, caches: &[u64], capacity: usize, first: usize, rows: usize) -> Result<Vec<DeviceSlice>> {
        let row =
            |base: u64, position: usize| KvRow { base, capacity: capacity as u32, position: position as u32 };
        let all: Vec<KvRow> =
            caches.iter().flat_map(|&base| (first..first + rows).map(move |at| row(base, at))).collect();
        let all = self.upload(bytemuck::cast_slice(&all))?;
        let len = rows * size_of::<KvRow>();
        (0..caches.len()).map(|index| Ok(all.slice(index * len..(index + 1) * len)?)).collect()
    }
}
