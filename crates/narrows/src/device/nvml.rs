//! What NVIDIA's management library knows and the driver does not tell: who uses a device's memory, and its link.

use narrows_shard::Bytes;
use nvml_wrapper::Nvml;
use serde::Serialize;

/// The management library's view of one device.
pub(super) struct Managed {
    nvml: Nvml,
    bus_id: String,
    /// In use when this was made: by others, if this process had no context then.
    before: Bytes,
}

/// A PCI Express link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The generation at which it runs now; idle devices go down.
    pub generation: u32,
    /// The lanes that it uses now.
    pub width: u32,
    /// The generation that device and board are capable of together.
    pub max_generation: u32,
    /// The lanes that they are capable of.
    pub max_width: u32,
}

impl Managed {
    /// The device at a PCI bus id; `None` where the library is not installed or does not know it.
    pub(super) fn find(bus_id: &str) -> Option<Self> {
        let nvml = Nvml::init().ok()?;
        let before = Bytes(nvml.device_by_pci_bus_id(bus_id).ok()?.memory_info().ok()?.used);
        Some(Self { nvml, bus_id: bus_id.to_owned(), before })
    }

    /// What is in use more than when this was made.
    pub(super) fn used(&self) -> Option<Bytes> {
        let device = self.nvml.device_by_pci_bus_id(self.bus_id.as_str()).ok()?;
        Some(Bytes(device.memory_info().ok()?.used).saturating_sub(self.before))
    }

    /// What was in use before.
    pub(super) const fn before(&self) -> Bytes {
        self.before
    }

    pub(super) fn link(&self) -> Option<Link> {
        let device = self.nvml.device_by_pci_bus_id(self.bus_id.as_str()).ok()?;
        Some(Link {
            generation: device.current_pcie_link_gen().ok()?,
            width: device.current_pcie_link_width().ok()?,
            max_generation: device.max_pcie_link_gen().ok()?,
            max_width: device.max_pcie_link_width().ok()?,
        })
    }

    pub(super) fn driver(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }
}
