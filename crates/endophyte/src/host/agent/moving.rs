//! A planned migration as this host sees it: who asked for it, how far the other host is behind, and how the guest is
//! made to converge.
//!
//! A host that is no member joins for the migration. Then the machine *moves*: when it runs there, the host it came from is
//! left out of the group; and when it came to nothing, the host that joined is. A backup just changes places with the host
//! that had the guest.

use std::net::SocketAddr;
use std::time::Duration;

use super::backups::Wanted;
use super::{Agent, Outcome, Part};
use crate::clock::monotonic;
use crate::codec::PAGE;
use crate::group::{Change, Command, Input, LAG_THOUSANDTHS_MAX, Name};
use crate::host::book::Notice;
use crate::host::control::{Call, Progress, Request};
use crate::host::primary::Captured;
use crate::host::status;

/// Between words to whoever waits for a migration.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// Epochs whose size is remembered.
const SIZES: usize = 1024;
/// What may be under way to the target counts as no more than this, so that a large buffer does not mean a long pause.
const ROOM_MAX: u64 = 128 << 20;

/// Between words to the host that is to leave this one out.
const LEAVE_EVERY: Duration = Duration::from_millis(500);

/// A migration that was asked for.
#[derive(Default)]
pub(super) struct Moving {
    /// The host that is asked to join first.
    joins: Option<Joins>,
    /// The host that joined for it.
    joined: Option<String>,
    /// When whoever waits is told next.
    tell: Duration,
    /// It was given up.
    given_up: bool,
}

/// A host that is asked to join for a migration.
struct Joins {
    addresses: Vec<SocketAddr>,
    call: Call,
    until: Duration,
}

/// This host leaves the group, for the machine moved to another.
#[derive(Default)]
pub(super) struct Departure {
    again: Duration,
}

impl Agent {
    pub(super) fn migrate(&mut self, call: Call, to: &str, seconds: u64) {
        if self.moving.is_some() {
            return call.finish(Err("a migration is under way".into()));
        }
        let known = self.name_of(to);
        let member = known.as_ref().filter(|name| self.config().is_some_and(|config| config.data.contains(&***name)));
        if let Some(to) = member {
            self.moving = Some(Moving::default());
            let within_us = seconds.saturating_mul(1_000_000);
            return self.commands.push_back((Command::Migrate { to: to.as_str().into(), within_us }, Some(call)));
        }
        if !self.member.is_primary() {
            return call.finish(Err("the guest does not run on this host; migrate it where it runs".into()));
        }
        let listens = known.and_then(|name| self.book.get(&name).cloned()).filter(|all| !all.is_empty());
        match listens.map_or_else(|| crate::host::addresses(to), Ok) {
            Ok(addresses) => {
                self.wanted.insert(addresses.clone(), Wanted::default());
                self.invite_all();
                let until = monotonic().saturating_add(Duration::from_secs(seconds));
                self.moving = Some(Moving { joins: Some(Joins { addresses, call, until }), ..Moving::default() });
            }
            Err(reason) => call.finish(Err(reason)),
        }
    }

    /// A host that is to join for a migration: once it has, the migration begins.
    fn go_on_joining(&mut self) {
        let Some(joins) = self.moving.as_mut().and_then(|moving| moving.joins.take()) else { return };
        let now = monotonic();
        let name =
            self.peers.iter().find(|(_, peer)| peer.hello.listen.iter().any(|one| joins.addresses.contains(one)));
        let name = name.map(|(name, _)| name.clone());
        let member = name.filter(|name| self.config().is_some_and(|config| config.data.contains(name.as_str())));
        let given_up = match &member {
            _ if joins.call.is_abandoned() => Some("whoever asked for the migration is gone: it is given up"),
            _ if !self.member.is_primary() => Some("this host is not the primary any more"),
            None if now >= joins.until => {
                Some("the other host did not join in time (`vm status` shows why); the VM goes on here")
            }
            _ => None,
        };
        let Some(moving) = &mut self.moving else { return };
        match (given_up, member) {
            (Some(reason), _) => {
                self.moving = None;
                self.history.note(reason);
                self.uninvite(&joins.addresses);
                joins.call.finish(Err(reason.to_owned()));
            }
            (None, Some(name)) => {
                let within_us = joins.until.saturating_sub(now).as_micros().try_into().unwrap_or(u64::MAX);
                let command = Command::Migrate { to: name.as_str().into(), within_us };
                moving.joined = Some(name);
                self.commands.push_back((command, Some(joins.call)));
            }
            (None, None) => {
                if now >= moving.tell {
                    moving.tell = now + TELL_EVERY;
                    let who = joins.addresses.first().map(ToString::to_string).unwrap_or_default();
                    joins.call.progress(&Progress { who, part: 0.0, text: "is asked to join".into() });
                }
                moving.joins = Some(joins);
            }
        }
    }

    /// A host that joined for a migration, or was to, is left out again.
    fn uninvite(&mut self, addresses: &[SocketAddr]) {
        self.wanted.retain(|wanted, _| !wanted.iter().any(|one| addresses.contains(one)));
        let listens = |all: &Vec<SocketAddr>| all.iter().any(|one| addresses.contains(one));
        let name = self.book.iter().find(|(_, all)| listens(all)).map(|(name, _)| name.clone());
        if let Some(name) = name {
            let joins = Command::Change(Change::AddBackup(name.as_str().into()));
            self.commands.retain(|(command, _)| *command != joins);
            self.leave_out(&name);
        }
    }

    /// (Primary) takes a backup out of the group.
    fn leave_out(&mut self, name: &str) {
        let member = self.config().is_some_and(|config| config.data.contains(name));
        let change = Command::Change(Change::Remove(name.into()));
        if self.member.is_primary() && member && !self.commands.iter().any(|(command, _)| *command == change) {
            self.book.remove(name);
            self.commands.push_back((change, None));
        }
    }

    /// The machine has moved away from another host.
    pub(super) fn on_leaving(&mut self, from: &str) {
        self.leave_out(from);
    }

    /// A configuration is settled: who is linked and does not belong to it is told.
    pub(super) fn tell_who_is_left_out(&self) {
        let Some(config) = self.config().filter(|_| self.member.is_primary()) else { return };
        for (name, peer) in &self.peers {
            if self.wanted_as(peer).is_none() && config.members().all(|member| **member != **name) {
                peer.notice(&Notice::Left);
            }
        }
    }

    /// Does not belong to the group any more: what this host has of the machine goes, but not its vote.
    pub(super) fn go_on_leaving(&mut self) {
        let busy = matches!(self.part, Part::Preparing | Part::Starting | Part::Primary(_) | Part::Clearing);
        if self.left && !busy {
            self.left = false;
            self.history.note("this host does not belong to the machine's group any more");
            return self.end(Outcome::Left);
        }
        let Some(departure) = self.departing.as_mut().filter(|departure| monotonic() >= departure.again) else {
            return;
        };
        departure.again = monotonic() + LEAVE_EVERY;
        if let Some(primary) = self.member.following().and_then(|primary| self.peers.get(&**primary)) {
            primary.notice(&Notice::Leaving);
        }
    }

    pub(super) fn on_left(&mut self, from: &str) {
        let followed = self.member.following().is_none_or(|primary| **primary == *from);
        self.left |= followed && self.member.live_since().is_none();
    }

    /// Gives the migration up when nobody waits for it any more; tells whoever does how it goes.
    pub(super) fn go_on_moving(&mut self) {
        self.go_on_joining();
        self.go_on_leaving();
        let converging = self.member.is_converging();
        let to = self.member.migrating_to().cloned().filter(|_| converging);
        to.iter().for_each(|to| self.tell_lag(to));
        if let Part::Primary(primary) = &self.part {
            let follows = to.is_some_and(|to| !self.syncs.contains_key(&*to));
            let behind = self.member.lag_thousandths().is_some_and(|lag| lag > LAG_THOUSANDTHS_MAX);
            primary.converge(converging, follows && behind);
        }
        let Some(moving) = &mut self.moving else { return };
        let Some(Some(call)) = self.answering.as_ref().filter(|call| is_migration(call.as_ref())) else { return };
        if call.is_abandoned() {
            if !std::mem::replace(&mut moving.given_up, true) {
                self.history.note("whoever asked for the migration is gone: it is given up");
                self.input(Input::Command(Command::AbortMigration));
            }
        } else if monotonic() >= moving.tell && converging {
            moving.tell = monotonic() + TELL_EVERY;
            if let (Some(to), Some(lag)) = (self.member.migrating_to(), self.member.lag_thousandths()) {
                let lag = f64::from(lag) / 1000.0;
                let text = format!("catching up, lag {lag:.2}");
                call.progress(&Progress { who: to.to_string(), part: 1.0 - lag.min(1.0), text });
            }
        }
    }

    /// The migration has ended, one way or the other; the answer in full.
    pub(super) fn moved(&mut self, call: &Call, outcome: Result<String, String>) -> Result<String, String> {
        let Some(moving) = self.moving.take_if(|moving| moving.joins.is_none() && is_migration(Some(call))) else {
            return outcome;
        };
        match (&outcome, moving.joined) {
            (Ok(done), Some(_)) => {
                self.departing = Some(Departure::default());
                return Ok(format!("{done}; this host has left its group"));
            }
            (Err(reason), joined) => {
                self.history.note(reason);
                let listens = joined.and_then(|name| self.book.get(&name).cloned());
                listens.iter().for_each(|addresses| self.uninvite(addresses));
            }
            (Ok(_), None) => {}
        }
        outcome
    }

    /// Remembers what an epoch weighs, and says how far the target of a migration is behind now.
    pub(super) fn weigh(&mut self, captured: &Captured) {
        let disk = captured.disk.as_ref().map_or(0, |(_, epoch)| epoch.data_bytes());
        self.sizes.push_back((captured.capture.epoch, (captured.capture.pages.len() * PAGE) as u64 + disk));
        if self.sizes.len() > SIZES {
            self.sizes.pop_front();
        }
    }

    pub(super) fn tell_lag(&mut self, to: &Name) {
        let thousandths = self.lag_of(to);
        self.input(Input::Lag { of: to.clone(), thousandths });
    }

    /// What a backup lacks, in thousandths: of the copy while that is made; then the epochs that it does not hold, of those
    /// that may be under way.
    fn lag_of(&self, name: &str) -> u32 {
        let Part::Primary(primary) = &self.part else { return 1000 };
        if let Some(sync) = self.syncs.get(name).filter(|sync| !sync.whole) {
            return (((1.0 - sync.progress) * 1000.0) as u32).max(LAG_THOUSANDTHS_MAX + 1);
        }
        let Some(held) = self.member.held_by(name) else { return 1000 };
        if self.sizes.front().is_none_or(|(first, _)| *first > held.epoch + 1) {
            return 1000;
        }
        let lacking: u64 = self.sizes.iter().filter(|(epoch, _)| *epoch > held.epoch).map(|(_, bytes)| bytes).sum();
        u32::try_from(lacking * 1000 / primary.room().clamp(1, ROOM_MAX)).unwrap_or(u32::MAX)
    }

    pub(super) fn describe_migration(&self) -> Option<status::Migration> {
        let to = self.member.migrating_to()?.to_string();
        let lag = f64::from(self.member.lag_thousandths().unwrap_or(1000)) / 1000.0;
        Some(status::Migration { to, lag, lag_limit: f64::from(LAG_THOUSANDTHS_MAX) / 1000.0 })
    }
}

fn is_migration(call: Option<&Call>) -> bool {
    call.is_some_and(|call| matches!(call.request, Request::Migrate { .. }))
}
