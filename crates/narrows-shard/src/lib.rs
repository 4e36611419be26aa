//! Bytes at rest: Hugging Face checkpoints in, shards out, and the encodings of tensors.
//!
//! This crate maps tensor names to checked byte ranges of files, and packs them into shards. It knows no
//! CUDA, no threads and no transformer, and it trusts no byte that it reads.
#![forbid(unsafe_code)]

mod bytes;
mod encoding;

pub use bytes::Bytes;
pub use encoding::Encoding;
