use narrows_cpu::{Activation, Cpu, Error, Isa, reference};
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
        let mut out = vec![0.0; gate.len()];
        cpu.activate(Activation::Silu, &gate, Some(&up), &mut out).unwrap();
        out
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
    assert!(length(cpu.activate(Activation::Silu, &[0.0; 12], Some(&[0.0; 13]), y)));
    assert!(length(cpu.activate(Activation::Silu, &[0.0; 13], None, y)));
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

#[test]
fn a_part_of_each_head_turns() {
    for (head_dim, half) in [(6, 1), (16, 4), (24, 12), (70, 17), (128, 32)] {
        for (n, heads, neighbours) in [(1, 1, false), (3, 2, true), (33, 8, false), (33, 8, true)] {
            let x = noise(3, n * heads * head_dim);
            let (cos, sin) = (noise(4, n * half), noise(5, n * half));
            let mut want = x.clone();
            for (head, out) in want.chunks_mut(head_dim).enumerate() {
                for j in 0..half {
                    let (a, b) = if neighbours { (2 * j, 2 * j + 1) } else { (j, j + half) };
                    let angle = head / heads * half + j;
                    let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
                    let (first, second) = (f64::from(out[a]), f64::from(out[b]));
                    out[a] = (first * c - second * s) as f32;
                    out[b] = (second * c + first * s) as f32;
                }
            }
            for (isa, got) in everywhere(|cpu| {
                let mut x = x.clone();
                cpu.rope_in_part(&mut x, heads, head_dim, neighbours, &cos, &sin).unwrap();
                x
            }) {
                assert_close(&got, &want, |_| 1.0, &format!("{isa} {half} of {head_dim}, {neighbours}"));
            }
        }
    }
    let cpu = Cpu::new(1).unwrap();
    let beyond = cpu.rope_in_part(&mut [0.0; 8], 2, 4, false, &[0.0; 3], &[0.0; 3]);
    assert!(matches!(beyond, Err(Error::Beyond { .. })));
}

#[test]
fn norms_of_pieces() {
    for (piece, own, n) in [(1, 1, 3), (7, 1, 5), (24, 4, 9), (65, 3, 33), (2048, 1, 2)] {
        let (x, weight, bias) = (noise(1, n * own * piece), noise(2, own * piece), noise(3, own * piece));
        for centred in [false, true] {
            let mut want = Vec::new();
            for (index, x) in x.chunks(piece).enumerate() {
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / piece as f64;
                let shifted = |x: f32| f64::from(x) - if centred { mean } else { 0.0 };
                let squares: f64 = x.iter().map(|x| shifted(*x).powi(2)).sum();
                let norm = (squares / piece as f64 + f64::from(EPS)).sqrt();
                for (j, x) in x.iter().enumerate() {
                    let at = index % own * piece + j;
                    let bias = if centred { f64::from(bias[at]) } else { 0.0 };
                    want.push((shifted(*x) / norm * f64::from(weight[at]) + bias) as f32);
                }
            }
            for (isa, got) in everywhere(|cpu| {
                let mut x = x.clone();
                match centred {
                    true => cpu.layer_norm_in_place(&mut x, piece, &weight, Some(&bias), EPS).unwrap(),
                    false => cpu.rms_norm_pieces(&mut x, piece, &weight, EPS).unwrap(),
                }
                x
            }) {
                // What the mean is taken off is up to one, and is divided by the norm of the rest.
                assert_close(
                    &got,
                    &want,
                    |i| want[i].abs() + 4.0,
                    &format!("{isa} {own} x {piece}, {centred}"),
                );
            }
        }
    }
}

#[test]
fn maps_of_elements() {
    let (x, factors) = (noise(8, 4 * 1001), noise(9, 1001));
    let x: Vec<f32> = x.iter().map(|x| x * 20.0).collect();
    let gelu =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
    let activated = |function: Activation| {
        move |cpu: &Cpu, x: &[f32]| {
            let mut out = vec![f32::NAN; x.len()];
            cpu.activate(function, x, None, &mut out).unwrap();
            out
        }
    };
    let mapped = |op: fn(&Cpu, &mut [f32])| {
        move |cpu: &Cpu, x: &[f32]| {
            let mut x = x.to_vec();
            op(cpu, &mut x);
            x
        }
    };
    type Case<'a> = (&'a str, Box<dyn Fn(&Cpu, &[f32]) -> Vec<f32>>, Box<dyn Fn(f64) -> f64>);
    let cases: [Case<'_>; 6] = [
        ("gelu", Box::new(activated(Activation::GeluTanh)), Box::new(gelu)),
        ("relu squared", Box::new(activated(Activation::Relu2)), Box::new(|x| x.max(0.0).powi(2))),
        ("sigmoid", Box::new(activated(Activation::Sigmoid)), Box::new(|x| 1.0 / (1.0 + (-x).exp()))),
        ("scale", Box::new(mapped(|cpu, x| cpu.scale(0.3, x))), Box::new(|x| x * f64::from(0.3_f32))),
        ("softcap", Box::new(mapped(|cpu, x| cpu.softcap(5.0, x))), Box::new(|x| 5.0 * (x / 5.0).tanh())),
        ("clamp", Box::new(mapped(|cpu, x| cpu.clamp(7.5, x))), Box::new(|x| x.clamp(-7.5, 7.5))),
    ];
    for (name, op, want) in &cases {
        let want: Vec<f32> = x.iter().map(|x| want(f64::from(*x)) as f32).collect();
        let results = everywhere(|cpu| op(cpu, &x));
        for (isa, got) in &results {
            assert_close(got, &want, |i| want[i].abs().max(1.0), &format!("{isa} {name}"));
            assert_eq!(bits(got), bits(&results[0].1), "nothing in it depends on the instruction set");
        }
    }
    for (isa, got) in everywhere(|cpu| {
        let mut x = x.clone();
        cpu.multiply(&factors, &mut x).unwrap();
        x
    }) {
        let want: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factors[i % 1001]).collect();
        assert_eq!(bits(&got), bits(&want), "{isa}");
    }
    let cpu = Cpu::new(1).unwrap();
    let mut nan = [f32::NAN; 3];
    cpu.clamp(1.0, &mut nan);
    assert!(nan.iter().all(|x| x.is_nan()));
    assert!(matches!(cpu.multiply(&[1.0; 2], &mut [0.0; 3]), Err(Error::Ragged { .. })));
}
