//! The replication group of one VM: who runs it, which output may leave, who takes over. `docs/vm-protocol.md` is the
//! protocol; this is its implementation without I/O.
//!
//! [`Member`] is one host's part: it is given messages, times and what happened ([`Input`]), and answers with what is
//! to be done ([`Output`]). It is made of
//! - [`core`]: the protocol without time, which the model check explores; [`election`] judges votes;
//! - [`detector`] and the lease, which decide when to act.

pub mod core;
pub mod detector;
pub mod election;
mod following;
mod isolation;
mod leading;
mod member;
pub mod message;
mod migration;
pub mod mutation;
pub mod output;
mod standing;
mod status;
mod timing;
pub mod types;

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;

pub use core::RECENT_EPOCHS;
pub use election::{How, Refusal};
pub use leading::{Change, ChangeError};
pub use member::{Command, Input, Member, Settings};
pub use message::{DecodeError, Message};
pub use migration::LAG_THOUSANDTHS_MAX;
pub use output::{Output, Start};
pub use status::{PeerStatus, Protection, Status, Succession};
pub use timing::Timing;
pub use types::{Alone, Config, Durable, Name, OutputMode, Policy, Position, Proposal, Quorum, Rules, Version};
