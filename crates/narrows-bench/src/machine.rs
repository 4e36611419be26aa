//! The machine that figures are of, as far as the kernel tells.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use narrows_bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine. What nobody knows is absent.
#[derive(Clone, Debug, Default, JsonSchema, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub host: Option<String>,
    /// System, and release of its kernel.
    pub kernel: String,
    /// The processor, as it calls itself.
    pub cpu: Option<String>,
    /// Threads that the process may run at one time.
    pub threads: usize,
    /// The instruction set that narrows computes with here.
    pub isa: String,
    /// All of its memory.
    pub memory_bytes: Option<Bytes>,
    /// The load average of the last minute, when the bench began: others use the machine too.
    pub load: Option<f64>,
    /// The disk behind the path that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The device that was copied to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// A mounted file system and what it lies on.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What kind of file system.
    pub file_system: String,
    /// What is mounted, as the kernel says: `/dev/nvme0n1p2`, `server:/export`, `tmpfs`.
    pub source: String,
    /// The disk, if there is one: `nvme0n1`.
    pub device: Option<String>,
    /// Its model, as it calls itself; else the driver that it is behind.
    pub model: Option<String>,
    /// Whether it turns.
    pub rotational: Option<bool>,
    /// Its size.
    pub size_bytes: Option<Bytes>,
}

/// A device that computes.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number, as `cuda:0`.
    pub device: String,
    /// Its name, as the driver gives it.
    pub name: String,
    /// Whether it is the software driver of the tests, whose times mean nothing.
    pub software: bool,
    /// Its compute capability, `9.0`.
    pub compute_capability: String,
    /// The newest CUDA that the driver speaks, `13.0`.
    pub driver_cuda: String,
    /// The release of the driver, where NVIDIA's management library is installed.
    pub driver_release: Option<String>,
    /// All of its memory.
    pub memory_bytes: Bytes,
    /// Its link to the host.
    pub link: Option<Link>,
}

/// A PCI Express link, now and at its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Link {
    /// The generation at which it runs now; idle devices go down.
    pub generation: u32,
    /// The lanes that it uses now.
    pub width: u32,
    /// The generation that the device is capable of.
    pub max_generation: u32,
    /// The lanes that the device is capable of.
    pub max_width: u32,
}

impl Link {
    /// Bytes per second that a link of `generation` and `width` carries in one direction at most, encoding
    /// taken off and nothing else: packets take some 10 % more.
    #[must_use]
    pub fn bytes_per_second(generation: u32, width: u32) -> f64 {
        // PCI Express Base Specification: 2.5 and 5 GT/s with 8b/10b, then 8, 16, 32 with 128b/130b, 64 in flits.
        let lane = match generation {
            0 | 1 => 0.25e9,
            2 => 0.5e9,
            n => 8e9 * f64::from(1_u32 << (n - 3).min(8)) * 128.0 / 130.0 / 8.0,
        };
        lane * f64::from(width)
    }

    /// The link of the device at a PCI address such as `0000:65:00.0`, as the kernel sees it: what the device is
    /// capable of by itself, whatever slot it is in.
    #[must_use]
    pub fn of(pci: &str) -> Option<Self> {
        Self::read(&Path::new("/sys/bus/pci/devices").join(pci.to_lowercase()))
    }

    fn read(dir: &Path) -> Option<Self> {
        let word = |name: &str| fs::read_to_string(dir.join(name)).ok();
        let width = |name| word(name)?.trim().parse().ok().filter(|&n| n > 0);
        let generation = |name| generation(&word(name)?);
        Some(Self {
            generation: generation("current_link_speed")?,
            width: width("current_link_width")?,
            max_generation: generation("max_link_speed")?,
            max_width: width("max_link_width")?,
        })
    }
}

/// The generation of a link's speed as the kernel writes it, `16.0 GT/s PCIe`.
fn generation(speed: &str) -> Option<u32> {
    let speed: f64 = speed.split_whitespace().next()?.parse().ok()?;
    [2.5, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0].iter().zip(1..).find(|(at, _)| **at == speed).map(|(_, n)| n)
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let word = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_owned());
        let release = word("/proc/sys/kernel/osrelease");
        let cpu = word("/proc/cpuinfo").and_then(|text| field(&text, "model name"));
        let memory = word("/proc/meminfo").and_then(|text| field(&text, "MemTotal"));
        let kib = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            host: word("/proc/sys/kernel/hostname"),
            kernel: release.map_or(std::env::consts::OS.to_owned(), |release| format!("Linux {release}")),
            cpu,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            isa: narrows_cpu::Isa::best().name().to_owned(),
            memory_bytes: kib.map(|kib| Bytes(kib << 10)),
            load: word("/proc/loadavg").and_then(|text| text.split_whitespace().next()?.parse().ok()),
            disk: None,
            gpu: None,
        }
    }
}

/// The kernel's word on huge pages for those who do not ask: `always`, `madvise` or `never`.
#[must_use]
pub fn transparent_huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    Some(text.split('[').nth(1)?.split(']').next()?.to_owned())
}

/// One line for people.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu.as_deref().unwrap_or("an unknown processor");
        write!(f, "{} threads of {cpu} ({})", self.threads, self.isa)?;
        if let Some(memory) = self.memory_bytes {
            write!(f, ", {memory} of memory")?;
        }
        if let Some(disk) = &self.disk {
            write!(f, ", {}", disk.key())?;
        }
        if let Some(gpu) = &self.gpu {
            write!(f, ", {}", gpu.name)?;
            if let Some(link) = gpu.link {
                write!(f, " on PCIe {} x{}", link.max_generation, link.max_width)?;
            }
        }
        write!(f, ", {}", self.kernel)?;
        match self.load {
            Some(load) => write!(f, ", load {load:.1}"),
            None => Ok(()),
        }
    }
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

impl Disk {
    /// What lies behind a path that exists; `None` where the kernel does not tell.
    #[must_use]
    pub fn behind(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        let mut disk = mounted(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)?;
        // What is mounted may be a link, as /dev/disk/by-uuid is full of.
        let source = fs::canonicalize(&disk.source).unwrap_or_else(|_| PathBuf::from(&disk.source));
        let name = source.strip_prefix("/dev").ok().and_then(Path::file_name);
        let device = name.and_then(|name| whole_disk(&Path::new("/sys/class/block").join(name)));
        if let Some(device) = device {
            disk.describe(&device);
        }
        Some(disk)
    }

    fn describe(&mut self, device: &Path) {
        let word = |name: &str| {
            let text = fs::read_to_string(device.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let driver = || {
            let link = fs::read_link(device.join("device/driver")).ok()?;
            Some(link.file_name()?.to_string_lossy().into_owned())
        };
        self.device = device.file_name().map(|name| name.to_string_lossy().into_owned());
        self.model = word("device/model").or_else(driver);
        self.rotational = word("queue/rotational").map(|flag| flag == "1");
        // In units of 512 bytes, whatever the blocks of the disk are.
        self.size_bytes = word("size").and_then(|n| n.parse::<u64>().ok()).map(|n| Bytes(n << 9));
    }

    /// A name for the place that figures of this disk are kept under.
    #[must_use]
    pub fn key(&self) -> String {
        let device = self.device.as_ref().unwrap_or(&self.source);
        match &self.model {
            Some(model) => format!("{model} ({device}), {}", self.file_system),
            None => format!("{device}, {}", self.file_system),
        }
    }
}

/// The disk of a partition or of a mapped device: the directory of the kernel that describes it.
fn whole_disk(entry: &Path) -> Option<PathBuf> {
    let mut device = fs::canonicalize(entry).ok()?;
    if device.join("partition").exists() {
        device.pop();
    }
    // Encryption and volumes lie on disks; the first stands for all. No stack of them is this high.
    for _ in 0..8 {
        let slaves = fs::read_dir(device.join("slaves")).ok();
        let Some(Ok(first)) = slaves.and_then(|mut slaves| slaves.next()) else { break };
        device = fs::canonicalize(first.path()).ok()?;
        if device.join("partition").exists() {
            device.pop();
        }
    }
    Some(device)
}

/// The mount that `path` lies in, by the text of /proc/self/mountinfo.
fn mounted(mountinfo: &str, path: &Path) -> Option<Disk> {
    let mount = |line: &str| {
        // 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw
        let (left, right) = line.split_once(" - ")?;
        let mount = PathBuf::from(unescaped(left.split(' ').nth(4)?));
        let mut right = right.split(' ');
        let (file_system, source) = (right.next()?.to_owned(), unescaped(right.next()?));
        path.starts_with(&mount).then_some(Disk {
            mount,
            file_system,
            source,
            device: None,
            model: None,
            rotational: None,
            size_bytes: None,
        })
    };
    // Of two at one place the later covers the earlier.
    mountinfo.lines().filter_map(mount).max_by_key(|disk| disk.mount.components().count())
}

/// The kernel writes spaces and the like as octal numbers, `\040`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out += &part[3..];
            }
            None => {
                out.push('\\');
                out += part;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 27 259:2 / /data rw shared:7 master:2 - xfs /dev/nvme0n1p2 rw,attr2
41 27 259:3 / /data/my\\040disk rw - btrfs /dev/mapper/cr\\134ypt rw
42 27 0:99 / /data rw - nfs4 server:/export rw
";

    #[test]
    fn the_mount_behind_a_path() {
        let at = |path: &str| mounted(MOUNTS, Path::new(path)).unwrap();
        assert_eq!((at("/home/x").source, at("/home/x").file_system), ("/dev/root".into(), "ext4".into()));
        assert_eq!(at("/database").mount, Path::new("/"));
        // Mounted over what was there before.
        assert_eq!(at("/data/models").source, "server:/export");
        assert_eq!(at("/data/my disk/x").source, "/dev/mapper/cr\\ypt");
        assert!(mounted("nonsense\n1 2 3 - x\n", Path::new("/")).is_none());
    }

    #[test]
    fn links_by_their_specification() {
        assert_eq!(generation("16.0 GT/s PCIe"), Some(4));
        assert_eq!(generation("2.5 GT/s PCIe"), Some(1));
        assert_eq!(generation("Unknown"), None);
        let gigabytes = |n, width| (Link::bytes_per_second(n, width) / 1e8).round() / 10.0;
        assert_eq!(
            [gigabytes(1, 16), gigabytes(3, 16), gigabytes(4, 8), gigabytes(5, 16)],
            [4.0, 15.8, 15.8, 63.0]
        );
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("current_link_speed", "8.0 GT/s PCIe\n");
        write("current_link_width", "4\n");
        write("max_link_speed", "16.0 GT/s PCIe\n");
        assert_eq!(Link::read(dir.path()), None);
        write("max_link_width", "16\n");
        let link = Link { generation: 3, width: 4, max_generation: 4, max_width: 16 };
        assert_eq!(Link::read(dir.path()), Some(link));
    }

    #[test]
    fn this_machine() {
        let machine = Machine::here();
        assert!(machine.threads > 0 && !machine.kernel.is_empty() && !machine.isa.is_empty());
        #[cfg(target_os = "linux")]
        assert!(machine.memory_bytes.unwrap() > Bytes::mib(64));
        #[cfg(target_os = "linux")]
        assert!(!Disk::behind(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap().file_system.is_empty());
    }
}
