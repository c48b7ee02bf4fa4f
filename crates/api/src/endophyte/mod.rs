//! `EndophyteVM` of `mycelium.network/v1`: a virtual machine that survives the loss of its host.
//!
//! [`EndophyteVM::from_value`] reads a document strictly: an unknown field, a wrong type and a value out of bounds are
//! errors that name the field, what was found, what is allowed and what to do. Fields that are absent get the defaults
//! of [`fields`], which is also the reference that `docs/vm-document.md` prints.

mod fields;
mod network;
mod overrides;
#[cfg(test)]
mod tests;
mod types;
mod validate;

pub use fields::reference;
pub use network::{Attachment, AttachmentError, Mac, MacError};
pub use overrides::{Overrides, apply_overrides};
pub use types::{
    Alone, BackupStrategy, Compression, DistributedRam, EndophyteSpec, EndophyteVM, EpochLength, FailureDetection,
    LoadBalancing, Metadata, NetworkConfig, OsConfig, OutputCommit, PerformanceConfig, RhizomorphConnections,
    SelectionCriteria, StorageConfig, ThrottlingCurve, VmSpec,
};
