//! What a primary does: settle configurations, release epochs, keep the set of holders true, hand over.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::{Core, Data, Peer, Reign, Role};
use super::message::Message;
use super::mutation::{Fault, Faults};
use super::output::Output;
use super::types::{Alone, Config, Name, OutputMode, Pledge, Position, Proposal, Version};

/// In best effort, where release tells nothing, a backup further behind is not made a holder yet: with it more would be
/// lost than the word promises.
const HOLDER_LAG_EPOCHS_MAX_IN_BEST_EFFORT: u64 = 16;

/// A change of membership.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// A host joins that can hold and run the VM.
    AddBackup(Name),
    /// A host joins that only votes.
    AddWitness(Name),
    /// A member leaves.
    Remove(Name),
    /// A member is left out without the agreement that safety asks for: the operator answers for it.
    Forget(Name),
}

/// Why a primary does not do as it was told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// Only the primary can.
    #[error("this host is not the primary")]
    NotPrimary,
    /// The primary cannot leave.
    #[error("this host runs the VM: migrate it first")]
    IsPrimary,
    /// A name is in use.
    #[error("{0} is a member already")]
    Member(Name),
    /// A name is not in use.
    #[error("{0} is not a member")]
    Unknown(Name),
    /// What it holds has been released and is nowhere else.
    #[error("epochs that were released are held by {0} alone: try again when the others have caught up")]
    Needed(Name),
}

impl Core {
    pub(super) fn propose(&mut self, mut config: Config, out: &mut Vec<Output>) {
        let term = self.durable.term;
        let Role::Primary(reign) = &mut self.role else { return };
        config.version = Version { term, number: reign.next };
        reign.next += 1;
        let proposal = Arc::new(Proposal { config: config.clone(), under: reign.under.clone(), settled: false });
        reign.proposals.push(config);
        self.durable.proposal = Some(proposal.clone());
        self.persist(out);
        self.broadcast(&proposal, out);
    }

    fn broadcast(&self, proposal: &Arc<Proposal>, out: &mut Vec<Output>) {
        for name in self.everyone() {
            self.send(&name, Message::Propose { term: self.durable.term, proposal: proposal.clone() }, out);
        }
    }

    pub(super) fn on_report(
        &mut self,
        from: &Name,
        term: u64,
        knows_settled: bool,
        news: Peer,
        answers: bool,
        out: &mut Vec<Output>,
    ) {
        if term > self.durable.term {
            self.seen_term = self.seen_term.max(term);
            return;
        }
        let own = self.durable.proposal.clone();
        let Role::Primary(reign) = &mut self.role else { return };
        let Some(own) = own else { return };
        if answers && (news.accepted != own.config.version || knows_settled != own.settled || term < self.durable.term)
        {
            out.push(Output::Send {
                to: from.clone(),
                message: Message::Propose { term: self.durable.term, proposal: own.clone() },
            });
        }
        if term < self.durable.term {
            return;
        }
        let peer = reign.peers.entry(from.clone()).or_default();
        if news.order < peer.order && !self.faults.has(Fault::OldReportsCount) {
            // Overtaken by a later one. Whoever believed it would copy to a backup that is in sync.
            return;
        }
        let held = news.epoch(term, &own.config.base);
        let syncing = peer.syncing.filter(|since| held.is_none_or(|epoch| epoch <= *since));
        let stalled = peer.stalled && held <= peer.epoch(term, &own.config.base);
        *peer = Peer { syncing, stalled, lost: false, ..news };
        self.advance(out);
    }

    /// A peer is suspected. A sync that was begun goes on, for all that is known.
    pub fn peer_lost(&mut self, name: &Name, out: &mut Vec<Output>) {
        if let Role::Primary(reign) = &mut self.role {
            let peer = reign.peers.entry(name.clone()).or_default();
            peer.lost = true;
            self.advance(out);
        }
    }

    /// A sync that was begun came to nothing; it is begun again at the next report.
    pub fn sync_failed(&mut self, name: &Name) {
        if let Role::Primary(reign) = &mut self.role {
            reign.peers.entry(name.clone()).or_default().syncing = None;
        }
    }

    /// The guest's epoch is sealed.
    pub fn sealed(&mut self, epoch: u64, out: &mut Vec<Output>) {
        if let Data::Live { reign, sealed, .. } = &mut self.data {
            *sealed = Position::new(*reign, epoch);
            self.advance(out);
        }
    }

    pub(super) fn advance(&mut self, out: &mut Vec<Output>) {
        loop {
            self.settle(out);
            self.release(out);
            match self.maintenance() {
                Some(config) => self.propose(config, out),
                None => break,
            }
        }
        self.begin_syncs(out);
    }

    fn settle(&mut self, out: &mut Vec<Output>) {
        let Role::Primary(reign) = &mut self.role else { return };
        let Some(proposal) = &self.durable.proposal else { return };
        let version = proposal.config.version;
        let accepted =
            |name: &Name| *name == self.me || reign.peers.get(name).is_some_and(|peer| peer.accepted == version);
        if proposal.settled || !proposal.majority(accepted) {
            return;
        }
        let config = proposal.config.clone();
        reign.under = vec![config.quorum()];
        reign.proposals.clear();
        reign.settled = Some(config.clone());
        let settled = Arc::new(Proposal { config, under: Vec::new(), settled: true });
        self.durable.proposal = Some(settled.clone());
        self.persist(out);
        self.broadcast(&settled, out);
        out.push(Output::Settled(version));
    }

    fn release(&mut self, out: &mut Vec<Output>) {
        let Data::Live { sealed, released, .. } = &mut self.data else { return };
        let Role::Primary(reign) = &mut self.role else { return };
        let mut in_force: Vec<_> = reign.settled.iter().chain(&reign.proposals).collect();
        if reign.settled.is_none() && !self.faults.has(Fault::ReleaseBeforeSettled) {
            return;
        }
        if self.faults.has(Fault::ReleaseByProposal) {
            in_force.drain(..in_force.len() - 1);
        }
        let safe = in_force.into_iter().map(|config| reign.safe(config, self.durable.term, sealed.epoch)).min();
        let safe = if self.faults.has(Fault::ReleaseBeforeQuorum) { Some(Some(sealed.epoch)) } else { safe };
        if let Some(Some(through)) = safe
            && reign.released < Some(through)
        {
            reign.released = Some(through);
            *released = through.max(*released);
            out.push(Output::Release { through });
        }
    }

    /// The configuration that should follow the latest one, if any: without the holders that are lost, with the backups
    /// that are in sync and the voters that have joined.
    fn maintenance(&self) -> Option<Config> {
        let Role::Primary(reign) = &self.role else { return None };
        let latest = reign.proposals.last().or(reign.settled.as_ref())?;
        let mut next = latest.clone();
        let term = self.durable.term;
        let Data::Live { sealed, .. } = self.data else { return None };
        next.holders.retain(|name| {
            let Some(peer) = reign.peers.get(name) else { return true };
            let stale = peer.accepted.term == term && (peer.gap || peer.epoch(term, &latest.base).is_none());
            let last = latest.rules.alone == Alone::Hold && latest.holders.len() == 1;
            !stale && (!peer.lost || last || !reign.settles_without_the_lost(latest, &self.me))
        });
        if reign.proposals.is_empty() {
            reign.add(&mut next, &self.me, term, sealed.epoch, self.faults);
        }
        (next != *latest && reign.covers(&next, term, sealed.epoch)).then_some(next)
    }

    fn begin_syncs(&mut self, out: &mut Vec<Output>) {
        let term = self.durable.term;
        let Role::Primary(reign) = &mut self.role else { return };
        let Some(settled) = &reign.settled else { return };
        let Data::Live { sealed, .. } = self.data else { return };
        let held: BTreeSet<_> =
            reign.proposals.iter().chain([settled]).flat_map(|config| config.holders.iter().cloned()).collect();
        for name in settled.data.iter().filter(|name| **name != self.me && !held.contains(*name)) {
            let Some(peer) = reign.peers.get_mut(name) else { continue };
            let apart = peer.gap || peer.epoch(term, &settled.base).is_none();
            if apart && !peer.lost && peer.syncing.is_none() && peer.accepted.term == term {
                peer.syncing = Some(sealed.epoch);
                out.push(Output::BeginSync { peer: name.clone(), from: peer.held });
            }
        }
    }

    /// Changes who belongs to the group. It is done when a configuration with the change is settled.
    pub fn change(&mut self, change: &Change, out: &mut Vec<Output>) -> Result<(), ChangeError> {
        let term = self.durable.term;
        let Role::Primary(reign) = &mut self.role else { return Err(ChangeError::NotPrimary) };
        let Data::Live { sealed, .. } = self.data else { return Err(ChangeError::NotPrimary) };
        let Some(proposal) = &self.durable.proposal else { return Err(ChangeError::NotPrimary) };
        let mut next = proposal.config.clone();
        let known = next.members().any(|name| name == change.name());
        match change {
            Change::AddBackup(name) | Change::AddWitness(name) if known => {
                return Err(ChangeError::Member(name.clone()));
            }
            Change::AddBackup(name) => drop(next.data.insert(name.clone())),
            Change::AddWitness(name) => drop(next.witnesses.insert(name.clone())),
            Change::Remove(name) | Change::Forget(name) => {
                if !known {
                    return Err(ChangeError::Unknown(name.clone()));
                }
                if *name == self.me {
                    return Err(ChangeError::IsPrimary);
                }
                for set in [&mut next.data, &mut next.witnesses, &mut next.voters, &mut next.holders] {
                    set.remove(name);
                }
            }
        }
        if let Change::Forget(_) = change {
            reign.under.clear();
        } else if !reign.covers(&next, term, sealed.epoch) {
            return Err(ChangeError::Needed(change.name().clone()));
        }
        self.propose(next, out);
        self.advance(out);
        Ok(())
    }

    /// Whether a migration to `to` may pause the guest: it is in sync, and at most one epoch behind.
    pub fn nearly_held(&self, to: &Name) -> bool {
        let (Role::Primary(reign), Data::Live { sealed, .. }) = (&self.role, &self.data) else { return false };
        let Some(settled) = &reign.settled else { return false };
        let epoch = reign.peers.get(to).and_then(|peer| peer.epoch(self.durable.term, &settled.base));
        let near = epoch.is_some_and(|epoch| epoch + 1 >= sealed.epoch);
        reign.proposals.is_empty() && settled.holders.contains(to) && near
    }

    /// Whether every holder has the last sealed epoch.
    pub fn all_held(&self) -> bool {
        let (Role::Primary(reign), Data::Live { sealed, .. }) = (&self.role, &self.data) else { return false };
        let held = |name: &Name| reign.peers.get(name).and_then(|peer| peer.held) == Some(*sealed);
        reign.settled.as_ref().is_some_and(|settled| settled.holders.iter().all(held))
    }

    /// Whether the paused guest's last epoch is released and held by `to`, so that the role can be handed over.
    pub fn can_hand_over(&self, to: &Name) -> bool {
        let (Role::Primary(reign), Data::Live { sealed, .. }) = (&self.role, &self.data) else { return false };
        let Some(settled) = &reign.settled else { return false };
        let held = reign.peers.get(to).and_then(|peer| peer.held);
        reign.proposals.is_empty()
            && settled.holders.contains(to)
            && held == Some(*sealed)
            && reign.released >= Some(sealed.epoch)
    }

    /// Writes the vote for `to` down before the guest is paused, so that [`Self::hand_over`] waits for no disk. Until it is
    /// given it binds nobody but a member that restarts, whose guest is gone.
    pub fn pledge(&mut self, to: &Name, out: &mut Vec<Output>) {
        let pledge = Pledge { term: self.next_term(), to: to.clone() };
        if self.durable.pledge.as_ref() != Some(&pledge) {
            self.durable.pledge = Some(pledge);
            self.persist(out);
        }
    }

    fn next_term(&self) -> u64 {
        self.durable.term.max(self.seen_term) + 1
    }

    /// Gives the term to `to`, whose vote this member is from here on. Only with a paused guest whose last epoch was
    /// sealed.
    pub fn hand_over(&mut self, to: &Name, out: &mut Vec<Output>) -> bool {
        let Data::Live { sealed, .. } = self.data else { return false };
        if !self.can_hand_over(to) {
            return false;
        }
        let term = self.next_term();
        if !self.faults.has(Fault::ReleaseAfterHandOver) {
            self.enter(term, to);
            let pledged = self.durable.pledge.take() == Some(Pledge { term, to: to.clone() });
            if !pledged {
                self.persist(out);
            }
            self.role = Role::HandedOver { to: to.clone() };
            self.paused = true;
        }
        self.send(to, Message::HandOver { term, ballot: self.ballot(), certified: sealed }, out);
        true
    }
}

impl Change {
    fn name(&self) -> &Name {
        match self {
            Change::AddBackup(name) | Change::AddWitness(name) | Change::Remove(name) | Change::Forget(name) => name,
        }
    }
}

impl Peer {
    /// The epoch it holds of the primary's own history.
    pub(super) fn epoch(&self, term: u64, base: &Position) -> Option<u64> {
        self.held.filter(|held| held.term == term || held == base).map(|held| held.epoch)
    }
}

impl Reign {
    /// The last epoch that is safe with a configuration's holders.
    fn safe(&self, config: &Config, term: u64, sealed: u64) -> Option<u64> {
        if config.rules.output == OutputMode::BestEffort {
            return Some(sealed);
        }
        if config.goes_on_alone() {
            let following = self.following(config, term).map(|(_, epoch)| epoch).max();
            return Some(following.map_or(sealed, |epoch| self.released.unwrap_or(config.base.epoch).max(epoch)));
        }
        let epoch = |name| self.peers.get(name).and_then(|peer| peer.epoch(term, &config.base));
        let mut epochs: Vec<_> = config.holders.iter().map(epoch).collect();
        epochs.sort_by_key(|epoch| std::cmp::Reverse(*epoch));
        let needed = config.rules.policy.needed(epochs.len());
        epochs.get(needed.checked_sub(1)?).copied().flatten()
    }

    /// Whether everything released so far is safe with the configuration too.
    fn covers(&self, config: &Config, term: u64, sealed: u64) -> bool {
        let released = self.released.unwrap_or(config.base.epoch);
        config.holders.is_empty()
            || config.rules.output == OutputMode::BestEffort
            || self.safe(config, term, sealed) >= Some(released)
    }

    /// Whether those that are not thought lost could settle what follows a configuration. Where they cannot, a holder that
    /// is thought lost stays one: it would have to agree to its own removal, and one that can agree is not lost.
    fn settles_without_the_lost(&self, latest: &Config, me: &Name) -> bool {
        let there = |name: &Name| name == me || self.peers.get(name).is_some_and(|peer| !peer.lost);
        self.under.iter().chain([&latest.quorum()]).all(|quorum| quorum.majority(there))
    }

    /// The epoch that a backup must hold to be made a holder: what was released, for that must survive. Where there are
    /// holders this is what they have, and none of them waits for it; how much was sealed since tells only how slow links are.
    fn floor(&self, next: &Config, sealed: u64) -> u64 {
        if next.rules.output == OutputMode::BestEffort {
            return sealed.saturating_sub(HOLDER_LAG_EPOCHS_MAX_IN_BEST_EFFORT);
        }
        self.released.unwrap_or(next.base.epoch)
    }

    fn add(&self, next: &mut Config, me: &Name, term: u64, sealed: u64, faults: Faults) {
        let floor = self.floor(next, sealed);
        for (name, peer) in
            self.peers.iter().filter(|(name, peer)| *name != me && !peer.lost && peer.accepted.term == term)
        {
            if next.members().any(|member| member == name) {
                next.voters.insert(name.clone());
            }
            let epoch = peer.epoch(term, &next.base);
            let in_sync = !peer.gap && epoch >= Some(floor) || faults.has(Fault::HoldersAddedEarly);
            // Told to begin a copy, it loses what it has as soon as it hears that.
            let stays = peer.syncing.is_none() || faults.has(Fault::OldReportsCount);
            if next.data.contains(name) && in_sync && stays {
                next.holders.insert(name.clone());
            }
        }
    }
}
