//! Bytes in motion: what stays in memory, and how the rest streams past it in time.
//!
//! Whatever is too big for memory is cut into [tiles](Tile), which every *pass* walks in the same order. The
//! [plan](plan()) decides which of them stay in memory; a [`Stream`] reads the others past it, over and over, from
//! any [`TileSource`], with the disk kept busy across the ends of passes. Besides, a pass can demand
//! groups of tiles that not every pass needs; those used most stay in memory.
//!
//! This crate knows no transformer and no file format. A tile is a number of opaque bytes.
//!
//! ```text
//!            a thread of its own                                the caller's thread
//! source --> reads into free slots, in the order of the walk --> Pass::next: in order --> Held
//!                     ^                                                                    |
//!                     +------------------------- free slots ------------------------------+
//! ```
#![forbid(unsafe_code)]

mod clock;
mod demand;
mod error;
mod file_source;
mod frames;
mod pass;
mod plan;
mod reader;
mod residency;
mod shared;
mod source;
mod stats;
mod stream;
mod tile;
mod trace;
mod upload;

pub use error::Error;
pub use file_source::FileSource;
pub use narrows_bytes::Bytes;
pub use pass::{Held, Pass};
pub use plan::{Bound, Need, Place, Plan, Request, Slots, Speed, plan};
pub use shared::Monitor;
pub use source::{Completed, SourceError, TileSource, Waker};
pub use stats::{DemandStats, StageStats, Stats};
pub use stream::{Describe, Options, Stream};
pub use tile::{Access, Group, Tile, TileId};
pub use trace::Trace;
pub use upload::Upload;
