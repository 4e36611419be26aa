//! The driver API: errors as the real driver gives them, events, streams, simulated time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use narrows_softgpu::{Finished, SoftGpu, skip_or_fail};

use crate::common::{Gpu, address, image, launch};
use crate::params;

params!(Axpy { x: u64, y: u64, n: u32, a: f32 });
params!(Read { x: u64, out: u64, n: u32, repeat: u32 });

fn device() -> Option<SoftGpu> {
    skip_or_fail().then(|| SoftGpu::new().unwrap())
}

fn clean(gpu: &SoftGpu, test: &str) -> Finished {
    let finished = gpu.rerun(&format!("api::{test}")).unwrap();
    finished.assert_clean();
    finished
}

fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    result.err().map_or(sys::CUresult::CUDA_SUCCESS, |error| error.0)
}

#[test]
fn a_device_describes_itself() {
    if SoftGpu::inside() {
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        let context = CudaContext::new(1).unwrap();
        assert!(context.name().unwrap().contains("narrows-softgpu"));
        assert_eq!(context.compute_capability().unwrap(), (8, 9));
        assert_eq!(context.total_mem().unwrap(), 64 << 20);
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!((free, total), ((64 << 20) - (3 << 20), 64 << 20));
        assert_ne!(context.uuid().unwrap().bytes, CudaContext::new(0).unwrap().uuid().unwrap().bytes);
        let mut version = 0;
        // SAFETY: a valid place for the answer.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().unwrap();
        assert_eq!(version, 12090);
        assert_eq!(code(CudaContext::new(2)), sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
        let error = DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(error.error_string().unwrap().to_str().unwrap(), "out of memory");
        return;
    }
    let Some(gpu) = device() else { return };
    let gpu = gpu.vram(64 << 20).arch(8, 9).devices(2).context(3 << 20).driver(12090);
    clean(&gpu, "a_device_describes_itself");
}

#[test]
fn memory_ends_at_the_capacity() {
    if SoftGpu::inside() {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // Beside the context, a stream.
        let rest = (1 << 20) - (512 << 10) - (64 << 10);
        // SAFETY: never read.
        let all = unsafe { stream.alloc::<u8>(rest) }.unwrap();
        assert_eq!(context.mem_get_info().unwrap().0, 0);
        // SAFETY: fails.
        let more = unsafe { stream.alloc::<u8>(1) };
        assert_eq!(code(more), sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(all);
        // SAFETY: never read.
        let (a, b) = unsafe { (stream.alloc::<u8>(1).unwrap(), stream.alloc::<u8>(513).unwrap()) };
        assert_eq!(context.mem_get_info().unwrap().0, rest - 512 - 1024);
        drop((a, b));
        assert_eq!(context.mem_get_info().unwrap().0, rest);
        return;
    }
    let Some(gpu) = device() else { return };
    let finished = clean(&gpu.vram(1 << 20), "memory_ends_at_the_capacity");
    assert_eq!(finished.number("/peak_device_bytes"), Some((1 << 20) as f64));
}

#[test]
fn modules_and_launches_are_checked() {
    if SoftGpu::inside() {
        use sys::CUresult::*;
        let gpu = Gpu::new();
        let stream = gpu.context.new_stream().unwrap();
        let text = Ptx::from_binary(b"something else\0".to_vec());
        assert_eq!(code(gpu.context.load_module(text)), CUDA_ERROR_INVALID_IMAGE);
        let fatbin = Ptx::from_binary(vec![0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]);
        gpu.context.load_module(fatbin).unwrap();
        assert_eq!(code(gpu.module.load_function("softgpu_nothing")), CUDA_ERROR_NOT_FOUND);
        let y = stream.alloc_zeros::<f32>(256).unwrap();
        let params = Axpy { x: address(&y, &stream), y: address(&y, &stream), n: 256, a: 1.0 };
        let axpy = gpu.function("softgpu_axpy");
        let start = |grid: u32, block: u32, shared: u32| {
            let config =
                LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared };
            // SAFETY: the kernel takes exactly this struct.
            code(unsafe { stream.launch_builder(&axpy).arg(&params).launch(config) })
        };
        assert_eq!(start(0, 256, 0), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(start(1, 0, 0), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(start(1, 1025, 0), CUDA_ERROR_INVALID_VALUE);
        // Its launch bounds say 256.
        assert_eq!(start(1, 288, 0), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(start(1, 256, (48 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(code(axpy.set_attribute(attribute, 228 << 10)), CUDA_ERROR_INVALID_VALUE);
        axpy.set_attribute(attribute, 100 << 10).unwrap();
        assert_eq!(start(1, 256, 100 << 10), CUDA_SUCCESS);
        assert!(axpy.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap() > 0);
        gpu.context.synchronize().unwrap();
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu, "modules_and_launches_are_checked");
}

#[test]
fn an_old_device_has_no_binary() {
    if SoftGpu::inside() {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(code(context.load_module(image())), sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu.arch(7, 0), "an_old_device_has_no_binary");
}

#[test]
fn no_device_is_an_error() {
    if SoftGpu::inside() {
        assert_eq!(code(CudaContext::new(0)), sys::CUresult::CUDA_ERROR_NO_DEVICE);
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu.devices(0), "no_device_is_an_error");
}

#[test]
fn arguments_are_checked() {
    if SoftGpu::inside() {
        use sys::CUresult::*;
        let (gpu, stream) = Gpu::with_stream();
        let data = stream.alloc_zeros::<u8>(1000).unwrap();
        let at = address(&data, &stream);
        let mut host = vec![0u8; 8192];
        let raw = stream.cu_stream();
        gpu.context.bind_to_thread().unwrap();
        // SAFETY: the driver checks what is wrong here, and the rest is right.
        unsafe {
            assert_eq!(
                sys::cuMemcpyHtoDAsync_v2(at + 1, host.as_ptr().cast(), 1000, raw),
                CUDA_ERROR_INVALID_VALUE
            );
            assert_eq!(
                sys::cuMemcpyHtoDAsync_v2(12345, host.as_ptr().cast(), 1, raw),
                CUDA_ERROR_INVALID_VALUE
            );
            assert_eq!(sys::cuMemsetD8Async(at + 999, 0, 2, raw), CUDA_ERROR_INVALID_VALUE);
            assert_eq!(sys::cuMemFree_v2(at + 256), CUDA_ERROR_INVALID_VALUE);
            assert_eq!(sys::cuStreamSynchronize(0x1234 as sys::CUstream), CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuEventRecord(0x1234 as sys::CUevent, raw), CUDA_ERROR_INVALID_HANDLE);
            let mut zero = 0;
            assert_eq!(sys::cuMemAlloc_v2(&mut zero, 0), CUDA_ERROR_INVALID_VALUE);
            let range = host.as_mut_ptr().cast();
            sys::cuMemHostRegister_v2(range, 8192, 0).result().unwrap();
            assert_eq!(sys::cuMemHostRegister_v2(range, 1, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
            sys::cuMemHostUnregister(range).result().unwrap();
            assert_eq!(sys::cuMemHostUnregister(range), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        }
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu, "arguments_are_checked");
}

#[test]
fn a_failed_launch_is_sticky() {
    if SoftGpu::inside() {
        let illegal = sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        let (gpu, stream) = Gpu::with_stream();
        let y = stream.alloc_zeros::<f32>(256).unwrap();
        let params = Axpy { x: address(&y, &stream), y: address(&y, &stream), n: 256, a: 1.0 };
        let axpy = gpu.function("softgpu_axpy");
        launch(&stream, &axpy, 1, 256, 0, &params);
        stream.synchronize().unwrap();
        launch(&stream, &axpy, 1, 256, 0, &params);
        assert_eq!(code(stream.synchronize()), illegal);
        assert_eq!(code(stream.synchronize()), illegal);
        assert_eq!(code(gpu.context.mem_get_info()), illegal);
        assert_eq!(code(gpu.context.new_stream()), illegal);
        std::process::exit(0);
    }
    let Some(gpu) = device() else { return };
    let finished = clean(&gpu.fail_launch(2), "a_failed_launch_is_sticky");
    assert_eq!(finished.number("/sticky_error"), Some(700.0));
}

#[test]
fn a_failed_copy_is_sticky() {
    if SoftGpu::inside() {
        let (_gpu, stream) = Gpu::with_stream();
        let y = stream.clone_htod(&[1.0f32]).unwrap();
        stream.synchronize().unwrap();
        let error = stream.clone_dtoh(&y).map(|_| ());
        assert_eq!(code(error), sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        std::process::exit(0);
    }
    let Some(gpu) = device() else { return };
    clean(&gpu.fail_copy(2), "a_failed_copy_is_sticky");
}

#[test]
fn pinning_and_stealing() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        // SAFETY: never read.
        unsafe {
            gpu.context.alloc_pinned::<u8>(4096).unwrap();
            let refused = gpu.context.alloc_pinned::<u8>(4097);
            assert_eq!(code(refused), sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            let mut memory = vec![0u8; 5000];
            let refused = sys::cuMemHostRegister_v2(memory.as_mut_ptr().cast(), 5000, 0);
            assert_eq!(refused, sys::CUresult::CUDA_ERROR_NOT_PERMITTED);
        }
        let free = || gpu.context.mem_get_info().unwrap().0;
        let before = free();
        let _first = stream.alloc_zeros::<u8>(512).unwrap();
        assert_eq!(before - free(), 512);
        let _second = stream.alloc_zeros::<u8>(512).unwrap();
        assert_eq!(before - free(), 1024 + (1 << 20));
        return;
    }
    let Some(gpu) = device() else { return };
    let finished = clean(&gpu.fail_pinned(4096).steal(1 << 20, 2), "pinning_and_stealing");
    assert_eq!(finished.number("/peak_pinned_bytes"), Some(4096.0));
}

#[test]
fn queries_are_not_ready_before_the_work_is_done() {
    if SoftGpu::inside() {
        let (gpu, stream) = Gpu::with_stream();
        let event = gpu.context.new_event(None).unwrap();
        assert!(event.try_is_complete().unwrap(), "an event that was never recorded is complete");
        let mut y = stream.alloc_zeros::<f32>(256).unwrap();
        stream.memset_zeros(&mut y).unwrap();
        event.record(&stream).unwrap();
        let mut polls = 0;
        while !event.try_is_complete().unwrap() {
            polls += 1;
            assert!(polls < 1000);
        }
        assert!(polls > 0, "the laziest device is not done at once");
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu.seed(0), "queries_are_not_ready_before_the_work_is_done");
}

#[test]
fn copies_overlap_kernels_in_simulated_time() {
    if SoftGpu::inside() {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let (gpu, compute) = Gpu::with_stream();
        let copy = gpu.context.new_stream().unwrap();
        let n = 1 << 16;
        let x = compute.alloc_zeros::<u32>(n * 4).unwrap();
        let mut target = compute.alloc_zeros::<u8>(1 << 20).unwrap();
        let out = compute.alloc_zeros::<u32>(256).unwrap();
        let read = gpu.function("softgpu_read_vectors");
        let params = Read { x: address(&x, &compute), out: address(&out, &compute), n: n as u32, repeat: 1 };
        gpu.context.synchronize().unwrap();
        let event = || gpu.context.new_event(flags).unwrap();
        let (start, copied, computed) = (event(), event(), event());
        start.record(&compute).unwrap();
        copy.memcpy_htod(&vec![1u8; 1 << 20], &mut target).unwrap();
        copied.record(&copy).unwrap();
        launch(&compute, &read, 1, 256, 0, &params);
        launch(&compute, &read, 1, 256, 0, &params);
        computed.record(&compute).unwrap();
        let untimed = gpu.context.new_event(None).unwrap();
        untimed.record(&copy).unwrap();
        gpu.context.synchronize().unwrap();
        // 1 MiB over 1 GB/s, and twice 1 MiB + 1 KiB at 2 GB/s with 3 us each.
        let copy_ms = f64::from(start.elapsed_ms(&copied).unwrap());
        let compute_ms = f64::from(start.elapsed_ms(&computed).unwrap());
        assert!((copy_ms - 1.048_576).abs() < 1e-4, "{copy_ms}");
        assert!((compute_ms - 2.0 * (0.524_288 + 0.000_512 + 0.003)).abs() < 1e-4, "{compute_ms}");
        assert_eq!(code(start.elapsed_ms(&untimed)), sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
        return;
    }
    let mut times = Vec::new();
    for seed in 0..4 {
        let Some(gpu) = device() else { return };
        let finished = clean(&gpu.link(1.0).mem(2.0).seed(seed), "copies_overlap_kernels_in_simulated_time");
        let overlap = finished.number("/overlap/h2d_and_compute_seconds").unwrap();
        assert!((overlap - 0.001_048_576).abs() < 1e-7, "{overlap}");
        times.push(finished.number("/simulated_seconds").unwrap());
    }
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
}

#[test]
fn host_functions_run_in_stream_order() {
    if SoftGpu::inside() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn count(_: *mut std::ffi::c_void) {
            CALLS.fetch_add(1, Ordering::SeqCst);
        }
        let (gpu, stream) = Gpu::with_stream();
        gpu.context.bind_to_thread().unwrap();
        let mut y = stream.alloc_zeros::<f32>(256).unwrap();
        for round in 1..4 {
            stream.memset_zeros(&mut y).unwrap();
            // SAFETY: the function ignores its argument.
            unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(count), std::ptr::null_mut()) }
                .result()
                .unwrap();
            if round == 2 {
                // Nobody calls the driver meanwhile.
                while CALLS.load(Ordering::SeqCst) < 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            stream.synchronize().unwrap();
            assert_eq!(CALLS.load(Ordering::SeqCst), round);
        }
        return;
    }
    let Some(gpu) = device() else { return };
    clean(&gpu, "host_functions_run_in_stream_order");
}

#[test]
fn a_bad_configuration_is_refused() {
    if SoftGpu::inside() {
        let _ = CudaContext::new(0);
        return;
    }
    let Some(gpu) = device() else { return };
    let variables = [("NARROWS_SOFTGPU_VRAM", "plenty")];
    let finished = gpu.rerun_with("api::a_bad_configuration_is_refused", &variables).unwrap();
    assert_eq!(finished.code(), Some(64), "{}", finished.text());
    let text = finished.text();
    assert!(text.contains("narrows-softgpu: NARROWS_SOFTGPU_VRAM=plenty: expected a size"), "{text}");
}
