//! Packs interrupted at every step, and what becomes of them.

mod faulty_disk;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::disk::{Disk, RealDisk};
use super::{Cancel, Layout, PackOptions, PackReport, ShardLayout, open_source, pack_on, pack_until};
use crate::{Bytes, Encoding, Error, MANIFEST, verify};
use faulty_disk::{Fault, FaultyDisk};

/// A directory with a checkpoint, and room for a pack of it.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// Three files, of which one is used by all three shards, and one by the first alone.
    fn new() -> Self {
        // Thousands of syncs: in memory where possible.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let scene = Self { dir };
        fs::create_dir(scene.source()).unwrap();
        fs::create_dir(scene.path("attic")).unwrap();
        let mut weight_map = serde_json::Map::new();
        for (file, names) in [("a", ["a0", "a1"]), ("b", ["b1", "b2"]), ("c", ["c0", "c2"])] {
            // Of every other byte, the upper one of a number, without the bit that makes it huge, infinite or NaN.
            let byte =
                |i: u32, name: &str| ((i * 7) as u8 ^ name.as_bytes()[1]) & [0xff, 0xbf][i as usize % 2];
            let data = |name: &str| (0..1500u32).map(|i| byte(i, name)).collect::<Vec<_>>();
            let data = names.map(|name| (name, data(name)));
            let views = data
                .iter()
                .map(|(name, data)| (*name, TensorView::new(Dtype::BF16, vec![3, 250], data).unwrap()));
            let file = format!("{file}.safetensors");
            fs::write(scene.source().join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
            weight_map.extend(names.map(|name| (name.to_string(), file.clone().into())));
        }
        let index = serde_json::json!({ "weight_map": weight_map }).to_string();
        fs::write(scene.source().join("model.safetensors.index.json"), index).unwrap();
        fs::write(scene.source().join("config.json"), r#"{"model_type":"x"}"#).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn out(&self) -> PathBuf {
        self.path("parent/out")
    }

    fn pack(&self, disk: &dyn Disk, consume_source: bool) -> Result<PackReport, Error> {
        let source = open_source(&self.source(), &self.out())?;
        pack_on(
            disk,
            &source,
            &layout(),
            &self.out(),
            &PackOptions { consume_source, threads: 2 },
            &mut |_| {},
        )
    }

    /// Packs, and tells `each` how often it was called.
    fn pack_until(&self, cancel: &Cancel, mut each: impl FnMut(&Cancel, usize)) -> Result<PackReport, Error> {
        let source = open_source(&self.source(), &self.out())?;
        let options = PackOptions { consume_source: false, threads: 2 };
        let mut calls = 0;
        pack_until(&source, &layout(), &self.out(), &options, cancel, &mut |_| {
            calls += 1;
            each(cancel, calls);
        })
    }

    /// Names of what is there for the time of packing only.
    fn unfinished(&self) -> Vec<String> {
        let names = if self.out().exists() { self.packed() } else { BTreeMap::new() }.into_keys();
        names.filter(|name| name.ends_with(".partial") || name == "narrows.lock").collect()
    }

    fn faulty(&self, fault: Fault, at: usize) -> FaultyDisk {
        FaultyDisk::new(&self.path("attic"), fault, at)
    }

    fn packed(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.out())
    }

    fn weights_left(&self) -> usize {
        files(&self.source()).keys().filter(|name| name.ends_with(".safetensors")).count()
    }
}

fn layout() -> Layout {
    let shard = |name: &str, tensors: [&str; 2]| ShardLayout {
        name: name.into(),
        tensors: tensors.map(String::from).into(),
    };
    Layout {
        architecture: "x".into(),
        shards: vec![shard("l0", ["c0", "a0"]), shard("l1", ["a1", "b1"]), shard("l2", ["b2", "c2"])],
        encodings: [("a1", Encoding::Nf4), ("c2", Encoding::Q8)].map(|(n, e)| (n.to_owned(), e)).into(),
        sidecars: vec!["config.json".into(), "tokenizer.json".into()],
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// What an undisturbed pack looks like, and how many steps it takes.
fn undisturbed(consume: bool) -> (BTreeMap<String, Vec<u8>>, usize) {
    let scene = Scene::new();
    let disk = scene.faulty(Fault::Fail, usize::MAX);
    let report = scene.pack(&disk, consume).unwrap();
    assert!(!report.already_packed);
    assert_eq!(scene.weights_left(), if consume { 0 } else { 3 });
    let packed = scene.packed();
    assert_eq!(
        packed.keys().collect::<Vec<_>>(),
        ["config.json", "l0.safetensors", "l1.safetensors", "l2.safetensors", MANIFEST]
    );
    (packed, disk.steps())
}

#[test]
fn interrupted_at_any_step_it_ends_with_the_same_bytes() {
    for consume in [false, true] {
        let (expected, steps) = undisturbed(consume);
        assert_eq!(expected, undisturbed(!consume).0);
        for fault in [Fault::Kill, Fault::PowerCut, Fault::PowerCutLosingNames, Fault::Fail, Fault::Full] {
            for at in 1..=steps {
                let scene = Scene::new();
                let disk = scene.faulty(fault, at);
                let first = scene.pack(&disk, consume);
                disk.settle();
                let context = format!("{fault:?} at step {at} of {steps}, consume {consume}");
                if let Err(e) = &first {
                    assert!(!e.to_string().contains('\n'), "{e}");
                    let right = match fault {
                        Fault::Full => matches!(e, Error::NoSpace { .. } | Error::Io { .. }),
                        _ => matches!(e, Error::Io { .. }),
                    };
                    assert!(right, "{context}: {e}");
                }
                if fault != Fault::Kill && !scene.out().exists() {
                    assert_eq!(scene.weights_left(), 3, "{context}");
                }
                let second = scene.pack(&RealDisk, consume).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(scene.packed(), expected, "{context}");
                assert_eq!(scene.weights_left(), if consume { 0 } else { 3 }, "{context}");
                let total: usize =
                    expected.iter().filter(|(name, _)| *name != MANIFEST).map(|(_, b)| b.len()).sum();
                if !second.already_packed {
                    assert_eq!(second.written + second.resumed, Bytes(total as u64), "{context}");
                }
                verify(&scene.out(), &mut |_| {}).unwrap();
            }
        }
    }
}

#[test]
fn interrupted_again_and_again_it_gets_there() {
    for consume in [false, true] {
        let (expected, _) = undisturbed(consume);
        for fault in [Fault::Kill, Fault::PowerCut, Fault::PowerCutLosingNames] {
            for every in 35..60 {
                let scene = Scene::new();
                let mut runs = 0;
                loop {
                    let disk = scene.faulty(fault, every);
                    let done = scene.pack(&disk, consume).is_ok();
                    disk.settle();
                    fs::remove_dir_all(scene.path("attic")).unwrap();
                    fs::create_dir(scene.path("attic")).unwrap();
                    runs += 1;
                    assert!(runs < 30, "no progress in steps of {every}");
                    if done {
                        break;
                    }
                }
                let report = scene.pack(&RealDisk, consume).unwrap();
                assert!(report.already_packed || report.written == Bytes(0));
                assert_eq!(scene.packed(), expected);
            }
        }
    }
}

#[test]
fn finished_shards_are_not_written_again() {
    let (_, steps) = undisturbed(false);
    let scene = Scene::new();
    let disk = scene.faulty(Fault::Kill, steps - 12);
    scene.pack(&disk, false).unwrap_err();
    let report = scene.pack(&RealDisk, false).unwrap();
    assert!(report.resumed > Bytes(10_000), "{report:?}");
}

#[test]
fn a_full_disk_is_known_beforehand_and_says_how_much_is_needed() {
    struct Small;
    impl Disk for Small {
        fn available(&self, _: &Path) -> std::io::Result<Option<Bytes>> {
            Ok(Some(Bytes::mib(1)))
        }
    }
    let scene = Scene::new();
    let Err(Error::NoSpace { needed, available, .. }) = scene.pack(&Small, false) else { panic!() };
    assert_eq!(available, Bytes::mib(1));
    assert!(needed > Bytes::mib(1) && needed < Bytes::mib(2), "{needed}");
    assert!(!scene.out().exists(), "nothing is left behind");
}

#[test]
fn consuming_needs_room_for_less_than_the_whole_pack() {
    let (_, steps) = undisturbed(true);
    assert!(steps > 60);
    let needed = |consume| {
        struct None;
        impl Disk for None {
            fn available(&self, _: &Path) -> std::io::Result<Option<Bytes>> {
                Ok(Some(Bytes(0)))
            }
        }
        match Scene::new().pack(&None, consume) {
            Err(Error::NoSpace { needed, .. }) => needed,
            other => panic!("{other:?}"),
        }
    };
    assert!(needed(true) < needed(false), "{} {}", needed(true), needed(false));
}

/// A deleted file takes its space until nobody has it open.
#[cfg(target_os = "linux")]
#[test]
fn a_consumed_file_is_closed() {
    let scene = Scene::new();
    let source = open_source(&scene.source(), &scene.out()).unwrap();
    let mut least = 3;
    let options = PackOptions { consume_source: true, threads: 2 };
    pack_on(&RealDisk, &source, &layout(), &scene.out(), &options, &mut |_| {
        least = least.min(scene.weights_left());
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut targets = open.filter_map(|fd| fs::read_link(fd.path()).ok());
        assert!(!targets.any(|path| {
            path.starts_with(scene.source()) && path.to_string_lossy().ends_with("(deleted)")
        }));
    })
    .unwrap();
    assert!(least < 3, "nothing was deleted on the way");
}

#[test]
fn a_begun_pack_of_another_source_or_layout_is_left_alone() {
    let (_, steps) = undisturbed(false);
    let begun = || {
        let scene = Scene::new();
        scene.pack(&scene.faulty(Fault::Kill, steps - 12), false).unwrap_err();
        let before = scene.packed();
        (scene, before)
    };
    let (scene, before) = begun();
    let other = Layout { architecture: "y".into(), ..layout() };
    let source = open_source(&scene.source(), &scene.out()).unwrap();
    let refused = pack_on(&RealDisk, &source, &other, &scene.out(), &PackOptions::default(), &mut |_| {});
    assert!(matches!(refused, Err(Error::DifferentPack { .. })), "{refused:?}");

    // Other bytes of the same size, of which the finished shard has some: refused, whatever the time says.
    let path = scene.source().join("a.safetensors");
    let good = fs::read(&path).unwrap();
    let mut other = good.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&path, other).unwrap();
    let refused = scene.pack(&RealDisk, false).unwrap_err();
    assert!(matches!(refused, Error::DifferentPack { keep: false, .. }), "{refused}");
    assert!(refused.to_string().contains("a.safetensors of the source has changed"), "{refused}");
    let mut after = scene.packed();
    after.retain(|name, _| before.contains_key(name));
    assert!(after.iter().all(|(name, bytes)| before[name] == *bytes));
    // The same bytes at another time: the pack goes on.
    fs::write(&path, good).unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    scene.pack(&RealDisk, false).unwrap();
    assert_eq!(scene.packed(), undisturbed(false).0);
}

/// What a sample does not see is compared where something was made of it.
#[test]
fn what_was_taken_from_a_touched_file_is_compared_in_full() {
    let (_, steps) = undisturbed(false);
    let scene = Scene::new();
    scene.pack(&scene.faulty(Fault::Kill, steps - 12), false).unwrap_err();
    // As a journal of the first version, which has no samples.
    let path = scene.out().join("narrows.journal");
    let text = fs::read_to_string(&path).unwrap();
    let mut journal: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    journal["version"] = 1.into();
    journal["verified"] = false.into();
    for stamp in journal["source"].as_array_mut().unwrap() {
        stamp.as_object_mut().unwrap().remove("sample");
    }
    fs::write(&path, journal.to_string()).unwrap();
    let source = scene.source().join("a.safetensors");
    let mut other = fs::read(&source).unwrap();
    // In a0, which is copied as it is.
    let at = other.len() - 3000;
    other[at] ^= 1;
    fs::write(&source, &other).unwrap();
    let refused = scene.pack(&RealDisk, false).unwrap_err();
    assert!(refused.to_string().contains("was made from other bytes"), "{refused}");
    other[at] ^= 1;
    fs::write(&source, &other).unwrap();
    scene.pack(&RealDisk, false).unwrap();
    assert_eq!(scene.packed(), undisturbed(false).0);
}

#[test]
fn a_consumed_pack_goes_on_with_a_source_of_another_time_and_is_never_to_be_deleted() {
    let (expected, steps) = undisturbed(true);
    let begun = || {
        (1..steps)
            .rev()
            .map(|at| {
                let scene = Scene::new();
                let _ = scene.pack(&scene.faulty(Fault::Kill, at), true);
                scene
            })
            .find(|scene| (1..3).contains(&scene.weights_left()))
            .unwrap()
    };
    let left = |scene: &Scene| {
        let names = ["a", "b", "c"].map(|name| scene.source().join(format!("{name}.safetensors")));
        names.into_iter().filter(|path| path.exists()).collect::<Vec<_>>()
    };
    let scene = begun();
    for path in left(&scene) {
        fs::File::options().append(true).open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    scene.pack(&RealDisk, true).unwrap();
    assert_eq!(scene.packed(), expected);

    let scene = begun();
    let path = left(&scene).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = scene.pack(&RealDisk, true).unwrap_err();
    assert!(matches!(refused, Error::DifferentPack { keep: true, .. }), "{refused}");
    assert!(refused.hint().unwrap().contains("keep that directory"));
}

#[test]
fn a_finished_file_that_is_not_as_it_was_is_found_before_the_manifest_is_written() {
    let (_, steps) = undisturbed(false);
    let scene = Scene::new();
    scene.pack(&scene.faulty(Fault::Kill, steps - 12), false).unwrap_err();
    let path = scene.out().join("l0.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = scene.pack(&RealDisk, false).unwrap_err();
    assert!(matches!(refused, Error::Checksum { .. }), "{refused}");
    scene.pack(&RealDisk, false).unwrap();
    assert_eq!(scene.packed(), undisturbed(false).0);
}

#[test]
fn a_cancelled_pack_leaves_nothing_half_written_and_goes_on() {
    for after in [1, 3, 5] {
        let scene = Scene::new();
        let refused = scene.pack_until(&Cancel::default(), |cancel, calls| {
            if calls >= after {
                cancel.set();
            }
        });
        assert!(matches!(refused, Err(Error::Cancelled { .. })), "{refused:?}");
        assert_eq!(scene.unfinished(), Vec::<String>::new());
        scene.pack(&RealDisk, false).unwrap();
        assert_eq!(scene.packed(), undisturbed(false).0);
    }
}

/// What a program does that ends at once: another thread may be within any operation of the disk.
#[test]
fn a_discarded_pack_leaves_nothing_half_written_at_that_moment_and_goes_on() {
    let mut partial = 0;
    for after in 1..12 {
        let scene = Scene::new();
        let refused = scene.pack_until(&Cancel::default(), |cancel, calls| {
            if calls == after {
                partial += usize::from(scene.unfinished().iter().any(|name| name.ends_with(".partial")));
                assert!(scene.unfinished().contains(&"narrows.lock".to_owned()));
                cancel.discard();
                assert_eq!(scene.unfinished(), Vec::<String>::new());
            }
        });
        assert!(matches!(refused, Err(Error::Cancelled { .. })), "{refused:?}");
        assert_eq!(scene.unfinished(), Vec::<String>::new());
        scene.pack(&RealDisk, false).unwrap();
        assert_eq!(scene.packed(), undisturbed(false).0);
    }
    assert!(partial > 0);
}

/// What was finished before is read again first, which may take long; it stays finished.
#[test]
fn a_resumed_pack_is_given_up_while_it_reads_what_is_finished() {
    let scene = Scene::new();
    let cancel = Cancel::default();
    let mut written = 0;
    let _ = scene.pack_until(&cancel, |cancel, calls| {
        written = calls;
        if scene.packed().keys().filter(|name| name.ends_with(".safetensors")).count() == 2 {
            cancel.set();
        }
    });
    let finished = scene.packed();
    let mut calls_of_second = 0;
    let refused = scene.pack_until(&Cancel::default(), |cancel, calls| {
        calls_of_second = calls;
        cancel.set();
    });
    assert!(matches!(refused, Err(Error::Cancelled { .. })), "{refused:?}");
    assert_eq!((calls_of_second, scene.packed()), (1, finished));
    assert!(written > 1);
    scene.pack(&RealDisk, false).unwrap();
    assert_eq!(scene.packed(), undisturbed(false).0);
}

/// Files of the names that a pack uses for itself may be links to what is precious.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_a_link() {
    use std::os::unix::fs::symlink;

    let link = |name: &str| {
        let scene = Scene::new();
        fs::write(scene.path("precious"), "precious").unwrap();
        fs::create_dir_all(scene.out()).unwrap();
        symlink("../../precious", scene.out().join(name)).unwrap();
        scene
    };
    for name in ["narrows.lock", "narrows.journal.partial"] {
        let scene = link(name);
        let packed = scene.pack(&RealDisk, false);
        assert_eq!(fs::read(scene.path("precious")).unwrap(), b"precious", "{name}");
        if name == "narrows.lock" {
            assert!(
                matches!(&packed, Err(Error::OutputNotEmpty { found, .. }) if found == name),
                "{packed:?}"
            );
            assert!(scene.out().join(name).symlink_metadata().is_ok());
        } else {
            packed.unwrap();
        }
    }
    // A lock file that somebody keeps something in is not ours.
    let scene = Scene::new();
    fs::create_dir_all(scene.out()).unwrap();
    fs::write(scene.out().join("narrows.lock"), "mine").unwrap();
    let refused = scene.pack(&RealDisk, false);
    assert!(matches!(refused, Err(Error::OutputNotEmpty { .. })), "{refused:?}");
    assert_eq!(fs::read(scene.out().join("narrows.lock")).unwrap(), b"mine");
}

#[test]
fn a_shard_that_does_not_come_back_from_disk_saves_the_source() {
    /// Loses a bit of a shard on the way to disk.
    struct Lossy;
    impl Disk for Lossy {
        fn write(&self, path: &Path, file: &fs::File, bytes: &[u8]) -> std::io::Result<()> {
            let mut bytes = bytes.to_vec();
            if path.to_string_lossy().contains("l2.safetensors") {
                *bytes.last_mut().unwrap() ^= 1;
            }
            RealDisk.write(path, file, &bytes)
        }
    }
    let scene = Scene::new();
    let refused = scene.pack(&Lossy, true).unwrap_err();
    assert!(matches!(refused, Error::Checksum { .. }), "{refused}");
    assert_eq!(scene.weights_left(), 2, "b and c hold tensors of the damaged shard");
    scene.pack(&RealDisk, true).unwrap();
    assert_eq!(scene.packed(), undisturbed(true).0);

    // Written without looking back, then consumed: looked at after all.
    let scene = Scene::new();
    struct LossyThenKilled<'a>(&'a FaultyDisk);
    impl Disk for LossyThenKilled<'_> {
        fn write(&self, path: &Path, file: &fs::File, bytes: &[u8]) -> std::io::Result<()> {
            Lossy.write(path, file, bytes)
        }
        fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
            if to.ends_with(MANIFEST) { Err(std::io::Error::other("dead")) } else { self.0.rename(from, to) }
        }
    }
    scene.pack(&LossyThenKilled(&scene.faulty(Fault::Kill, usize::MAX)), false).unwrap_err();
    let refused = scene.pack(&RealDisk, true).unwrap_err();
    assert!(matches!(refused, Error::Checksum { .. }), "{refused}");
    assert_eq!(scene.weights_left(), 3);
    scene.pack(&RealDisk, true).unwrap();
    assert_eq!(scene.packed(), undisturbed(true).0);
}

#[test]
fn shards_open_with_the_safetensors_crate() {
    for (name, bytes) in undisturbed(false).0 {
        if name.ends_with(".safetensors") {
            let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!((8 + header) % 4096, 0);
        }
    }
}
