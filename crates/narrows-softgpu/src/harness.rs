//! How tests put the software driver in front of a process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use thiserror::Error;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
use crate::driver::{LACKING, PREFIX};
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
const LACKING: Option<&str> = Some("it runs on Linux on x86-64 and ARM64 only");
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
const PREFIX: &str = "NARROWS_SOFTGPU_";

/// Set in a process that [`SoftGpu::rerun`] started.
const INSIDE: &str = "NARROWS_SOFTGPU_INSIDE";
/// Set to 1 to turn a skipped test into a failed one.
const REQUIRE: &str = "NARROWS_REQUIRE_SOFTGPU";

/// Why there is no software driver here.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// It was built without what its kernels need.
    #[error("the software driver was built without kernels: {0}")]
    NoKernels(&'static str),
    /// The library is not where cargo puts it.
    #[error("libnarrows_softgpu.so was found neither in {} nor above it", .0.display())]
    NotBuilt(PathBuf),
    /// The test to run again has another name.
    #[error("this executable has no test named {0}")]
    NoSuchTest(String),
    /// A file or folder could not be made or read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Finds the driver as cargo built it: beside the running executable, or above it.
pub fn library() -> Result<PathBuf, Unavailable> {
    if let Some(why) = LACKING {
        return Err(Unavailable::NoKernels(why));
    }
    let executable = std::env::current_exe()?;
    let folder = executable.parent().unwrap_or(Path::new("."));
    // deps/ first: cargo refreshes the copy above it only when it builds this package by name.
    [folder.to_path_buf(), folder.join("deps"), folder.join("../deps"), folder.join("..")]
        .into_iter()
        .map(|folder| folder.join("libnarrows_softgpu.so"))
        .find(|path| path.is_file())
        .ok_or_else(|| Unavailable::NotBuilt(folder.to_path_buf()))
}

/// Says that a test is skipped and why, or fails it where `NARROWS_REQUIRE_SOFTGPU=1`.
///
/// Returns true where the driver is there and the test should go on.
///
/// # Panics
/// Where the driver is required and missing.
pub fn skip_or_fail() -> bool {
    match library() {
        Ok(_) => true,
        Err(why) => {
            let required = std::env::var(REQUIRE).is_ok_and(|value| value == "1");
            assert!(!required, "{REQUIRE}=1, but {why}");
            // Tests are who reads this.
            #[allow(clippy::print_stdout, reason = "a skipped test says so where its output goes")]
            {
                println!("SKIPPED: {why}");
            }
            false
        }
    }
}

/// A configuration of the driver, and the processes that see it.
///
/// ```no_run
/// use std::process::Command;
/// use narrows_softgpu::SoftGpu;
///
/// let gpu = SoftGpu::new()?.vram(256 << 20).seed(3);
/// let mut command = Command::new("my-program");
/// let finished = gpu.run(&mut command)?;
/// assert!(finished.hazards().is_empty(), "{}", finished.text());
/// # Ok::<(), narrows_softgpu::Unavailable>(())
/// ```
#[derive(Debug)]
pub struct SoftGpu {
    folder: tempfile::TempDir,
    report: Option<PathBuf>,
    settings: Vec<(&'static str, OsString)>,
}

impl SoftGpu {
    /// The default device, in a private folder that goes away with this value.
    pub fn new() -> Result<Self, Unavailable> {
        let library = library()?;
        let folder = tempfile::Builder::new().prefix("narrows-softgpu-").tempdir()?;
        for name in ["libcuda.so", "libcuda.so.1"] {
            #[cfg(unix)]
            std::os::unix::fs::symlink(&library, folder.path().join(name))?;
            #[cfg(not(unix))]
            std::fs::copy(&library, folder.path().join(name))?;
        }
        Ok(Self { folder, report: None, settings: Vec::new() })
    }

    fn set(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    /// Device memory in bytes.
    pub fn vram(self, bytes: u64) -> Self {
        self.set("VRAM", bytes.to_string())
    }

    /// Bandwidth of the link in GB/s (10^9 bytes), each direction.
    pub fn link(self, gigabytes: f64) -> Self {
        self.set("LINK", gigabytes.to_string())
    }

    /// Bandwidth of the device memory in GB/s (10^9 bytes).
    pub fn mem(self, gigabytes: f64) -> Self {
        self.set("MEM", gigabytes.to_string())
    }

    /// What chooses the order of everything that may happen in any order. 0 is the laziest device
    /// (nothing runs before it is waited for), 1 the most eager.
    pub fn seed(self, seed: u64) -> Self {
        self.set("SEED", seed.to_string())
    }

    /// Compute capability.
    pub fn arch(self, major: u32, minor: u32) -> Self {
        self.set("ARCH", format!("{major}.{minor}"))
    }

    /// Device memory in bytes that the context itself takes.
    pub fn context(self, bytes: u64) -> Self {
        self.set("CONTEXT", bytes.to_string())
    }

    /// Number of devices, each with its own memory.
    pub fn devices(self, count: u32) -> Self {
        self.set("DEVICES", count.to_string())
    }

    /// Version that the driver reports, such as 13000.
    pub fn driver(self, version: u32) -> Self {
        self.set("DRIVER", version.to_string())
    }

    /// The given launch (1 is the first) fails with a sticky CUDA_ERROR_ILLEGAL_ADDRESS.
    pub fn fail_launch(self, number: u64) -> Self {
        self.set("FAIL_LAUNCH", number.to_string())
    }

    /// The given copy (1 is the first) fails with a sticky CUDA_ERROR_LAUNCH_FAILED.
    pub fn fail_copy(self, number: u64) -> Self {
        self.set("FAIL_COPY", number.to_string())
    }

    /// Recording an event fails once, the given time (1 is the first), with CUDA_ERROR_OUT_OF_MEMORY.
    pub fn fail_record(self, number: u64) -> Self {
        self.set("FAIL_RECORD", number.to_string())
    }

    /// Page-locking more than so many bytes at once fails.
    pub fn fail_pinned(self, above: u64) -> Self {
        self.set("FAIL_PINNED", above.to_string())
    }

    /// After the given allocation (1 is the first) somebody else takes device memory.
    pub fn steal(self, bytes: u64, after: u64) -> Self {
        self.set("STEAL", format!("{bytes}@{after}"))
    }

    /// Where the report goes; without it, into the private folder.
    pub fn report(mut self, path: impl Into<PathBuf>) -> Self {
        self.report = Some(path.into());
        self
    }

    fn report_path(&self) -> PathBuf {
        self.report.clone().unwrap_or_else(|| self.folder.path().join("report.json"))
    }

    /// Makes a command see this driver in place of NVIDIA's.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let mut search = OsString::from(self.folder.path());
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
            search.push(":");
            search.push(rest);
        }
        command.env("LD_LIBRARY_PATH", search).env(format!("{PREFIX}REPORT"), self.report_path());
        for (name, value) in &self.settings {
            command.env(format!("{PREFIX}{name}"), value);
        }
        command
    }

    /// Runs a command under this driver.
    pub fn run(&self, command: &mut Command) -> Result<Finished, Unavailable> {
        let path = self.report_path();
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let output = self.apply(command).output()?;
        let report = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Finished { output, report })
    }

    /// Runs a test of this executable again, in a process of its own under this driver.
    ///
    /// `test` is its full name, as `module::name`. In the process that this starts, [`inside`] is
    /// true, and the test does there what it wants to do under the driver.
    ///
    /// [`inside`]: SoftGpu::inside
    pub fn rerun(&self, test: &str) -> Result<Finished, Unavailable> {
        self.rerun_with(test, &[])
    }

    /// As [`rerun`](SoftGpu::rerun), with more environment variables for the test.
    pub fn rerun_with(&self, test: &str, variables: &[(&str, &str)]) -> Result<Finished, Unavailable> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", test, "--nocapture", "--include-ignored", "--test-threads=1"]);
        command.env(INSIDE, "1").envs(variables.iter().copied());
        let finished = self.run(&mut command)?;
        // The test harness is content to run nothing.
        if finished.text().contains("running 0 tests") {
            return Err(Unavailable::NoSuchTest(test.to_owned()));
        }
        Ok(finished)
    }

    /// Whether this process was started by [`rerun`](SoftGpu::rerun).
    pub fn inside() -> bool {
        std::env::var_os(INSIDE).is_some()
    }
}

/// A process that ran under the driver.
#[derive(Debug)]
pub struct Finished {
    /// What it left.
    pub output: Output,
    /// The driver's report; `None` where the process never initialised the driver.
    pub report: Option<Value>,
}

impl Finished {
    /// Exit code; 70 where the driver found a fault.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Everything it printed, stderr last.
    pub fn text(&self) -> String {
        let [out, err] =
            [&self.output.stdout, &self.output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{out}{err}")
    }

    /// The faults and hazards that the driver found.
    pub fn hazards(&self) -> Vec<String> {
        let list = self.report.as_ref().and_then(|report| report["hazards"].as_array());
        list.into_iter().flatten().filter_map(|value| Some(value.as_str()?.to_owned())).collect()
    }

    /// A number of the report by its JSON pointer, such as `/h2d/bytes`.
    pub fn number(&self, pointer: &str) -> Option<f64> {
        self.report.as_ref()?.pointer(pointer)?.as_f64()
    }

    /// Asserts that the process ended well and the driver found nothing.
    ///
    /// # Panics
    /// Otherwise, with everything it printed.
    pub fn assert_clean(&self) {
        let clean = self.output.status.success() && self.hazards().is_empty();
        assert!(clean, "exit {:?}, hazards {:?}\n{}", self.code(), self.hazards(), self.text());
    }
}
