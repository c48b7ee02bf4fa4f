//! One QEMU: starting, controlling, checkpointing and restoring it.
//!
//! | module | holds |
//! |---|---|
//! | `config` | what a machine is made of, as data, and as QEMU's arguments |
//! | `host` | what this host can do for a machine |
//! | `qemu` | one QEMU process, from start to end |
//! | `qmp` | QEMU's control protocol |
//! | `memory` | the guest's RAM, shared with QEMU |
//! | `dirty` | which pages were written |
//! | `staging`, `copy` | copies of pages, and making them |
//! | `checkpoint` | checkpoints of a running guest |
//! | `state_file` | where QEMU leaves the devices' state |
//!
//! `docs/vm-checkpoints.md` tells why it is done this way, with figures.

mod checkpoint;
mod config;
mod copy;
mod dirty;
mod error;
mod host;
mod memory;
mod qemu;
mod qmp;
mod staging;
mod state_file;

pub use checkpoint::{Capture, Checkpointer, PauseTiming, PreCopy};
pub use config::{Accel, Boot, MachineConfig, Nic};
pub use error::{MachineError, Result};
pub use host::{kvm_works, shortfalls};
pub use memory::{GuestMemory, PAGE};
pub use qemu::{Machine, Start};
pub use qmp::{Event, Qmp};
pub use staging::Pages;
