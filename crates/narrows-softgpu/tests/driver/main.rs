//! The software driver as cudarc sees it. Every test runs itself again in a process of its own.

mod common;
mod kernels;
