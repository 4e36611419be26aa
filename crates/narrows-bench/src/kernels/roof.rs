//! What bounds all operations: memory, and multiply-adds.

use narrows_shard::Encoding;

use crate::record::Entry;

/// What whatever computes does at most, as it was measured.
pub(super) struct Roof {
    /// The figures that it is made of.
    pub(super) entries: Vec<Entry>,
    /// What did not go as asked.
    pub(super) notes: Vec<String>,
    /// Bytes per second.
    memory: f64,
    /// Operations per second by the encoding of the factors.
    flops: Vec<(Encoding, f64)>,
}

impl Roof {
    /// The best of what was measured: of memory all reads and copies, of multiply-adds each encoding.
    pub(super) fn of(entries: Vec<Entry>, notes: Vec<String>) -> Self {
        let memory = entries.iter().filter_map(|entry| match entry {
            Entry::Host(result) => Some(result.bandwidth.bytes_per_second),
            Entry::Device(result) => Some(result.bandwidth.bytes_per_second),
            _ => None,
        });
        let memory = memory.fold(0.0, f64::max);
        let flops = entries.iter().filter_map(|entry| match entry {
            Entry::Flops(result) => {
                let encoding = Encoding::ALL.into_iter().find(|e| e.name() == result.encoding);
                Some((encoding?, result.flops_per_second))
            }
            _ => None,
        });
        let flops = flops.collect();
        Self { entries, notes, memory, flops }
    }

    /// Bytes per second of an operation that computes so much for each, with factors in `operand` or in float32.
    pub(super) fn bytes_per_second(&self, operand: Encoding, flops_per_byte: f64) -> f64 {
        let units = self.flops.iter().filter(|(encoding, _)| [operand, Encoding::F32].contains(encoding));
        let flops = units.map(|(_, flops)| *flops).fold(0.0, f64::max);
        self.memory.min(flops / flops_per_byte.max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{DeviceResult, PeakResult, Samples};
    use narrows_bytes::Bytes;

    #[test]
    fn the_lower_of_two_bounds() {
        let memory = |test: &str, gigabytes: f64| {
            Entry::Device(DeviceResult {
                backend: "cuda:0".to_owned(),
                test: test.to_owned(),
                size: Bytes::mib(512),
                bandwidth: Samples::of(vec![gigabytes * 1e9]),
            })
        };
        let peak = |encoding: &str, teraflops: f64| {
            Entry::Flops(PeakResult {
                backend: "cuda:0".to_owned(),
                encoding: encoding.to_owned(),
                threads: 1,
                isa: "sm_90".to_owned(),
                flops_per_second: teraflops * 1e12,
                samples: vec![teraflops * 1e12],
            })
        };
        let entries =
            vec![memory("read", 3000.0), memory("copy", 2800.0), peak("f32", 60.0), peak("bf16", 600.0)];
        let roof = Roof::of(entries, Vec::new());
        assert_eq!(roof.bytes_per_second(Encoding::Bf16, 1.0), 3e12);
        assert_eq!(roof.bytes_per_second(Encoding::Bf16, 1000.0), 600e9);
        assert_eq!(roof.bytes_per_second(Encoding::F32, 1000.0), 60e9);
        // Without matrix units for it, it is multiplied as float32.
        assert_eq!(roof.bytes_per_second(Encoding::F16, 1000.0), 60e9);
        assert_eq!(roof.bytes_per_second(Encoding::F32, 0.0), 3e12);
    }
}
