//! A planted fault of each kind is caught and named; its clean twin passes.

use cudarc::driver::sys;
use narrows_softgpu::{SoftGpu, skip_or_fail};

use crate::common::{Gpu, Stream, address, launch};
use crate::params;

params!(Fault { data: u64, out: u64, n: u32, fault: u32 });

const FAULT: &str = "NARROWS_TEST_FAULT";

pub(crate) fn faulty() -> bool {
    std::env::var(FAULT).is_ok_and(|value| value == "1")
}

/// Runs a test's own half with and without its fault, under several seeds.
pub(crate) fn planted(test: &str, expected: &[&str]) {
    if !skip_or_fail() {
        return;
    }
    for seed in 0..4 {
        let gpu = SoftGpu::new().unwrap().seed(seed);
        gpu.rerun_with(test, &[(FAULT, "0")]).unwrap().assert_clean();
        let found = gpu.rerun_with(test, &[(FAULT, "1")]).unwrap();
        let text = found.text();
        assert_eq!(found.code(), Some(70), "seed {seed}: {text}");
        let hazards = found.hazards();
        assert_eq!(hazards.len(), 1, "{hazards:?}");
        for word in expected {
            assert!(hazards[0].contains(word), "seed {seed}: `{word}` is not in: {}", hazards[0]);
        }
        assert!(text.contains(&format!("narrows-softgpu: hazard: {}", hazards[0])), "{text}");
    }
}

/// Launches a kernel of `faults.cu` with `n` values in and out.
fn run(kernel: &str, threads: u32, shared: u32) {
    let (gpu, stream) = Gpu::with_stream();
    let n = threads.max(128) as usize;
    let data = stream.clone_htod(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let out = stream.alloc_zeros::<f32>(n).unwrap();
    let params = Fault {
        data: address(&data, &stream),
        out: address(&out, &stream),
        n: n as u32,
        fault: u32::from(faulty()),
    };
    launch(&stream, &gpu.function(kernel), 1, threads, shared, &params);
    stream.synchronize().unwrap();
}

macro_rules! planted {
    ($($test:ident: $kernel:literal, $threads:literal, $shared:literal => $($word:literal),+;)*) => {
        $(
            #[test]
            fn $test() {
                if SoftGpu::inside() {
                    return run($kernel, $threads, $shared);
                }
                planted(concat!("faults::", stringify!($test)), &[$kernel, $($word),+]);
            }
        )*
    };
}

planted! {
    a_read_past_the_end: "softgpu_read_past_end", 128, 0
        => "reads 4 bytes of device memory 0 bytes past the end of allocation #1 of 512 bytes", "thread (127, 0, 0)";
    a_write_past_the_end: "softgpu_write_past_end", 128, 0
        => "writes 4 bytes of device memory 0 bytes past the end of allocation #2 of 512 bytes";
    a_misaligned_vector: "softgpu_misaligned", 32, 0
        => "misaligned: reads 16 bytes at once at bytes 4..20 of device allocation #1";
    memory_of_nobody: "softgpu_host_pointer", 32, 0
        => "neither device memory, shared memory nor page-locked";
    a_missing_barrier: "softgpu_missing_barrier", 256, 0 => "race", "no barrier between";
    a_missing_syncwarp: "softgpu_missing_syncwarp", 32, 0 => "race", "no barrier between";
    shared_memory_overwritten_too_early: "softgpu_overwritten_too_early", 256, 0 => "race: ", "a __shared__ variable";
    unwritten_shared_memory: "softgpu_unwritten_shared", 64, 0 => "the block has not written";
    the_end_of_dynamic_shared_memory: "softgpu_dynamic_shared_end", 64, 256
        => "offset 256 of dynamic shared memory, of which the launch gave it 256";
    static_beside_dynamic_shared_memory: "softgpu_static_and_dynamic", 64, 49_152
        => "49152 bytes of dynamic and 256 of static shared memory", "at most 49152 on compute capability 9.0";
    a_divergent_barrier: "softgpu_divergent_barrier", 64, 0
        => "divergence: 48 of 64 threads wait at the barrier of faults.cu:", "16 have returned";
    two_barriers: "softgpu_two_barriers", 64, 0 => "divergence: thread ", "others at the barrier of faults.cu:";
    missing_lanes: "softgpu_missing_lanes", 32, 0
        => "a shuffle of mask 0xffffffff never gets lanes 0xffff0000 (16 of them returned)";
    a_missing_wait: "softgpu_missing_wait", 32, 0 => "cp.async of thread", "has not been waited for";
    a_failed_assertion: "softgpu_assertion", 32, 0 => "assertion failed: !p.fault at faults.cu:";
}

#[test]
fn unwritten_device_memory() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let out = stream.alloc_zeros::<f32>(128).unwrap();
        // SAFETY: reading it is the fault.
        let data = unsafe { stream.alloc::<f32>(128) }.unwrap();
        stream.context().synchronize().unwrap();
        let bytes = if faulty() { 127 * 4 } else { 128 * 4 };
        // SAFETY: inside the allocation.
        unsafe { sys::cuMemsetD8Async(address(&data, &stream), 0, bytes, stream.cu_stream()) }
            .result()
            .unwrap();
        let params = Fault { data: address(&data, &stream), out: address(&out, &stream), n: 128, fault: 0 };
        launch(&stream, &gpu.function("softgpu_read_past_end"), 1, 128, 0, &params);
        stream.synchronize().unwrap();
        return;
    }
    planted(
        "faults::unwritten_device_memory",
        &["reads bytes 508..509 of device allocation #2", "which nothing has written"],
    );
}

#[test]
fn unwritten_memory_copied_to_the_host() {
    if SoftGpu::inside() {
        let (_gpu, stream) = Gpu::with_stream();
        // SAFETY: reading it is the fault.
        let mut data = unsafe { stream.alloc::<u8>(100) }.unwrap();
        if !faulty() {
            stream.memset_zeros(&mut data).unwrap();
        }
        stream.clone_dtoh(&data).unwrap();
        return;
    }
    planted(
        "faults::unwritten_memory_copied_to_the_host",
        &["copies bytes 0..1 of device allocation #1 (100 bytes), which nothing has written, to the host"],
    );
}

/// Two streams, and memory that a copy in the one fills for a kernel in the other.
fn copy_and_kernel(order: impl Fn(&Stream, &Stream)) {
    let (gpu, compute) = Gpu::with_stream();
    let copy = gpu.context.new_stream().unwrap();
    let out = compute.alloc_zeros::<f32>(128).unwrap();
    let mut data = compute.alloc_zeros::<f32>(128).unwrap();
    compute.synchronize().unwrap();
    copy.memcpy_htod(&vec![1.0f32; 128], &mut data).unwrap();
    order(&copy, &compute);
    let params = Fault { data: address(&data, &compute), out: address(&out, &compute), n: 128, fault: 0 };
    launch(&compute, &gpu.function("softgpu_read_past_end"), 1, 128, 0, &params);
    let result = compute.clone_dtoh(&out).unwrap();
    copy.synchronize().unwrap();
    assert!(result.iter().all(|x| *x == 1.0));
}

#[test]
fn no_event_between_copy_and_kernel() {
    if SoftGpu::inside() {
        return copy_and_kernel(|copy, compute| {
            let event = copy.record_event(None).unwrap();
            if !faulty() {
                compute.wait(&event).unwrap();
            }
        });
    }
    planted(
        "faults::no_event_between_copy_and_kernel",
        &[
            "kernel `softgpu_read_past_end`",
            "copy of 512 bytes host to device",
            "no event or synchronisation orders",
        ],
    );
}

#[test]
fn an_event_recorded_before_the_copy_orders_nothing() {
    if SoftGpu::inside() {
        let early = |copy: &Stream, compute: &Stream| {
            let event = copy.context().new_event(None).unwrap();
            if !faulty() {
                event.record(copy).unwrap();
            }
            // Waiting for an event that was never recorded waits for nothing.
            compute.wait(&event).unwrap();
            event.record(copy).unwrap();
        };
        return copy_and_kernel(early);
    }
    planted(
        "faults::an_event_recorded_before_the_copy_orders_nothing",
        &["no event or synchronisation orders"],
    );
}

/// Page-locked host memory of floats.
fn pinned(gpu: &Gpu, n: usize, value: f32) -> *mut f32 {
    gpu.context.bind_to_thread().unwrap();
    let mut at = std::ptr::null_mut();
    // SAFETY: the result is written before it is used.
    unsafe { sys::cuMemHostAlloc(&mut at, n * 4, 0) }.result().unwrap();
    let at: *mut f32 = at.cast();
    (0..n).for_each(|i| {
        // SAFETY: inside the allocation made above.
        unsafe { at.add(i).write(value) }
    });
    at
}

#[test]
fn a_buffer_refilled_in_flight() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let data = stream.alloc_zeros::<f32>(1000).unwrap();
        let buffer = pinned(&gpu, 1000, 1.0);
        for round in 0..8 {
            // SAFETY: the fault is to write while the copy below may still read.
            unsafe {
                buffer.add(999).write(round as f32);
                sys::cuMemcpyHtoDAsync_v2(address(&data, &stream), buffer.cast(), 4000, stream.cu_stream())
            }
            .result()
            .unwrap();
            if !faulty() {
                stream.synchronize().unwrap();
            }
        }
        stream.synchronize().unwrap();
        return;
    }
    if !skip_or_fail() {
        return;
    }
    // An eager device has read the buffer before the host writes it again.
    let gpu = SoftGpu::new().unwrap().seed(0);
    let test = "faults::a_buffer_refilled_in_flight";
    gpu.rerun_with(test, &[(FAULT, "0")]).unwrap().assert_clean();
    let found = gpu.rerun_with(test, &[(FAULT, "1")]).unwrap();
    assert_eq!(found.code(), Some(70), "{}", found.text());
    assert!(
        found.text().contains("hazard: the host wrote bytes 0..4000 of pinned host memory"),
        "{}",
        found.text()
    );
}

#[test]
fn device_memory_freed_in_flight() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let out = stream.alloc_zeros::<f32>(128).unwrap();
        let data = stream.clone_htod(&[0.0f32; 128]).unwrap();
        stream.synchronize().unwrap();
        let (data, n) = (data.leak(), 128);
        let params = Fault { data, out: address(&out, &stream), n, fault: 0 };
        launch(&stream, &gpu.function("softgpu_read_past_end"), 1, 128, 0, &params);
        if !faulty() {
            stream.synchronize().unwrap();
        }
        // SAFETY: leaked above, freed once.
        unsafe { sys::cuMemFree_v2(data) }.result().unwrap();
        return;
    }
    planted(
        "faults::device_memory_freed_in_flight",
        &["the host frees bytes 0..512 of device allocation #2", "kernel `softgpu_read_past_end`"],
    );
}

#[test]
fn pinned_memory_freed_in_flight() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let data = stream.clone_htod(&[0.0f32; 128]).unwrap();
        let buffer = pinned(&gpu, 128, 1.0);
        // SAFETY: both ranges are allocated.
        unsafe { sys::cuMemcpyDtoHAsync_v2(buffer.cast(), address(&data, &stream), 512, stream.cu_stream()) }
            .result()
            .unwrap();
        if !faulty() {
            stream.synchronize().unwrap();
        }
        // SAFETY: allocated in `pinned`, freed once.
        unsafe { sys::cuMemFreeHost(buffer.cast()) }.result().unwrap();
        return;
    }
    planted(
        "faults::pinned_memory_freed_in_flight",
        &["the host frees bytes 0..512 of pinned host memory", "copy of 512 bytes device to host"],
    );
}

#[test]
fn two_copies_into_one_buffer() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let other = gpu.context.new_stream().unwrap();
        let data = stream.clone_htod(&[2.0f32; 128]).unwrap();
        stream.synchronize().unwrap();
        let buffer = pinned(&gpu, 128, 1.0);
        // SAFETY: both ranges are allocated.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(buffer.cast(), address(&data, &stream), 256, stream.cu_stream())
                .result()
                .unwrap();
            let shift = if faulty() { 63 } else { 64 };
            let to = buffer.add(shift).cast();
            sys::cuMemcpyDtoHAsync_v2(to, address(&data, &stream), 256, other.cu_stream()).result().unwrap();
        }
        gpu.context.synchronize().unwrap();
        return;
    }
    planted("faults::two_copies_into_one_buffer", &["writes bytes 252..256 of pinned host memory"]);
}

#[test]
fn a_result_read_too_early_is_poison() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let data = stream.clone_htod(&[2.0f32; 128]).unwrap();
        let buffer = pinned(&gpu, 128, 1.0);
        // SAFETY: both ranges are allocated; the first read is what a program must not do.
        let (early, late) = unsafe {
            sys::cuMemcpyDtoHAsync_v2(buffer.cast(), address(&data, &stream), 512, stream.cu_stream())
                .result()
                .unwrap();
            let early = buffer.read_volatile();
            stream.synchronize().unwrap();
            (early, buffer.read_volatile())
        };
        assert_eq!((early.to_bits(), late), (0x7f7f_7f7f, 2.0));
        return;
    }
    if skip_or_fail() {
        let test = "faults::a_result_read_too_early_is_poison";
        SoftGpu::new().unwrap().seed(0).rerun(test).unwrap().assert_clean();
    }
}
