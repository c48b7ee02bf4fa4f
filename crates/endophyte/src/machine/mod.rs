//! One QEMU: starting, controlling, checkpointing and restoring it.
