//! Pressure: the node runs short of memory, disk or process ids. It says so, frees what nobody uses, and then evicts pods,
//! one at a time, those first that use more than they asked for.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | thresholds as a kubelet takes them, and Kubernetes' defaults |
//! | [`signals`] | what is measured, and by whom: the machine, or a test |
//! | [`plan`] | pure: which thresholds are met, which conditions hold, which pod goes, in which words |
//! | [`disk`] | what pods have on disk, and the limits of containers and volumes |
//! | [`keeper`] | the task that looks every ten seconds, plans, acts |
//!
//! A look costs three small reads. Folders are walked only under disk pressure, or for pods with a limit on their disk.

pub mod config;
pub mod disk;
pub mod keeper;
pub mod plan;
pub mod signals;

pub use config::Config;
pub use signals::{Meter, Sample, Signal};

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Memory is short.
    Memory,
    /// Disk is short.
    Disk,
    /// Process ids are short.
    Pid,
}

impl Condition {
    /// The condition's type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}
