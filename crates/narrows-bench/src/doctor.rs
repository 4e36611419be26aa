//! What holds a machine back, and what to do about it: words about facts that somebody else gathered.

use narrows_bytes::Bytes;

use crate::machine::{Disk, Link};

/// Less than this of locked memory holds reads and copies back.
const LOCKED_WORTH_HAVING: Bytes = Bytes::mib(256);

/// A disk slower than this is no NVMe disk, or one that is kept from being one.
const NVME: f64 = 1e9;

/// Of what a link carries at most, packets and their acknowledgements leave this much and more to copies.
const LINK_SHARE: f64 = 0.65;

/// What was found of a machine.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether the program has kernels for CUDA devices.
    pub kernels: bool,
    /// Whether the processor is an x86-64, of which all but the oldest have AVX2.
    pub x86: bool,
    /// The instruction set that is computed with.
    pub isa: String,
    /// All of the memory.
    pub memory: Option<Bytes>,
    /// What the process's cgroups leave of it, if they limit it.
    pub cgroup_limit: Option<Bytes>,
    /// What may be locked of it; `None`: all.
    pub locked_limit: Option<Bytes>,
    /// What the kernel says of huge pages: `always`, `madvise` or `never`; `None` if it has no word for them.
    pub huge_pages: Option<String>,
    /// The disk in question.
    pub disk: Option<DiskFacts>,
    /// Devices with a link.
    pub devices: Vec<DeviceFacts>,
}

/// What was found of a disk.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Which.
    pub disk: Option<Disk>,
    /// Whether it is read past the page cache.
    pub direct: bool,
    /// Whether io_uring reads it.
    pub io_uring: bool,
    /// Why not, as the reader says.
    pub notes: Vec<String>,
    /// What it delivers.
    pub bytes_per_second: Option<f64>,
}

/// What was found of a device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// Its number, `cuda:0`.
    pub device: String,
    /// Its link, right after copies if there were some: idle links rest.
    pub link: Option<Link>,
    /// What pinned copies to it reach.
    pub bytes_per_second: Option<f64>,
}

/// What holds the machine back, each with what to do about it: one line for people.
#[must_use]
pub fn hints(facts: &Facts) -> Vec<String> {
    let mut hints = Vec::new();
    if !facts.kernels {
        hints.push("built without CUDA kernels: tools/get-nvcc, then build again".to_owned());
    }
    if facts.x86 && facts.isa == "portable" {
        hints.push(
            "no AVX2 on this processor (or hidden by a virtual machine): the CPU computes several times \
                    slower than it could"
                .to_owned(),
        );
    }
    if let (Some(limit), Some(memory)) = (facts.cgroup_limit, facts.memory)
        && limit < memory
    {
        hints.push(format!(
            "a cgroup limits memory to {limit} of {memory}: `--memory` of the container, or MemoryMax of the \
             service, gives more"
        ));
    }
    if let Some(limit) = facts.locked_limit.filter(|limit| *limit < LOCKED_WORTH_HAVING) {
        hints.push(format!(
            "only {limit} may be locked in memory: `ulimit -l unlimited` (or LimitMEMLOCK) lets reads and copies go \
             at full speed"
        ));
    }
    if facts.huge_pages.as_deref() == Some("never") {
        hints.push(
            "the kernel gives no huge pages, and disks and processors are slower with small ones: \
             `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"
                .to_owned(),
        );
    }
    facts.disk.iter().for_each(|disk| disk_hints(disk, &mut hints));
    facts.devices.iter().for_each(|device| device_hints(device, &mut hints));
    hints
}

fn disk_hints(facts: &DiskFacts, hints: &mut Vec<String>) {
    let file_system = facts.disk.as_ref().map_or("the file system", |disk| disk.file_system.as_str());
    let in_memory = matches!(file_system, "tmpfs" | "ramfs");
    if in_memory {
        hints.push(format!("{file_system} is memory: a model in it leaves less for the rest"));
    } else if !facts.direct {
        hints.push(format!(
            "{file_system} has no direct I/O, and the page cache is slower than the disk: ext4, xfs and btrfs have it"
        ));
    } else if !facts.io_uring {
        let why = facts.notes.iter().find(|note| note.starts_with("io_uring")).map_or("", String::as_str);
        hints.push(format!(
            "threads read instead of io_uring ({why}): `sysctl kernel.io_uring_disabled=0`, or a container that \
             allows it"
        ));
    }
    let rotational = facts.disk.as_ref().is_some_and(|disk| disk.rotational == Some(true));
    let slow = facts.bytes_per_second.is_some_and(|speed| speed < NVME);
    // Virtual disks say that they turn, whatever they are.
    if slow && !in_memory {
        let what = if rotational { "the disk turns (or says so)" } else { "the disk is slow" };
        let speed = facts.bytes_per_second.unwrap_or(0.0) / 1e9;
        hints.push(format!(
            "{what}: {speed:.2} GB/s; an NVMe disk delivers 3 to 14, and streaming is bound by it"
        ));
    }
}

fn device_hints(facts: &DeviceFacts, hints: &mut Vec<String>) {
    let Some(link) = facts.link else { return };
    let device = &facts.device;
    if link.width < link.max_width {
        hints.push(format!(
            "{device} is an x{} card with {} lanes: another slot of the board may give it all, and twice the lanes \
             are twice the speed",
            link.max_width, link.width
        ));
    }
    let Some(speed) = facts.bytes_per_second else { return };
    // Links rest when idle: a lower generation counts only if copies were slow with it.
    let most = Link::bytes_per_second(link.max_generation, link.width);
    if speed < LINK_SHARE * most {
        let now = if link.generation < link.max_generation {
            format!("it runs at PCIe {} of {}", link.generation, link.max_generation)
        } else {
            "others may use it, or a switch or the processor's socket lies between".to_owned()
        };
        hints.push(format!(
            "copies to {device} reach {:.1} GB/s, where its lanes carry {:.1}: {now}",
            speed / 1e9,
            most / 1e9
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine that nothing holds back.
    fn good() -> Facts {
        Facts {
            kernels: true,
            x86: true,
            isa: "avx512".to_owned(),
            memory: Some(Bytes(32 << 30)),
            cgroup_limit: None,
            locked_limit: None,
            huge_pages: Some("madvise".to_owned()),
            disk: Some(disk("ext4")),
            devices: vec![device(4, 16, 25e9)],
        }
    }

    fn disk(file_system: &str) -> DiskFacts {
        let disk = Disk {
            mount: PathBuf::from("/"),
            file_system: file_system.to_owned(),
            source: "/dev/nvme0n1".to_owned(),
            device: None,
            model: None,
            rotational: Some(false),
            size_bytes: None,
        };
        DiskFacts {
            disk: Some(disk),
            direct: true,
            io_uring: true,
            notes: Vec::new(),
            bytes_per_second: Some(3.5e9),
        }
    }

    fn device(generation: u32, width: u32, bytes_per_second: f64) -> DeviceFacts {
        let link = Link { generation, width, max_generation: 4, max_width: 16 };
        DeviceFacts {
            device: "cuda:0".to_owned(),
            link: Some(link),
            bytes_per_second: Some(bytes_per_second),
        }
    }

    /// The hint that a change to a good machine brings: exactly one.
    #[track_caller]
    fn hint(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        let mut hints = hints(&facts);
        assert_eq!(hints.len(), 1, "{hints:?}");
        hints.remove(0)
    }

    #[track_caller]
    fn none(change: impl FnOnce(&mut Facts)) {
        let mut facts = good();
        change(&mut facts);
        assert_eq!(hints(&facts), Vec::<String>::new());
    }

    #[test]
    fn a_hint_for_each_thing_that_holds_back() {
        none(|_| ());
        assert!(hint(|f| f.kernels = false).contains("tools/get-nvcc"));
        assert!(hint(|f| f.isa = "portable".to_owned()).contains("AVX2"));
        assert!(hint(|f| f.cgroup_limit = Some(Bytes(4 << 30))).contains("4.0 GiB of 32.0 GiB"));
        assert!(hint(|f| f.locked_limit = Some(Bytes(8 << 20))).contains("only 8.0 MiB"));
        assert!(hint(|f| f.huge_pages = Some("never".to_owned())).contains("madvise"));
        assert!(
            hint(|f| f.disk = Some(DiskFacts { direct: false, ..disk("ntfs3") }))
                .starts_with("ntfs3 has no direct")
        );
        assert!(hint(|f| f.disk = Some(DiskFacts { direct: false, ..disk("tmpfs") })).contains("is memory"));
        let forbidden = vec!["io_uring: Operation not permitted; using threads".to_owned()];
        let threads = DiskFacts { io_uring: false, notes: forbidden, ..disk("xfs") };
        assert!(hint(|f| f.disk = Some(threads)).contains("Operation not permitted"));
        let slow = DiskFacts { bytes_per_second: Some(5.3e8), ..disk("ext4") };
        assert!(hint(|f| f.disk = Some(slow.clone())).starts_with("the disk is slow: 0.53 GB/s"));
        let turns = hint(|f| {
            let disk = slow.disk.map(|disk| Disk { rotational: Some(true), ..disk });
            f.disk = Some(DiskFacts { disk, bytes_per_second: Some(2e8), ..super::tests::disk("ext4") });
        });
        assert!(turns.starts_with("the disk turns"), "{turns}");
        assert!(hint(|f| f.devices = vec![device(4, 4, 6.5e9)]).contains("x16 card with 4 lanes"));
        let slow = hint(|f| f.devices = vec![device(1, 16, 3e9)]);
        assert!(slow.contains("3.0 GB/s") && slow.contains("31.5") && slow.contains("PCIe 1 of 4"), "{slow}");
        assert!(hint(|f| f.devices = vec![device(4, 16, 9e9)]).contains("others may use it"));
    }

    #[test]
    fn no_hint_where_nothing_is_wrong() {
        none(|f| f.locked_limit = Some(Bytes(1 << 30)));
        none(|f| f.cgroup_limit = Some(Bytes(64 << 30)));
        none(|f| f.huge_pages = Some("always".to_owned()));
        none(|f| f.huge_pages = None);
        none(|f| (f.isa, f.x86) = ("neon".to_owned(), false));
        none(|f| f.disk = None);
        // A virtual disk that says it turns and is fast.
        none(|f| {
            if let Some(disk) = f.disk.as_mut().and_then(|disk| disk.disk.as_mut()) {
                disk.rotational = Some(true);
            }
        });
        none(|f| f.disk = Some(DiskFacts { bytes_per_second: None, ..disk("ext4") }));
        // A link that rests, and one that nobody measured.
        none(|f| f.devices = vec![device(1, 16, 25e9)]);
        none(|f| f.devices = vec![DeviceFacts { bytes_per_second: None, ..device(1, 16, 0.0) }]);
        none(|f| f.devices = vec![DeviceFacts { link: None, ..device(4, 16, 1e9) }]);
    }
}
