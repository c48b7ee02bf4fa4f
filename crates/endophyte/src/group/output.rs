//! What a member wants done.

use std::collections::BTreeSet;

use serde::Serialize;

use super::message::Message;
use super::types::{Durable, Name, Position, Version};

/// From what a guest starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Start {
    /// From the whole epoch held here.
    Promoted {
        /// The epoch.
        from: Position,
    },
    /// From disk: a boot.
    Cold,
}

/// An act for the embedder. Begun in order; what follows a [`Output::Persist`] waits until that is on disk.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Write and sync this state.
    Persist(Durable),
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: Name,
        /// What.
        message: Message,
    },
    /// Output of all epochs up to and including this one may leave, while the lease lasts.
    Release {
        /// The epoch.
        through: u64,
    },
    /// Output may leave until this time of the local clock. In best effort: everything; otherwise: what is released.
    Lease {
        /// Microseconds of the clock that `now` is.
        until_us: u64,
    },
    /// No output may leave.
    Hold {
        /// Why, for people.
        reason: &'static str,
    },
    /// Start the guest here, in this term: its epochs are tagged with it.
    StartGuest {
        /// The term.
        term: u64,
        /// From what.
        from: Start,
    },
    /// Another host runs the VM: stop the guest, drop its output and its state.
    StopGuest,
    /// Pause the guest and seal its last epoch (migration); answer with `GuestPaused`.
    PauseGuest,
    /// Let the paused guest go on.
    ResumeGuest,
    /// Stop the guest where it is: no majority hears this host, and has not for long.
    HaltGuest,
    /// Let the guest go on that was stopped so.
    ContinueGuest,
    /// Make this received epoch the whole one: apply it, all or nothing.
    Commit(Position),
    /// Bring a backup in sync: everything, or the difference from what it reports.
    BeginSync {
        /// The backup.
        peer: Name,
        /// What it says it holds, which need not lie in our history.
        from: Option<Position>,
    },
    /// Send the guest's epochs after this one again, with the term that they have now, before any new one.
    Resend {
        /// To whom.
        to: BTreeSet<Name>,
        /// The last epoch that they have.
        after: u64,
    },
    /// A configuration is settled.
    Settled(Version),
    /// The answer to the last command.
    Answer(Result<String, String>),
}
