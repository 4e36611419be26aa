//! How each encoding becomes lanes of `f32`. A new encoding is one `impl` of [`Stored`] and one arm in
//! [`Encoded`].

use narrows_shard::Encoding;
use narrows_shard::blocks::{CODES, NF4, NF4_BLOCK, Q8_BLOCK, codes_at, scale_at};

use crate::simd::{Kernel, MAX_LANES, Simd, padded};

/// An encoding that kernels read from as it lies in memory.
pub(crate) trait Stored: Copy {
    /// Columns that a [`Stored::Cursor`] serves, from a multiple of it on: those that share a scale. 1 where
    /// none do, and a multiple of `LANES` where some do, so that no load straddles blocks.
    const SPAN: usize;

    /// A place in a row, with what the weights there share.
    type Cursor<S: Simd>: Copy;

    /// Bytes that hold the first `cols` weights of a row, for a `cols` at which a load may start or a row may
    /// end.
    fn bytes(cols: usize) -> usize;

    /// The place of the weight `col`, a multiple of `LANES`, in the row that starts at `row`.
    ///
    /// # Safety
    /// `bytes(col + 1)` bytes at `row` must be readable.
    unsafe fn cursor<S: Simd>(simd: S, row: *const u8, col: usize) -> Self::Cursor<S>;

    /// The weights `offset..offset + LANES` from `cursor` on. `offset` is a multiple of `LANES`; unless it is
    /// 0, the cursor is at a multiple of [`Stored::SPAN`] and the weights lie within as many of it.
    ///
    /// # Safety
    /// `bytes(col + offset + LANES)` bytes must be readable of the row and the `col` that `cursor` is at.
    unsafe fn load<S: Simd>(simd: S, cursor: Self::Cursor<S>, offset: usize) -> S::V;

    /// The weights `col..col + count`, zeros in the other lanes; `count` is less than `LANES`.
    ///
    /// # Safety
    /// `bytes(col + count)` bytes at `row` must be readable.
    unsafe fn load_first<S: Simd>(simd: S, row: *const u8, col: usize, count: usize) -> S::V;
}

/// IEEE 754 binary32.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// IEEE 754 binary16.
#[derive(Clone, Copy)]
struct F16;
/// The upper half of a binary32.
#[derive(Clone, Copy)]
struct Bf16;

/// One element after the other, each of `$size` bytes.
macro_rules! plain {
    ($name:ident, $size:literal, $load:ident) => {
        impl Stored for $name {
            const SPAN: usize = 1;
            type Cursor<S: Simd> = *const u8;

            #[inline(always)]
            fn bytes(cols: usize) -> usize {
                $size * cols
            }

            #[inline(always)]
            unsafe fn cursor<S: Simd>(_: S, row: *const u8, col: usize) -> *const u8 {
                // SAFETY: the caller vouches for the bytes up to there.
                unsafe { row.add($size * col) }
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, cursor: *const u8, offset: usize) -> S::V {
                // SAFETY: the caller vouches for the bytes up to the end of this vector.
                unsafe { simd.$load(cursor.add($size * offset)) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, row: *const u8, col: usize, count: usize) -> S::V {
                // SAFETY: the caller vouches for the `count` elements; the padded copy is a full vector.
                unsafe { simd.$load(padded(row.add($size * col), $size * count).as_ptr()) }
            }
        }
    };
}

plain!(F32, 4, load_f32);
plain!(F16, 2, load_f16);
plain!(Bf16, 2, load_bf16);

/// Blocks of 32 8-bit integers with a scale.
#[derive(Clone, Copy)]
struct Q8;
/// Blocks of 64 4-bit codes with a scale.
#[derive(Clone, Copy)]
struct Nf4;

/// Blocks of `$block` weights, `$per_byte` a byte. `$scaled` is what `$load` wants of their scale.
macro_rules! blocked {
    ($name:ident, $block:ident, $per_byte:literal, $shared:ident, $load:ident, |$simd:ident, $scale:ident| $scaled:expr) => {
        impl Stored for $name {
            const SPAN: usize = $block;
            type Cursor<S: Simd> = (*const u8, S::$shared);

            // Blocks are stored whole, also the last of a row.
            #[inline(always)]
            fn bytes(cols: usize) -> usize {
                match cols.div_ceil($block) {
                    0 => 0,
                    blocks => codes_at(blocks - 1) + CODES,
                }
            }

            #[inline(always)]
            unsafe fn cursor<S: Simd>($simd: S, row: *const u8, col: usize) -> Self::Cursor<S> {
                let (block, within) = (col / $block, col % $block);
                // SAFETY: the scale and the codes of the block lie within the bytes that hold its weights, for
                // which the caller vouches.
                unsafe {
                    let $scale = $simd.splat_f16(row.add(scale_at(block)));
                    (row.add(codes_at(block) + within / $per_byte), $scaled)
                }
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, (codes, shared): Self::Cursor<S>, offset: usize) -> S::V {
                // SAFETY: the caller vouches for the bytes up to the end of this vector.
                unsafe { simd.$load(codes.add(offset / $per_byte), shared) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, row: *const u8, col: usize, count: usize) -> S::V {
                let mut lanes = [0.0_f32; MAX_LANES];
                // SAFETY: the block is stored whole, so that the caller vouches for all of this vector; `lanes`
                // has room for any.
                unsafe {
                    let vector = Self::load(simd, Self::cursor(simd, row, col), 0);
                    simd.store(lanes.as_mut_ptr().cast(), vector);
                }
                lanes[count..].fill(0.0);
                // SAFETY: `lanes` holds any vector.
                unsafe { simd.load_f32(lanes.as_ptr().cast()) }
            }
        }
    };
}

blocked!(Q8, Q8_BLOCK, 1, V, load_i8, |_simd, scale| scale);
blocked!(Nf4, NF4_BLOCK, 2, Table, look_up, |simd, scale| simd.table(&NF4, scale));

/// The weights `col..col + count`, zeros in the other lanes; `count` is at most `LANES`.
#[inline(always)]
pub(crate) fn load_up_to<S: Simd, E: Stored>(simd: S, row: &[u8], col: usize, count: usize) -> S::V {
    assert!(count <= S::LANES && E::bytes(col + count) <= row.len());
    // SAFETY: by the assertion the row has `count` weights from `col` on, and those are what is loaded.
    unsafe {
        if count == S::LANES {
            E::load(simd, E::cursor(simd, row.as_ptr(), col), 0)
        } else {
            E::load_first(simd, row.as_ptr(), col, count)
        }
    }
}

/// Fills `out`, which has at most `LANES` elements, from the first lanes of `vector`.
#[inline(always)]
pub(crate) fn store_up_to<S: Simd>(simd: S, out: &mut [f32], vector: S::V) {
    if out.len() == S::LANES {
        // SAFETY: `out` has room for exactly this vector.
        unsafe { simd.store(out.as_mut_ptr().cast(), vector) };
    } else {
        let mut lanes = [0.0_f32; MAX_LANES];
        // SAFETY: `lanes` has room for any vector.
        unsafe { simd.store(lanes.as_mut_ptr().cast(), vector) };
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// A kernel that reads stored weights.
pub(crate) trait EncodedKernel {
    /// The body. To be `#[inline(always)]`.
    fn run<S: Simd, E: Stored>(self, simd: S);
}

/// An [`EncodedKernel`] with the encoding that it shall read.
pub(crate) struct Encoded<K>(pub(crate) Encoding, pub(crate) K);

impl<K: EncodedKernel> Kernel for Encoded<K> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.0 {
            Encoding::F32 => self.1.run::<S, F32>(simd),
            Encoding::F16 => self.1.run::<S, F16>(simd),
            Encoding::Bf16 => self.1.run::<S, Bf16>(simd),
            Encoding::Q8 => self.1.run::<S, Q8>(simd),
            Encoding::Nf4 => self.1.run::<S, Nf4>(simd),
        }
    }
}
