//! Who may take over: a pure judgement of the votes at hand.
//!
//! It holds for fenced voters (votes on disk). The same judgement of pre-votes only tells whether it is worth trying.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::message::Ballot;
use super::mutation::{Fault, Faults};
use super::types::{Name, Policy, Position, Proposal, Quorum};

/// The candidate, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub me: &'a Name,
    /// Its guest still runs (or is paused) since it was elected in this term.
    pub live_since: Option<u64>,
    /// The primary gave up its term: all it released is at or before this position.
    pub certified: Option<(&'a Name, Position)>,
    /// How it was asked to stand.
    pub how: How,
    /// Deliberate faults, in tests.
    pub faults: Faults,
}

/// How an election came about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum How {
    /// By suspicion, or by a planned hand-over.
    #[default]
    Automatic,
    /// An operator asks: an even split can be decided.
    ByHand,
    /// An operator answers for the consequences.
    Forced,
    /// The VM is to be started anew from this host's disk.
    Cold,
}

/// Why a candidate may not take over (now).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, thiserror::Error)]
pub enum Refusal {
    /// It belongs to no group.
    #[error("this host does not belong to the group")]
    NotMember,
    /// Too few answered.
    #[error("no majority: {} did not answer", list(.missing))]
    NoMajority {
        /// The voters that did not vote.
        missing: BTreeSet<Name>,
    },
    /// It has no whole epoch.
    #[error("this host holds no whole epoch of the VM")]
    NothingHeld,
    /// The VM ran unprotected.
    #[error("no backup was in sync: only {primary} has the state")]
    Unprotected {
        /// The primary that had no holders.
        primary: Name,
    },
    /// Holders that did not answer, or lost what they held, may have had an epoch that was released.
    #[error("{} of the backups in sync may hold a later epoch whose output was released (policy {policy:?})", list(.missing))]
    HoldersMissing {
        /// Holders that were not heard or hold nothing any more.
        missing: BTreeSet<Name>,
        /// The policy that makes them necessary.
        policy: Policy,
    },
    /// Another one holds a later epoch.
    #[error("{peer} holds a later epoch ({}, here {})", .theirs.epoch, .ours.epoch)]
    Behind {
        /// Who is ahead.
        peer: Name,
        /// What it holds.
        theirs: Position,
        /// What is held here.
        ours: Position,
    },
    /// A start from disk where the VM could go on instead.
    #[error("{} may hold the running state: promote it there, or force", list(.holders))]
    HeldElsewhere {
        /// Those that hold it or did not say.
        holders: BTreeSet<Name>,
    },
    /// A start from disk on a host that was not the last to run the VM.
    #[error("{primary} ran the VM last, and has its latest disk")]
    RanElsewhere {
        /// The last primary.
        primary: Name,
    },
}

fn list(names: &BTreeSet<Name>) -> String {
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// The newest configuration among the ballots that can have been settled. One is ruled out when those who lack it (and
/// never will accept it, having voted in a later term) leave it no majority.
pub fn newest(ballots: &BTreeMap<Name, Ballot>) -> Option<&Arc<Proposal>> {
    let version = |ballot: &Ballot| ballot.proposal.as_ref().map(|proposal| proposal.config.version);
    let mut seen: Vec<_> = ballots.values().filter_map(|ballot| ballot.proposal.as_ref()).collect();
    seen.sort_by_key(|proposal| std::cmp::Reverse((proposal.config.version, proposal.settled)));
    seen.into_iter().find(|proposal| {
        let wanted = Some(proposal.config.version);
        proposal.settled || proposal.majority(|name| ballots.get(name).is_none_or(|ballot| version(ballot) >= wanted))
    })
}

/// Whether the candidate may take over with these ballots (its own among them); the configuration it succeeds.
pub fn assess(ballots: &BTreeMap<Name, Ballot>, candidate: &Candidate<'_>) -> Result<Arc<Proposal>, Refusal> {
    let newest = newest(ballots).ok_or(Refusal::NotMember)?;
    let config = &newest.config;
    if !config.data.contains(candidate.me) {
        return Err(Refusal::NotMember);
    }
    let voted = |name: &Name| ballots.contains_key(name);
    let enough = |quorum: &Quorum| match candidate.how {
        How::Forced => true,
        How::ByHand => quorum.majority_by_hand(&config.primary, voted),
        How::Automatic | How::Cold => quorum.majority(voted),
    };
    if let Some(quorum) = newest.quorums().iter().find(|quorum| !enough(quorum)) {
        let missing = quorum.voters.iter().filter(|name| !voted(name)).cloned().collect();
        return Err(Refusal::NoMajority { missing });
    }
    if candidate.how == How::Cold {
        return assess_cold(ballots, candidate, newest);
    }
    let own_reign = candidate.live_since == Some(config.version.term) && config.primary == *candidate.me;
    if own_reign {
        return Ok(newest.clone());
    }
    assess_data(ballots, candidate, newest)
}

fn assess_data(
    ballots: &BTreeMap<Name, Ballot>,
    candidate: &Candidate<'_>,
    newest: &Arc<Proposal>,
) -> Result<Arc<Proposal>, Refusal> {
    let config = &newest.config;
    let held = |name: &Name| ballots.get(name).and_then(|ballot| ballot.held);
    let ours = held(candidate.me).ok_or(Refusal::NothingHeld)?;
    if candidate.how == How::Forced {
        return Ok(newest.clone());
    }
    if let Some((by, position)) = candidate.certified
        && ours >= position
        && ballots
            .get(by)
            .is_some_and(|ballot| ballot.proposal.as_ref().is_some_and(|p| p.config.version == config.version))
    {
        return Ok(newest.clone());
    }
    if config.holders.is_empty() {
        return Err(Refusal::Unprotected { primary: config.primary.clone() });
    }
    let counts = |name: &Name| {
        held(name).is_some() || candidate.faults.has(Fault::LostHoldersCount) && ballots.contains_key(name)
    };
    let missing: BTreeSet<_> = config.holders.iter().filter(|name| !counts(name)).cloned().collect();
    let needed = match config.rules.output {
        crate::group::OutputMode::Commit => config.rules.policy.to_promote(config.holders.len()),
        crate::group::OutputMode::BestEffort => 1,
    };
    let heard = config.holders.len() - missing.len();
    if heard < needed && !candidate.faults.has(Fault::HoldersIgnored) {
        return Err(Refusal::HoldersMissing { missing, policy: config.rules.policy });
    }
    let ahead = config.holders.iter().filter_map(|name| Some((held(name)?, name))).max();
    match ahead {
        Some((theirs, peer)) if theirs > ours && !candidate.faults.has(Fault::WrongCandidate) => {
            Err(Refusal::Behind { peer: peer.clone(), theirs, ours })
        }
        _ => Ok(newest.clone()),
    }
}

fn assess_cold(
    ballots: &BTreeMap<Name, Ballot>,
    candidate: &Candidate<'_>,
    newest: &Arc<Proposal>,
) -> Result<Arc<Proposal>, Refusal> {
    let config = &newest.config;
    if config.primary != *candidate.me {
        return Err(Refusal::RanElsewhere { primary: config.primary.clone() });
    }
    let may_hold = |name: &&Name| ballots.get(*name).is_none_or(|ballot| ballot.held.is_some());
    let holders: BTreeSet<_> = config.holders.iter().filter(may_hold).cloned().collect();
    if holders.is_empty() { Ok(newest.clone()) } else { Err(Refusal::HeldElsewhere { holders }) }
}
