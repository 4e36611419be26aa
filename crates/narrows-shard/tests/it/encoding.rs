//! Quantised rows, beside bitsandbytes and beside the loops of their definition, and packs that hold them.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use narrows_shard::blocks::{NF4, RowError, codes_at, dequantise, quantise, scale_at};
use narrows_shard::{Dtype, Encoding, Error, Layout, PackOptions, ShardLayout, WeightFiles, pack, verify};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::common::{file_of, raw_file, write};

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn encode(encoding: Encoding, row: &[f32]) -> Vec<u8> {
    let mut out = vec![0xaa; encoding.row_bytes(row.len()).unwrap()];
    quantise(encoding, row, &mut out).unwrap();
    out
}

fn decode(encoding: Encoding, bytes: &[u8], cols: usize) -> Vec<f32> {
    let mut row = vec![f32::NAN; cols];
    dequantise(encoding, bytes, &mut row).unwrap();
    row
}

#[test]
fn nf4_codes_are_those_of_bitsandbytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/quantisation/bitsandbytes-blocks.safetensors");
    let file = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(floats(&tensors, "nf4.code"), NF4);
    let weight = tensors.tensor("weight").unwrap();
    let cols = weight.shape()[1];
    let weights: Vec<f32> =
        weight.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    let (packed, absmax) = (tensors.tensor("nf4.packed").unwrap(), floats(&tensors, "nf4.absmax"));
    let mut blocks = packed.data().chunks(32).zip(absmax);
    for row in weights.chunks(cols) {
        let ours = encode(Encoding::Nf4, row);
        for block in 0..cols / 64 {
            let (codes, absmax) = blocks.next().unwrap();
            assert_eq!(ours[codes_at(block)..][..32], *codes);
            assert_eq!(ours[scale_at(block)..][..2], f16::from_f32(absmax).to_le_bytes());
        }
    }
    assert!(blocks.next().is_none());
}

#[test]
fn rows_are_as_long_as_documented() {
    for (cols, q8, nf4) in [(1, 48, 48), (32, 48, 48), (33, 80, 48), (64, 80, 48), (65, 112, 80)] {
        assert_eq!(Encoding::Q8.row_bytes(cols), Some(q8));
        assert_eq!(Encoding::Nf4.row_bytes(cols), Some(nf4));
    }
    assert_eq!(Encoding::Q8.row_bytes(4096), Some(4096 * 17 / 16));
    assert_eq!(Encoding::Nf4.row_bytes(4096), Some(4096 * 17 / 32));
    for encoding in Encoding::QUANTISED {
        assert_eq!(encoding.row_bytes(0), Some(0));
        for cols in 1..3000 {
            assert_eq!(encoding.row_bytes(cols).unwrap() % 16, 0);
        }
    }
}

/// By the words of the definition, one weight at a time: the values that it may come back as. They are two where
/// the weight lies between two codes of nf4, as far as `f32` can tell.
fn plainly(encoding: Encoding, row: &[f32]) -> Vec<Vec<f32>> {
    let each = |block: &[f32]| {
        let largest = block.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        let values = |w: f32| match encoding {
            Encoding::Q8 => {
                let scale = f16::from_f32(largest / 127.0).to_f32();
                let code = if scale == 0.0 { 0.0 } else { (w / scale).round_ties_even() };
                vec![code.clamp(-127.0, 127.0) * scale]
            }
            _ => {
                let scaled = w * if largest > 0.0 { 1.0 / largest } else { 0.0 };
                let distance = |code: &f32| (code - scaled).abs();
                let least = NF4.iter().map(distance).fold(f32::INFINITY, f32::min);
                let scale = f16::from_f32(largest).to_f32();
                NF4.iter().filter(|code| distance(code) <= least + f32::EPSILON).map(|c| c * scale).collect()
            }
        };
        block.iter().copied().map(values).collect::<Vec<_>>()
    };
    row.chunks(encoding.block().unwrap()).flat_map(each).collect()
}

proptest! {
    #[test]
    fn rows_come_back_as_the_nearest_values(
        row in proptest::collection::vec(-3.0_f32..3.0, 1..700),
        exponent in -30..10,
    ) {
        let row: Vec<f32> = row.into_iter().map(|w| w * 2.0_f32.powi(exponent)).collect();
        for encoding in Encoding::QUANTISED {
            let bytes = encode(encoding, &row);
            let decoded = decode(encoding, &bytes, row.len());
            for (col, (found, values)) in decoded.iter().zip(plainly(encoding, &row)).enumerate() {
                prop_assert!(values.contains(found), "{encoding:?} {col}: {} as {found}, not {values:?}", row[col]);
            }
            // What fills the last block decodes to zeros.
            let cols = row.len().next_multiple_of(encoding.block().unwrap());
            prop_assert!(decode(encoding, &bytes, cols)[row.len()..].iter().all(|w| *w == 0.0));
        }
    }
}

#[test]
fn zeros_and_tiny_weights_are_fine() {
    for encoding in Encoding::QUANTISED {
        assert_eq!(decode(encoding, &encode(encoding, &[0.0; 70]), 70), [0.0; 70]);
        assert!(decode(encoding, &encode(encoding, &[1e-30, -1e-40]), 2).iter().all(|w| *w == 0.0));
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    for encoding in Encoding::QUANTISED {
        let mut out = vec![0; encoding.row_bytes(100).unwrap()];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; 100];
            row[77] = bad;
            let refused = quantise(encoding, &row, &mut out);
            assert!(matches!(refused, Err(RowError::NotFinite { col: 77, .. })), "{refused:?}");
        }
        let mut row = [1.0; 100];
        row[99] = -1e30;
        assert_eq!(quantise(encoding, &row, &mut out), Err(RowError::TooBig { col: 99, value: -1e30 }));
        assert!(matches!(quantise(encoding, &row[1..], &mut out[1..]), Err(RowError::Length { .. })));
        assert!(matches!(dequantise(encoding, &out[1..], &mut row), Err(RowError::Length { .. })));
    }
    assert!(matches!(quantise(Encoding::F32, &[1.0], &mut [0; 4]), Err(RowError::Length { .. })));
}

fn checkpoint(dir: &Path, dtype: Dtype, weights: &[f32], shape: &[usize]) {
    let bytes = |w: &f32| match dtype {
        Dtype::F32 => w.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(*w).to_le_bytes().to_vec(),
        _ => bf16::from_f32(*w).to_le_bytes().to_vec(),
    };
    let file = file_of(&[
        ("m", dtype, shape, weights.iter().flat_map(bytes).collect()),
        ("v", Dtype::F32, &[1], vec![0; 4]),
    ]);
    write(dir, "model.safetensors", file);
}

fn layout(encodings: &[(&str, Encoding)]) -> Layout {
    let tensors = ["m", "v"].map(String::from).to_vec();
    Layout {
        architecture: "x".into(),
        shards: vec![ShardLayout { name: "s".into(), tensors }],
        encodings: encodings.iter().map(|(name, encoding)| ((*name).to_owned(), *encoding)).collect(),
        sidecars: Vec::new(),
    }
}

fn pack_as(from: &Path, to: &Path, encodings: &[(&str, Encoding)], threads: usize) -> Result<(), Error> {
    let options = PackOptions { threads, ..PackOptions::default() };
    pack(&WeightFiles::open(from)?, &layout(encodings), to, &options, &mut |_| {}).map(|_| ())
}

#[test]
fn packs_hold_the_rows_and_say_what_they_are() {
    let (rows, cols) = (37, 333);
    let weights: Vec<f32> =
        (0..rows * cols).map(|i| f16::from_f32((i as f32 * 0.37).sin()).to_f32()).collect();
    for dtype in [Dtype::F16, Dtype::F32] {
        for encoding in Encoding::QUANTISED {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            fs::create_dir(path("model")).unwrap();
            checkpoint(&path("model"), dtype, &weights, &[rows, cols]);
            pack_as(&path("model"), &path("pack"), &[("m", encoding)], 2).unwrap();
            verify(&path("pack"), &mut |_| {}).unwrap();

            let packed = WeightFiles::open(&path("pack")).unwrap();
            assert_eq!(packed.manifest().unwrap().version, 2);
            let tensor = packed.get("m").unwrap();
            assert_eq!((tensor.dtype, tensor.encoding), (Dtype::U8, Some(encoding)));
            assert_eq!(tensor.shape, [rows, cols]);
            let mut bytes = vec![0; tensor.bytes().get() as usize];
            packed.reader().unwrap().read(tensor, 0, &mut bytes).unwrap();
            let expected: Vec<u8> = weights.chunks(cols).flat_map(|row| encode(encoding, row)).collect();
            assert!(bytes == expected);
            assert_eq!(packed.get("v").unwrap().encoding, Some(Encoding::F32));

            // Any number of threads, the same bytes; and the pack of a pack is the pack.
            let shard = fs::read(path("pack").join("s.safetensors")).unwrap();
            pack_as(&path("model"), &path("one"), &[("m", encoding)], 1).unwrap();
            assert!(fs::read(path("one").join("s.safetensors")).unwrap() == shard);
            pack_as(&path("pack"), &path("again"), &[], 3).unwrap();
            pack_as(&path("pack"), &path("same"), &[("m", encoding)], 3).unwrap();
            for copy in ["again", "same"] {
                assert!(fs::read(path(copy).join("s.safetensors")).unwrap() == shard);
            }
            // Any tool that reads safetensors reads it.
            let info = SafeTensors::deserialize(&shard).unwrap();
            let m = info.tensor("m").unwrap();
            assert_eq!((m.dtype(), m.shape()), (Dtype::U8, &[rows, encoding.row_bytes(cols).unwrap()][..]));

            let other = Encoding::QUANTISED.into_iter().find(|other| *other != encoding).unwrap();
            let refused = pack_as(&path("pack"), &path("other"), &[("m", other)], 1).unwrap_err().to_string();
            assert!(refused.contains(&format!("in {encoding} already")), "{refused}");
        }
    }
}

#[test]
fn weights_that_cannot_be_quantised_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pack");
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut weights = vec![1.0; 20 * 640];
        weights[13 * 640 + 5] = bad;
        checkpoint(&model, Dtype::BF16, &weights, &[20, 640]);
        for threads in [1, 2] {
            let refused = pack_as(&model, &out, &[("m", Encoding::Q8)], threads).unwrap_err().to_string();
            assert!(refused.contains("tensor m, row 13: the weight in column 5 is"), "{refused}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
    checkpoint(&model, Dtype::BF16, &[1.0; 4], &[4]);
    for encodings in [("m", Encoding::Q8), ("v", Encoding::Nf4), ("m", Encoding::F32), ("x", Encoding::Q8)] {
        let refused = pack_as(&model, &out, &[encodings], 1);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{encodings:?}: {refused:?}");
    }
}

#[test]
fn metadata_that_does_not_fit_the_tensors_is_refused() {
    let open = |dtype: &str, shape: &str, encodings: &str| {
        let dir = tempfile::tempdir().unwrap();
        let metadata = serde_json::json!({ "narrows.encodings": encodings });
        let header = format!(
            r#"{{"__metadata__":{metadata},"m":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,96]}}}}"#
        );
        write(dir.path(), "model.safetensors", raw_file(&header, &[0; 96]));
        WeightFiles::open(dir.path()).map(|weights| weights.get("m").unwrap().clone())
    };
    let said = |encoding: &str, cols: &str| format!(r#"{{"m":{{"encoding":"{encoding}","cols":{cols}}}}}"#);
    let good = open("U8", "[2,48]", &said("q8", "31")).unwrap();
    assert_eq!((good.shape, good.encoding), (vec![2, 31], Some(Encoding::Q8)));
    assert_eq!(open("U8", "[2,48]", "verbatim").unwrap().encoding, None);
    for (dtype, shape, encodings) in [
        ("U8", "[2,48]", said("q8", "33")),
        ("U8", "[2,48]", said("q8", "0")),
        ("U8", "[2,48]", said("q8", "-1")),
        ("U8", "[2,48]", said("q8", &usize::MAX.to_string())),
        ("U8", "[2,48]", said("f32", "12")),
        ("U8", "[2,48]", said("q9", "31")),
        ("U8", "[96]", said("q8", "31")),
        ("I8", "[2,48]", said("q8", "31")),
        ("U8", "[2,48]", said("q8", "31").replace("\"m\"", "\"n\"")),
        ("U8", "[2,48]", "something".to_owned()),
    ] {
        let refused = open(dtype, shape, &encodings);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{dtype} {shape} {encodings}: {refused:?}");
    }
}
