use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, columns, elements};

/// What one row of a step knows of the KV cache of its sequence; kernels read an array of these from device
/// memory.
///
/// The cache is, for each layer, keys `[kv_heads, capacity, head_dim]` and then values of the same shape, as
/// [`KvLayout`] says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct KvRow {
    /// The device's address of the cache, a multiple of 16.
    pub base: u64,
    /// Positions that the cache has room for.
    pub capacity: u32,
    /// The position of the row in its sequence.
    pub position: u32,
}

/// What the KV caches of all rows of a step have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// How keys and values are stored.
    pub encoding: Encoding,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Bytes of one layer of a cache with room for `capacity` positions, keys and values; `None` on overflow.
    ///
    /// Layer `l` starts at `l` times this.
    #[must_use]
    pub fn layer_bytes(&self, capacity: usize) -> Option<usize> {
        let row = self.encoding.row_bytes(self.head_dim)?;
        row.checked_mul(self.kv_heads)?.checked_mul(capacity)?.checked_mul(2)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct KvWriteParams {
    k: u64,
    v: u64,
    rows: u64,
    kv_heads: u32,
    head_dim: u32,
    layer: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in kv.cu.
unsafe impl Params for KvWriteParams {}

pub(crate) struct Kv(PerEncoding<Kernel<KvWriteParams>>);

impl Kv {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        Ok(Self(loader.module("kv", image::KV)?.per_encoding("kv_write")?))
    }
}

impl Kernels {
    /// Writes `k` and `v`, f32 `[n, kv_heads * head_dim]`, into the caches of `rows`, `[KvRow; n]`, at their
    /// positions in `layer`.
    ///
    /// What `rows` holds is on the device, where the host cannot check it: each base must be that of a cache
    /// with more than `layer` layers of `layout`, which lives until the stream has come by here. A row whose
    /// position is not below its capacity writes nothing.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length), [`Error::Ragged`](crate::Error::Ragged) or
    /// [`Error::Shape`](crate::Error::Shape) where lengths do not match or a size is zero, or what the driver
    /// says.
    pub fn kv_write(
        &self,
        stream: &Stream,
        k: &DeviceSlice,
        v: &DeviceSlice,
        rows: &DeviceSlice,
        layout: &KvLayout,
        layer: usize,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        check_nonzero("the number of key-value heads", layout.kv_heads)?;
        check_nonzero("the head dimension", layout.head_dim)?;
        let width = product("a row of keys", &[layout.kv_heads, layout.head_dim])?;
        let n = check_rows("rows", rows.len(), size_of::<KvRow>())?;
        let len = product("the keys", &[n, width])?;
        check_len("k", elements("k", k, Encoding::F32)?, len)?;
        check_len("v", elements("v", v, Encoding::F32)?, len)?;
        narrow("a row of keys", width)?;
        let params = KvWriteParams {
            k: k.address(),
            v: v.address(),
            rows: rows.address(),
            kv_heads: narrow("the number of key-value heads", layout.kv_heads)?,
            head_dim: narrow("the head dimension", layout.head_dim)?,
            layer: narrow("the layer", layer)?,
            reserved: 0,
        };
        let grid = (narrow("the number of rows", n)?, columns(width.div_ceil(4), THREADS), 1);
        // SAFETY: The kernel reads `len` floats at `k` and `v` and `n` rows at `rows`, which have that many, as
        // was checked, and writes into the caches that the rows name, for which the caller vouches.
        unsafe { self.kv.0.get(layout.encoding)?.launch(stream, grid, THREADS, 0, &params) }
    }
}
