use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narrows_bytes::Bytes;

use super::{DEVICE_ALIGNMENT, DeviceSlice};
use crate::Error;

/// A range of device memory from which ranges are taken and given back, first fit.
///
/// A range that is given back may be taken again at once, while work on it is still queued: all users of a pool
/// are to queue their work on one stream.
#[derive(Clone)]
pub struct DevicePool(Arc<Shared>);

struct Shared {
    what: &'static str,
    whole: DeviceSlice,
    /// Free ranges by start, none touching the next.
    free: Mutex<Vec<(usize, usize)>>,
}

impl DevicePool {
    /// Makes a pool of a range.
    #[must_use]
    pub fn new(what: &'static str, whole: DeviceSlice) -> Self {
        let free = Mutex::new(vec![(0, whole.len() / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT)]);
        Self(Arc::new(Shared { what, whole, free }))
    }

    /// What a range of `len` bytes takes of the pool.
    #[must_use]
    pub const fn rounded(len: usize) -> usize {
        len.saturating_add(DEVICE_ALIGNMENT - 1) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT
    }

    /// Takes `len` bytes. They hold whatever they held.
    ///
    /// # Errors
    /// [`Error::ArenaFull`] if there is no such range; then nothing is taken.
    pub fn take(&self, len: usize) -> Result<Pooled, Error> {
        let rounded = Self::rounded(len);
        let mut free = self.0.free();
        let Some(index) = free.iter().position(|&(_, room)| room >= rounded) else {
            let largest = free.iter().map(|&(_, room)| room).max().unwrap_or(0);
            return Err(Error::ArenaFull {
                what: self.0.what,
                wanted: Bytes(rounded as u64),
                free: Bytes(largest as u64),
            });
        };
        let (start, room) = free[index];
        if room == rounded {
            free.remove(index);
        } else {
            free[index] = (start + rounded, room - rounded);
        }
        drop(free);
        let slice = self.0.whole.slice(start..start + len)?;
        Ok(Pooled { pool: self.clone(), start, taken: rounded, slice })
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DevicePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevicePool({:?}, {} bytes)", self.0.what, self.0.whole.len())
    }
}

/// A range taken from a [`DevicePool`], given back when dropped.
pub struct Pooled {
    pool: DevicePool,
    start: usize,
    taken: usize,
    slice: DeviceSlice,
}

impl Pooled {
    /// The range.
    #[must_use]
    pub const fn slice(&self) -> &DeviceSlice {
        &self.slice
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.taken == 0 {
            return;
        }
        let mut free = self.pool.0.free();
        let at = free.partition_point(|&(start, _)| start < self.start);
        free.insert(at, (self.start, self.taken));
        let touches = |free: &[(usize, usize)], i: usize| free[i].0 + free[i].1 == free[i + 1].0;
        if at + 1 < free.len() && touches(&free, at) {
            free[at].1 += free[at + 1].1;
            free.remove(at + 1);
        }
        if at > 0 && touches(&free, at - 1) {
            free[at - 1].1 += free[at].1;
            free.remove(at);
        }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pooled({:?})", self.slice)
    }
}
