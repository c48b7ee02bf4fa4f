//! What can go wrong with a disk, said so that the person at the command line knows what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::Position;

/// An operation on a disk or a replica failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file system is full.
    #[error("no space is left to {action} {}: free some, nothing was changed", path.display())]
    Full {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The wanted size is smaller than what the disk or its image holds.
    #[error("diskSize {wanted} is smaller than the {have} bytes of {}: a disk cannot shrink", what.display())]
    TooSmall {
        /// What holds more.
        what: PathBuf,
        /// Its size in bytes.
        have: u64,
        /// The size asked for in bytes.
        wanted: u64,
    },
    /// A new disk needs an image or a size.
    #[error("{} has no disk yet: give an image or a diskSize", dir.display())]
    NoSize {
        /// The VM's folder.
        dir: PathBuf,
    },
    /// Another process has the disk open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// `qemu-img` is needed and missing, or refused the image.
    #[error("cannot convert {}: {reason}", image.display())]
    Convert {
        /// The image.
        image: PathBuf,
        /// What `qemu-img` said, or what to install.
        reason: String,
    },
    /// The folder holds a replica, or a disk whose host crashed; it cannot be opened as asked.
    #[error("{} {reason}", dir.display())]
    Role {
        /// The VM's folder.
        dir: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// An epoch does not follow the one before.
    #[error("epoch {got} does not follow {have}: the replica needs a catch-up")]
    Gap {
        /// The last epoch held.
        have: Position,
        /// The one offered.
        got: Position,
    },
    /// An epoch is of a term that is over, or contradicts one that is already held.
    #[error("epoch {got} contradicts {have}, which is held already")]
    Stale {
        /// The last epoch held.
        have: Position,
        /// The one offered.
        got: Position,
    },
    /// The replica holds no whole epoch yet.
    #[error("the replica is not complete: its base copy has not finished")]
    Incomplete,
    /// A write that lies outside the disk.
    #[error("{len} bytes at {offset} lie outside the disk of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// The other side broke the synchronisation's rules.
    #[error("synchronisation: {0}")]
    Protocol(&'static str),
}

/// The result of an operation on a disk.
pub type Result<T, E = DiskError> = std::result::Result<T, E>;

/// Adds what was being done, and to which file, to an I/O error.
pub(super) trait IoContext<T> {
    /// The context for `action` on `path`.
    fn on(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { action, path, source },
                _ => DiskError::Io { action, path, source },
            }
        })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).on(action, path)
    }
}
