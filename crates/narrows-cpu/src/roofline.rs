//! What bounds all other operations: reads of memory, and multiply-adds in registers.

use std::hint::black_box;

use crate::Cpu;
use crate::simd::{Kernel, Simd};

/// Vectors that a step loads, each from a place of its own: processors follow several streams better than one, and
/// rows of a matrix are several.
const STREAMS: usize = 8;

/// Sums that are under way at a time: more than a multiply-add takes cycles times those begun in one, and few enough
/// for sixteen registers.
const CHAINS: usize = 12;

impl Cpu {
    /// Reads every byte of `bytes` on this thread, in the widest loads that there are, and sums what they are as
    /// float32. What is left over of whole vectors in eight places is read byte by byte.
    ///
    /// The sum is there so that nothing is left out. Numbers that are not normal make it slow.
    #[must_use]
    pub fn read_sum(&self, bytes: &[u8]) -> f32 {
        let mut sum = 0.0;
        self.run(ReadSum { bytes, sum: &mut sum });
        sum
    }

    /// Does `2 * count` float32 operations at least, as multiply-adds of whole vectors in registers on this thread,
    /// and says how many.
    #[must_use]
    pub fn multiply_adds(&self, count: u64) -> u64 {
        let mut done = 0;
        self.run(MultiplyAdds { count, done: &mut done });
        done
    }
}

struct ReadSum<'a> {
    bytes: &'a [u8],
    sum: &'a mut f32,
}

impl Kernel for ReadSum<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let vector = 4 * S::LANES;
        let steps = self.bytes.len() / (STREAMS * vector);
        let stream = steps * vector;
        let one = simd.splat(1.0);
        let mut sums = [simd.splat(0.0); STREAMS];
        let start = self.bytes.as_ptr();
        for step in 0..steps {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: i < STREAMS and step < steps, so the vector ends at or before STREAMS * stream, which is
                // at most the length of the slice.
                let loaded = unsafe { simd.load_f32(start.add(i * stream + step * vector)) };
                *sum = simd.mul_add(loaded, one, *sum);
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        let sums = [simd.sums([a, b, c, d]), simd.sums([e, f, g, h])];
        let rest: u32 = self.bytes[STREAMS * stream..].iter().map(|&byte| u32::from(byte)).sum();
        *self.sum = sums.as_flattened().iter().sum::<f32>() + rest as f32;
    }
}

struct MultiplyAdds<'a> {
    count: u64,
    done: &'a mut u64,
}

impl Kernel for MultiplyAdds<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let each = (CHAINS * S::LANES) as u64;
        let steps = self.count.div_ceil(each);
        // Near one, so that no sum ever leaves the normal numbers; not known to the compiler.
        let (a, b) = (simd.splat(black_box(0.999)), simd.splat(black_box(0.001)));
        let mut sums = [simd.splat(black_box(1.0)); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, a, b);
            }
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11] = sums;
        black_box((simd.sums([s0, s1, s2, s3]), simd.sums([s4, s5, s6, s7]), simd.sums([s8, s9, s10, s11])));
        *self.done = 2 * steps * each;
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cpu, Isa};

    #[test]
    fn every_byte_is_read_once() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            // As many whole vectors as come out even on every instruction set, and a rest.
            for (floats, rest) in [(0, 0), (0, 7), (1024, 0), (4096, 3)] {
                let mut bytes: Vec<u8> = (0..floats).flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect();
                bytes.extend((0..rest).map(|i| i as u8));
                let expected =
                    (0..floats).map(|i| i as f32 / 8.0).sum::<f32>() + (0..rest).sum::<i32>() as f32;
                assert_eq!(cpu.read_sum(&bytes), expected, "{isa} {floats} {rest}");
            }
        }
    }

    #[test]
    fn operations_are_counted() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            assert_eq!(cpu.multiply_adds(0), 0);
            let done = cpu.multiply_adds(1000);
            assert!((2000..2000 + 2 * 12 * 16).contains(&done), "{isa}: {done}");
        }
    }
}
