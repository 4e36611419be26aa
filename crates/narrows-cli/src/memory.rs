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

/// The least that this cgroup (version 2) or one above it leaves.
fn cgroup_headroom() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let read = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Path::new("/sys/fs/cgroup")
        .join(own)
        .ancestors()
        .take_while(|dir| dir.starts_with("/sys/fs/cgroup"))
        .filter_map(|dir| {
            Some(read(&dir.join("memory.max"))?.saturating_sub(read(&dir.join("memory.current"))?))
        })
        .min()
}
