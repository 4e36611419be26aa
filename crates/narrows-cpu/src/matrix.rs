//! The operands of [`Cpu::linear`](crate::Cpu::linear): stored weights, and where the result goes.

use std::marker::PhantomData;
use std::ops::Range;

use narrows_shard::Encoding;

use crate::Error;
use crate::error::{check_len, check_rows};

/// Stored weights `[rows, cols]`, at any address.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    encoding: Encoding,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A view of `bytes` as `rows` rows of `cols` weights. There is at least one column.
    pub fn new(encoding: Encoding, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, Error> {
        const WHAT: &str = "a weight matrix";
        if cols == 0 {
            return Err(Error::Zero { what: "the number of columns of a weight matrix" });
        }
        let row_bytes = encoding.row_bytes(cols).ok_or(Error::Overflow { what: WHAT })?;
        let expected = row_bytes.checked_mul(rows).ok_or(Error::Overflow { what: WHAT })?;
        check_len(WHAT, bytes.len(), expected)?;
        Ok(Self { encoding, rows, cols, row_bytes, bytes })
    }

    /// How the weights are stored.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored bytes of row `row`.
    ///
    /// # Panics
    /// If there is no such row, as indexing a slice does.
    #[must_use]
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// The tile of `rows` alone.
    pub fn slice(&self, rows: Range<usize>) -> Result<Self, Error> {
        if rows.start > rows.end || rows.end > self.rows {
            let end = rows.start.max(rows.end);
            return Err(Error::Beyond { what: "a tile of rows", end, limit: self.rows });
        }
        let bytes = &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes];
        Ok(Self { rows: rows.len(), bytes, ..*self })
    }
}

/// Where a result `[n, width]` goes: into the columns from `first` on of a matrix `[n, stride]`.
///
/// A tile of the rows `r0..r1` of a weight matrix writes the columns `r0..r1` of the result, so the tile's
/// destination is the whole result with `first = r0`.
#[derive(Debug)]
pub struct RowsMut<'a> {
    // A pointer, since threads write to interleaved parts of what would have to be one `&mut [f32]`.
    data: *mut f32,
    rows: usize,
    stride: usize,
    first: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for the `&mut [f32]` that it was made from, which may go to another thread.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: through a shared reference nothing can be read or written but by `alias`, whose caller answers
// for it.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// The columns from `first` on of `data`, which is `[n, stride]`.
    pub fn new(data: &'a mut [f32], stride: usize, first: usize) -> Result<Self, Error> {
        let rows = check_rows("the destination", data.len(), stride)?;
        if first > stride {
            return Err(Error::Beyond { what: "the first column", end: first, limit: stride });
        }
        Ok(Self { data: data.as_mut_ptr(), rows, stride, first, owner: PhantomData })
    }

    /// The same destination for a task of its own.
    ///
    /// # Safety
    /// While several of them are used, no two may ask [`RowsMut::row`] for overlapping columns.
    pub(crate) unsafe fn alias(&self) -> RowsMut<'_> {
        RowsMut { owner: PhantomData, ..*self }
    }

    /// Moves the destination `columns` to the right.
    pub(crate) fn advance(mut self, columns: usize) -> Self {
        assert!(columns <= self.stride - self.first);
        self.first += columns;
        self
    }

    /// How many rows it has.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns there are from the first on.
    pub(crate) fn width(&self) -> usize {
        self.stride - self.first
    }

    /// The given columns of one row, counted from the first column of the destination.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width());
        // SAFETY: `data` points to `rows * stride` floats, borrowed for 'a, and by the assertion the range
        // ends within row `row` of them. Nobody else has it: `self` is borrowed mutably, and aliases are
        // kept from overlapping by whoever made them.
        unsafe {
            let start = self.data.add(row * self.stride + self.first + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}
