//! What the emulated processor asks about an access that is not plainly right.

use std::ffi::c_char;

use super::block::place;
use super::machine::{ASYNC_WRITE, ATOMIC, Cell, READ, WRITE_IN_FLIGHT};
use super::{fault, state_in_call};

fn verb(access: u32) -> &'static str {
    match access {
        READ => "reads",
        ATOMIC => "updates",
        ASYNC_WRITE => "copies to (cp.async)",
        _ => "writes",
    }
}

/// Decides about an access to memory: returns if it is allowed, and notes what it wrote.
pub(crate) extern "C" fn access(address: usize, bytes: u64, access: u32) {
    let bytes = bytes as usize;
    // SAFETY: a kernel runs, so the lock is held by this thread.
    let Some(state) = (unsafe { state_in_call() }) else { return };
    if state.memory.contains(address) {
        if !state.memory.holds(address, bytes) {
            let inside = state.memory.find(address).map(|(start, allocation)| {
                format!(
                    "which crosses the end of allocation #{} of {} bytes",
                    allocation.number,
                    start + allocation.bytes - start
                )
            });
            let place = inside.unwrap_or_else(|| state.memory.neighbours(address));
            fault::access(&format!("{} {bytes} bytes of device memory {place}", verb(access)));
        }
        if access != READ {
            state.memory.set_written(address, bytes);
        } else if let Some(byte) = state.memory.first_unwritten(address, bytes) {
            let name = state.memory.name(byte, byte + 1);
            fault::access(&format!("reads {name}, which nothing has written"));
        }
        return;
    }
    let shared = [state.machine.dynamic_shared, state.machine.static_shared];
    for range in shared {
        if address >= range.base && address < range.base + range.bytes as usize {
            fault::access(&format!(
                "{} {bytes} bytes across the end of its {} bytes of shared memory",
                verb(access),
                range.bytes
            ));
        }
    }
    let whole = super::state::SHARED_BYTES;
    if address >= shared[0].base && address < shared[0].base + whole {
        fault::access(&format!(
            "{} {bytes} bytes at offset {} of dynamic shared memory, of which the launch gave it {}",
            verb(access),
            address - shared[0].base,
            shared[0].bytes
        ));
    }
    if state.pinned_range(address, bytes).is_some() {
        if let Some(running) = &mut state.running {
            let write = access != READ;
            match running.host.last_mut() {
                Some(last) if last.1 == address && last.2 == write => last.1 = address + bytes,
                _ => running.host.push((address, address + bytes, write)),
            }
        }
        return;
    }
    let constant = state.running.as_ref().is_some_and(|r| r.library.image.contains(&address));
    if constant && access == READ {
        return;
    }
    fault::access(&format!(
        "{} {bytes} bytes at {address:#x}, which is neither device memory, shared memory nor page-locked",
        verb(access)
    ));
}

/// Two threads of a block touch the same shared memory, or one reads what none wrote.
pub(crate) extern "C" fn race(address: usize, bytes: u32, access: u32, cell: *const Cell) {
    // SAFETY: a kernel runs, so the lock is held by this thread.
    let Some(state) = (unsafe { state_in_call() }) else { return };
    let dynamic = state.machine.dynamic_shared;
    let what = if address.wrapping_sub(dynamic.base) < dynamic.bytes as usize {
        format!("offset {} of dynamic shared memory", address - dynamic.base)
    } else {
        String::from("a __shared__ variable")
    };
    // SAFETY: null, or a cell of the processor's table, which only this thread uses.
    let Some(cell) = (unsafe { cell.as_ref() }) else {
        fault::access(&format!(
            "reads {bytes} bytes at {what} that the block has not written (never, or a barrier is missing)"
        ));
    };
    let interval = state.machine.interval;
    if cell.write_flags & WRITE_IN_FLIGHT != 0 {
        fault::access(&format!(
            "{} {bytes} bytes at {what} where a cp.async of thread {} has not been waited for",
            verb(access),
            cell.write_thread
        ));
    }
    let wrote = cell.write_interval == interval && u32::from(cell.write_thread) != state.machine.thread;
    let (other, did) = if wrote { (cell.write_thread, "wrote") } else { (cell.read_thread, "read") };
    fault::access(&format!(
        "race: {} {bytes} bytes at {what} that thread {other} {did} with no barrier between",
        verb(access)
    ));
}

/// A vector access at an address that is no multiple of its size.
pub(crate) extern "C" fn misaligned(address: usize, bytes: u32, access: u32) {
    // SAFETY: a kernel runs, so the lock is held by this thread.
    let Some(state) = (unsafe { state_in_call() }) else { return };
    let name = state.name_range(address, address + bytes as usize);
    fault::access(&format!("misaligned: {} {bytes} bytes at once at {name}", verb(access)));
}

/// `__trap`, a failed assertion, or an instruction used wrongly.
pub(crate) extern "C" fn trap(what: *const c_char, file: *const c_char, line: u32) {
    // SAFETY: a string literal of a kernel's library.
    let what = unsafe { std::ffi::CStr::from_ptr(what) }.to_string_lossy();
    if line == 0 {
        fault::access(&what);
    }
    fault::kernel(&format!("{what} at {}", place(file, line)));
}
