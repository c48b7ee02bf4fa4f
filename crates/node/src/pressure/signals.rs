//! What is measured of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Condition;
use crate::register::meminfo;

/// Something that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that programs can still get.
    Memory,
    /// Bytes left where pods write.
    NodeFs,
    /// Files that can still be made there.
    NodeFsInodes,
    /// Bytes left where images are.
    ImageFs,
    /// Files that can still be made there.
    ImageFsInodes,
    /// Processes that can still be started.
    Pid,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::NodeFs, Self::NodeFsInodes, Self::ImageFs, Self::ImageFsInodes, Self::Pid];

    /// As a kubelet names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::Pid => "pid.available",
        }
    }

    /// What pods are told that the node is low on.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::NodeFs | Self::ImageFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes => "inodes",
            Self::Pid => "pids",
        }
    }

    /// The node's condition while it is short.
    pub fn condition(self) -> Condition {
        match self {
            Self::Memory => Condition::Memory,
            Self::Pid => Condition::Pid,
            _ => Condition::Disk,
        }
    }
}

/// One amount: what is left, of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// What is left.
    pub available: u64,
    /// What there is.
    pub capacity: u64,
}

/// One look. A signal that cannot be measured is missing.
pub type Sample = BTreeMap<Signal, Level>;

/// Who measures.
pub trait Meter: Send + Sync + 'static {
    /// Looks now.
    fn sample(&self) -> Sample;
}

/// This machine.
pub struct Machine {
    /// The folder whose file system holds pods and images.
    pub data_dir: PathBuf,
}

impl Meter for Machine {
    fn sample(&self) -> Sample {
        let mut sample = file_system(&self.data_dir);
        sample.insert(Signal::Memory, Level { available: meminfo("MemAvailable"), capacity: meminfo("MemTotal") });
        sample.extend(processes().map(|level| (Signal::Pid, level)));
        sample.retain(|_, level| level.capacity > 0);
        sample
    }
}

/// Pods and images are in one file system.
fn file_system(dir: &Path) -> Sample {
    let Ok(found) = rustix::fs::statvfs(dir) else { return Sample::new() };
    let bytes = Level { available: found.f_bavail * found.f_frsize, capacity: found.f_blocks * found.f_frsize };
    let files = Level { available: found.f_favail, capacity: found.f_files };
    Sample::from([
        (Signal::NodeFs, bytes),
        (Signal::ImageFs, bytes),
        (Signal::NodeFsInodes, files),
        (Signal::ImageFsInodes, files),
    ])
}

/// From `/proc/loadavg`: `0.1 0.2 0.3 running/all last`, and the least of the kernel's bounds.
fn processes() -> Option<Level> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let used: u64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let bound = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u64>().ok();
    let capacity = bound("pid_max")?.min(bound("threads-max")?);
    Some(Level { available: capacity.saturating_sub(used), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_measured() {
        let sample = Machine { data_dir: std::env::temp_dir() }.sample();
        for signal in [Signal::Memory, Signal::NodeFs, Signal::Pid] {
            let level = sample.get(&signal).unwrap_or_else(|| panic!("{} is missing", signal.name()));
            assert!(level.available <= level.capacity && level.available > 0, "{signal:?} {level:?}");
        }
    }
}
