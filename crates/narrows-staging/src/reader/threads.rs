//! Blocking reads in a few threads: for systems without io_uring, and for what io_uring cannot do better.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::blocks::{Device, Done, Op};
use super::files::{Advice, Files};

/// Reads into a buffer from a file at an offset; may be short.
pub(super) type ReadAt = dyn Fn(usize, u64, &mut [u8]) -> io::Result<usize> + Send + Sync;

pub(super) struct Threads {
    /// `None` ends the workers.
    ops: Option<Sender<Op>>,
    events: Receiver<Event>,
    wake: Sender<Event>,
    workers: Vec<JoinHandle<()>>,
    /// The files, if they are read through the page cache, and whether they may stay in it.
    cached: Option<(Arc<Files>, bool)>,
}

enum Event {
    Done(Done),
    Woken,
}

impl Threads {
    pub(super) fn new(
        count: usize,
        read_at: Arc<ReadAt>,
        cached: Option<(Arc<Files>, bool)>,
    ) -> io::Result<Self> {
        let (ops, queue) = unbounded::<Op>();
        let (wake, events) = unbounded();
        let mut threads = Self { ops: Some(ops), events, wake, workers: Vec::new(), cached };
        if let Some((files, _)) = &threads.cached {
            for file in 0..files.files.len() {
                files.advise(file, 0, 0, Advice::Sequential);
            }
        }
        for i in 0..count {
            let (queue, events, read_at) = (queue.clone(), threads.wake.clone(), read_at.clone());
            let work = move || {
                for op in queue {
                    let begun = Some(Instant::now());
                    // SAFETY: Until it is done the device owns this buffer, memory that was initialised when
                    // it was mapped, and the operation is this thread's alone.
                    let buffer = unsafe { std::slice::from_raw_parts_mut(op.buffer, op.len) };
                    let result = read_at(op.file, op.offset, buffer);
                    // If nobody listens any more, nobody misses it.
                    let _ = events.send(Event::Done(Done { token: op.token, begun, result }));
                }
            };
            threads.workers.push(thread::Builder::new().name(format!("read-{i}")).spawn(work)?);
        }
        Ok(threads)
    }
}

// SAFETY: A buffer is written to by the one worker that received its operation, before it sends `Done`. A send
// can only fail when `ops` is gone, which is never while `start` can be called; the operation is then dropped
// with its channel and never written to.
unsafe impl Device for Threads {
    fn start(&mut self, op: Op) {
        let token = op.token;
        let sent = self.ops.as_ref().is_some_and(|ops| ops.send(op).is_ok());
        if !sent {
            let result = Err(io::Error::other("the reader threads are gone"));
            let _ = self.wake.send(Event::Done(Done { token, begun: None, result }));
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> bool {
        let first = match timeout {
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(timeout) => self.events.recv_timeout(timeout),
        };
        let mut woken = false;
        for event in first.into_iter().chain(self.events.try_iter()) {
            match event {
                Event::Done(one) => done.push(one),
                Event::Woken => woken = true,
            }
        }
        woken
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let wake = self.wake.clone();
        Arc::new(move || {
            let _ = wake.send(Event::Woken);
        })
    }

    fn tile_ends(&self, file: usize, offset: u64, len: u64) {
        // A model bigger than memory gains nothing from the page cache, and others lose theirs.
        if let Some((files, false)) = &self.cached {
            files.advise(file, offset, len, Advice::DontNeed);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.ops = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
