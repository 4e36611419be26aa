//! What bounds the other kernels: that all is read, and that all is computed.

use narrows_kernels::{Error, Kernels, reference};
use narrows_shard::Encoding;

use crate::{Gpu, on_every_device};

#[test]
fn every_word_is_read_once() {
    on_every_device(|gpu| {
        // Less than a word for each thread, tails, more than the loads that are under way at a time.
        for words in [0, 1, 255, 257, 2048, 2049, 10_007] {
            let bytes: Vec<u8> = (0..words * 16).map(|i| (i * 7919 % 251) as u8).collect();
            for pieces in [1, 2, 3, 40] {
                let sums = gpu.range(4 * pieces);
                gpu.kernels.read_sums(&gpu.stream, &gpu.bytes(&bytes), &sums).unwrap();
                let want = reference::read_sums(&bytes, pieces);
                assert_eq!(gpu.read_u32s(&sums), want, "{words} words in {pieces} pieces");
            }
        }
    });
}

#[test]
fn multiply_adds_are_done_and_counted() {
    on_every_device(|gpu| {
        let (a, b, n) = (0.5_f32, 0.25_f32, 512);
        let out = gpu.range(4 * n);
        for steps in [0, 1, 5] {
            for encoding in Encoding::PLAIN {
                let done = gpu.kernels.multiply_adds(&gpu.stream, encoding, (a, b), steps, &out).unwrap();
                let (want, each) = if gpu.kernels.has_matrix_units(encoding) {
                    // Exact: all are small multiples of two.
                    (496.0 + 32.0 * 16.0 * a * b * steps as f32, 8 * 16 * 8 * 16 / 32)
                } else {
                    let chain = |from: u32| (0..steps).fold(from as f32, |x, _| x.mul_add(a, b));
                    ((0..16).map(chain).sum(), 16)
                };
                assert_eq!(gpu.read_f32s(&out), vec![want; n], "{encoding}, {steps} steps");
                assert_eq!(done, 2 * each * n as u64 * u64::from(steps), "{encoding}");
            }
        }
    });
}

#[test]
fn wrong_ranges_are_errors() {
    on_every_device(|gpu: &Gpu| {
        let Gpu { kernels, stream, .. } = gpu;
        let range = |len| gpu.range(len);
        let ragged = |e| matches!(e, Err(Error::Ragged { .. }));
        assert!(ragged(kernels.read_sums(stream, &range(24), &range(4))));
        assert!(ragged(kernels.read_sums(stream, &range(32), &range(3))));
        assert!(ragged(kernels.read_sums(stream, &range(32).slice(8..24).unwrap(), &range(4))));
        assert!(matches!(kernels.read_sums(stream, &range(32), &range(0)), Err(Error::Shape { .. })));
        let multiply = |encoding, len| {
            let factors = (1.0, 1.0);
            Kernels::multiply_adds(kernels, stream, encoding, factors, 1, &range(len)).map(|_| ())
        };
        assert!(ragged(multiply(Encoding::F32, 1000)));
        assert!(matches!(multiply(Encoding::Nf4, 1024), Err(Error::Quantised { .. })));
    });
}
