//! Streams from real files, however they are read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use narrows_staging::{Arena, ArenaOptions, Budget, IoMode, Read, Reader, ReaderOptions};
use narrows_stream::{
    Access, Bytes, Error, FileSource, Group, Options, Plan, Request, Slots, Speed, Stream, Tile, TileId, plan,
};

/// Tiles of odd sizes at odd offsets, in two files; every fifth is on demand.
fn ranges() -> Vec<Read> {
    let mut ends = [3_u64, 8191];
    let next = |n: usize| {
        let (file, len) = (n % 2, 10_000 + 977 * (n * n % 23));
        let offset = ends[file];
        ends[file] += len as u64 + 5;
        Read { file, offset, len }
    };
    (0..40).map(next).collect()
}

fn byte(file: usize, at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 11) as u8 ^ file as u8
}

fn content(range: &Read) -> Vec<u8> {
    (range.offset..).take(range.len).map(|at| byte(range.file, at)).collect()
}

fn write(folder: &Path) -> Vec<PathBuf> {
    let end =
        |file| ranges().iter().filter(|r| r.file == file).map(|r| r.offset + r.len as u64).max().unwrap();
    let write = |file| {
        let path = folder.join(format!("weights-{file}.bin"));
        fs::write(&path, (0..end(file)).map(|at| byte(file, at)).collect::<Vec<_>>()).unwrap();
        path
    };
    (0..2).map(write).collect()
}

fn planned(share: f64) -> Plan {
    let tiles: Vec<Tile> = ranges()
        .iter()
        .enumerate()
        .map(|(n, range)| {
            let access = if n % 5 == 4 { Access::Demanded(Group(n as u32 / 5)) } else { Access::Walked };
            FileSource::tile(range, access)
        })
        .collect();
    let mut request = Request::new(&tiles, Bytes(u64::MAX))
        .grain(narrows_staging::ALIGNMENT)
        .needs(&[])
        .slots(Slots::Exactly(3))
        .demand(Slots::Exactly(2), 8, Bytes(0))
        .extra_per_pass(Bytes(0))
        .speeds(Speed::assumed(1e9), Speed::assumed(1e9));
    let all = plan(&request).unwrap();
    let least = all.minimum.get();
    request.budget = Bytes(least + ((all.all_resident_at.get() - least) as f64 * share) as u64);
    plan(&request).unwrap()
}

fn start(plan: &Plan, paths: &[PathBuf], mode: IoMode) -> Stream {
    let budget = Budget::new(plan.arena);
    let arena = Arena::new(&budget, "weights", plan.arena, ArenaOptions::default()).unwrap();
    let options = ReaderOptions { arenas: vec![arena.clone()], ..ReaderOptions::default() };
    let source = FileSource::new(Reader::open(paths, mode, options).unwrap(), ranges());
    let describe = |tile: TileId| format!("tensor {}", tile.0);
    Stream::start(plan, &arena, source, Options::default().describe(describe)).unwrap()
}

fn walk(folder: &Path) {
    let paths = write(folder);
    let ranges = ranges();
    for mode in [IoMode::Auto, IoMode::Buffered, IoMode::Mmap] {
        for share in [0.0, 0.5, 1.0] {
            let plan = planned(share);
            let mut stream = start(&plan, &paths, mode);
            for _ in 0..3 {
                let mut pass = stream.pass();
                for tile in plan.walk() {
                    assert!(pass.next().unwrap().bytes() == content(&ranges[tile.index()]), "{tile:?}");
                }
                let groups = [7, 0, 0, 1, 6].map(Group);
                pass.demand(&groups).unwrap();
                for group in groups {
                    let held = pass.next_demanded().unwrap().unwrap();
                    assert!(held.bytes() == content(&ranges[group.index() * 5 + 4]), "{group:?}");
                }
            }
            let stats = stream.stats();
            assert_eq!(stats.resident, plan.resident);
            assert!(stats.disk.moved >= stats.disk.bytes);
        }
    }
}

#[test]
fn on_disk() {
    walk(tempfile::tempdir().unwrap().path());
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_file_system_without_direct_io() {
    if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
        walk(folder.path());
    }
}

#[test]
fn a_file_cut_short_while_it_streams() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let plan = planned(0.0);
    let mut stream = start(&plan, &paths, IoMode::Auto);
    let first = stream.pass().next().unwrap().bytes().len();
    assert_eq!(first, ranges()[0].len);
    OpenOptions::new().write(true).open(&paths[1]).unwrap().set_len(100).unwrap();
    // What was read ahead may still come; the next pass reads the file again in any case.
    let error = (0..3).find_map(|_| {
        let mut pass = stream.pass();
        plan.walk().find_map(|_| pass.next().err())
    });
    let Some(Error::Read { tile, source }) = error else { panic!("{error:?}") };
    assert!(tile.starts_with("tensor "));
    assert!(source.to_string().contains("weights-1.bin"), "{source}");
    assert!(matches!(stream.pass().next(), Err(Error::Ended)));
}
