//! How a machine is on this host.

use super::{Agent, DiskPart, Part, Syncing};
use crate::clock::monotonic;
use crate::disk::sync::Progress;
use crate::group::{OutputMode, Start, Succession};
use crate::host::agent::now_us;
use crate::host::history::Takeover;
use crate::host::status::{self, Role};

impl Agent {
    /// The guest is about to go on here, or to boot.
    pub(super) fn note_takeover(&mut self, term: u64, from: Start) {
        let Succession { of, silent_us, planned, forced } = self.member.succession();
        let best_effort = self.config().is_some_and(|config| config.rules.output == OutputMode::BestEffort);
        let takeover = Takeover {
            vm: self.place.vm.clone(),
            epoch: match from {
                Start::Promoted { from } => from.epoch,
                Start::Cold => 0,
            },
            of: of.as_ref().map(ToString::to_string),
            heard: monotonic().saturating_sub(std::time::Duration::from_micros(silent_us)),
            planned,
            forced,
            best_effort,
        };
        self.history.promoted(term, from, takeover);
    }

    /// What the guest says may leave: how it came here is told, once.
    pub(super) fn tell_takeover(&mut self) {
        if self.history.waits_to_open() {
            let now = self.replicates_to();
            self.history.opened(&now);
        }
    }

    /// To whom the guest is replicated, in words.
    fn replicates_to(&self) -> String {
        let Some(config) = self.config() else { return "now without a backup".into() };
        let holders: Vec<&str> = config.holders.iter().map(AsRef::as_ref).collect();
        let linked: Vec<&str> =
            self.peers.keys().map(String::as_str).filter(|name| config.data.contains(*name)).collect();
        match (holders.is_empty(), linked.is_empty()) {
            (false, _) => format!("now replicating to {}", holders.join(" and ")),
            (true, false) => format!("now bringing {} in sync", linked.join(" and ")),
            (true, true) => "now without a backup".into(),
        }
    }

    pub(super) fn status(&self) -> status::Status {
        let group = self.member.status(now_us());
        let role = match &self.part {
            _ if self.place.witness => Role::Witness,
            Part::Primary(_) | Part::Starting => Role::Primary,
            _ if group.primary.is_some() => Role::Backup,
            _ => Role::Joining,
        };
        let mut status = status::Status {
            vm: self.place.vm.clone(),
            host: self.place.me.clone(),
            role,
            primary: group.primary.as_ref().map(ToString::to_string),
            term: group.term,
            phase: self.phase(&group),
            ..status::Status::default()
        };
        self.history.fill(&mut status);
        if let Some(held) = group.held {
            status.epochs.sealed = held.epoch;
        }
        if let Some(assembly) = &self.assembly {
            assembly.describe(&mut status);
        }
        if let Part::Primary(primary) = &self.part {
            primary.describe(&mut status);
        }
        status.buffer.bytes += self.held.bytes();
        status.problem = self.trouble().map(str::to_owned).or(group.refusal.clone()).unwrap_or_default();
        status.migration = self.describe_migration();
        status.peers = self.peer_status(&group, status.epochs.sealed);
        status
    }

    fn phase(&self, group: &crate::group::Status) -> String {
        match &self.part {
            _ if self.apart.is_some() => "cannot write".into(),
            Part::Primary(_) if group.halted => "stopped: no majority".into(),
            Part::Primary(_) if !self.open => "output held".into(),
            Part::Primary(_) => serde_json::to_value(&group.protection)
                .ok()
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default(),
            Part::Starting => "starting".into(),
            Part::Preparing => "preparing".into(),
            Part::Clearing => "clearing up".into(),
            Part::Backup { .. } if group.held.is_some() => "in sync".into(),
            Part::Backup { .. } => "not in sync".into(),
            Part::None if self.place.witness => "voting".into(),
            Part::None => "waiting".into(),
        }
    }

    /// How far a copy is. What the disk's part of it will be is known when both have compared their histories.
    fn copy_of(&self, sync: &Syncing) -> status::CopyPart {
        let Part::Primary(primary) = &self.part else { return status::CopyPart::default() };
        let memory_bytes = primary.pages * crate::codec::PAGE as u64;
        let size = primary.disk.as_ref().map_or(0, crate::disk::Disk::size);
        let disk = match &sync.disk {
            DiskPart::Copying(source) => source.progress(),
            DiskPart::Waiting(_) => Progress::default(),
        };
        let disk_bytes = if disk.planned { disk.content } else { size };
        status::CopyPart {
            memory_bytes,
            memory_done_bytes: (memory_bytes as f64 * sync.progress) as u64,
            disk_bytes,
            disk_done_bytes: disk.looked,
            disk_sent_bytes: disk.sent,
        }
    }

    pub(super) fn peer_status(&self, group: &crate::group::Status, sealed: u64) -> Vec<status::Peer> {
        let names =
            group.data.iter().chain(&group.witnesses).map(ToString::to_string).filter(|name| *name != self.place.me);
        names
            .map(|name| {
                let known = group.peers.iter().find(|peer| *peer.name == *name);
                let link = self.peers.get(&name);
                let state = match known {
                    _ if link.is_none() => "away",
                    _ if group.primary.as_deref() == Some(name.as_str()) => "primary",
                    _ if group.witnesses.contains(name.as_str()) => "witness",
                    Some(peer) if peer.in_sync => "backup",
                    Some(peer) if peer.syncing => "syncing",
                    _ => "member",
                };
                let epoch = known.and_then(|peer| peer.held).map_or(0, |held| held.epoch);
                let copy = self.syncs.get(&name).filter(|_| state != "backup").map(|sync| self.copy_of(sync));
                let copy = copy.unwrap_or_default();
                let synced = if matches!(state, "backup" | "primary") { 1.0 } else { copy.part() };
                let stats = link.map(|peer| peer.link.stats().connections);
                status::Peer {
                    address: self
                        .book
                        .get(&name)
                        .and_then(|all| all.first())
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    state: state.into(),
                    epoch,
                    lag: sealed.saturating_sub(epoch),
                    synced,
                    copy,
                    connections: serde_json::to_value(stats).unwrap_or_default(),
                    name,
                }
            })
            .collect()
    }
}
