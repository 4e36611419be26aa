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
//!
//! # An engine of its own
//!
//! Another engine needs this crate alone: what it takes of memory, slots and reads is [`staging`]. It lists its
//! tensors as [`Tile`]s, asks for a [plan](plan()), and either gives their places in files to a [`FileSource`] or
//! implements [`TileSource`] for whatever else they come from.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use std::collections::VecDeque;
//!
//! use narrows_stream::staging::{Arena, ArenaOptions, Budget, Filling, Free, Slot};
//! use narrows_stream::{
//!     Access, Bytes, Completed, Options, Request, SourceError, Stream, Tile, TileId, TileSource, plan,
//! };
//!
//! /// Tensors that are computed: number `n` is full of `n`.
//! struct Computed(VecDeque<Completed>);
//!
//! impl TileSource for Computed {
//!     fn capacity(&self, _: TileId) -> usize {
//!         4096
//!     }
//!     fn submit(&mut self, tile: TileId, slot: Slot<Filling>) -> Result<(), (SourceError, Slot<Free>)> {
//!         let (tag, submitted) = (slot.tag(), Instant::now());
//!         let filled = slot.fill_with(|bytes| {
//!             bytes.fill(tile.0 as u8);
//!             Ok::<_, SourceError>(0..4096)
//!         });
//!         self.0.push_back(Completed::now(filled, tag, Bytes(4096), submitted));
//!         Ok(())
//!     }
//!     fn wait(&mut self, _: Option<Duration>) -> Option<Completed> {
//!         self.0.pop_front()
//!     }
//!     fn in_flight(&self) -> usize {
//!         self.0.len()
//!     }
//! }
//!
//! # fn main() -> Result<(), narrows_stream::Error> {
//! let tiles = [Tile::new(Bytes(4096), Bytes(4096), Access::Walked); 100];
//! let budget = Budget::new(Bytes(64 << 10));
//! let plan = plan(&Request::new(&tiles, budget.cap()))?;
//! let arena = Arena::new(&budget, "weights", plan.arena, ArenaOptions::default())?;
//! let mut stream = Stream::start(&plan, &arena, Computed(VecDeque::new()), Options::default())?;
//! for _ in 0..3 {
//!     let mut pass = stream.pass();
//!     for n in 0..100 {
//!         assert_eq!(pass.next()?.bytes(), [n; 4096]);
//!     }
//! }
//! assert!(budget.peak() <= budget.cap());
//! # Ok(())
//! # }
//! ```
//!
//! `examples/tensors.rs` streams a file and shows what the statistics say. Most of the budget goes to slots where it is
//! small: with [`Slots::Auto`] about 64 MiB of them come before any tile stays.
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
/// Memory, slots and reads: what a caller and a source of its own need of it.
pub use narrows_staging as staging;
pub use pass::{Held, Pass};
pub use plan::{Bound, Need, Place, Plan, Request, Slots, Speed, plan};
pub use shared::Monitor;
pub use source::{Completed, SourceError, TileSource, Waker};
pub use stats::{DemandStats, StageStats, Stats};
pub use stream::{Describe, Options, Stream};
pub use tile::{Access, Group, Tile, TileId};
pub use trace::Trace;
pub use upload::Upload;
