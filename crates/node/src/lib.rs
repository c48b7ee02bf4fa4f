//! The node agent: pod state machine, shim, containers, volumes, probes, logs, exec.

pub mod client;
pub mod image;
pub mod pod;
pub mod shim;
pub mod spec;
