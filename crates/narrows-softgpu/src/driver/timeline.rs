//! Simulated time. Every operation has its place in the order in which the host enqueued it, so the
//! times do not depend on the order in which the operations were run.

use std::collections::VecDeque;

/// What an operation occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    HostToDevice = 0,
    DeviceToHost = 1,
    Compute = 2,
}

/// Busy stretches of an engine, sorted and disjoint.
#[derive(Default)]
struct Busy(Vec<(f64, f64)>);

impl Busy {
    /// The earliest start from `ready` on at which `seconds` fit, which are then taken.
    fn take(&mut self, ready: f64, seconds: f64) -> f64 {
        let mut index = self.0.partition_point(|(_, end)| *end <= ready);
        let mut start = ready;
        while let Some((from, to)) = self.0.get(index) {
            if start + seconds <= *from {
                break;
            }
            start = start.max(*to);
            index += 1;
        }
        if seconds > 0.0 {
            match index.checked_sub(1).and_then(|before| self.0.get_mut(before)) {
                Some(before) if before.1 == start => before.1 = start + seconds,
                _ => self.0.insert(index, (start, start + seconds)),
            }
        }
        start
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    fn overlap(&self, other: &Busy) -> f64 {
        let (mut i, mut j, mut sum) = (0, 0, 0.0);
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            sum += (a.1.min(b.1) - a.0.max(b.0)).max(0.0);
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        sum
    }
}

struct Node {
    after: [u64; 3],
    engine: Option<Engine>,
    seconds: Option<f64>,
}

/// No operation: everything waits for it and it ends at zero.
pub(crate) const START: u64 = 0;

/// The simulated clock of device and host.
pub(crate) struct Timeline {
    /// When each operation ends, by its number.
    ends: Vec<f64>,
    waiting: VecDeque<Node>,
    engines: [Busy; 3],
    /// The number under which the host last waited.
    host: u64,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { ends: vec![0.0], waiting: VecDeque::new(), engines: Default::default(), host: START }
    }

    /// Adds an operation after another one of its stream and one that it waits for; the host's last
    /// wait is before it too. `seconds` may become known later.
    pub(crate) fn add(
        &mut self,
        before: u64,
        wait: u64,
        engine: Option<Engine>,
        seconds: Option<f64>,
    ) -> u64 {
        let number = (self.ends.len() + self.waiting.len()) as u64;
        self.waiting.push_back(Node { after: [before, wait, self.host], engine, seconds });
        self.settle();
        number
    }

    /// The host waits for an operation.
    pub(crate) fn host_waits(&mut self, number: u64) {
        self.host = self.add(number, START, None, Some(0.0));
    }

    /// How long an operation took.
    pub(crate) fn took(&mut self, number: u64, seconds: f64) {
        let settled = self.ends.len() as u64;
        if let Some(node) = number.checked_sub(settled).and_then(|at| self.waiting.get_mut(at as usize)) {
            node.seconds = Some(seconds);
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(Node { after, engine, seconds: Some(seconds) }) = self.waiting.front() {
            let ready = after.iter().map(|number| self.ends[*number as usize]).fold(0.0, f64::max);
            let end = match engine {
                Some(engine) => self.engines[*engine as usize].take(ready, *seconds) + seconds,
                None => ready + seconds,
            };
            self.ends.push(end);
            self.waiting.pop_front();
        }
    }

    /// When an operation ended; `None` while the duration of one enqueued before it is unknown.
    pub(crate) fn end(&self, number: u64) -> Option<f64> {
        self.ends.get(number as usize).copied()
    }

    pub(crate) fn now(&self) -> f64 {
        self.ends.iter().copied().fold(0.0, f64::max)
    }

    pub(crate) fn busy(&self, engine: Engine) -> f64 {
        self.engines[engine as usize].total()
    }

    pub(crate) fn overlap(&self, a: Engine, b: Engine) -> f64 {
        self.engines[a as usize].overlap(&self.engines[b as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_overlap_and_streams_do_not() {
        let mut time = Timeline::new();
        let copy = time.add(START, START, Some(Engine::HostToDevice), Some(2.0));
        let kernel = time.add(START, copy, Some(Engine::Compute), None);
        let next = time.add(copy, START, Some(Engine::HostToDevice), Some(2.0));
        let last = time.add(kernel, next, Some(Engine::Compute), Some(1.0));
        assert_eq!(time.end(last), None);
        time.took(kernel, 3.0);
        assert_eq!([copy, kernel, next, last].map(|n| time.end(n).unwrap()), [2.0, 5.0, 4.0, 6.0]);
        assert_eq!(time.overlap(Engine::HostToDevice, Engine::Compute), 2.0);
        time.host_waits(last);
        let after = time.add(START, START, Some(Engine::DeviceToHost), Some(1.0));
        assert_eq!(time.end(after), Some(7.0));
    }

    #[test]
    fn a_copy_that_waits_does_not_block_its_engine() {
        let mut time = Timeline::new();
        let kernel = time.add(START, START, Some(Engine::Compute), Some(10.0));
        let late = time.add(kernel, START, Some(Engine::HostToDevice), Some(1.0));
        let early = time.add(START, START, Some(Engine::HostToDevice), Some(1.0));
        assert_eq!((time.end(late), time.end(early)), (Some(11.0), Some(1.0)));
    }
}
