//! The crate from outside: checkpoints read, packed and verified.

#![allow(clippy::unwrap_used)]

mod common;
mod encoding;
#[cfg(unix)]
mod packing;
mod reading;
