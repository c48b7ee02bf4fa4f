//! What an operator asks of a machine.

use std::net::SocketAddr;
use std::time::Duration;

use super::backups::Wanted;
use super::{Agent, Part, Stopping};
use crate::group::{Change, Command, Input, Name};
use crate::host::control::{Call, Request};

/// How long a process that finds no group waits before it starts the machine by itself.
const ALONE_AFTER: Duration = Duration::from_secs(2);
/// How long a guest may take to shut down.
const POWERDOWN_TIME: Duration = Duration::from_secs(90);
/// A guest that is still booting does not notice its power button; one that shuts down already does not mind.
const PRESS_EVERY: Duration = Duration::from_secs(5);

impl Agent {
    /// A process that is to run the machine, and hears of nobody who does, starts it.
    pub(super) fn start_alone(&mut self) {
        if !self.starts || self.member.live_since().is_some() {
            return;
        }
        let waited = crate::clock::monotonic().saturating_sub(self.began) > ALONE_AFTER;
        if self.is_founding() || waited {
            self.starts = false;
            self.commands.push_back((Command::Start, None));
        }
    }

    /// Whether the machine is this host's alone, and is to be started by it.
    pub(super) fn is_founding(&self) -> bool {
        self.starts
            && self.config().is_some_and(|config| config.members().eq([self.place.me.as_str()].map(Name::from).iter()))
    }

    pub(super) fn next_command(&mut self) {
        if self.answering.is_some() {
            return;
        }
        if let Some((command, call)) = self.commands.pop_front() {
            self.answering = Some(call);
            self.input(Input::Command(command));
        }
    }

    pub(super) fn on_call(&mut self, call: Call) {
        match call.request.clone() {
            Request::Status => {
                let status = serde_json::to_value(self.status()).map_err(|error| error.to_string());
                call.finish(status);
            }
            Request::Migrate { to, seconds } => self.migrate(call, &to, seconds),
            Request::Promote { force } => self.commands.push_back((Command::Promote { force }, Some(call))),
            Request::Forget { member } => {
                self.book.remove(&member);
                self.presence.forgotten.insert(member.clone());
                self.commands.push_back((Command::Change(Change::Forget(member.as_str().into())), Some(call)));
            }
            Request::Protect { backup, at_once } => self.protect(call, &backup, at_once),
            Request::Follow => self.following.add(call, None),
            Request::Stop { force } => self.stop(call, force),
        }
    }

    fn protect(&mut self, call: Call, backup: &str, at_once: bool) {
        if !self.has_guest() {
            return call.finish(Err("the guest does not run on this host; ask where it runs".into()));
        }
        match crate::host::addresses(backup) {
            Ok(addresses) => {
                self.wanted.insert(addresses.clone(), Wanted::default());
                self.invite_all();
                if at_once {
                    let told = format!("{backup} is asked to join; `mycelium vm status` shows when it is in sync");
                    call.finish(Ok(told.into()));
                } else {
                    self.following.add(call, Some(addresses));
                }
            }
            Err(reason) => call.finish(Err(reason)),
        }
    }

    pub(super) fn name_of(&self, host: &str) -> Option<String> {
        if self.book.contains_key(host) {
            return Some(host.to_owned());
        }
        let addresses = crate::host::addresses(host).ok()?;
        let of = |(_, known): &(&String, &Vec<SocketAddr>)| known.iter().any(|one| addresses.contains(one));
        self.book.iter().find(of).map(|(name, _)| name.clone())
    }

    fn stop(&mut self, call: Call, force: bool) {
        let Part::Primary(primary) = &self.part else {
            return call.finish(Err("the guest does not run on this host; stop it where it runs".into()));
        };
        let now = crate::clock::monotonic();
        if force {
            self.stopping = Some(Stopping { call: Some(call), until: now, again: now });
            return self.finish_stop();
        }
        primary.powerdown();
        self.stopping = Some(Stopping { call: Some(call), until: now + POWERDOWN_TIME, again: now + PRESS_EVERY });
    }

    /// Presses the power button again, or loses patience.
    pub(super) fn go_on_stopping(&mut self) {
        let (Part::Primary(primary), Some(stopping)) = (&self.part, &mut self.stopping) else { return };
        let now = crate::clock::monotonic();
        if now > stopping.until {
            self.history.note("the guest did not shut down in time; it is ended");
            self.finish_stop();
        } else if now > stopping.again {
            stopping.again = now + PRESS_EVERY;
            primary.powerdown();
            self.history.note("the guest still runs; its power button is pressed again");
        }
    }
}
