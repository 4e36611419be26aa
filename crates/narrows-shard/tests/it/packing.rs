//! Packing and verifying: what comes out is the model to the byte, and every later change is found.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use narrows_shard::{
    Bytes, Dtype, Error, FILLER_PREFIX, Layout, MANIFEST, PackOptions, PackReport, ShardLayout, WeightFiles,
    open_source, pack, read_sidecar, verify,
};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::common::{file_of, files, golden, write};

const CONSUME: PackOptions = PackOptions { consume_source: true, threads: 2 };

fn pack_into(source: &Path, layout: &Layout, out: &Path, options: PackOptions) -> Result<PackReport, Error> {
    pack(&open_source(source, out)?, layout, out, &options, &mut |_| {})
}

/// One shard per source file, tensors in reverse order.
fn layout_of(weights: &WeightFiles) -> Layout {
    let mut shards: Vec<ShardLayout> = (0..weights.files().len())
        .map(|i| ShardLayout { name: format!("layer-{i:05}"), tensors: Vec::new() })
        .collect();
    for (name, tensor) in weights.tensors() {
        shards[tensor.file].tensors.insert(0, name.to_owned());
    }
    let sidecars = ["config.json", "generation_config.json", "tokenizer.json"].map(String::from).into();
    Layout { architecture: "llama".into(), shards, sidecars, ..Layout::default() }
}

/// A copy of a golden in a directory of its own, and the layout to pack it by.
fn copy_of(name: &str) -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("model")).unwrap();
    for (name, bytes) in files(&golden(name)) {
        write(&dir.path().join("model"), &name, bytes);
    }
    let layout = layout_of(&WeightFiles::open(&golden(name)).unwrap());
    (dir, layout)
}

fn contents(weights: &WeightFiles) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let reader = weights.reader().unwrap();
    let read = |tensor| {
        let mut data = vec![0; narrows_shard::Tensor::bytes(tensor).get() as usize];
        reader.read(tensor, 0, &mut data).unwrap();
        data
    };
    weights.tensors().map(|(name, t)| (name.to_owned(), (t.dtype, t.shape.clone(), read(t)))).collect()
}

/// The rules of docs/FORMAT.md for one shard.
fn check_shard(bytes: &[u8], tensors: &[String]) {
    let (header_len, header) = SafeTensors::read_metadata(bytes).unwrap();
    let data_start = 8 + header_len;
    assert_eq!(data_start % 4096, 0);
    let metadata = header.metadata().clone().unwrap();
    assert_eq!((metadata["format"].as_str(), metadata["narrows.version"].as_str()), ("pt", "1"));
    let mut end = 0;
    for name in tensors {
        let (start, tensor_end) = header.info(name).unwrap().data_offsets;
        assert_eq!(start % 256, 0, "{name}");
        assert!(start - end < 256 && start >= end, "{name}");
        assert!(bytes[data_start + end..data_start + start].iter().all(|byte| *byte == 0));
        end = tensor_end;
    }
    assert_eq!(data_start + end, bytes.len());
    let fillers = header.tensors().keys().filter(|name| name.starts_with(FILLER_PREFIX)).count();
    assert_eq!(header.tensors().len(), tensors.len() + fillers);
}

#[test]
fn goldens_come_out_as_they_went_in() {
    for name in ["llama", "llama3-rope-tied-sharded", "qwen3-moe"] {
        let (dir, layout) = copy_of(name);
        let (model, out) = (dir.path().join("model"), dir.path().join("some/where/pack"));
        let report = pack_into(&model, &layout, &out, PackOptions::default()).unwrap();
        let packed = WeightFiles::open(&out).unwrap();
        assert_eq!(packed.manifest(), Some(&report.manifest));
        assert_eq!(contents(&packed), contents(&WeightFiles::open(&model).unwrap()));
        assert_eq!(packed.total_bytes(), WeightFiles::open(&model).unwrap().total_bytes());
        for (shard, layout) in packed.files().iter().zip(&layout.shards) {
            check_shard(&fs::read(&shard.path).unwrap(), &layout.tensors);
        }
        let report = verify(&out, &mut |_| {}).unwrap();
        assert!(report.checksums);
        assert!(!verify(&model, &mut |_| {}).unwrap().checksums);
        let names: Vec<_> = files(&out).into_keys().collect();
        assert_eq!(names.len(), layout.shards.len() + 3, "{names:?}");

        // Another copy elsewhere: the same bytes, and nothing that tells where or when.
        let (other, _) = copy_of(name);
        pack_into(&other.path().join("model"), &layout, &other.path().join("p"), PackOptions::default())
            .unwrap();
        assert!(files(&other.path().join("p")) == files(&out));
    }
}

#[test]
fn progress_grows_to_its_end() {
    let (dir, layout) = copy_of("llama");
    let source = WeightFiles::open(&dir.path().join("model")).unwrap();
    for options in [PackOptions::default(), CONSUME] {
        let out = dir.path().join(format!("{}", options.consume_source));
        let mut last = None;
        pack(&source, &layout, &out, &options, &mut |now| {
            assert!(
                now.done <= now.total
                    && last.is_none_or(|(done, total)| done <= now.done && total == now.total)
            );
            last = Some((now.done, now.total));
        })
        .unwrap();
        let (done, total) = last.unwrap();
        assert_eq!(done, total);
    }
}

#[test]
fn packing_again_compares() {
    let (dir, layout) = copy_of("llama3-rope-tied-sharded");
    let (model, out) = (dir.path().join("model"), dir.path().join("pack"));
    assert!(!pack_into(&model, &layout, &out, PackOptions::default()).unwrap().already_packed);
    let before = files(&out);
    assert!(pack_into(&model, &layout, &out, PackOptions::default()).unwrap().already_packed);
    // A pack is a model like any other: it packs onto itself, and elsewhere.
    assert!(pack_into(&out, &layout, &out, PackOptions::default()).unwrap().already_packed);
    pack_into(&out, &layout, &dir.path().join("again"), PackOptions::default()).unwrap();

    let path = model.join("model-00001-of-00003.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = pack_into(&model, &layout, &out, CONSUME).unwrap_err();
    assert!(matches!(refused, Error::DifferentPack { .. }), "{refused}");
    let fewer = Layout { shards: layout.shards[..1].into(), ..layout };
    let refused = pack_into(&model, &fewer, &out, PackOptions::default()).unwrap_err();
    assert!(matches!(refused, Error::DifferentPack { .. }), "{refused}");
    assert!(files(&out) == before);
    assert!(path.exists());
}

#[test]
fn a_consumed_source_is_gone_and_known_to_be() {
    let (dir, layout) = copy_of("llama3-rope-tied-sharded");
    let (model, out, plain) = (dir.path().join("model"), dir.path().join("pack"), dir.path().join("plain"));
    pack_into(&model, &layout, &plain, PackOptions::default()).unwrap();
    pack_into(&model, &layout, &out, CONSUME).unwrap();
    assert!(files(&out) == files(&plain));
    let left: Vec<_> = files(&model).into_keys().collect();
    assert_eq!(
        left,
        ["config.json", "expected.safetensors", "generation_config.json", "model.safetensors.index.json"]
    );
    assert!(pack_into(&model, &layout, &out, CONSUME).unwrap().already_packed);
    let missing = WeightFiles::open(&model).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    // Another model without weights is not taken for it.
    write(&model, "config.json", "{}");
    assert!(open_source(&model, &out).is_err());
}

#[test]
fn what_is_no_pack_is_left_alone() {
    let (dir, layout) = copy_of("llama");
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    fs::create_dir(&out).unwrap();
    write(&out, "letter.txt", "dear");
    let refused = pack_into(&model, &layout, &out, PackOptions::default()).unwrap_err();
    assert!(matches!(&refused, Error::OutputNotEmpty { found, .. } if found == "letter.txt"), "{refused}");
    assert_eq!(files(&out).into_keys().collect::<Vec<_>>(), ["letter.txt"]);
    for overlapping in [model.clone(), model.join("pack"), dir.path().into()] {
        let refused = pack_into(&model, &layout, &overlapping, PackOptions::default()).unwrap_err();
        assert!(matches!(refused, Error::Overlap { .. }), "{refused}");
    }
    assert!(!model.join("pack").exists());
    let nowhere = dir.path().join("missing/../pack");
    assert!(matches!(pack_into(&model, &layout, &nowhere, PackOptions::default()), Err(Error::Io { .. })));
    let refused = pack_into(&model, &layout, &out.join("letter.txt"), PackOptions::default()).unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");

    // An empty directory, by way of a lock that a killed pack left.
    fs::remove_file(out.join("letter.txt")).unwrap();
    write(&out, "narrows.lock", "");
    pack_into(&model, &layout, &out, PackOptions::default()).unwrap();
}

#[test]
fn two_packs_at_once_are_refused() {
    let (dir, layout) = copy_of("llama");
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    let source = WeightFiles::open(&model).unwrap();
    let mut refused = None;
    pack(&source, &layout, &out, &PackOptions::default(), &mut |_| {
        refused.get_or_insert_with(|| pack_into(&model, &layout, &out, PackOptions::default()).unwrap_err());
    })
    .unwrap();
    assert!(matches!(refused, Some(Error::Locked { .. })), "{refused:?}");
    verify(&out, &mut |_| {}).unwrap();
}

#[test]
fn a_layout_that_does_not_fit_is_refused() {
    let (dir, good) = copy_of("llama");
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    let shard = |name: &str, tensors: &[&str]| ShardLayout {
        name: name.into(),
        tensors: tensors.iter().map(|name| name.to_string()).collect(),
    };
    let norm = "model.norm.weight";
    for (shards, sidecars, says) in [
        (vec![], vec![], "no shards"),
        (vec![shard("a", &["nothing"])], vec![], "no tensor \"nothing\""),
        (vec![shard("a", &[norm]), shard("b", &[norm])], vec![], "twice"),
        (vec![shard("a", &[norm]), shard("A", &[])], vec![], "or does twice"),
        (vec![shard("../a", &[norm])], vec![], "cannot name"),
        (vec![shard("a", &[norm])], vec![MANIFEST], "cannot name"),
        (vec![shard("a", &[norm])], vec!["a.safetensors"], "or does twice"),
        (vec![shard("a", &[norm])], vec!["x.partial"], "cannot name"),
        (vec![shard("a", &[norm])], vec!["/etc/hostname"], "cannot name"),
    ] {
        let sidecars = sidecars.into_iter().map(String::from).collect();
        let layout = Layout { shards, sidecars, ..good.clone() };
        let refused = pack_into(&model, &layout, &out, PackOptions::default()).unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }) && refused.to_string().contains(says), "{refused}");
        assert!(!out.exists());
    }
}

#[test]
fn verify_finds_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    fs::create_dir(&model).unwrap();
    let tensors = [("a", Dtype::BF16, &[30][..], vec![5; 60]), ("b", Dtype::U8, &[3][..], vec![6; 3])];
    write(&model, "model.safetensors", file_of(&tensors));
    write(&model, "config.json", "{\"model_type\": \"x\"}");
    let layout = layout_of(&WeightFiles::open(&model).unwrap());
    pack_into(&model, &layout, &out, PackOptions::default()).unwrap();
    for (name, good) in files(&out) {
        let check = |bytes: &[u8], what: &str| {
            // In place: truncating a file makes some file systems write it to disk at once.
            let mut file = fs::File::options().write(true).open(out.join(&name)).unwrap();
            file.write_all(bytes).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            assert!(verify(&out, &mut |_| {}).is_err(), "{name}: {what} was not found");
        };
        for bit in 0..good.len() * 8 {
            // All of the small files; of the padding of a shard, some.
            if good.len() < 4000 || bit < 1000 || bit % 97 == 0 || bit / 8 > 4090 {
                let mut bytes = good.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                check(&bytes, &format!("bit {bit}"));
            }
        }
        for len in [0, 1, good.len() / 2, good.len() - 1] {
            check(&good[..len], "a cut");
        }
        check(&[&good[..], b"\n"].concat(), "a byte too many");
        fs::remove_file(out.join(&name)).unwrap();
        assert!(verify(&out, &mut |_| {}).is_err(), "{name} is missing");
        write(&out, &name, &good);
        verify(&out, &mut |_| {}).unwrap();
    }
    write(&model, "model.safetensors", &file_of(&tensors)[..100]);
    assert!(verify(&model, &mut |_| {}).is_err());
}

#[test]
fn a_pack_has_the_sidecars_that_it_lists_as_they_were() {
    let (dir, layout) = copy_of("llama");
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    pack_into(&model, &layout, &out, PackOptions::default()).unwrap();
    let read = |dir: &Path, name: &str| read_sidecar(dir, name, Bytes::mib(1));
    let config = fs::read(model.join("config.json")).unwrap();
    assert_eq!(read(&out, "config.json").unwrap().unwrap(), config);
    assert!(read(&out, "narrows.json").unwrap().is_none());

    // Put beside it: no part of the pack, but of a checkpoint.
    for dir in [&model, &out] {
        write(dir, "chat_template.jinja", "{{ 1 }}");
    }
    assert!(read(&model, "chat_template.jinja").unwrap().is_some());
    assert!(read(&out, "chat_template.jinja").unwrap().is_none());
    assert_eq!(verify(&out, &mut |_| {}).unwrap().unlisted, ["chat_template.jinja"]);

    let mut other = config.clone();
    *other.last_mut().unwrap() ^= 1;
    let longer = [&config[..], b" "].concat();
    write(&out, "config.json", other);
    for refused in [read(&out, "config.json").unwrap_err(), WeightFiles::open(&out).unwrap_err()] {
        assert!(matches!(refused, Error::Checksum { .. }), "{refused}");
    }
    write(&out, "config.json", longer);
    for refused in [read(&out, "config.json").unwrap_err(), WeightFiles::open(&out).unwrap_err()] {
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    }
    fs::remove_file(out.join("config.json")).unwrap();
    for refused in [read(&out, "config.json").unwrap_err(), WeightFiles::open(&out).unwrap_err()] {
        assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
    }
}

#[test]
fn a_pack_of_a_later_version_is_refused_by_its_version() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), MANIFEST, r#"{"format":"narrows-pack","version":3,"news":[]}"#);
    let refused = WeightFiles::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("pack of version 3; this program reads versions 1 and 2"), "{refused}");
}

#[cfg(unix)]
mod hugging_face_cache {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// A cache with one snapshot of the sharded golden per name; all link to the same blobs.
    fn cache(revisions: &[char]) -> (tempfile::TempDir, Vec<PathBuf>, Layout) {
        let golden = golden("llama3-rope-tied-sharded");
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("models--tiny--llama");
        fs::create_dir_all(repository.join("blobs")).unwrap();
        let mut snapshots = Vec::new();
        for revision in revisions {
            let snapshot = repository.join("snapshots").join(revision.to_string().repeat(40));
            fs::create_dir_all(&snapshot).unwrap();
            for (name, bytes) in files(&golden) {
                write(&repository.join("blobs"), &format!("sha-{name}"), bytes);
                symlink(format!("../../blobs/sha-{name}"), snapshot.join(name)).unwrap();
            }
            snapshots.push(snapshot);
        }
        (dir, snapshots, layout_of(&WeightFiles::open(&golden).unwrap()))
    }

    fn blobs(dir: &Path) -> usize {
        let blobs = files(&dir.join("models--tiny--llama/blobs"));
        blobs.keys().filter(|name| name.starts_with("sha-model-")).count()
    }

    #[test]
    fn the_manifest_knows_repository_and_revision() {
        let (dir, snapshots, layout) = cache(&['a']);
        let out = dir.path().join("out");
        let source = pack_into(&snapshots[0], &layout, &out, PackOptions::default()).unwrap().manifest.source;
        assert_eq!(source.repository.as_deref(), Some("tiny/llama"));
        assert_eq!(source.revision, Some("a".repeat(40)));
        assert_eq!(blobs(dir.path()), 3);
    }

    #[test]
    fn consuming_deletes_links_and_their_blobs() {
        let (dir, snapshots, layout) = cache(&['a']);
        pack_into(&snapshots[0], &layout, &dir.path().join("out"), CONSUME).unwrap();
        assert_eq!(blobs(dir.path()), 0);
        assert!(snapshots[0].join("model-00001-of-00003.safetensors").symlink_metadata().is_err());
        assert!(snapshots[0].join("config.json").exists());
        verify(&dir.path().join("out"), &mut |_| {}).unwrap();
    }

    #[test]
    fn blobs_of_another_snapshot_stay() {
        let (dir, snapshots, layout) = cache(&['a', 'b']);
        pack_into(&snapshots[0], &layout, &dir.path().join("out"), CONSUME).unwrap();
        assert_eq!(blobs(dir.path()), 3);
        WeightFiles::open(&snapshots[1]).unwrap();
    }

    /// Wherever in the cache another link is, and by whatever way it leads to a blob, the blob stays.
    #[test]
    fn a_blob_to_which_any_link_of_the_cache_leads_stays() {
        let blob = "sha-model-00001-of-00003.safetensors";
        let link = |place: &str, target: &dyn Fn(&Path) -> PathBuf| {
            let (dir, snapshots, layout) = cache(&['a']);
            let path = dir.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target(dir.path()), &path).unwrap();
            let before = fs::read(&path).unwrap();
            pack_into(&snapshots[0], &layout, &dir.path().join("out"), CONSUME).unwrap();
            assert_eq!(blobs(dir.path()), 1, "{place}");
            assert_eq!(fs::read(&path).unwrap(), before, "{place}");
        };
        let relative = |up: &'static str| move |_: &Path| PathBuf::from(format!("{up}blobs/{blob}"));
        link("models--tiny--llama/snapshots/b/original/consolidated", &relative("../../../"));
        link("models--tiny--llama/snapshots/b/x/y/z/w", &relative("../../../../../"));
        link("models--tiny--llama/refs/w", &relative("../"));
        link("models--tiny--llama/snapshots/b/absolute", &|dir| {
            dir.join("models--tiny--llama/blobs").join(blob)
        });
        link("models--other--llama/snapshots/c/w", &|dir| dir.join("models--tiny--llama/blobs").join(blob));
        link("models--tiny--llama/snapshots/b/to-a-link", &|_| {
            PathBuf::from(format!("../{}/model-00001-of-00003.safetensors", "a".repeat(40)))
        });
    }

    #[test]
    fn another_hard_link_keeps_its_bytes() {
        let (dir, snapshots, layout) = cache(&['a']);
        let blob = dir.path().join("models--tiny--llama/blobs/sha-model-00001-of-00003.safetensors");
        let other = dir.path().join("models--tiny--llama/other");
        fs::hard_link(&blob, &other).unwrap();
        let before = fs::read(&other).unwrap();
        pack_into(&snapshots[0], &layout, &dir.path().join("out"), CONSUME).unwrap();
        assert_eq!(fs::read(&other).unwrap(), before);
    }

    #[test]
    fn other_links_are_refused() {
        let (dir, snapshots, layout) = cache(&['a']);
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        for name in files(&snapshots[0]).into_keys() {
            symlink(snapshots[0].join(&name), model.join(&name)).unwrap();
        }
        let out = dir.path().join("out");
        let refused = pack_into(&model, &layout, &out, CONSUME).unwrap_err();
        assert!(refused.to_string().contains("symbolic link"), "{refused}");
        assert!(!out.exists());
        assert_eq!(blobs(dir.path()), 3);
    }
}

type Tensors = Vec<(Dtype, Vec<usize>, u8)>;

fn tensors() -> impl Strategy<Value = Tensors> {
    use Dtype::{BF16, BOOL, F4, F8_E4M3, F16, F32, F64, I64, U8};
    let dtype = prop::sample::select(vec![BF16, BOOL, F4, F8_E4M3, F16, F32, F64, I64, U8]);
    prop::collection::vec((dtype, prop::collection::vec(0usize..9, 0..4), any::<u8>()), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_tensors_come_out_as_they_went_in(
        tensors in tensors(),
        files in 1usize..4,
        order in prop::collection::vec(any::<u32>(), 12),
        shards in 1usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (model, out) = (dir.path().join("model"), dir.path().join("out"));
        fs::create_dir(&model).unwrap();
        let mut weight_map = serde_json::Map::new();
        let mut names = Vec::new();
        let mut contents_of = vec![Vec::new(); files];
        for (i, (dtype, shape, byte)) in tensors.into_iter().enumerate() {
            // Some dtypes are parts of a byte.
            let shape = if dtype == Dtype::F4 { [shape, vec![2]].concat() } else { shape };
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let data: Vec<u8> = (0..bytes).map(|j| byte.wrapping_add(j as u8)).collect();
            let name = format!("tensor \"{i}\" \u{e9}");
            weight_map.insert(name.clone(), format!("{}.safetensors", i % files).into());
            contents_of[i % files].push((name.clone(), dtype, shape, data));
            names.push(name);
        }
        for (i, tensors) in contents_of.iter().enumerate() {
            let tensors: Vec<_> = tensors
                .iter()
                .map(|(name, dtype, shape, data)| (name.as_str(), *dtype, &shape[..], data.clone()))
                .collect();
            write(&model, &format!("{i}.safetensors"), file_of(&tensors));
        }
        let index = serde_json::json!({ "weight_map": weight_map }).to_string();
        write(&model, "model.safetensors.index.json", index);

        // Any order, and some tensors left out.
        let mut layout = Layout { architecture: "x".into(), ..Layout::default() };
        let mut order = order.into_iter();
        names.sort_by_cached_key(|_| order.next());
        let mut selected = names.into_iter();
        for i in 0..shards {
            let tensors: Vec<String> = selected.by_ref().take(4).collect();
            layout.shards.push(ShardLayout { name: format!("s{i}"), tensors });
        }
        pack_into(&model, &layout, &out, PackOptions::default()).unwrap();
        let mut expected = contents(&WeightFiles::open(&model).unwrap());
        let packed: Vec<_> = layout.shards.iter().flat_map(|shard| &shard.tensors).collect();
        expected.retain(|name, _| packed.contains(&name));
        prop_assert_eq!(contents(&WeightFiles::open(&out).unwrap()), expected);
        for shard in &layout.shards {
            check_shard(&fs::read(out.join(format!("{}.safetensors", shard.name))).unwrap(), &shard.tensors);
        }
        verify(&out, &mut |_| {}).unwrap();
    }
}
