//! Rows of activations taken together and added back: how a mixture hands rows to an expert and sums up what
//! comes back.

use crate::error::{check_len, check_rows, product};
use crate::simd::{Kernel, Simd};
use crate::stored::{F32, load_up_to, store_up_to};
use crate::{Cpu, Error, RowsMut};

/// Columns that a task of [`Cpu::scatter_add`] takes of all rows.
const COLUMNS: usize = 1024;

impl Cpu {
    /// `out[i, :] = x[rows[i], :]` for `x` of `[_, cols]` and `out` of `[rows.len(), cols]`; a row may be named
    /// several times.
    ///
    /// # Errors
    /// [`Error::Beyond`] for a number that is no row of `x`; [`Error::Zero`], [`Error::Ragged`] or
    /// [`Error::Length`] where lengths do not match or `cols` is zero.
    pub fn gather_rows(&self, x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) -> Result<(), Error> {
        let limit = check_rows("what rows are gathered from", x.len(), cols)?;
        check_numbers("a row to gather", rows, limit)?;
        let expected = product("the gathered rows", &[rows.len(), cols])?;
        check_len("the destination of gathered rows", out.len(), expected)?;
        self.for_rows(out, cols, 1, |first, out| {
            for (row, out) in rows[first..].iter().zip(out.chunks_exact_mut(cols)) {
                out.copy_from_slice(&x[*row as usize * cols..][..cols]);
            }
        });
        Ok(())
    }

    /// `out[rows[i], :] += weights[i] * y[i, :]`, one `i` after the other, for `y` of `[rows.len(), cols]` and
    /// `out` of `[_, cols]`.
    ///
    /// Product and sum are rounded once (`fma(weights[i], y, out)`, as on CUDA) where the instruction set has
    /// such an instruction, which all but [`Isa::Portable`](crate::Isa::Portable) have.
    ///
    /// # Errors
    /// [`Error::Beyond`] for a number that is no row of `out`; [`Error::Zero`], [`Error::Ragged`] or
    /// [`Error::Length`] where lengths do not match or `cols` is zero.
    pub fn scatter_add(
        &self,
        y: &[f32],
        cols: usize,
        rows: &[u32],
        weights: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let limit = check_rows("what rows are added to", out.len(), cols)?;
        check_numbers("a row to add to", rows, limit)?;
        check_len("the weights of added rows", weights.len(), rows.len())?;
        check_len("the added rows", y.len(), product("the added rows", &[rows.len(), cols])?)?;
        let out = RowsMut::new(out, cols, 0)?;
        // Columns are shared out, not rows: so none is anybody else's, whichever rows are named.
        self.for_each(cols.div_ceil(COLUMNS), y.len(), |task| {
            let first = task * COLUMNS;
            // SAFETY: a task asks for the columns from `first` on, `COLUMNS` of them at most, and no two tasks
            // have the same.
            let out = unsafe { out.alias() };
            self.run(ScatterAdd { y, cols, rows, weights, out, first });
        });
        Ok(())
    }
}

/// `Ok` where all numbers are below `limit`.
fn check_numbers(what: &'static str, rows: &[u32], limit: usize) -> Result<(), Error> {
    match rows.iter().find(|&&row| row as usize >= limit) {
        Some(&row) => Err(Error::Beyond { what, end: (row as usize).saturating_add(1), limit }),
        None => Ok(()),
    }
}

/// One task of [`Cpu::scatter_add`], of checked shapes.
struct ScatterAdd<'a> {
    y: &'a [f32],
    cols: usize,
    rows: &'a [u32],
    weights: &'a [f32],
    out: RowsMut<'a>,
    first: usize,
}

impl Kernel for ScatterAdd<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let columns = self.first..self.cols.min(self.first + COLUMNS);
        for (i, (&row, &weight)) in self.rows.iter().zip(self.weights).enumerate() {
            let y = &self.y[i * self.cols..][columns.clone()];
            let out = self.out.row(row as usize, columns.clone());
            let weight = simd.splat(weight);
            for (y, out) in y.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                let added = load_up_to::<S, F32>(simd, bytemuck::cast_slice(y), 0, y.len());
                let sum = load_up_to::<S, F32>(simd, bytemuck::cast_slice(out), 0, out.len());
                store_up_to(simd, out, simd.mul_add(weight, added, sum));
            }
        }
    }
}
