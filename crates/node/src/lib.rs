//! The node agent: pod state machine, shim, containers, volumes, probes, logs, exec.

pub mod adapters;
pub mod client;
pub mod context;
pub mod events;
pub mod image;
pub mod network;
pub mod pod;
pub mod shim;
pub mod spec;
pub mod volumes;
