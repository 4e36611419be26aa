//! Memory of the host: reads and copies by threads and pages, and the multiply-adds that bound the rest.
//!
//! The loads are those of the kernels that multiply with weights (`narrows-cpu`), the memory is mapped as the arenas
//! that weights stream into, and each thread has a part of its own.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use narrows_bytes::Bytes;
use narrows_cpu::Cpu;
use narrows_staging::{Arena, ArenaOptions, Budget, Lock, Region};

use crate::io::Step;
use crate::machine::transparent_huge_pages;
use crate::record::{Entry, HostResult, PeakResult, Samples};
use crate::{Error, Result};

/// What is done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Every byte is read once.
    Read,
    /// One half is copied to the other; bytes read and bytes written count.
    Copy,
    /// None of it: multiply-adds in registers.
    Flops,
}

impl Test {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Read, Self::Copy, Self::Flops];

    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Copy => "copy",
            Self::Flops => "flops",
        }
    }
}

/// The pages that memory is mapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Of 2 MiB, where the kernel gives them: what weights lie in.
    Huge,
    /// Of 4 KiB.
    Small,
}

impl Pages {
    /// Its name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Huge => "huge",
            Self::Small => "small",
        }
    }
}

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done.
    pub tests: Vec<Test>,
    /// By how many threads at a time, each a case.
    pub threads: Vec<usize>,
    /// In which pages.
    pub pages: Vec<Pages>,
    /// Memory of all threads together: more than all caches hold.
    pub size: Bytes,
    /// What is timed of each case, `loops` times.
    pub runtime: Duration,
    /// How often each case is run, in turn.
    pub loops: usize,
    /// Memory that may be mapped.
    pub memory: Bytes,
}

impl Settings {
    /// One thread, twice as many, and so on, and all that there are.
    #[must_use]
    pub fn thread_counts(all: usize) -> Vec<usize> {
        let mut counts: Vec<_> =
            std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n < all).collect();
        counts.push(all.max(1));
        counts
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// A result for each case.
    pub results: Vec<Entry>,
    /// What did not go as asked.
    pub notes: Vec<String>,
}

/// The least that a thread is given, and the grain in which it looks at the clock.
const GRAIN: usize = 1 << 20;

/// Multiply-adds between two looks at the clock: some microseconds.
const ADDS: u64 = 1 << 18;

#[derive(Clone, Copy)]
struct Case {
    test: Test,
    threads: usize,
    pages: Pages,
}

/// Reads and copies memory. `go_on` is asked before every sample.
///
/// # Errors
/// Settings that make no sense, memory that is not there, threads that cannot be started, or [`Error::Interrupted`].
pub fn run(settings: &Settings, go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>) -> Result<Report> {
    check(settings)?;
    let mut notes = Vec::new();
    let pages = usable(settings, transparent_huge_pages().as_deref(), &mut notes);
    let cases = cases(settings, &pages);
    let cpu = Cpu::new(1).map_err(|error| Error::Settings(error.to_string()))?;
    let mut samples = vec![Vec::new(); cases.len()];
    let mut step = Step { what: String::new(), done: 0, of: cases.len() * settings.loops };
    for _ in 0..settings.loops {
        for (case, samples) in cases.iter().zip(&mut samples) {
            step.what = format!("{} by {} threads", case.test.name(), case.threads);
            if go_on(&step).is_break() {
                return Err(Error::Interrupted);
            }
            samples.push(sample(&cpu, case, settings)?);
            step.done += 1;
        }
    }
    let results =
        cases.iter().zip(samples).map(|(case, samples)| entry(case, settings, &cpu, samples)).collect();
    Ok(Report { results, notes })
}

fn entry(case: &Case, settings: &Settings, cpu: &Cpu, samples: Vec<f64>) -> Entry {
    let isa = cpu.isa().name().to_owned();
    let samples = Samples::of(samples);
    match case.test {
        Test::Flops => Entry::Flops(PeakResult {
            backend: "cpu".to_owned(),
            encoding: "f32".to_owned(),
            threads: case.threads,
            isa,
            flops_per_second: samples.bytes_per_second,
            samples: samples.samples,
        }),
        test => Entry::Host(HostResult {
            test: test.name().to_owned(),
            threads: case.threads,
            pages: case.pages.name().to_owned(),
            size: settings.size,
            isa,
            bandwidth: samples,
        }),
    }
}

fn check(settings: &Settings) -> Result<()> {
    let wrong = |what: String| Err(Error::Settings(what));
    if settings.tests.is_empty() || settings.threads.is_empty() || settings.pages.is_empty() {
        return wrong("nothing to measure".to_owned());
    }
    if settings.loops == 0 || settings.runtime.is_zero() {
        return wrong("loops and runtime must be more than 0".to_owned());
    }
    let most = settings.threads.iter().copied().max().unwrap_or(0);
    if settings.threads.contains(&0) || most > 4096 {
        return wrong("1 to 4096 threads".to_owned());
    }
    let least = Bytes((most * GRAIN) as u64 * 2);
    if settings.size < least {
        return wrong(format!("{} of memory: {most} threads take {least} at least", settings.size));
    }
    if settings.size > settings.memory {
        return wrong(format!("{} of memory: {} may be used", settings.size, settings.memory));
    }
    Ok(())
}

/// The pages that this kernel gives: what it decides by itself is not called by another name.
fn usable(settings: &Settings, kernel: Option<&str>, notes: &mut Vec<String>) -> Vec<Pages> {
    let (missing, why) = match kernel {
        Some("always") => (Pages::Small, "the kernel gives huge ones to everybody"),
        Some("madvise") => return settings.pages.clone(),
        _ => (Pages::Huge, "the kernel has none"),
    };
    if !settings.pages.contains(&missing) {
        return settings.pages.clone();
    }
    notes.push(format!("{} pages are left out: {why}", missing.name()));
    let left: Vec<_> = settings.pages.iter().copied().filter(|&pages| pages != missing).collect();
    // There is always the other kind, whether asked for or not.
    let other = if missing == Pages::Huge { Pages::Small } else { Pages::Huge };
    if left.is_empty() { vec![other] } else { left }
}

fn cases(settings: &Settings, pages: &[Pages]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &test in &settings.tests {
        // Registers have no pages.
        for &pages in if test == Test::Flops { &pages[..1] } else { pages } {
            cases.extend(settings.threads.iter().map(|&threads| Case { test, threads, pages }));
        }
    }
    cases
}

/// Bytes (or operations) per second of all threads together.
fn sample(cpu: &Cpu, case: &Case, settings: &Settings) -> Result<f64> {
    let part = settings.size.get() as usize / case.threads / (2 * GRAIN) * (2 * GRAIN);
    let budget = Budget::new(Bytes((part * case.threads) as u64));
    let options = ArenaOptions { huge_pages: case.pages == Pages::Huge, lock: Lock::No };
    let mut parts = Vec::new();
    if case.test != Test::Flops {
        let arena = Arena::new(&budget, "memory to measure", budget.cap(), options)?;
        for _ in 0..case.threads {
            parts.push(Some(arena.carve(part)?));
        }
    }
    parts.resize_with(case.threads, || None);
    let start = Start { threads: case.threads, arrived: AtomicUsize::new(0), failed: AtomicBool::new(false) };
    let speeds = thread::scope(|scope| {
        let mut workers = Vec::new();
        for part in parts {
            let start = &start;
            let work = move || work(cpu, case.test, part, settings.runtime, start);
            match thread::Builder::new().spawn_scoped(scope, work) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    start.failed.store(true, Ordering::Relaxed);
                    return Err(narrows_staging::Error::Threads(error));
                }
            }
        }
        Ok(workers.into_iter().filter_map(|worker| worker.join().ok()).sum())
    });
    Ok(speeds?)
}

/// Where threads wait for each other.
struct Start {
    threads: usize,
    arrived: AtomicUsize,
    /// One of them cannot be started: nobody is to wait for it.
    failed: AtomicBool,
}

impl Start {
    fn wait(&self) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < self.threads && !self.failed.load(Ordering::Relaxed) {
            thread::yield_now();
        }
    }
}

/// What one thread does: first touches its memory, then waits for the others, then the clock runs.
fn work(cpu: &Cpu, test: Test, mut part: Option<Region>, runtime: Duration, others: &Start) -> f64 {
    // A small number as float32, bf16 and f16. Pages that nobody wrote to are all the same one.
    let memory = part.as_mut().map(Region::as_mut_slice).unwrap_or_default();
    memory.fill(0x3c);
    others.wait();
    let start = Instant::now();
    let mut done = 0_u64;
    while !others.failed.load(Ordering::Relaxed) {
        match test {
            Test::Flops => done += cpu.multiply_adds(ADDS),
            Test::Read => {
                for grain in memory.chunks_exact(GRAIN) {
                    std::hint::black_box(cpu.read_sum(grain));
                    done += grain.len() as u64;
                    if start.elapsed() >= runtime {
                        break;
                    }
                }
            }
            Test::Copy => {
                let (from, to) = memory.split_at_mut(memory.len() / 2);
                for (from, to) in from.chunks_exact(GRAIN).zip(to.chunks_exact_mut(GRAIN)) {
                    to.copy_from_slice(from);
                    std::hint::black_box(&to);
                    done += 2 * GRAIN as u64;
                    if start.elapsed() >= runtime {
                        break;
                    }
                }
            }
        }
        if start.elapsed() >= runtime {
            break;
        }
    }
    done as f64 / start.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            tests: Test::ALL.to_vec(),
            threads: vec![1, 2],
            pages: vec![Pages::Huge, Pages::Small],
            size: Bytes::mib(8),
            runtime: Duration::from_millis(1),
            loops: 2,
            memory: Bytes::mib(64),
        }
    }

    #[test]
    fn every_case_once() {
        let report = run(&settings(), &mut |_| ControlFlow::Continue(())).unwrap();
        let kinds = if report.notes.is_empty() { 2 } else { 1 };
        // Read and copy in each kind of pages, and the registers, by one thread and by two.
        assert_eq!(report.results.len(), (2 * kinds + 1) * 2, "{:?}", report.notes);
        for entry in &report.results {
            let (speed, samples) = match entry {
                Entry::Host(result) => (result.bandwidth.bytes_per_second, &result.bandwidth.samples),
                Entry::Flops(result) => (result.flops_per_second, &result.samples),
                other => panic!("{other:?}"),
            };
            assert!(
                samples.len() == 2 && samples.iter().all(|&sample| sample > 0.0) && speed > 0.0,
                "{entry:?}"
            );
        }
        let broken = run(&settings(), &mut |_| ControlFlow::Break(()));
        assert!(matches!(broken, Err(Error::Interrupted)));
    }

    #[test]
    fn settings_that_measure_nothing() {
        for bad in [
            Settings { tests: Vec::new(), ..settings() },
            Settings { threads: vec![2, 0], ..settings() },
            Settings { threads: vec![usize::MAX], ..settings() },
            Settings { pages: Vec::new(), ..settings() },
            Settings { loops: 0, ..settings() },
            Settings { runtime: Duration::ZERO, ..settings() },
            Settings { size: Bytes(1 << 20), ..settings() },
            Settings { size: Bytes::mib(65), ..settings() },
        ] {
            assert!(check(&bad).is_err_and(|error| error.is_request()), "{bad:?}");
        }
    }

    #[test]
    fn pages_are_what_they_are_called() {
        let both = settings();
        let small = Settings { pages: vec![Pages::Small], ..settings() };
        for (asked, kernel, given, noted) in [
            (&both, Some("madvise"), vec![Pages::Huge, Pages::Small], false),
            (&both, Some("always"), vec![Pages::Huge], true),
            (&both, Some("never"), vec![Pages::Small], true),
            (&both, None, vec![Pages::Small], true),
            (&small, Some("always"), vec![Pages::Huge], true),
            (&small, Some("never"), vec![Pages::Small], false),
        ] {
            let mut notes = Vec::new();
            assert_eq!(usable(asked, kernel, &mut notes), given);
            assert_eq!(!notes.is_empty(), noted, "{kernel:?}");
        }
    }

    #[test]
    fn counts_of_threads() {
        assert_eq!(Settings::thread_counts(1), [1]);
        assert_eq!(Settings::thread_counts(2), [1, 2]);
        assert_eq!(Settings::thread_counts(12), [1, 2, 4, 8, 12]);
        assert_eq!(Settings::thread_counts(0), [1]);
    }
}
