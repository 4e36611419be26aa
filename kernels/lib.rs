//! The operations of a language model on a CUDA device, in kernels written by hand.
//!
//! One operation is one `.cu` with its launcher, the `.rs` of the same name, beside it. Operations only queue
//! work on the stream that they are given: they never allocate, never wait, and compute on the ranges of device
//! memory that they are handed. They check the lengths of those ranges; who orders the streams that use them is
//! the caller.
//!
//! Activations are f32, except where they go into a matrix product: those are in the encoding of the matrix, so
//! that tensor cores take both as they are, or in bf16 where the matrix is quantised.

mod activate;
mod add;
mod argmax;
mod attention;
mod dequantise;
mod embed;
mod error;
mod gemm;
mod image;
mod kv;
mod linear;
mod map;
mod matvec;
mod piece_norm;
pub mod reference;
mod rms_norm;
mod roofline;
mod rope;
mod rows;
mod top_k;

use narrows_shard::Encoding;
use narrows_staging::device::{Device, DeviceSlice};

pub use activate::Activation;
pub use attention::{AttentionShape, Segment};
pub use error::{Error, Result};
pub use kv::{KvLayout, KvRow};
pub use linear::{Matrix, RowsMut};
pub use piece_norm::PieceNormShape;

/// All kernels, loaded on one device.
pub struct Kernels {
    device: Device,
    add: add::Add,
    argmax: argmax::Argmax,
    attention: attention::Attention,
    dequantise: dequantise::Dequantise,
    embed: embed::Embed,
    gemm: gemm::Gemm,
    kv: kv::Kv,
    map: map::Map,
    matvec: matvec::Matvec,
    piece_norm: piece_norm::PieceNorm,
    rms_norm: rms_norm::RmsNorm,
    roofline: roofline::Roofline,
    rope: rope::Rope,
    rows: rows::Rows,
    activate: activate::Activate,
    top_k: top_k::TopK,
}

impl Kernels {
    /// The architectures that kernels were compiled for, 75 for compute capability 7.5: none without nvcc.
    #[must_use]
    pub fn architectures() -> &'static [u32] {
        image::ARCHITECTURES
    }

    /// The toolkit that they were compiled with, 13000 for CUDA 13.0; `None` without nvcc.
    #[must_use]
    pub fn toolkit() -> Option<u32> {
        (image::TOOLKIT > 0).then_some(image::TOOLKIT)
    }

    /// Loads every kernel.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::DriverTooOld`], [`Error::Architecture`], or what the driver says.
    pub fn load(device: &Device) -> Result<Self> {
        let loader = image::Loader::new(device)?;
        Ok(Self {
            device: device.clone(),
            add: add::Add::load(&loader)?,
            argmax: argmax::Argmax::load(&loader)?,
            attention: attention::Attention::load(&loader)?,
            dequantise: dequantise::Dequantise::load(&loader)?,
            embed: embed::Embed::load(&loader)?,
            gemm: gemm::Gemm::load(&loader)?,
            kv: kv::Kv::load(&loader)?,
            map: map::Map::load(&loader)?,
            matvec: matvec::Matvec::load(&loader)?,
            piece_norm: piece_norm::PieceNorm::load(&loader)?,
            rms_norm: rms_norm::RmsNorm::load(&loader)?,
            roofline: roofline::Roofline::load(&loader)?,
            rope: rope::Rope::load(&loader)?,
            rows: rows::Rows::load(&loader)?,
            activate: activate::Activate::load(&loader)?,
            top_k: top_k::TopK::load(&loader)?,
        })
    }

    /// The device that they are on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Blocks that go over `len` elements in strides: enough to fill the device, no more.
    fn blocks(&self, len: usize, threads: u32) -> u32 {
        const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
        let needed = u32::try_from(len.div_ceil(threads as usize)).unwrap_or(u32::MAX);
        needed.min(self.device.multiprocessors().max(1) * BLOCKS_PER_MULTIPROCESSOR)
    }
}

/// Blocks that go over `len` columns of a row in strides, a row each of the grid's other dimension.
fn columns(len: usize, threads: u32) -> u32 {
    const MOST: usize = 1 << 15;
    len.div_ceil(threads as usize).min(MOST) as u32
}

/// How many elements of `encoding` a range holds.
fn elements(what: &'static str, range: &DeviceSlice, encoding: Encoding) -> Result<usize> {
    if encoding.block().is_some() {
        return Err(Error::Quantised { what, encoding });
    }
    let unit = encoding.row_bytes(1).unwrap_or(1);
    error::check_rows(what, range.len(), unit)
}
