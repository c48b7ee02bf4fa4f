//! The engine on the real machine: real namespaces, real containers, the real kubectl. Needs root.
//!
//! Each test owns an engine with a directory, port and ranges of its own, and they run in parallel.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod adoption;
mod backup;
mod check;
mod cli;
mod clients;
mod databases;
mod debug;
mod disk;
mod drain;
mod durability;
mod ecosystem;
mod faults;
mod ingress;
mod kubectl;
mod lifecycle;
mod metrics;
mod neighbours;
mod network;
mod nodes;
mod platform;
mod pods;
mod policies;
mod pressure;
mod probes;
mod resize;
mod software;
mod support;
mod volumes;
mod workloads;
