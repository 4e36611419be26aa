//! io_uring: the whole queue in one system call, and no thread.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};

use super::blocks::{Device, Done, Op};
use super::files::Files;
use crate::Arena;

/// The token of the event that wakes a waiting thread. Blocks have small ones.
const WAKE: u64 = u64::MAX;

/// What the kernel takes as one buffer.
const MAX_BUFFER: usize = 1 << 30;

pub(super) struct Uring {
    ring: IoUring,
    files: Arc<Files>,
    /// The addresses of the registered buffers, by index.
    buffers: Vec<Range<usize>>,
    /// Registered buffers are pages, not addresses: were an arena unmapped, another mapping at its address
    /// would not see what is read.
    _arenas: Vec<Arena>,
    wake: Arc<OwnedFd>,
    /// What is in the ring and was not taken by the kernel yet, in order.
    waiting: VecDeque<u64>,
    /// What never will be.
    refused: Vec<u64>,
    /// The kernel takes no more: the ring is only looked at for what it took before.
    broken: Option<i32>,
}

impl Uring {
    /// A ring for `depth` operations, if this kernel has all that is needed.
    pub(super) fn set_up(
        files: &Arc<Files>,
        depth: usize,
        arenas: &[Arena],
        notes: &mut Vec<String>,
    ) -> io::Result<Self> {
        // One more for the waker. The completion queue is twice as long, so it never overflows.
        let entries = u32::try_from(depth + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let ring = IoUring::new(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Read::CODE, opcode::ReadFixed::CODE, opcode::PollAdd::CODE];
        if !ring.params().is_feature_ext_arg() || !codes.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel is too old"));
        }
        let mut uring = Self {
            ring,
            files: files.clone(),
            buffers: Vec::new(),
            _arenas: arenas.to_vec(),
            wake: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            waiting: VecDeque::new(),
            refused: Vec::new(),
            broken: None,
        };
        if let Err(error) = uring.register(arenas) {
            notes.push(format!("io_uring: buffers are not registered: {error} (see `ulimit -l`)"));
        }
        uring.listen();
        Ok(uring)
    }

    #[cfg(test)]
    pub(super) fn taken_away(mut self) -> Self {
        self.broken = Some(libc::EPERM);
        self
    }

    /// Lets the kernel look up and pin the pages once instead of at every read. (Registered files would save
    /// a reference count per megabyte; that is nothing.)
    fn register(&mut self, arenas: &[Arena]) -> io::Result<()> {
        let mut buffers = Vec::new();
        for arena in arenas {
            let start = arena.as_ptr().expose_provenance();
            for at in (0..arena.len()).step_by(MAX_BUFFER) {
                buffers.push(start + at..start + arena.len().min(at + MAX_BUFFER));
            }
        }
        if buffers.is_empty() {
            return Ok(());
        }
        let iovec = |range: &Range<usize>| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(range.start),
            iov_len: range.len(),
        };
        let iovecs: Vec<_> = buffers.iter().map(iovec).collect();
        // SAFETY: The arenas are held for as long as the ring, and the kernel writes to them only where an
        // operation says so.
        unsafe { self.ring.submitter().register_buffers(&iovecs) }?;
        self.buffers = buffers;
        Ok(())
    }

    /// Waits for the next wake.
    fn listen(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.wake.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(&poll.user_data(WAKE));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let token = entry.get_user_data();
        // SAFETY: The buffer of a read is the device's until its completion was seen (see `Device`), its file
        // is open as long as the ring, and so is the event.
        let pushed = self.broken.is_none() && unsafe { self.ring.submission().push(entry) }.is_ok();
        if pushed {
            self.waiting.push_back(token);
        } else {
            // The ring has room for `depth` operations and the waker, so it is not merely full.
            self.refused.push(token);
        }
    }

    /// Passes on what waits, and waits for `want` completions.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        let result = match timeout {
            Some(timeout) if want > 0 => {
                let time = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&time))
            }
            _ => self.ring.submitter().submit_and_wait(want),
        };
        let left = self.ring.submission().len();
        self.waiting.drain(..self.waiting.len().saturating_sub(left));
        match result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR) => {}
            // The kernel is short of something, or wants completions to be reaped first.
            Err(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => thread::sleep(Duration::from_millis(1)),
            // The kernel has taken io_uring away (seccomp). What it has not taken yet, it never will, since
            // nobody enters again; what it has taken completes without that.
            Err(code) => {
                self.broken = Some(code);
                self.refused.extend(self.waiting.drain(..));
            }
        }
    }

    /// Takes what is complete.
    fn reap(&mut self, done: &mut Vec<Done>) -> bool {
        let mut woken = false;
        for completion in self.ring.completion() {
            let token = completion.user_data();
            if token == WAKE {
                woken = true;
                continue;
            }
            let result = match completion.result() {
                // The thread that submitted it is gone. The next one submits it again.
                code if code == -libc::ECANCELED => Err(io::ErrorKind::Interrupted.into()),
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                n => Ok(n as usize),
            };
            done.push(Done { token: token as usize, begun: None, result });
        }
        if woken {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut count);
            self.listen();
        }
        let code = self.broken.unwrap_or(libc::EIO);
        let refused = self.refused.drain(..).filter(|&token| token != WAKE);
        done.extend(refused.map(|token| Done {
            token: token as usize,
            begun: None,
            result: Err(io::Error::from_raw_os_error(code)),
        }));
        woken
    }
}

// SAFETY: A completion says that the kernel is done with the buffer, and there is one for each operation that
// the kernel took. What it did not take is only reported as failed when nothing can hand it over any more.
unsafe impl Device for Uring {
    fn start(&mut self, op: Op) {
        let fd = Fd(self.files.files[op.file].as_raw_fd());
        let (start, len) = (op.buffer.addr(), op.len as u32);
        let registered = |range: &Range<usize>| range.start <= start && start + op.len <= range.end;
        let entry = match self.buffers.iter().position(registered) {
            Some(index) => opcode::ReadFixed::new(fd, op.buffer, len, index as u16).offset(op.offset).build(),
            None => opcode::Read::new(fd, op.buffer, len).offset(op.offset).build(),
        };
        self.push(&entry.user_data(op.token as u64));
    }

    fn flush(&mut self) {
        if self.broken.is_none() && !self.waiting.is_empty() {
            self.enter(0, None);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> bool {
        let woken = self.reap(done);
        if woken || !done.is_empty() {
            return woken;
        }
        if self.broken.is_some() {
            thread::sleep(Duration::from_millis(1));
        } else {
            self.enter(1, timeout);
        }
        self.reap(done)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let wake = self.wake.clone();
        Arc::new(move || {
            // Any number will do, whichever end of it comes first.
            let _ = rustix::io::write(&wake, &[1; 8]);
        })
    }
}
