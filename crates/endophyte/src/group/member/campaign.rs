//! When a member stands for election: it asks first who would vote for it, gives way once, and tries again. What standing
//! is, without time, is in [`super::super::standing`].

use std::collections::BTreeMap;

use super::super::core::Role;
use super::super::election::How;
use super::super::message::Message;
use super::super::mutation::Fault;
use super::super::output::Output;
use super::super::types::{Name, Position};
use super::{Member, Pending, Round};

impl Member {
    pub(super) fn on_pre_vote(
        &mut self,
        from: &Name,
        round: u64,
        by_hand: bool,
        held: Option<Position>,
        out: &mut Vec<Output>,
    ) {
        let followed = self.core.following() == Some(from);
        let granted = match self.core.role {
            Role::Primary(_) => false,
            _ if by_hand || followed => !self.promised_to_another(from),
            _ => self.without_primary(),
        };
        let granted = granted || self.core.faults.has(Fault::PromiseBroken);
        // Give way, but only once: one who keeps asking and cannot win must not keep this member from trying.
        let good = held.is_some() && held >= self.core.held() && self.core.live_since().is_none();
        if granted && !by_hand && (good || followed) && !self.gave_way {
            self.gave_way = true;
            self.delay_round(self.timing.promise_us / 2);
        }
        let reply = Message::PreVoteReply { round, granted, term: self.core.term(), ballot: self.core.ballot() };
        self.core.send(from, reply, out);
    }

    pub(super) fn delay_round(&mut self, us: u64) {
        let jitter = self.jitter(us / 2);
        self.round_at_us = self.round_at_us.max(self.now_us + us + jitter);
    }

    /// Stands for election when the primary is lost, one backup after the other.
    pub(super) fn elect(&mut self, out: &mut Vec<Output>) {
        if matches!(self.pending, Some(Pending::Take { .. } | Pending::Force { .. })) {
            return self.elect_by_hand(out);
        }
        let able = self.core.held().is_some() || self.core.live_since().is_some();
        if !able || !self.without_primary() {
            self.suspected_since_us = None;
            return;
        }
        if self.suspected_since_us.is_none() {
            self.suspected_since_us = Some(self.now_us);
            (self.round, self.refusal) = (Round::default(), None);
            let stagger = self.rank() * self.timing.heartbeat_us;
            self.round_at_us = self.round_at_us.max(self.now_us + stagger);
        }
        if self.now_us >= self.round_at_us {
            self.begin_round(How::Automatic, out);
        }
    }

    /// How many should stand before this member.
    pub(super) fn rank(&self) -> u64 {
        let Some(proposal) = self.core.proposal().filter(|_| self.core.live_since().is_none()) else { return 0 };
        let holders = &proposal.config.holders;
        holders.iter().position(|name| *name == self.core.me).unwrap_or(holders.len()) as u64
    }

    pub(super) fn begin_round(&mut self, how: How, out: &mut Vec<Output>) {
        self.round_number += 1;
        self.gave_way = false;
        // What came of the last round, with all that answered it.
        if self.round.asked {
            self.refusal = self.core.assess(std::mem::take(&mut self.round.ballots), self.round.how).err();
        }
        self.round = Round { how, ballots: BTreeMap::new(), asked: true };
        self.round_at_us = self.now_us;
        self.delay_round(2 * self.timing.heartbeat_us);
        let ask = Message::PreVote { round: self.round_number, by_hand: how != How::Automatic, held: self.core.held() };
        for name in self.core.everyone() {
            self.core.send(&name, ask.clone(), out);
        }
        self.try_campaign(out);
    }

    pub(super) fn try_campaign(&mut self, out: &mut Vec<Output>) {
        let wanted = match self.round.how {
            How::Automatic => self.without_primary(),
            _ => matches!(self.pending, Some(Pending::Take { .. })),
        };
        if self.core.is_primary() || !wanted {
            return;
        }
        if self.core.assess(self.round.ballots.clone(), self.round.how).is_ok() {
            // Answers that are still on their way belong to a past round.
            self.round_number += 1;
            self.core.campaign(self.round.how, out);
            self.delay_round(self.timing.promise_us);
        }
    }

    pub(super) fn elect_by_hand(&mut self, out: &mut Vec<Output>) {
        match self.pending.clone() {
            Some(Pending::Take { force: true, until_us, .. }) if self.now_us >= until_us => {
                self.core.campaign(How::Forced, out);
                self.pending = Some(Pending::Force { until_us: self.now_us + 4 * self.timing.promise_us });
            }
            Some(Pending::Take { how, until_us, .. }) if self.now_us < until_us && self.now_us >= self.round_at_us => {
                self.begin_round(how, out);
            }
            Some(Pending::Force { until_us }) if self.now_us >= until_us => {
                if self.core.win_forced(out) {
                    self.forced_term = Some(self.core.term());
                }
                self.start_lead(out);
            }
            _ => {}
        }
    }
}
