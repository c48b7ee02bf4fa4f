//! The replicated disk from outside: over NBD, across crashes, and with QEMU's own tools.

mod client;
mod nbd;
mod tools;
