use narrows_cpu::{Cpu, Error, Isa, Matrix, RowsMut, reference};
use narrows_shard::Encoding;
use proptest::prelude::*;

use crate::{Weights, assert_close, bits, cpus, noise};

fn linear(cpu: &Cpu, w: &Weights, rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / cols * rows];
    let matrix = Matrix::new(w.encoding, rows, cols, w.bytes()).unwrap();
    cpu.linear(matrix, x, RowsMut::new(&mut y, rows, 0).unwrap()).unwrap();
    y
}

fn check(rows: usize, cols: usize, n: usize, shift: usize) {
    let x = noise(1, n * cols);
    for encoding in Encoding::ALL {
        let w = Weights::new(encoding, &noise(2, rows * cols), cols, shift);
        let want = reference::linear(&w.values, &x, cols);
        let absolute = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let magnitude = reference::linear(&absolute(&w.values), &absolute(&x), cols);
        for cpu in cpus(2) {
            let got = linear(&cpu, &w, rows, cols, &x);
            let what = format!("{} {encoding} [{rows}, {cols}] n {n} shift {shift}", cpu.isa());
            assert_close(&got, &want, |i| magnitude[i], &what);
        }
    }
}

#[test]
fn tails_of_columns() {
    for cols in (1..=34).chain([63, 64, 65, 1023, 1024, 1025, 1039, 2048, 2049, 16_384, 33_000]) {
        check(3, cols, 1, 0);
        check(5, cols, 9, 1);
    }
}

#[test]
fn remainders_of_rows() {
    for rows in (1..=9).chain([31, 32, 33, 65, 300]) {
        for n in (1..=14).chain([33, 50]) {
            check(rows, 50, n, 2);
        }
    }
}

#[test]
fn any_address() {
    for shift in 0..9 {
        check(9, 1030, 1, shift);
        check(9, 1030, 7, shift);
    }
}

#[test]
fn enough_work_for_threads() {
    check(1000, 520, 1, 1);
    check(270, 1500, 60, 0);
}

/// The law of this crate: neither the batch, nor the tile, nor the threads change a bit of a row.
#[test]
fn same_bits_in_every_batch_tile_and_thread() {
    // More rows than are ever multiplied without a panel, which is after 8 tiles of 6.
    let (rows, cols, n) = (150, 2100, 53);
    let x = noise(3, n * cols);
    for encoding in Encoding::ALL {
        let w = Weights::new(encoding, &noise(4, rows * cols), cols, 0);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| linear(&cpu, &w, rows, cols, x)).collect();
            for threads in 1..=3 {
                let cpu = Cpu::with_isa(threads, isa).unwrap();
                for batch in [2, 3, 4, 5, 6, 7, 13, 25, 49, n] {
                    let batched: Vec<f32> =
                        x.chunks(batch * cols).flat_map(|x| linear(&cpu, &w, rows, cols, x)).collect();
                    assert!(
                        bits(&alone) == bits(&batched),
                        "{isa} {encoding} {threads} threads, {batch} rows"
                    );
                }
                for tile in [1, 7, 64] {
                    let matrix = Matrix::new(encoding, rows, cols, w.bytes()).unwrap();
                    let mut y = vec![f32::NAN; n * rows];
                    for first in (0..rows).step_by(tile) {
                        let tile = matrix.slice(first..(first + tile).min(rows)).unwrap();
                        cpu.linear(tile, &x, RowsMut::new(&mut y, rows, first).unwrap()).unwrap();
                    }
                    assert!(bits(&alone) == bits(&y), "{isa} {encoding} {threads} threads, tiles of {tile}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape(rows in 1_usize..80, cols in 1_usize..1200, n in 1_usize..20, shift in 0_usize..8) {
        check(rows, cols, n, shift);
    }
}

#[test]
fn infinity_and_nan_stay_in_their_column() {
    for cpu in cpus(1) {
        for n in [1, 3, 12] {
            let (rows, cols) = (6, 70);
            let mut values = noise(5, rows * cols);
            values[2 * cols + 69] = f32::NAN;
            values[4 * cols] = f32::INFINITY;
            let w = Weights::new(Encoding::F32, &values, cols, 0);
            let y = linear(&cpu, &w, rows, cols, &vec![1.0; n * cols]);
            for row in y.chunks(rows) {
                assert!(row[2].is_nan() && row[4] == f32::INFINITY);
                assert!([0, 1, 3, 5].iter().all(|&r| row[r].is_finite()));
            }
        }
    }
}

#[test]
fn columns_beside_the_tile_are_left_alone() {
    let w = Weights::new(Encoding::Bf16, &noise(6, 5 * 8), 8, 0);
    for cpu in cpus(1) {
        let mut y = vec![7.0; 3 * 20];
        let tile = Matrix::new(Encoding::Bf16, 5, 8, w.bytes()).unwrap();
        cpu.linear(tile, &noise(7, 3 * 8), RowsMut::new(&mut y, 20, 10).unwrap()).unwrap();
        for row in y.chunks(20) {
            assert!(row[..10].iter().chain(&row[15..]).all(|&y| y == 7.0));
            assert!(row[10..15].iter().all(|&y| y != 7.0));
        }
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let bytes = [0; 64];
    let new = |rows, cols, bytes| Matrix::new(Encoding::Bf16, rows, cols, bytes);
    assert!(matches!(new(4, 8, &bytes[1..]), Err(Error::Length { expected: 64, found: 63, .. })));
    assert!(matches!(new(4, 0, &[]), Err(Error::Zero { .. })));
    assert!(matches!(new(2, usize::MAX, &bytes), Err(Error::Overflow { .. })));
    assert!(matches!(new(usize::MAX, 2, &bytes), Err(Error::Overflow { .. })));

    let w = new(4, 8, &bytes).unwrap();
    assert_eq!((w.rows(), w.cols(), w.encoding(), w.row(3).len()), (4, 8, Encoding::Bf16, 16));
    assert!(matches!(w.slice(3..5), Err(Error::Beyond { .. })));
    #[expect(clippy::reversed_empty_ranges, reason = "what is to be refused")]
    let reversed = w.slice(3..1);
    assert!(matches!(reversed, Err(Error::Beyond { .. })));

    let cpu = Cpu::new(1).unwrap();
    let mut y = [0.0; 8];
    assert!(matches!(RowsMut::new(&mut y, 3, 0), Err(Error::Ragged { .. })));
    assert!(matches!(RowsMut::new(&mut y, 0, 0), Err(Error::Zero { .. })));
    assert!(matches!(RowsMut::new(&mut y, 4, 5), Err(Error::Beyond { .. })));
    let mut run =
        |x: &[f32], stride, first| RowsMut::new(&mut y, stride, first).and_then(|y| cpu.linear(w, x, y));
    assert!(run(&[0.0; 16], 4, 0).is_ok());
    assert!(matches!(run(&[0.0; 15], 4, 0), Err(Error::Ragged { .. })));
    assert!(matches!(run(&[0.0; 8], 4, 0), Err(Error::Length { .. })));
    assert!(matches!(run(&[0.0; 8], 8, 5), Err(Error::Beyond { .. })));
    assert!(matches!(Cpu::new(0), Err(Error::Zero { .. })));
}

#[test]
fn nothing_to_do_is_fine() {
    let cpu = Cpu::new(2).unwrap();
    let w = Matrix::new(Encoding::F32, 0, 8, &[]).unwrap();
    cpu.linear(w, &[1.0; 8], RowsMut::new(&mut [3.0; 4], 4, 0).unwrap()).unwrap();
    let w = Matrix::new(Encoding::F32, 1, 1, &[0; 4]).unwrap();
    cpu.linear(w, &[], RowsMut::new(&mut [], 1, 0).unwrap()).unwrap();
}
