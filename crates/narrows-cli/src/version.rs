//! What `--version` says.

use narrows::{Device, Isa};

/// The version alone.
pub(crate) const SHORT: &str = env!("CARGO_PKG_VERSION");

/// With the commit, the kernels and the instruction sets.
pub(crate) fn long() -> String {
    let commit = match env!("NARROWS_COMMIT") {
        "" => String::new(),
        commit => format!(" (commit {commit})"),
    };
    let kernels = match Device::toolkit() {
        Some(toolkit) => {
            format!("CUDA toolkit {}, compute capability {}", cuda(toolkit), architectures().join(", "))
        }
        None => "none for GPUs (built without nvcc)".to_owned(),
    };
    let sets: Vec<_> = Isa::available().map(Isa::name).collect();
    format!("{SHORT}{commit}\nkernels: {kernels}\ninstruction sets here: {}", sets.join(", "))
}

/// A version of CUDA as its driver and toolkit number it: 13000 is 13.0.
pub(crate) fn cuda(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// The compute capabilities that the kernels were compiled for.
pub(crate) fn architectures() -> Vec<String> {
    Device::architectures().iter().map(|arch| format!("{}.{}", arch / 10, arch % 10)).collect()
}
