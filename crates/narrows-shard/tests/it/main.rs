//! The crate from outside: checkpoints read, packed and verified.

mod common;
mod reading;
