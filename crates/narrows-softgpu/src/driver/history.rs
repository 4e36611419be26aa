//! Who touched which bytes last, and whether two operations that touch the same bytes are ordered.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How far in each stream something is known to be complete, by stream number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Vec<u32>);

impl Clock {
    pub(crate) fn get(&self, stream: usize) -> u32 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, stream: usize, index: u32) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = index;
    }

    pub(crate) fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

/// An operation as messages name it.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) stream: usize,
    pub(crate) index: u32,
    pub(crate) what: String,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (stream {}, operation {})", self.what, self.stream, self.index)
    }
}

#[derive(Clone)]
struct Segment {
    end: usize,
    writer: Option<Arc<Actor>>,
    readers: Vec<Arc<Actor>>,
}

/// Two operations that touch the same bytes with nothing between them.
pub(crate) struct Conflict {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) other: Arc<Actor>,
    pub(crate) other_writes: bool,
}

/// The accesses of every range of memory, host and device.
#[derive(Default)]
pub(crate) struct History {
    segments: BTreeMap<usize, Segment>,
}

impl History {
    /// The first access to a range that `clock` does not cover and that conflicts with a read or write.
    pub(crate) fn conflict(&self, start: usize, end: usize, write: bool, clock: &Clock) -> Option<Conflict> {
        let from = self.segments.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (at, segment) in self.segments.range(from..end) {
            if segment.end <= start {
                continue;
            }
            let late = |actor: &&Arc<Actor>| clock.get(actor.stream) < actor.index;
            let writer = segment.writer.iter().find(late).map(|actor| (actor, true));
            let reader = if write { segment.readers.iter().find(late).map(|a| (a, false)) } else { None };
            if let Some((other, other_writes)) = writer.or(reader) {
                return Some(Conflict {
                    start: start.max(*at),
                    end: end.min(segment.end),
                    other: other.clone(),
                    other_writes,
                });
            }
        }
        None
    }

    /// Records an access. What `host` covers is ordered before all that is still to come, and forgotten.
    pub(crate) fn record(&mut self, start: usize, end: usize, write: bool, actor: &Arc<Actor>, host: &Clock) {
        if start >= end {
            return;
        }
        self.split(start);
        self.split(end);
        let keys: Vec<usize> = self.segments.range(start..end).map(|(at, _)| *at).collect();
        let old: Vec<(usize, Segment)> =
            keys.into_iter().filter_map(|key| Some((key, self.segments.remove(&key)?))).collect();
        if write {
            self.segments.insert(start, Segment { end, writer: Some(actor.clone()), readers: Vec::new() });
            return;
        }
        let fresh = |end| Segment { end, writer: None, readers: vec![actor.clone()] };
        let mut new: Vec<(usize, Segment)> = Vec::with_capacity(old.len() + 1);
        let mut at = start;
        for (from, mut segment) in old {
            if at < from {
                append(&mut new, at, fresh(from));
            }
            let settled = |other: &Arc<Actor>| host.get(other.stream) >= other.index;
            segment.writer = segment.writer.filter(|writer| !settled(writer));
            // An older read of the same stream is ordered before this one.
            segment.readers.retain(|reader| reader.stream != actor.stream && !settled(reader));
            segment.readers.push(actor.clone());
            at = segment.end;
            append(&mut new, from, segment);
        }
        if at < end {
            append(&mut new, at, fresh(end));
        }
        self.segments.extend(new);
    }

    fn split(&mut self, at: usize) {
        let Some((start, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if segment.end <= at || *start == at {
            return;
        }
        let tail = segment.clone();
        segment.end = at;
        self.segments.insert(at, tail);
    }

    /// Forgets a range, which then belongs to nobody.
    pub(crate) fn forget(&mut self, start: usize, end: usize) {
        self.split(start);
        self.split(end);
        let keys: Vec<usize> = self.segments.range(start..end).map(|(at, _)| *at).collect();
        for key in keys {
            self.segments.remove(&key);
        }
    }
}

/// Appends a segment, as part of the last one if the same operations touched both.
fn append(segments: &mut Vec<(usize, Segment)>, start: usize, segment: Segment) {
    let same = |a: &Arc<Actor>, b: &Arc<Actor>| Arc::ptr_eq(a, b);
    if let Some((_, last)) = segments.last_mut()
        && last.end == start
        && match (&last.writer, &segment.writer) {
            (None, None) => true,
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        }
        && last.readers.len() == segment.readers.len()
        && last.readers.iter().zip(&segment.readers).all(|(a, b)| same(a, b))
    {
        last.end = segment.end;
        return;
    }
    segments.push((start, segment));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(stream: usize, index: u32) -> Arc<Actor> {
        Arc::new(Actor { stream, index, what: String::from("copy") })
    }

    #[test]
    fn unordered_accesses_conflict_and_ordered_ones_do_not() {
        let mut history = History::default();
        let host = Clock::default();
        history.record(100, 200, true, &actor(1, 5), &host);
        history.record(150, 160, false, &actor(2, 7), &host);
        let mut clock = Clock::default();
        assert!(history.conflict(0, 100, true, &clock).is_none());
        assert!(history.conflict(199, 300, false, &clock).is_some_and(|c| c.other.stream == 1));
        clock.set(1, 5);
        assert!(history.conflict(100, 200, false, &clock).is_none());
        let conflict = history.conflict(100, 200, true, &clock).unwrap();
        assert_eq!((conflict.start, conflict.end, conflict.other_writes), (150, 160, false));
        clock.set(2, 7);
        assert!(history.conflict(100, 200, true, &clock).is_none());
        history.record(120, 155, true, &actor(3, 1), &host);
        assert!(history.conflict(150, 151, false, &clock).is_some());
        assert!(history.conflict(155, 156, false, &clock).is_none());
        history.forget(0, 1000);
        assert!(history.conflict(0, 1000, true, &Clock::default()).is_none());
    }
    #[test]
    fn what_the_host_has_waited_for_is_forgotten() {
        let mut history = History::default();
        let mut host = Clock::default();
        for i in 0..100 {
            history.record(i * 16, i * 16 + 16, true, &actor(1, i as u32 + 1), &host);
        }
        assert_eq!(history.segments.len(), 100);
        host.set(1, 100);
        history.record(0, 2000, false, &actor(2, 1), &host);
        assert_eq!(history.segments.len(), 1);
        assert!(history.conflict(0, 2000, true, &host).is_some_and(|c| c.other.stream == 2 && c.end == 2000));
    }
}
