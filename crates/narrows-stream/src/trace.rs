//! What happened when, for a viewer.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use narrows_staging::{Budget, Reservation};
use serde_json::{Value, json};

use crate::clock::lock;
use crate::{Bytes, Error, TileId};

/// The rows of the trace: computing, below it the link to a device, and below that the disk with a lane for each
/// read that overlaps another.
const COMPUTE_ROW: usize = 1;
const LINK_ROW: usize = 2;
const FIRST_DISK_ROW: usize = 3;

/// A tile that went through a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) stage: Stage,
    pub(crate) tile: TileId,
    pub(crate) pass: u64,
    /// The read that the tile came from: the same in the event of the read and in those of its uses.
    pub(crate) read: u64,
    pub(crate) bytes: Bytes,
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

/// What a tile goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Disk,
    Link,
    Compute,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Link => "h2d",
            Self::Compute => "compute",
        }
    }
}

/// The memory of a trace: the last events, as many as there is room for. See [`Options`](crate::Options).
#[derive(Debug, Clone)]
pub struct Trace(Arc<Mutex<Events>>);

#[derive(Debug)]
struct Events {
    events: VecDeque<Event>,
    room: usize,
    _reservation: Reservation,
}

impl Trace {
    /// Room for so many events, taken from the budget. Each tile is an event when it is read and each time it is
    /// used.
    ///
    /// # Errors
    /// [`Error::Staging`] if the budget does not have it.
    pub fn new(budget: &Budget, events: usize) -> Result<Self, Error> {
        let reservation = budget.reserve("trace", Self::memory(events))?;
        let events =
            Events { events: VecDeque::with_capacity(events), room: events, _reservation: reservation };
        Ok(Self(Arc::new(Mutex::new(events))))
    }

    /// The memory that it takes to record so many events, and to write them.
    #[must_use]
    pub const fn memory(events: usize) -> Bytes {
        // The events, a copy of them to write from, and in `write` the reads and the changes in flight, which are
        // no bigger.
        Bytes((events as u64).saturating_mul(4 * size_of::<Event>() as u64))
    }

    pub(crate) fn record(&self, event: Event) {
        let mut trace = lock(&self.0);
        if trace.events.len() >= trace.room {
            trace.events.pop_front();
        }
        trace.events.push_back(event);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        lock(&self.0).events.iter().copied().collect()
    }
}

/// Writes events as Chrome's trace format has them, one a line.
pub(crate) fn write(
    mut events: Vec<Event>,
    describe: &dyn Fn(TileId) -> String,
    out: impl io::Write,
) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    events.sort_by_key(|event| event.start);
    let zero = events.first().map(|event| event.start);
    let micros = |at: Instant| at.saturating_duration_since(zero.unwrap_or(at)).as_nanos() as f64 / 1e3;

    write!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{}", row(COMPUTE_ROW, "compute"))?;
    let mut put = |event: Value| write!(out, ",\n{event}");
    let mut lanes: Vec<Instant> = Vec::new();
    let mut reads = HashMap::new();
    let mut linked = false;
    let mut in_flight = Vec::new();
    for event in &events {
        let (start, end) = (micros(event.start), micros(event.end));
        let tid = match event.stage {
            Stage::Compute => COMPUTE_ROW,
            Stage::Link => {
                if !std::mem::replace(&mut linked, true) {
                    put(row(LINK_ROW, "h2d"))?;
                }
                reads.insert(event.read, (LINK_ROW, start));
                LINK_ROW
            }
            Stage::Disk => {
                let free = lanes.iter().position(|&end| end <= event.start);
                let lane = free.unwrap_or(lanes.len());
                match lanes.get_mut(lane) {
                    Some(until) => *until = event.end,
                    None => {
                        lanes.push(event.end);
                        put(row(FIRST_DISK_ROW + lane, &format!("disk {}", lane + 1)))?;
                    }
                }
                in_flight.extend([
                    (event.start, event.bytes.get() as i64),
                    (event.end, -(event.bytes.get() as i64)),
                ]);
                reads.insert(event.read, (FIRST_DISK_ROW + lane, start));
                FIRST_DISK_ROW + lane
            }
        };
        put(json!({
            "ph": "X", "pid": 1, "tid": tid, "ts": start, "dur": end - start,
            "name": describe(event.tile), "cat": event.stage.name(),
            "args": {"tile": event.tile.0, "pass": event.pass, "bytes": event.bytes.get()},
        }))?;
        // The first use takes the arrow: a resident tile is used again long after its read.
        if event.stage == Stage::Compute
            && let Some((row, from)) = reads.remove(&event.read)
        {
            // An arrow hangs on the slice that is open at its time, so it starts where the read does.
            put(arrow("s", row, from, event.read))?;
            put(arrow("f", COMPUTE_ROW, start, event.read))?;
        }
    }

    in_flight.sort_by_key(|&(at, change)| (at, change));
    let mut sum = 0;
    for (at, change) in in_flight {
        sum += change;
        put(json!({
            "ph": "C", "pid": 1, "ts": micros(at), "name": "in flight", "args": {"bytes": sum},
        }))?;
    }

    out.write_all(b"\n]}\n")?;
    out.flush()
}

fn row(tid: usize, name: &str) -> Value {
    json!({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}})
}

fn arrow(end: &str, tid: usize, ts: f64, read: u64) -> Value {
    json!({"ph": end, "pid": 1, "tid": tid, "ts": ts, "id": read, "name": "tile", "cat": "tile", "bp": "e"})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn event(stage: Stage, read: u64, start: u64, end: u64, zero: Instant) -> Event {
        let at = |us| zero + Duration::from_micros(us);
        let tile = TileId(read as u32);
        Event { stage, tile, pass: 0, read, bytes: Bytes(10), start: at(start), end: at(end) }
    }

    fn written(events: &[Event]) -> Vec<Value> {
        let mut out = Vec::new();
        write(events.to_vec(), &|tile| format!("tile \"{}\"", tile.0), &mut out).unwrap();
        let json: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["displayTimeUnit"], "ns");
        json["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn rows_lanes_arrows_and_counters() {
        let zero = Instant::now();
        let events = written(&[
            event(Stage::Disk, 0, 0, 10, zero),
            event(Stage::Disk, 1, 5, 15, zero),
            event(Stage::Disk, 2, 10, 20, zero),
            event(Stage::Compute, 0, 11, 14, zero),
            event(Stage::Compute, 0, 21, 24, zero),
        ]);
        let of = |ph: &str| events.iter().filter(|e| e["ph"] == ph).cloned().collect::<Vec<_>>();
        let names: Vec<_> = of("M").iter().map(|e| e["args"]["name"].clone()).collect();
        assert_eq!(names, ["compute", "disk 1", "disk 2"]);
        let rows: Vec<_> = of("X").iter().map(|e| e["tid"].as_u64().unwrap()).collect();
        assert_eq!(rows, [3, 4, 3, 1, 1]);
        assert_eq!((&of("X")[1]["ts"], &of("X")[1]["dur"]), (&json!(5.0), &json!(10.0)));
        assert_eq!((of("s").len(), of("f").len()), (1, 1));
        assert_eq!((&of("s")[0]["tid"], &of("f")[0]["ts"]), (&json!(3), &json!(11.0)));
        let sums: Vec<_> = of("C").iter().map(|e| e["args"]["bytes"].as_i64().unwrap()).collect();
        assert_eq!(sums, [10, 20, 10, 20, 10, 0]);
    }

    #[test]
    fn nothing_is_a_trace_too() {
        assert_eq!(written(&[]).len(), 1);
    }

    #[test]
    fn the_last_events_stay() {
        let zero = Instant::now();
        let budget = Budget::new(Trace::memory(3));
        let trace = Trace::new(&budget, 3).unwrap();
        for i in 0..10 {
            trace.record(event(Stage::Disk, i, i, i + 1, zero));
        }
        assert_eq!(trace.events().iter().map(|e| e.read).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
