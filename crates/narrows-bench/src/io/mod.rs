//! Reads of a file: every method, block size and depth, cold and warm.
//!
//! What reads is the [`narrows_staging::Reader`] that streams weights, into memory in huge pages that is registered
//! with the kernel. Words are fio's: `bs`, `iodepth`, `ioengine`, `runtime`, `ramp_time`, `size`.

mod file;
mod sample;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use narrows_bytes::Bytes;
use narrows_staging::{ALIGNMENT, IoMode, Reader, ReaderOptions};

use self::file::Target;
use crate::record::{Entry, IoResult, Latency, Samples};
use crate::{Error, Result};

/// How blocks are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring past the page cache.
    IoUring,
    /// Threads past the page cache, one for each operation in flight.
    Threads,
    /// Threads through the page cache.
    Buffered,
    /// Threads that copy from a mapping.
    Mmap,
}

impl IoEngine {
    /// All there are, the fastest first.
    pub const ALL: [Self; 4] = [Self::IoUring, Self::Threads, Self::Buffered, Self::Mmap];

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
            Self::Buffered => "buffered",
            Self::Mmap => "mmap",
        }
    }

    /// Whether it reads past the page cache.
    #[must_use]
    pub const fn direct(self) -> bool {
        matches!(self, Self::IoUring | Self::Threads)
    }
}

/// What is read in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// Block after block.
    Read,
    /// Blocks anywhere, some of them twice: experts that a router asks for.
    RandRead,
    /// Tiles of several blocks, one after the other, that begin in the middle of a page: weights that stream.
    Tiles,
}

impl Rw {
    /// Its name on the command line and in results; the first two are fio's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::RandRead => "randread",
            Self::Tiles => "tiles",
        }
    }
}

/// What the page cache has of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Nothing.
    Cold,
    /// All of what is read.
    Warm,
}

impl Cache {
    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// One way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// How blocks are moved.
    pub engine: IoEngine,
    /// In which order.
    pub rw: Rw,
    /// What the page cache has; of no meaning where it is bypassed.
    pub cache: Cache,
    /// Size of an operation, a multiple of 4096.
    pub bs: Bytes,
    /// Operations at one time, at least 1.
    pub iodepth: usize,
}

impl Case {
    /// How `narrows run` reads weights that stream, unless told otherwise.
    #[must_use]
    pub fn as_run() -> Self {
        let ReaderOptions { block, depth, .. } = ReaderOptions::default();
        Self {
            engine: IoEngine::IoUring,
            rw: Rw::Tiles,
            cache: Cache::Cold,
            bs: Bytes(block as u64),
            iodepth: depth,
        }
    }

    /// Every combination of the lists, in their order; methods that bypass the page cache do not come twice.
    #[must_use]
    pub fn grid(
        engines: &[IoEngine],
        rws: &[Rw],
        caches: &[Cache],
        sizes: &[Bytes],
        depths: &[usize],
    ) -> Vec<Self> {
        let mut cases = Vec::new();
        for &engine in engines {
            for &rw in rws {
                for &cache in if engine.direct() { &[Cache::Cold] } else { caches } {
                    for &bs in sizes {
                        cases.extend(depths.iter().map(|&iodepth| Self { engine, rw, cache, bs, iodepth }));
                    }
                }
            }
        }
        cases
    }

    /// What is asked for at once.
    fn tile(&self, settings: &Settings) -> u64 {
        if self.rw == Rw::Tiles { settings.tile.get() } else { self.bs.get() }
    }

    /// Blocks asked for at a time: `iodepth` of them are being read.
    fn asked(&self) -> usize {
        if self.engine == IoEngine::IoUring { self.iodepth } else { 2 * self.iodepth }
    }

    /// Slots that keep as many blocks asked for.
    fn slots(&self, tile: u64) -> usize {
        if self.rw != Rw::Tiles {
            return self.asked();
        }
        // One more is being given back; and no fewer than a plan gives a model that streams, which is some 64 MiB.
        let blocks = tile.saturating_add(ALIGNMENT as u64).div_ceil(self.bs.get()) as usize;
        let planned = ((64 << 20) / tile).min(64) as usize;
        (self.asked().div_ceil(blocks) + 2).max(planned)
    }

    /// What is mapped to read into.
    fn memory(&self, settings: &Settings) -> u64 {
        let tile = self.tile(settings);
        (self.slots(tile) as u64).saturating_mul(tile.saturating_add(2 * ALIGNMENT as u64))
    }
}

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The ways to read, in the order of the results.
    pub cases: Vec<Case>,
    /// How much of a file is read, and the size of the file that is made in a directory. `None`: all of a file, 1 GiB
    /// in a directory.
    pub size: Option<Bytes>,
    /// Size of a tile.
    pub tile: Bytes,
    /// What is timed of each case, `loops` times.
    pub runtime: Duration,
    /// What is not, before that.
    pub ramp_time: Duration,
    /// How often each case is run; the loops go over all cases in turn, so that all see the same disk.
    pub loops: usize,
    /// Memory that may be mapped.
    pub memory: Bytes,
    /// Whether a way to read that this system lacks is left out with a note, or an error.
    pub skip_missing: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cases: vec![Case::as_run()],
            size: None,
            tile: Bytes::mib(8),
            runtime: Duration::from_millis(500),
            ramp_time: Duration::from_millis(100),
            loops: 3,
            memory: Bytes(u64::MAX),
            skip_missing: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// A result for each case that this system has.
    pub results: Vec<Entry>,
    /// What did not go as asked.
    pub notes: Vec<String>,
}

/// A step of a bench that is about to begin.
#[derive(Clone, Debug)]
pub struct Step {
    /// What, in a few words.
    pub what: String,
    /// How many were done.
    pub done: usize,
    /// Of how many.
    pub of: usize,
}

/// Reads a file, or one that is made in a directory and gone afterwards, however this ends.
///
/// `go_on` is asked several times a second, also while a sample is taken, and told what is being done.
///
/// # Errors
/// A file that cannot be read, a directory that cannot be written to or is full, settings that make no sense, or
/// [`Error::Interrupted`] if `go_on` breaks.
pub fn run(
    path: &Path,
    settings: &Settings,
    go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
) -> Result<Report> {
    check(settings)?;
    let mut notes = Vec::new();
    let steps = settings.cases.len() * settings.loops;
    let mut step = Step { what: "the test file".to_owned(), done: 0, of: steps };
    let target = Target::open(path, settings, &mut || go_on(&step))?;
    let cases = usable(&target, settings, &mut notes)?;
    for case in &cases {
        let spare = Bytes(if case.rw == Rw::Tiles { ALIGNMENT as u64 } else { 0 });
        let wanted = Bytes(case.tile(settings)) + spare;
        if wanted > target.size {
            return Err(Error::TooSmall { path: path.to_owned(), size: target.size, wanted });
        }
    }
    let mut samples = vec![Vec::new(); cases.len()];
    for _ in 0..settings.loops {
        for (case, samples) in cases.iter().zip(&mut samples) {
            step.what = describe(case);
            prepare(&target, case, &mut notes, &mut || go_on(&step))?;
            samples.push(sample::take(&target, case, settings, &mut || go_on(&step))?);
            step.done += 1;
        }
    }
    let results = cases.iter().zip(samples).map(|(case, samples)| Entry::Io(result(case, settings, samples)));
    Ok(Report { results: results.collect(), notes })
}

/// A quick look at what streaming weights from `path` would be like.
#[derive(Clone, Debug)]
pub struct Glance {
    /// How it would be read here.
    pub engine: IoEngine,
    /// Why not in a better way.
    pub notes: Vec<String>,
    /// What came: one result.
    pub result: Entry,
}

/// Reads for `runtime` as `narrows run` does unless told otherwise: a file, or `size` bytes that are made in a
/// directory and gone afterwards.
///
/// # Errors
/// As [`run`].
pub fn glance(
    path: &Path,
    size: Bytes,
    runtime: Duration,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Glance> {
    let settings = Settings { size: Some(size), runtime, ..Settings::default() };
    let target = Target::open(path, &settings, go_on)?;
    // A file of less than a tile is a tile.
    let whole = target.size.get().saturating_sub(ALIGNMENT as u64);
    let settings = Settings { tile: Bytes(settings.tile.get().min(whole)), ..settings };
    if whole == 0 {
        let wanted = Bytes(ALIGNMENT as u64 + 1);
        return Err(Error::TooSmall { path: path.to_owned(), size: target.size, wanted });
    }
    let reader = Reader::open(std::slice::from_ref(&target.path), IoMode::Auto, ReaderOptions::default())?;
    let (engine, notes) = (sample::engine(reader.method()), reader.notes().to_vec());
    drop(reader);
    let defaults = ReaderOptions::default();
    let iodepth = if engine == IoEngine::IoUring { defaults.depth } else { defaults.threads };
    let case = Case { engine, iodepth, ..Case::as_run() };
    prepare(&target, &case, &mut Vec::new(), go_on)?;
    let sample = sample::take(&target, &case, &settings, go_on)?;
    let mut result = result(&case, &settings, vec![sample]);
    // By the method that a run would take here.
    result.as_run = settings.tile == Settings::default().tile;
    Ok(Glance { engine, notes, result: Entry::Io(result) })
}

fn describe(case: &Case) -> String {
    let cache = if case.engine.direct() { "" } else { case.cache.name() };
    format!("{} {} {} x {} {cache}", case.engine.name(), case.rw.name(), case.bs, case.iodepth)
}

fn check(settings: &Settings) -> Result<()> {
    let wrong = |what: String| Err(Error::Settings(what));
    if settings.cases.is_empty() {
        return wrong("nothing to measure: no combination of engine, cache and direct is left".to_owned());
    }
    if settings.loops == 0 || settings.runtime.is_zero() {
        return wrong("loops and runtime must be more than 0".to_owned());
    }
    if settings.tile == Bytes(0) || settings.size == Some(Bytes(0)) {
        return wrong("tile and size must be more than 0".to_owned());
    }
    for case in &settings.cases {
        if case.bs == Bytes(0) || !case.bs.get().is_multiple_of(ALIGNMENT as u64) {
            return wrong(format!("a block of {}: direct I/O takes multiples of {ALIGNMENT}", case.bs));
        }
        if case.bs > Bytes::mib(1024) || case.iodepth == 0 || case.iodepth > 4096 {
            return wrong(format!(
                "blocks of {} at a depth of {}: at most 1 GiB, and 1 to 4096",
                case.bs, case.iodepth
            ));
        }
        let memory = Bytes(case.memory(settings));
        if memory > settings.memory {
            return wrong(format!(
                "blocks of {} at a depth of {} take {memory} of memory, and {} may be used",
                case.bs, case.iodepth, settings.memory
            ));
        }
    }
    Ok(())
}

/// The cases that this system has. io_uring may be forbidden, direct I/O missing.
fn usable(target: &Target, settings: &Settings, notes: &mut Vec<String>) -> Result<Vec<Case>> {
    let mut missing = Vec::new();
    for engine in IoEngine::ALL {
        if !settings.cases.iter().any(|case| case.engine == engine) {
            continue;
        }
        let why = match Reader::open(std::slice::from_ref(&target.path), mode(engine), options(engine)) {
            Ok(reader) if sample::engine(reader.method()) == engine => continue,
            Ok(reader) => {
                Error::Settings(format!("--ioengine {}: {}", engine.name(), reader.notes().join("; ")))
            }
            Err(error @ narrows_staging::Error::NoDirect { .. }) => error.into(),
            Err(error) => return Err(error.into()),
        };
        if !settings.skip_missing {
            return Err(why);
        }
        notes.push(format!("{} is left out: {why}", engine.name()));
        missing.push(engine);
    }
    Ok(settings.cases.iter().filter(|case| !missing.contains(&case.engine)).copied().collect())
}

const fn mode(engine: IoEngine) -> IoMode {
    match engine {
        IoEngine::IoUring | IoEngine::Threads => IoMode::Direct,
        IoEngine::Buffered => IoMode::Buffered,
        IoEngine::Mmap => IoMode::Mmap,
    }
}

fn options(engine: IoEngine) -> ReaderOptions {
    ReaderOptions { io_uring: engine == IoEngine::IoUring, ..ReaderOptions::default() }
}

/// Puts the page cache into the state that the case wants, and notes where it would not go.
fn prepare(
    target: &Target,
    case: &Case,
    notes: &mut Vec<String>,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<()> {
    if case.engine.direct() {
        return Ok(());
    }
    let (wanted, other) = match case.cache {
        Cache::Cold => (0.0, "out of"),
        Cache::Warm => (1.0, "in"),
    };
    match case.cache {
        Cache::Cold => target.drop_cache()?,
        Cache::Warm => target.read_all(go_on)?,
    }
    if let Some(cached) = target.cached_share()
        && (cached - wanted).abs() > 0.05
    {
        let share = 100.0 * (cached - wanted).abs();
        let note = format!(
            "{share:.0} % of the file would not be {other} the page cache: {} is not what it says",
            case.cache.name()
        );
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    Ok(())
}

fn result(case: &Case, settings: &Settings, samples: Vec<sample::Sample>) -> IoResult {
    let bandwidth = Samples::of(samples.iter().map(sample::Sample::bytes_per_second).collect());
    let bytes = Bytes(samples.iter().map(|sample| sample.bytes).sum());
    let seconds = samples.iter().map(|sample| sample.seconds).sum();
    let median = samples.into_iter().find(|s| s.bytes_per_second() == bandwidth.bytes_per_second);
    IoResult {
        ioengine: case.engine.name().to_owned(),
        direct: case.engine.direct(),
        rw: case.rw.name().to_owned(),
        cache: if case.engine.direct() { "bypassed" } else { case.cache.name() }.to_owned(),
        bs: case.bs,
        iodepth: case.iodepth,
        tile: Bytes(case.tile(settings)),
        iops: bandwidth.bytes_per_second / case.bs.get() as f64,
        bandwidth,
        latency: median.map_or_else(Latency::default, |sample| Latency::of(sample.latencies)),
        seconds,
        bytes,
        as_run: *case == Case::as_run() && settings.tile == Settings::default().tile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_no_two_of_a_kind() {
        let caches = [Cache::Cold, Cache::Warm];
        let sizes = [Bytes(4096), Bytes(8192)];
        let cases = Case::grid(&IoEngine::ALL, &[Rw::Read], &caches, &sizes, &[1, 8, 32]);
        // Two that bypass the cache, two that do not, each cold and warm.
        assert_eq!(cases.len(), (2 + 2 * 2) * 2 * 3);
        for (i, case) in cases.iter().enumerate() {
            assert!(!cases[..i].contains(case));
        }
        let warm_only = Case::grid(&IoEngine::ALL, &[Rw::Read], &[Cache::Warm], &sizes, &[1]);
        assert_eq!(warm_only.iter().filter(|case| case.engine.direct()).count(), 4);
    }

    #[test]
    fn a_glance_at_files_of_any_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let look = |path: &Path| {
            glance(path, Bytes::mib(10), Duration::from_millis(1), &mut || ControlFlow::Continue(()))
        };
        for (len, as_run) in [(4097, false), (1 << 20, false), (9 << 20, true)] {
            std::fs::write(&path, vec![1; len]).unwrap();
            let Entry::Io(result) = look(&path).unwrap().result else { panic!("of another kind") };
            assert!(result.as_run == as_run && result.bandwidth.bytes_per_second > 0.0, "{len}: {result:?}");
        }
        std::fs::write(&path, "little").unwrap();
        assert!(look(&path).is_err_and(|error| error.is_request()));
        std::fs::remove_file(&path).unwrap();
        assert!(look(dir.path()).is_ok() && std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn settings_that_measure_nothing() {
        let good = Settings::default();
        assert!(check(&good).is_ok());
        let case = |case: Case| Settings { cases: vec![case], ..good.clone() };
        for bad in [
            Settings { cases: Vec::new(), ..good.clone() },
            Settings { loops: 0, ..good.clone() },
            Settings { runtime: Duration::ZERO, ..good.clone() },
            Settings { size: Some(Bytes(0)), ..good.clone() },
            Settings { tile: Bytes(0), ..good.clone() },
            Settings { memory: Bytes::mib(16), ..good.clone() },
            case(Case { bs: Bytes(0), ..Case::as_run() }),
            case(Case { bs: Bytes(1000), ..Case::as_run() }),
            case(Case { bs: Bytes::mib(2048), ..Case::as_run() }),
            case(Case { iodepth: 0, ..Case::as_run() }),
            case(Case { iodepth: usize::MAX, ..Case::as_run() }),
            Settings { tile: Bytes(u64::MAX - 1), memory: Bytes::mib(1024), ..good.clone() },
        ] {
            assert!(check(&bad).is_err_and(|error| error.is_request()), "{bad:?}");
        }
    }
}
