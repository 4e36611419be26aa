//! Weights that no file holds: made in memory, for whoever measures a shape without a disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narrows_model::WeightSpec;
use narrows_shard::{Bytes, Dtype, Encoding, Tensor, blocks};
use narrows_staging::{Filling, Free, Read, Reader, Ready, Slot};
use narrows_stream::{Completed, SourceError, TileId, TileSource};

use crate::error::{Error, Result};
use crate::synth::Synth;

/// Bytes of weights that are made for all tensors of one kind together, which repeat them without end: making
/// random numbers for every tile would take longer than computing on it.
const PATTERN: usize = 4 << 20;

/// What tensors have in common whose weights are made as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    encoding: Encoding,
    /// Elements of a row; a vector is one.
    cols: usize,
    matrix: bool,
    bias: bool,
}

/// The places of tensors in files that there are not: each kind is a file, and a file repeats a few rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// A tensor of each kind, and how much there is of all of them.
    kinds: Vec<(Kind, WeightSpec, u64)>,
}

impl Layout {
    /// A tensor for the weight, stored in `encoding`.
    pub(crate) fn add(&mut self, spec: &WeightSpec, encoding: Encoding) -> Result<Tensor> {
        let cols = spec.shape.last().copied().unwrap_or(1);
        let kind = Kind {
            encoding,
            cols,
            matrix: spec.shape.len() == 2,
            bias: spec.shape.len() == 1 && spec.name.ends_with("bias"),
        };
        let file = self.kinds.iter().position(|(other, ..)| *other == kind).unwrap_or(self.kinds.len());
        if file == self.kinds.len() {
            self.kinds.push((kind, spec.clone(), 0));
        }
        let rows: usize = spec.shape.iter().rev().skip(1).product();
        let bytes = encoding.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        let bytes = bytes.ok_or_else(|| Error::Request(format!("{} of {:?}", spec.name, spec.shape)))?;
        let start = self.kinds[file].2;
        self.kinds[file].2 = start.saturating_add(bytes as u64);
        Ok(Tensor {
            dtype: if encoding.block().is_some() { Dtype::U8 } else { Dtype::BF16 },
            encoding: Some(encoding),
            shape: spec.shape.clone(),
            file,
            range: start..self.kinds[file].2,
        })
    }

    /// Makes the weights.
    pub(crate) fn make(&self) -> Result<Made> {
        let files = self.kinds.iter().map(|(kind, spec, all)| pattern(*kind, spec, *all));
        Ok(Made { files: files.collect::<Result<_>>()? })
    }
}

/// Rows that tensors of a kind repeat; whole ones, so that scales stay where they belong.
fn pattern(kind: Kind, spec: &WeightSpec, all: u64) -> Result<Vec<u8>> {
    let wrong = || Error::Request(format!("{} cannot be made in {}", spec.name, kind.encoding));
    let row = kind.encoding.row_bytes(kind.cols).filter(|row| *row > 0).ok_or_else(wrong)?;
    let rows = (PATTERN.min(usize::try_from(all).unwrap_or(usize::MAX)) / row).max(1);
    let shape = if kind.matrix { vec![rows, kind.cols] } else { vec![rows * kind.cols] };
    let made = Synth::weights(&WeightSpec { shape, ..spec.clone() }, 0);
    if kind.encoding == Encoding::Bf16 {
        return Ok(made);
    }
    let mut bytes = vec![0; rows * row];
    for (from, to) in made.chunks_exact(2 * kind.cols).zip(bytes.chunks_exact_mut(row)) {
        let wide = |bf16: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bf16)) << 16);
        let weights: Vec<f32> = from.as_chunks::<2>().0.iter().map(wide).collect();
        blocks::quantise(kind.encoding, &weights, to).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

/// Weights in memory, by file.
#[derive(Debug)]
pub(crate) struct Made {
    files: Vec<Vec<u8>>,
}

impl Made {
    /// Fills `out` with what lies from `offset` on in a file.
    pub(crate) fn read(&self, file: usize, offset: u64, mut out: &mut [u8]) -> Result<()> {
        let pattern = self.files.get(file).filter(|pattern| !pattern.is_empty());
        let pattern = pattern.ok_or_else(|| Error::Request(format!("there is no weight file {file}")))?;
        let mut at = (offset % pattern.len() as u64) as usize;
        while !out.is_empty() {
            let len = out.len().min(pattern.len() - at);
            let (now, rest) = out.split_at_mut(len);
            now.copy_from_slice(&pattern[at..at + len]);
            (out, at) = (rest, 0);
        }
        Ok(())
    }
}

/// A stream's source of made weights.
pub(crate) struct MadeSource {
    made: Arc<Made>,
    ranges: Vec<Read>,
    done: VecDeque<Completed>,
}

impl MadeSource {
    pub(crate) fn new(made: Arc<Made>, ranges: Vec<Read>) -> Self {
        Self { made, ranges, done: VecDeque::new() }
    }
}

impl TileSource for MadeSource {
    fn capacity(&self, tile: TileId) -> usize {
        self.ranges.get(tile.index()).map_or(0, |range| Reader::capacity_for(range.len))
    }

    fn submit(
        &mut self,
        tile: TileId,
        slot: Slot<Filling>,
    ) -> std::result::Result<(), (SourceError, Slot<Free>)> {
        let submitted = Instant::now();
        let tag = slot.tag();
        let range = self.ranges.get(tile.index()).copied();
        let filled: std::result::Result<Slot<Ready>, _> = slot.fill_with(|memory| {
            let range = range.ok_or_else(|| SourceError::from("there is no such tile"))?;
            let out =
                memory.get_mut(..range.len).ok_or_else(|| SourceError::from("the slot is too small"))?;
            self.made.read(range.file, range.offset, out)?;
            Ok(0..range.len)
        });
        let result = Ok(filled?);
        let moved = Bytes(range.map_or(0, |range| range.len as u64));
        self.done.push_back(Completed::now(result, tag, moved, submitted));
        Ok(())
    }

    fn wait(&mut self, _timeout: Option<Duration>) -> Option<Completed> {
        self.done.pop_front()
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
