//! The protocol without time: what a member does when told something. It may be told to stand for election, or that a
//! peer is lost, at any moment; when that is wise is decided by [`super::Member`], and no guarantee depends on it.
//!
//! ```text
//!              campaign                     majority, and holds what was released
//!  Follower ─────────────► Candidate ─────────────────────────────────► Primary
//!     ▲  ▲                     │                                           │ hand_over
//!     │  └─────────────────────┘ a vote for another                        ▼
//!     └──────────────────────────────── a primary of a later term ── HandedOver
//! ```
//! Beside the role a member has data: nothing, a whole epoch, or the running guest. A guest may outlive the role (its
//! term was used up, and nobody else was elected): it releases nothing then, and its member stands for election.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::election::How;
use super::message::{Ballot, Message, ReportOrder};
use super::mutation::{Fault, Faults};
use super::output::{Output, Start};
use super::types::{Config, Durable, Name, Position, Proposal, Quorum, Version};

/// So many of the epochs before the one it holds can a backup send again, if it is elected.
pub const RECENT_EPOCHS: usize = 32;

/// What a member has of the VM.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Data {
    /// Nothing whole.
    Nothing,
    /// A whole epoch; `gap` when one after it was missed, so that it must be synced.
    Replica { held: Position, gap: bool },
    /// The guest, since this member was elected in term `reign`; its last sealed epoch, and the last one whose output may
    /// have left, in this reign or before.
    Live { reign: u64, sealed: Position, released: u64 },
}

/// The part a member plays.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Role {
    Follower { primary: Option<Name> },
    Candidate(Standing),
    Primary(Reign),
    HandedOver { to: Name },
}

/// An election in which the member stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Standing {
    pub how: How,
    pub ballots: BTreeMap<Name, Ballot>,
    pub certified: Option<(Name, Position)>,
}

/// What a primary knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Reign {
    /// Quorums that must agree to whatever is proposed next.
    pub under: Vec<Quorum>,
    /// The configuration in force; none until the first of the term is settled.
    pub settled: Option<Config>,
    /// Proposals since, the last of which is pursued.
    pub proposals: Vec<Config>,
    pub peers: BTreeMap<Name, Peer>,
    pub released: Option<u64>,
    /// The number of the next proposal.
    pub next: u64,
}

/// What a primary knows of another member.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Peer {
    pub accepted: Version,
    pub held: Option<Position>,
    pub gap: bool,
    pub lost: bool,
    /// Output waited for it too long; until it gets on.
    pub stalled: bool,
    /// A sync was begun when this epoch was the last: what is held up to it is about to be overwritten.
    pub syncing: Option<u64>,
    /// Of the report that told this.
    pub order: ReportOrder,
}

/// A member, without clocks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Core {
    pub(super) me: Name,
    pub(super) durable: Durable,
    pub(super) seen_term: u64,
    pub(super) data: Data,
    /// Epochs that came before the configuration of their term did.
    early: BTreeSet<Position>,
    /// What a backup held before what it holds now, one epoch after the other.
    pub(super) past: BTreeSet<Position>,
    /// Of the last report in this term, and what it told.
    pub(super) order: ReportOrder,
    told: (Version, bool, Option<Position>, bool),
    pub(super) role: Role,
    /// The guest is paused for a migration.
    pub(super) paused: bool,
    pub(super) faults: Faults,
}

impl Core {
    /// A member as it starts, with what is on disk. `held` is a whole epoch that provably survived and is no older than
    /// what was acknowledged; normally none.
    pub fn new(me: Name, durable: Durable, held: Option<Position>, faults: Faults) -> Self {
        let data = held.map_or(Data::Nothing, |held| Data::Replica { held, gap: false });
        let durable = if faults.has(Fault::PledgeForgotten) { durable } else { durable.redeemed() };
        // Nobody tells it of a configuration that it has accepted already: it follows that one's primary, if no vote of a
        // later term forbids it.
        let accepted = durable.proposal.as_ref().map(|proposal| &proposal.config);
        let followed = accepted.filter(|config| config.version.term == durable.term && config.primary != me);
        let role = Role::Follower { primary: followed.map(|config| config.primary.clone()) };
        let (early, past, order, told) = Default::default();
        Self { me, durable, seen_term: 0, data, early, past, order, told, role, paused: false, faults }
    }

    /// Its term.
    pub fn term(&self) -> u64 {
        self.durable.term
    }

    /// The newest configuration it accepted.
    pub fn proposal(&self) -> Option<&Arc<Proposal>> {
        self.durable.proposal.as_ref()
    }

    /// The last whole epoch it holds as a backup.
    pub fn held(&self) -> Option<Position> {
        match self.data {
            Data::Replica { held, .. } => Some(held),
            _ => None,
        }
    }

    /// The term to tag epochs with, while the guest runs here.
    pub fn live_since(&self) -> Option<u64> {
        match self.data {
            Data::Live { reign, .. } => Some(reign),
            _ => None,
        }
    }

    /// Whom it follows.
    pub fn following(&self) -> Option<&Name> {
        match &self.role {
            Role::Follower { primary } => primary.as_ref(),
            _ => None,
        }
    }

    /// Whether it is the primary of its term.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    pub(super) fn ballot(&self) -> Ballot {
        Ballot { held: self.held(), proposal: self.durable.proposal.clone() }
    }

    /// A message from another member.
    pub fn receive(&mut self, from: &Name, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Propose { term, proposal } => self.on_propose(from, term, proposal, out),
            Message::Report { term, accepted, settled, held, gap, echo, order } => {
                let peer = Peer { accepted, held, gap, order, ..Peer::default() };
                self.on_report(from, term, settled, peer, echo.is_some(), out);
            }
            Message::Stale { term } => self.seen_term = self.seen_term.max(term),
            Message::VoteRequest { term, .. } => self.on_vote_request(from, term, out),
            Message::Vote { term, ballot } => self.on_vote(from, term, ballot, out),
            Message::HandOver { term, ballot, certified } => self.on_hand_over(from, term, ballot, certified, out),
            // These concern time: the member around this core answers them.
            Message::Heartbeat { .. } | Message::PreVote { .. } | Message::PreVoteReply { .. } => {}
        }
    }

    pub(super) fn persist(&self, out: &mut Vec<Output>) {
        out.push(Output::Persist(self.durable.clone()));
    }

    pub(super) fn send(&self, to: &Name, message: Message, out: &mut Vec<Output>) {
        if *to != self.me {
            out.push(Output::Send { to: to.clone(), message });
        }
    }

    /// Everyone the member knows of: those in its configuration, and voters of quorums it was proposed under.
    pub(super) fn everyone(&self) -> BTreeSet<Name> {
        let Some(proposal) = &self.durable.proposal else { return BTreeSet::new() };
        let voters = proposal.quorums().into_iter().flat_map(|quorum| quorum.voters);
        proposal.config.members().cloned().chain(voters).filter(|name| *name != self.me).collect()
    }

    /// What the member has, for its primary.
    pub fn report(&mut self, echo: Option<u64>) -> Message {
        let proposal = self.durable.proposal.as_ref();
        let accepted = proposal.map(|proposal| proposal.config.version).unwrap_or_default();
        let settled = proposal.is_some_and(|proposal| proposal.settled);
        let (held, gap) = (self.held(), matches!(self.data, Data::Replica { gap: true, .. }));
        if self.told != (accepted, settled, held, gap) {
            self.told = (accepted, settled, held, gap);
            self.order.change += 1;
        }
        Message::Report { term: self.durable.term, accepted, settled, held, gap, echo, order: self.order }
    }

    /// The primary of this term was heard: reports from now on come after whatever was reported before.
    pub fn heard(&mut self, stamp: u64) {
        self.order.heard = self.order.heard.max(stamp);
    }

    fn report_to_primary(&mut self, out: &mut Vec<Output>) {
        if let Role::Follower { primary: Some(primary) } = &self.role {
            let primary = primary.clone();
            let report = self.report(None);
            self.send(&primary, report, out);
        }
    }

    /// Enters a later term, with a vote. Another primary has another clock.
    pub(super) fn enter(&mut self, term: u64, vote: &Name) {
        self.durable.term = term;
        self.durable.vote = Some(vote.clone());
        self.order = ReportOrder::default();
    }

    pub(super) fn stop_guest(&mut self, out: &mut Vec<Output>) {
        if let Data::Live { .. } = self.data {
            out.push(Output::StopGuest);
            self.data = Data::Nothing;
            self.paused = false;
        }
    }

    fn on_propose(&mut self, from: &Name, term: u64, proposal: Arc<Proposal>, out: &mut Vec<Output>) {
        if term < self.durable.term {
            return self.send(from, Message::Stale { term: self.durable.term }, out);
        }
        if proposal.config.primary != *from
            || proposal.config.version.term != term
            || self.is_primary() && term == self.term()
        {
            return;
        }
        self.stop_guest(out);
        let before = self.durable.clone();
        if term > self.durable.term {
            self.enter(term, from);
        }
        self.role = Role::Follower { primary: Some(from.clone()) };
        let rank = |proposal: &Proposal| (proposal.config.version, proposal.settled);
        if self.durable.proposal.as_ref().is_none_or(|own| rank(own) < rank(&proposal)) {
            self.durable.proposal = Some(proposal);
        }
        if self.durable != before {
            self.persist(out);
        }
        self.report_to_primary(out);
        let due: Vec<_> = std::mem::take(&mut self.early).into_iter().filter(|at| at.term == term).collect();
        due.into_iter().for_each(|at| self.arrived(at, out));
    }

    fn on_vote_request(&mut self, from: &Name, term: u64, out: &mut Vec<Output>) {
        if self.durable.proposal.is_none() || self.is_primary() {
            return;
        }
        if term < self.durable.term {
            return self.send(from, Message::Stale { term: self.durable.term }, out);
        }
        let again = self.durable.vote.as_ref() == Some(from) || self.faults.has(Fault::VotesTwice);
        if term == self.durable.term && !again {
            return;
        }
        if term > self.durable.term {
            self.enter(term, from);
            self.role = Role::Follower { primary: None };
            self.persist(out);
        }
        self.send(from, Message::Vote { term, ballot: self.ballot() }, out);
    }

    /// A whole epoch was received and verified. When it continues what is held it is committed and reported; otherwise
    /// it is dropped.
    pub fn arrived(&mut self, at: Position, out: &mut Vec<Output>) {
        let late = at.term < self.durable.term && self.faults.has(Fault::NoVoteFencing);
        let followed = matches!(self.role, Role::Follower { primary: Some(_) }) && at.term == self.durable.term;
        let Data::Replica { held, gap: false } = self.data else { return };
        let Some(proposal) = self.durable.proposal.clone() else { return };
        let config = &proposal.config;
        if at.term >= self.durable.term && config.version.term < at.term {
            // What belongs to a term may overtake its configuration.
            self.early.insert(at);
            return;
        }
        if !(followed || late) || config.version.term != at.term || at <= held {
            return;
        }
        let first = at.epoch == config.base.epoch + 1;
        let parent = if first { config.base } else { Position::new(at.term, at.epoch.saturating_sub(1)) };
        if held == parent || self.faults.has(Fault::AppliesOverGap) {
            self.data = Data::Replica { held: at, gap: false };
            self.past.insert(held);
            if self.past.len() > RECENT_EPOCHS {
                self.past.pop_first();
            }
            out.push(Output::Commit(at));
        } else {
            self.data = Data::Replica { held, gap: true };
        }
        if late {
            let Message::Report { accepted, settled, held, gap, echo, order, .. } = self.report(None) else { return };
            let report = Message::Report { term: at.term, accepted, settled, held, gap, echo, order };
            return self.send(&config.primary, report, out);
        }
        self.report_to_primary(out);
    }

    /// What came early, or was held before, belongs to a replica that is no more.
    fn forget_epochs(&mut self) {
        self.early.clear();
        self.past.clear();
    }

    /// The replica is about to be written in place, or failed: it is not whole any more.
    pub fn replica_lost(&mut self, out: &mut Vec<Output>) {
        self.forget_epochs();
        if let Data::Replica { .. } = self.data {
            self.data = Data::Nothing;
            self.report_to_primary(out);
        }
    }

    /// The replica is whole at a position. One that a former primary made counts for nothing.
    pub fn synced(&mut self, at: Position, out: &mut Vec<Output>) {
        if matches!(self.data, Data::Live { .. }) {
            return;
        }
        let followed = matches!(self.role, Role::Follower { primary: Some(_) }) && at.term == self.durable.term;
        if !followed && !self.faults.has(Fault::TakesFormerCopies) {
            return self.replica_lost(out);
        }
        self.forget_epochs();
        self.data = Data::Replica { held: at, gap: false };
        self.report_to_primary(out);
    }

    /// Starts the guest from what is held here, or goes on with the one that runs. Returns where the term begins: at
    /// `last`, the last epoch that another member has too, or at the last one there is.
    pub(super) fn start_guest(&mut self, last: Option<Position>, out: &mut Vec<Output>) -> Position {
        let term = self.durable.term;
        let (base, start) = match self.data {
            Data::Live { sealed, .. } => (last.unwrap_or(sealed), None),
            Data::Replica { held, .. } => (last.unwrap_or(held), Some(Start::Promoted { from: held })),
            Data::Nothing => (Position::new(term, 0), Some(Start::Cold)),
        };
        self.forget_epochs();
        let (had, released) = match self.data {
            Data::Live { sealed, released, .. } => (sealed, released),
            Data::Replica { held, .. } => (held, base.epoch),
            Data::Nothing => (base, base.epoch),
        };
        // What comes after the base is said again, as part of this term.
        let sealed = if had.epoch > base.epoch { Position::new(term, had.epoch) } else { base };
        self.data = Data::Live { reign: term, sealed, released };
        match start {
            Some(from) => out.push(Output::StartGuest { term, from }),
            None if self.paused => out.push(Output::ResumeGuest),
            None => {}
        }
        self.paused = false;
        base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a former primary copied is refused by a backup of the next one. The simulation has not met this again since
    /// only those are copied to that need it.
    #[test]
    fn faults_in_taking_copies_of_a_former_term_are_noticed() {
        let held_after = |fault| {
            let config = Config { primary: "c".into(), version: Version { term: 2, number: 0 }, ..config() };
            let proposal = Arc::new(Proposal { config, under: Vec::new(), settled: true });
            let mut backup = Core::new("b".into(), Durable::default(), None, Faults::only(fault));
            let mut out = Vec::new();
            backup.receive(&"c".into(), Message::Propose { term: 2, proposal }, &mut out);
            backup.synced(Position::new(2, 3), &mut out);
            assert_eq!(backup.held(), Some(Position::new(2, 3)));
            backup.synced(Position::new(1, 9), &mut out);
            backup.held()
        };
        assert_eq!(held_after(None), None);
        assert_eq!(held_after(Some(Fault::TakesFormerCopies)), Some(Position::new(1, 9)));
    }

    fn config() -> Config {
        Config::founding("c".into(), super::super::types::Rules::default())
    }
}
