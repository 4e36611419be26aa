//! The operations of a decoder, computed on the CPU.
//!
//! Weights are read in the form in which they are stored (bf16, f16, f32, q8, nf4), at any address, and never
//! copied into another form as a whole; activations are `f32`. Shapes are written `[rows, cols]`, row
//! after row. A [`Cpu`] holds the threads and the instruction set; the operations are its methods.
//!
//! What a caller may rely on:
//!
//! - **A row's result is the same to the bit, alone or in a batch**, on any number of threads, however a
//!   matrix is cut into tiles of rows or a sequence into chunks. The order of every sum depends on the
//!   shape of that one row and on the instruction set, on nothing else.
//! - Wrong shapes are an [`Error`], never a panic and never an access out of bounds.
//! - NaN and infinity go through as IEEE arithmetic carries them.
//!
//! What this crate does not do: no operation allocates, touches a file or a clock, or keeps anything from one
//! call to the next.
//!
//! One kernel body serves every instruction set (the trait `Simd` in `simd/`) and every encoding (the
//! trait `Stored` in `stored.rs`): a new one of either is one `impl` and one arm of one `match`.

#[cfg(target_endian = "big")]
compile_error!("weights are stored little-endian and loaded as they lie");

mod attention;
mod cpu;
mod elementwise;
mod error;
mod linear;
mod map;
mod matrix;
mod pool;
pub mod reference;
mod roofline;
mod rows;
mod simd;
mod softmax;
mod stored;

pub use attention::{AttentionRow, KvView, Scores};
pub use cpu::Cpu;
pub use error::Error;
pub use map::Activation;
pub use matrix::{Matrix, RowsMut};
pub use simd::Isa;
