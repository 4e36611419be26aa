//! Bytes at rest: Hugging Face checkpoints in, shards out, and the encodings of tensors.
//!
//! This crate maps tensor names to checked byte ranges of files, and packs them into shards. It knows no
//! CUDA and no transformer, it trusts no byte that it reads, and only quantising and comparing start threads.
//!
//! ```no_run
//! # fn main() -> Result<(), narrows_shard::Error> {
//! let weights = narrows_shard::WeightFiles::open("models/llama".as_ref())?;
//! for (name, tensor) in weights.tensors() {
//!     println!("{name}: {} {:?}, {}", tensor.dtype, tensor.shape, tensor.bytes());
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod blocks;
mod checkpoint;
mod checksum;
mod deviation;
mod encoding;
mod error;
mod files;
mod header;
mod manifest;
mod pack;
mod parallel;
mod positional;
mod sidecar;
mod small;
mod unique;
mod verify;

pub use checkpoint::parse_index;
pub use checksum::Checksum;
pub use deviation::{Candidate, Deviation, deviation};
pub use encoding::Encoding;
pub use error::Error;
pub use files::{Reader, Tensor, WeightFile, WeightFiles};
pub use header::{FILLER_PREFIX, Header, parse_header};
pub use manifest::{MANIFEST, Manifest, PackedFile, Source, SourceFile};
pub use narrows_bytes::Bytes;
pub use pack::{
    Cancel, Layout, PackOptions, PackReport, Progress, ShardLayout, Step, available_space, open_source, pack,
    pack_until,
};
pub use safetensors::Dtype;
pub use sidecar::read_sidecar;
pub use small::read_small_file;
pub use verify::{VerifyReport, verify};
