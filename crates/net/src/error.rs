//! What can go wrong with the network.

use std::io;

use mycelium_linux::netlink::BatchError;

use crate::config::ConfigError;
use crate::conflict::Conflict;
use crate::ipam::Exhausted;
use crate::nft::NftError;

/// A failure of the network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A range is taken.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Pods run with other ranges.
    #[error(
        "pods are running with {running}, not with {wanted}: start with those --pod-cidr and --service-cidr, or stop the pods with `mycelium down` first"
    )]
    RangeInUse {
        /// The ranges of the running pods.
        running: String,
        /// The configured ranges.
        wanted: String,
    },
    /// A node's network is described as if it were the machine's.
    #[error("the node {0} has no link to the machine")]
    NoUplink(String),
    /// No address is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The kernel refused a request.
    #[error("{what}")]
    Netlink {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: BatchError,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The rules could not be set.
    #[error(transparent)]
    Nft(#[from] NftError),
}

impl NetError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(BatchError) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }
}
