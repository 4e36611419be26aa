//! The threads and the instruction set.

use std::fmt;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::simd::{Kernel, Level};
use crate::{Error, Isa};

/// Threads and an instruction set; the operations are its methods.
///
/// It holds nothing else, so it may be shared by any number of callers.
pub struct Cpu {
    level: Level,
    // `None` for one thread: then the caller's own does the work.
    pool: Option<ThreadPool>,
}

/// Multiply-adds below which waking another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 18;

impl Cpu {
    /// Computes on `threads` threads with the best instructions of this machine.
    pub fn new(threads: usize) -> Result<Self, Error> {
        Self::with_isa(threads, Isa::best())
    }

    /// Computes on `threads` threads with the given instructions, for tests and comparisons.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, Error> {
        let level = Level::detect(isa).ok_or(Error::Isa(isa))?;
        let pool = match threads {
            0 => return Err(Error::Zero { what: "the number of threads" }),
            1 => None,
            _ => {
                let builder = ThreadPoolBuilder::new().num_threads(threads);
                Some(builder.thread_name(|i| format!("narrows-cpu-{i}")).build()?)
            }
        };
        Ok(Self { level, pool })
    }

    /// How many threads it computes on.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, ThreadPool::current_num_threads)
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
    pub(crate) fn for_each(&self, tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if tasks > 1 && work >= WORTH_A_THREAD => {
                pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task));
            }
            _ => (0..tasks).for_each(task),
        }
    }

    /// Runs `task(i, chunk)` for each chunk of `size` elements of `data`; an element takes `work`
    /// multiply-adds.
    pub(crate) fn for_chunks<T: Send>(
        &self,
        data: &mut [T],
        size: usize,
        work: usize,
        task: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        match &self.pool {
            Some(pool) if data.len() > size && data.len().saturating_mul(work) >= WORTH_A_THREAD => {
                pool.install(|| data.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| task(i, chunk)));
            }
            _ => data.chunks_mut(size).enumerate().for_each(|(i, chunk)| task(i, chunk)),
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa()).field("threads", &self.threads()).finish()
    }
}
