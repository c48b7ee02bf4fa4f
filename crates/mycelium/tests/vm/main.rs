//! Virtual machines that survive their hosts, on real ones: hosts are network namespaces, guests run in QEMU. Needs root.
//!
//! `make test` runs a bounded part; `make chaos` sets `MYCELIUM_CHAOS_KILLS` and `MYCELIUM_CHAOS_POSTGRES_KILLS` to the
//! large numbers. `MYCELIUM_CHAOS_SEED` repeats a run as far as timing allows.

mod chaos;
mod faults;
mod groups;
mod guests;
mod lab;
mod migrate;
mod numbers;
mod postgres;
