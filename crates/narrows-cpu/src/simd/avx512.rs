//! Sixteen lanes: AVX-512.

use core::arch::x86_64::*;

use super::{Kernel, Simd};

/// Proof that the machine has AVX-512 F, BW, DQ, VL, and AVX2, FMA, F16C besides.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type V = __m512;
    type Table = __m512;
    const LANES: usize = 16;
    const BATCH: usize = 6;

    fn apart<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(kernel: K, simd: Avx512) {
            kernel.run(simd);
        }
        // SAFETY: `self` exists only where `detect` found every one of these features.
        unsafe { compiled(kernel, self) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    // Each step folds the upper half of every vector onto its lower half, two vectors by one addition.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: `self` is the proof that the machine has the instructions; `sums` takes the four floats.
        unsafe {
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
            let abcd = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps(abcd, 0b01_00_11_10));
            let all = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0b10_11_00_01));
            let firsts = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all));
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
    unsafe fn load_f32(self, at: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 64 bytes; the load takes any address.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 32 bytes; the load takes any address.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 32 bytes; the load takes any address.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
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
    unsafe fn load_i8(self, at: *const u8, scale: __m512) -> __m512 {
        // SAFETY: the caller vouches for 16 bytes; the load takes any address.
        unsafe {
            let integers = _mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()));
            _mm512_mul_ps(_mm512_cvtepi32_ps(integers), scale)
        }
    }

    #[inline(always)]
    fn table(self, values: &[f32; 16], scale: __m512) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instructions; `values` is one vector.
        unsafe { _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), scale) }
    }

    // Both halves of a 64-bit lane look at the four bits from one place on in the same eight bytes, those of the
    // upper half 32 bits further: one shift for all sixteen lanes, and none to spread the bytes.
    #[inline(always)]
    unsafe fn look_up(self, at: *const u8, table: __m512) -> __m512 {
        // SAFETY: the caller vouches for 8 bytes; any bits are a valid `i64`.
        unsafe {
            let bytes = _mm512_set1_epi64(at.cast::<i64>().read_unaligned());
            let shifts = _mm512_setr_epi64(4, 0, 12, 8, 20, 16, 28, 24);
            // The permutation looks at the lowest four bits of a lane alone.
            _mm512_permutexvar_ps(_mm512_srlv_epi64(bytes, shifts), table)
        }
    }

    #[inline(always)]
    fn shuffle(self, vector: __m512) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe {
            let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
            _mm512_permutexvar_ps(order, vector)
        }
    }

    #[inline(always)]
    fn unshuffle(self, vector: __m512) -> __m512 {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe {
            let order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            _mm512_permutexvar_ps(order, vector)
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, vector: __m512) {
        // SAFETY: the caller vouches for 64 bytes; the store takes any address.
        unsafe { _mm512_storeu_ps(at.cast(), vector) }
    }
}
