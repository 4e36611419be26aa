//! How fast tiles of 8 MiB come from a file of 2 GiB, cold, by each method; beside fio where it is installed.
//!
//! ```text
//! cargo bench -p narrows-staging                    # every method, and fio
//! cargo bench -p narrows-staging -- sweep           # io_uring by block size and depth, and fio
//! cargo bench -p narrows-staging -- uring rounds=9  # one method, more rounds
//! ```
//!
//! Rounds are interleaved, so that all see the same disk; the figure is the median, and the ratio is to fio's
//! best in the same round. The file is made once, of incompressible bytes, under the target directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use narrows_staging::{Arena, ArenaOptions, Budget, Bytes, IoMode, Lock, Read, Reader, ReaderOptions, Slot};

const FILE: u64 = 2 << 30;
const TILE: usize = 8 << 20;
const SLOTS: usize = 6;

fn main() {
    // `cargo test --all-targets` runs benches as well, and has no use for 2 GiB of reads.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let rounds = args.iter().find_map(|a| a.strip_prefix("rounds=")).map_or(5, |n| n.parse().unwrap());
    let wanted = |name: &str| {
        let mut names = args.iter().filter(|a| !a.contains('=')).peekable();
        names.peek().is_none() || names.any(|n| name.contains(n.as_str()))
    };
    let path = make_file();
    let mut runs: Vec<(String, Box<dyn Fn() -> f64>)> = Vec::new();
    if args.iter().any(|a| a.starts_with("sweep")) {
        for block in [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20] {
            for depth in [4, 8, 16, 32, 64] {
                let options = ReaderOptions { block, depth, ..ReaderOptions::default() };
                let path = path.clone();
                let name = format!("sweep: blocks of {}, depth {depth}", Bytes(block as u64));
                runs.push((name, Box::new(move || read(&path, IoMode::Direct, options.clone(), true, true))));
            }
        }
    }
    let direct = IoMode::Direct;
    for (name, mode, io_uring, registered, huge_pages) in [
        ("uring", direct, true, true, true),
        ("uring, not registered", direct, true, false, true),
        ("uring, not registered, small pages", direct, true, false, false),
        ("threads, direct", direct, false, false, true),
        ("threads, buffered", IoMode::Buffered, false, false, true),
        ("mmap", IoMode::Mmap, false, false, true),
    ] {
        let path = path.clone();
        let options = ReaderOptions { io_uring, ..ReaderOptions::default() };
        runs.push((
            name.into(),
            Box::new(move || read(&path, mode, options.clone(), registered, huge_pages)),
        ));
    }
    for (engine, block, depth, huge) in [
        ("libaio", "1M", 32, false),
        ("io_uring", "1M", 32, false),
        ("libaio", "1M", 32, true),
        ("io_uring", "1M", 32, true),
        ("io_uring", "2M", 32, true),
        ("io_uring", "4M", 16, true),
    ] {
        let path = path.clone();
        let run = move || fio(&path, engine, block, depth, huge);
        let pages = if huge { "huge pages" } else { "as it comes" };
        runs.push((format!("fio {engine}, {pages}, {block}, depth {depth}"), Box::new(run)));
    }
    runs.retain(|(name, _)| wanted(name) || (name.starts_with("fio") && !wanted("fio") && have_fio()));
    runs.retain(|(name, _)| !name.starts_with("fio") || have_fio());

    let mut figures = vec![Vec::new(); runs.len()];
    let mut ratios = vec![Vec::new(); runs.len()];
    for _ in 0..rounds {
        let round: Vec<f64> = runs.iter().map(|(_, run)| run()).collect();
        let best = runs.iter().zip(&round).filter(|((name, _), _)| name.starts_with("fio"));
        let best = best.map(|(_, &figure)| figure).fold(f64::NAN, f64::max);
        for (i, figure) in round.into_iter().enumerate() {
            figures[i].push(figure);
            ratios[i].push(figure / best);
        }
    }
    for ((name, _), (figures, ratios)) in runs.iter().zip(figures.iter_mut().zip(&mut ratios)) {
        let (median, ratio) = (median(figures), median(ratios));
        let (low, high) = (figures[0], figures[figures.len() - 1]);
        println!("{name:<44} {median:5.2} GB/s ({low:.2} to {high:.2}), {:5.1} % of fio", ratio * 100.0);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn make_file() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("read-bench.bin");
    if path.metadata().map_or(0, |meta| meta.len()) != FILE {
        let mut file = File::create(&path).unwrap();
        let mut state = 1_u64;
        let mut chunk = vec![0; 1 << 20];
        for _ in 0..FILE >> 20 {
            for word in chunk.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
            }
            file.write_all(&chunk).unwrap();
        }
        file.sync_all().unwrap();
    }
    drop_cache(&path);
    path
}

/// What was read through the page cache must not help whoever is next.
fn drop_cache(path: &Path) {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(File::open(path).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    #[cfg(not(target_os = "linux"))]
    let _ = path;
}

fn read(path: &Path, mode: IoMode, mut options: ReaderOptions, register: bool, huge_pages: bool) -> f64 {
    let budget = Budget::new(Bytes::mib(512));
    let capacity = Reader::capacity_for(TILE);
    let size = Bytes((SLOTS * capacity) as u64);
    let arena = Arena::new(&budget, "slots", size, ArenaOptions { huge_pages, lock: Lock::No }).unwrap();
    if register {
        options.arenas.push(arena.clone());
    }
    let as_asked = !options.io_uring;
    let mut reader = Reader::open(&[path.to_owned()], mode, options).unwrap();
    for note in reader.notes().iter().filter(|_| !as_asked) {
        println!("  {note}");
    }
    let mut free: Vec<_> = (0..SLOTS)
        .map(|_| {
            let mut region = arena.carve(capacity).unwrap();
            region.as_mut_slice().fill(1);
            Slot::new(region)
        })
        .collect();
    let mut next = 0;
    let mut bytes = 0;
    let start = Instant::now();
    loop {
        while let Some(slot) = free.pop_if(|_| next < FILE) {
            let tile = Read { file: 0, offset: next, len: TILE };
            reader.submit(tile, slot.fill(next)).map_err(|(error, _)| error).unwrap();
            next += TILE as u64;
        }
        let Some(completion) = reader.wait(None) else { break };
        let used = completion.result.map_err(|(error, _)| error).unwrap().take();
        bytes += used.bytes().len();
        free.push(used.release());
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(bytes as u64, FILE);
    drop_cache(path);
    bytes as f64 / seconds / 1e9
}

fn have_fio() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// A request to a disk is a list of memory ranges, and the list is short: memory in huge pages makes for fewer
/// and bigger requests. fio's own buffers are small pages unless its allocator is told otherwise.
fn fio(path: &Path, engine: &str, block: &str, depth: usize, huge: bool) -> f64 {
    let output = Command::new("fio")
        .env("GLIBC_TUNABLES", if huge { "glibc.malloc.hugetlb=1" } else { "" })
        .args(["--name=read", "--rw=read", "--direct=1", "--output-format=terse", "--terse-version=3"])
        .arg(format!("--filename={}", path.display()))
        .args([&format!("--ioengine={engine}"), &format!("--bs={block}"), &format!("--iodepth={depth}")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Field 7 is the read bandwidth in KiB/s.
    let line = text.lines().find(|line| line.starts_with("3;")).expect("fio reports");
    line.split(';').nth(6).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e9
}
