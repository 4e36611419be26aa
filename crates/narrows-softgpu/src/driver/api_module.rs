//! Entry points: modules, functions, launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::api_context::{current_device, multiprocessor, put, shared_opt_in};
use super::code::{Code, Outcome};
use super::queue::{Launch, Params, Work};
use super::state::{Function, State};
use super::{call, fault, images};

/// First word of a fatbin, little-endian.
const FATBIN: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
/// What a build without nvcc embeds in place of a fatbin.
const NAME_TAG: &[u8] = b"narrows-softgpu-image";
/// Shared memory that needs no attribute, static memory included.
const SHARED_DEFAULT: u32 = 48 << 10;

/// # Safety
/// `image` points to a NUL-terminated text or to a fatbin.
unsafe fn is_known_image(image: *const c_void) -> bool {
    let starts_with = |magic: &[u8]| {
        magic.iter().enumerate().all(|(index, byte)| {
            // SAFETY: reads stop at the first byte that differs, so at the latest at a NUL.
            unsafe { *image.cast::<u8>().add(index) == *byte }
        })
    };
    starts_with(&FATBIN) || starts_with(NAME_TAG)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(to: *mut *mut c_void, image: *const c_void) -> u32 {
    call(|state| {
        current_device(state)?;
        if to.is_null() || image.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: as the driver API asks of its callers.
        if !unsafe { is_known_image(image) } {
            return Err(Code::INVALID_IMAGE);
        }
        if state.config.arch < (7, 5) {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        if state.libraries.is_none() {
            if let Some(why) = images::LACKING {
                fault::say(&format!("it was built without kernels: {why}"));
            }
            state.libraries = Some(images::open(state.config.arch, &mut *state.machine));
        }
        let handle = state.handle();
        state.modules.insert(handle, ());
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, handle as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: *mut c_void) -> u32 {
    call(|state| state.modules.remove(&(module as u64)).ok_or(Code::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    to: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> u32 {
    call(|state| {
        if !state.modules.contains_key(&(module as u64)) {
            return Err(Code::INVALID_HANDLE);
        }
        if to.is_null() || name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: as the driver API asks of its callers.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let kernels = state.libraries.iter().flatten().flat_map(|library| &library.kernels);
        let kernel =
            kernels.into_iter().find(|kernel| kernel.name == name).cloned().ok_or(Code::NOT_FOUND)?;
        let handle = state.handle();
        state.functions.insert(handle, Function { kernel, dynamic_shared: SHARED_DEFAULT, opted_in: false });
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, handle as *mut c_void) }
    })
}

fn function(state: &State, handle: *mut c_void) -> Outcome<&Function> {
    state.functions.get(&(handle as u64)).ok_or(Code::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(to: *mut c_int, attribute: c_uint, handle: *mut c_void) -> u32 {
    call(|state| {
        let function = function(state, handle)?;
        let version = (state.config.arch.0 * 10 + state.config.arch.1) as c_int;
        let value = match attribute {
            0 => function.kernel.max_threads as c_int,
            // Static shared memory and registers are the GPU compiler's to know.
            1 | 2 | 3 | 7 => 0,
            4 => 32,
            5 | 6 => version,
            8 => function.dynamic_shared as c_int,
            9 => -1,
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, value) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(handle: *mut c_void, attribute: c_uint, value: c_int) -> u32 {
    call(|state| {
        function(state, handle)?;
        let most = shared_opt_in(state.config.arch);
        let function = state.functions.get_mut(&(handle as u64)).ok_or(Code::INVALID_HANDLE)?;
        match attribute {
            8 => {
                let bytes =
                    u32::try_from(value).ok().filter(|bytes| *bytes <= most).ok_or(Code::INVALID_VALUE)?;
                function.dynamic_shared = bytes.max(SHARED_DEFAULT);
                function.opted_in = true;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(handle: *mut c_void, _config: c_uint) -> u32 {
    call(|state| function(state, handle).map(|_| ()))
}

fn blocks_per_processor(state: &State, threads: u32, shared: usize) -> c_int {
    let (memory, most_threads, most_blocks) = multiprocessor(state.config.arch);
    let by_threads = most_threads / threads.max(1);
    let by_shared = (memory as usize).checked_div(shared).unwrap_or(usize::MAX);
    u32::try_from(by_shared).unwrap_or(u32::MAX).min(by_threads).min(most_blocks) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    to: *mut c_int,
    handle: *mut c_void,
    threads: c_int,
    shared: usize,
) -> u32 {
    call(|state| {
        function(state, handle)?;
        let threads =
            u32::try_from(threads).ok().filter(|threads| *threads > 0).ok_or(Code::INVALID_VALUE)?;
        // SAFETY: as the driver API asks of its callers.
        unsafe { put(to, blocks_per_processor(state, threads, shared)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    to: *mut c_int,
    handle: *mut c_void,
    threads: c_int,
    shared: usize,
    _flags: c_uint,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(to, handle, threads, shared) }
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the driver API's own signature")]
unsafe extern "C" fn cuLaunchKernel(
    handle: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    call(|state| {
        current_device(state)?;
        let stream = state.stream(stream)?;
        let function = function(state, handle)?;
        let kernel: Arc<_> = function.kernel.clone();
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().try_fold(1u32, |product, side| product.checked_mul(*side));
        let fits = |threads: &u32| (1..=kernel.max_threads).contains(threads) && block_z <= 64;
        let grid_fits = grid.iter().all(|side| *side > 0)
            && grid_x <= i32::MAX as u32
            && grid_y < 65536
            && grid_z < 65536;
        if threads.filter(fits).is_none() || !grid_fits || shared > function.dynamic_shared {
            return Err(Code::INVALID_VALUE);
        }
        if params.is_null() || !extra.is_null() || kernel.param_bytes > size_of::<Params>() {
            return Err(Code::INVALID_VALUE);
        }
        let mut copied = Box::new(Params([0; 4096]));
        // SAFETY: the kernel has one parameter, a struct of this many bytes.
        unsafe { std::ptr::copy_nonoverlapping((*params).cast(), copied.0.as_mut_ptr(), kernel.param_bytes) };
        // What the kernel has of static memory is known when it has run.
        let most_shared = if function.opted_in { shared_opt_in(state.config.arch) } else { SHARED_DEFAULT };
        state.launches += 1;
        let what = format!("kernel `{}` (launch {})", kernel.name, state.launches);
        let launch = Launch { kernel, params: copied, grid, block, shared, most_shared };
        let work = State::injected(state.launches, state.config.fail_launch, Code::ILLEGAL_ADDRESS)
            .unwrap_or(Work::Launch(Box::new(launch)));
        state.enqueue(stream, work, what);
        Ok(())
    })
}
