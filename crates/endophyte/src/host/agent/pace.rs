//! How fast the guest may go: epochs, throttle and buffer by what the backups keep up with.

use std::time::Duration;

use mycelium_api::error::chain;

use super::super::book::Notice;
use super::{Agent, DISKS_EVERY, Part};
use crate::egress::Mode;
use crate::group::{OutputMode, Position};

impl Agent {
    /// Whether checkpoints are needed, and what becomes of the guest's frames.
    pub(super) fn adjust(&mut self) {
        let (Part::Primary(primary), Some(config)) = (&self.part, self.config()) else { return };
        let linked = self.peers.keys().any(|name| config.data.contains(name.as_str()));
        let protected = linked || !config.holders.is_empty();
        let mode = match (protected, config.rules.output) {
            (true, OutputMode::Commit) => Mode::OutputCommit,
            _ if self.open => Mode::BestEffort,
            _ => Mode::OutputCommit,
        };
        if mode == Mode::BestEffort {
            primary.nic.set_lease(Duration::from_micros(self.lease_us));
        }
        if primary.nic.mode() != mode {
            primary.nic.set_mode(mode);
        }
        if self.protected != Some(protected) {
            primary.protect(protected);
            self.protected = Some(protected);
        }
    }

    /// Gives back the room of epochs that every backup in sync holds.
    pub(super) fn settle_buffer(&mut self) {
        let queued = self.peers.values().any(|peer| peer.outbox.waiting() > 0);
        let waiting = queued || !self.under_way.is_empty() || self.syncs.values().any(|sync| sync.whole);
        // A primary that is being elected again may need what its backups do not have.
        if waiting && self.member.is_primary() {
            let member = &self.member;
            self.syncs.retain(|name, sync| !(sync.whole && member.held_by(name).is_some()));
            let held = || self.member.in_sync().map(|held| held.map_or(0, |held| held.epoch));
            let (safe, held_by) = (held().min().unwrap_or(u64::MAX), held().count());
            self.under_way.retain(|(epoch, ..)| *epoch > safe);
            self.settle(safe, held_by);
            self.note_backlog(held_by > 0);
        }
        self.let_go_of_the_slow();
    }

    /// While no backup in sync paces the guest, the least loaded link does: else it would outrun every copy of itself,
    /// and never be protected again.
    pub(super) fn note_backlog(&self, paced: bool) {
        let Part::Primary(primary) = &self.part else { return };
        let config = self.config();
        let data =
            self.peers.iter().filter(|(name, _)| config.is_some_and(|config| config.data.contains(name.as_str())));
        let least = data.map(|(_, peer)| peer.outbox.waiting()).min();
        primary.set_backlog(least.filter(|_| !paced).unwrap_or(0));
    }

    /// Ends the link of a backup for which more waits than the buffer holds, beside the epoch that is being sent to it:
    /// one epoch may be longer than the buffer, and is bounded by the guest's memory.
    pub(super) fn let_go_of_the_slow(&mut self) {
        let limit = self.assembly.as_ref().map_or(u64::MAX, |assembly| assembly.buffer_bytes());
        let behind = self.peers.iter().find(|(_, peer)| peer.outbox.behind() > limit).map(|(name, _)| name.clone());
        if let Some(name) = behind {
            self.history.note(&format!(
                "{name} cannot keep up: more waits for it than the buffer holds; it is brought in sync anew"
            ));
            if let Some(peer) = self.peers.get(&name) {
                peer.link.close();
            }
            self.unlink(&name);
        }
    }

    /// So many backups, and they are all in sync, hold an epoch.
    pub(super) fn settle(&mut self, epoch: u64, backups: usize) {
        let Part::Primary(primary) = &self.part else { return };
        primary.settled(epoch);
        // Alone it has nobody to compare with, and no epoch that others hold.
        let all = backups > 0 && self.config().is_some_and(|config| config.data.len() == backups + 1);
        let Some(disk) = primary.disk.as_ref().filter(|_| all && epoch >= self.disks_settled + DISKS_EVERY) else {
            return;
        };
        let Some(recorded) = disk.epoch_in_progress() else { return };
        let position = Position { epoch, ..recorded };
        self.disks_settled = epoch;
        if let Err(error) = tokio::task::block_in_place(|| disk.settled(position)) {
            tracing::warn!(error = chain(&error), "the map of differences cannot be written");
        }
        let notice = Notice::Settled { position };
        self.peers.values().for_each(|peer| peer.notice(&notice));
    }
}
