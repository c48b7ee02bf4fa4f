//! The backups that a document lists: so many as it asks for become members, the others are spares.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::{Agent, Event};
use crate::clock::monotonic;
use crate::group::{Change, Command};
use crate::host::links::Peer;
use crate::host::selection::{CHOOSE_AFTER, Candidate, Choice, choose};

/// Between looks at who is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A host that is to join.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::host) struct Wanted {
    /// It only votes.
    pub witness: bool,
    /// Its place in the document's list of backups; none for one that was asked for by itself.
    pub place: Option<usize>,
}

/// Hosts that are to join, by where they listen.
pub(in crate::host) type AllWanted = BTreeMap<Vec<SocketAddr>, Wanted>;

/// Who was there, and since when somebody is not.
#[derive(Debug, Default)]
pub(super) struct Presence {
    away: BTreeMap<String, Duration>,
    look: Duration,
    /// Since when there is something to choose.
    since: Option<Duration>,
    /// Hosts that an operator took out; they may come back when they are linked anew.
    pub forgotten: BTreeSet<String>,
}

impl Agent {
    /// Whether a host was asked to join, and how.
    pub(super) fn wanted_as(&self, peer: &Peer) -> Option<Wanted> {
        let of = |addresses: &&Vec<SocketAddr>| addresses.iter().any(|one| peer.hello.listen.contains(one));
        self.wanted.keys().find(of).and_then(|addresses| self.wanted.get(addresses)).copied()
    }

    /// The hosts that the document lists are this one's to choose from, too, when the guest has come here. Names are looked
    /// up elsewhere: that may take long.
    pub(super) fn want_listed(&self) {
        let Some(nodes) = self.assembly.as_ref().map(|assembly| assembly.backups().nodes.clone()) else { return };
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let known = |(place, node): (usize, &String)| Some((crate::host::addresses(node).ok()?, place));
            let _ = events.send(Event::Listed(nodes.iter().enumerate().filter_map(known).collect()));
        });
    }

    pub(super) fn listed(&mut self, hosts: Vec<(Vec<SocketAddr>, usize)>) {
        for (addresses, place) in hosts {
            if !addresses.iter().any(|one| self.place.listen.contains(one)) {
                self.wanted.entry(addresses).or_insert(Wanted { witness: false, place: Some(place) });
            }
        }
    }

    /// Adds a backup, or takes one out that another has replaced.
    pub(super) fn choose_backups(&mut self) {
        let now = monotonic();
        if now < self.presence.look || !self.member.is_primary() {
            return;
        }
        self.presence.look = now + LOOK_EVERY;
        let Some(strategy) = self.assembly.as_ref().map(|assembly| assembly.backups().clone()) else { return };
        if self.wanted.values().all(|wanted| wanted.place.is_none()) {
            return;
        }
        let since = *self.presence.since.get_or_insert(now);
        let candidates = self.candidates(now);
        let asked = self.wanted.values().filter(|wanted| wanted.place.is_none() && !wanted.witness).count();
        let count = strategy.node_count as usize + asked;
        let waited = now.saturating_sub(since) >= CHOOSE_AFTER;
        let change = match choose(&candidates, count, strategy.selection_criteria, waited) {
            Some(Choice::Add(name)) => Change::AddBackup(name.as_str().into()),
            Some(Choice::Remove(name)) => {
                self.history.note(&format!("{name} stays away, and another backup has taken its place"));
                Change::Remove(name.as_str().into())
            }
            None => return,
        };
        let command = Command::Change(change);
        if !self.commands.iter().any(|(queued, _)| *queued == command) {
            self.commands.push_back((command, None));
        }
    }

    fn candidates(&mut self, now: Duration) -> Vec<Candidate> {
        let peers = &self.peers;
        let Presence { away, forgotten, .. } = &mut self.presence;
        away.retain(|name, _| !peers.contains_key(name));
        let Some(config) = self.member.durable().proposal.as_ref().map(|proposal| &proposal.config) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        let mut placed = BTreeSet::new();
        for (addresses, wanted) in &self.wanted {
            let Some(place) = wanted.place else { continue };
            let listens = |all: &Vec<SocketAddr>| all.iter().any(|one| addresses.contains(one));
            let linked = peers.iter().find(|(_, peer)| listens(&peer.hello.listen));
            let known = || self.book.iter().find(|(_, all)| listens(all)).map(|(name, _)| name.clone());
            let name = linked.map(|(name, _)| name.clone()).or_else(known);
            placed.extend(name.clone());
            all.push(Candidate { name, place: Some(place), ..Candidate::default() });
        }
        let others = config.data.iter().map(AsRef::as_ref).filter(|name| **name != *self.place.me);
        let others = others.filter(|name| !placed.contains(*name));
        all.extend(others.map(|name: &str| Candidate { name: Some(name.to_owned()), ..Candidate::default() }));
        for one in &mut all {
            let name = one.name.clone().unwrap_or_default();
            one.member = config.data.contains(name.as_str());
            one.in_sync = config.holders.contains(name.as_str());
            match peers.get(&name).filter(|_| !forgotten.contains(&name)) {
                Some(peer) => {
                    let round_trips = peer.link.stats().connections;
                    let shortest = round_trips.iter().filter_map(|connection| connection.rtt_us).min();
                    one.round_trip = shortest.map(Duration::from_micros);
                }
                None => one.away = Some(now.saturating_sub(*away.entry(name).or_insert(now))),
            }
        }
        all
    }
}
