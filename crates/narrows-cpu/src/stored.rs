//! How each encoding becomes lanes of `f32`. A new encoding is one `impl` of [`Stored`] and one arm in
//! [`Encoded`].

use std::marker::PhantomData;

use narrows_shard::Encoding;
use narrows_shard::blocks::{CODES, GROUP, NF4, NF4_BLOCK, Q8_BLOCK, codes_at, scale_at};

use crate::simd::{Kernel, MAX_LANES, Simd, padded};

/// An encoding that kernels read from as it lies in memory.
pub(crate) trait Stored: Copy {
    /// Columns that share a scale: 1 where none do, and a multiple of `LANES` where some do, so that no load
    /// straddles blocks.
    const BLOCK: usize;
    /// Columns that a [`Stored::Cursor`] serves, from a multiple of it on: as many blocks as have their scales
    /// together.
    const SPAN: usize;
    /// Whether [`Stored::load`] has the lanes in the order of the columns.
    const ORDERED: bool = true;

    /// Tiles of [`Simd::BATCH`] rows of activations up to which it is cheaper to decode weights for each tile
    /// than to decode them once, to memory.
    const TILES: usize;

    /// A place in a row, with the scales of the blocks there.
    type Cursor: Copy;
    /// What the weights of one block share.
    type Shared<S: Simd>: Copy;

    /// Bytes that hold the first `cols` weights of a row, for a `cols` at which a load may start or a row may
    /// end.
    fn bytes(cols: usize) -> usize;

    /// The place of the weight `col`, a multiple of [`Stored::SPAN`], in the row that starts at `row`.
    ///
    /// # Safety
    /// `bytes(col + 1)` bytes at `row` must be readable.
    unsafe fn cursor<S: Simd>(simd: S, row: *const u8, col: usize) -> Self::Cursor;

    /// What the block number `block` from `cursor` on shares.
    fn shared<S: Simd>(simd: S, cursor: &Self::Cursor, block: usize) -> Self::Shared<S>;

    /// Where the weights of the block number `block` from `cursor` on are, which may be beyond the row.
    fn at(cursor: &Self::Cursor, block: usize) -> *const u8;

    /// The weights `within..within + LANES` of the block number `block` from `cursor` on, which share `shared`, in
    /// the order in which [`Stored::shuffle`] puts them. `within` is a multiple of `LANES`, and less than a block
    /// where weights share anything.
    ///
    /// # Safety
    /// The bytes up to the last of these weights must be readable of the row that `cursor` is in.
    unsafe fn load<S: Simd>(
        simd: S,
        cursor: &Self::Cursor,
        block: usize,
        within: usize,
        shared: Self::Shared<S>,
    ) -> S::V;

    /// Lanes from the order of the columns into that of [`Stored::load`]: products are the same whatever the
    /// order is, and some encodings are decoded faster into another.
    #[inline(always)]
    fn shuffle<S: Simd>(_: S, vector: S::V) -> S::V {
        vector
    }

    /// The reverse of [`Stored::shuffle`].
    #[inline(always)]
    fn unshuffle<S: Simd>(_: S, vector: S::V) -> S::V {
        vector
    }

    /// The weights `col..col + count`, `col` being a multiple of `LANES`, in the order of the columns, zeros in
    /// the other lanes.
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
            const BLOCK: usize = 1;
            const SPAN: usize = 1;
            const TILES: usize = 8;
            type Cursor = *const u8;
            type Shared<S: Simd> = ();

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
            fn shared<S: Simd>(_: S, _: &*const u8, _: usize) {}

            #[inline(always)]
            fn at(cursor: &*const u8, block: usize) -> *const u8 {
                cursor.wrapping_add($size * block)
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, cursor: &*const u8, block: usize, within: usize, _: ()) -> S::V {
                // SAFETY: the caller vouches for the bytes up to the end of this vector.
                unsafe { simd.$load(Self::at(cursor, block + within)) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, row: *const u8, col: usize, count: usize) -> S::V {
                // SAFETY: the caller vouches for the `count` elements; where they are fewer than a vector, the
                // padded copy is a full one.
                unsafe {
                    let at = row.add($size * col);
                    if count == S::LANES {
                        simd.$load(at)
                    } else {
                        simd.$load(padded(at, $size * count).as_ptr())
                    }
                }
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

/// Where the codes of a group of blocks begin, and their scales: to convert all of them at a time, and to take
/// each from memory then, leaves the vector units to the weights.
#[derive(Clone, Copy)]
struct Blocks {
    codes: *const u8,
    scales: [f32; GROUP],
}

/// Blocks of `$block` weights, `$per_byte` a byte, which `$load` decodes by what `$shared` makes of their scale.
macro_rules! blocked {
    ($name:ident, $block:ident, $per_byte:literal, $tiles:literal, $type:ident, $load:ident,
        |$simd:ident, $scale:ident| $shared:expr, $($shuffles:item)*) => {
        impl Stored for $name {
            const BLOCK: usize = $block;
            const SPAN: usize = GROUP * $block;
            const TILES: usize = $tiles;
            type Cursor = Blocks;
            type Shared<S: Simd> = S::$type;

            // Blocks are stored whole, also the last of a row.
            #[inline(always)]
            fn bytes(cols: usize) -> usize {
                match cols.div_ceil($block) {
                    0 => 0,
                    blocks => codes_at(blocks - 1) + CODES,
                }
            }

            #[inline(always)]
            unsafe fn cursor<S: Simd>(simd: S, row: *const u8, col: usize) -> Blocks {
                let block = col / $block;
                // SAFETY: scales and codes of the group lie within the bytes that hold its first weight, for
                // which the caller vouches: the scales of all its blocks are there, in front of the codes.
                unsafe {
                    let scales = simd.load_eight_f16(row.add(scale_at(block)));
                    Blocks { codes: row.add(codes_at(block)), scales }
                }
            }

            #[inline(always)]
            fn shared<S: Simd>($simd: S, cursor: &Blocks, block: usize) -> S::$type {
                let $scale = $simd.splat(cursor.scales[block]);
                $shared
            }

            #[inline(always)]
            fn at(cursor: &Blocks, block: usize) -> *const u8 {
                cursor.codes.wrapping_add(block * CODES)
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(
                simd: S,
                cursor: &Blocks,
                block: usize,
                within: usize,
                shared: S::$type,
            ) -> S::V {
                // SAFETY: the caller vouches for the bytes up to the end of this vector.
                unsafe { simd.$load(Self::at(cursor, block).add(within / $per_byte), shared) }
            }

            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, row: *const u8, col: usize, count: usize) -> S::V {
                let (span, within) = (col / Self::SPAN * Self::SPAN, col % Self::SPAN);
                // SAFETY: blocks are stored whole, so that the caller vouches for all of this vector.
                let vector = unsafe {
                    let cursor = Self::cursor(simd, row, span);
                    let block = within / $block;
                    Self::load(simd, &cursor, block, within % $block, Self::shared(simd, &cursor, block))
                };
                let vector = Self::unshuffle(simd, vector);
                if count == S::LANES {
                    return vector;
                }
                let mut lanes = [0.0_f32; MAX_LANES];
                // SAFETY: `lanes` has room for any vector.
                unsafe { simd.store(lanes.as_mut_ptr().cast(), vector) };
                lanes[count..].fill(0.0);
                // SAFETY: `lanes` holds any vector.
                unsafe { simd.load_f32(lanes.as_ptr().cast()) }
            }

            $($shuffles)*
        }
    };
}

blocked! { Q8, Q8_BLOCK, 1, 4, V, load_i8, |_simd, scale| scale, }
blocked! {
    Nf4, NF4_BLOCK, 2, 2, Table, look_up, |simd, scale| simd.table(&NF4, scale),

    const ORDERED: bool = false;

    #[inline(always)]
    fn shuffle<S: Simd>(simd: S, vector: S::V) -> S::V {
        simd.shuffle(vector)
    }

    #[inline(always)]
    fn unshuffle<S: Simd>(simd: S, vector: S::V) -> S::V {
        simd.unshuffle(vector)
    }
}

/// The weights `col..col + count`, `col` being a multiple of `LANES`, in their order, zeros in the other lanes;
/// `count` is at most `LANES`.
#[inline(always)]
pub(crate) fn load_up_to<S: Simd, E: Stored>(simd: S, row: &[u8], col: usize, count: usize) -> S::V {
    assert!(count <= S::LANES && E::bytes(col + count) <= row.len());
    // SAFETY: by the assertion the row has `count` weights from `col` on, and those are what is loaded.
    unsafe { E::load_first(simd, row.as_ptr(), col, count) }
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

/// A kernel that reads stored weights; how they are stored, it knows when it is compiled.
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
            Encoding::F32 => simd.apart(Of::<F32, _>::new(self.1)),
            Encoding::F16 => simd.apart(Of::<F16, _>::new(self.1)),
            Encoding::Bf16 => simd.apart(Of::<Bf16, _>::new(self.1)),
            Encoding::Q8 => simd.apart(Of::<Q8, _>::new(self.1)),
            Encoding::Nf4 => simd.apart(Of::<Nf4, _>::new(self.1)),
        }
    }
}

/// An [`EncodedKernel`] that reads the encoding `E`.
struct Of<E, K>(K, PhantomData<E>);

impl<E, K> Of<E, K> {
    #[inline(always)]
    fn new(kernel: K) -> Self {
        Self(kernel, PhantomData)
    }
}

impl<E: Stored, K: EncodedKernel> Kernel for Of<E, K> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run::<S, E>(simd);
    }
}
