//! One block of threads, each a fiber, run by one OS thread.
//!
//! A fiber is bound to a thread only once that thread waits: threads that run to their end without
//! waiting follow each other on the same fiber.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::machine::{LDMATRIX, MMA, Machine, Perform, SYNCWARP};
use super::random::Random;
use super::{fault, fiber};

/// Most threads in a block.
pub(crate) const MAX_THREADS: usize = 1024;
const STACK_BYTES: usize = 256 << 10;
const PAGE: usize = 4096;

/// The block that runs. Only the holder of the driver's lock runs blocks.
static RUNNING: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());

/// One mapping for all stacks, so that an address is known to be a thread's own by two comparisons.
struct Stacks {
    base: usize,
}

impl Stacks {
    const BYTES: usize = MAX_THREADS * STACK_BYTES;

    fn new() -> Option<Self> {
        // SAFETY: a fresh anonymous mapping; nothing else knows of it.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base = base as usize;
        Some(Self { base })
    }
}

struct Group {
    operation: u32,
    mask: u32,
    arrived: u32,
}

struct Warp {
    /// Lanes that can run: not started yet, or released.
    ready: u32,
    exists: u32,
    returned: u32,
    interval: u32,
    groups: Vec<Group>,
    lanes: [*mut c_void; 32],
}

/// What is asked of a launch.
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
}

/// The executor of blocks. It is made once and kept: its fibers are pooled.
pub(crate) struct Block {
    machine: *mut Machine,
    stacks: Stacks,
    /// Where each fiber's stack stands while it does not run.
    fibers: Vec<usize>,
    /// The same of the OS thread's own stack, on which no thread of the block runs.
    outside: usize,
    idle: Vec<u16>,
    fiber_of: Vec<u16>,
    indices: Vec<[u32; 3]>,
    warps: Vec<Warp>,
    ready_warps: u32,
    live: usize,
    threads: usize,
    current: usize,
    at_barrier: usize,
    site: (*const c_char, u32),
    reduced: [u32; 2],
    result: u32,
    random: Random,
    order: u64,
    kernel: unsafe extern "C" fn(*const c_void),
    params: *const c_void,
}

unsafe extern "C" fn no_kernel(_: *const c_void) {}

impl Block {
    /// `None` where the stacks cannot be mapped.
    pub(crate) fn new(machine: *mut Machine, seed: u64) -> Option<Box<Self>> {
        let stacks = Stacks::new()?;
        // SAFETY: the caller's machine outlives the executor and no kernel runs yet.
        unsafe {
            (*machine).stack_base = stacks.base;
            (*machine).stack_bytes = Stacks::BYTES as u64;
        }
        Some(Box::new(Self {
            machine,
            stacks,
            // Never grows beyond this, so that its elements stay where they are.
            fibers: Vec::with_capacity(MAX_THREADS),
            outside: 0,
            idle: Vec::new(),
            fiber_of: vec![0; MAX_THREADS],
            indices: Vec::new(),
            warps: Vec::new(),
            ready_warps: 0,
            live: 0,
            threads: 0,
            current: 0,
            at_barrier: 0,
            site: (std::ptr::null(), 0),
            reduced: [0; 2],
            result: 0,
            random: Random::new(seed ^ 0xb10c),
            order: 0,
            kernel: no_kernel,
            params: std::ptr::null(),
        }))
    }

    /// Runs every block of a grid.
    ///
    /// # Safety
    /// `this` is a live executor, `kernel` an entry of an attached library, `params` points to its
    /// struct of parameters, and the caller holds the driver's lock.
    // The executor is a raw pointer here because fibers reach it through RUNNING meanwhile.
    pub(crate) unsafe fn run_grid(
        this: *mut Self,
        kernel: unsafe extern "C" fn(*const c_void),
        params: *const c_void,
        shape: &Shape,
    ) {
        let [x, y, z] = shape.block;
        let [gx, gy, gz] = shape.grid.map(u64::from);
        let blocks = gx * gy * gz;
        RUNNING.store(this, Ordering::Relaxed);
        // SAFETY: the executor is live, and so is the machine it was made with.
        let (block, machine) = unsafe { (&mut *this, &mut *(*this).machine) };
        block.kernel = kernel;
        block.params = params;
        block.threads = (x * y * z) as usize;
        block.indices.clear();
        for k in 0..z {
            for j in 0..y {
                block.indices.extend((0..x).map(|i| [i, j, k]));
            }
        }
        machine.block_dim = [x, y, z, 0];
        machine.grid_dim = [shape.grid[0], shape.grid[1], shape.grid[2], 0];
        let backwards = block.random.next() & 1 == 1;
        for count in 0..blocks {
            let index = if backwards { blocks - 1 - count } else { count };
            // SAFETY: as above; no fiber runs between blocks.
            unsafe {
                (*(*this).machine).block_idx =
                    [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32, 0];
                Self::run_block(this);
            }
        }
        RUNNING.store(std::ptr::null_mut(), Ordering::Relaxed);
    }

    /// # Safety
    /// As `run_grid`, within it.
    unsafe fn run_block(this: *mut Self) {
        // SAFETY: no fiber runs before the switch; when it comes back every thread has returned, and all
        // fibers wait for the next block.
        unsafe {
            (*this).begin_block();
            if let Some(next) = (*this).next_fiber() {
                fiber::switch(&raw mut (*this).outside, next);
            }
        }
    }

    fn begin_block(&mut self) {
        let warps = self.threads.div_ceil(32);
        while self.warps.len() < warps {
            self.warps.push(Warp {
                ready: 0,
                exists: 0,
                returned: 0,
                interval: 1,
                groups: Vec::new(),
                lanes: [std::ptr::null_mut(); 32],
            });
        }
        for (index, warp) in self.warps.iter_mut().take(warps).enumerate() {
            let lanes = (self.threads - index * 32).min(32);
            warp.exists = u32::MAX >> (32 - lanes);
            warp.ready = warp.exists;
            warp.returned = 0;
            warp.interval = warp.interval.wrapping_add(1);
            warp.groups.clear();
        }
        self.ready_warps = u32::MAX >> (32 - warps);
        self.live = self.threads;
        self.at_barrier = 0;
        self.fiber_of[..self.threads].fill(u16::MAX);
        self.order = self.random.next();
        // SAFETY: the machine is ours while the lock is held.
        let machine = unsafe { &mut *self.machine };
        machine.interval = machine.interval.wrapping_add(1);
        machine.block_interval = machine.interval;
    }

    /// Some thread that can run; its warp's lanes come together, since they wait for each other.
    #[inline]
    fn pick(&mut self) -> Option<usize> {
        if self.ready_warps == 0 {
            return None;
        }
        self.order = self.order.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let dice = (self.order >> 32) as u32;
        let mut warp = self.current >> 5;
        let stay = self.ready_warps >> warp & 1 == 1 && dice & 0x3f00 != 0;
        if !stay {
            let turn = dice >> 27;
            warp = (self.ready_warps.rotate_right(turn).trailing_zeros() + turn) as usize & 31;
        }
        let ready = self.warps[warp].ready;
        let turn = dice & 31;
        let lane = (ready.rotate_right(turn).trailing_zeros() + turn) & 31;
        let left = ready & !(1 << lane);
        self.warps[warp].ready = left;
        if left == 0 {
            self.ready_warps &= !(1 << warp);
        }
        Some(warp << 5 | lane as usize)
    }

    #[inline]
    fn enter(&mut self, thread: usize) {
        self.current = thread;
        let [x, y, z] = self.indices[thread];
        // SAFETY: the machine is ours while the lock is held.
        unsafe {
            let machine = &mut *self.machine;
            machine.thread = thread as u32;
            machine.warp_interval = self.warps[thread >> 5].interval;
            machine.thread_idx = [x, y, z, 0];
        }
    }

    fn idle_fiber(&mut self) -> u16 {
        if let Some(fiber) = self.idle.pop() {
            return fiber;
        }
        let index = self.fibers.len();
        let limit = self.stacks.base + index * STACK_BYTES;
        // SAFETY: the lowest page of a stack that nothing uses yet.
        let guarded = unsafe { libc::mprotect(limit as *mut c_void, PAGE, libc::PROT_NONE) };
        if guarded != 0 {
            fault::refuse("the guard page of a fiber's stack cannot be made");
        }
        // Stacks at equal offsets of their pages would share few sets of the cache.
        let colour = index * 5 % 61 * 64;
        // SAFETY: a stack of its own for every fiber, of which there are at most MAX_THREADS.
        self.fibers.push(unsafe { fiber::prepare(limit + STACK_BYTES - colour, fiber_main) });
        index as u16
    }

    /// Chooses the next thread and enters it; the stack on which it goes on, or begins.
    #[inline]
    fn next_fiber(&mut self) -> Option<usize> {
        let thread = self.pick()?;
        self.enter(thread);
        if self.fiber_of[thread] == u16::MAX {
            self.fiber_of[thread] = self.idle_fiber();
        }
        Some(self.fibers[usize::from(self.fiber_of[thread])])
    }

    /// Notes that the running thread returned. Comes back when the fiber shall run another thread.
    ///
    /// # Safety
    /// Called by a fiber of the executor `this`, between two threads.
    unsafe fn returned(this: *mut Self) {
        // SAFETY: fibers take turns, and the reference ends before the switch.
        let (save, to) = unsafe {
            let block = &mut *this;
            block.live -= 1;
            block.warps[block.current >> 5].returned |= 1 << (block.current & 31);
            let fiber = block.fiber_of[block.current];
            let to = if block.live == 0 {
                block.outside
            } else {
                let Some(thread) = block.pick() else { block.report_divergence() };
                block.enter(thread);
                if block.fiber_of[thread] == u16::MAX {
                    block.fiber_of[thread] = fiber;
                    return;
                }
                block.fibers[usize::from(block.fiber_of[thread])]
            };
            block.idle.push(fiber);
            (&raw mut block.fibers[usize::from(fiber)], to)
        };
        // SAFETY: `to` is a fiber that waits, or the outside, which waits for the block's end.
        unsafe { fiber::switch(save, to) };
    }

    #[inline]
    fn make_ready(&mut self, warp: usize, lanes: u32) {
        if lanes != 0 {
            self.warps[warp].ready |= lanes;
            self.ready_warps |= 1 << warp;
        }
    }

    /// Lets other threads run until the running one is released.
    ///
    /// # Safety
    /// Called by a fiber of the executor `this`, with no reference into it alive.
    #[inline]
    unsafe fn wait(this: *mut Self) {
        // SAFETY: fibers take turns, and the reference ends before the switch.
        let (save, to) = unsafe {
            let block = &mut *this;
            let fiber = usize::from(block.fiber_of[block.current]);
            let Some(to) = block.next_fiber() else { block.report_divergence() };
            (&raw mut block.fibers[fiber], to)
        };
        // SAFETY: `to` is the stack of a fiber that waits or has not begun.
        unsafe { fiber::switch(save, to) };
    }

    fn report_divergence(&self) -> ! {
        let mut text = String::new();
        if self.at_barrier > 0 {
            let waiting = self.at_barrier;
            text = format!(
                "{waiting} of {} threads wait at the barrier of {}",
                self.threads,
                place(self.site.0, self.site.1)
            );
            let returned: u32 =
                self.warps.iter().take(self.threads.div_ceil(32)).map(|w| w.returned.count_ones()).sum();
            if returned > 0 {
                text += &format!(", {returned} have returned");
            }
        }
        for (index, warp) in self.warps.iter().take(self.threads.div_ceil(32)).enumerate() {
            for group in &warp.groups {
                let missing = group.mask & warp.exists & !group.arrived;
                if !text.is_empty() {
                    text += "; ";
                }
                text += &format!(
                    "in warp {index} {} of mask {:#010x} never gets lanes {missing:#010x} ({} of them returned)",
                    operation_name(group.operation),
                    group.mask,
                    (missing & warp.returned).count_ones(),
                );
            }
        }
        fault::kernel(&format!("divergence: {text}"))
    }
}

/// What every fiber runs: one thread after another.
extern "C" fn fiber_main() -> ! {
    loop {
        let block = RUNNING.load(Ordering::Relaxed);
        // SAFETY: RUNNING points to the executor for as long as any fiber runs; the kernel is called as
        // `run_grid` was promised.
        unsafe {
            ((*block).kernel)((*block).params);
            Block::returned(block);
        }
    }
}

/// The source line, for messages.
pub(crate) fn place(file: *const c_char, line: u32) -> String {
    if file.is_null() {
        return String::from("an unknown line");
    }
    // SAFETY: a string literal of a kernel's library, which is never unloaded.
    let file = unsafe { CStr::from_ptr(file) }.to_string_lossy();
    let name = file.rsplit('/').next().unwrap_or_default();
    format!("{name}:{line}")
}

fn operation_name(operation: u32) -> &'static str {
    match operation {
        SYNCWARP => "__syncwarp",
        1 => "a shuffle",
        2 => "a vote",
        MMA => "mma.sync",
        LDMATRIX => "ldmatrix",
        _ => "a collective",
    }
}

/// `__syncthreads` and its reductions.
pub(crate) extern "C" fn barrier(file: *const c_char, line: u32, reduce: u32, predicate: u32) -> u32 {
    let block = RUNNING.load(Ordering::Relaxed);
    // SAFETY: called by a kernel, so RUNNING is set; fibers take turns on one OS thread. The
    // reference is not used across the suspension below other than through the same pointer.
    let this = unsafe { &mut *block };
    if this.at_barrier == 0 {
        this.site = (file, line);
        this.reduced = [reduce, 0];
    } else if this.site.1 != line || this.reduced[0] != reduce {
        let (thread, other) = (this.current, place(this.site.0, this.site.1));
        fault::kernel(&format!(
            "divergence: thread {thread} waits at the barrier of {}, others at the barrier of {other}",
            place(file, line)
        ));
    }
    this.at_barrier += 1;
    this.reduced[1] += predicate;
    if this.at_barrier < this.threads {
        // SAFETY: as above; `this` is not used any more.
        return unsafe {
            Block::wait(block);
            (*block).result
        };
    }
    this.at_barrier = 0;
    this.result = this.reduced[1];
    // SAFETY: the machine is ours while the lock is held.
    unsafe { (*this.machine).interval = (*this.machine).interval.wrapping_add(1) };
    let me = this.current;
    for warp in 0..this.threads.div_ceil(32) {
        let others = if warp == me >> 5 { !(1u32 << (me & 31)) } else { u32::MAX };
        let lanes = this.warps[warp].exists & others;
        this.make_ready(warp, lanes);
    }
    this.result
}

/// Shuffles, votes, matrix operations and `__syncwarp`.
pub(crate) extern "C" fn collective(operation: u32, mask: u32, lane: *mut c_void, perform: Perform) {
    let block = RUNNING.load(Ordering::Relaxed);
    // SAFETY: as in `barrier`.
    let this = unsafe { &mut *block };
    let warp = this.current >> 5;
    let bit = 1u32 << (this.current & 31);
    if mask & bit == 0 {
        fault::kernel(&format!(
            "divergence: lane {} calls {} with mask {mask:#010x}, which does not name it",
            this.current & 31,
            operation_name(operation)
        ));
    }
    let state = &mut this.warps[warp];
    state.lanes[this.current & 31] = lane;
    let expected = mask & state.exists;
    let index = match state.groups.iter().position(|g| g.mask == mask && g.operation == operation) {
        Some(index) => index,
        None => {
            state.groups.push(Group { operation, mask, arrived: 0 });
            state.groups.len() - 1
        }
    };
    state.groups[index].arrived |= bit;
    if state.groups[index].arrived != expected {
        // SAFETY: as in `barrier`.
        unsafe { Block::wait(block) };
        return;
    }
    state.groups.swap_remove(index);
    if operation >= MMA && expected != u32::MAX {
        fault::kernel(&format!(
            "divergence: {} in a warp of fewer than 32 threads",
            operation_name(operation)
        ));
    }
    // SAFETY: the lanes of `expected` all handed over records of this operation, on stacks that stay
    // suspended until they are released below.
    unsafe { perform(state.lanes.as_ptr(), expected) };
    if operation == SYNCWARP {
        state.interval = state.interval.wrapping_add(1);
        // SAFETY: the machine is ours while the lock is held.
        unsafe { (*this.machine).warp_interval = state.interval };
    }
    this.make_ready(warp, expected & !bit);
}
