use narrows_cpu::{Cpu, Error, Isa, reference};
use proptest::prelude::*;

use crate::{assert_close, bits, cpus, noise};

const EPS: f32 = 1e-5;

/// Runs `op` on every instruction set with one to three threads and asserts that threads make no difference.
fn everywhere(op: impl Fn(&Cpu) -> Vec<f32>) -> Vec<(Isa, Vec<f32>)> {
    let run = |cpu: &Cpu| {
        let result = op(cpu);
        for threads in 2..=3 {
            let threaded = Cpu::with_isa(threads, cpu.isa()).unwrap();
            assert!(bits(&op(&threaded)) == bits(&result), "{} with {threads} threads", cpu.isa());
        }
        (cpu.isa(), result)
    };
    cpus(1).iter().map(run).collect()
}

#[test]
fn norms_of_every_length() {
    for cols in (1..=70).chain([256, 2048, 5000, 16_384]) {
        for n in [1, 2, 9, 33] {
            let (x, weight) = (noise(1, n * cols), noise(2, cols));
            let want = reference::rms_norm(&x, &weight, EPS);
            for (isa, got) in everywhere(|cpu| {
                let mut out = vec![f32::NAN; x.len()];
                cpu.rms_norm(&x, &weight, EPS, &mut out).unwrap();
                let mut in_place = x.clone();
                cpu.rms_norm_in_place(&mut in_place, &weight, EPS).unwrap();
                assert_eq!(bits(&out), bits(&in_place));
                out
            }) {
                assert_close(&got, &want, |i| want[i].abs(), &format!("{isa} norm of {n} rows of {cols}"));
                // Alone as in the batch.
                let cpu = Cpu::with_isa(1, isa).unwrap();
                let mut last = x[(n - 1) * cols..].to_vec();
                cpu.rms_norm_in_place(&mut last, &weight, EPS).unwrap();
                assert_eq!(bits(&last), bits(&got[(n - 1) * cols..]));
            }
        }
    }
}

#[test]
fn norm_of_zeros_is_zero_and_of_nan_is_nan() {
    for cpu in cpus(1) {
        let mut x = [[0.0_f32; 20], [f32::NAN; 20], [1.0; 20]];
        cpu.rms_norm_in_place(x.as_flattened_mut(), &[1.0; 20], EPS).unwrap();
        assert_eq!(x[0], [0.0; 20]);
        assert!(x[1].iter().all(|x| x.is_nan()));
        assert!(x[2].iter().all(|x| (x - 1.0).abs() < 1e-4));
    }
}

#[test]
fn rope_of_every_head_dimension() {
    for head_dim in (2..=70).step_by(2).chain([80, 96, 128, 256]) {
        for (n, heads) in [(1, 1), (3, 2), (33, 8)] {
            let x = noise(3, n * heads * head_dim);
            let (cos, sin) = (noise(4, n * head_dim / 2), noise(5, n * head_dim / 2));
            let want = reference::rope(&x, heads, head_dim, &cos, &sin);
            for (isa, got) in everywhere(|cpu| {
                let mut x = x.clone();
                cpu.rope(&mut x, heads, head_dim, &cos, &sin).unwrap();
                x
            }) {
                assert_close(&got, &want, |_| 1.0, &format!("{isa} rope {n} x {heads} x {head_dim}"));
            }
        }
    }
}

#[test]
fn swiglu_over_the_whole_range() {
    let gate: Vec<f32> = noise(6, 40_001).iter().map(|x| x * 85.0).collect();
    let up = noise(7, gate.len());
    let want = reference::swiglu(&gate, &up);
    let results = everywhere(|cpu| {
        let mut gate = gate.clone();
        cpu.swiglu(&mut gate, &up).unwrap();
        gate
    });
    for (isa, got) in &results {
        assert_close(got, &want, |i| want[i].abs(), &format!("{isa} swiglu"));
        assert_eq!(bits(got), bits(&results[0].1), "nothing in it depends on the instruction set");
    }
}

#[test]
fn add_and_add_bias() {
    for len in [1, 5, 64, 300_001] {
        let (x, y) = (noise(8, len), noise(9, len));
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        for (isa, got) in everywhere(|cpu| {
            let mut y = y.clone();
            cpu.add(&x, &mut y).unwrap();
            y
        }) {
            assert_eq!(bits(&got), bits(&want), "{isa}");
        }
    }
    for cpu in cpus(1) {
        let mut y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        cpu.add_bias(&[10.0, 20.0, 30.0], &mut y).unwrap();
        assert_eq!(y, [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
    }
}

#[test]
fn argmax_takes_the_first() {
    let cpu = Cpu::new(1).unwrap();
    for (row, want) in [
        (&[1.0][..], 0),
        (&[1.0, 3.0, 2.0, 3.0], 1),
        (&[f32::NEG_INFINITY, f32::NEG_INFINITY], 0),
        (&[f32::NEG_INFINITY, f32::MIN], 1),
        (&[-0.0, 0.0], 0),
        (&[1.0, f32::INFINITY, f32::NAN, f32::NAN], 2),
        (&[f32::NAN, f32::INFINITY], 0),
    ] {
        assert_eq!(cpu.argmax(row).unwrap(), want, "{row:?}");
    }
    assert!(matches!(cpu.argmax(&[]), Err(Error::Zero { .. })));
}

proptest! {
    #[test]
    fn argmax_as_a_search(row in proptest::collection::vec(-3_i8..3, 1..400)) {
        let row: Vec<f32> = row.into_iter().map(f32::from).collect();
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        prop_assert_eq!(Cpu::new(1).unwrap().argmax(&row).unwrap(), row.iter().position(|&x| x == max).unwrap());
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let cpu = Cpu::new(1).unwrap();
    let y = &mut [0.0; 12];
    let length = |result| matches!(result, Err(Error::Length { .. }));
    let ragged = |result| matches!(result, Err(Error::Ragged { .. }));
    let zero = |result| matches!(result, Err(Error::Zero { .. }));
    assert!(length(cpu.add(&[0.0; 11], y)));
    assert!(length(cpu.swiglu(y, &[0.0; 13])));
    assert!(ragged(cpu.add_bias(&[0.0; 5], y)));
    assert!(zero(cpu.add_bias(&[], y)));
    assert!(length(cpu.rms_norm(&[0.0; 6], &[1.0; 3], EPS, y)));
    assert!(ragged(cpu.rms_norm_in_place(y, &[1.0; 5], EPS)));
    assert!(zero(cpu.rms_norm_in_place(y, &[], EPS)));
    assert!(matches!(cpu.rope(y, 4, 3, &[], &[]), Err(Error::OddHead { head_dim: 3 })));
    assert!(matches!(cpu.rope(y, 4, usize::MAX - 1, &[], &[]), Err(Error::Overflow { .. })));
    assert!(ragged(cpu.rope(y, 4, 4, &[0.0; 2], &[0.0; 2])));
    assert!(zero(cpu.rope(y, 0, 4, &[0.0; 2], &[0.0; 2])));
    assert!(length(cpu.rope(y, 3, 2, &[0.0; 2], &[0.0; 1])));
    assert!(length(cpu.rope(y, 3, 2, &[0.0; 1], &[0.0; 2])));
    assert!(cpu.rope(y, 3, 2, &[0.0; 2], &[0.0; 2]).is_ok());
}
