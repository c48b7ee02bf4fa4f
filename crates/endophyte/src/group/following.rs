//! Backups that follow a primary without any backup in sync: its output waits for them, although nothing obliges it to.
//!
//! On a slow link a backup is always a little behind. If the primary released at once, such a backup would never hold all
//! that was released, and never be a holder again. So what is released stands still until one has reached it. It does so
//! only for a backup that gets on: one that answers, and whose epochs are stuck all the same, must not stop the VM.

use std::collections::BTreeMap;

use super::core::{Core, Data, Peer, Reign, Role};
use super::member::Member;
use super::output::Output;
use super::timing::Timing;
use super::types::{Alone, Config, Name, OutputMode};

/// Of a backup that output waits for: what it has, and since when that is so.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    epoch: u64,
    since_us: u64,
    /// When its link moved last.
    moved_us: u64,
}

impl Wait {
    pub(super) fn moves(&mut self, now_us: u64) {
        self.moved_us = now_us;
    }

    /// Time in which we did not run ourselves.
    pub(super) fn excuse(&mut self, us: u64) {
        self.since_us += us;
        self.moved_us += us;
    }

    /// As long as the longest suspicion while nothing moves; ten times as long for an epoch that takes so long.
    fn is_over(&self, now_us: u64, timing: &Timing) -> bool {
        let still = now_us.saturating_sub(self.since_us.max(self.moved_us));
        still >= timing.suspect_max_us || now_us.saturating_sub(self.since_us) >= 10 * timing.suspect_max_us
    }
}

impl Member {
    /// Stops waiting for followers that do not get on.
    pub(super) fn watch_followers(&mut self, out: &mut Vec<Output>) {
        let waited_for = self.core.waited_for();
        let now_us = self.now_us;
        for (name, watch) in &mut self.peers {
            let epoch = waited_for.get(name).copied();
            match &watch.wait {
                Some(wait) if Some(wait.epoch) == epoch => {
                    if wait.is_over(now_us, &self.timing) {
                        self.core.peer_stalls(name, out);
                    }
                }
                _ => watch.wait = epoch.map(|epoch| Wait { epoch, since_us: now_us, moved_us: now_us }),
            }
        }
    }
}

impl Core {
    /// The backups that output waits for although they are no holders, with the last epoch of each.
    pub(super) fn waited_for(&self) -> BTreeMap<Name, u64> {
        let (Role::Primary(reign), Data::Live { sealed, .. }) = (&self.role, &self.data) else {
            return BTreeMap::new();
        };
        let Some(config) = reign.settled.as_ref().filter(|config| config.goes_on_alone()) else {
            return BTreeMap::new();
        };
        let following = reign.following(config, self.durable.term).filter(|(_, epoch)| *epoch < sealed.epoch);
        following.map(|(name, epoch)| (name.clone(), epoch)).collect()
    }

    /// A backup that output waited for has not got on for too long: it is not waited for until it does.
    pub(super) fn peer_stalls(&mut self, name: &Name, out: &mut Vec<Output>) {
        if let Role::Primary(reign) = &mut self.role {
            reign.peers.entry(name.clone()).or_default().stalled = true;
            self.advance(out);
        }
    }
}

impl Reign {
    /// The backups that follow without a gap, with the last epoch of each.
    pub(super) fn following<'a>(&'a self, config: &'a Config, term: u64) -> impl Iterator<Item = (&'a Name, u64)> + 'a {
        let peers = config.data.iter().filter_map(|name| Some((name, self.peers.get(name)?)));
        let follows = move |peer: &Peer| {
            !peer.lost && !peer.stalled && !peer.gap && peer.syncing.is_none() && peer.accepted.term == term
        };
        peers
            .filter(move |(_, peer)| follows(peer))
            .filter_map(move |(name, peer)| Some((name, peer.epoch(term, &config.base)?)))
    }
}

impl Config {
    /// Whether output may leave without any backup that has it.
    pub(super) fn goes_on_alone(&self) -> bool {
        self.holders.is_empty() && self.rules.alone == Alone::GoOn && self.rules.output == OutputMode::Commit
    }
}
