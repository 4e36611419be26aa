//! Bytes held: memory under a hard budget, slots with typed states, and reads into them at the speed of the
//! disk.
//!
//! This crate owns memory and moves bytes. It knows no file format, no tensor and no transformer, has no
//! global state, and prints nothing: what a user should hear of is returned as a value.
//!
//! A [`Budget`] is a hard cap. An [`Arena`] is one mapping reserved against it, carved once into
//! [`Region`]s. A [`Slot`] is a region that holds one tile, and goes round from [`Free`] to [`Filling`] to
//! [`Ready`] to [`InUse`] and back; the states are types, so that bytes cannot be looked at while they arrive.
//! A [`Reader`] fills slots from files: io_uring and direct I/O where the system has them, threads where not.
//!
//! ```
//! use narrows_staging::{Arena, ArenaOptions, Budget, Bytes, Slot};
//!
//! # fn main() -> Result<(), narrows_staging::Error> {
//! let budget = Budget::new(Bytes::mib(16));
//! let arena = Arena::new(&budget, "staging", Bytes::mib(8), ArenaOptions::default())?;
//! let slot = Slot::new(arena.carve(1 << 20)?);
//!
//! let filled = slot.fill(7).fill_with(|bytes| {
//!     bytes[..4].copy_from_slice(b"tile");
//!     Ok::<_, ()>(0..4)
//! });
//! let used = filled.map_err(|_| ()).unwrap().take();
//! assert_eq!((used.tag(), used.bytes()), (7, &b"tile"[..]));
//! let _free = used.release();
//! assert_eq!(budget.used(), Bytes::mib(8));
//! # Ok(())
//! # }
//! ```

mod arena;
mod budget;
pub mod device;
mod error;
#[cfg_attr(target_os = "linux", path = "mapping_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "mapping_portable.rs")]
mod mapping;
mod reader;
mod slot;
pub mod system;

pub use arena::{Arena, ArenaOptions, Lock, Region, Warning};
pub use budget::{Budget, Reservation};
pub use error::Error;
pub use narrows_bytes::Bytes;
pub use reader::{Completion, IoMode, Method, Read, Reader, ReaderOptions, Waker};
pub use slot::{Filling, Free, InUse, Memory, Ready, Slot};

/// What regions are aligned to and ranges of files are rounded out to: the page, and the largest logical
/// block of the disks in use, so that direct I/O takes both.
pub const ALIGNMENT: usize = 4096;
