//! The guest's network card, between QEMU's `-netdev stream` socket and a tap device, and what the guest has said
//! but not yet done: in output-commit mode a frame leaves only when the epoch that produced it is safe.
//!
//! ```text
//!              ingress: at once
//!   tap ─────────────────────────────────► QEMU
//!    ▲                                      │ frames, each behind its length (4 bytes, big-endian)
//!    │        ┌─ sealed N ─┬─ N+1 ─┬─ open ◄┘
//!    └────────┤            │       │         output commit: queued per epoch
//!  release(N) └────────────┴───────┘         best effort:   straight through
//! ```
//!
//! The work is done by whoever has something to do: the `nic` thread when a descriptor is ready, the checkpoint loop in
//! [`Nic::seal`] (it must see every frame that QEMU wrote before `stop` completed, so it reads the socket empty itself),
//! the acknowledging thread in [`Nic::release`]. One lock orders them, and no frame waits for a thread to wake up.
//!
//! **Which epoch a frame belongs to.** [`Nic::seal`] takes what is in the socket, up to the last whole frame. A frame
//! of which QEMU has written only a part so far belongs to the next epoch, which is later and therefore safe.
//!
//! **Bounds.** When the queue holds [`Limits`], QEMU's socket is no longer read: the guest's card is slow, its processors
//! are not. A quarter of a megabyte below the limit is left for what [`Nic::seal`] finds in the socket. Nothing is
//! dropped on the way out but by [`Nic::fence`], by a mode that says so, or by a port that refuses it, and each is counted.

mod announce;
mod core;
mod framing;
mod learned;
mod nic;
mod queue;
mod stats;
#[cfg(test)]
mod tests;

pub use learned::{Learned, LearnedAddress};
pub use nic::{Mode, Nic, NicConfig, NicError, Port, Released, Sealed};
pub use queue::{EgressQueue, EpochOrder, Limits, Segment};
pub use stats::NicStats;
