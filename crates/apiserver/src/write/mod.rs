//! Writing: create, update, patch, delete, and what Kubernetes' admission adds on the way.
//!
//! ```text
//!  decode ─► default ─► storage version ─► managed fields ─► admission ─► prepare ─► allocate ─► validate ─► commit
//! ```
//!
//! An update is a pure function of the current object, tried again when somebody else was faster, unless the client
//! named the revision it had seen.

pub mod admission;
pub mod create;
pub mod decode;
pub mod delete;
pub mod eviction;
pub mod expiry;
pub mod options;
pub mod patch;
pub mod pods;
pub mod services;
pub mod update;
pub mod validating;
