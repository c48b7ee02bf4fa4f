//! The only crate that may contain `unsafe`: what Rust's libraries do not wrap of namespaces, cgroups, mounts and processes.
//!
//! | module | holds |
//! |---|---|
//! | [`bridge`] | bridges and their ports |
//! | [`cgroup`] | control groups above containers, of either version |
//! | [`fork`] | `fork`, for a process with one thread |
//! | [`loopback`] | bringing `lo` up in a new network namespace |
//! | [`memory`] | giving freed memory back |
//! | [`netlink`] | netlink sockets, messages and attributes |
//! | [`netns`] | network namespaces as descriptors |
//! | [`process`] | the one place where child processes start |
//! | [`signals`] | what a program inherits of signals |
//! | [`tap`] | tap devices |
//! | [`terminal`] | controlling terminals |

pub mod bridge;
pub mod cgroup;
pub mod fork;
pub mod loopback;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod signals;
pub mod tap;
pub mod terminal;
