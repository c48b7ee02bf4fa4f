//! What the node needs of an image store.

use std::path::PathBuf;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// The part of an image's configuration that decides how it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The words after them, unless the pod gives its own.
    pub cmd: Vec<String>,
    /// Variables, each `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, or empty for root.
    pub user: String,
    /// Where the program starts, or empty.
    pub working_dir: String,
    /// The signal that asks it to stop, or empty for `SIGTERM`.
    pub stop_signal: String,
}

/// An image in the store, ready to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodImage {
    /// What `imageID` shows: a repository with digest, or the digest of the configuration.
    pub id: String,
    /// Its name in full, as `image` in a status shows it.
    pub name: String,
    /// How it runs.
    pub config: ImageConfig,
    /// Its unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// Bytes on disk.
    pub size: u64,
    /// It was loaded by hand, not pulled.
    pub loaded_by_hand: bool,
}

/// Logins of an image pull secret.
#[derive(Clone, PartialEq, Eq)]
pub enum PullSecret {
    /// Of type `kubernetes.io/dockerconfigjson`.
    Config(Vec<u8>),
    /// Of type `kubernetes.io/dockercfg`.
    Cfg(Vec<u8>),
}

/// Why an image is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The reference is not well formed.
    #[error("Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {reason}")]
    InvalidName {
        /// As the pod has it.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry could not be reached, refused, or does not have it.
    #[error("{message}")]
    Pull {
        /// What happened and what to do.
        message: String,
        /// Whether an image of that name that was loaded by hand may serve instead.
        local_may_serve: bool,
    },
    /// The store on this machine.
    #[error("{0}")]
    Store(String),
}

/// Which of the images that nobody uses go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// When the disk is fuller than `high`, in percent, the longest unused, until it is at `low`.
    Percent {
        /// Start above this.
        high: u8,
        /// Stop at this.
        low: u8,
    },
    /// All.
    All,
}

/// An image store.
pub trait ImageSource: Send + Sync + 'static {
    /// The image, if it is in the store.
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<PodImage>, ImageError>>;

    /// Fetches the image from its registry.
    fn pull<'a>(&'a self, reference: &'a str, secrets: &'a [PullSecret])
    -> BoxFuture<'a, Result<PodImage, ImageError>>;

    /// Removes images that none of `used` (image ids) needs.
    fn collect<'a>(&'a self, used: &'a [String], how: Collect) -> BoxFuture<'a, ()>;
}
