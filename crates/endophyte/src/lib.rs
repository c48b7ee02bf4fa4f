//! The fault-tolerant virtual machine: an unmodified guest in a stock QEMU whose memory, devices and disk are
//! replicated continuously, so that it survives the loss of its host.
//!
//! | module | holds |
//! |---|---|
//! | [`machine`] | one QEMU: starting, controlling, checkpointing and restoring it |

pub mod machine;
