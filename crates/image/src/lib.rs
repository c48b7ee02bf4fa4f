//! Content-addressed image store: pull, load, import, unpack, prune.
//!
//! Several processes may use one store at once (an engine and any number of commands): the store is nothing but
//! files, changed by temporary file and rename, under `flock`.
//!
//! ```text
//! <dir>/index.json            which names stand for which images; small, replaced atomically
//! <dir>/index.lock            held while index.json is replaced
//! <dir>/content.lock          held shared while content is added, exclusively while it is removed
//! <dir>/blobs/sha256/<hex>    manifests and configurations, by digest
//! <dir>/layers/<chain>/       unpacked layers in overlayfs form, shared by all images that begin with the same layers
//! <dir>/layers/<chain>.json   what such a layer is; written last, so that its presence means the layer is complete
//! <dir>/ingest/               downloads that may be resumed, and temporary files
//! ```
//!
//! A layer's compressed form is dropped once it is unpacked: the store holds each layer once.
//!
//! | module | holds |
//! |---|---|
//! | [`reference`] | image names as Docker reads them |
//! | [`digest`] | content digests, and readers that compute them |
//! | [`config`] | manifests and configurations of OCI and Docker |
//! | [`store`] | [`Images`]: open, list, resolve, lower directories, remove |
//! | `index`, `lock` | the index file, the locks |
//! | [`unpack`] | a layer's tar to a directory for overlayfs |
//! | [`load`], [`import`] | archives made elsewhere; root file systems and single binaries |
//! | [`pull`] | registries: `registry` connects and explains errors, `download` resumes, [`credentials`] logs in |
//! | [`prune`], `in_use` | what may go when space is needed |

pub mod config;
pub mod credentials;
pub mod digest;
mod download;
mod error;
pub mod import;
mod in_use;
mod index;
pub mod load;
mod lock;
pub mod prune;
pub mod pull;
pub mod reference;
mod registry;
pub mod store;
pub mod unpack;

pub use config::ImageConfig;
pub use credentials::Credentials;
pub use error::{Error, Result};
pub use import::ImportOptions;
pub use prune::{PrunePolicy, Pruned};
pub use pull::{Progress, PullError, PullErrorKind, PullOptions};
pub use reference::{ParseReferenceError, Reference};
pub use store::{Image, Images};
