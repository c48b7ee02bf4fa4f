//! The whole control plane in one thread, on virtual time, driven by a seed.
//!
//! A run is a life of one machine: the store on a simulated disk, the API server, the controllers and the scheduler as
//! they are, fake nodes that pretend to run pods, and a user who creates, scales, updates, rolls back and deletes.
//!
//! ```text
//!  seed ─► plan of faults ─► chaos: user + faults, process killed and started again ─► faults stop ─► settled? ─► stable?
//!                                  └──────────── checker sees every event ──────────────────────┘
//! ```
//!
//! Each life of the engine's process has its own single-threaded tokio runtime with a paused clock. Killing the
//! process means dropping the runtime, with every task wherever it stands, and opening the disk as it was synced.
//!
//! | module | holds |
//! |---|---|
//! | [`plan`] | which faults a seed brings |
//! | [`run`] | the lives and phases of a run |
//! | [`checker`] | the invariants, judged at every event |
//! | [`deployments`], [`jobs`] | the rules for workloads |
//! | [`identity`] | what really runs on the nodes |
//! | [`settled`] | what must be true once the faults have stopped |
//! | [`node`] | nodes that pretend to run pods |
//! | [`user`] | the random user |
//! | [`network`] | delays, losses and stalls between clients and server |

pub mod api;
pub mod checker;
pub mod clock;
pub mod deployments;
pub mod identity;
pub mod jobs;
pub mod network;
pub mod node;
pub mod plan;
pub mod random;
pub mod run;
pub mod settled;
pub mod user;

pub use run::{Report, run};
