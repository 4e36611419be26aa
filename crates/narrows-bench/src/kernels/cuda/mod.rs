//! The kernels of a CUDA device, by its own clock.

mod calls;
mod roof;

use std::fmt;
use std::ops::ControlFlow;

use narrows_bytes::Bytes;
use narrows_cpu::Cpu;
use narrows_kernels::Kernels;
use narrows_shard::Encoding;
use narrows_staging::Budget;
use narrows_staging::device::{
    Carving, DEVICE_ALIGNMENT, Device, DeviceArena, DeviceSlice, Event, Priority, Stream,
};

use super::{Backend, Case, Kind, Measured, Roof, Settings};
use crate::io::Step;
use crate::random::SplitMix;
use crate::{Error, Result};

/// A device with all kernels loaded.
pub struct Loaded {
    device: Device,
    kernels: Kernels,
}

impl Loaded {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// There is no driver, no such device, or no kernel for it.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let kernels = Kernels::load(&device)?;
        Ok(Self { device, kernels })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Loaded").field(&self.device).finish()
    }
}

/// Calls between two events: as many as come to the runtime, and no more than a queue is good for.
const MOST_CALLS: usize = 20_000;
/// Numbers that operands are filled with, again and again.
const NOISE: usize = 1 << 20;

/// A device, and memory that operands rotate through.
pub(super) struct OnDevice<'a> {
    on: &'a Loaded,
    stream: Stream,
    start: Event,
    end: Event,
    budget: Budget,
    pool: DeviceSlice,
    /// What encodes numbers on the host.
    cpu: Cpu,
}

impl<'a> OnDevice<'a> {
    /// Takes the memory, and measures the roof.
    pub(super) fn open(
        on: &'a Loaded,
        settings: &Settings,
        go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
    ) -> Result<(Self, Roof)> {
        let Loaded { device, .. } = on;
        let budget = Budget::new(settings.memory);
        let size = settings.spread.get() as usize / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT;
        let this = Self {
            stream: Stream::new(device, Priority::Normal)?,
            start: Event::timed(device)?,
            end: Event::timed(device)?,
            pool: arena(device, &budget, size)?.carve(size)?,
            cpu: Cpu::new(1).map_err(|error| Error::Settings(error.to_string()))?,
            on,
            budget,
        };
        let mut notes = Vec::new();
        let cache = device.cache_bytes()?;
        if settings.spread.get() < 4 * cache.get() {
            notes.push(format!(
                "{} of memory for weights are not much more than the {cache} of the device's second-level cache: \
                 some is found there again",
                settings.spread
            ));
        }
        let roof = this.roof(settings, notes, go_on)?;
        Ok((this, roof))
    }

    fn name(&self) -> String {
        format!("cuda:{}", self.on.device.ordinal())
    }

    /// Seconds of a call, in each loop. What is called first is not timed: code is loaded then, and clocks rise.
    fn time(&self, settings: &Settings, call: &dyn Fn(usize) -> Result<()>) -> Result<Vec<f64>> {
        let runtime = settings.runtime.as_secs_f64();
        let calls = |seconds: f64| ((runtime / seconds.max(1e-7)).ceil() as usize).clamp(1, MOST_CALLS);
        let mut turn = 0;
        let mut series = |calls: usize| {
            turn += calls;
            self.series(calls, turn - calls, call)
        };
        series(1)?;
        let mut count = calls(series(1)?);
        // One by itself takes longer than one of many.
        if count > 1 {
            count = calls(series(count.min(16))?);
            count = calls(series(count)?);
        }
        (0..settings.loops).map(|_| series(count)).collect()
    }

    /// Seconds of a call, by the device's clock, from the first of `calls` to the last.
    fn series(&self, calls: usize, first: usize, call: &dyn Fn(usize) -> Result<()>) -> Result<f64> {
        self.start.record(&self.stream)?;
        (first..first + calls).try_for_each(call)?;
        self.end.record(&self.stream)?;
        self.end.synchronize()?;
        Ok(self.start.until(&self.end)?.as_secs_f64() / calls as f64)
    }

    /// A range of its own.
    fn range(&self, len: usize) -> Result<DeviceSlice> {
        Ok(arena(&self.on.device, &self.budget, len)?.carve(len)?)
    }

    /// A range with these bytes.
    fn upload(&self, bytes: &[u8]) -> Result<DeviceSlice> {
        let to = self.range(bytes.len())?;
        self.stream.upload(bytes, &to)?;
        Ok(to)
    }

    /// So many numbers in -1..1.
    fn numbers(&self, encoding: Encoding, len: usize) -> Result<DeviceSlice> {
        let bytes = encoding.row_bytes(len).ok_or_else(|| Error::Settings(format!("{len} numbers")))?;
        let to = self.range(bytes)?;
        self.fill(encoding, &to)?;
        Ok(to)
    }

    /// Fills a range with numbers in -1..1, as they are stored: zeros would cost less power than weights do.
    fn fill(&self, encoding: Encoding, to: &DeviceSlice) -> Result<()> {
        // In whole groups of blocks, which lie the same way in rows of any length that is a multiple of theirs.
        let len = to.len().next_multiple_of(512).min(NOISE) * if encoding.block().is_some() { 2 } else { 1 };
        let values = noise(len);
        let mut bytes = vec![0; encoding.row_bytes(len).unwrap_or(0)];
        let encoded = self.cpu.encode(&values, encoding, &mut bytes);
        encoded.map_err(|error| Error::Settings(error.to_string()))?;
        let mut filled = bytes.len().min(to.len());
        self.stream.upload(&bytes[..filled], &to.slice(0..filled)?)?;
        while filled < to.len() {
            let more = filled.min(to.len() - filled);
            self.stream.copy(&to.slice(0..more)?, &to.slice(filled..filled + more)?)?;
            filled += more;
        }
        Ok(())
    }

    /// Sets of operands of these lengths, as many as there is room for, full of numbers; one in memory of its own
    /// where there is no room.
    fn sets(&self, encoding: Encoding, lens: &[usize], most: usize) -> Result<Vec<Vec<DeviceSlice>>> {
        let total = lens.iter().map(|len| len.next_multiple_of(DEVICE_ALIGNMENT)).sum::<usize>().max(1);
        let own = if total > self.pool.len() { Some(self.range(total)?) } else { None };
        let pool = own.as_ref().unwrap_or(&self.pool);
        self.fill(encoding, pool)?;
        let set = |index: usize| {
            let mut at = index * total;
            let mut next = |len: &usize| {
                let slice = pool.slice(at..at + len)?;
                at += len.next_multiple_of(DEVICE_ALIGNMENT);
                Ok(slice)
            };
            lens.iter().map(&mut next).collect()
        };
        (0..(pool.len() / total).clamp(1, most)).map(set).collect()
    }
}

impl Backend for OnDevice<'_> {
    fn name(&self) -> String {
        self.name()
    }

    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn measure(&mut self, case: &Case, settings: &Settings) -> Result<Measured> {
        let seconds = self.time(settings, &*self.call(case)?)?;
        Ok(Measured { more_bytes: 0.0, cold: true, seconds })
    }
}

fn arena(device: &Device, budget: &Budget, len: usize) -> Result<DeviceArena> {
    let size = Bytes(len.next_multiple_of(DEVICE_ALIGNMENT) as u64);
    Ok(DeviceArena::new(device, budget, "what kernels are measured with", size, Carving::Together)?)
}

/// Numbers in -1..1 that look random and are the same in every run.
fn noise(len: usize) -> Vec<f32> {
    let mut random = SplitMix(0);
    (0..len).map(|_| random.next_f32()).collect()
}
