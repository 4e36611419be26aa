//! Bytes in motion: what stays in memory, and how the rest streams past it in time.
//!
//! The weights of a model are cut into [tiles](Tile), which every *pass* walks in the same order. The
//! [plan](plan()) decides which of them stay in memory.
//!
//! This crate knows no transformer and no file format. A tile is a number of opaque bytes.
#![forbid(unsafe_code)]

mod error;
mod plan;
mod residency;
mod tile;

pub use error::Error;
pub use narrows_bytes::Bytes;
pub use plan::{Bound, Need, Place, Plan, Request, Slots, Speed, plan};
pub use tile::{Tile, TileId};
