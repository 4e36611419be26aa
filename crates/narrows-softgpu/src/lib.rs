//! A software stand-in for NVIDIA's driver library, for tests.

#[cfg(target_os = "linux")]
mod driver;
mod harness;

pub use harness::{Finished, SoftGpu, Unavailable, library, skip_or_fail};
