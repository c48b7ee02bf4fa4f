//! The replicated disk from outside: over NBD, across crashes, with QEMU's own tools and with a real guest.

mod client;
mod crash;
mod guest;
mod nbd;
#[path = "../support/mod.rs"]
mod support;
mod tools;
