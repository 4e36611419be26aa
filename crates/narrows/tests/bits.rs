//! The bits of every golden's logits, as they were: what moves code changes none of them. Which instruction set computes
//! decides the order of sums, and with it the bits; what is compared is what this machine has.
//!
//! `tests/data/bits.txt` has a line for each: checkpoint, pack, instruction set, hash. After a change that is meant to
//! change bits, `NARROWS_UPDATE=1 cargo test -p narrows --test bits` writes it again.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may")]
// Sines and powers come from the system's library, and others round other ones differently.
#![cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use narrows::{Encoding, Engine, Isa, Model, Quantisation, ScoreInput, Workload};
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

fn hash(dir: &Path, isa: Isa, ids: &[Vec<u32>]) -> String {
    let workload = Workload::new(8, 1024, 512, 512);
    let mut engine = Engine::builder().workload(workload).isa(isa).build(Model::open(dir).unwrap()).unwrap();
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

#[test]
fn no_bit_of_a_golden_has_changed() {
    let table = data("bits.txt");
    let mut known = BTreeMap::new();
    for line in std::fs::read_to_string(&table).unwrap_or_default().lines() {
        let (case, hash) = line.rsplit_once(' ').unwrap();
        known.insert(case.to_owned(), hash.to_owned());
    }
    let mut names: Vec<_> = std::fs::read_dir(data("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut found = BTreeMap::new();
    for name in &names {
        let checkpoint = data("checkpoints").join(name);
        let ids = ids(&checkpoint);
        let mut dirs = vec![("plain", checkpoint.clone())];
        let packs = tempfile::tempdir().unwrap();
        if PACKED.contains(&name.as_str()) {
            for (pack_name, encoding) in [("q8", Encoding::Q8), ("nf4", Encoding::Nf4)] {
                let dir = packs.path().join(pack_name);
                pack(&checkpoint, &dir, encoding);
                dirs.push((pack_name, dir));
            }
        }
        for (how, dir) in dirs {
            for isa in Isa::available() {
                found.insert(format!("{name} {how} {isa}"), hash(&dir, isa, &ids));
            }
        }
    }
    if std::env::var_os("NARROWS_UPDATE").is_some() {
        known.extend(found);
        let text: String = known.iter().map(|(case, hash)| format!("{case} {hash}\n")).collect();
        return std::fs::write(&table, text).unwrap();
    }
    let changed: Vec<_> = found.iter().filter(|(case, hash)| known.get(*case) != Some(*hash)).collect();
    assert!(changed.is_empty(), "other bits: {changed:?}");
}
