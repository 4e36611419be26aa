//! Rows of quantised weights to the byte, and how they are made and read: the reference for every kernel.
//!
//! A row is cut into *blocks* of 32 ([`Encoding::Q8`]) or 64 ([`Encoding::Nf4`]) weights, the last one filled up
//! with zeros. A block has a scale, binary16, and 32 bytes of codes. Eight blocks are a *group*: first their
//! scales, then their codes. The last group of a row has only the codes that it needs, and zeros for the scales
//! that it does not.
//!
//! ```text
//! offset in the row   0        16        48        80             272
//!                     | scales | codes   | codes   | ... |codes   | scales | codes ...
//!                     | 8 x f16| block 0 | block 1 |     |block 7 | of 8..15
//! ```
//!
//! So codes lie at multiples of 16 bytes and so do rows, a row is read from its start to its end, and where a
//! block lies depends on nothing but its number.
//!
//! - `q8`: byte `i` of a block is weight `i` as a signed integer `c`, -127 to 127; the weight is `c * scale`.
//! - `nf4`: byte `i` of a block is the weights `2 i` (upper four bits) and `2 i + 1` (lower four), as in
//!   bitsandbytes; the weight of a code `c` is `NF4[c] * scale`.
//!
//! Products are rounded to float32.

use half::{bf16, f16};

use crate::Encoding;

/// Weights of a block of [`Encoding::Q8`].
pub const Q8_BLOCK: usize = 32;
/// Weights of a block of [`Encoding::Nf4`].
pub const NF4_BLOCK: usize = 64;
/// Bytes of the codes of a block, in either encoding.
pub const CODES: usize = 32;
/// Blocks whose scales lie together.
pub const GROUP: usize = 8;

const SCALES: usize = GROUP * 2;
const GROUP_BYTES: usize = SCALES + GROUP * CODES;

/// The values of the codes of [`Encoding::Nf4`]: quantiles of a normal distribution, -1 to 1, as bitsandbytes has
/// them (`csrc/kernels.cu`, `dDequantizeNF4`).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Between which values a code changes: a weight has as many of these below it as its code says
/// (`csrc/kernels.cu`, `dQuantizeNF4`).
const NF4_BOUNDS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_43,
    -0.234_607_4,
    -0.137_911_73,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_77,
    0.389_312_53,
    0.501_663_4,
    0.642_786_9,
    0.861_478_4,
];

/// Where the scale of a block begins in its row.
#[must_use]
#[inline(always)]
pub const fn scale_at(block: usize) -> usize {
    block / GROUP * GROUP_BYTES + block % GROUP * 2
}

/// Where the codes of a block begin in its row.
#[must_use]
#[inline(always)]
pub const fn codes_at(block: usize) -> usize {
    block / GROUP * GROUP_BYTES + SCALES + block % GROUP * CODES
}

/// Bytes of a row of so many blocks, a multiple of 16; `None` on overflow.
pub(crate) const fn row_bytes(blocks: usize) -> Option<usize> {
    match (blocks.div_ceil(GROUP).checked_mul(SCALES), blocks.checked_mul(CODES)) {
        (Some(scales), Some(codes)) => scales.checked_add(codes),
        _ => None,
    }
}

/// Why a row cannot be stored in an encoding.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A weight is infinite or not a number.
    #[error("the weight in column {col} is {value}")]
    NotFinite {
        /// Its column.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is bigger than any that the encoding's scales reach.
    #[error("the weight in column {col} is {value}, too big for a binary16 scale")]
    TooBig {
        /// Its column.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// The bytes are not those of a row of so many weights, or the encoding is not one of blocks.
    #[error("{bytes} bytes are no row of {cols} weights in {encoding}")]
    Length {
        /// The encoding.
        encoding: Encoding,
        /// The length of the row.
        cols: usize,
        /// How many bytes there are.
        bytes: usize,
    },
}

/// Stores a row of weights in `out`, which has the encoding's [`row_bytes`](Encoding::row_bytes) for them.
///
/// `q8` has the scale `max |w| / 127`, rounded to binary16, and the nearest multiples of that, ties to even.
/// `nf4` has the scale `max |w|`, rounded to binary16 after the codes are chosen by the exact one, and the codes of
/// bitsandbytes' `quantize_4bit`.
///
/// # Errors
/// [`RowError`]; what is in `out` is then of no use.
pub fn quantise(encoding: Encoding, row: &[f32], out: &mut [u8]) -> Result<(), RowError> {
    let size = check(encoding, row.len(), out.len())?;
    out.fill(0);
    for (block, weights) in row.chunks(size).enumerate() {
        let mut padded = [0.0; NF4_BLOCK];
        let padded = &mut padded[..size];
        padded[..weights.len()].copy_from_slice(weights);

        // The bits of floats without their signs are in the order of the floats, with infinity and NaN on top.
        let top = padded.iter().fold(0, |top, w| top.max(w.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(top);
        let culprit = || {
            let index = weights.iter().position(|w| w.abs().to_bits() == top).unwrap_or(0);
            (block * size + index, weights[index])
        };
        if !largest.is_finite() {
            let (col, value) = culprit();
            return Err(RowError::NotFinite { col, value });
        }
        let codes = &mut out[codes_at(block)..][..CODES];
        let scale = match encoding {
            Encoding::Q8 => q8_codes(padded, largest, codes),
            _ => nf4_codes(padded, largest, codes),
        };
        if !scale.is_finite() {
            let (col, value) = culprit();
            return Err(RowError::TooBig { col, value });
        }
        out[scale_at(block)..][..2].copy_from_slice(&scale.to_le_bytes());
    }
    Ok(())
}

fn q8_codes(weights: &[f32], largest: f32, codes: &mut [u8]) -> f16 {
    // Adding it leaves the nearest integer, ties to even, in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let scale = f16::from_f32(largest / 127.0);
    // A scale of zero, which all weights are too small for, makes every code zero.
    let by = if scale == f16::ZERO { f32::INFINITY } else { scale.to_f32() };
    for (code, w) in codes.iter_mut().zip(weights) {
        *code = ((w / by).clamp(-127.0, 127.0) + ROUND).to_bits() as u8;
    }
    scale
}

fn nf4_codes(weights: &[f32], largest: f32, codes: &mut [u8]) -> f16 {
    let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
    let mut numbers = [0_u32; NF4_BLOCK];
    for (number, w) in numbers.iter_mut().zip(weights) {
        let scaled = (w * inverse).clamp(-1.0, 1.0);
        *number = NF4_BOUNDS.iter().map(|bound| u32::from(scaled > *bound)).sum();
    }
    for (code, pair) in codes.iter_mut().zip(numbers.as_chunks::<2>().0) {
        *code = (pair[0] << 4 | pair[1]) as u8;
    }
    f16::from_f32(largest)
}

/// The weights of a row that [`quantise`] has stored.
///
/// # Errors
/// [`RowError::Length`].
pub fn dequantise(encoding: Encoding, bytes: &[u8], row: &mut [f32]) -> Result<(), RowError> {
    let size = check(encoding, row.len(), bytes.len())?;
    for (block, weights) in row.chunks_mut(size).enumerate() {
        let at = scale_at(block);
        let scale = f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let codes = &bytes[codes_at(block)..][..CODES];
        for (i, w) in weights.iter_mut().enumerate() {
            *w = scale
                * match encoding {
                    Encoding::Q8 => f32::from(codes[i].cast_signed()),
                    _ => NF4[usize::from(codes[i / 2] >> (4 * (1 - i % 2)) & 15)],
                };
        }
    }
    Ok(())
}

/// The block size, if `bytes` is right for a row of `cols`.
fn check(encoding: Encoding, cols: usize, bytes: usize) -> Result<usize, RowError> {
    match encoding.block() {
        Some(size) if encoding.row_bytes(cols) == Some(bytes) => Ok(size),
        _ => Err(RowError::Length { encoding, cols, bytes }),
    }
}

/// Plain weights as float32. Both slices hold as many weights; what one holds more than the other is left.
pub(crate) fn widen(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
    fn each<const SIZE: usize>(bytes: &[u8], out: &mut [f32], widen: impl Fn([u8; SIZE]) -> f32) {
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
            *out = widen(*bytes);
        }
    }
    match encoding {
        Encoding::F32 => each(bytes, out, f32::from_le_bytes),
        Encoding::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        _ => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
    }
}
