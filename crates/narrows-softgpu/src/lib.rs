//! A software stand-in for NVIDIA's driver library: an instrument that tests GPU code on machines
//! without a GPU.
//!
//! It is built as `libnarrows_softgpu.so` and implements the calls of the CUDA driver API that this
//! workspace makes through cudarc. Only [`SoftGpu`] and `tools/softgpu` link it under the name
//! `libcuda.so`, in a private folder that one child process searches, so no program finds it by
//! accident. Every line that it prints begins with `narrows-softgpu:`, and its device says what it is
//! by name.
//!
//! # What runs
//!
//! The kernels are the very same `kernels/*.cu` that nvcc compiles. The build script compiles each for
//! the host, under `simt/simt.h` and with CUDA's own headers for half and bfloat16, once for
//! architecture 7.5 and once for 8.0. The threads of a block are fibers of one OS thread; blocks run one
//! after another. Barriers, shuffles, votes, `mma.sync`, `ldmatrix`, `cp.async` and atomics do what the
//! PTX manual says, with sums of matrix products in float32 in the order of the columns.
//!
//! Streams are queues. What is enqueued runs inside later driver calls, in an order that a seed chooses
//! among all that streams and events allow: with seed 0 nothing runs before something waits for it, with
//! seed 1 everything runs at once, and other seeds lie between and interleave streams. The seed also
//! chooses the order of blocks and of threads between barriers.
//!
//! # What it catches
//!
//! A fault is one line on stderr, an entry of the report, and exit code 70.
//!
//! - Kernels that touch device memory outside an allocation, at an address that is no multiple of the
//!   access's size, or that nothing has written; copies of such memory to the host.
//! - Kernels that touch host memory that is not page-locked, or shared memory beyond what they have;
//!   launches with more shared memory than a block has on this compute capability, with what the kernel
//!   touched of its static memory.
//! - Shared memory that no thread of the block has written, and races in it: two threads, one writing,
//!   with no `__syncthreads` (within a warp, no `__syncwarp`) between.
//! - Barriers that not all threads of a block reach, or at which they wait in different lines; shuffles
//!   whose lanes never come; `cp.async` whose bytes are used before they are waited for.
//! - *Hazards*: two operations that touch the same bytes of device or page-locked memory, one of them
//!   writing, where no stream, event or wait of the host orders them. This is decided by vector clocks,
//!   not by whether anything went wrong, so it does not depend on the seed. Footprints of kernels are
//!   what they touched in this run, in units of 16 bytes.
//! - A host that writes page-locked memory which a copy has yet to read (its bytes are compared), that
//!   frees or unregisters memory in use, or that reads a result too early (it finds `0x7f7f7f7f`). These
//!   need a device that is late: run seed 0.
//! - Failed `assert` and `__trap` in kernels.
//!
//! Errors of the driver come as the real one gives them: out of memory at exactly the chosen capacity
//! (512 bytes at a time, plus what the context takes), refused launches, invalid handles, and on request a
//! launch or a copy that fails and leaves a sticky error.
//!
//! # Simulated time
//!
//! Each direction of the link, and computing, is an engine. A copy takes its bytes over the link's
//! bandwidth; a kernel takes 3 us and the unique bytes it reads and writes over the memory's. An operation starts
//! when its stream, the events it waits for, the host's last wait and its engine allow. The times are the
//! same under every seed; `cuEventElapsedTime` and the report give them.
//!
//! # What it cannot tell
//!
//! - How fast anything is. Simulated seconds know nothing of latency, occupancy, caches, bank conflicts,
//!   coalescing or arithmetic: they are for questions of overlap and of bytes.
//! - What the compiler removed or kept in registers: an access that is not made is not checked. Static
//!   shared memory of kernels in one `.cu` is one range, so running from one variable into another is
//!   not seen.
//! - A host that overwrites a buffer with the same bytes, or a host thread that races with another: all
//!   of the host counts as one thread, and only its driver calls are seen.
//! - Races within one kernel through global memory, and missing `__threadfence`; only the order of
//!   blocks and threads, which the seed chooses, may show them.
//! - Races on parts of one word of shared memory, once several threads wrote other parts of it.
//! - Inline PTX, cubins, and whatever nvcc makes of a source that the host's compiler makes otherwise;
//!   approximate functions (`__expf`, `rsqrtf`) are exact here, and sums of matrix units round otherwise.
//! - Memory pools, graphs, textures, cooperative launches, managed memory, peers: not implemented.
//!
//! # Configuration
//!
//! [`SoftGpu`] and `tools/softgpu --help` set environment variables that begin with `NARROWS_SOFTGPU_`:
//! `VRAM` (4G), `LINK` and `MEM` (25 and 1000 GB/s), `SEED` (0), `ARCH` (9.0), `CONTEXT` (512K), `DEVICES`
//! (1), `DRIVER` (13000), `REPORT` (a path); for tests `FAIL_LAUNCH=N`, `FAIL_COPY=N`, `FAIL_RECORD=N`,
//! `FAIL_PINNED=SIZE`, `STEAL=SIZE@N`. A value that says nothing ends the process with exit code 64.
//!
//! # Adding to it
//!
//! A CUDA function that a kernel wants goes into `simt/simt.h`, or into `simt/collectives.h` if the lanes
//! of a warp do it together; a driver call into `src/driver/api_*.rs`, where an entry point says what is
//! wrong with its arguments and hands the rest to `queue.rs`. `tests/driver/faults.rs` holds a planted
//! fault of each kind with its clean twin.
//!
//! It needs a C++17 compiler and CUDA's headers (`tools/get-nvcc`, `CUDA_HOME`, or an nvcc on the
//! `PATH`). Without them it is built without kernels, and tests that call [`skip_or_fail`] say
//! `SKIPPED` and why; `NARROWS_REQUIRE_SOFTGPU=1` makes that a failure.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod driver;
mod harness;

pub use harness::{Finished, SoftGpu, Unavailable, library, skip_or_fail};
