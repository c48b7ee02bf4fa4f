//! What goes to the backups: a base copy for one that has none, and each checkpoint that was captured.

use mycelium_api::error::chain;

use super::super::disk_sync::DiskSource;
use super::super::primary::{Captured, Job};
use super::super::stream::{Outbox, StreamMessage};
use super::super::sync::{MemorySync, SyncStep};
use super::{Agent, DiskPart, Event, Part, Syncing};
use crate::group::Input;

impl Agent {
    pub(super) fn begin_sync(&mut self, name: &str) {
        let Some(peer) = self.peers.get(name) else {
            // Not at once: outputs are being carried out.
            let message = StreamMessage::Failed { reason: "it is not linked".into() };
            let _ = self.events.send(Event::Answer { from: name.to_owned(), message });
            return;
        };
        if self.syncs.get(name).is_some_and(|sync| !sync.whole) {
            // A late heartbeat made it look lost; the copying goes on over the same link. One whose copy was sent whole
            // asks for another: it did not become a holder before this host was elected again.
            return;
        }
        if !matches!(self.part, Part::Primary(_)) {
            // It begins when there is something to copy; the backup keeps what it has until then.
            self.later_syncs.insert(name.to_owned());
            return;
        }
        self.next_number += 1;
        let (id, seed) = (self.next_number, self.place.clock.random());
        peer.outbox.send(StreamMessage::SyncBegin { id, seed }.encode());
        self.syncs.insert(
            name.to_owned(),
            Syncing { id, seed, progress: 0.0, whole: false, disk: DiskPart::Waiting(Vec::new()) },
        );
        self.history.note(&format!("{name} is being brought in sync"));
    }

    pub(super) fn drop_sync(&mut self, name: &str) {
        self.later_syncs.remove(name);
        if let Some(sync) = self.syncs.remove(name) {
            self.with_primary(|primary| primary.end_sync(sync.id));
        }
    }

    pub(super) fn on_answer(&mut self, from: &str, message: StreamMessage) {
        match message {
            StreamMessage::Hashes { id, hashes } => {
                let Some(sync) = self.syncs.get_mut(from).filter(|sync| sync.id == id) else { return };
                let Part::Primary(primary) = &self.part else { return };
                match MemorySync::new(id, sync.seed, hashes, primary.pages) {
                    Ok(memory) => {
                        let outbox = self.peers.get(from).map(|peer| peer.outbox.clone());
                        primary.sync(match outbox {
                            Some(outbox) => memory.paced_by(outbox, primary.room()),
                            None => memory,
                        });
                    }
                    Err(reason) => self.sync_failed(from, &reason),
                }
            }
            StreamMessage::Disk { id, words } => {
                let sync = self.syncs.get_mut(from).filter(|sync| sync.id == id);
                match sync.map(|sync| &mut sync.disk) {
                    Some(DiskPart::Copying(disk)) => disk.message(words),
                    Some(DiskPart::Waiting(waiting)) => waiting.push(words),
                    None => {}
                }
            }
            StreamMessage::Failed { reason } => self.sync_failed(from, &reason),
            _ => tracing::warn!(from, "a backup sent what only a primary sends"),
        }
    }

    pub(super) fn sync_failed(&mut self, name: &str, reason: &str) {
        self.history.note(&format!("{name} could not be brought in sync: {reason}"));
        self.drop_sync(name);
        self.input(Input::SyncFailed(name.into()));
    }

    pub(super) fn on_captured(&mut self, captured: Box<Captured>) {
        self.history.captured(&captured);
        let epoch = captured.capture.epoch;
        for step in &captured.syncs {
            self.copying(step);
        }
        for sync in self.syncs.values() {
            if let DiskPart::Copying(disk) = &sync.disk {
                disk.sealed(epoch);
            }
        }
        self.weigh(&captured);
        self.input(Input::EpochSealed(epoch));
        let Some(term) = self.member.live_since() else { return };
        let Part::Primary(primary) = &self.part else { return };
        let (followers, syncing) = self.destinations(&captured);
        let complete: Vec<u64> = captured.syncs.iter().filter(|step| step.complete).map(|step| step.id).collect();
        primary.send(Job { captured, term, followers, syncing });
        for sync in self.syncs.values_mut() {
            sync.whole |= complete.contains(&sync.id);
        }
        if let Some(to) = self.member.migrating_to().cloned() {
            self.tell_lag(&to);
        }
    }

    /// A checkpoint did its part for a backup that is brought in sync; with the first one its disk's turn begins.
    pub(super) fn copying(&mut self, step: &SyncStep) {
        let Some((name, sync)) = self.syncs.iter_mut().find(|(_, sync)| sync.id == step.id) else { return };
        sync.progress = step.progress;
        let (Part::Primary(primary), Some(peer)) = (&self.part, self.peers.get(name)) else { return };
        let (Some(disk), DiskPart::Waiting(words)) = (primary.disk.as_ref().filter(|_| step.begins), &sync.disk) else {
            return;
        };
        match DiskSource::start(disk, sync.id, peer.outbox.clone()) {
            Ok(source) => {
                words.iter().for_each(|bytes| source.message(bytes.clone()));
                sync.disk = DiskPart::Copying(source);
            }
            Err(error) => self.history.note(&format!("the disk cannot be copied to {name}: {}", chain(&error))),
        }
    }

    /// Who gets this checkpoint: as a follower, or as one that is brought in sync.
    pub(super) fn destinations(&self, captured: &Captured) -> (Vec<Outbox>, Vec<(u64, Outbox)>) {
        let (mut followers, mut syncing) = (Vec::new(), Vec::new());
        let Some(config) = self.config() else { return (followers, syncing) };
        for (name, peer) in self.peers.iter().filter(|(name, _)| config.data.contains(name.as_str())) {
            match self.syncs.get(name) {
                Some(sync) if captured.syncs.iter().any(|step| step.id == sync.id) => {
                    syncing.push((sync.id, peer.outbox.clone()));
                }
                Some(sync) if !sync.whole => {}
                _ => followers.push(peer.outbox.clone()),
            }
        }
        (followers, syncing)
    }
}
