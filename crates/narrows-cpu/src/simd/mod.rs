//! Vectors of `f32`, and the choice of an instruction set at run time.
//!
//! A kernel is a [`Kernel`]: a struct of arguments with one body generic over [`Simd`]. [`Level::run`] and
//! [`Simd::apart`] instantiate that body inside a function compiled for the instruction set, so everything in
//! it, plain loops too, is compiled for it. For that to work every function below a kernel body that touches
//! vectors is `#[inline(always)]`, and takes no closures over vectors: a closure is a function of its own,
//! which does not know the instruction set.
//!
//! All that is inlined into one body is one frame, and without optimisation nothing in a frame shares its
//! place: so each choice that a body makes (of an encoding, of a number of rows) runs what it chose apart.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::fmt;

/// A set of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain code, which the compiler vectorises for the baseline of the target.
    Portable,
    /// Arm's 128-bit vectors.
    Neon,
    /// 256-bit vectors: AVX2 with FMA and F16C.
    Avx2,
    /// 512-bit vectors: AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// Every instruction set, the slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// Those that this machine can run, the slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|&isa| Level::detect(isa).is_some())
    }

    /// The fastest that this machine can run.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// Its name, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Vectors of `f32` of one instruction set.
///
/// A value of an implementing type is the proof that this machine has the instructions: it exists only
/// where they were detected. That is what makes the methods safe; those that stay `unsafe` are so because
/// of the address alone, which need not be aligned.
pub(crate) trait Simd: Copy + Send + Sync {
    /// One vector.
    type V: Copy;
    /// Sixteen floats to look up by number.
    type Table: Copy;
    /// Lanes of a vector, at most [`MAX_LANES`].
    const LANES: usize;
    /// Rows of activations that a tile of four weight rows takes before its sums no longer fit into the
    /// registers.
    const BATCH: usize;

    /// Runs `kernel` in a function of its own, compiled for this instruction set: a frame that is on the stack
    /// only while the kernel runs.
    fn apart<K: Kernel>(self, kernel: K);

    /// `value` in every lane.
    fn splat(self, value: f32) -> Self::V;

    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// The sum of the lanes of each vector, in an order that is the same for all four.
    fn sums(self, vectors: [Self::V; 4]) -> [f32; 4];

    /// Hints that the cache line at `at` is to be read soon, for the second-level cache. Any address will do.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}

    /// # Safety
    /// `4 * LANES` bytes at `at` must be readable.
    unsafe fn load_f32(self, at: *const u8) -> Self::V;

    /// # Safety
    /// `2 * LANES` bytes at `at` must be readable.
    unsafe fn load_f16(self, at: *const u8) -> Self::V;

    /// # Safety
    /// `2 * LANES` bytes at `at` must be readable.
    unsafe fn load_bf16(self, at: *const u8) -> Self::V;

    /// Eight 16-bit floats.
    ///
    /// # Safety
    /// 16 bytes at `at` must be readable.
    unsafe fn load_eight_f16(self, at: *const u8) -> [f32; 8];

    /// Signed 8-bit integers, each times a lane of `scale`, rounded.
    ///
    /// # Safety
    /// `LANES` bytes at `at` must be readable.
    unsafe fn load_i8(self, at: *const u8, scale: Self::V) -> Self::V;

    /// A table of `values`, each times the first lane of `scale`, whose lanes are equal, rounded.
    fn table(self, values: &[f32; 16], scale: Self::V) -> Self::Table;

    /// What `table` has for each of the 4-bit numbers at `at`, of which the upper one of a byte is the first, as
    /// [`Simd::shuffle`] puts them.
    ///
    /// # Safety
    /// `LANES / 2` bytes at `at` must be readable.
    unsafe fn look_up(self, at: *const u8, table: Self::Table) -> Self::V;

    /// Lanes into the order in which [`Simd::look_up`] has them, where that is another.
    #[inline(always)]
    fn shuffle(self, vector: Self::V) -> Self::V {
        vector
    }

    /// The reverse of [`Simd::shuffle`].
    #[inline(always)]
    fn unshuffle(self, vector: Self::V) -> Self::V {
        vector
    }

    /// # Safety
    /// `4 * LANES` bytes at `at` must be writable.
    unsafe fn store(self, at: *mut u8, vector: Self::V);
}

/// The lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// Something to compute, written once for all instruction sets.
pub(crate) trait Kernel {
    /// The body. To be `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S);
}

/// An instruction set that this machine has been found to have.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Portable(portable::Portable),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Level {
    /// `None` where the machine lacks it.
    pub(crate) fn detect(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Portable => Some(Self::Portable(portable::Portable)),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::Neon::detect().map(Self::Neon),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::detect().map(Self::Avx512),
            #[allow(unreachable_patterns, reason = "which arms there are depends on the target")]
            _ => None,
        }
    }

    pub(crate) fn isa(self) -> Isa {
        match self {
            Self::Portable(_) => Isa::Portable,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Isa::Neon,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Isa::Avx512,
        }
    }

    /// Runs `kernel`, compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Portable(simd) => simd.apart(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.apart(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.apart(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.apart(kernel),
        }
    }
}

/// `count` bytes at `at`, then zeros: what a vector load reads where fewer than its lanes are left, so that
/// the tail of a row takes the same steps as the rest of it.
///
/// # Safety
/// `count` bytes at `at` must be readable.
#[inline(always)]
pub(crate) unsafe fn padded(at: *const u8, count: usize) -> [u8; 4 * MAX_LANES] {
    let mut bytes = [0; 4 * MAX_LANES];
    let count = count.min(bytes.len());
    // SAFETY: the caller vouches for the source; the destination has at least `count` bytes.
    unsafe { at.copy_to_nonoverlapping(bytes.as_mut_ptr(), count) };
    bytes
}
