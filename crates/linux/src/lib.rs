//! The only crate that may contain `unsafe`: what Rust's libraries do not wrap of namespaces, cgroups, mounts and processes.
//!
//! | module | holds |
//! |---|---|
//! | [`process`] | the one place where child processes start |

pub mod process;
