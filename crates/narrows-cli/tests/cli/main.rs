//! The program as a user meets it: what it prints where, exit codes, bad input, interrupted packs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bad_input;
mod bench;
mod bench_run;
mod device;
mod files;
mod harness;
mod help;
mod inspect;
mod interrupts;
mod memory;
mod models;
mod numbers;
mod output;
mod pack;
mod plan;
mod readme;
mod run;
