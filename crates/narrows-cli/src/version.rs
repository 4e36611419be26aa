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
            let architectures: Vec<_> =
                Device::architectures().iter().map(|arch| format!("{}.{}", arch / 10, arch % 10)).collect();
            let (major, minor) = (toolkit / 1000, toolkit % 1000 / 10);
            format!("CUDA toolkit {major}.{minor}, compute capability {}", architectures.join(", "))
        }
        None => "none for GPUs (built without nvcc)".to_owned(),
    };
    let sets: Vec<_> = Isa::available().map(Isa::name).collect();
    format!("{SHORT}{commit}\nkernels: {kernels}\ninstruction sets here: {}", sets.join(", "))
}
