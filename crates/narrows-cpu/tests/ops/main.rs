//! Every operation, on every instruction set of this machine, against the plain loops of
//! [`narrows_cpu::reference`], and against itself in other batches, tiles and numbers of threads.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may")]

mod attention;
mod elementwise;
mod encodings;
mod linear;
mod rows;

use narrows_cpu::{Cpu, Error, Isa};
use narrows_shard::{Encoding, blocks};

/// One `Cpu` per instruction set of this machine.
fn cpus(threads: usize) -> Vec<Cpu> {
    Isa::available().map(|isa| Cpu::with_isa(threads, isa).unwrap()).collect()
}

/// Numbers in -1..1 that look random and are the same in every run (SplitMix64).
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Rows of weights as stored, at an odd address where `shift` is odd, and as the numbers that they stand for.
struct Weights {
    encoding: Encoding,
    buffer: Vec<u8>,
    shift: usize,
    values: Vec<f32>,
}

impl Weights {
    fn new(encoding: Encoding, values: &[f32], cols: usize, shift: usize) -> Self {
        let cpu = Cpu::with_isa(1, Isa::Portable).unwrap();
        let row_bytes = encoding.row_bytes(cols).unwrap();
        let mut buffer = vec![0xff; shift + values.len() / cols * row_bytes];
        let mut exact = vec![0.0; values.len()];
        let rows = values.chunks(cols).zip(exact.chunks_mut(cols));
        for ((values, exact), bytes) in rows.zip(buffer[shift..].chunks_mut(row_bytes)) {
            cpu.encode(values, encoding, bytes).unwrap();
            if encoding.block().is_some() {
                blocks::dequantise(encoding, bytes, exact).unwrap();
            } else {
                cpu.decode(encoding, bytes, exact).unwrap();
            }
        }
        Self { encoding, buffer, shift, values: exact }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.shift..]
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// That each element is within `tolerance` of the reference, times the magnitude of what was summed up.
#[track_caller]
fn assert_close(got: &[f32], want: &[f32], magnitude: impl Fn(usize) -> f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let bound = 8.0 * f32::EPSILON * magnitude(i) + 1e-37;
        assert!((got - want).abs() <= bound, "{what}: element {i} is {got}, not {want} (within {bound})");
    }
}

#[test]
fn instruction_sets() {
    assert!(Isa::available().any(|isa| isa == Isa::Portable));
    assert_eq!(Cpu::new(3).unwrap().isa(), Isa::best());
    for isa in Isa::ALL {
        match Cpu::with_isa(2, isa) {
            Ok(cpu) => assert_eq!((cpu.isa(), cpu.threads()), (isa, 2)),
            Err(error) => {
                assert!(matches!(error, Error::Isa(missing) if missing == isa));
                assert!(Isa::available().all(|other| other != isa));
            }
        }
    }
}
