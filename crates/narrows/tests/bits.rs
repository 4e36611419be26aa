//! The bits of every golden's logits, as they were: what moves code changes none of them. Which instruction set computes
//! decides the order of sums, and with it the bits; what is compared is what this machine has, and two generations of
//! GPUs under the software driver.
//!
//! `tests/data/bits.txt` has a line for each: checkpoint, pack, instruction set or compute capability, hash. After a change
//! that is meant to change bits, `NARROWS_UPDATE=1 cargo test -p narrows --test bits` writes it again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, reason = "a test may")]
// Sines and powers come from the system's library, and others round other ones differently.
#![cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use narrows::{Device, Encoding, Engine, EngineBuilder, Isa, Model, Quantisation, ScoreInput, Workload};
use narrows_softgpu::{SoftGpu, skip_or_fail};
use safetensors::SafeTensors;
use xxhash_rust::xxh3::Xxh3Default;

/// Checkpoints whose packs in q8 and nf4 are compared, too.
const PACKED: [&str; 3] = ["llama", "qwen3-tied-biases", "qwen2-moe-dense-layer"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn ids(checkpoint: &Path) -> Vec<Vec<u32>> {
    let bytes = std::fs::read(checkpoint.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("input_ids").unwrap();
    let ids: Vec<u32> =
        tensor.data().as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    ids.chunks(tensor.shape()[1]).map(<[u32]>::to_vec).collect()
}

/// Of the logits of all rows in one call.
fn hash(dir: &Path, builder: EngineBuilder, ids: &[Vec<u32>]) -> String {
    let workload = Workload::new(8, 1024, 512, 512);
    let mut engine = builder.workload(workload).build(Model::open(dir).unwrap()).unwrap();
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 0..tokens.len())).collect();
    let mut hash = Xxh3Default::new();
    engine
        .score(&inputs, |_, _, row| {
            row.iter().for_each(|logit| hash.update(&logit.to_bits().to_le_bytes()));
            Ok(())
        })
        .unwrap();
    format!("{:016x}", hash.digest())
}

fn pack(from: &Path, to: &Path, encoding: Encoding) {
    let source = Model::open(from).unwrap();
    let quantisation = Quantisation::all(Some(encoding));
    let (files, layout) = (source.files().unwrap(), source.pack_layout(&quantisation));
    let options = narrows_shard::PackOptions::default();
    narrows_shard::pack(files, &layout, to, &options, &mut |_| ()).unwrap();
}

/// Calls `each` with every checkpoint and the packs of some: a name, where it is, its ids.
fn every_golden(mut each: impl FnMut(&str, &Path, &[Vec<u32>])) {
    let entries = std::fs::read_dir(data("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        let checkpoint = data("checkpoints").join(&name);
        let ids = ids(&checkpoint);
        each(&format!("{name} plain"), &checkpoint, &ids);
        if PACKED.contains(&name.as_str()) {
            for (how, encoding) in [("q8", Encoding::Q8), ("nf4", Encoding::Nf4)] {
                let dir = tempfile::tempdir().unwrap();
                pack(&checkpoint, dir.path(), encoding);
                each(&format!("{name} {how}"), dir.path(), &ids);
            }
        }
    }
}

/// Compares hashes with the table, or writes them into it.
fn compare(found: BTreeMap<String, String>) {
    // Tests of one process write one after the other.
    static TABLE: Mutex<()> = Mutex::new(());
    let _one = TABLE.lock().unwrap();
    let table = data("bits.txt");
    let text = std::fs::read_to_string(&table).unwrap_or_default();
    let mut known: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .collect();
    if std::env::var_os("NARROWS_UPDATE").is_some() {
        known.extend(found);
        let text: String = known.iter().map(|(case, hash)| format!("{case} {hash}\n")).collect();
        return std::fs::write(&table, text).unwrap();
    }
    let changed: Vec<_> = found.iter().filter(|(case, hash)| known.get(*case) != Some(*hash)).collect();
    assert!(changed.is_empty(), "other bits: {changed:?}");
}

#[test]
fn no_bit_of_a_golden_has_changed() {
    let mut found = BTreeMap::new();
    every_golden(|name, dir, ids| {
        for isa in Isa::available() {
            found.insert(format!("{name} {isa}"), hash(dir, Engine::builder().isa(isa), ids));
        }
    });
    compare(found);
}

#[test]
fn no_bit_of_a_golden_on_a_device_has_changed() {
    if SoftGpu::inside() {
        let (major, minor) = Device::open(0).unwrap().compute_capability();
        every_golden(|name, dir, ids| {
            let builder = Engine::builder().device(Device::open(0).unwrap());
            println!("bits {name} cuda-{major}.{minor} {}", hash(dir, builder, ids));
        });
        return;
    }
    if !skip_or_fail() {
        return;
    }
    let mut found = BTreeMap::new();
    for (major, minor) in [(7, 5), (9, 0)] {
        let gpu = SoftGpu::new().unwrap().vram(256 << 20).arch(major, minor).seed(1);
        let finished = gpu.rerun("no_bit_of_a_golden_on_a_device_has_changed").unwrap();
        finished.assert_clean();
        let text = finished.text();
        let lines = text.lines().filter_map(|line| line.split_once("bits ")?.1.rsplit_once(' '));
        found.extend(lines.map(|(case, hash)| (case.to_owned(), hash.to_owned())));
    }
    assert_eq!(found.len(), 2 * (22 + 2 * PACKED.len()), "{found:?}");
    compare(found);
}
