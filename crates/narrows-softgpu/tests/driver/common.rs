//! What the tests share.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

/// An image that the software driver accepts.
pub(crate) fn image() -> Ptx {
    Ptx::from_binary(b"narrows-softgpu-image\0".to_vec())
}

/// A context without event tracking, and the functions of this crate's test kernels.
pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) module: Arc<cudarc::driver::CudaModule>,
}

impl Gpu {
    pub(crate) fn new() -> Self {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: the tests order what they enqueue themselves, or mean not to.
        unsafe { context.disable_event_tracking() };
        let module = context.load_module(image()).unwrap();
        Self { context, module }
    }

    pub(crate) fn with_stream() -> (Self, Stream) {
        let gpu = Self::new();
        let stream = gpu.context.new_stream().unwrap();
        (gpu, stream)
    }

    pub(crate) fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }
}

/// A stream as cudarc shares it.
pub(crate) type Stream = Arc<CudaStream>;

/// Launches a kernel with one struct of parameters.
pub(crate) fn launch<P: DeviceRepr>(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    grid: u32,
    block: u32,
    shared: u32,
    params: &P,
) {
    let config = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared };
    // SAFETY: the test's kernel takes exactly this struct.
    unsafe { stream.launch_builder(function).arg(params).launch(config) }.unwrap();
}

/// Declares the Rust twin of a kernel's parameters.
#[macro_export]
macro_rules! params {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
        // SAFETY: repr(C), the fields of the kernel's struct in its order.
        unsafe impl cudarc::driver::DeviceRepr for $name {}
    };
}

/// The address of device memory.
pub(crate) fn address<T>(slice: &cudarc::driver::CudaSlice<T>, stream: &CudaStream) -> sys::CUdeviceptr {
    use cudarc::driver::DevicePtr;
    slice.device_ptr(stream).0
}
