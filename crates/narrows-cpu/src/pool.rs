//! Threads that share the tasks of one operation after the other.
//!
//! A token is some hundred matrices, one after the other, and a small one takes less time than to put a thread to
//! sleep and to wake it. So whoever waits here looks for a while before it sleeps, and the caller is one of the
//! threads: it starts with the first task at once, and does not wait for a thread that comes too late to find any.

use std::cell::UnsafeCell;
use std::hint;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// How often to look for what is waited for before sleeping: some ten to a hundred microseconds. To wake a thread
/// takes a few of them, on a virtual machine tens.
const LOOKS: usize = 2000;

/// Threads that wait for work.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose tasks the threads share.
    taken: Mutex<()>,
}

/// Does what nobody has begun yet, until nothing is left. Any number of threads call it at a time.
type Job<'a> = dyn Fn() + Sync + 'a;

struct Shared {
    /// Odd while `job` may be entered. It has another value for each job.
    turn: AtomicUsize,
    /// Workers that are in `job`, or looking whether they may enter.
    inside: AtomicUsize,
    /// Written while `turn` is even and nobody is inside.
    job: UnsafeCell<Option<*const Job<'static>>>,
    panicked: AtomicBool,
    ended: AtomicBool,
    /// What workers wait at for a turn.
    opened: Bell,
    /// What the caller waits at for the last worker to leave.
    left: Bell,
}

// SAFETY: `job` is the only field that is neither. It is written by the caller that holds `Pool::taken`, while no
// worker reads it: see `Shared::enter` and `Shared::open`. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; a pointer to what is `Sync` may be held by any thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, of which the caller of [`Pool::for_each`] is one.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            turn: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            opened: Bell::default(),
            left: Bell::default(),
        });
        let mut pool = Self { shared, workers: Vec::new(), taken: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            // Those that were started are ended by `drop` if one cannot be.
            pool.workers
                .push(thread::Builder::new().name(format!("narrows-cpu-{i}")).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// How many threads there are, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0..tasks)`, in that order and each on whatever thread is free. While the threads are another
    /// caller's, this one runs all of them itself.
    ///
    /// # Panics
    /// If a task does, after all threads are done with the others.
    pub(crate) fn for_each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        let job = || {
            loop {
                let index = next.fetch_add(1, SeqCst);
                if index >= tasks {
                    return;
                }
                task(index);
            }
        };
        let _taken = match self.taken.try_lock() {
            Ok(taken) => taken,
            // Of a task that panicked: nothing of it is left.
            Err(TryLockError::Poisoned(taken)) => taken.into_inner(),
            Err(TryLockError::WouldBlock) => return job(),
        };
        let open = self.shared.open(&job);
        job();
        drop(open);
        assert!(!self.shared.panicked.load(SeqCst), "a task panicked on another thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.shared.opened.ring();
        for worker in self.workers.drain(..) {
            // A panic of a task has been the caller's already.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Lets workers into `job` until what is returned is dropped.
    fn open<'a>(&'a self, job: &'a Job<'a>) -> Open<'a> {
        // Workers that came too late for the last job, and have yet to see it.
        self.left.wait(|| self.inside.load(SeqCst) == 0);
        self.panicked.store(false, SeqCst);
        let job: *const Job<'a> = job;
        // SAFETY: the turn is even, since `Open` makes it so again before the next caller can take the pool; so a
        // worker that enters from here on leaves again without a look at `job`, and by the wait above none that
        // entered before is still there. Only the lifetime differs between the types: `Open::drop` keeps the
        // lender from going on until no worker uses the pointer.
        unsafe { *self.job.get() = Some(mem::transmute::<*const Job<'a>, *const Job<'static>>(job)) };
        self.turn.fetch_add(1, SeqCst);
        self.opened.ring();
        Open(self)
    }

    /// Runs the job of `turn` if it is still open.
    fn enter(&self, turn: usize) {
        self.inside.fetch_add(1, SeqCst);
        // All these accesses have one order. If this finds the turn open, its end comes later, and who ends it
        // looks at `inside` after that, which counts this worker.
        if self.turn.load(SeqCst) == turn {
            // SAFETY: by the above the job is not written, and its lender waits, until this worker has left.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(job)).is_err()
            {
                self.panicked.store(true, SeqCst);
            }
        }
        if self.inside.fetch_sub(1, SeqCst) == 1 {
            self.left.ring();
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            let mut turn = seen;
            self.opened.wait(|| {
                turn = self.turn.load(SeqCst);
                (turn != seen && turn % 2 == 1) || self.ended.load(SeqCst)
            });
            if self.ended.load(SeqCst) {
                return;
            }
            self.enter(turn);
            seen = turn;
        }
    }
}

/// A job that workers may enter.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.turn.fetch_add(1, SeqCst);
        self.0.left.wait(|| self.0.inside.load(SeqCst) == 0);
    }
}

/// Where threads wait for a change that another one makes.
#[derive(Default)]
struct Bell {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Returns once `changed`, which is asked again after every [`Bell::ring`].
    fn wait(&self, mut changed: impl FnMut() -> bool) {
        for _ in 0..LOOKS {
            if changed() {
                return;
            }
            hint::spin_loop();
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the last look: a change after it finds somebody to wake.
        self.asleep.fetch_add(1, SeqCst);
        while !changed() {
            guard = self.rung.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, SeqCst);
    }

    /// Wakes who waits. To be called after the change.
    fn ring(&self) {
        if self.asleep.load(SeqCst) > 0 {
            // Whoever has counted itself and not seen the change holds the lock until it sleeps.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.rung.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic;

    use super::*;

    /// So many rounds, or a few where an interpreter runs them.
    fn rounds(n: usize) -> usize {
        if cfg!(miri) { n / 100 } else { n }
    }

    fn counts(tasks: usize) -> Vec<AtomicUsize> {
        std::iter::repeat_with(AtomicUsize::default).take(tasks).collect()
    }

    /// What workers do is seen by the caller, however they come and go between jobs.
    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..rounds(3000) {
                let done = counts(round % 17);
                pool.for_each(done.len(), |task| {
                    done[task].fetch_add(1, SeqCst);
                });
                assert!(done.iter().all(|done| done.load(SeqCst) == 1), "{threads} threads, round {round}");
            }
        }
    }

    #[test]
    fn threads_that_went_to_sleep_are_woken() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            while pool.shared.opened.asleep.load(SeqCst) < 2 {
                thread::yield_now();
            }
            // Ends only once three threads are in it at a time.
            let together = std::sync::Barrier::new(3);
            pool.for_each(3, |_| {
                together.wait();
            });
        }
    }

    #[test]
    fn callers_that_come_together_get_their_own_tasks_done() {
        let pool = Pool::new(3).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..rounds(500) {
                        let done = counts(9);
                        // A task may have tasks too.
                        pool.for_each(3, |i| {
                            pool.for_each(3, |j| {
                                done[3 * i + j].fetch_add(1, SeqCst);
                            });
                        });
                        assert!(done.iter().all(|done| done.load(SeqCst) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_is_the_callers_and_the_threads_go_on() {
        let pool = Pool::new(2).unwrap();
        // Whichever thread takes the last task.
        for last in [0, 7] {
            let together = std::sync::Barrier::new(2);
            let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(2, |task| {
                    together.wait();
                    assert_ne!(task * 7, last, "as the test wants it");
                });
            }));
            assert!(panicked.is_err());
            let done = counts(100);
            pool.for_each(100, |task| {
                done[task].fetch_add(1, SeqCst);
            });
            assert!(done.iter().all(|done| done.load(SeqCst) == 1));
        }
    }
}
