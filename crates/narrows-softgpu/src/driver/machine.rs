//! What the driver and the emulated processor share; the twin of `simt/machine.h`.

use std::ffi::{c_char, c_void};

/// What is known of four bytes of shared memory.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Cell {
    pub(crate) write_interval: u32,
    pub(crate) write_warp_interval: u32,
    pub(crate) write_thread: u16,
    pub(crate) write_flags: u8,
    pub(crate) write_bytes: u8,
    pub(crate) read_interval: u32,
    pub(crate) read_warp_interval: u32,
    pub(crate) read_thread: u16,
    pub(crate) read_flags: u8,
    pub(crate) unused: u8,
}

/// Flag of a cell: a cp.async has not landed.
pub(crate) const WRITE_IN_FLIGHT: u8 = 4;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SharedRange {
    pub(crate) base: usize,
    pub(crate) bytes: u64,
    pub(crate) cells: *mut Cell,
}

pub(crate) const READ: u32 = 0;
pub(crate) const ATOMIC: u32 = 2;
pub(crate) const ASYNC_WRITE: u32 = 3;

pub(crate) const SYNCWARP: u32 = 0;
pub(crate) const MMA: u32 = 3;
pub(crate) const LDMATRIX: u32 = 4;

/// Performs a collective for all lanes of the mask.
pub(crate) type Perform = unsafe extern "C" fn(lanes: *const *mut c_void, mask: u32);

/// The state that instrumented code consults at every access.
#[repr(C)]
pub(crate) struct Machine {
    pub(crate) device_base: usize,
    pub(crate) device_bytes: u64,
    pub(crate) written: *mut u8,
    pub(crate) read_map: *mut u8,
    pub(crate) write_map: *mut u8,
    pub(crate) chunk_seen: *mut u8,
    pub(crate) chunks: *mut u32,
    pub(crate) chunk_count: u64,
    pub(crate) stack_base: usize,
    pub(crate) stack_bytes: u64,
    pub(crate) dynamic_shared: SharedRange,
    pub(crate) static_shared: SharedRange,
    pub(crate) interval: u32,
    pub(crate) block_interval: u32,
    pub(crate) warp_interval: u32,
    pub(crate) thread: u32,
    pub(crate) pc: usize,
    pub(crate) thread_idx: [u32; 4],
    pub(crate) block_idx: [u32; 4],
    pub(crate) block_dim: [u32; 4],
    pub(crate) grid_dim: [u32; 4],
    pub(crate) check: extern "C" fn(usize, u64, u32),
    pub(crate) race: extern "C" fn(usize, u32, u32, *const Cell),
    pub(crate) misaligned: extern "C" fn(usize, u32, u32),
    pub(crate) barrier: extern "C" fn(*const c_char, u32, u32, u32) -> u32,
    pub(crate) collective: extern "C" fn(u32, u32, *mut c_void, Perform),
    pub(crate) trap: extern "C" fn(*const c_char, *const c_char, u32),
}

/// One kernel of a library; an entry without a name ends the table.
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) name: *const c_char,
    pub(crate) call: Option<unsafe extern "C" fn(*const c_void)>,
    pub(crate) param_bytes: u32,
    pub(crate) max_threads: u32,
}
