//! How the elements of a tensor are stored.

use std::fmt;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::blocks;

/// How the weights of a tensor are stored, little-endian, row after row.
///
/// A new encoding is a variant here and a kernel per backend; everything between them asks only for
/// [`Encoding::row_bytes`] and [`Encoding::operand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// Blocks of 32 signed 8-bit integers with a binary16 scale: 8.5 bits a weight. Only matrices, of which
    /// each row has blocks of its own; the bytes are drawn in [`blocks`].
    Q8,
    /// Blocks of 64 4-bit codes, the values of NormalFloat4 (Dettmers et al. 2023, arXiv:2305.14314), with a
    /// binary16 scale: 4.25 bits a weight. Only matrices, as [`Encoding::Q8`].
    Nf4,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8, Self::Nf4];
    /// Those that store one number after the other: what vectors, activations and KV caches can be in.
    pub const PLAIN: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];
    /// Those that store blocks of codes with scales: what weights can be quantised to.
    pub const QUANTISED: [Self; 2] = [Self::Q8, Self::Nf4];

    /// Its name in manifests and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Nf4 => "nf4",
        }
    }

    /// Weights that share a scale; `None` where none do.
    #[must_use]
    pub const fn block(self) -> Option<usize> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Q8 => Some(blocks::Q8_BLOCK),
            Self::Nf4 => Some(blocks::NF4_BLOCK),
        }
    }

    /// The encoding of activations that weights in this one are multiplied with, on backends that do not keep
    /// activations in float32.
    #[must_use]
    pub const fn operand(self) -> Self {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => self,
            Self::Q8 | Self::Nf4 => Self::Bf16,
        }
    }

    /// The encoding that a safetensors dtype is read as, if we compute with it.
    #[must_use]
    pub const fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of one row of `cols` weights; `None` on overflow.
    #[must_use]
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::F32 => cols.checked_mul(4),
            Self::F16 | Self::Bf16 => cols.checked_mul(2),
            Self::Q8 => blocks::row_bytes(cols.div_ceil(blocks::Q8_BLOCK)),
            Self::Nf4 => blocks::row_bytes(cols.div_ceil(blocks::NF4_BLOCK)),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
