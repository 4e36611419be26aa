//! Running one operation: moving its bytes, and checking that nothing else may be using them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use super::block::{Block, Shape};
use super::code::Code;
use super::history::{Actor, Clock};
use super::machine::SharedRange;
use super::queue::{Launch, Operation, Source, Work};
use super::state::{Running, State};
use super::{POINTER, fault};

/// What starting a kernel costs, in simulated seconds.
const LAUNCH_SECONDS: f64 = 3e-6;

impl State {
    pub(crate) fn execute(&mut self, operation: Operation) {
        let Operation { work, actor, clock, number } = operation;
        match work {
            Work::ToDevice { source, to, bytes } => {
                let from = match &source {
                    Source::Staged(staged) => staged.as_ptr(),
                    Source::Pinned { address, hash } => {
                        self.touch(*address, address + bytes, false, &actor, &clock);
                        let from = *address as *const u8;
                        // SAFETY: page-locked memory is registered until no operation uses it.
                        let now = hash.map(|_| xxh3_64(unsafe { std::slice::from_raw_parts(from, bytes) }));
                        if now != *hash {
                            fault::found(&format!(
                                "the host wrote {} while {actor} was to read it",
                                self.name_range(*address, address + bytes)
                            ));
                        }
                        from
                    }
                };
                self.require(to, bytes, &actor);
                self.touch(to, to + bytes, true, &actor, &clock);
                // SAFETY: the source was checked above, the target lies in one allocation.
                unsafe { std::ptr::copy(from, to as *mut u8, bytes) };
                self.memory.set_written(to, bytes);
                self.statistics.h2d.add(bytes as u64, bytes as f64 / self.config.link);
            }
            Work::ToHost { from, to, bytes } => {
                self.require_written(from, bytes, &actor);
                self.touch(from, from + bytes, false, &actor, &clock);
                self.touch(to, to + bytes, true, &actor, &clock);
                // SAFETY: the source lies in one allocation; the caller of the driver gave the target.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                self.statistics.d2h.add(bytes as u64, bytes as f64 / self.config.link);
            }
            Work::OnDevice { from, to, bytes } => {
                self.require(from, bytes, &actor);
                self.require(to, bytes, &actor);
                self.touch(from, from + bytes, false, &actor, &clock);
                self.touch(to, to + bytes, true, &actor, &clock);
                // SAFETY: both ranges lie in allocations.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                self.memory.copy_written(from, to, bytes);
                self.statistics.d2d.add(bytes as u64, 2.0 * bytes as f64 / self.config.mem);
            }
            Work::Set { to, pattern, bytes } => {
                self.require(to, bytes, &actor);
                self.touch(to, to + bytes, true, &actor, &clock);
                // SAFETY: the range lies in one allocation, and the lock is held.
                let target = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                if pattern == [pattern[0]; 4] {
                    target.fill(pattern[0]);
                } else {
                    for (index, byte) in target.iter_mut().enumerate() {
                        *byte = pattern[index % 4];
                    }
                }
                self.memory.set_written(to, bytes);
                self.statistics.memset.add(bytes as u64, bytes as f64 / self.config.mem);
            }
            Work::Launch(launch) => self.launch(&launch, &actor, &clock, number),
            Work::Fail(code) => {
                fault::say(&format!("{actor} fails, as the configuration asks"));
                self.sticky = Some(code);
            }
            Work::Marker | Work::Wait { .. } | Work::HostFunction { .. } => {}
        }
    }

    fn launch(&mut self, launch: &Launch, actor: &Arc<Actor>, clock: &Clock, number: u64) {
        let library = self.libraries.as_ref().and_then(|all| all.get(launch.kernel.library)).cloned();
        let Some(library) = library else { return };
        self.machine.dynamic_shared.bytes = u64::from(launch.shared);
        self.machine.static_shared = SharedRange {
            base: library.shared.start,
            bytes: library.shared.len() as u64,
            cells: library.cells as *mut _,
        };
        self.running = Some(Running { actor: actor.clone(), library, host: Vec::new() });
        let before = self.machine.interval;
        let shape = Shape { grid: launch.grid, block: launch.block };
        let block: *mut Block = &mut *self.block;
        // Callbacks reach the state through this pointer, which is derived from `self` for the
        // duration.
        POINTER.store(self, Ordering::Release);
        // SAFETY: an entry of an attached library with as many bytes of parameters as it takes; the
        // lock is held; `self` is not used until the kernel has ended.
        unsafe { Block::run_grid(block, launch.kernel.call, launch.params.0.as_ptr().cast(), &shape) };
        self.check_shared(launch, actor, before);
        let footprint = self.memory.take_footprint(&mut self.machine);
        let host = self.running.take().map(|running| running.host).unwrap_or_default();
        // Reads first: a kernel may read what it writes.
        for (start, end) in &footprint.reads {
            self.conflicts(*start, *end, false, actor, clock);
        }
        for (start, end) in &footprint.writes {
            self.conflicts(*start, *end, true, actor, clock);
        }
        for (start, end) in &footprint.reads {
            self.history.record(*start, *end, false, actor, &self.host);
        }
        for (start, end) in &footprint.writes {
            self.history.record(*start, *end, true, actor, &self.host);
        }
        let mut over_link = 0;
        for (start, end, write) in host {
            self.touch(start, end, write, actor, clock);
            over_link += end - start;
        }
        let bytes = footprint.bytes();
        let work = (bytes as f64 / self.config.mem).max(over_link as f64 / self.config.link);
        let seconds = LAUNCH_SECONDS + work;
        self.timeline.took(number, seconds);
        self.statistics.kernels.entry(launch.kernel.name.clone()).or_default().add(bytes, seconds);
    }

    /// That a block has as much shared memory as the kernel took. Static memory is what its threads touched of it:
    /// a library does not say which of its variables are whose.
    fn check_shared(&self, launch: &Launch, actor: &Arc<Actor>, before: u32) {
        let range = self.machine.static_shared;
        if u64::from(launch.shared) + range.bytes <= u64::from(launch.most_shared) {
            return;
        }
        // SAFETY: reserved for as many cells as the range has words, and no kernel runs.
        let cells = unsafe { std::slice::from_raw_parts(range.cells, range.bytes as usize / 4) };
        let since = |interval: u32| interval != 0 && interval.wrapping_sub(before) as i32 > 0;
        let touched = cells.iter().filter(|cell| since(cell.write_interval) || since(cell.read_interval));
        let of_variables = 4 * touched.count() as u64;
        if u64::from(launch.shared) + of_variables > u64::from(launch.most_shared) {
            let (major, minor) = self.config.arch;
            fault::found(&format!(
                "{actor}: {} bytes of dynamic and {of_variables} of static shared memory, where a block of it has at \
                 most {} on compute capability {major}.{minor}",
                launch.shared, launch.most_shared
            ));
        }
    }

    /// Checks an access against all earlier ones and records it.
    fn touch(&mut self, start: usize, end: usize, write: bool, actor: &Arc<Actor>, clock: &Clock) {
        self.conflicts(start, end, write, actor, clock);
        self.history.record(start, end, write, actor, &self.host);
    }

    fn conflicts(&self, start: usize, end: usize, write: bool, actor: &Arc<Actor>, clock: &Clock) {
        if let Some(conflict) = self.history.conflict(start, end, write, clock) {
            fault::found(&format!(
                "{actor} {} {}, which {} {}; no event or synchronisation orders the two",
                if write { "writes" } else { "reads" },
                self.name_range(conflict.start, conflict.end),
                conflict.other,
                if conflict.other_writes { "writes" } else { "reads" },
            ));
        }
    }

    /// Device memory of an operation must still be there when it runs.
    fn require(&self, address: usize, bytes: usize, actor: &Arc<Actor>) {
        if !self.memory.holds(address, bytes) {
            fault::found(&format!("{actor} touches device memory {}", self.memory.neighbours(address)));
        }
    }

    fn require_written(&self, address: usize, bytes: usize, actor: &Arc<Actor>) {
        self.require(address, bytes, actor);
        if let Some(byte) = self.memory.first_unwritten(address, bytes) {
            fault::found(&format!(
                "{actor} copies {}, which nothing has written, to the host",
                self.memory.name(byte, byte + 1)
            ));
        }
    }

    /// Freeing memory while an operation that the host has not waited for uses it.
    pub(crate) fn check_unused(&self, start: usize, bytes: usize, what: &str) {
        if let Some(conflict) = self.history.conflict(start, start + bytes, true, &self.host) {
            fault::found(&format!(
                "the host {what} {}, which {} {}; it has not waited for that",
                self.name_range(start, start + bytes),
                conflict.other,
                if conflict.other_writes { "writes" } else { "reads" },
            ));
        }
    }

    /// An error that stays until the process ends, at the place of an operation.
    pub(crate) fn injected(number: u64, wanted: Option<u64>, code: Code) -> Option<Work> {
        (wanted == Some(number)).then_some(Work::Fail(code))
    }
}
