//! The fault-tolerant virtual machine: an unmodified guest in a stock QEMU whose memory, devices and disk are
//! replicated continuously, so that it survives the loss of its host.
//!
//! | module | holds |
//! |---|---|
//! | [`clock`] | monotonic time, passed in |
//! | [`codec`] | an epoch as bytes: pages that changed, checksummed and bound to their place |
//! | [`disk`] | the disk: block server, record of an epoch's writes, replicas, base copy and catch-up |
//! | [`egress`] | the network card, which holds output back until its epoch is safe |
//! | [`group`] | who runs the VM, which output may leave, who takes over |
//! | [`host`] | the process on a host: joins everything else |
//! | [`machine`] | one QEMU: starting, controlling, checkpointing and restoring it |
//! | [`seed`] | cloud-init's seed image from `osConfig.customization` |
//! | [`spec`] | the document of a VM, and the images it names |
//! | [`throttle`] | the replication buffer, slowing the guest, the length of epochs |

pub mod clock;
pub mod codec;
pub mod disk;
pub mod egress;
pub mod group;
pub mod host;
pub mod machine;
pub mod seed;
pub mod spec;
pub mod throttle;
