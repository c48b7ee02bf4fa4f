//! A guest whose host is heard by no majority is stopped after a while.
//!
//! Nothing depends on it: what such a guest says is held anyway, and another host may have taken over. But what runs in two
//! places uses two hosts, and ages: connections of a guest that stands still live on when it goes on. The time is well above
//! that of a lease and of an election, so that a busy machine does not make guests stumble.

use super::member::{Member, Migration};
use super::mutation::Fault;
use super::output::Output;
use super::types::OutputMode;

/// What a member with a running guest knows of being alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Isolation {
    /// Since when no majority hears it.
    since_us: Option<u64>,
    /// The guest is stopped for it.
    halted: bool,
}

impl Isolation {
    /// Time in which we did not run ourselves.
    pub(super) fn excuse(&mut self, us: u64) {
        self.since_us = self.since_us.map(|since| since + us);
    }
}

impl Member {
    /// Stops the guest, or lets it go on, by whether a majority hears this primary.
    pub(super) fn watch_isolation(&mut self, heard: bool, out: &mut Vec<Output>) {
        if self.core.live_since().is_none() {
            self.isolation = Isolation::default();
            return;
        }
        if heard {
            let halted = std::mem::take(&mut self.isolation).halted;
            out.extend(halted.then_some(Output::ContinueGuest));
            return;
        }
        let since = *self.isolation.since_us.get_or_insert(self.now_us);
        let long = self.now_us.saturating_sub(since) >= self.timing.isolated_us;
        if long && !self.isolation.halted && self.may_halt() {
            self.isolation.halted = true;
            out.push(Output::HaltGuest);
        }
    }

    /// Not in best effort, which never stops a guest; and not while a migration has stopped it already.
    fn may_halt(&self) -> bool {
        let commit = |rules: super::types::Rules| rules.output == OutputMode::Commit;
        let rules = self.core.proposal().map(|proposal| proposal.config.rules);
        let moving = !matches!(self.migration, None | Some(Migration::Converging { .. }));
        rules.is_some_and(commit) && !moving && !self.core.paused && !self.core.faults.has(Fault::NeverHalts)
    }

    /// The guest is stopped, for no majority hears this host.
    pub fn is_halted(&self) -> bool {
        self.isolation.halted
    }
}
