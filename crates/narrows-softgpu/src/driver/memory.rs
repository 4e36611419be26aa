//! Device memory: a reservation of addresses, allocations between guards, and what is known of
//! every byte.

use std::collections::BTreeMap;
use std::ffi::c_void;

use super::machine::Machine;

/// Allocations are rounded up to this much of the capacity.
pub(crate) const GRANULARITY: u64 = 512;
/// Bytes that belong to nobody between two allocations.
const GUARD: usize = 64 << 10;
const CHUNK: usize = 64 << 10;
const GRANULE: usize = 16;

/// One allocation.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub(crate) bytes: usize,
    pub(crate) number: u64,
    pub(crate) device: usize,
}

/// Sorted, disjoint ranges of addresses.
pub(crate) type Ranges = Vec<(usize, usize)>;

/// What a kernel touched.
#[derive(Default)]
pub(crate) struct Footprint {
    pub(crate) reads: Ranges,
    pub(crate) writes: Ranges,
}

impl Footprint {
    /// Unique bytes read plus unique bytes written.
    pub(crate) fn bytes(&self) -> u64 {
        self.reads.iter().chain(&self.writes).map(|(start, end)| (end - start) as u64).sum()
    }
}

/// The device memory of all devices, in one reservation.
pub(crate) struct DeviceMemory {
    base: usize,
    span: usize,
    written: *mut u8,
    read_map: *mut u8,
    write_map: *mut u8,
    chunk_seen: *mut u8,
    chunks: *mut u32,
    next: usize,
    allocations: BTreeMap<usize, Allocation>,
    count: u64,
}

/// Lazily backed, zeroed memory.
pub(crate) fn reserve(bytes: usize) -> Option<usize> {
    // SAFETY: a fresh anonymous mapping; nothing else knows of it.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (address != libc::MAP_FAILED).then_some(address as usize)
}

impl DeviceMemory {
    /// Address space for `capacity` bytes in allocations of any number, most of it never used twice.
    pub(crate) fn new(capacity: u64) -> Option<Self> {
        let span = (capacity as usize).checked_mul(4)?.checked_add(1 << 30)?.next_multiple_of(CHUNK);
        Some(Self {
            base: reserve(span)?,
            span,
            written: reserve(span / 8 + 64)? as *mut u8,
            read_map: reserve(span / GRANULE / 8 + 64)? as *mut u8,
            write_map: reserve(span / GRANULE / 8 + 64)? as *mut u8,
            chunk_seen: reserve(span / CHUNK + 64)? as *mut u8,
            chunks: reserve((span / CHUNK + 64) * 4)? as *mut u32,
            next: GUARD,
            allocations: BTreeMap::new(),
            count: 0,
        })
    }

    pub(crate) fn describe_to(&self, machine: &mut Machine) {
        machine.device_base = self.base;
        machine.device_bytes = self.span as u64;
        machine.written = self.written;
        machine.read_map = self.read_map;
        machine.write_map = self.write_map;
        machine.chunk_seen = self.chunk_seen;
        machine.chunks = self.chunks;
    }

    pub(crate) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.base) < self.span
    }

    /// The start of a new allocation; `None` once the addresses are used up.
    pub(crate) fn allocate(&mut self, bytes: usize, device: usize) -> Option<usize> {
        let room = bytes.next_multiple_of(GRANULARITY as usize) + GUARD;
        let offset = if self.next + room <= self.span { self.next } else { self.gap(room)? };
        self.next = self.next.max(offset + room);
        self.count += 1;
        let address = self.base + offset;
        self.allocations.insert(address, Allocation { bytes, number: self.count, device });
        Some(address)
    }

    fn gap(&self, room: usize) -> Option<usize> {
        let mut start = GUARD;
        for (address, allocation) in &self.allocations {
            let offset = address - self.base;
            if offset >= start + room {
                return Some(start);
            }
            start = offset + allocation.bytes.next_multiple_of(GRANULARITY as usize) + GUARD;
        }
        (start + room <= self.span).then_some(start)
    }

    pub(crate) fn allocation_at(&self, address: usize) -> Option<&Allocation> {
        self.allocations.get(&address)
    }

    /// The allocation that holds an address, and its start.
    pub(crate) fn find(&self, address: usize) -> Option<(usize, &Allocation)> {
        let (start, allocation) = self.allocations.range(..=address).next_back()?;
        (address < start + allocation.bytes).then_some((*start, allocation))
    }

    /// Whether one allocation holds all of a range.
    pub(crate) fn holds(&self, address: usize, bytes: usize) -> bool {
        self.find(address).is_some_and(|(start, allocation)| {
            bytes <= allocation.bytes && address - start <= allocation.bytes - bytes
        })
    }

    pub(crate) fn free(&mut self, address: usize) -> Option<Allocation> {
        let allocation = self.allocations.remove(&address)?;
        self.forget(address, allocation.bytes);
        let page = 4096;
        let (start, end) = (address.next_multiple_of(page), (address + allocation.bytes) / page * page);
        if start < end {
            // SAFETY: whole pages of an allocation that no longer exists, inside our reservation.
            unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
        }
        Some(allocation)
    }

    /// The allocations nearest below and above an address, for messages.
    pub(crate) fn neighbours(&self, address: usize) -> String {
        let below = self.allocations.range(..=address).next_back();
        match below {
            Some((start, allocation)) if address < start + allocation.bytes + GUARD => format!(
                "{} bytes past the end of allocation #{} of {} bytes",
                address - (start + allocation.bytes),
                allocation.number,
                allocation.bytes
            ),
            _ => match self.allocations.range(address..).next() {
                Some((start, allocation)) if start - address <= GUARD => format!(
                    "{} bytes before allocation #{} of {} bytes",
                    start - address,
                    allocation.number,
                    allocation.bytes
                ),
                _ => String::from("in no allocation (freed, or never allocated)"),
            },
        }
    }

    /// A range as messages name it.
    pub(crate) fn name(&self, start: usize, end: usize) -> String {
        match self.find(start) {
            Some((base, allocation)) => format!(
                "bytes {}..{} of device allocation #{} ({} bytes)",
                start - base,
                (end - base).min(allocation.bytes),
                allocation.number,
                allocation.bytes
            ),
            None => format!("device memory at {start:#x}..{end:#x}"),
        }
    }

    /// Marks bytes as written.
    pub(crate) fn set_written(&mut self, address: usize, bytes: usize) {
        self.fill(address, bytes, true);
    }

    fn forget(&mut self, address: usize, bytes: usize) {
        self.fill(address, bytes, false);
    }

    fn fill(&mut self, address: usize, bytes: usize, value: bool) {
        let mut bit = address - self.base;
        let end = bit + bytes;
        // SAFETY: a bit per byte of the reservation, which holds the range; the lock is held.
        unsafe {
            while bit < end && !bit.is_multiple_of(8) {
                self.set_bit(bit, value);
                bit += 1;
            }
            let whole = (end - bit.min(end)) / 8;
            self.written.add(bit / 8).write_bytes(if value { 0xff } else { 0 }, whole);
            bit += whole * 8;
            while bit < end {
                self.set_bit(bit, value);
                bit += 1;
            }
        }
    }

    /// # Safety
    /// `bit` is an offset inside the reservation.
    unsafe fn set_bit(&mut self, bit: usize, value: bool) {
        // SAFETY: the caller's promise.
        let byte = unsafe { &mut *self.written.add(bit / 8) };
        if value {
            *byte |= 1 << (bit % 8);
        } else {
            *byte &= !(1 << (bit % 8));
        }
    }

    fn is_written(&self, bit: usize) -> bool {
        // SAFETY: offsets come from addresses inside the reservation.
        unsafe { *self.written.add(bit / 8) >> (bit % 8) & 1 == 1 }
    }

    /// The first byte of a range that nothing wrote.
    pub(crate) fn first_unwritten(&self, address: usize, bytes: usize) -> Option<usize> {
        let mut bit = address - self.base;
        let end = bit + bytes;
        while bit < end {
            // SAFETY: as in `is_written`.
            if bit.is_multiple_of(8) && end - bit >= 8 && unsafe { *self.written.add(bit / 8) } == 0xff {
                bit += 8;
            } else if self.is_written(bit) {
                bit += 1;
            } else {
                return Some(self.base + bit);
            }
        }
        None
    }

    /// Copies what is known of bytes along with the bytes.
    pub(crate) fn copy_written(&mut self, from: usize, to: usize, bytes: usize) {
        if self.first_unwritten(from, bytes).is_none() {
            self.set_written(to, bytes);
            return;
        }
        for index in 0..bytes {
            let value = self.is_written(from - self.base + index);
            // SAFETY: the range lies inside the reservation.
            unsafe { self.set_bit(to - self.base + index, value) };
        }
    }

    /// Takes what the last kernel touched, and clears the record of it.
    pub(crate) fn take_footprint(&mut self, machine: &mut Machine) -> Footprint {
        let count = machine.chunk_count as usize;
        machine.chunk_count = 0;
        // SAFETY: the processor listed this many chunks, each once.
        let chunks = unsafe { std::slice::from_raw_parts_mut(self.chunks, count) };
        chunks.sort_unstable();
        let mut footprint = Footprint::default();
        for chunk in chunks.iter().map(|chunk| *chunk as usize) {
            let bytes = CHUNK / GRANULE / 8;
            for (map, ranges) in
                [(self.read_map, &mut footprint.reads), (self.write_map, &mut footprint.writes)]
            {
                // SAFETY: the part of the map that belongs to this chunk; the kernel has ended.
                let bits = unsafe { std::slice::from_raw_parts_mut(map.add(chunk * bytes), bytes) };
                collect(bits, self.base + chunk * CHUNK, ranges);
                bits.fill(0);
            }
            // SAFETY: one byte per chunk.
            unsafe { *self.chunk_seen.add(chunk) = 0 };
        }
        footprint
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.values()
    }
}

/// Appends the ranges that a bitmap of granules says, joined to the last range where they touch.
fn collect(bits: &[u8], base: usize, ranges: &mut Ranges) {
    for (index, word) in bits.chunks_exact(8).enumerate() {
        let mut word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let mut at = base + index * 64 * GRANULE;
        while word != 0 {
            let skip = word.trailing_zeros();
            word >>= skip;
            at += skip as usize * GRANULE;
            let run = word.trailing_ones();
            let end = at + run as usize * GRANULE;
            match ranges.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => ranges.push((at, end)),
            }
            word = word.checked_shr(run).unwrap_or(0);
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bits_follow_any_alignment() {
        let mut memory = DeviceMemory::new(1 << 20).unwrap();
        let a = memory.allocate(1000, 0).unwrap();
        let b = memory.allocate(1000, 0).unwrap();
        memory.set_written(a + 3, 21);
        assert_eq!(memory.first_unwritten(a + 3, 21), None);
        assert_eq!(memory.first_unwritten(a + 2, 4), Some(a + 2));
        assert_eq!(memory.first_unwritten(a + 10, 20), Some(a + 24));
        memory.copy_written(a, b + 5, 30);
        assert_eq!(memory.first_unwritten(b + 8, 21), None);
        assert_eq!(memory.first_unwritten(b + 7, 1), Some(b + 7));
        assert!(memory.holds(a, 1000) && !memory.holds(a + 1, 1000) && !memory.holds(a + 1000, 1));
        memory.free(a);
        assert!(memory.find(a).is_none());
        assert_eq!(memory.first_unwritten(a + 3, 1), Some(a + 3));
    }

    #[test]
    fn footprints_are_joined_ranges() {
        let mut ranges = Vec::new();
        let mut bits = [0u8; 16];
        bits[0] = 0b1000_0110;
        bits[1] = 1;
        bits[7] = 0x80;
        bits[8] = 1;
        collect(&bits, 0x1000, &mut ranges);
        assert_eq!(ranges, [(0x1010, 0x1030), (0x1070, 0x1090), (0x13f0, 0x1410)]);
    }
}
