//! Every method on real files: whatever it is called, the bytes are the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use narrows_staging::{
    Arena, ArenaOptions, Budget, Bytes, Completion, Error, Free, IoMode, Read, Reader, ReaderOptions, Slot,
};
use proptest::prelude::*;
use tempfile::TempDir;

const MAX: usize = 300_000;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 13) as u8).collect()
}

/// A disk, and memory that says it is one.
fn folders() -> Vec<TempDir> {
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folders = [disk, Path::new("/dev/shm")].into_iter().filter(|path| path.is_dir());
    folders.map(|path| TempDir::new_in(path).unwrap()).collect()
}

fn file(folder: &TempDir, len: usize) -> PathBuf {
    let path = folder.path().join("model.bin");
    fs::write(&path, bytes(len)).unwrap();
    path
}

/// All the ways to read, as far as this system has them.
fn readers(path: &Path, options: &ReaderOptions) -> Vec<Reader> {
    let mut readers = Vec::new();
    for mode in [IoMode::Auto, IoMode::Direct, IoMode::Buffered, IoMode::Mmap] {
        for io_uring in [true, false] {
            let options = ReaderOptions { io_uring, ..options.clone() };
            match Reader::open(&[path.to_owned()], mode, options) {
                Ok(reader) => readers.push(reader),
                Err(Error::NoDirect { .. }) if mode == IoMode::Direct => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    readers
}

fn arena(slots: usize) -> (Arena, Vec<Slot<Free>>) {
    let capacity = Reader::capacity_for(MAX).next_multiple_of(4096);
    let budget = Budget::new(Bytes::mib(64));
    let size = Bytes((slots * capacity) as u64);
    let arena = Arena::new(&budget, "slots", size, ArenaOptions::default()).unwrap();
    let slots = (0..slots).map(|_| Slot::new(arena.carve(capacity).unwrap())).collect();
    (arena, slots)
}

fn one(reader: &mut Reader, offset: u64, len: usize) -> Completion {
    let (_, mut slots) = arena(1);
    let slot = slots.pop().unwrap().fill(offset);
    reader.submit(Read { file: 0, offset, len }, slot).map_err(|(error, _)| error).unwrap();
    reader.wait(Some(Duration::from_secs(60))).unwrap()
}

fn payload(completion: Completion) -> Result<Vec<u8>, Error> {
    match completion.result {
        Ok(slot) => Ok(slot.take().bytes().to_vec()),
        Err((error, _)) => Err(error),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_same_bytes_by_every_method(
        len in 1_usize..1_000_000,
        reads in prop::collection::vec((0_usize..1_000_000, 0_usize..MAX), 1..10),
        block in prop::sample::select(vec![1_usize, 4096, 12_288, 65_536, 1 << 20]),
        depth in 1_usize..20,
        register: bool,
    ) {
        for folder in folders() {
            let (path, content) = (file(&folder, len), bytes(len));
            let (arena, mut free) = arena(3);
            let arenas = if register { vec![arena] } else { Vec::new() };
            for mut reader in readers(&path, &ReaderOptions { depth, block, threads: 3, arenas, ..ReaderOptions::default() }) {
                let mut todo = reads.clone();
                let mut ended = 0;
                loop {
                    while !todo.is_empty() && let Some(slot) = free.pop() {
                        let (offset, wanted) = todo.pop().unwrap();
                        let offset = offset % len;
                        let tag = ((offset as u64) << 32) | wanted as u64;
                        let read = Read { file: 0, offset: offset as u64, len: wanted };
                        prop_assert!(reader.submit(read, slot.fill(tag)).is_ok());
                    }
                    let Some(completion) = reader.wait(None) else { break };
                    ended += 1;
                    let (offset, wanted) = ((completion.tag >> 32) as usize, (completion.tag as u32) as usize);
                    let there = wanted.min(len - offset);
                    free.push(match completion.result {
                        Ok(slot) => {
                            let used = slot.take();
                            prop_assert!(used.bytes() == &content[offset..offset + wanted], "{}", reader.method().name());
                            used.release()
                        }
                        Err((Error::ShortFile { found, .. }, slot)) => {
                            prop_assert_eq!(found, there as u64);
                            prop_assert!(there < wanted);
                            slot
                        }
                        Err((error, _)) => return Err(TestCaseError::fail(error.to_string())),
                    });
                }
                prop_assert_eq!(ended, reads.len());
            }
        }
    }
}

#[test]
fn a_file_cut_short_while_it_is_read_is_an_error_that_says_where() {
    for folder in folders() {
        let path = file(&folder, 200_000);
        for mut reader in readers(&path, &ReaderOptions::default()) {
            let method = reader.method().name();
            assert_eq!(payload(one(&mut reader, 100_001, 50_000)).unwrap(), bytes(200_000)[100_001..150_001]);
            // Within the last page and an earlier one, where a mapping shows zeros, and between two, where it
            // would kill.
            for cut in [148_001, 123_457, 122_880] {
                File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
                match payload(one(&mut reader, 100_001, 50_000)) {
                    Err(Error::ShortFile { path: p, offset: 100_001, wanted: 50_000, found }) => {
                        assert_eq!((p, found), (path.clone(), cut - 100_001), "{method}");
                    }
                    other => panic!("{method}: {:?}", other.map(|bytes| bytes.len())),
                }
            }
            assert_eq!(payload(one(&mut reader, 22_880, 100_000)).unwrap(), bytes(200_000)[22_880..122_880]);
            fs::write(&path, bytes(200_000)).unwrap();
        }
    }
}

#[test]
fn a_deleted_file_is_read_to_its_end() {
    for folder in folders() {
        let path = file(&folder, 100_000);
        let readers = readers(&path, &ReaderOptions::default());
        fs::remove_file(&path).unwrap();
        for mut reader in readers {
            assert_eq!(payload(one(&mut reader, 1, 99_999)).unwrap(), bytes(100_000)[1..]);
        }
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = &folders()[0];
    let missing = folder.path().join("missing");
    for mode in [IoMode::Auto, IoMode::Direct, IoMode::Buffered, IoMode::Mmap] {
        for path in [missing.clone(), folder.path().to_owned()] {
            let error =
                Reader::open(std::slice::from_ref(&path), mode, ReaderOptions::default()).unwrap_err();
            assert!(matches!(error, Error::Open { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_refused_when_it_is_opened() {
    use std::os::unix::fs::PermissionsExt;
    let folder = &folders()[0];
    let path = file(folder, 10);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if File::open(&path).is_err() {
        let error = Reader::open(&[path], IoMode::Auto, ReaderOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Open { .. }) && error.to_string().contains("denied"), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_io_uring_threads_read_and_say_why() {
    let folder = &folders()[0];
    let path = file(folder, 100_000);
    let options = ReaderOptions { io_uring: false, ..ReaderOptions::default() };
    let mut reader = Reader::open(&[path], IoMode::Auto, options).unwrap();
    if reader.method() == narrows_staging::Method::DirectThreads {
        assert_eq!(reader.notes(), ["io_uring: not allowed; using threads"]);
    }
    assert_eq!(payload(one(&mut reader, 7, 9000)).unwrap(), bytes(100_000)[7..9007]);
}

#[cfg(target_os = "linux")]
#[test]
fn without_direct_io_the_page_cache_is_used_or_pointed_at() {
    // procfs is a file system without it; tmpfs has learnt it lately.
    let path = PathBuf::from("/proc/self/cmdline");
    let error = Reader::open(std::slice::from_ref(&path), IoMode::Direct, ReaderOptions::default());
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NoDirect { .. }));
    assert!(error.to_string().contains("the page cache"), "{error}");
    let mut reader = Reader::open(std::slice::from_ref(&path), IoMode::Auto, Default::default()).unwrap();
    assert_eq!(reader.method(), narrows_staging::Method::BufferedThreads);
    assert_eq!(reader.notes().len(), 1);
    assert!(reader.notes()[0].starts_with("/proc/self/cmdline: no direct I/O: "), "{:?}", reader.notes());
    assert_eq!(payload(one(&mut reader, 0, 5)).unwrap(), fs::read(&path).unwrap()[..5]);
}

#[test]
fn a_reader_may_be_dropped_at_any_moment() {
    for folder in folders() {
        let path = file(&folder, 1_000_000);
        for take in 0..4 {
            for mut reader in readers(&path, &ReaderOptions { block: 4096, depth: 9, ..Default::default() }) {
                let (_, slots) = arena(4);
                for (i, slot) in slots.into_iter().enumerate() {
                    let read = Read { file: 0, offset: i as u64 * 200_000, len: 200_000 };
                    reader.submit(read, slot.fill(0)).map_err(|(error, _)| error).unwrap();
                }
                for _ in 0..take {
                    assert!(reader.wait(None).unwrap().result.is_ok());
                }
                assert_eq!(reader.in_flight(), 4 - take);
            }
        }
    }
}

#[test]
fn a_reader_moves_between_threads_and_is_woken() {
    let folder = &folders()[0];
    let path = file(folder, 1_000_000);
    for mut reader in readers(&path, &ReaderOptions { block: 4096, depth: 4, ..Default::default() }) {
        let (_, mut slots) = arena(1);
        let waker = reader.waker();
        let slot = slots.pop().unwrap().fill(0);
        let submit = move || {
            reader.submit(Read { file: 0, offset: 0, len: MAX }, slot).map_err(|(error, _)| error).unwrap();
            reader
        };
        // The thread that submitted is gone when the rest is waited for.
        let mut reader = std::thread::spawn(submit).join().unwrap();
        waker.wake();
        let completion = std::iter::repeat_with(|| reader.wait(None)).flatten().next().unwrap();
        assert_eq!(payload(completion).unwrap(), bytes(MAX));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_mapping_does_not_stay_resident() {
    let resident = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let folder = &folders()[0];
    let path = folder.path().join("big.bin");
    File::create(&path).unwrap().set_len(96 << 20).unwrap();
    let mut reader = Reader::open(&[path], IoMode::Mmap, ReaderOptions::default()).unwrap();
    let (_, mut slots) = arena(1);
    let before = resident();
    for offset in (0..96 << 20).step_by(MAX).take_while(|at| at + MAX <= 96 << 20) {
        let slot = slots.pop().unwrap().fill(0);
        reader
            .submit(Read { file: 0, offset: offset as u64, len: MAX }, slot)
            .map_err(|(error, _)| error)
            .unwrap();
        slots.push(reader.wait(None).unwrap().result.map_err(|(error, _)| error).unwrap().take().release());
        // Other tests map files at the same time.
        assert!(resident() < before + (24 << 10), "{} kB, {before} kB before", resident());
    }
}

/// Whether a page is in the page cache: a read that may not wait finds it there.
#[cfg(target_os = "linux")]
fn is_cached(path: &Path, offset: u64) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut byte = [0];
    let file = File::open(path).unwrap();
    let read = preadv2(&file, &mut [std::io::IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(rustix::io::Errno::AGAIN))
}

#[cfg(target_os = "linux")]
#[test]
fn the_page_cache_keeps_what_it_is_told_to_keep() {
    // Memory that says it is a disk keeps all.
    let folder = &folders()[0];
    for mode in [IoMode::Buffered, IoMode::Mmap] {
        for keep_cached in [false, true] {
            // All of it: the kernel keeps pages in folios of several, and drops those that it may drop whole.
            let path = file(folder, MAX);
            File::open(&path).unwrap().sync_all().unwrap();
            let options = ReaderOptions { keep_cached, ..ReaderOptions::default() };
            let mut reader = Reader::open(std::slice::from_ref(&path), mode, options).unwrap();
            payload(one(&mut reader, 0, MAX)).unwrap();
            assert_eq!(is_cached(&path, 8192), keep_cached, "{mode:?}");
        }
    }
}
