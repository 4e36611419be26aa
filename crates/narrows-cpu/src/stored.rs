//! How each encoding becomes lanes of `f32`. A new encoding is one `impl` of [`Stored`] and one arm in
//! [`Encoded`].

use narrows_shard::Encoding;

use crate::simd::{Kernel, MAX_LANES, Simd, padded};

/// An encoding that kernels read from as it lies in memory.
pub(crate) trait Stored: Copy {
    /// Bytes that hold the first `cols` weights of a row, for a `cols` at which [`Stored::load`] may start
    /// or a row may end.
    fn bytes(cols: usize) -> usize;

    /// The weights `col..col + LANES` of the row that starts at `row`. `col` is a multiple of `LANES`, so
    /// no load straddles the blocks of a blocked encoding.
    ///
    /// # Safety
    /// `bytes(col + LANES)` bytes at `row` must be readable.
    unsafe fn load<S: Simd>(simd: S, row: *const u8, col: usize) -> S::V;

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
            #[inline(always)]
            fn bytes(cols: usize) -> usize {
                $size * cols
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, row: *const u8, col: usize) -> S::V {
                // SAFETY: the caller vouches for the bytes up to the end of this vector.
                unsafe { simd.$load(row.add($size * col)) }
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

/// The weights `col..col + count`, zeros in the other lanes; `count` is at most `LANES`.
#[inline(always)]
pub(crate) fn load_up_to<S: Simd, E: Stored>(simd: S, row: &[u8], col: usize, count: usize) -> S::V {
    assert!(count <= S::LANES && E::bytes(col + count) <= row.len());
    // SAFETY: by the assertion the row has `count` weights from `col` on, and those are what is loaded.
    unsafe {
        if count == S::LANES {
            E::load(simd, row.as_ptr(), col)
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
        }
    }
}
