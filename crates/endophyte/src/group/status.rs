//! A member's state for people and programs.

use std::collections::BTreeSet;

use serde::Serialize;

use super::core::Role;
use super::member::{Member, Migration};
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

/// From whom, and how, the guest came to this member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Succession {
    /// The primary that was heard last.
    pub of: Option<Name>,
    /// Since then.
    pub silent_us: u64,
    /// That one handed it over.
    pub planned: bool,
    /// An operator forced it.
    pub forced: bool,
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
    /// The guest is stopped here, for no majority hears this host.
    pub halted: bool,
    /// Why this member, which hears no primary, does not take over.
    pub refusal: Option<String>,
    /// The target of a migration that is under way, until it is handed over to.
    pub migrating: Option<Name>,
    /// What that target lacks, if known: thousandths of what may be under way to it.
    pub lag_thousandths: Option<u32>,
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
            halted: self.is_halted(),
            refusal: self.refusal.as_ref().filter(|_| self.suspected_since_us.is_some()).map(ToString::to_string),
            migrating: self.migrating_to().cloned(),
            lag_thousandths: self.lag_thousandths(),
        }
    }

    /// How this member came to its guest, when it is told to start it.
    pub fn succession(&self) -> Succession {
        let term = Some(self.core.term());
        let (of, at) = self.heard.clone().map_or((None, self.now_us), |(name, at)| (Some(name), at));
        Succession {
            of,
            silent_us: self.now_us.saturating_sub(at),
            planned: self.handed_over_term == term,
            forced: self.forced_term == term,
        }
    }

    /// Whom the VM is being migrated to, while that can be given up.
    pub fn migrating_to(&self) -> Option<&Name> {
        match &self.migration {
            Some(Migration::Converging { to, .. } | Migration::Pausing { to, .. } | Migration::Draining { to, .. }) => {
                Some(to)
            }
            Some(Migration::HandedOver { .. }) | None => None,
        }
    }

    /// What the target of a migration lacks, if known: thousandths of what may be under way to it.
    pub fn lag_thousandths(&self) -> Option<u32> {
        self.lag.told.filter(|_| self.migration.is_some())
    }

    /// Whether the guest still runs while the VM is being migrated.
    pub fn is_converging(&self) -> bool {
        matches!(self.migration, Some(Migration::Converging { .. }))
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
