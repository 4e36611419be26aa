//! The report of a run, as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fault;
use super::state::State;
use super::timeline::Engine;

/// Bytes and number of one kind of work.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: u64, seconds: f64) {
        self.count += 1;
        self.bytes += bytes;
        self.seconds += seconds;
    }
}

/// What has been done so far.
#[derive(Default)]
pub(crate) struct Statistics {
    pub(crate) h2d: Tally,
    pub(crate) d2h: Tally,
    pub(crate) d2d: Tally,
    pub(crate) memset: Tally,
    pub(crate) kernels: BTreeMap<String, Tally>,
}

fn copies(tally: Tally) -> Value {
    json!({ "bytes": tally.bytes, "copies": tally.count, "busy_seconds": tally.seconds })
}

/// Writes the report where the configuration says, if it does.
pub(crate) fn write(state: &mut State) {
    let Some(path) = state.config.report.clone() else { return };
    let statistics = &state.statistics;
    let total = statistics.kernels.values().fold(Tally::default(), |mut sum, tally| {
        sum.count += tally.count;
        sum.bytes += tally.bytes;
        sum.seconds += tally.seconds;
        sum
    });
    let by_name: serde_json::Map<String, Value> = statistics
        .kernels
        .iter()
        .map(|(name, tally)| {
            let value =
                json!({ "launches": tally.count, "bytes": tally.bytes, "busy_seconds": tally.seconds });
            (name.clone(), value)
        })
        .collect();
    let timeline = &state.timeline;
    let config = &state.config;
    let pending: usize = state.streams.iter().map(|stream| stream.queue.len()).sum();
    let held: usize = state.memory.live().map(|allocation| allocation.bytes).sum();
    let value = json!({
        "driver": "narrows-softgpu",
        "software": true,
        "note": "a software stand-in for tests: its seconds are simulated, no GPU was used",
        "seed": config.seed,
        "config": {
            "vram_bytes": config.vram,
            "link_bytes_per_second": config.link,
            "mem_bytes_per_second": config.mem,
            "arch": format!("{}.{}", config.arch.0, config.arch.1),
            "context_bytes": config.context,
            "devices": config.devices,
            "driver_version": config.driver,
            "fail_launch": config.fail_launch,
            "fail_copy": config.fail_copy,
            "fail_record": config.fail_record,
            "fail_pinned": config.fail_pinned,
            "steal": config.steal.map(|(bytes, after)| json!({ "bytes": bytes, "after": after })),
        },
        "hazards": state.faults,
        "device_capacity_bytes": config.vram,
        "peak_device_bytes": state.devices.iter().map(|device| device.peak).max(),
        "peak_pinned_bytes": state.peak_pinned,
        "device_bytes_at_exit": held,
        "pending_at_exit": pending,
        "h2d": copies(statistics.h2d),
        "d2h": copies(statistics.d2h),
        "d2d": copies(statistics.d2d),
        "memset": copies(statistics.memset),
        "kernels": {
            "launches": total.count,
            "bytes": total.bytes,
            "busy_seconds": total.seconds,
            "by_name": by_name,
        },
        "simulated_seconds": timeline.now(),
        "overlap": {
            "h2d_busy_seconds": timeline.busy(Engine::HostToDevice),
            "d2h_busy_seconds": timeline.busy(Engine::DeviceToHost),
            "compute_busy_seconds": timeline.busy(Engine::Compute),
            "h2d_and_compute_seconds": timeline.overlap(Engine::HostToDevice, Engine::Compute),
            "d2h_and_compute_seconds": timeline.overlap(Engine::DeviceToHost, Engine::Compute),
        },
        "sticky_error": state.sticky.map(|code| code.0),
    });
    let text = format!("{value:#}\n");
    if let Err(error) = std::fs::write(&path, text) {
        fault::say(&format!("cannot write the report {}: {error}", path.display()));
    }
}
