//! Entry points: memory and copies.

use std::ffi::{c_uint, c_void};

use xxhash_rust::xxh3::xxh3_64;

use super::api_context::{current_device, put};
use super::code::{Code, Outcome};
use super::fault;
use super::queue::{Captured, Goal, Source, Work};
use super::state::{Pinned, State};
use super::{call, call_until};

/// What the target of a copy to the host holds until the copy runs: as floats, NaN.
const POISON: u8 = 0x7f;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call(|state| {
        let device = current_device(state)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe {
            put(free, state.free_bytes(device) as usize)?;
            put(total, state.config.vram as usize)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> u32 {
    call(|state| {
        let device = current_device(state)?;
        if bytes == 0 || to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        state.charge(device, State::rounded(bytes))?;
        let Some(address) = state.memory.allocate(bytes, device) else {
            state.refund(device, State::rounded(bytes));
            return Err(Code::OUT_OF_MEMORY);
        };
        state.allocations += 1;
        if let Some((stolen, after)) = state.config.steal
            && after == state.allocations
        {
            fault::say(&format!("somebody else takes {stolen} bytes of device memory"));
            state.devices[device].stolen += stolen;
        }
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, address as u64) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    let address = address as usize;
    call_until(
        |state| {
            current_device(state)?;
            match address {
                0 => Ok(Goal::Nothing),
                _ if state.memory.allocation_at(address).is_none() => Err(Code::INVALID_VALUE),
                // Which memory a kernel uses is known once it has run.
                _ => Ok(Goal::Quiet),
            }
        },
        |state| {
            let Some(bytes) = state.memory.allocation_at(address).map(|a| a.bytes) else { return Ok(()) };
            state.check_unused(address, bytes, "frees");
            state.history.forget(address, address + bytes);
            if let Some(allocation) = state.memory.free(address) {
                state.refund(allocation.device, State::rounded(bytes));
            }
            Ok(())
        },
    )
}

fn pin(state: &mut State, device: usize, address: usize, bytes: usize, owned: bool) -> Outcome {
    state.charge(device, State::page_tables(bytes))?;
    state.pinned.insert(address, Pinned { bytes, owned, device });
    state.pinned_bytes += bytes as u64;
    state.peak_pinned = state.peak_pinned.max(state.pinned_bytes);
    Ok(())
}

fn unpin(state: &mut State, address: usize) {
    if let Some(pinned) = state.pinned.remove(&address) {
        state.pinned_bytes -= pinned.bytes as u64;
        state.refund(pinned.device, State::page_tables(pinned.bytes));
        state.history.forget(address, address + pinned.bytes);
    }
}

fn may_pin(state: &State, bytes: usize, otherwise: Code) -> Outcome {
    match state.config.fail_pinned {
        Some(limit) if bytes as u64 > limit => Err(otherwise),
        _ => Ok(()),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, flags: c_uint) -> u32 {
    call(|state| {
        let device = current_device(state)?;
        if bytes == 0 || to.is_null() || flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        may_pin(state, bytes, Code::OUT_OF_MEMORY)?;
        let address = super::memory::reserve(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        pin(state, device, address, bytes, true)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, address as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuMemHostAlloc(to, bytes, 0) }
}

/// Releases page-locked memory once nothing uses it.
fn release(address: usize, owned: bool, missing: Code, what: &'static str) -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            match state.pinned.get(&address) {
                Some(pinned) if pinned.owned == owned => Ok(Goal::Quiet),
                _ => Err(missing),
            }
        },
        |state| {
            let Some(bytes) = state.pinned.get(&address).map(|pinned| pinned.bytes) else { return Ok(()) };
            state.check_unused(address, bytes, what);
            unpin(state, address);
            if owned {
                // SAFETY: mapped in `cuMemHostAlloc`, with these very bounds.
                unsafe { libc::munmap(address as *mut c_void, bytes) };
            }
            Ok(())
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> u32 {
    release(address as usize, true, Code::INVALID_VALUE, "frees")
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint) -> u32 {
    call(|state| {
        let device = current_device(state)?;
        if bytes == 0 || address.is_null() || flags > 15 {
            return Err(Code::INVALID_VALUE);
        }
        let start = address as usize;
        may_pin(state, bytes, Code::NOT_PERMITTED)?;
        let overlaps = state.pinned.range(..start + bytes).next_back();
        if overlaps.is_some_and(|(at, pinned)| at + pinned.bytes > start) {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        pin(state, device, start, bytes, false)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: *mut c_void) -> u32 {
    release(address as usize, false, Code::HOST_MEMORY_NOT_REGISTERED, "unregisters")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(to: *mut u64, address: *mut c_void, _flags: c_uint) -> u32 {
    call(|state| {
        state.pinned_range(address as usize, 1).ok_or(Code::INVALID_VALUE)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, address as u64) }
    })
}

fn device_range(state: &State, address: u64, bytes: usize) -> Outcome {
    if bytes > 0 && !state.memory.holds(address as usize, bytes) {
        return Err(Code::INVALID_VALUE);
    }
    Ok(())
}

fn failing_copy(state: &mut State) -> Option<Work> {
    state.copies += 1;
    State::injected(state.copies, state.config.fail_copy, Code::LAUNCH_FAILED)
}

/// # Safety
/// `from` is readable for `bytes` bytes until the copy has run, if it is page-locked.
unsafe fn to_device(
    state: &mut State,
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: usize,
) -> Outcome<Captured> {
    if from.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    device_range(state, to, bytes)?;
    let address = from as usize;
    // SAFETY: the caller's promise.
    let data = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
    let source = if state.pinned_range(address, bytes).is_some() {
        let settled = !state
            .pending_host()
            .any(|(start, end, write, _)| write && start < address + bytes && address < end);
        Source::Pinned { address, hash: settled.then(|| xxh3_64(data)) }
    } else {
        Source::Staged(data.to_vec())
    };
    let kind = if matches!(source, Source::Staged(_)) { " from pageable memory" } else { "" };
    let what = format!("copy of {bytes} bytes host to device{kind}");
    let work = failing_copy(state).unwrap_or(Work::ToDevice { source, to: to as usize, bytes });
    Ok(state.enqueue(stream, work, what))
}

fn to_host(state: &mut State, to: *mut c_void, from: u64, bytes: usize, stream: usize) -> Outcome<Captured> {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    device_range(state, from, bytes)?;
    let address = to as usize;
    let pinned = state.pinned_range(address, bytes).is_some();
    let used = state.pending_host().any(|(start, end, _, _)| start < address + bytes && address < end);
    if pinned && !used {
        // SAFETY: page-locked memory that the caller hands over until the copy is done.
        unsafe { std::ptr::write_bytes(to.cast::<u8>(), POISON, bytes) };
    }
    let what = format!("copy of {bytes} bytes device to host");
    let work = failing_copy(state).unwrap_or(Work::ToHost { from: from as usize, to: address, bytes });
    Ok(state.enqueue(stream, work, what))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    call(|state| {
        current_device(state)?;
        let stream = state.stream(stream)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { to_device(state, to, from, bytes, stream) }.map(|_| ())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            // SAFETY: as the driver API asks of its callers.
            Ok(Goal::At(unsafe { to_device(state, to, from, bytes, 0) }?))
        },
        |_| Ok(()),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            let stream = state.stream(stream)?;
            let pinned = state.pinned_range(to as usize, bytes).is_some();
            let copy = to_host(state, to, from, bytes, stream)?;
            // Into pageable memory the call returns when the bytes are there.
            Ok(if pinned { Goal::Nothing } else { Goal::At(copy) })
        },
        |_| Ok(()),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            Ok(Goal::At(to_host(state, to, from, bytes, 0)?))
        },
        |_| Ok(()),
    )
}

fn on_device(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    call(|state| {
        current_device(state)?;
        let stream = state.stream(stream)?;
        device_range(state, to, bytes)?;
        device_range(state, from, bytes)?;
        let work =
            failing_copy(state).unwrap_or(Work::OnDevice { from: from as usize, to: to as usize, bytes });
        state.enqueue(stream, work, format!("copy of {bytes} bytes device to device"));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    on_device(to, from, bytes, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    on_device(to, from, bytes, std::ptr::null_mut())
}

fn set(to: u64, pattern: [u8; 4], bytes: usize, align: u64, stream: *mut c_void) -> u32 {
    call(|state| {
        current_device(state)?;
        let stream = state.stream(stream)?;
        if !to.is_multiple_of(align) {
            return Err(Code::INVALID_VALUE);
        }
        device_range(state, to, bytes)?;
        state.enqueue(
            stream,
            Work::Set { to: to as usize, pattern, bytes },
            format!("memset of {bytes} bytes"),
        );
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: *mut c_void) -> u32 {
    set(to, [value; 4], count, 1, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32 {
    set(to, [value; 4], count, 1, std::ptr::null_mut())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: *mut c_void) -> u32 {
    set(to, value.to_le_bytes(), count.saturating_mul(4), 4, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) -> u32 {
    set(to, value.to_le_bytes(), count.saturating_mul(4), 4, std::ptr::null_mut())
}
