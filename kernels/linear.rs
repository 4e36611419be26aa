//! The operands of a matrix product, and who computes it.

use std::marker::PhantomData;
use std::ops::Range;

use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::{Kernels, elements};

/// Stored weights `[rows, cols]` on the device: a matrix, or a tile of some of its rows.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    address: u64,
    encoding: Encoding,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    owner: PhantomData<&'a DeviceSlice>,
}

impl<'a> Matrix<'a> {
    /// A view of `bytes` as `rows` rows of `cols` weights. There is at least one column.
    ///
    /// Any address that is a multiple of an element's size will do, or of 16 where the rows are quantised.
    /// Multiplying is fast where both the address and the bytes of a row are multiples of 16.
    ///
    /// # Errors
    /// [`Error::Length`] where `bytes` has another length, [`Error::Shape`] where there is no column or more
    /// rows or columns than a kernel counts, [`Error::Overflow`], or [`Error::Ragged`] where elements do not
    /// start at a multiple of their size.
    pub fn new(bytes: &'a DeviceSlice, encoding: Encoding, rows: usize, cols: usize) -> Result<Self> {
        const WHAT: &str = "a weight matrix";
        check_nonzero("the number of columns of a weight matrix", cols)?;
        narrow("the number of columns of a weight matrix", cols)?;
        narrow("the number of rows of a weight matrix", rows)?;
        let row_bytes = encoding.row_bytes(cols).ok_or(Error::Overflow { what: WHAT })?;
        check_len(WHAT, bytes.len(), product(WHAT, &[rows, row_bytes])?)?;
        check_aligned("the address of a weight matrix", bytes.address(), encoding)?;
        Ok(Self { address: bytes.address(), encoding, rows, cols, row_bytes, owner: PhantomData })
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

    /// Bytes of a row, from the start of one to the start of the next.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The device's address of the first row.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The tile of `rows` alone.
    ///
    /// # Errors
    /// [`Error::Length`] if there are no such rows.
    pub fn slice(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.rows {
            let found = rows.start.max(rows.end);
            return Err(Error::Length { what: "a tile of rows", expected: self.rows, found });
        }
        let address = self.address + (rows.start * self.row_bytes) as u64;
        Ok(Self { address, rows: rows.len(), ..*self })
    }
}

/// Where a result `[n, width]` goes: into the columns from `first` on of f32 `[n, stride]`.
///
/// A tile of the rows `r0..r1` of a weight matrix writes the columns `r0..r1` of the result, so the tile's
/// destination is the whole result with `first = r0`.
#[derive(Clone, Copy, Debug)]
pub struct RowsMut<'a> {
    address: u64,
    rows: usize,
    stride: usize,
    first: usize,
    owner: PhantomData<&'a DeviceSlice>,
}

impl<'a> RowsMut<'a> {
    /// The columns from `first` on of `data`, which is f32 `[n, stride]`.
    ///
    /// # Errors
    /// [`Error::Ragged`] where `data` is not whole rows, [`Error::Length`] where `first` is beyond `stride`.
    pub fn new(data: &'a DeviceSlice, stride: usize, first: usize) -> Result<Self> {
        check_aligned("the address of a result", data.address(), Encoding::F32)?;
        let rows = check_rows("a result", elements("a result", data, Encoding::F32)?, stride)?;
        if first > stride {
            return Err(Error::Length {
                what: "the first column of a result",
                expected: stride,
                found: first,
            });
        }
        Ok(Self { address: data.address(), rows, stride, first, owner: PhantomData })
    }

    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements from the start of a row to the start of the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// How many columns there are from the first on.
    #[must_use]
    pub fn width(&self) -> usize {
        self.stride - self.first
    }

    /// The device's address of the first column in `row`.
    pub(crate) fn address(&self, row: usize) -> u64 {
        self.address + ((row * self.stride + self.first) * size_of::<f32>()) as u64
    }
}

impl Kernels {
    /// `y[i, first + r] = sum over c of W[r, c] x[i, c]`: `x` is `[n, cols]` in the encoding of the matrix, or
    /// bf16 where that is quantised ([`Encoding::operand`]), `y` has `n` rows.
    ///
    /// Products are summed up in f32. The order of a sum depends on the number of columns, on the encoding and
    /// on whether there are more than [`Kernels::MATVEC_ROWS`] rows, never on how the matrix is cut into tiles:
    /// up to so many rows each is computed as if it were alone, with more a row's last bits can differ from
    /// that. Quantised weights are exact up to so many rows, sums of codes times scale in f32, and rounded to bf16
    /// above.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Ragged`] where lengths do not match, or what the driver says.
    pub fn linear(
        &self,
        stream: &Stream,
        matrix: &Matrix<'_>,
        x: &DeviceSlice,
        y: &RowsMut<'_>,
    ) -> Result<()> {
        let operand = matrix.encoding.operand();
        let n = check_rows("the input of a linear", elements("x", x, operand)?, matrix.cols)?;
        check_aligned("the address of the input of a linear", x.address(), operand)?;
        check_len("the result of a linear, in rows,", y.rows, n)?;
        if matrix.rows > y.width() {
            let what = "the result of a linear, in columns,";
            return Err(Error::Length { what, expected: matrix.rows, found: y.width() });
        }
        narrow("the number of rows of activations", n)?;
        if n == 0 || matrix.rows == 0 {
            return Ok(());
        }
        if n > Self::MATVEC_ROWS {
            return self.gemm(stream, matrix, x, n, y);
        }
        self.matvec(stream, matrix, x.address(), n, y.address(0), y.stride)
    }
}

fn check_aligned(what: &'static str, address: u64, encoding: Encoding) -> Result<()> {
    let unit = match encoding.block() {
        // Rows of blocks are read 16 bytes at a time.
        Some(_) => 16,
        None => encoding.row_bytes(1).unwrap_or(1),
    };
    if address.is_multiple_of(unit as u64) {
        Ok(())
    } else {
        Err(Error::Ragged { what, unit, found: address as usize })
    }
}
