//! The threads and the instruction set.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::pool::Pool;
use crate::simd::{Kernel, Level};
use crate::{Error, Isa};

/// Threads and an instruction set; the operations are its methods.
///
/// It holds nothing else, so it may be shared by any number of callers. The threads are one caller's at a time:
/// an operation that finds them taken is computed by its caller alone.
pub struct Cpu {
    level: Level,
    pool: Pool,
}

/// Multiply-adds below which another thread, that may have to be woken, costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 18;

/// What a task writes that takes rows of a result, or one row where that is more.
const TASK_BYTES: usize = 64 << 10;

impl Cpu {
    /// Computes on `threads` threads with the best instructions of this machine.
    pub fn new(threads: usize) -> Result<Self, Error> {
        Self::with_isa(threads, Isa::best())
    }

    /// Computes on `threads` threads with the given instructions, for tests and comparisons.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, Error> {
        let level = Level::detect(isa).ok_or(Error::Isa(isa))?;
        if threads == 0 {
            return Err(Error::Zero { what: "the number of threads" });
        }
        Ok(Self { level, pool: Pool::new(threads).map_err(Error::Threads)? })
    }

    /// How many threads it computes on.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions that it uses.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.level.isa()
    }

    /// Runs one kernel on this thread.
    pub(crate) fn run<K: Kernel>(&self, kernel: K) {
        self.level.run(kernel);
    }

    /// Runs `task(0..tasks)`, all of which take `work` multiply-adds together.
    pub(crate) fn for_each(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        if tasks > 1 && work >= WORTH_A_THREAD {
            self.pool.for_each(tasks, task);
        } else {
            (0..tasks).for_each(task);
        }
    }

    /// Runs `task(first, rows)` on whole rows of `data`, `row` elements each, several at a time where they are
    /// short; an element takes `work` multiply-adds.
    pub(crate) fn for_rows<T: Send>(
        &self,
        data: &mut [T],
        row: usize,
        work: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let rows = (TASK_BYTES / size_of::<T>()).div_ceil(row);
        let (tasks, work) = (data.len().div_ceil(rows * row), data.len().saturating_mul(work));
        let chunks = Mutex::new(data.chunks_mut(rows * row).enumerate());
        self.for_each(tasks, work, |_| {
            // The guard is gone before the rows are worked on.
            let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
            if let Some((i, chunk)) = next {
                task(i * rows, chunk);
            }
        });
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa()).field("threads", &self.threads()).finish()
    }
}
