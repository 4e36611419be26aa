//! Four lanes in plain code, for machines without any of the other instruction sets.

use half::f16;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;

impl Simd for Portable {
    type V = [f32; LANES];
    type Table = [f32; 16];
    const LANES: usize = LANES;
    const BATCH: usize = 2;

    fn apart<K: Kernel>(self, kernel: K) {
        #[inline(never)]
        fn compiled<K: Kernel>(kernel: K, simd: Portable) {
            kernel.run(simd);
        }
        compiled(kernel, self);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }

    // Two roundings: without an FMA instruction `f32::mul_add` would be a call into the C library.
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for lane in 0..LANES {
            c[lane] += a[lane] * b[lane];
        }
        c
    }

    #[inline(always)]
    fn sums(self, vectors: [Self::V; 4]) -> [f32; 4] {
        vectors.map(|v| (v[0] + v[2]) + (v[1] + v[3]))
    }

    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> Self::V {
        // SAFETY: the caller vouches for 16 bytes; any bits are a valid `[f32; 4]`.
        unsafe { at.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> Self::V {
        // SAFETY: the caller vouches for 8 bytes; any bits are a valid `[u16; 4]`.
        unsafe { at.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> Self::V {
        // SAFETY: the caller vouches for 8 bytes; any bits are a valid `[u16; 4]`.
        unsafe { at.cast::<[u16; LANES]>().read_unaligned() }
            .map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn load_eight_f16(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes; any bits are a valid `[u16; 8]`.
        unsafe { at.cast::<[u16; 8]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn load_i8(self, at: *const u8, scale: Self::V) -> Self::V {
        // SAFETY: the caller vouches for 4 bytes; any bits are a valid `[i8; 4]`.
        let integers = unsafe { at.cast::<[i8; LANES]>().read_unaligned() };
        let mut lanes = integers.map(f32::from);
        for lane in 0..LANES {
            lanes[lane] *= scale[lane];
        }
        lanes
    }

    #[inline(always)]
    fn table(self, values: &[f32; 16], scale: Self::V) -> [f32; 16] {
        values.map(|value| value * scale[0])
    }

    #[inline(always)]
    unsafe fn look_up(self, at: *const u8, table: [f32; 16]) -> Self::V {
        // SAFETY: the caller vouches for 2 bytes; any bits are valid.
        let [a, b] = unsafe { at.cast::<[u8; 2]>().read_unaligned() };
        [a >> 4, a & 15, b >> 4, b & 15].map(|number| table[usize::from(number)])
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, vector: Self::V) {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { at.cast::<Self::V>().write_unaligned(vector) }
    }
}
