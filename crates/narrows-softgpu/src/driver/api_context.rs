//! Entry points: initialisation, devices, contexts, errors.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};

use super::code::{Code, Outcome};
use super::queue::Goal;
use super::state::State;
use super::{call, call_until, config, fault, initialise, lock};

thread_local! {
    /// The context that is current in this thread; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// A context's handle says which device it belongs to.
const CONTEXT: usize = 0x5043_0000_0000;

fn context(device: usize) -> usize {
    CONTEXT + (device + 1) * 16
}

fn device_of(context: usize, state: &State) -> Option<usize> {
    let device = context.checked_sub(CONTEXT)? / 16;
    let device = device.checked_sub(1)?;
    (device < state.devices.len() && state.devices[device].retained > 0).then_some(device)
}

/// The device of the context that is current here.
pub(crate) fn current_device(state: &State) -> Outcome<usize> {
    device_of(CURRENT.get(), state).ok_or(Code::INVALID_CONTEXT)
}

/// Writes a result for the caller.
///
/// # Safety
/// `to` is null or valid for a write, as the driver API asks of its callers.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

fn ordinal(state: &State, device: c_int) -> Outcome<usize> {
    usize::try_from(device).ok().filter(|index| *index < state.devices.len()).ok_or(Code::INVALID_DEVICE)
}

/// Calls that a sticky error does not stop.
fn ask(work: impl FnOnce(&mut State) -> Outcome) -> u32 {
    match lock().as_mut() {
        Some(state) => work(state).map_or_else(|code| code.0, |()| 0),
        None => Code::NOT_INITIALIZED.0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> u32 {
    if flags != 0 {
        return Code::INVALID_VALUE.0;
    }
    initialise().0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    let configured = match lock().as_ref() {
        Some(state) => state.config.driver,
        None => match config::Config::from_environment() {
            Ok(config) => config.driver,
            Err(error) => fault::refuse(&error.to_string()),
        },
    };
    // SAFETY: as the driver API asks of its callers.
    unsafe { put(version, configured) }.map_or_else(|code| code.0, |()| 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    // SAFETY: as the driver API asks of its callers.
    ask(|state| unsafe { put(count, state.devices.len() as c_int) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, index: c_int) -> u32 {
    ask(|state| {
        ordinal(state, index)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(device, index) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> u32 {
    ask(|state| {
        ordinal(state, device)?;
        let text = b"narrows-softgpu (software, for tests)\0";
        let room =
            usize::try_from(length).ok().filter(|n| *n > 0 && !name.is_null()).ok_or(Code::INVALID_VALUE)?;
        let bytes = text.len().min(room);
        // SAFETY: the caller gives `length` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, bytes);
            name.add(bytes - 1).write(0);
        }
        Ok(())
    })
}

unsafe fn uuid(to: *mut [u8; 16], device: c_int) -> u32 {
    ask(|state| {
        let index = ordinal(state, device)?;
        let mut bytes = *b"narrows-softgpu0";
        bytes[15] += index as u8;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, bytes) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], device: c_int) -> u32 {
    // SAFETY: the same contract.
    unsafe { uuid(to, device) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], device: c_int) -> u32 {
    // SAFETY: the same contract.
    unsafe { uuid(to, device) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32 {
    ask(|state| {
        ordinal(state, device)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(bytes, state.config.vram as usize) }
    })
}

/// Most shared memory that a block can be given, static memory included, by the attribute of its function (CUDA C++
/// Programming Guide, technical specifications per compute capability).
pub(crate) const fn shared_opt_in(arch: (u32, u32)) -> u32 {
    let kib = match arch {
        (..=6, _) => 48,
        (7, 5) => 64,
        (7, _) => 96,
        (8, 0 | 7) => 163,
        (8, _) | (12.., _) => 99,
        _ => 227,
    };
    kib << 10
}

/// Shared memory, threads and blocks of a multiprocessor (from the same table).
pub(crate) const fn multiprocessor(arch: (u32, u32)) -> (u32, u32, u32) {
    let shared = match arch {
        (6, 1) => 96 << 10,
        (..=6, _) => 64 << 10,
        (7, _) => shared_opt_in(arch),
        // A block takes a KiB besides its own.
        _ => shared_opt_in(arch) + 1024,
    };
    match arch {
        (7, 5) => (shared, 1024, 16),
        (8, 6 | 7) => (shared, 1536, 16),
        (8, 9) | (12.., _) => (shared, 1536, 24),
        _ => (shared, 2048, 32),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) -> u32 {
    ask(|state| {
        ordinal(state, device)?;
        let arch = state.config.arch;
        let (shared, threads, blocks) = multiprocessor(arch);
        // Numbers of CUdevice_attribute; the bus is as wide and fast as the configured bandwidth asks.
        let answer = match attribute {
            1..=3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65535,
            8 => 48 << 10,
            9 => 64 << 10,
            10 => 32,
            12 | 82 => 65536,
            13 => 1_000_000,
            14 => 512,
            15 => 1,
            16 => 16,
            17 | 18 | 20 | 32 => 0,
            19 | 31 | 41 => 1,
            33 => 1,
            34 => 0,
            36 => (state.config.mem / (2.0 * 128.0) / 1e3).round() as c_int,
            37 => 1024,
            38 => 4 << 20,
            39 => threads as c_int,
            40 => 2,
            75 => arch.0 as c_int,
            76 => arch.1 as c_int,
            78 => 1,
            79 | 80 => 1,
            81 => shared as c_int,
            91 => 1,
            95 => 0,
            97 => shared_opt_in(arch) as c_int,
            99 => 1,
            106 => blocks as c_int,
            111 => {
                if arch.0 < 8 {
                    0
                } else {
                    1024
                }
            }
            113 => 1,
            115 => 0,
            0 => return Err(Code::INVALID_VALUE),
            _ => 0,
        };
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(value, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) -> u32 {
    ask(|state| {
        ordinal(state, device)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe {
            put(major, state.config.arch.0 as c_int)?;
            put(minor, state.config.arch.1 as c_int)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut *mut c_void, device: c_int) -> u32 {
    call(|state| {
        let device = ordinal(state, device)?;
        if state.devices[device].retained == 0 {
            state.charge(device, state.config.context)?;
        }
        state.devices[device].retained += 1;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, context(device) as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    ask(|state| {
        let device = ordinal(state, device)?;
        match state.devices[device].retained {
            0 => return Err(Code::INVALID_CONTEXT),
            1 => state.refund(device, state.config.context),
            _ => {}
        }
        state.devices[device].retained -= 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease(device: c_int) -> u32 {
    cuDevicePrimaryCtxRelease_v2(device)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: c_int,
    flags: *mut c_uint,
    active: *mut c_int,
) -> u32 {
    ask(|state| {
        let device = ordinal(state, device)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe {
            put(flags, 0)?;
            put(active, c_int::from(state.devices[device].retained > 0))
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) -> u32 {
    ask(|state| ordinal(state, device).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> u32 {
    call(|state| {
        if !context.is_null() && device_of(context as usize, state).is_none() {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(context as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(to: *mut *mut c_void) -> u32 {
    // SAFETY: as the driver API asks of its callers.
    ask(|_| unsafe { put(to, CURRENT.get() as *mut c_void) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(to: *mut c_int) -> u32 {
    // SAFETY: as the driver API asks of its callers.
    ask(|state| unsafe { put(to, current_device(state)? as c_int) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    call_until(
        |state| {
            current_device(state)?;
            Ok(Goal::All)
        },
        |_| Ok(()),
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetFlags(to: *mut c_uint) -> u32 {
    // SAFETY: as the driver API asks of its callers.
    call(|_| unsafe { put(to, 0) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> u32 {
    call(|state| current_device(state).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: c_uint, _value: usize) -> u32 {
    call(|state| current_device(state).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(_config: c_uint) -> u32 {
    call(|state| current_device(state).map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    call(|state| {
        current_device(state)?;
        // SAFETY: either may be null, which the API allows.
        unsafe {
            if !least.is_null() {
                least.write(0);
            }
            if !greatest.is_null() {
                greatest.write(-5);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: u32, to: *mut *const c_char) -> u32 {
    let known = Code(code).describe();
    let text = known.map_or(std::ptr::null(), |(name, _)| name.as_ptr());
    // SAFETY: as the driver API asks of its callers.
    match unsafe { put(to, text) } {
        Ok(()) if known.is_some() => 0,
        _ => Code::INVALID_VALUE.0,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: u32, to: *mut *const c_char) -> u32 {
    let known = Code(code).describe();
    let text = known.map_or(std::ptr::null(), |(_, text)| text.as_ptr());
    // SAFETY: as the driver API asks of its callers.
    match unsafe { put(to, text) } {
        Ok(()) if known.is_some() => 0,
        _ => Code::INVALID_VALUE.0,
    }
}

#[cfg(test)]
mod tests {
    use super::{multiprocessor, shared_opt_in};

    /// As the CUDA C++ Programming Guide 13.0 has them, of 6.x as that of 12.9.
    #[test]
    fn limits_of_shared_memory() {
        let table = [
            ((6, 0), 48, 64),
            ((6, 1), 48, 96),
            ((6, 2), 48, 64),
            ((7, 0), 96, 96),
            ((7, 5), 64, 64),
            ((8, 0), 163, 164),
            ((8, 6), 99, 100),
            ((8, 7), 163, 164),
            ((8, 9), 99, 100),
            ((9, 0), 227, 228),
            ((10, 0), 227, 228),
            ((12, 0), 99, 100),
        ];
        for (arch, of_block, of_multiprocessor) in table {
            assert_eq!(shared_opt_in(arch), of_block << 10, "{arch:?}");
            assert_eq!(multiprocessor(arch).0, of_multiprocessor << 10, "{arch:?}");
        }
    }
}
