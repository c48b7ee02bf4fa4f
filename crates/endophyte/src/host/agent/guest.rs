//! The guest of this host: starting it when the group says so, its end, and stopping it.

use std::time::Duration;

use mycelium_rhizomorph::Link;

use super::super::HostError;
use super::super::assembly::{self};
use super::super::book::Notice;
use super::super::primary::Primary;
use super::{Agent, Event, Outcome, Part};
use crate::group::Start;

impl Agent {
    pub(super) fn start_guest(&mut self, term: u64, from: Start) {
        let part = std::mem::replace(&mut self.part, Part::Starting);
        let Some(assembly) = self.assembly.clone() else {
            return self.end(Outcome::Failed(HostError::NoMachine));
        };
        self.note_takeover(term, from);
        let events = self.events.clone();
        match (from, part) {
            (Start::Promoted { from }, Part::Backup { replica, card }) => {
                tokio::spawn(async move {
                    let primary = assembly::promote(&assembly, replica, card, term, from, events.clone()).await;
                    let _ = events.send(Event::Started(Box::new(primary)));
                });
            }
            (_, part) => {
                tokio::task::spawn_blocking(move || {
                    drop(part);
                    let primary = assembly::boot(&assembly, term, events.clone());
                    let _ = events.send(Event::Started(Box::new(primary)));
                });
            }
        }
    }

    pub(super) fn started(&mut self, primary: Result<Primary, HostError>) {
        match primary {
            Ok(primary) if self.member.live_since().is_some() => {
                self.history.started(&primary.timeline);
                self.part = Part::Primary(primary);
                self.resend();
                if self.member.is_halted() {
                    self.with_primary(Primary::halt);
                }
                if self.open {
                    self.tell_takeover();
                }
                self.protected = None;
                self.want_listed();
                self.invite_all();
                self.adjust();
                std::mem::take(&mut self.later_syncs).iter().for_each(|name| self.begin_sync(name));
            }
            Ok(primary) => {
                // Another host was elected while this one started.
                self.part = Part::Primary(primary);
                self.stop_guest();
            }
            Err(error) => self.end(Outcome::Failed(error)),
        }
    }

    /// Sends epochs again that others lack, when there is what can send them.
    pub(super) fn resend(&mut self) {
        let (Part::Primary(primary), Some(term)) = (&self.part, self.member.live_since()) else { return };
        let Some((after, to)) = self.later_resend.take() else { return };
        let to = to.iter().filter_map(|name| Some(self.peers.get(&**name)?.outbox.clone())).collect();
        primary.resend(after, term, to);
    }

    /// Another host runs the machine.
    pub(super) fn stop_guest(&mut self) {
        self.syncs.clear();
        self.later_syncs.clear();
        self.later_resend = None;
        self.under_way.clear();
        self.sizes.clear();
        if let Some(call) = self.stopping.take().and_then(|stopping| stopping.call) {
            call.finish(Err("another host runs the machine now: stop it there".into()));
        }
        self.history.note("another host runs the machine; this host's guest is ended");
        match std::mem::replace(&mut self.part, Part::Clearing) {
            Part::Primary(primary) => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    primary.stop().await;
                    let _ = events.send(Event::Cleared);
                });
            }
            Part::Starting => self.part = Part::Starting,
            other => {
                drop(other);
                self.part = Part::None;
            }
        }
    }

    /// Whether the guest is this host's to run. One that is being cleared away may fail as it likes.
    pub(super) fn has_guest(&self) -> bool {
        matches!(self.part, Part::Primary(_) | Part::Starting)
    }

    pub(super) fn guest_ended(&mut self, clean: bool) {
        if !self.has_guest() {
            return;
        }
        if clean {
            self.history.note("the guest shut down");
            self.finish_stop();
        } else {
            self.end(Outcome::Failed(HostError::GuestGone));
        }
    }

    pub(super) fn guest_failed(&mut self, reason: &str) {
        if !self.has_guest() {
            return;
        }
        self.history.note(reason);
        tracing::error!(vm = self.place.vm, reason, "the guest cannot be checkpointed");
        self.end(Outcome::Failed(HostError::Refused(reason.to_owned())));
    }

    /// Tells everyone that there is nothing to take over, and ends.
    pub(super) fn finish_stop(&mut self) {
        let notice = Notice::Stopped { term: self.member.durable().term };
        self.peers.values().for_each(|peer| peer.notice(&notice));
        if let Some(call) = self.stopping.take().and_then(|stopping| stopping.call) {
            call.finish(Ok(format!("{} is shut down", self.place.vm).into()));
        }
        let flushed: Vec<Link> = self.peers.values().map(|peer| peer.link.clone()).collect();
        let part = std::mem::replace(&mut self.part, Part::None);
        let ended = self.ended.take();
        tokio::spawn(async move {
            if let Part::Primary(primary) = part {
                primary.stop().await;
            }
            for link in flushed {
                let _ = tokio::time::timeout(Duration::from_secs(1), link.flush()).await;
            }
            if let Some(ended) = ended {
                let _ = ended.send(Outcome::Stopped);
            }
        });
    }
}
