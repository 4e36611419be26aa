use narrows_kernels::{Error, reference};
use narrows_shard::Encoding;

use crate::{assert_same, noise, on_every_device, rounded};

#[test]
fn rows_of_a_table() {
    on_every_device(|gpu| {
        for (rows, cols) in [(1, 1), (5, 3), (40, 64), (7, 1030), (2, 300_000)] {
            let values = noise(1, rows * cols);
            let ids: Vec<u32> = (0..6).map(|i| i * 7 % rows as u32).collect();
            for encoding in Encoding::PLAIN {
                let x = gpu.range(ids.len() * cols * 4);
                let table = gpu.stored(encoding, &values);
                gpu.kernels.embed(&gpu.stream, &table, encoding, cols, &gpu.u32s(&ids), &x).unwrap();
                let want = reference::embed(&rounded(encoding, &values), cols, &ids);
                assert_same(&gpu.read_f32s(&x), &want, &format!("{encoding} [{rows}, {cols}]"));
            }
        }
    });
}

#[test]
fn an_id_beyond_the_table_reads_nothing() {
    on_every_device(|gpu| {
        let table = gpu.stored(Encoding::Bf16, &noise(2, 3 * 70));
        let x = gpu.range(4 * 70 * 4);
        let ids = gpu.u32s(&[2, 3, u32::MAX, 0]);
        gpu.kernels.embed(&gpu.stream, &table, Encoding::Bf16, 70, &ids, &x).unwrap();
        let x = gpu.read_f32s(&x);
        assert!(x[..70].iter().chain(&x[210..]).all(|x| x.is_finite()));
        assert!(x[70..210].iter().all(|x| x.is_nan()));
    });
}

#[test]
fn wrong_lengths_are_errors() {
    on_every_device(|gpu| {
        let run = |table, cols, ids, x| {
            let (table, ids, x) = (gpu.range(table), gpu.range(ids), gpu.range(x));
            gpu.kernels.embed(&gpu.stream, &table, Encoding::Bf16, cols, &ids, &x)
        };
        assert!(matches!(run(16, 0, 4, 16), Err(Error::Shape { .. })));
        assert!(matches!(run(18, 4, 4, 16), Err(Error::Ragged { .. })));
        assert!(matches!(run(16, 4, 5, 16), Err(Error::Ragged { .. })));
        assert!(matches!(run(16, 4, 4, 20), Err(Error::Length { .. })));
        assert!(matches!(run(0, usize::MAX, 8, 0), Err(Error::Overflow { .. })));
        assert!(run(16, 4, 0, 0).is_ok());
    });
}
