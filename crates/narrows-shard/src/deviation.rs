//! How far the weights of a tensor are from those that they were made from.

use std::ops::AddAssign;
use std::path::Path;

use crate::blocks::{self, RowError};
use crate::{Encoding, Error, Reader, Tensor, parallel};

/// Bytes of the source that are compared at a time, or one row where that is more.
const CHUNK: usize = 8 << 20;
/// Weights of a row of a tensor that is compared without regard to its shape.
const FLAT: usize = 1 << 16;

/// Sums over weights and those of their source, of one tensor or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// How many weights.
    pub weights: u64,
    /// The sum of the squares of the differences.
    pub differences: f64,
    /// The sum of the squares of the source's weights.
    pub source: f64,
}

impl Deviation {
    /// The root mean square of the differences, divided by that of the source's weights: 0 where nothing differs,
    /// infinite where all of the source is 0 and something differs.
    #[must_use]
    pub fn relative_error(&self) -> f64 {
        if self.differences == 0.0 { 0.0 } else { (self.differences / self.source).sqrt() }
    }
}

impl AddAssign for Deviation {
    fn add_assign(&mut self, other: Self) {
        self.weights += other.weights;
        self.differences += other.differences;
        self.source += other.source;
    }
}

/// What is compared with a tensor.
#[derive(Clone, Copy)]
pub enum Candidate<'a> {
    /// The tensor of another checkpoint or pack.
    Stored(&'a Reader, &'a Tensor),
    /// What quantising the tensor to this encoding makes of it.
    Quantised(Encoding),
}

/// Compares the weights of `candidate` with those of the tensor `name`, which `reader` reads as `source`.
///
/// A few megabytes of rows are held at a time, on `threads` threads, whose number does not change the result.
///
/// # Errors
/// [`Error::Invalid`] where shapes differ, or something is no weights or cannot be quantised; [`Error::Io`].
pub fn deviation(
    name: &str,
    reader: &Reader,
    source: &Tensor,
    candidate: Candidate<'_>,
    threads: usize,
) -> Result<Deviation, Error> {
    let invalid = |reader: &Reader, tensor: &Tensor, problem: String| {
        let path = reader.path(tensor).unwrap_or(Path::new(""));
        Error::invalid(path, format!("{name} {problem}"))
    };
    let encoding = |reader, tensor: &Tensor| {
        let problem = || format!("is {}, which holds no weights", tensor.dtype);
        tensor.encoding.ok_or_else(|| invalid(reader, tensor, problem()))
    };
    let from = encoding(reader, source)?;
    let to = match candidate {
        Candidate::Stored(reader, tensor) => {
            if tensor.shape != source.shape {
                let problem = format!("has shape {:?}, and its source {:?}", tensor.shape, source.shape);
                return Err(invalid(reader, tensor, problem));
            }
            encoding(reader, tensor)?
        }
        Candidate::Quantised(to) => to,
    };
    let len = source.shape.iter().product::<usize>();
    // Blocks restart with each row; numbers one after the other need not be compared row by row.
    let in_blocks = from.block().or(to.block()).is_some();
    let cols = match source.shape[..] {
        [_, cols] if in_blocks => cols,
        _ if in_blocks => {
            return Err(invalid(
                reader,
                source,
                format!("of shape {:?} has no rows of blocks", source.shape),
            ));
        }
        _ => len.min(FLAT),
    };
    let (Some(from_bytes), Some(to_bytes)) = (from.row_bytes(cols), to.row_bytes(cols)) else {
        return Err(invalid(reader, source, "has rows that are too long".to_owned()));
    };
    let mut total = Deviation { weights: len as u64, ..Deviation::default() };
    if len == 0 {
        return Ok(total);
    }
    let pair = Pair { from, to, cols, stored: matches!(candidate, Candidate::Stored(..)) };
    let at_once = (CHUNK / from_bytes.max(to_bytes)).max(1);
    let (mut source_bytes, mut bytes, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for first in (0..len.div_ceil(cols)).step_by(at_once) {
        let weights = (at_once * cols).min(len - first * cols);
        let rows = weights.div_ceil(cols);
        // Only rows that are no blocks can be cut short, and those take as many bytes as they have weights.
        let bytes_of = |encoding: Encoding, row: usize| {
            if weights.is_multiple_of(cols) { rows * row } else { encoding.row_bytes(weights).unwrap_or(0) }
        };
        source_bytes.resize(bytes_of(from, from_bytes), 0);
        reader.read(source, (first * from_bytes) as u64, &mut source_bytes)?;
        if let Candidate::Stored(reader, tensor) = candidate {
            bytes.resize(bytes_of(to, to_bytes), 0);
            reader.read(tensor, (first * to_bytes) as u64, &mut bytes)?;
        }
        sums.clear();
        sums.resize(rows, (0.0, 0.0));
        let share = rows.div_ceil(threads.max(1));
        let tasks = sums.chunks_mut(share).enumerate().map(|(i, sums)| {
            let source = &source_bytes[i * share * from_bytes..];
            let bytes = bytes.get(i * share * to_bytes..).unwrap_or_default();
            move || pair.rows(source, bytes, sums).map_err(|(row, e)| (i * share + row, e))
        });
        // The first row that failed is the one that is told.
        let result: Result<(), _> = parallel::run(tasks).into_iter().collect();
        result.map_err(|(row, e)| invalid(reader, source, format!("row {}: {e}", first + row)))?;
        for (differences, squares) in &sums {
            total.differences += differences;
            total.source += squares;
        }
    }
    Ok(total)
}

/// How two rows of the same weights are stored.
#[derive(Clone, Copy)]
struct Pair {
    from: Encoding,
    to: Encoding,
    cols: usize,
    /// Whether there are bytes to compare with, or what quantising makes of the source.
    stored: bool,
}

impl Pair {
    /// The sums over each row, of as many as `sums` has; the last may be shorter, if it is not of blocks.
    fn rows(self, source: &[u8], bytes: &[u8], sums: &mut [(f64, f64)]) -> Result<(), (usize, RowError)> {
        let size = |encoding: Encoding| encoding.row_bytes(self.cols).unwrap_or(usize::MAX);
        let (mut weights, mut exact) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        let mut made = if self.stored { Vec::new() } else { vec![0; size(self.to)] };
        for (i, sums) in sums.iter_mut().enumerate() {
            let row = |bytes: &'_ [u8], size: usize| {
                let end = bytes.len().min((i + 1) * size);
                i * size..end
            };
            let source = &source[row(source, size(self.from))];
            let unit = self.from.row_bytes(1).filter(|_| self.from.block().is_none());
            let cols = unit.map_or(self.cols, |unit| source.len() / unit);
            let (weights, exact) = (&mut weights[..cols], &mut exact[..cols]);
            read(self.from, source, exact).map_err(|e| (i, e))?;
            if self.stored {
                read(self.to, &bytes[row(bytes, size(self.to))], weights).map_err(|e| (i, e))?;
            } else {
                blocks::quantise(self.to, exact, &mut made).map_err(|e| (i, e))?;
                blocks::dequantise(self.to, &made, weights).map_err(|e| (i, e))?;
            }
            *sums = squares(weights, exact);
        }
        Ok(())
    }
}

fn read(encoding: Encoding, bytes: &[u8], row: &mut [f32]) -> Result<(), RowError> {
    if encoding.block().is_some() {
        return blocks::dequantise(encoding, bytes, row);
    }
    blocks::widen(encoding, bytes, row);
    Ok(())
}

/// The sums of the squares of the differences and of `exact`, always in the same order: eight at a time, which a
/// compiler makes vectors of.
fn squares(weights: &[f32], exact: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut differences, mut squares) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    for (weights, exact) in weights.chunks(LANES).zip(exact.chunks(LANES)) {
        for (lane, (&weight, &exact)) in weights.iter().zip(exact).enumerate() {
            let (weight, exact) = (f64::from(weight), f64::from(exact));
            differences[lane] += (weight - exact) * (weight - exact);
            squares[lane] += exact * exact;
        }
    }
    (differences.iter().sum(), squares.iter().sum())
}
