//! Four lanes: Arm's NEON, which every 64-bit Arm with floating point has.

#![allow(unused_unsafe, reason = "where the target itself promises NEON, its intrinsics are safe to call")]

use core::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use half::f16;

use super::{Kernel, Simd};

/// Proof that the machine has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

impl Simd for Neon {
    type V = float32x4_t;
    type Table = [f32; 16];
    const LANES: usize = 4;
    const BATCH: usize = 6;

    fn apart<K: Kernel>(self, kernel: K) {
        #[inline(never)]
        fn compiled<K: Kernel>(kernel: K, simd: Neon) {
            kernel.run(simd);
        }
        compiled(kernel, self);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        // SAFETY: `self` is the proof that the machine has the instruction.
        unsafe { [vaddvq_f32(a), vaddvq_f32(b), vaddvq_f32(c), vaddvq_f32(d)] }
    }

    #[inline(always)]
    unsafe fn load_f32(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller vouches for 16 bytes; they are copied before NEON sees them, since they may
        // lie at any address.
        unsafe { vld1q_f32(at.cast::<[f32; 4]>().read_unaligned().as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller vouches for 8 bytes; any bits are a valid `[u16; 4]`.
        let floats = unsafe { at.cast::<[u16; 4]>().read_unaligned() }.map(|b| f16::from_bits(b).to_f32());
        // SAFETY: `floats` holds the four that are loaded.
        unsafe { vld1q_f32(floats.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> float32x4_t {
        // SAFETY: the caller vouches for 8 bytes; they are copied before NEON sees them.
        unsafe {
            let bits = at.cast::<[u16; 4]>().read_unaligned();
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(bits.as_ptr()))))
        }
    }

    #[inline(always)]
    unsafe fn load_eight_f16(self, at: *const u8) -> [f32; 8] {
        // SAFETY: the caller vouches for 16 bytes; any bits are a valid `[u16; 8]`.
        unsafe { at.cast::<[u16; 8]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn load_i8(self, at: *const u8, scale: float32x4_t) -> float32x4_t {
        // SAFETY: the caller vouches for 4 bytes; any bits are a valid `[i8; 4]`.
        let floats = unsafe { at.cast::<[i8; 4]>().read_unaligned() }.map(f32::from);
        // SAFETY: `floats` holds the four that are loaded.
        unsafe { vmulq_f32(vld1q_f32(floats.as_ptr()), scale) }
    }

    #[inline(always)]
    fn table(self, values: &[f32; 16], scale: float32x4_t) -> [f32; 16] {
        // SAFETY: `self` is the proof that the machine has the instruction.
        let scale = unsafe { vgetq_lane_f32::<0>(scale) };
        values.map(|value| value * scale)
    }

    #[inline(always)]
    unsafe fn look_up(self, at: *const u8, table: [f32; 16]) -> float32x4_t {
        // SAFETY: the caller vouches for 2 bytes; any bits are valid.
        let [a, b] = unsafe { at.cast::<[u8; 2]>().read_unaligned() };
        let floats = [a >> 4, a & 15, b >> 4, b & 15].map(|number| table[usize::from(number)]);
        // SAFETY: `floats` holds the four that are loaded.
        unsafe { vld1q_f32(floats.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, vector: float32x4_t) {
        let mut floats = [0.0_f32; 4];
        // SAFETY: `floats` takes the four lanes; the caller vouches for 16 bytes.
        unsafe {
            vst1q_f32(floats.as_mut_ptr(), vector);
            at.cast::<[f32; 4]>().write_unaligned(floats);
        }
    }
}
