use narrows_cpu::{Cpu, Error, Isa, reference};

use crate::{assert_close, bits, cpus, noise};

const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 3, 4), (40, 64, 40), (7, 1030, 5), (3, 5000, 2), (300, 17, 220), (700, 1024, 600)];

/// `m` numbers below `rows`, in no order; different ones where `m` is at most `rows`.
fn numbers(rows: usize, m: usize) -> Vec<u32> {
    // 7919 is a prime that divides none of the numbers of rows here.
    (0..m).map(|i| (i * 7919 % rows) as u32).collect()
}

#[test]
fn rows_are_gathered_bit_by_bit() {
    for (rows, cols, m) in SHAPES {
        let mut x = noise(1, rows * cols);
        (x[0], x[rows * cols - 1]) = (f32::NAN, -0.0);
        let named = numbers(rows, 2 * m);
        let want = reference::gather_rows(&x, cols, &named);
        for threads in 1..=3 {
            for cpu in cpus(threads) {
                let mut out = vec![7.0; named.len() * cols];
                cpu.gather_rows(&x, cols, &named, &mut out).unwrap();
                assert_eq!(bits(&out), bits(&want), "{} {m} of [{rows}, {cols}]", cpu.isa());
            }
        }
    }
}

/// To the bit where products and sums are rounded at once, within a rounding of the product elsewhere; and the
/// same whatever the threads, also where a row is named twice.
#[test]
fn weighted_rows_are_added() {
    for (rows, cols, m) in SHAPES {
        for m in [m, 2 * rows] {
            let (y, weights, out) = (noise(2, m * cols), noise(3, m), noise(4, rows * cols));
            let named = numbers(rows, m);
            let want = reference::scatter_add(&y, cols, &named, &weights, &out);
            for isa in Isa::available() {
                let what = format!("{isa} {m} of [{rows}, {cols}]");
                let mut alone = None;
                for threads in 1..=3 {
                    let mut sums = out.clone();
                    let cpu = Cpu::with_isa(threads, isa).unwrap();
                    cpu.scatter_add(&y, cols, &named, &weights, &mut sums).unwrap();
                    match isa {
                        Isa::Portable => assert_close(&sums, &want, |_| 1.0, &what),
                        _ => assert_eq!(bits(&sums), bits(&want), "{what}"),
                    }
                    assert_eq!(&bits(&sums), alone.get_or_insert_with(|| bits(&sums)), "{what}");
                }
            }
        }
    }
}

#[test]
fn infinity_and_nan_stay_in_their_row() {
    for cpu in cpus(1) {
        let mut out = [1.0; 6];
        cpu.scatter_add(&[1.0, f32::INFINITY, 2.0, f32::NAN], 2, &[2, 0], &[1.0, 0.5], &mut out).unwrap();
        assert_eq!(&out[..1], [2.0]);
        assert!(out[1].is_nan());
        assert_eq!(&out[2..], [1.0, 1.0, 2.0, f32::INFINITY]);
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let cpu = Cpu::new(1).unwrap();
    let out = &mut [3.0; 12];
    assert!(matches!(cpu.gather_rows(&[0.0; 8], 4, &[0, 2, 1], out), Err(Error::Beyond { end: 3, .. })));
    assert!(matches!(cpu.gather_rows(&[0.0; 8], 4, &[0, 1], out), Err(Error::Length { .. })));
    assert!(matches!(cpu.gather_rows(&[0.0; 9], 4, &[0, 1, 1], out), Err(Error::Ragged { .. })));
    assert!(matches!(cpu.gather_rows(&[], 0, &[], out), Err(Error::Zero { .. })));
    assert!(cpu.gather_rows(&[0.0; 8], 4, &[], &mut []).is_ok());

    let mut scatter =
        |y: &[f32], cols, rows: &[u32], weights: &[f32]| cpu.scatter_add(y, cols, rows, weights, out);
    assert!(matches!(scatter(&[1.0; 8], 4, &[0, u32::MAX], &[1.0; 2]), Err(Error::Beyond { limit: 3, .. })));
    assert!(matches!(scatter(&[1.0; 8], 4, &[0, 1], &[1.0; 3]), Err(Error::Length { .. })));
    assert!(matches!(scatter(&[1.0; 7], 4, &[0, 1], &[1.0; 2]), Err(Error::Length { .. })));
    assert!(matches!(scatter(&[1.0; 10], 5, &[0, 1], &[1.0; 2]), Err(Error::Ragged { .. })));
    assert!(matches!(scatter(&[], 0, &[], &[]), Err(Error::Zero { .. })));
    assert!(scatter(&[], 4, &[], &[]).is_ok());
    assert_eq!(*out, [3.0; 12], "nothing is written when an operation returns an error");
}
