//! From a pod's container to what the runtime is told: pure functions.

pub mod expand;
pub mod oci;
pub mod resources;
pub mod seccomp;
pub mod users;
