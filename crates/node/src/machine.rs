//! What the machine offers to containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use mycelium_linux::cgroup::Hierarchies;

use crate::spec::oci::Machine;

/// Folders below `/dev` that every container has for itself.
const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];
/// More device nodes than this are not passed on.
const DEVICES_MAX: usize = 1024;

/// Looks at the machine.
pub fn look() -> Machine {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), &mut devices);
    Machine { capabilities: capabilities(), unified_cgroups: Hierarchies::get().unified(), devices }
}

fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}

fn collect(dir: &Path, devices: &mut Vec<(String, char, u32, u32)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let kind = meta.file_type();
        if kind.is_dir() && !OWN.iter().any(|own| path == Path::new(own)) {
            collect(&path, devices);
        } else if (kind.is_char_device() || kind.is_block_device()) && devices.len() < DEVICES_MAX {
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            devices.push((path.to_string_lossy().into_owned(), letter, major, minor));
        }
    }
}
