//! The software driver as cudarc sees it. Every test runs itself again in a process of its own.

mod api;
mod common;
mod faults;
mod kernels;
