//! The software driver as cudarc sees it. Every test runs itself again in a process of its own.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may")]

mod api;
mod common;
mod faults;
mod kernels;
mod pipeline;
