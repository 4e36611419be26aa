//! Everything the driver knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::block::Block;
use super::code::{Code, Outcome};
use super::config::Config;
use super::history::{Actor, Clock, History};
use super::images::{Kernel, Library};
use super::machine::{Cell, Machine, SharedRange};
use super::memory::{DeviceMemory, GRANULARITY};
use super::queue::{Event, Stream};
use super::random::Random;
use super::report::Statistics;
use super::timeline::Timeline;
use super::{block, check};

/// Most shared memory a block can ask for, on any architecture.
pub(crate) const SHARED_BYTES: usize = 228 << 10;

/// What a device holds.
#[derive(Clone, Default)]
pub(crate) struct Device {
    pub(crate) used: u64,
    pub(crate) peak: u64,
    pub(crate) stolen: u64,
    pub(crate) retained: u32,
    /// The most streams there were at a time, whose memory the driver keeps.
    pub(crate) streams: usize,
}

/// A range of page-locked host memory.
#[derive(Clone, Copy)]
pub(crate) struct Pinned {
    pub(crate) bytes: usize,
    pub(crate) owned: bool,
    /// The device whose memory holds its page tables.
    pub(crate) device: usize,
}

/// A function as a module hands it out.
pub(crate) struct Function {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) dynamic_shared: u32,
    /// Whether the attribute was set: only then is there more than the default.
    pub(crate) opted_in: bool,
}

/// The kernel that runs.
pub(crate) struct Running {
    pub(crate) actor: Arc<Actor>,
    pub(crate) library: Arc<Library>,
    /// Page-locked host memory it touched: start, end, whether written.
    pub(crate) host: Vec<(usize, usize, bool)>,
}

/// The whole driver.
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) devices: Vec<Device>,
    pub(crate) memory: DeviceMemory,
    pub(crate) pinned: BTreeMap<usize, Pinned>,
    pub(crate) pinned_bytes: u64,
    pub(crate) peak_pinned: u64,
    pub(crate) allocations: u64,
    pub(crate) machine: Box<Machine>,
    pub(crate) block: Box<Block>,
    pub(crate) running: Option<Running>,
    pub(crate) history: History,
    pub(crate) timeline: Timeline,
    pub(crate) host: Clock,
    pub(crate) streams: Vec<Stream>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) libraries: Option<Vec<Arc<Library>>>,
    pub(crate) modules: HashMap<u64, ()>,
    pub(crate) functions: HashMap<u64, Function>,
    pub(crate) handles: u64,
    pub(crate) sticky: Option<Code>,
    pub(crate) random: Random,
    /// Of 256: how likely an operation runs as soon as it is enqueued.
    pub(crate) eagerness: u64,
    pub(crate) copies: u64,
    pub(crate) records: u64,
    pub(crate) launches: u64,
    pub(crate) host_functions: u64,
    pub(crate) statistics: Statistics,
    pub(crate) faults: Vec<String>,
}

// SAFETY: the raw pointers lead to mappings and boxes that belong to the state alone, and the state is
// only used under its lock.
unsafe impl Send for State {}

impl State {
    /// `None` where the machine has no address space for it.
    pub(crate) fn new(config: Config) -> Option<Box<Self>> {
        let memory = DeviceMemory::new(config.vram.saturating_mul(u64::from(config.devices)))?;
        let shared = super::memory::reserve(SHARED_BYTES)?;
        let cells = super::memory::reserve(SHARED_BYTES / 4 * size_of::<Cell>())? as *mut Cell;
        let nothing = SharedRange { base: 0, bytes: 0, cells: std::ptr::null_mut() };
        let mut machine = Box::new(Machine {
            device_base: 0,
            device_bytes: 0,
            written: std::ptr::null_mut(),
            read_map: std::ptr::null_mut(),
            write_map: std::ptr::null_mut(),
            chunk_seen: std::ptr::null_mut(),
            chunks: std::ptr::null_mut(),
            chunk_count: 0,
            stack_base: 0,
            stack_bytes: 0,
            dynamic_shared: SharedRange { base: shared, bytes: 0, cells },
            static_shared: nothing,
            interval: 1,
            block_interval: 1,
            warp_interval: 0,
            thread: 0,
            pc: 0,
            thread_idx: [0; 4],
            block_idx: [0; 4],
            block_dim: [0; 4],
            grid_dim: [0; 4],
            check: check::access,
            race: check::race,
            misaligned: check::misaligned,
            barrier: block::barrier,
            collective: block::collective,
            trap: check::trap,
        });
        memory.describe_to(&mut machine);
        let block = Block::new(&mut *machine, config.seed)?;
        let mut random = Random::new(config.seed);
        // Seed 0 is the laziest device there is, seed 1 the most eager; the others lie between.
        let eagerness = match config.seed {
            0 => 0,
            1 => 256,
            _ => [0, 40, 128, 220][random.below(4)],
        };
        Some(Box::new(Self {
            devices: vec![Device::default(); config.devices as usize],
            memory,
            pinned: BTreeMap::new(),
            pinned_bytes: 0,
            peak_pinned: 0,
            allocations: 0,
            machine,
            block,
            running: None,
            history: History::default(),
            timeline: Timeline::new(),
            host: Clock::default(),
            streams: vec![Stream::new(0)],
            events: HashMap::new(),
            libraries: None,
            modules: HashMap::new(),
            functions: HashMap::new(),
            handles: 0,
            sticky: None,
            random,
            eagerness,
            copies: 0,
            records: 0,
            launches: 0,
            host_functions: 0,
            statistics: Statistics::default(),
            faults: Vec::new(),
            config,
        }))
    }

    /// A handle that is no pointer and is never given out again.
    pub(crate) fn handle(&mut self) -> u64 {
        self.handles += 1;
        0x5057_0000_0000 + self.handles * 16
    }

    /// Bytes that can still be allocated on a device.
    pub(crate) fn free_bytes(&self, device: usize) -> u64 {
        let device = &self.devices[device];
        self.config.vram.saturating_sub(device.used + device.stolen)
    }

    pub(crate) fn charge(&mut self, device: usize, bytes: u64) -> Outcome {
        if bytes > self.free_bytes(device) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let device = &mut self.devices[device];
        device.used += bytes;
        device.peak = device.peak.max(device.used);
        Ok(())
    }

    pub(crate) fn refund(&mut self, device: usize, bytes: u64) {
        let device = &mut self.devices[device];
        device.used = device.used.saturating_sub(bytes);
    }

    /// Device memory that page-locked memory takes for its page tables: eight bytes for each page of 4 KiB, as an H200
    /// does.
    pub(crate) fn page_tables(bytes: usize) -> u64 {
        8 * bytes.div_ceil(4096) as u64
    }

    /// Device memory as the capacity counts it.
    pub(crate) fn rounded(bytes: usize) -> u64 {
        (bytes as u64).next_multiple_of(GRANULARITY)
    }

    /// The page-locked range that holds all of the given bytes.
    pub(crate) fn pinned_range(&self, address: usize, bytes: usize) -> Option<usize> {
        let (start, pinned) = self.pinned.range(..=address).next_back()?;
        (address + bytes <= start + pinned.bytes).then_some(*start)
    }

    /// A range of device or host memory, as messages name it.
    pub(crate) fn name_range(&self, start: usize, end: usize) -> String {
        if self.memory.contains(start) {
            return self.memory.name(start, end);
        }
        match self.pinned.range(..=start).next_back() {
            Some((base, pinned)) if start < base + pinned.bytes => format!(
                "bytes {}..{} of pinned host memory {base:#x} ({} bytes)",
                start - base,
                end - base,
                pinned.bytes
            ),
            _ => format!("host memory {start:#x}..{end:#x}"),
        }
    }

    /// Which thread of which kernel runs.
    pub(crate) fn running_place(&self) -> String {
        let Some(running) = &self.running else { return String::from("outside a kernel") };
        let [bx, by, bz, _] = self.machine.block_idx;
        let [tx, ty, tz, _] = self.machine.thread_idx;
        format!("{}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})", running.actor)
    }
}
