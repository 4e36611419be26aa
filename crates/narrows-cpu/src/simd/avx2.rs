//! Eight lanes: AVX2 with FMA and F16C.

use core::arch::x86_64::*;

use super::{Kernel, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Simd for Avx2 {
    type V = __m256;
    type Table = [__m256; 2];
    const LANES: usize = 8;
    const BATCH: usize = 2;

    fn apart<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(kernel: K, simd: Avx2) {
            kernel.run(simd);
        }
        // SAFETY: `self` exists only where `detect` found every one of these features.
        unsafe { compiled(kernel, self) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    // Each step folds the upper half of every vector onto its lower half, two vectors by one addition.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: `self` is the proof that the machine has the instructions; `sums` takes the four floats.
        unsafe {
            let ac = _mm256_add_ps(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
            let bd = _mm256_add_ps(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
            let pairs = _mm256_add_ps(_mm256_unpacklo_ps(ac, bd), _mm256_unpackhi_ps(ac, bd));
            let all = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0b01_00_11_10));
            let firsts = _mm_movelh_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
            _mm_storeu_ps(sums.as_mut_ptr(), firsts);
        }
        sums
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch never faults, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 32 bytes; the load takes any address.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 16 bytes; the load takes any address.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 16 bytes; the load takes any address.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
        }
    }

    #[inline(always)]
    unsafe fn load_eight_f16(self, at: *const u8) -> [f32; 8] {
        let mut floats = [0.0; 8];
        // SAFETY: the caller vouches for 16 bytes; the load takes any address, and `floats` takes the eight.
        unsafe { _mm256_storeu_ps(floats.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))) };
        floats
    }

    #[inline(always)]
    unsafe fn load_i8(self, at: *const u8, scale: __m256) -> __m256 {
        // SAFETY: the caller vouches for the 8 bytes that are loaded, from any address.
        unsafe {
            let integers = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
            _mm256_mul_ps(_mm256_cvtepi32_ps(integers), scale)
        }
    }

    #[inline(always)]
    fn table(self, values: &[f32; 16], scale: __m256) -> [__m256; 2] {
        // SAFETY: `self` is the proof that the machine has the instructions; `values` is two vectors.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8)));
            [_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale)]
        }
    }

    #[inline(always)]
    unsafe fn look_up(self, at: *const u8, [low, high]: [__m256; 2]) -> __m256 {
        // SAFETY: the caller vouches for 4 bytes; any bits are a valid `i32`.
        unsafe {
            let bytes = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
            let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
            // The permutations look at the lowest three bits of a lane alone; the fourth, as a sign, tells which
            // of them was meant.
            let numbers = _mm256_srlv_epi32(bytes, shifts);
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32(numbers, 28));
            let (low, high) =
                (_mm256_permutevar8x32_ps(low, numbers), _mm256_permutevar8x32_ps(high, numbers));
            _mm256_blendv_ps(low, high, upper)
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, vector: __m256) {
        // SAFETY: the caller vouches for 32 bytes; the store takes any address.
        unsafe { _mm256_storeu_ps(at.cast(), vector) }
    }
}
