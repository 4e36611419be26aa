//! A sequence of tokens and its KV cache.

use narrows_cpu::KvView;
use narrows_shard::Bytes;
use narrows_staging::{Budget, Reservation};

use crate::backend::{DeviceCache, HostCache};
use crate::error::{Error, Result};

/// One sequence: how far it has come, and the keys and values of every position so far.
#[derive(Debug)]
pub(crate) struct Sequence {
    len: usize,
    capacity: usize,
    /// Positions that the rotary embedding is told of: a prompt counts whole, however it is cut into steps.
    announced: usize,
    cache: Cache,
    /// Bytes of a position.
    position_bytes: u64,
    /// The part of the KV budget that the caches take.
    memory: Reservation,
}

/// Where keys and values are: where the steps are computed.
#[derive(Debug)]
pub(crate) enum Cache {
    /// In host memory.
    Host(HostCache),
    /// In a device's.
    Device(DeviceCache),
}

impl Sequence {
    /// An empty sequence with room for `capacity` positions of `position_bytes` each in `cache`, which has none yet.
    pub(crate) fn new(cache: Cache, position_bytes: Bytes, capacity: usize, budget: &Budget) -> Result<Self> {
        let mut sequence = Self {
            len: 0,
            capacity: 0,
            announced: 0,
            cache,
            position_bytes: position_bytes.get(),
            memory: budget.reserve("KV cache", Bytes(0))?,
        };
        sequence.grow(capacity)?;
        Ok(sequence)
    }

    /// Makes room for `capacity` positions, keeping what is there.
    pub(crate) fn grow(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let total = Bytes(self.position_bytes.saturating_mul(capacity as u64));
        self.memory
            .grow(total.saturating_sub(self.memory.bytes()))
            .map_err(|_| Error::OutOfMemory { what: "the KV cache", needed: total })?;
        match &mut self.cache {
            Cache::Host(cache) => cache.grow(capacity, self.len)?,
            Cache::Device(cache) => cache.grow(capacity, self.len)?,
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Positions computed so far.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Positions that it has room for.
    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says that the sequence will reach `len` positions before any of its results is looked at.
    ///
    /// A rotary embedding that depends on the length (dynamic NTK) sees a prompt as one whole, in however
    /// many steps it is computed.
    pub(crate) fn announce(&mut self, len: usize) {
        self.announced = self.announced.max(len);
    }

    /// Forgets every position from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.announced = self.len;
    }

    pub(crate) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }

    /// The length that the rotary embedding of the row at `position` is made for.
    pub(crate) fn rope_length(&self, position: usize) -> usize {
        self.announced.max(position + 1)
    }

    pub(crate) fn host_cache(&mut self) -> Result<&mut HostCache> {
        match &mut self.cache {
            Cache::Host(cache) => Ok(cache),
            Cache::Device(_) => Err(elsewhere()),
        }
    }

    pub(crate) fn host_view(&self, layer: usize) -> Result<KvView<'_>> {
        match &self.cache {
            Cache::Host(cache) => Ok(cache.view(layer)),
            Cache::Device(_) => Err(elsewhere()),
        }
    }

    pub(crate) fn device_cache(&self) -> Result<&DeviceCache> {
        match &self.cache {
            Cache::Device(cache) => Ok(cache),
            Cache::Host(_) => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> Error {
    Error::Request("the sequence belongs to another engine".to_owned())
}
