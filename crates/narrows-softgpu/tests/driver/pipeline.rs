//! A streaming pipeline as this workspace builds it, right and with one edge left out.

use cudarc::driver::sys;
use narrows_softgpu::SoftGpu;

use crate::common::{Gpu, address, launch};
use crate::faults::{faulty, planted};
use crate::params;

params!(Axpy { x: u64, y: u64, n: u32, a: f32 });

const TILE: usize = 1024;
const SLOTS: usize = 3;
const TILES: usize = 20;

/// Tiles pass through page-locked slots and device slots; each is added to a sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// The kernel does not wait for its copy.
    CopyDone,
    /// The copy does not wait for the kernel that uses the slot.
    SlotFree,
}

fn run(missing: Missing) {
    let missing = if faulty() { missing } else { Missing::Nothing };
    let (gpu, compute) = Gpu::with_stream();
    let copy = gpu.context.new_stream().unwrap();
    let axpy = gpu.function("softgpu_axpy");
    let sum = compute.alloc_zeros::<f32>(TILE).unwrap();
    // SAFETY: every slot is filled before it is read.
    let device: Vec<_> = (0..SLOTS).map(|_| unsafe { compute.alloc::<f32>(TILE) }.unwrap()).collect();
    // SAFETY: as above.
    let mut host: Vec<_> =
        (0..SLOTS).map(|_| unsafe { gpu.context.alloc_pinned::<f32>(TILE) }.unwrap()).collect();
    let event = || gpu.context.new_event(None).unwrap();
    let copied: Vec<_> = (0..SLOTS).map(|_| event()).collect();
    let used: Vec<_> = (0..SLOTS).map(|_| event()).collect();
    for tile in 0..TILES {
        let slot = tile % SLOTS;
        // The host fills a slot once its last copy is through.
        copied[slot].synchronize().unwrap();
        let at = host[slot].as_mut_ptr().unwrap();
        for i in 0..TILE {
            // SAFETY: inside the slot, which nothing reads any more.
            unsafe { at.add(i).write((tile * i) as f32) };
        }
        if missing != Missing::SlotFree {
            copy.wait(&used[slot]).unwrap();
        }
        let to = address(&device[slot], &compute);
        // SAFETY: both slots hold a tile.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, at.cast(), TILE * 4, copy.cu_stream()) }.result().unwrap();
        copied[slot].record(&copy).unwrap();
        if missing != Missing::CopyDone {
            compute.wait(&copied[slot]).unwrap();
        }
        let params = Axpy { x: to, y: address(&sum, &compute), n: TILE as u32, a: 1.0 };
        launch(&compute, &axpy, 4, 256, 0, &params);
        used[slot].record(&compute).unwrap();
    }
    let sum = compute.clone_dtoh(&sum).unwrap();
    gpu.context.synchronize().unwrap();
    let all = (TILES * (TILES - 1) / 2) as f32;
    assert!(sum.iter().enumerate().all(|(i, x)| *x == all * i as f32));
}

#[test]
fn a_kernel_that_does_not_wait_for_its_tile() {
    if SoftGpu::inside() {
        return run(Missing::CopyDone);
    }
    // With a late device the kernel reads what nobody wrote, else it is not ordered after the copy.
    planted("pipeline::a_kernel_that_does_not_wait_for_its_tile", &["kernel `softgpu_axpy`"]);
}

#[test]
fn a_tile_that_does_not_wait_for_its_slot() {
    if SoftGpu::inside() {
        return run(Missing::SlotFree);
    }
    let words = ["copy of 4096 bytes host to device", "kernel `softgpu_axpy`", "no event or synchronisation"];
    planted("pipeline::a_tile_that_does_not_wait_for_its_slot", &words);
}
