//! A CUDA device that is not on this machine, for plans.

use narrows_shard::Bytes;
use narrows_stream::Speed;

use super::reserved;

/// A device that [`crate::EngineBuilder::plan`] plans for and nothing computes on: what there is to know of one, as a
/// guess.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AssumedDevice {
    /// All of its memory.
    pub memory: Bytes,
    /// What the driver and the kernels take of it. More multiprocessors make it more: an H200 has 132 of them, and
    /// takes 528 MiB.
    pub context: Bytes,
    /// From pinned memory to the device: 12 GB/s is what eight lanes of PCIe 4.0 or sixteen of 3.0 carry. Sixteen of
    /// 5.0 carry 55 (measured on an H200).
    pub link: Speed,
    /// How fast it reads its own memory. 200 GB/s is a laptop's GPU; an H200 reads 4.6 TB/s (measured).
    pub bandwidth: Speed,
}

impl AssumedDevice {
    /// A small device with `memory`: a context of 512 MiB, a link of 12 GB/s, and 200 GB/s from its own memory.
    #[must_use]
    pub const fn new(memory: Bytes) -> Self {
        Self {
            memory,
            context: Bytes::mib(512),
            link: Speed::assumed(12e9),
            bandwidth: Speed::assumed(200e9),
        }
    }

    /// What a budget is charged with before anything else, as [`crate::Device::reserved_bytes`] is of a device that is
    /// there.
    #[must_use]
    pub fn reserved_bytes(&self) -> Bytes {
        // A budget may be smaller than the memory of any device; what it is charged with does not depend on it.
        reserved(self.context, Bytes(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, Error, Model, Quantisation, Speeds, Synth};

    #[test]
    fn plans_and_computes_nothing() {
        let synth = Synth::new("llama-1.1b", Some(2)).unwrap();
        let model = || Model::of_shape("llama-1.1b", &synth, &Quantisation::default()).unwrap();
        let device = AssumedDevice::new(Bytes::mib(4096));
        let builder = Engine::builder().ram(Bytes::mib(900)).assume_device(device);
        let plan = builder.plan(&model()).unwrap();
        let on_device = plan.device.as_ref().unwrap();
        assert!(on_device.assumed && on_device.stream.all_resident() && on_device.budget == device.memory);
        let needs = &on_device.stream.needs;
        assert!(needs.iter().any(|need| need.bytes == device.context + Bytes::mib(2)), "{needs:?}");
        assert_eq!(
            builder.assumed_speeds(),
            Speeds {
                link: device.link,
                compute: device.bandwidth,
                attention: device.bandwidth,
                ..Speeds::default()
            }
        );
        let disk = Speed::measured(1e9);
        let speeds = builder.measure(&model(), &plan, Some(disk)).unwrap();
        assert_eq!(speeds, Speeds { disk, ..builder.assumed_speeds() });
        let beyond = builder.clone().vram(Bytes::mib(4097)).plan(&model());
        assert!(matches!(beyond, Err(Error::VramBeyondDevice { .. })), "{beyond:?}");
        assert!(matches!(builder.build(model()), Err(Error::Request(_))));
    }
}
