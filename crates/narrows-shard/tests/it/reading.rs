//! Reading checkpoints: what is right is read exactly, what is wrong is refused in plain words.

use std::fs;
use std::path::Path;

use narrows_shard::{Bytes, Encoding, Error, WeightFiles, parse_header, parse_index};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};

use crate::common::{file_of, golden, raw_file, write};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Opens a checkpoint whose `model.safetensors` holds these bytes; the error it gives.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let dir = dir();
    write(dir.path(), "model.safetensors", bytes);
    let message = WeightFiles::open(dir.path()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn goldens_read_as_the_safetensors_crate_reads_them() {
    for model in ["llama", "llama3-rope-tied-sharded", "qwen3-moe"] {
        let weights = WeightFiles::open(&golden(model)).unwrap();
        let reader = weights.reader().unwrap();
        let mut count = 0;
        let mut total = Bytes(0);
        for file in weights.files() {
            let bytes = fs::read(&file.path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = weights.get(&name).unwrap();
                assert_eq!((tensor.dtype, &tensor.shape[..]), (view.dtype(), view.shape()));
                assert_eq!(tensor.encoding, Some(Encoding::Bf16));
                let mut data = vec![0; tensor.bytes().get() as usize];
                reader.read(tensor, 0, &mut data).unwrap();
                assert_eq!(data, view.data());
                count += 1;
                total += tensor.bytes();
            }
        }
        assert_eq!(weights.tensors().count(), count);
        assert_eq!(weights.total_bytes(), total);
        assert!(weights.manifest().is_none());
    }
}

#[test]
fn reads_stay_within_the_tensor() {
    let dir = dir();
    let data: Vec<u8> = (0..16).collect();
    write(dir.path(), "model.safetensors", file_of(&[("a", Dtype::F32, &[4], data)]));
    let weights = WeightFiles::open(dir.path()).unwrap();
    let reader = weights.reader().unwrap();
    let tensor = weights.get("a").unwrap();
    let mut two = [0; 2];
    reader.read(tensor, 14, &mut two).unwrap();
    assert_eq!(two, [14, 15]);
    for offset in [15, 16, u64::MAX] {
        let refused = reader.read(tensor, offset, &mut two).unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    }
    fs::write(dir.path().join("model.safetensors"), b"gone").unwrap();
    let lost = reader.read(tensor, 0, &mut two).unwrap_err();
    assert!(matches!(lost, Error::Io { .. }), "{lost}");
    assert!(weights.reader().is_err());
}

#[test]
fn weights_that_are_written_to_are_noticed() {
    let dir = dir();
    let path = dir.path().join("model.safetensors");
    write(dir.path(), "model.safetensors", file_of(&[("a", Dtype::F32, &[4], vec![1; 16])]));
    let weights = WeightFiles::open(dir.path()).unwrap();
    weights.unchanged().unwrap();
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let changed = weights.unchanged().unwrap_err();
    assert!(matches!(&changed, Error::Changed { path: named } if *named == path), "{changed}");
    let weights = WeightFiles::open(dir.path()).unwrap();
    weights.unchanged().unwrap();
    // What was opened of a file survives its name.
    fs::remove_file(&path).unwrap();
    weights.unchanged().unwrap();
}

#[test]
fn a_damaged_file_is_refused_when_opened() {
    let good = file_of(&[("a", Dtype::F32, &[4], vec![7; 16]), ("b", Dtype::BF16, &[], vec![1; 2])]);
    assert!(refused(b"").contains("0 bytes are too few"));
    assert!(refused(&good[..7]).contains("too few"));
    assert!(refused(&good[..20]).contains("the header takes"));
    assert!(refused(&good[..good.len() - 1]).contains("but the file has"));
    assert!(refused(&[&good[..], &[0]].concat()).contains("but the file has"));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("the limit is"));
    assert!(refused(&[&99_999_999u64.to_le_bytes()[..], b"{}"].concat()).contains("the header takes"));
    assert!(refused(b"\x04\0\0\0\0\0\0\0{\"\xff\"").contains("UTF-8"));
}

#[test]
fn a_header_that_does_not_add_up_is_refused() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let ok = entry("U8", "[4]", "[0,4]");
    for (header, says) in [
        ("".to_string(), "bad header"),
        ("[]".into(), "expected an object"),
        ("{".into(), "bad header"),
        (format!(r#"{{"a":{ok},"a":{ok}}}"#), r#""a" appears twice"#),
        (format!(r#"{{"a":{ok},"\u0061":{ok}}}"#), r#""a" appears twice"#),
        (format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},"a":{ok}}}"#), "appears twice"),
        (format!(r#"{{"__metadata__":{{"k":1}},"a":{ok}}}"#), "expected a string"),
        (format!(r#"{{"a":{}}}"#, entry("Q7", "[4]", "[0,4]")), "unknown variant"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[4]", "[4,0]")), "invalid offset"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[4]", "[1,5]")), "invalid offset"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[5]", "[0,4]")), "invalid shape"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[-4]", "[0,4]")), "invalid value"),
        (format!(r#"{{"a":{}}}"#, entry("F4", "[1]", "[0,4]")), "bad header"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[4294967296,4294967296]", "[0,4]")), "overflow"),
        (format!(r#"{{"a":{}}}"#, entry("U8", "[4]", "[0,18446744073709551615]")), "bad header"),
        (format!(r#"{{"a":{ok},"b":{ok}}}"#), "invalid offset"),
        (format!(r#"{{"a":{ok},"b":{}}}"#, entry("U8", "[4]", "[8,12]")), "invalid offset"),
        (format!(r#"{{"a":{}}}"#, entry("U8", &format!("[{}4]", "1,".repeat(32)), "[0,4]")), "dimensions"),
        (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":[]}}"#.into(), "unknown field"),
        (format!(r#"{{"__metadata__":[],"a":{ok}}}"#), "expected"),
        ("[".repeat(5000), "bad header"),
        (format!(r#"{{"a":{}"#, "[".repeat(5000)), "bad header"),
    ] {
        let message = refused(&raw_file(&header, &[0; 4]));
        assert!(message.contains(says), "{header:.80}\n{message}");
    }
}

/// Tensors that each fit, but whose end is the last integer, so that adding the header to it overflows.
#[test]
fn offsets_up_to_the_last_integer_are_refused() {
    let most = (1u64 << 61) - 1;
    let mut entries = Vec::new();
    let mut start = 0;
    for size in [most; 8].into_iter().chain([7]) {
        let i = entries.len();
        let end = start + size;
        entries.push(format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#));
        start = end;
    }
    assert_eq!(start, u64::MAX);
    let header = format!("{{{}}}", entries.join(","));
    assert!(refused(&raw_file(&header, &[])).contains("but the file has"));
}

#[test]
fn no_metadata_may_be_written_as_null() {
    let header = r#"{"__metadata__":null,"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let file = raw_file(header, &[0; 4]);
    let header = parse_header(Path::new("x"), &file, file.len() as u64).unwrap();
    assert!(header.metadata.is_empty() && header.tensors.contains_key("a"));
}

#[test]
fn a_scalar_and_an_empty_tensor_are_fine() {
    let dir = dir();
    let file = file_of(&[("e", Dtype::F16, &[0, 7], vec![]), ("s", Dtype::I64, &[], vec![9; 8])]);
    write(dir.path(), "model.safetensors", file);
    let weights = WeightFiles::open(dir.path()).unwrap();
    assert_eq!(weights.get("e").unwrap().bytes(), Bytes(0));
    assert_eq!(weights.get("s").unwrap().encoding, None);
    weights.reader().unwrap().read(weights.get("e").unwrap(), 0, &mut []).unwrap();
}

#[test]
fn an_index_that_lies_is_refused() {
    let a = file_of(&[("a", Dtype::U8, &[4], vec![1; 4])]);
    for (index, says) in [
        ("[]", "not a JSON object"),
        (r#"[{"a":"a.safetensors"}]"#, "not a JSON object"),
        ("{", "bad index"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":[]}"#, "expected an object"),
        (r#"{"weight_map":{}}"#, "empty"),
        (r#"{"weight_map":{"a":1}}"#, "expected a string"),
        (r#"{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}"#, "appears twice"),
        (r#"{"weight_map":{"a":"../a.safetensors"}}"#, "not a file name"),
        (r#"{"weight_map":{"a":"/a.safetensors"}}"#, "not a file name"),
        (r#"{"weight_map":{"a":"sub/a.safetensors"}}"#, "not a file name"),
        (r#"{"weight_map":{"a":"sub\\a.safetensors"}}"#, "not a file name"),
        (r#"{"weight_map":{"a":".."}}"#, "not a file name"),
        (r#"{"weight_map":{"a":""}}"#, "not a file name"),
        (r#"{"weight_map":{"a":"a.safetensors\u0000"}}"#, "not a file name"),
        (r#"{"weight_map":{"a":"gone.safetensors"}}"#, "missing, though"),
        (r#"{"weight_map":{"a":"folder"}}"#, "is a directory"),
    ] {
        let dir = dir();
        write(dir.path(), "a.safetensors", &a);
        write(dir.path(), "b.safetensors", &a);
        fs::create_dir(dir.path().join("folder")).unwrap();
        write(dir.path(), "model.safetensors.index.json", index);
        let message = WeightFiles::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(says), "{index}\n{message}");
    }
}

#[test]
fn an_untidy_index_is_read_as_transformers_does() {
    let dir = dir();
    let tensor = |name, byte| (name, Dtype::U8, &[4][..], vec![byte; 4]);
    write(dir.path(), "1.safetensors", file_of(&[tensor("a", 1), tensor("b", 1)]));
    write(dir.path(), "2.safetensors", file_of(&[tensor("b", 2), tensor("c", 2)]));
    // An entry that no file holds, one that another file holds, and a tensor that two files hold.
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"1.safetensors","gone":"2.safetensors"}}"#;
    write(dir.path(), "model.safetensors.index.json", index);
    let weights = WeightFiles::open(dir.path()).unwrap();
    let reader = weights.reader().unwrap();
    let first = |name| {
        let mut byte = [0];
        reader.read(weights.get(name).unwrap(), 0, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!((first("a"), first("b"), first("c")), (1, 2, 2));
    assert!(weights.get("gone").is_none());
}

#[test]
fn a_tensor_is_divided_into_parts_that_are_all_of_it() {
    let dir = dir();
    let data: Vec<u8> = (0..48).collect();
    let file = file_of(&[
        ("all", Dtype::BF16, &[2, 3, 4], data.clone()),
        ("n", Dtype::I64, &[2], vec![0; 16]),
        ("there", Dtype::BF16, &[1], vec![0; 2]),
    ]);
    write(dir.path(), "model.safetensors", file);
    let part = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
    let open = || WeightFiles::open(dir.path()).unwrap();
    let mut weights = open();
    weights.divide("all", vec![part("0", &[2, 4]), part("1", &[1, 4]), part("2", &[3, 4])]).unwrap();
    weights.divide("n", vec![part("m", &[2])]).unwrap();
    assert!(weights.get("all").is_none() && weights.get("m").is_some());
    let one = weights.get("1").unwrap();
    assert_eq!((&one.shape[..], one.bytes(), one.encoding), (&[1, 4][..], Bytes(8), Some(Encoding::Bf16)));
    let mut bytes = [0; 8];
    weights.reader().unwrap().read(one, 0, &mut bytes).unwrap();
    assert_eq!(bytes, data[16..24]);
    for (name, parts) in [
        ("none", vec![part("0", &[1])]),
        ("all", vec![part("0", &[2, 4])]),
        ("all", vec![part("0", &[2, 4]), part("1", &[5, 4])]),
        ("all", vec![part("0", &[usize::MAX, 4])]),
        ("all", vec![part("there", &[6, 4])]),
        ("n", vec![part("0", &[1]), part("1", &[1])]),
    ] {
        assert!(matches!(open().divide(name, parts), Err(Error::Invalid { .. })));
    }
}

#[test]
fn a_git_lfs_pointer_is_no_safetensors_file() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d4d4d4d\nsize 4976698672\n";
    assert!(refused(pointer).contains("git-lfs pointer"));
}

#[cfg(unix)]
#[test]
fn weights_that_are_no_file_or_missing_say_so() {
    use std::os::unix::fs::symlink;

    let dir = dir();
    symlink("../../blobs/abc", dir.path().join("model.safetensors")).unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("the blob ../../blobs/abc"), "{error}");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    symlink("/dev/zero", dir.path().join("model.safetensors.index.json")).unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("something special"), "{error}");
}

#[test]
fn no_weights_is_said_plainly() {
    let check = |path: &Path, says: &str| {
        let error = WeightFiles::open(path).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
        error
    };
    let dir = dir();
    check(&dir.path().join("nowhere"), "no such directory");
    check(dir.path(), "no weights here");
    write(dir.path(), "pytorch_model-00001-of-00002.bin", "x");
    let error = check(dir.path(), "not safetensors, but \"pytorch_model-00001");
    assert!(error.hint().unwrap().contains("convert"));
    check(&dir.path().join("pytorch_model-00001-of-00002.bin"), "is a file");
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    let error = WeightFiles::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("is a directory, not a file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), len in any::<u64>()) {
        let _ = parse_header(Path::new("x"), &bytes, len);
        let _ = parse_header(Path::new("x"), &raw_file(&String::from_utf8_lossy(&bytes), &[]), len);
        let _ = parse_index(Path::new("x"), &bytes);
    }

    /// Whatever is changed in a good file, what is still accepted lies within the file, and the safetensors
    /// crate agrees.
    #[test]
    fn a_mutated_header_is_refused_or_consistent(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = file_of(&[
            ("a", Dtype::F32, &[2, 2], vec![7; 16]),
            ("b", Dtype::BF16, &[], vec![1; 2]),
            ("c", Dtype::U8, &[0], vec![]),
        ]);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(header) = parse_header(Path::new("x"), &file, file.len() as u64) {
            prop_assert!(SafeTensors::deserialize(&file).is_ok());
            for tensor in header.tensors.values() {
                prop_assert!(tensor.range.start <= tensor.range.end);
                prop_assert!(tensor.range.end <= file.len() as u64);
            }
        }
    }
}
