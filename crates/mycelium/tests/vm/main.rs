//! Virtual machines that survive their hosts, on real ones: hosts are network namespaces, guests run in QEMU. Needs root.
//!
//! `make test` runs a bounded part; `make chaos` sets the variables named `MYCELIUM_CHAOS_...` below to large numbers.
//! `MYCELIUM_CHAOS_SEED` repeats a run as far as timing allows.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../endophyte/tests/support/huge_pages.rs"]
mod huge_pages;

mod boot;
mod chaos;
mod console;
mod faults;
mod groups;
mod guests;
mod lab;
mod manifests;
mod memory;
mod migrate;
mod modes;
mod network;
mod numbers;
mod packing;
mod partitions;
mod phases;
mod postgres;
mod pressure;
mod random;
mod requirements;
mod stalls;
mod storage;
mod wire;
