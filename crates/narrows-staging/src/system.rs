//! How much memory there is, as the kernel says. Elsewhere than on Linux it does not say.
//!
//! Everything here reads files of `/proc` and of the cgroups' file systems, at the moment of the call.

use std::path::{Path, PathBuf};

use narrows_bytes::Bytes;

/// Memory that this process may still take: what the machine has available and what its cgroup, and each above it,
/// leaves. Page cache counts as available, as it gives way.
#[must_use]
pub fn available_memory() -> Option<Bytes> {
    System::default().available().map(Bytes)
}

/// The lowest limit of this process's cgroup and those above it; `None` if there is none.
#[must_use]
pub fn memory_limit() -> Option<Bytes> {
    System::default().limit().map(Bytes)
}

/// The most memory that this process has had resident.
#[must_use]
pub fn peak_resident() -> Option<Bytes> {
    System::default().field("self/status", "VmHWM:").map(Bytes)
}

/// What this process has resident.
#[must_use]
pub fn resident() -> Option<Bytes> {
    System::default().field("self/status", "VmRSS:").map(Bytes)
}

/// Gives memory that was freed back to the system, where the allocator keeps it and is the system's own (glibc). For
/// after what took much of it in small pieces, and before what is mapped: both would count as resident otherwise.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: It takes locks of the allocator as any allocation does, and changes nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Where the kernel shows its state; tests have folders of their own.
struct System {
    /// What `/proc` is.
    proc: PathBuf,
    /// What mount points are below: `/`.
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { proc: "/proc".into(), root: "/".into() }
    }
}

/// How a hierarchy of cgroups names limits, their use, and what of that is page cache.
struct Names {
    limits: &'static [&'static str],
    usage: &'static str,
    cache: [&'static str; 2],
}

const V2: Names = Names {
    // Beyond `high` a process is slowed down until it stands still.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    cache: ["inactive_file ", "active_file "],
};
const V1: Names = Names {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};

/// From here on a limit is none: version 1 says "unlimited" as the last whole page below 2^63, and pages have up to
/// 64 KiB.
const UNLIMITED: u64 = (1 << 63) - (1 << 20);

impl System {
    fn available(&self) -> Option<u64> {
        let machine = self.field("meminfo", "MemAvailable:")?;
        let left = self.of_cgroups(|names, dir| {
            let limit = limit(names, dir)?;
            let used = number(dir, names.usage)?;
            let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let of_cache = |line: &str| {
                names.cache.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            let cache = stat.lines().filter_map(of_cache).fold(0, u64::saturating_add);
            Some(limit.saturating_sub(used.saturating_sub(cache)))
        });
        Some(left.map_or(machine, |left| machine.min(left)))
    }

    fn limit(&self) -> Option<u64> {
        self.of_cgroups(limit)
    }

    /// A field in KiB.
    fn field(&self, file: &str, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.proc.join(file)).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The least that `of` says of this process's cgroup and those above it.
    fn of_cgroups(&self, of: impl Fn(&Names, &Path) -> Option<u64>) -> Option<u64> {
        let text = std::fs::read_to_string(self.proc.join("self/cgroup")).ok()?;
        let mounts = std::fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        let mut all = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let names = match controllers {
                "" => &V2,
                list if list.split(',').any(|name| name == "memory") => &V1,
                _ => continue,
            };
            let version_2 = controllers.is_empty();
            for mount in mounts.lines().filter_map(|line| Mount::of_memory(line, version_2)) {
                let top = self.root.join(mount.point.trim_start_matches('/'));
                // A container sees its own cgroup at the mount point, whatever path it has outside.
                let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
                let safe = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                let own = if safe { top.join(below) } else { top.clone() };
                let dirs = own.ancestors().take_while(|dir| dir.starts_with(&top));
                all.extend(dirs.filter_map(|dir| of(names, dir)));
            }
        }
        all.into_iter().min()
    }
}

/// Where a hierarchy of cgroups that may limit memory is mounted, and which cgroup is seen there.
struct Mount {
    root: String,
    point: String,
}

impl Mount {
    /// A line of mountinfo: `35 31 0:32 /root /point rw,relatime - cgroup cgroup rw,memory`.
    fn of_memory(line: &str, version_2: bool) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(3), kind.split(' '));
        let (root, point) = (place.next()?, place.next()?);
        let found = match kind.next()? {
            "cgroup2" => version_2,
            "cgroup" => !version_2 && kind.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        found.then(|| Self { root: root.to_owned(), point: point.to_owned() })
    }
}

/// The limit of a cgroup alone. None is the word `max`, no file, or a number that no machine reaches.
fn limit(names: &Names, dir: &Path) -> Option<u64> {
    let limits = names.limits.iter().filter_map(|name| number(dir, name));
    limits.filter(|limit| *limit < UNLIMITED).min()
}

fn number(dir: &Path, name: &str) -> Option<u64> {
    std::fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 16 GiB, of which 10 are available, with these files.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable:   10485760 kB\n";
        for (path, text) in files.iter().chain(&[("proc/meminfo", meminfo)]) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let system = System { proc: dir.path().join("proc"), root: dir.path().to_owned() };
        (dir, system)
    }

    const GIB: u64 = 1 << 30;
    const V1_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory\n",
    );
    const V2_MOUNT: (&str, &str) =
        ("proc/self/mountinfo", "41 31 0:38 / /cg rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");

    #[test]
    fn no_cgroup() {
        let (_dir, system) = system(&[]);
        assert_eq!((system.available(), system.limit()), (Some(10 * GIB), None));
    }

    #[test]
    fn version_1_says_unlimited_with_a_number() {
        for pages in ["9223372036854771712", "9223372036854710272"] {
            let (_dir, system) = system(&[
                V1_MOUNT,
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/\n0::/\n"),
                ("cg/memory/memory.limit_in_bytes", pages),
                ("cg/memory/memory.usage_in_bytes", "4096\n"),
            ]);
            assert_eq!((system.available(), system.limit()), (Some(10 * GIB), None));
        }
    }

    #[test]
    fn version_1_with_a_limit_above() {
        let (_dir, system) = system(&[
            V1_MOUNT,
            ("proc/self/cgroup", "4:freezer:/x\n3:hugetlb,memory:/jobs/7\n"),
            ("cg/memory/jobs/memory.limit_in_bytes", "2147483648"),
            ("cg/memory/jobs/memory.usage_in_bytes", "1610612736"),
            ("cg/memory/jobs/memory.stat", "cache 9\ntotal_inactive_file 536870912\ntotal_active_file 0\n"),
            ("cg/memory/jobs/7/memory.limit_in_bytes", "9223372036854771712"),
            ("cg/memory/jobs/7/memory.usage_in_bytes", "1"),
        ]);
        assert_eq!((system.available(), system.limit()), (Some(GIB), Some(2 * GIB)));
    }

    #[test]
    fn version_2() {
        let (_dir, system) = system(&[
            V2_MOUNT,
            ("proc/self/cgroup", "0::/user/app\n"),
            ("cg/user/app/memory.max", "max\n"),
            ("cg/user/app/memory.high", "3221225472\n"),
            ("cg/user/app/memory.current", "1073741824\n"),
            ("cg/user/memory.max", "4294967296\n"),
            ("cg/user/memory.current", "4294967296\n"),
            ("cg/user/memory.stat", "anon 1\ninactive_file 1073741824\nactive_file 1073741824\n"),
        ]);
        assert_eq!((system.available(), system.limit()), (Some(2 * GIB), Some(3 * GIB)));
    }

    /// The path of /proc/self/cgroup is that of the host, and the mount shows the container's own cgroup.
    #[test]
    fn in_a_container() {
        for (path, root) in [("/docker/abc", "/docker/abc"), ("/docker/abc", "/"), ("/../../other", "/")] {
            let mount = format!("41 31 0:38 {root} /cg rw - cgroup2 cgroup2 rw\n");
            let (_dir, system) = system(&[
                ("proc/self/mountinfo", &mount),
                ("proc/self/cgroup", &format!("0::{path}\n")),
                ("cg/memory.max", "1073741824\n"),
                ("cg/memory.current", "0\n"),
            ]);
            assert_eq!((system.available(), system.limit()), (Some(GIB), Some(GIB)), "{path} {root}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine() {
        assert!(available_memory().unwrap() > Bytes(0));
        assert!(resident().unwrap() <= peak_resident().unwrap());
    }
}
