//! A member's state for people and programs.

use std::collections::BTreeSet;

use serde::Serialize;

use super::core::Role;
use super::member::Member;
use super::types::{Name, Position, Rules, Version};

/// How well the VM is protected, as its primary knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Every backup is in sync.
    Protected,
    /// Some are.
    Degraded,
    /// None is.
    Unprotected,
    /// Only the primary knows.
    Unknown,
}

/// What a primary knows of another member.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub name: Name,
    /// It counts for release.
    pub in_sync: bool,
    /// It is being synced.
    pub syncing: bool,
    /// It is thought lost.
    pub suspected: bool,
    /// Its last whole epoch.
    pub held: Option<Position>,
    /// Since its last sign of life.
    pub silent_us: u64,
    /// The silence that would be suspicious.
    pub limit_us: u64,
}

/// A member's state.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name.
    pub name: Name,
    /// `primary`, `candidate`, `follower` or `handed-over`.
    pub role: &'static str,
    /// Its term.
    pub term: u64,
    /// Who is the primary, if known.
    pub primary: Option<Name>,
    /// Its configuration's version.
    pub version: Option<Version>,
    /// Whether a majority is known to have that.
    pub settled: bool,
    /// The members that can hold the VM.
    pub data: BTreeSet<Name>,
    /// Those that only vote.
    pub witnesses: BTreeSet<Name>,
    /// The backups in sync.
    pub holders: BTreeSet<Name>,
    /// The group's choices.
    pub rules: Option<Rules>,
    /// How well the VM is protected.
    pub protection: Protection,
    /// Its last whole epoch as a backup.
    pub held: Option<Position>,
    /// The last epoch that was released here.
    pub released: Option<u64>,
    /// Output may leave here.
    pub open: bool,
    /// Since the primary was heard.
    pub primary_silent_us: Option<u64>,
    /// What a primary knows of the others.
    pub peers: Vec<PeerStatus>,
    /// Why this member does not take over.
    pub refusal: Option<String>,
    /// A migration is under way.
    pub migrating: bool,
}

impl Member {
    /// The state at `now_us`.
    pub fn status(&self, now_us: u64) -> Status {
        let proposal = self.core.proposal();
        let config = proposal.map(|proposal| &proposal.config);
        let following = self.core.following().cloned();
        Status {
            name: self.core.me.clone(),
            role: match &self.core.role {
                Role::Follower { .. } => "follower",
                Role::Candidate(_) => "candidate",
                Role::Primary(_) => "primary",
                Role::HandedOver { .. } => "handed-over",
            },
            term: self.core.term(),
            primary_silent_us: following.as_ref().map(|_| self.watch.silent_us(now_us)),
            primary: following.or_else(|| self.core.is_primary().then(|| self.core.me.clone())),
            version: config.map(|config| config.version),
            settled: proposal.is_some_and(|proposal| proposal.settled),
            data: config.map(|config| config.data.clone()).unwrap_or_default(),
            witnesses: config.map(|config| config.witnesses.clone()).unwrap_or_default(),
            holders: config.map(|config| config.holders.clone()).unwrap_or_default(),
            rules: config.map(|config| config.rules),
            protection: self.protection(),
            held: self.core.held(),
            released: self.reign().and_then(|reign| reign.released),
            open: self.open_until_us.is_some_and(|until| now_us < until),
            peers: self.peer_statuses(now_us),
            refusal: self.refusal.as_ref().map(ToString::to_string),
            migrating: self.migration.is_some(),
        }
    }

    /// (Primary) the last whole epoch that a member says it holds.
    pub fn held_by(&self, name: &str) -> Option<Position> {
        self.reign()?.peers.get(name)?.held
    }

    /// (Primary) what each backup in sync that is not thought lost holds.
    pub fn in_sync(&self) -> impl Iterator<Item = Option<Position>> {
        let holders =
            self.reign().and_then(|reign| reign.settled.as_ref()).into_iter().flat_map(|config| &config.holders);
        let heard = |name: &&Name| self.peers.get(*name).is_some_and(|watch| !watch.lost);
        holders.filter(heard).map(|name| self.held_by(name))
    }

    fn reign(&self) -> Option<&super::core::Reign> {
        match &self.core.role {
            Role::Primary(reign) => Some(reign),
            _ => None,
        }
    }

    /// How well the VM is protected.
    pub fn protection(&self) -> Protection {
        let Some(settled) = self.reign().and_then(|reign| reign.settled.as_ref()) else { return Protection::Unknown };
        let lost = |name: &&Name| self.peers.get(*name).is_some_and(|watch| watch.lost);
        match settled.holders.iter().filter(|name| !lost(name)).count() {
            0 => Protection::Unprotected,
            all if all + 1 == settled.data.len() => Protection::Protected,
            _ => Protection::Degraded,
        }
    }

    fn peer_statuses(&self, now_us: u64) -> Vec<PeerStatus> {
        let Some(reign) = self.reign() else { return Vec::new() };
        let status = |(name, watch): (&Name, &super::member::Watch)| {
            let peer = reign.peers.get(name);
            PeerStatus {
                name: name.clone(),
                in_sync: reign.settled.as_ref().is_some_and(|config| config.holders.contains(name)),
                syncing: peer.is_some_and(|peer| peer.syncing.is_some()),
                suspected: watch.lost,
                held: peer.and_then(|peer| peer.held),
                silent_us: watch.detector.silent_us(now_us),
                limit_us: watch.detector.limit_us(),
            }
        };
        self.peers.iter().map(status).collect()
    }
}
