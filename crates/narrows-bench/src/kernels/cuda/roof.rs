//! What a device does at most.

use std::ops::ControlFlow;
use std::time::Duration;

use narrows_bytes::Bytes;
use narrows_kernels::Kernels;
use narrows_shard::Encoding;
use narrows_staging::device::DEVICE_ALIGNMENT;

use super::super::{Roof, Settings};
use super::{Loaded, OnDevice};
use crate::io::Step;
use crate::record::{DeviceResult, Entry, PeakResult, Samples};
use crate::{Error, Result};

/// A launch that multiplies and adds takes at least so long, so that starting it does not count.
const LAUNCH_SECONDS: f64 = 2e-3;
const MOST_STEPS: u32 = 1 << 20;

impl OnDevice<'_> {
    /// What memory gives, read by a kernel that does nothing else and copied by the driver, and what the units that
    /// multiply do with numbers in registers.
    pub(super) fn roof(
        &self,
        settings: &Settings,
        notes: Vec<String>,
        go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
    ) -> Result<Roof> {
        let Loaded { device, kernels } = self.on;
        let mut settings = settings.clone();
        // What all else is compared with deserves a look that is long enough, where time is no simulation.
        if !device.is_software() {
            settings.runtime = settings.runtime.max(Duration::from_millis(20));
            settings.loops = settings.loops.max(3);
        }
        let settings = &settings;
        let mut step = Step { what: String::new(), done: 0, of: 2 + Encoding::PLAIN.len() };
        let mut next = |what: String| match go_on(&Step { what, ..step.clone() }) {
            ControlFlow::Continue(()) => {
                step.done += 1;
                Ok(())
            }
            ControlFlow::Break(()) => Err(Error::Interrupted),
        };
        self.fill(Encoding::F32, &self.pool)?;
        let memory = |test: &str, bytes: usize, seconds: &[f64]| DeviceResult {
            test: test.to_owned(),
            backend: self.name(),
            size: Bytes(self.pool.len() as u64),
            bandwidth: Samples::of(seconds.iter().map(|s| bytes as f64 / s.max(1e-9)).collect()),
        };

        next("reads of device memory".to_owned())?;
        let multiprocessors = device.multiprocessors().max(1) as usize;
        // Blocks that stay, as many as fit, and short ones that replace each other: which is best depends on the device.
        let mut best: Option<DeviceResult> = None;
        for pieces in [multiprocessors * 8, self.pool.len() >> 17, self.pool.len() >> 15] {
            let sums = self.range(4 * pieces.max(1))?;
            let seconds =
                self.time(settings, &|_| Ok(kernels.read_sums(&self.stream, &self.pool, &sums)?))?;
            let read = memory("read", self.pool.len(), &seconds);
            let speed = |result: &DeviceResult| result.bandwidth.bytes_per_second;
            if best.as_ref().is_none_or(|best| speed(best) < speed(&read)) {
                best = Some(read);
            }
        }
        let mut entries: Vec<_> = best.into_iter().map(Entry::Device).collect();

        next("copies within the device".to_owned())?;
        let half = self.pool.len() / 2 / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
        let (from, to) = (self.pool.slice(0..half)?, self.pool.slice(half..2 * half)?);
        let seconds = self.time(settings, &|_| Ok(self.stream.copy(&from, &to)?))?;
        entries.push(Entry::Device(memory("copy", 2 * half, &seconds)));

        let (major, minor) = device.compute_capability();
        let threads = multiprocessors * Kernels::MULTIPLY_ADD_THREADS;
        let out = self.range(4 * threads)?;
        for encoding in Encoding::PLAIN {
            next(format!("multiply-adds of {encoding}"))?;
            let units = kernels.has_matrix_units(encoding);
            // Without units of their own they are multiplied as float32.
            if encoding != Encoding::F32 && !units {
                continue;
            }
            let launch =
                |steps| Ok(kernels.multiply_adds(&self.stream, encoding, (0.5, 0.25), steps, &out)?);
            let long = LAUNCH_SECONDS.min(settings.runtime.as_secs_f64());
            let mut steps = 1;
            // The first launch loads code, which takes long.
            self.series(1, 0, &|_| launch(steps).map(|_| ()))?;
            while steps < MOST_STEPS && self.series(1, 0, &|_| launch(steps).map(|_| ()))? < long {
                steps *= 4;
            }
            let done = launch(steps)?;
            let seconds = self.time(settings, &|_| launch(steps).map(|_| ()))?;
            let rates = Samples::of(seconds.iter().map(|seconds| done as f64 / seconds.max(1e-9)).collect());
            entries.push(Entry::Flops(PeakResult {
                backend: self.name(),
                encoding: encoding.to_string(),
                threads,
                isa: format!("sm_{major}{minor} {}", if units { "mma.sync" } else { "fma" }),
                flops_per_second: rates.bytes_per_second,
                samples: rates.samples,
            }));
        }
        Ok(Roof::of(entries, notes))
    }
}
