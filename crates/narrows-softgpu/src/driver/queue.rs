//! Streams as queues. What is enqueued runs inside later calls, in an order that the seed chooses
//! among those that streams, events and waits allow.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

use super::code::{Code, Outcome};
use super::history::{Actor, Clock};
use super::images::Kernel;
use super::state::State;
use super::timeline::{Engine, START};

/// Flag of a stream: it does not wait for the legacy stream, nor that for it.
pub(crate) const NON_BLOCKING: u32 = 1;

/// Where the bytes of a copy to the device are.
pub(crate) enum Source {
    /// Page-locked: read when the copy runs. The hash is of its bytes when it was enqueued, unless
    /// something enqueued before may still write them.
    Pinned { address: usize, hash: Option<u64> },
    /// Read already.
    Staged(Vec<u8>),
}

/// Parameters of a kernel, aligned as its struct may ask.
#[repr(C, align(16))]
#[derive(Clone)]
pub(crate) struct Params(pub(crate) [u8; 4096]);

/// A kernel with its arguments.
pub(crate) struct Launch {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) params: Box<Params>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    /// Most shared memory that a block of it can have, static memory included.
    pub(crate) most_shared: u32,
}

/// What an operation does.
pub(crate) enum Work {
    ToDevice {
        source: Source,
        to: usize,
        bytes: usize,
    },
    ToHost {
        from: usize,
        to: usize,
        bytes: usize,
    },
    OnDevice {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Set {
        to: usize,
        pattern: [u8; 4],
        bytes: usize,
    },
    Launch(Box<Launch>),
    Marker,
    Wait {
        stream: usize,
        index: u32,
    },
    HostFunction {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    /// Fails as the configuration asks.
    Fail(Code),
}

impl Work {
    /// Whether it is a copy or a memset of no bytes, whose addresses mean nothing.
    fn moves_nothing(&self) -> bool {
        match self {
            Self::ToDevice { bytes, .. }
            | Self::ToHost { bytes, .. }
            | Self::OnDevice { bytes, .. }
            | Self::Set { bytes, .. } => *bytes == 0,
            _ => false,
        }
    }
}

/// Something in a stream's queue.
pub(crate) struct Operation {
    pub(crate) work: Work,
    pub(crate) actor: Arc<Actor>,
    pub(crate) clock: Clock,
    /// Its number in the timeline.
    pub(crate) number: u64,
}

/// A stream.
pub(crate) struct Stream {
    pub(crate) handle: u64,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) destroyed: bool,
    pub(crate) queue: VecDeque<Operation>,
    pub(crate) issued: u32,
    pub(crate) done: u32,
    pub(crate) clock: Clock,
    pub(crate) last: u64,
    /// A host function of this stream is being called.
    pub(crate) calling: bool,
}

impl Stream {
    pub(crate) fn new(handle: u64) -> Self {
        Self {
            handle,
            flags: 0,
            priority: 0,
            destroyed: false,
            queue: VecDeque::new(),
            issued: 0,
            done: 0,
            clock: Clock::default(),
            last: START,
            calling: false,
        }
    }
}

/// What an event captured when it was last recorded.
#[derive(Clone)]
pub(crate) struct Captured {
    pub(crate) stream: usize,
    pub(crate) index: u32,
    pub(crate) number: u64,
    pub(crate) clock: Clock,
}

/// An event.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) flags: u32,
    pub(crate) captured: Option<Captured>,
}

/// What a call waits for.
pub(crate) enum Goal {
    Nothing,
    /// Everything enqueued in one stream so far.
    Stream(usize),
    At(Captured),
    /// Everything, because the host asks for it.
    All,
    /// Everything, although the host learns nothing by it.
    Quiet,
}

/// How far a step got.
pub(crate) enum Advance {
    Stepped,
    Reached,
    /// A host function has to return first.
    HostFunction,
}

impl State {
    /// The number of a live stream.
    pub(crate) fn stream(&self, handle: *mut c_void) -> Outcome<usize> {
        match handle as u64 {
            // The legacy and the per-thread default stream are one here.
            0..=2 => Ok(0),
            handle => self
                .streams
                .iter()
                .position(|stream| stream.handle == handle && !stream.destroyed)
                .ok_or(Code::INVALID_HANDLE),
        }
    }

    /// Appends an operation to a stream and perhaps runs some.
    pub(crate) fn enqueue(&mut self, stream: usize, work: Work, what: String) -> Captured {
        self.order_with_default_stream(stream);
        let work = if work.moves_nothing() { Work::Marker } else { work };
        let captured = self.push(stream, work, what);
        while self.random.next() % 256 < self.eagerness {
            if !self.step_any() {
                break;
            }
        }
        captured
    }

    fn order_with_default_stream(&mut self, stream: usize) {
        let blocking = |s: &Stream| s.flags & NON_BLOCKING == 0 && s.issued > s.done;
        let before: Vec<usize> = if stream == 0 {
            (1..self.streams.len()).filter(|other| blocking(&self.streams[*other])).collect()
        } else if self.streams[stream].flags & NON_BLOCKING == 0 && blocking(&self.streams[0]) {
            vec![0]
        } else {
            Vec::new()
        };
        for other in before {
            let target = self.capture(other);
            self.push_wait(stream, &target);
        }
    }

    /// The last operation of a stream.
    pub(crate) fn capture(&self, stream: usize) -> Captured {
        let from = &self.streams[stream];
        Captured { stream, index: from.issued, number: from.last, clock: from.clock.clone() }
    }

    pub(crate) fn push_wait(&mut self, stream: usize, target: &Captured) {
        self.streams[stream].clock.join(&target.clock);
        let work = Work::Wait { stream: target.stream, index: target.index };
        let number = self.timeline.add(self.streams[stream].last, target.number, None, Some(0.0));
        self.push_at(stream, work, String::from("wait"), number);
    }

    fn push(&mut self, stream: usize, work: Work, what: String) -> Captured {
        let (engine, seconds) = self.cost(&work);
        let number = self.timeline.add(self.streams[stream].last, START, engine, seconds);
        self.push_at(stream, work, what, number)
    }

    fn push_at(&mut self, stream: usize, work: Work, what: String, number: u64) -> Captured {
        let to = &mut self.streams[stream];
        to.issued += 1;
        to.last = number;
        to.clock.join(&self.host);
        to.clock.set(stream, to.issued);
        let actor = Arc::new(Actor { stream, index: to.issued, what });
        to.queue.push_back(Operation { work, actor, clock: to.clock.clone(), number });
        Captured { stream, index: to.issued, number, clock: to.clock.clone() }
    }

    fn cost(&self, work: &Work) -> (Option<Engine>, Option<f64>) {
        let link = |bytes: usize| Some(bytes as f64 / self.config.link);
        match work {
            Work::ToDevice { bytes, .. } => (Some(Engine::HostToDevice), link(*bytes)),
            Work::ToHost { bytes, .. } => (Some(Engine::DeviceToHost), link(*bytes)),
            Work::OnDevice { bytes, .. } => {
                (Some(Engine::Compute), Some(2.0 * *bytes as f64 / self.config.mem))
            }
            Work::Set { bytes, .. } => (Some(Engine::Compute), Some(*bytes as f64 / self.config.mem)),
            Work::Launch(_) => (Some(Engine::Compute), None),
            Work::Marker | Work::Wait { .. } | Work::HostFunction { .. } | Work::Fail(_) => (None, Some(0.0)),
        }
    }

    pub(crate) fn is_done(&self, target: &Captured) -> bool {
        self.streams[target.stream].done >= target.index
    }

    /// Whether the operation at the head of a stream can run now.
    fn is_runnable(&self, stream: usize) -> bool {
        let from = &self.streams[stream];
        match from.queue.front() {
            None => false,
            Some(operation) => match &operation.work {
                Work::Wait { stream, index } => self.streams[*stream].done >= *index,
                Work::HostFunction { .. } => false,
                _ => true,
            },
        }
    }

    /// Runs the head of some stream; false where none can run.
    pub(crate) fn step_any(&mut self) -> bool {
        let runnable: Vec<usize> = (0..self.streams.len()).filter(|s| self.is_runnable(*s)).collect();
        if runnable.is_empty() {
            return false;
        }
        let pick = runnable[self.random.below(runnable.len())];
        self.run_head(pick);
        true
    }

    /// Runs something that has to happen before a stream's head can be done.
    fn step_towards(&mut self, stream: usize) -> Advance {
        let mut stream = stream;
        loop {
            let Some(head) = self.streams[stream].queue.front() else { return Advance::Reached };
            match &head.work {
                Work::Wait { stream: other, index } if self.streams[*other].done < *index => stream = *other,
                Work::HostFunction { .. } => return Advance::HostFunction,
                _ => {
                    self.run_head(stream);
                    return Advance::Stepped;
                }
            }
        }
    }

    fn run_head(&mut self, stream: usize) {
        if let Some(operation) = self.streams[stream].queue.pop_front() {
            let index = operation.actor.index;
            if self.sticky.is_none() {
                self.execute(operation);
            } else {
                self.timeline.took(operation.number, 0.0);
            }
            self.streams[stream].done = index;
        }
    }

    /// One step towards a goal, or beside it if the seed likes.
    pub(crate) fn advance(&mut self, goal: &Goal) -> Advance {
        if self.sticky.is_some() {
            return Advance::Reached;
        }
        let pending = match goal {
            Goal::Nothing => None,
            Goal::Stream(stream) => (!self.streams[*stream].queue.is_empty()).then_some(*stream),
            Goal::At(target) => (!self.is_done(target)).then_some(target.stream),
            Goal::All | Goal::Quiet => self.streams.iter().position(|s| !s.queue.is_empty()),
        };
        let Some(stream) = pending else { return Advance::Reached };
        if self.random.next() % 256 < self.eagerness && self.step_any() {
            return Advance::Stepped;
        }
        match self.step_towards(stream) {
            Advance::HostFunction if self.step_any() => Advance::Stepped,
            other => other,
        }
    }

    /// The host now knows that a goal is reached.
    pub(crate) fn observe(&mut self, goal: &Goal) {
        match goal {
            Goal::Nothing | Goal::Quiet => {}
            Goal::Stream(stream) => self.observe_at(&self.capture(*stream)),
            Goal::At(target) => self.observe_at(&target.clone()),
            Goal::All => {
                for stream in 0..self.streams.len() {
                    self.observe_at(&self.capture(stream));
                }
            }
        }
    }

    pub(crate) fn observe_at(&mut self, target: &Captured) {
        self.host.join(&target.clock);
        if target.number != START {
            self.timeline.host_waits(target.number);
        }
    }

    /// Whether something is complete, as a query sees it: the device gets a chance to go on.
    pub(crate) fn poll(&mut self, target: &Captured) -> Outcome {
        if !self.is_done(target) && self.random.next().is_multiple_of(2) {
            let _ = self.step_towards(target.stream);
        }
        if let Some(code) = self.sticky {
            return Err(code);
        }
        if !self.is_done(target) {
            return Err(Code::NOT_READY);
        }
        self.observe_at(target);
        Ok(())
    }

    /// Ranges of host memory that operations in queues will use: start, end, whether written.
    pub(crate) fn pending_host(&self) -> impl Iterator<Item = (usize, usize, bool, &Arc<Actor>)> {
        self.streams.iter().flat_map(|stream| &stream.queue).filter_map(|operation| match &operation.work {
            Work::ToDevice { source: Source::Pinned { address, .. }, bytes, .. } => {
                Some((*address, address + bytes, false, &operation.actor))
            }
            Work::ToHost { to, bytes, .. } => Some((*to, to + bytes, true, &operation.actor)),
            _ => None,
        })
    }

    /// The next host function that is due, taken out for its caller to call.
    pub(crate) fn due_host_function(&mut self) -> Option<(usize, unsafe extern "C" fn(*mut c_void), usize)> {
        for stream in 0..self.streams.len() {
            if self.streams[stream].calling {
                continue;
            }
            let Some(head) = self.streams[stream].queue.front() else { continue };
            if let Work::HostFunction { function, data } = &head.work {
                let due = (stream, *function, *data);
                // What the stream did so far is visible to whom the function tells.
                let clock = head.clock.clone();
                self.host.join(&clock);
                self.streams[stream].calling = true;
                return Some(due);
            }
        }
        None
    }

    pub(crate) fn host_function_returned(&mut self, stream: usize) {
        let from = &mut self.streams[stream];
        from.calling = false;
        if let Some(operation) = from.queue.pop_front() {
            from.done = operation.actor.index;
        }
        self.host_functions -= 1;
    }
}
