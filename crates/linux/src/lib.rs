//! The only crate that may contain `unsafe`: what Rust's libraries do not wrap of namespaces, cgroups, mounts and processes.
//!
//! | module | holds |
//! |---|---|
//! | [`allocator`] | which allocator a process has |
//! | [`bound`] | children that die with this process |
//! | [`bridge`] | bridges and their ports |
//! | [`cgroup`] | control groups above containers, of either version |
//! | [`descriptors`] | handing descriptors to another process |
//! | [`cpu_quota`] | a bound on the processor time of some threads |
//! | [`fork`] | `fork`, for a process with one thread |
//! | [`loopback`] | bringing `lo` up in a new network namespace |
//! | [`memory`] | giving freed memory back |
//! | [`netlink`] | netlink sockets, messages and attributes |
//! | [`netns`] | network namespaces as descriptors |
//! | [`process`] | the one place where child processes start |
//! | [`scheduling`] | which thread runs first, and where |
//! | [`shared`] | memory that another process writes too |
//! | [`signals`] | what a program inherits of signals |
//! | [`tap`] | tap devices |
//! | [`terminal`] | controlling terminals |
//! | [`userfault`] | which pages another process has written |

pub mod allocator;
pub mod bound;
pub mod bridge;
pub mod cgroup;
pub mod cpu_quota;
pub mod descriptors;
pub mod fork;
mod inject;
pub mod loopback;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod scheduling;
pub mod shared;
pub mod signals;
pub mod tap;
pub mod terminal;
pub mod userfault;
