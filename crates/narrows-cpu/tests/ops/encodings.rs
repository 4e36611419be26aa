use half::{bf16, f16};
use narrows_cpu::{Cpu, Error, Matrix};
use narrows_shard::Encoding;
use proptest::prelude::*;

use crate::cpus;

/// All 65536 patterns, in an order that puts each of them into a vector and into a tail.
fn check_decode(encoding: Encoding, want: impl Fn(u16) -> f32) {
    let patterns: Vec<u16> = (0..=u16::MAX).chain(0..21).collect();
    let bytes: Vec<u8> = patterns.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    for cpu in cpus(1) {
        for len in [patterns.len(), 3] {
            for (patterns, bytes) in patterns.chunks(len).zip(bytes.chunks(2 * len)) {
                let mut out = vec![0.0; patterns.len()];
                cpu.decode(encoding, bytes, &mut out).unwrap();
                for (&pattern, got) in patterns.iter().zip(out) {
                    let want = want(pattern);
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{} {encoding} {pattern:#06x}: {got}, not {want}", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn every_f16_decodes() {
    check_decode(Encoding::F16, |bits| f16::from_bits(bits).to_f32());
}

#[test]
fn every_bf16_decodes() {
    check_decode(Encoding::Bf16, |bits| bf16::from_bits(bits).to_f32());
}

/// The exact reference of a quantised row, on every instruction set, from every column, and with a tail.
#[test]
fn quantised_rows_decode_to_the_bit() {
    for encoding in Encoding::QUANTISED {
        for cols in (1..140).chain([512, 1000, 4096]) {
            let mut values = crate::noise(cols as u64, cols);
            values[0] = 1e-7;
            let w = crate::Weights::new(encoding, &values, cols, cols % 3);
            for cpu in cpus(1) {
                let mut out = vec![f32::NAN; cols];
                cpu.decode(encoding, w.bytes(), &mut out).unwrap();
                assert_eq!(crate::bits(&out), crate::bits(&w.values), "{} {encoding} {cols}", cpu.isa());
            }
        }
    }
}

/// Decoded and rounded once more, to the bit, whatever the threads: from every encoding to every plain one.
#[test]
fn matrices_are_dequantised_to_the_bit() {
    for stored in Encoding::ALL {
        for (rows, cols) in [(1, 1), (3, 31), (2, 64), (5, 1000), (3, 2100), (300, 1030)] {
            let w = crate::Weights::new(stored, &crate::noise(7, rows * cols), cols, 1);
            let matrix = Matrix::new(stored, rows, cols, w.bytes()).unwrap();
            for encoding in Encoding::PLAIN {
                let mut want = vec![0; encoding.row_bytes(rows * cols).unwrap()];
                Cpu::new(1).unwrap().encode(&w.values, encoding, &mut want).unwrap();
                for cpu in cpus(1).into_iter().chain(cpus(3)) {
                    let mut out = vec![0xaa; want.len()];
                    cpu.dequantise(matrix, encoding, &mut out).unwrap();
                    assert!(out == want, "{} {stored} to {encoding} [{rows}, {cols}]", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn dequantised_to_what_is_not_plain_is_an_error() {
    let cpu = Cpu::new(1).unwrap();
    let matrix = Matrix::new(Encoding::Q8, 2, 32, &[0; 96]).unwrap();
    let refused = cpu.dequantise(matrix, Encoding::Nf4, &mut [0; 96]);
    assert!(matches!(refused, Err(Error::Quantised { .. })));
    let refused = cpu.dequantise(matrix, Encoding::Bf16, &mut [0; 96]);
    assert!(matches!(refused, Err(Error::Length { expected: 128, .. })));
}

/// Every bf16, what lies between them, and NaN.
#[test]
fn weights_are_rounded_to_the_nearest_bf16() {
    let values: Vec<f32> = (0..=u16::MAX)
        .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| u32::from(high) << 16 | low))
        .map(f32::from_bits)
        .collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let matrix = Matrix::new(Encoding::F32, 1, values.len(), &bytes).unwrap();
    for cpu in cpus(1) {
        let mut out = vec![0; 2 * values.len()];
        cpu.dequantise(matrix, Encoding::Bf16, &mut out).unwrap();
        for (value, got) in values.iter().zip(out.as_chunks::<2>().0) {
            let (got, want) = (bf16::from_le_bytes(*got), bf16::from_f32(*value));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{value:e}: {got}");
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_an_error() {
    let cpu = Cpu::new(1).unwrap();
    for encoding in Encoding::QUANTISED {
        let refused = cpu.encode(&[f32::NAN], encoding, &mut [0; 48]);
        assert!(matches!(refused, Err(Error::Row(_))), "{refused:?}");
    }
}

/// Each stored value, its neighbours in `f32`, and the ties half-way to the next one.
#[test]
fn encoding_rounds_to_nearest_even() {
    let cpu = Cpu::new(1).unwrap();
    for encoding in [Encoding::F16, Encoding::Bf16] {
        let decode = |bits: u16| match encoding {
            Encoding::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        };
        let encode = |value: f32| {
            let mut out = [0; 2];
            cpu.encode(&[value], encoding, &mut out).unwrap();
            u16::from_le_bytes(out)
        };
        for bits in 0..=u16::MAX {
            let value = decode(bits);
            if value.is_nan() {
                assert!(decode(encode(value)).is_nan());
                continue;
            }
            assert_eq!(encode(value), bits);
            let next = decode(bits.wrapping_add(1));
            if value.is_finite() && next.is_finite() && (value < 0.0) == (next < 0.0) {
                let tie = ((f64::from(value) + f64::from(next)) / 2.0) as f32;
                if tie != value && tie != next {
                    let (toward, away) =
                        (f32::from_bits(tie.to_bits() - 1), f32::from_bits(tie.to_bits() + 1));
                    assert_eq!(encode(tie), if bits % 2 == 0 { bits } else { bits + 1 });
                    assert_eq!((encode(toward), encode(away)), (bits, bits + 1), "{encoding} {tie}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn f32_goes_through_unchanged(values in proptest::collection::vec(any::<u32>(), 0..50)) {
        let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
        for cpu in cpus(1) {
            let mut bytes = vec![0; 4 * values.len()];
            cpu.encode(&values, Encoding::F32, &mut bytes).unwrap();
            let mut back = vec![0.0; values.len()];
            cpu.decode(Encoding::F32, &bytes, &mut back).unwrap();
            prop_assert_eq!(crate::bits(&values), crate::bits(&back));
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let cpu = Cpu::new(1).unwrap();
    let decoded = cpu.decode(Encoding::F16, &[0; 5], &mut [0.0; 2]);
    assert!(matches!(decoded, Err(Error::Length { expected: 4, found: 5, .. })));
    let encoded = cpu.encode(&[0.0; 2], Encoding::F32, &mut [0; 7]);
    assert!(matches!(encoded, Err(Error::Length { expected: 8, found: 7, .. })));
}
