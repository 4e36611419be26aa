//! How much memory there is, as the kernel says. Elsewhere than on Linux nobody knows.

use std::path::Path;

use narrows::Bytes;

/// Memory that the process may still take: what the machine has available and what its cgroup leaves.
pub(crate) fn available() -> Option<Bytes> {
    let machine = kib_field("/proc/meminfo", "MemAvailable:")?;
    Some(Bytes(cgroup_headroom().map_or(machine, |headroom| machine.min(headroom))))
}

/// The most memory that the process has had resident.
pub(crate) fn peak_resident() -> Option<Bytes> {
    kib_field("/proc/self/status", "VmHWM:").map(Bytes)
}

fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// How the kernel names a cgroup's limit, its use, and what of that is page cache, which gives way.
struct Hierarchy {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    cache: [&'static str; 2],
}

/// Version 2, where the line of /proc/self/cgroup names no controller.
const V2: Hierarchy = Hierarchy {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    cache: ["inactive_file ", "active_file "],
};
const V1: Hierarchy = Hierarchy {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};

/// The least that this process's cgroup or one above it leaves.
fn cgroup_headroom() -> Option<u64> {
    of_cgroups(headroom)
}

/// The lowest limit of this process's cgroup and those above it; `None` if there is none.
pub(crate) fn cgroup_limit() -> Option<Bytes> {
    of_cgroups(|hierarchy, dir| number(dir, hierarchy.limit)).map(Bytes)
}

/// The least that `of` says of this process's cgroup and those above it.
fn of_cgroups(of: impl Fn(&Hierarchy, &Path) -> Option<u64>) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut all = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let hierarchy = match controllers {
            "" => &V2,
            names if names.split(',').any(|name| name == "memory") => &V1,
            _ => continue,
        };
        let root = Path::new(hierarchy.root);
        let own = root.join(path.trim_start_matches('/'));
        let dirs = own.ancestors().take_while(|dir| dir.starts_with(root));
        all.extend(dirs.filter_map(|dir| of(hierarchy, dir)));
    }
    all.into_iter().min()
}

/// No limit is the word `max`, or no file.
fn number(dir: &Path, name: &str) -> Option<u64> {
    std::fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
}

fn headroom(hierarchy: &Hierarchy, dir: &Path) -> Option<u64> {
    let (limit, usage) = (number(dir, hierarchy.limit)?, number(dir, hierarchy.usage)?);
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let of_cache = |line: &str| {
        hierarchy.cache.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let cache: u64 = stat.lines().filter_map(of_cache).sum();
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}
