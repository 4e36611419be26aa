//! The compiled kernels, and what loads and launches them.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{CudaFunction, CudaModule, DeviceRepr, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use narrows_shard::Encoding;
use narrows_staging::device::{Device, DeviceError, Stream};

use crate::error::{Error, Result};

#[allow(unused_macros)] // in a build without nvcc
macro_rules! aligned {
    ($path:expr) => {{
        // The driver reads an image as the words that it consists of.
        #[repr(C, align(16))]
        struct Aligned<T: ?Sized>(T);
        static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &IMAGE.0
    }};
}
include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The argument of a kernel, passed by value.
///
/// # Safety
/// `repr(C)`, without padding, and the same layout as the struct of that name in the kernel's source.
pub(crate) unsafe trait Params: Copy {}

/// Makes any [`Params`] something that cudarc passes on.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Argument<P>(P);
// SAFETY: Transparent, and `Params` promises a layout that a kernel takes.
unsafe impl<P: Params> DeviceRepr for Argument<P> {}

/// Loads modules on one device.
pub(crate) struct Loader<'a> {
    device: &'a Device,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(device: &'a Device) -> Result<Self> {
        // The software driver calls itself one, and takes name tags; for a GPU kernels must have been built.
        if !cfg!(kernels_built) && !device.is_software() {
            return Err(Error::NotBuilt);
        }
        if device.driver_version() / 1000 < TOOLKIT / 1000 {
            return Err(Error::DriverTooOld { driver: device.driver_version(), toolkit: TOOLKIT });
        }
        Ok(Self { device })
    }

    /// The architecture whose code the driver takes for this device, 75 for compute capability 7.5: that of
    /// the same major version up to the device's minor, or else the newer or older of the two that are kept
    /// as PTX. What a kernel's source sees as `NARROWS_ARCH`.
    pub(crate) fn architecture(&self) -> u32 {
        let (major, minor) = self.device.compute_capability();
        let device = major * 10 + minor;
        let same = ARCHITECTURES.iter().filter(|&&arch| arch / 10 == major && arch <= device).max();
        let ptx = || {
            [ARCHITECTURES.last(), ARCHITECTURES.first()].into_iter().flatten().find(|&&arch| arch <= device)
        };
        same.or_else(ptx).copied().unwrap_or(device)
    }

    pub(crate) fn module(&self, name: &'static str, image: &'static [u8]) -> Result<Module> {
        let module = self.device.context().load_module(Ptx::from_binary(image.to_vec()));
        match module {
            Ok(module) => Ok(Module { module }),
            Err(error)
                if matches!(
                    error.0,
                    sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                        | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                ) =>
            {
                Err(Error::Architecture {
                    name: self.device.name().to_owned(),
                    capability: self.device.compute_capability(),
                    built: ARCHITECTURES,
                })
            }
            Err(error) => Err(driver_error(name, error)),
        }
    }
}

/// The kernels of one source.
pub(crate) struct Module {
    module: Arc<CudaModule>,
}

impl Module {
    pub(crate) fn kernel<P: Params>(&self, name: &'static str) -> Result<Kernel<P>> {
        let function = self.module.load_function(name).map_err(|error| driver_error(name, error))?;
        Ok(Kernel { name, function, params: PhantomData })
    }

    /// The kernels `PREFIX_f32`, `PREFIX_f16` and `PREFIX_bf16`.
    pub(crate) fn per_encoding<P: Params>(&self, prefix: &'static str) -> Result<PerEncoding<Kernel<P>>> {
        let load = |encoding| self.of(prefix, encoding);
        Ok(PerEncoding { f32: load(Encoding::F32)?, f16: load(Encoding::F16)?, bf16: load(Encoding::Bf16)? })
    }

    /// The kernels `PREFIX_q8` and `PREFIX_nf4`.
    pub(crate) fn per_quantised<P: Params>(&self, prefix: &'static str) -> Result<PerQuantised<Kernel<P>>> {
        Ok(PerQuantised { q8: self.of(prefix, Encoding::Q8)?, nf4: self.of(prefix, Encoding::Nf4)? })
    }

    /// The kernel `PREFIX_ENCODING`.
    pub(crate) fn of<P: Params>(&self, prefix: &'static str, encoding: Encoding) -> Result<Kernel<P>> {
        let name = format!("{prefix}_{}", encoding.name());
        let function = self.module.load_function(&name).map_err(|error| driver_error(prefix, error))?;
        Ok(Kernel { name: prefix, function, params: PhantomData })
    }
}

/// One of each for every plain encoding.
pub(crate) struct PerEncoding<T> {
    f32: T,
    f16: T,
    bf16: T,
}

impl<T> PerEncoding<T> {
    /// # Errors
    /// [`Error::Quantised`] for an encoding of blocks.
    pub(crate) const fn get(&self, encoding: Encoding) -> Result<&T> {
        match encoding {
            Encoding::F32 => Ok(&self.f32),
            Encoding::F16 => Ok(&self.f16),
            Encoding::Bf16 => Ok(&self.bf16),
            Encoding::Q8 | Encoding::Nf4 => Err(Error::Quantised { what: "an operand", encoding }),
        }
    }
}

/// One of each for every encoding of blocks.
pub(crate) struct PerQuantised<T> {
    pub(crate) q8: T,
    pub(crate) nf4: T,
}

impl<T> PerQuantised<T> {
    /// # Errors
    /// [`Error::NotQuantised`] for a plain encoding.
    pub(crate) const fn get(&self, encoding: Encoding) -> Result<&T> {
        match encoding {
            Encoding::Q8 => Ok(&self.q8),
            Encoding::Nf4 => Ok(&self.nf4),
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => Err(Error::NotQuantised { encoding }),
        }
    }
}

/// A loaded kernel that takes one `P`.
pub(crate) struct Kernel<P> {
    name: &'static str,
    function: CudaFunction,
    params: PhantomData<fn(P)>,
}

impl<P: Params> Kernel<P> {
    /// Allows the kernel as much dynamic shared memory as `bytes`; needed above 48 KiB. Once, when loading.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        self.function.set_attribute(attribute, bytes).map_err(|error| driver_error(self.name, error))
    }

    /// Queues the kernel.
    ///
    /// # Safety
    /// Whatever the kernel reads and writes through the addresses in `params`, with this grid, lies in device
    /// memory that is allocated until it has run.
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        grid: (u32, u32, u32),
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let config = LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes: shared };
        let argument = Argument(*params);
        let mut launch = stream.raw().launch_builder(&self.function);
        launch.arg(&argument);
        // SAFETY: The kernel takes one `P` (`Params`); the caller vouches for the memory.
        unsafe { launch.launch(config) }.map_err(|error| driver_error(self.name, error))?;
        Ok(())
    }
}

fn driver_error(kernel: &'static str, error: DriverError) -> Error {
    DeviceError::driver(kernel, error).into()
}
