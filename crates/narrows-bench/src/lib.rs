//! How fast the parts of a machine are that narrows waits for: disks, memory, links.
//!
//! Each bench moves bytes by the very code that the engine moves them with, and gives a [`Record`]: results with
//! the machine, the date and the command that makes them again, as one JSON document whatever was measured.
//! [`report`] draws records; [`Figures`] keeps the ones that a plan wants to know the next time.
//!
//! - [`io`] reads files: fio's words for its settings, and its figures on the same file.
//! - [`host`] reads and copies memory.
//! - [`kernels`] runs the operations of a model, on the CPU or on a device, beside the roof of either.
//! - [`pcie`] copies to a device and back, under the names that nvbandwidth gives its tests.
//! - [`doctor`] says what holds a machine back.
//!
//! Nothing here prints, reads the environment or ends the process. A bench asks a callback now and then whether to
//! go on, and leaves nothing behind whatever the answer.
#![forbid(unsafe_code)]

pub mod doctor;
mod error;
mod figures;
mod format;
pub mod host;
pub mod io;
pub mod kernels;
mod machine;
pub mod pcie;
mod random;
mod record;
pub mod report;

pub use error::{Error, Result};
pub use figures::{Figure, Figures};
pub use format::Format;
pub use machine::{Disk, Gpu, Link, Machine, transparent_huge_pages};
pub use narrows_bytes::Bytes;
pub use record::{
    DeviceResult, Entry, HostResult, IoResult, KernelResult, Latency, PcieResult, PeakResult, Record,
    RunResult, SCHEMA_VERSION, Samples,
};
