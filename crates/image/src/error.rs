//! What can go wrong with a store on disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::reference::ParseReferenceError;
use crate::unpack::UnpackError;

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the image store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}{}", path.display(), hint(source))]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The name is not an image reference.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// No image has that name.
    #[error("image {name:?} is not in the store; `mycelium image list` shows what is")]
    NotFound {
        /// The name as given.
        name: String,
    },
    /// A running container uses the image.
    #[error(
        "image {name:?} is in use by a container; stop it first, or use --force to drop the name and keep the layers until then"
    )]
    InUse {
        /// The name as given.
        name: String,
    },
    /// The index file cannot be understood.
    #[error("the image index {} is damaged; move it away to start with an empty store (layers are kept until the next prune)", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: serde_json::Error,
    },
    /// Content does not have the digest it should have.
    #[error("{what} is corrupt: expected {expected}, found {found}; fetch or build it again")]
    Corrupt {
        /// Which content.
        what: String,
        /// The digest that was promised.
        expected: String,
        /// The digest of what is there.
        found: String,
    },
    /// A document of an image cannot be used.
    #[error("{what} cannot be used: {reason}")]
    Document {
        /// Which document.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The archive is of no kind that is known.
    #[error("{} is not an image archive: {reason}; expected an OCI layout (folder or tar) or the output of `docker save`", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An archive does not say what its image is called.
    #[error("the image in {} has no name; give one with --name", path.display())]
    Unnamed {
        /// The archive.
        path: PathBuf,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {layer}")]
    Unpack {
        /// The layer's digest or file.
        layer: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
}

/// A next step for the errors people meet most.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (the disk is full: free some space, for instance with `mycelium image prune`)"
        }
        io::ErrorKind::PermissionDenied => " (run as root)",
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is read-only)",
        _ => "",
    }
}

/// Gives an `io::Error` its context.
pub(crate) trait Context<T> {
    /// Names the action and the path.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.as_ref().to_path_buf(), source: source.into() })
    }
}
