//! The replicated disk: a raw sparse file that QEMU reaches over NBD, whose writes are recorded per epoch, and its
//! replicas on other hosts, which advance by whole epochs only.
//!
//! ```text
//!  QEMU ── NBD, unix socket ── BlockServer ── Disk ── disk.raw
//!                                              │ seal(epoch)
//!                                              ▼
//!                                          DiskEpoch ─────────▶ Replica::commit ── journal ── disk.raw
//!                               sync::Source ◀── messages ──▶ sync::Target      (base copy, catch-up)
//! ```
//!
//! A VM's folder holds:
//!
//! | file | content |
//! |---|---|
//! | `disk.raw` | the disk, sparse |
//! | `disk.meta` | what it is (primary, replica, incomplete), its lineage, term and epoch; two checksummed slots |
//! | `disk.map` | which 64 KiB blocks may differ from what every host has |
//! | `journal.0`, `journal.1` | a replica's epochs that are not yet in `disk.raw` |
//!
//! What a flush means, and what survives which loss, is in `docs/vm-disk.md`.

#[cfg(test)]
mod crash_tests;
mod dirty;
mod epoch;
mod error;
mod image;
mod journal;
mod log;
mod meta;
pub mod nbd;
mod primary;
mod replica;
mod storage;
pub mod sync;
#[cfg(test)]
mod sync_tests;

use crate::group::Position;
pub use epoch::{DecodeError, DiskEpoch, Payload, Write};
pub use error::{DiskError, Result};
pub use log::WriteLog;
pub use nbd::BlockServer;
pub use primary::{Disk, DiskStats, Protection};
pub use replica::{Committed, Replica, ReplicaFiles, ReplicaOptions};
pub use storage::{DiskFile, Storage};

/// The unit of hashing, of copying and of the map of differences.
pub const BLOCK: u64 = 64 * 1024;

/// The names of the files in a VM's folder.
mod names {
    pub const IMAGE: &str = "disk.raw";
    pub const META: &str = "disk.meta";
    pub const MAP: &str = "disk.map";
    pub const JOURNALS: [&str; 2] = ["journal.0", "journal.1"];
}

/// The blocks that a range meets.
fn blocks(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}
