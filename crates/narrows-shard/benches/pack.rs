//! How fast a checkpoint is packed, beside `cp` and `sync` of the same files with cold caches.
//!
//! `cargo bench -p narrows-shard --bench pack`. Writes about 6 GB under `target/`. As root it drops the page cache
//! of the whole machine, otherwise that of its own files.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use narrows_shard::{Layout, PackOptions, ShardLayout, WeightFiles, pack, verify};

const FILES: usize = 4;
const LAYERS_PER_FILE: usize = 4;
/// Rows of 4096 bf16 weights in the matrices of a layer: 128 MiB.
const MATRICES: [(&str, usize); 5] = [("q", 4096), ("k", 1024), ("v", 1024), ("up", 5120), ("down", 5120)];
const ROUNDS: usize = 3;

fn main() {
    // `cargo test --benches` runs this too, and is not to wait for the disk.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pack-bench");
    let (source, copy, out) = (dir.join("source"), dir.join("copy"), dir.join("out"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&source).unwrap();
    let layout = make_checkpoint(&source);
    let bytes = WeightFiles::open(&source).unwrap().total_bytes();
    println!("{bytes} in {FILES} files, {} shards", layout.shards.len());

    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let _ = fs::remove_dir_all(&copy);
        cold(&source);
        let start = Instant::now();
        let copied = Command::new("sh")
            .args([
                "-c",
                "cp -r --reflink=never \"$0\" \"$1\" && sync \"$1\"/* \"$1\"",
                path(&source),
                path(&copy),
            ])
            .status();
        assert!(copied.unwrap().success());
        let cp = start.elapsed().as_secs_f64();

        let _ = fs::remove_dir_all(&out);
        cold(&source);
        let start = Instant::now();
        let weights = WeightFiles::open(&source).unwrap();
        pack(&weights, &layout, &out, &PackOptions::default(), &mut |_| {}).unwrap();
        let packing = start.elapsed().as_secs_f64();

        cold(&out);
        let start = Instant::now();
        verify(&out, &mut |_| {}).unwrap();
        let verifying = start.elapsed().as_secs_f64();

        let rate = |seconds: f64| bytes.get() as f64 / 1e9 / seconds;
        println!(
            "round {round}: cp+sync {:.2} GB/s, pack {:.2} GB/s, verify {:.2} GB/s; pack at {:.0} % of cp",
            rate(cp),
            rate(packing),
            rate(verifying),
            100.0 * cp / packing
        );
        ratios.push(100.0 * cp / packing);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median: pack at {:.0} % of cp+sync (goal: 70 %)", ratios[ROUNDS / 2]);
    let _ = fs::remove_dir_all(&out);
    cold(&source);
    let start = Instant::now();
    let weights = WeightFiles::open(&source).unwrap();
    pack(&weights, &layout, &out, &PackOptions { consume_source: true, threads: 2 }, &mut |_| {}).unwrap();
    println!("consuming the source: {:.2} GB/s", bytes.get() as f64 / 1e9 / start.elapsed().as_secs_f64());
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        status
            .lines()
            .filter(|line| line.starts_with("VmHWM"))
            .for_each(|line| println!("peak memory {line}"));
    }
    fs::remove_dir_all(&dir).unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Takes the files of `dir` out of the page cache.
fn cold(dir: &Path) {
    assert!(Command::new("sync").status().unwrap().success());
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return;
    }
    #[cfg(target_os = "linux")]
    for entry in fs::read_dir(dir).unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// Writes a checkpoint of random bytes; the layout that packs it.
fn make_checkpoint(dir: &Path) -> Layout {
    let mut layout = Layout { architecture: "bench".into(), ..Layout::default() };
    let mut weight_map = serde_json::Map::new();
    let mut random = 1u64;
    for file in 0..FILES {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for layer in file * LAYERS_PER_FILE..(file + 1) * LAYERS_PER_FILE {
            let mut shard = ShardLayout { name: format!("layer-{layer:05}"), ..ShardLayout::default() };
            let norm = ("norm", vec![4096]);
            for (matrix, shape) in
                [norm].into_iter().chain(MATRICES.map(|(name, rows)| (name, vec![rows, 4096])))
            {
                let name = format!("layers.{layer}.{matrix}");
                let start = end;
                end += 2 * shape.iter().product::<usize>();
                let info = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
                header.insert(name.clone(), info);
                weight_map.insert(name.clone(), format!("model-{file}.safetensors").into());
                shard.tensors.push(name);
            }
            layout.shards.push(shard);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut out = File::create(dir.join(format!("model-{file}.safetensors"))).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(&header).unwrap();
        let mut chunk = Vec::new();
        for offset in (0..end).step_by(1 << 20) {
            chunk.clear();
            for _ in 0..(end - offset).min(1 << 20).div_ceil(8) {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                chunk.extend((random ^ (random >> 29)).to_le_bytes());
            }
            out.write_all(&chunk[..(end - offset).min(1 << 20)]).unwrap();
        }
    }
    let index = serde_json::json!({ "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    layout
}
