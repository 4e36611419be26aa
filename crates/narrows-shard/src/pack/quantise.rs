//! Rows of a matrix through the quantiser, on several threads.

use super::plan::Quantise;
use crate::Error;
use crate::blocks::{self, RowError};
use crate::parallel;

/// What stopped it: reading, or the weights of a row.
pub(crate) enum Failed {
    Read(Error),
    Row(usize, RowError),
}

/// Buffers for what is read, and how many threads work on it.
pub(crate) struct Quantiser {
    threads: usize,
    bytes: Vec<u8>,
}

impl Quantiser {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1), bytes: Vec::new() }
    }

    /// Has `read` fill a buffer of `len` bytes, which are whole rows, and quantises them into `out`.
    pub(crate) fn rows(
        &mut self,
        quantise: &Quantise,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), Error>,
        out: &mut [u8],
    ) -> Result<(), Failed> {
        self.bytes.resize(len, 0);
        read(&mut self.bytes).map_err(Failed::Read)?;
        let rows = len / quantise.from_bytes;
        let share = rows.div_ceil(self.threads);
        let shares = self
            .bytes
            .chunks(share * quantise.from_bytes)
            .zip(out.chunks_mut(share * quantise.to_bytes))
            .enumerate()
            .map(|(i, (bytes, out))| {
                move || each_row(quantise, bytes, out).map_err(|(row, e)| Failed::Row(i * share + row, e))
            });
        // The first row that failed is the one that is told, whoever had it.
        parallel::run(shares).into_iter().collect()
    }
}

fn each_row(quantise: &Quantise, bytes: &[u8], out: &mut [u8]) -> Result<(), (usize, RowError)> {
    let mut weights = vec![0.0; quantise.cols];
    let rows = bytes.chunks(quantise.from_bytes).zip(out.chunks_mut(quantise.to_bytes));
    for (i, (bytes, out)) in rows.enumerate() {
        blocks::widen(quantise.from, bytes, &mut weights);
        blocks::quantise(quantise.to, &weights, out).map_err(|e| (i, e))?;
    }
    Ok(())
}
