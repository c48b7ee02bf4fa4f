//! One host's part in a group: the protocol core with clocks around it. Heartbeats, suspicion, pre-votes, the promise
//! of a voter, the lease of a primary, and the steps of what an operator asks for.

mod campaign;

use std::collections::BTreeMap;

use super::core::{Core, Role};
use super::detector::Detector;
use super::election::{How, Refusal};
use super::following::Wait;
use super::isolation::Isolation;
use super::leading::Change;
use super::message::{Ballot, Message};
use super::migration::Lag;
use super::mutation::{Fault, Faults};
use super::output::Output;
use super::timing::Timing;
use super::types::{Durable, Name, Position};

/// What a member is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name.
    pub name: Name,
    /// The periods.
    pub timing: Timing,
    /// A whole epoch that provably survived the last process; normally none.
    pub held: Option<Position>,
}

impl Settings {
    /// The default periods.
    pub fn new(name: impl Into<Name>) -> Self {
        Self { name: name.into(), timing: Timing::default(), held: None }
    }
}

/// What happens to a member.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message of another member.
    Message {
        /// Its authenticated sender.
        from: Name,
        /// The message.
        message: Message,
    },
    /// Time passed; at least every 5 ms.
    Tick,
    /// (Primary) the guest's epoch is sealed. Tag it with [`Member::live_since`] read after this input.
    EpochSealed(u64),
    /// (Backup) all of an epoch is here and verified. To be kept if the outputs say `Commit`, else dropped.
    EpochHeld(Position),
    /// (Backup) the replica is about to be written in place by a sync, or failed.
    ReplicaLost,
    /// (Backup) the replica is whole at this position.
    SyncDone(Position),
    /// (Primary) a sync that `BeginSync` asked for came to nothing.
    SyncFailed(Name),
    /// Bulk data came from a member or arrived there: it lives, whatever has become of its messages.
    PeerMoves(Name),
    /// A connection to a member broke.
    PeerDown(Name),
    /// (Primary) the guest is paused as asked, this was its last epoch.
    GuestPaused {
        /// The epoch, sealed.
        last: u64,
    },
    /// (Primary, while a member is migrated to) what that lacks of what the guest has done, in thousandths of what may be
    /// under way to it. To be told after each epoch that is sealed, and when it changes.
    Lag {
        /// The target.
        of: Name,
        /// Its lag.
        thousandths: u32,
    },
    /// An operator's command; answered by [`Output::Answer`]. A new one replaces one that is not answered yet.
    Command(Command),
}

/// What an operator can ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Start the VM from this host's disk: the first start, or after a loss of everything.
    Start,
    /// Take over here.
    Promote {
        /// Whatever it may lose.
        force: bool,
    },
    /// Hand the VM over.
    Migrate {
        /// A backup; need not be in sync yet.
        to: Name,
        /// How long it may take to catch up.
        within_us: u64,
    },
    /// Give the migration up, if the target does not decide already. The migration's own command is answered.
    AbortMigration,
    /// Change who belongs to the group.
    Change(Change),
}

#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub detector: Detector,
    pub lost: bool,
    /// When the latest heartbeat was sent that it answered in this term.
    pub answered_us: Option<u64>,
    /// Output waits for it although it is no holder.
    pub wait: Option<Wait>,
}

#[derive(Clone, Debug, Default)]
struct Round {
    how: How,
    ballots: BTreeMap<Name, Ballot>,
    /// The others were asked.
    asked: bool,
}

#[derive(Clone, Debug)]
enum Pending {
    Take { how: How, force: bool, until_us: u64 },
    Force { until_us: u64 },
    Change { until_us: u64 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Migration {
    Converging { to: Name, until_us: u64 },
    Pausing { to: Name, until_us: u64 },
    Draining { to: Name, until_us: u64 },
    HandedOver { until_us: u64 },
}

/// A member of a group. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Member {
    pub(super) core: Core,
    pub(super) timing: Timing,
    pub(super) now_us: u64,
    /// The promise of a voter: to whom, and until when.
    pub(super) promised_to: Option<Name>,
    pub(super) promise_until_us: u64,
    pub(super) watch: Detector,
    pub(super) peers: BTreeMap<Name, Watch>,
    peers_term: u64,
    heartbeat_at_us: u64,
    pub(super) open_until_us: Option<u64>,
    told_until_us: u64,
    pub(super) pending_release: Option<u64>,
    round_number: u64,
    round: Round,
    pub(super) suspected_since_us: Option<u64>,
    disturbed_since_us: Option<u64>,
    round_at_us: u64,
    gave_way: bool,
    random: u64,
    pending: Option<Pending>,
    pub(super) migration: Option<Migration>,
    pub(super) lag: Lag,
    /// Pauses of the guest that were ordered and not answered.
    pub(super) pauses_due: u32,
    pub(super) refusal: Option<Refusal>,
    pub(super) isolation: Isolation,
    /// The primary that was heard last, and when.
    pub(super) heard: Option<(Name, u64)>,
    /// In which term a primary handed the VM over to this member, or an operator forced it to take over.
    pub(super) handed_over_term: Option<u64>,
    pub(super) forced_term: Option<u64>,
    /// What was last given to be written.
    written: Durable,
}

impl Member {
    /// A member as its process starts, at `now_us` of a local clock that never stops nor goes back.
    pub fn new(settings: Settings, durable: Durable, now_us: u64) -> Self {
        Self::with_faults(settings, durable, now_us, Faults::default())
    }

    pub(super) fn with_faults(settings: Settings, durable: Durable, now_us: u64, faults: Faults) -> Self {
        let Settings { name, timing, held } = settings;
        let random = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Self {
            written: durable.clone(),
            core: Core::new(name, durable, held, faults),
            timing,
            now_us,
            promised_to: None,
            // The former process may have promised just before it ended.
            promise_until_us: now_us + timing.promise_us,
            watch: Detector::new(timing.bounds(), timing.heartbeat_us, now_us),
            peers: BTreeMap::new(),
            peers_term: 0,
            heartbeat_at_us: now_us,
            open_until_us: None,
            told_until_us: 0,
            pending_release: None,
            round_number: 0,
            round: Round::default(),
            suspected_since_us: None,
            disturbed_since_us: None,
            round_at_us: now_us,
            gave_way: false,
            random,
            pending: None,
            migration: None,
            lag: Lag::default(),
            isolation: Isolation::default(),
            heard: None,
            handed_over_term: None,
            forced_term: None,
            pauses_due: 0,
            refusal: None,
        }
    }

    /// The term with which the guest's epochs are tagged, while it runs here.
    pub fn live_since(&self) -> Option<u64> {
        self.core.live_since()
    }

    /// The primary that it follows.
    pub fn following(&self) -> Option<&Name> {
        self.core.following()
    }

    /// Whether it is the primary.
    pub fn is_primary(&self) -> bool {
        self.core.is_primary()
    }

    /// The group's periods, which a member that joins learns when it does.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
        self.watch = Detector::new(timing.bounds(), timing.heartbeat_us, self.now_us);
        self.promise_until_us = self.promise_until_us.max(self.now_us + timing.promise_us);
    }

    /// What it keeps on disk.
    pub fn durable(&self) -> &Durable {
        &self.core.durable
    }

    /// Something happened at `now_us`; the outputs are to be carried out in order.
    pub fn handle(&mut self, now_us: u64, input: Input) -> Vec<Output> {
        self.pass(now_us);
        let mut raw = Vec::new();
        let mut out = Vec::new();
        match input {
            Input::Message { from, message } => self.on_message(&from, message, &mut raw),
            Input::Tick => {}
            Input::EpochSealed(epoch) => {
                self.lag_is_stale();
                self.core.sealed(epoch, &mut raw);
            }
            Input::Lag { of, thousandths } => self.on_lag(&of, thousandths),
            Input::EpochHeld(at) => self.core.arrived(at, &mut raw),
            Input::ReplicaLost => self.core.replica_lost(&mut raw),
            Input::SyncDone(at) => self.core.synced(at, &mut raw),
            Input::SyncFailed(peer) => self.core.sync_failed(&peer),
            Input::PeerMoves(peer) => self.on_peer_moves(&peer),
            Input::PeerDown(peer) => self.on_peer_down(&peer, &mut raw),
            Input::GuestPaused { last } => self.on_guest_paused(last, &mut raw),
            Input::Command(command) => self.on_command(command, &mut raw),
        }
        self.act(&mut raw);
        self.gate(raw, &mut out);
        out
    }

    /// Moves the clock. Time that passed unnoticed is not held against others.
    fn pass(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.now_us);
        self.now_us = self.now_us.max(now_us);
        if passed > 2 * self.timing.heartbeat_us {
            self.watch.excuse(passed);
            self.isolation.excuse(passed);
            for peer in self.peers.values_mut() {
                peer.detector.excuse(passed);
                peer.wait.iter_mut().for_each(|wait| wait.excuse(passed));
            }
        }
    }

    /// What is due by now, whatever happened.
    fn act(&mut self, out: &mut Vec<Output>) {
        if self.core.is_primary() {
            self.lead(out);
        } else {
            self.peers.clear();
            self.elect(out);
        }
        self.migrate(out);
        self.answer(out);
    }

    fn on_message(&mut self, from: &Name, message: Message, out: &mut Vec<Output>) {
        match message {
            Message::Heartbeat { term, stamp } => {
                if term < self.core.term() {
                    return self.core.send(from, Message::Stale { term: self.core.term() }, out);
                }
                if term == self.core.term() {
                    self.core.heard(stamp);
                    if self.core.following() == Some(from) {
                        self.heard_primary(from);
                    }
                }
                let report = self.core.report(Some(stamp));
                self.core.send(from, report, out);
            }
            Message::PreVote { round, by_hand, held } => self.on_pre_vote(from, round, by_hand, held, out),
            Message::PreVoteReply { round, granted, term, ballot } => {
                self.core.seen_term = self.core.seen_term.max(term);
                if granted && round == self.round_number {
                    self.round.ballots.insert(from.clone(), ballot);
                    self.try_campaign(out);
                }
            }
            Message::VoteRequest { handed_over, .. } if !handed_over && self.promised_to_another(from) => {}
            Message::Report { term, echo, .. } => {
                if term == self.core.term()
                    && let Some(watch) = self.peers.get_mut(from)
                {
                    watch.detector.heard(self.now_us);
                    watch.lost = false;
                    watch.answered_us = watch.answered_us.max(echo.filter(|sent| *sent <= self.now_us));
                }
                self.core.receive(from, message, out);
            }
            message => {
                let voted = matches!(message, Message::VoteRequest { .. });
                let proposed = matches!(message, Message::Propose { .. });
                if let Message::HandOver { term, .. } = message {
                    self.handed_over_term = Some(term);
                }
                let term = self.core.term();
                self.core.receive(from, message, out);
                if proposed && self.core.following() == Some(from) {
                    self.heard_primary(from);
                }
                if voted && self.core.term() > term {
                    // Leave the candidate time to win. What this member asked before it voted is void: standing in the next
                    // term on answers that are still on their way, it would take the votes back from the one it elected.
                    self.round_number += 1;
                    self.delay_round(2 * self.timing.promise_us);
                }
            }
        }
    }

    fn heard_primary(&mut self, from: &Name) {
        if self.promised_to.as_ref() != Some(from) {
            self.watch = Detector::new(self.timing.bounds(), self.timing.heartbeat_us, self.now_us);
            self.promised_to = Some(from.clone());
        }
        self.watch.heard(self.now_us);
        self.heard = Some((from.clone(), self.now_us));
        self.promise_until_us = self.now_us + self.timing.promise_us;
        self.suspected_since_us = None;
    }

    fn promised_to_another(&self, candidate: &Name) -> bool {
        let promised = self.now_us < self.promise_until_us && self.promised_to.as_ref() != Some(candidate);
        promised && !self.core.faults.has(Fault::PromiseBroken)
    }

    /// Promises are renewed by messages only: this is about suspicion.
    fn on_peer_moves(&mut self, peer: &Name) {
        if self.core.following() == Some(peer) {
            self.watch.moves(self.now_us);
        }
        if let Some(watch) = self.peers.get_mut(peer) {
            watch.detector.moves(self.now_us);
            watch.wait.iter_mut().for_each(|wait| wait.moves(self.now_us));
        }
    }

    fn on_peer_down(&mut self, peer: &Name, out: &mut Vec<Output>) {
        self.target_lost(peer, out);
        if self.core.is_primary() {
            self.core.peer_lost(peer, out);
            self.core.sync_failed(peer);
            if let Some(watch) = self.peers.get_mut(peer) {
                // It was gone, not slow: its absence is not to be taken for a hiccup.
                watch.detector.broken(self.now_us);
                watch.lost = true;
            }
        } else if self.core.following() == Some(peer) {
            self.watch.broken(self.now_us);
        }
    }

    // --- Electing -----------------------------------------------------------------------------------------------

    /// Whether the primary is thought lost here.
    fn without_primary(&self) -> bool {
        let promised = self.now_us < self.promise_until_us;
        match &self.core.role {
            Role::Follower { primary: Some(_) } => self.watch.suspects(self.now_us) && !promised,
            Role::Follower { primary: None } | Role::Candidate(_) => !promised,
            Role::HandedOver { .. } => {
                !matches!(self.migration, Some(Migration::HandedOver { until_us }) if self.now_us < until_us)
            }
            Role::Primary(_) => false,
        }
    }

    // --- Leading ------------------------------------------------------------------------------------------------

    fn start_lead(&mut self, out: &mut Vec<Output>) {
        if self.core.is_primary() {
            self.lead(out);
        }
    }

    fn lead(&mut self, out: &mut Vec<Output>) {
        if self.peers_term != self.core.term() {
            self.peers_term = self.core.term();
            self.peers.clear();
            self.heartbeat_at_us = self.now_us;
            self.suspected_since_us = None;
            self.refusal = None;
        }
        if self.now_us >= self.heartbeat_at_us {
            self.beat(out);
        }
        for (name, peer) in &mut self.peers {
            if !peer.lost && peer.detector.suspects(self.now_us) {
                peer.lost = true;
                self.core.peer_lost(name, out);
            }
        }
        self.watch_followers(out);
        self.stand_again(out);
    }

    fn beat(&mut self, out: &mut Vec<Output>) {
        self.heartbeat_at_us = self.now_us + self.timing.heartbeat_us;
        let everyone = self.core.everyone();
        self.peers.retain(|name, _| everyone.contains(name));
        let detector = Detector::new(self.timing.bounds(), self.timing.heartbeat_us, self.now_us);
        for name in everyone {
            let beat = Message::Heartbeat { term: self.core.term(), stamp: self.now_us };
            self.core.send(&name, beat, out);
            self.peers.entry(name).or_insert_with(|| Watch {
                detector: detector.clone(),
                lost: false,
                answered_us: None,
                wait: None,
            });
        }
    }

    /// Somebody is in a later term in which nobody was elected as far as is known, and will not follow this one: stands
    /// for a still later term, with the guest it has. At once when a majority is gone, else when no epoch is under way,
    /// so that nobody falls out of sync.
    fn stand_again(&mut self, out: &mut Vec<Output>) {
        if self.core.seen_term <= self.core.term() {
            self.disturbed_since_us = None;
            return;
        }
        let since = *self.disturbed_since_us.get_or_insert(self.now_us);
        let waited = self.now_us - since;
        let lapsed = self.lease_until_us().is_none_or(|until| until <= self.now_us);
        let calm = waited > 4 * self.timing.promise_us && self.core.all_held();
        if lapsed || self.migration.is_none() && calm || waited > self.timing.command_us {
            self.core.campaign(How::Automatic, out);
            self.delay_round(self.timing.promise_us);
        }
    }

    /// Until when a majority keeps its promise to this primary.
    pub(super) fn lease_until_us(&self) -> Option<u64> {
        let proposal = self.core.proposal().filter(|_| self.core.is_primary())?;
        let answered = |name: &Name| {
            if *name == self.core.me {
                Some(self.now_us)
            } else {
                self.peers.get(name).and_then(|peer| peer.answered_us)
            }
        };
        let mut times: Vec<_> = self.peers.values().filter_map(|peer| peer.answered_us).chain([self.now_us]).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let since = times.into_iter().find(|since| proposal.majority(|name| answered(name) >= Some(*since)))?;
        Some(since + self.timing.lease_us)
    }

    /// Passes outputs on, with the release of output made to depend on the lease. All that a step changes is written at
    /// once, before any of it is said; beside that a guest may start already, since nothing of it is released before.
    fn gate(&mut self, raw: Vec<Output>, out: &mut Vec<Output>) {
        let durable = raw.iter().rev().find_map(|output| match output {
            Output::Persist(durable) => Some(durable.clone()),
            _ => None,
        });
        let (later, now) = match durable {
            Some(durable) if durable.only_settles(&self.written) => (Some(durable), None),
            durable => (None, durable),
        };
        let (starts, rest): (Vec<_>, Vec<_>) =
            raw.into_iter().partition(|output| matches!(output, Output::StartGuest { .. }));
        out.extend(starts);
        out.extend(now.into_iter().inspect(|durable| self.written = durable.clone()).map(Output::Persist));
        self.pass_on(rest, out);
        out.extend(later.into_iter().inspect(|durable| self.written = durable.clone()).map(Output::Persist));
    }

    fn pass_on(&mut self, raw: Vec<Output>, out: &mut Vec<Output>) {
        for output in raw {
            match output {
                Output::Persist(_) => {}
                Output::Release { through } => self.pending_release = Some(through),
                Output::StopGuest => {
                    self.close("another host runs the VM", out);
                    self.migration = None;
                    self.pauses_due = 0;
                    out.push(Output::StopGuest);
                }
                other => out.push(other),
            }
        }
        let settled = matches!(&self.core.role, Role::Primary(reign) if reign.settled.is_some());
        let lease = if self.core.faults.has(Fault::NoLease) && settled {
            Some(self.now_us + self.timing.lease_us)
        } else {
            self.lease_until_us()
        };
        let heard = lease.filter(|until| settled && *until > self.now_us);
        match heard {
            Some(until_us) => self.open(until_us, out),
            None if settled => self.close("not heard by a majority", out),
            None => self.close("not the primary", out),
        }
        self.watch_isolation(heard.is_some(), out);
    }

    fn open(&mut self, until_us: u64, out: &mut Vec<Output>) {
        let told = self.open_until_us.is_some() && until_us < self.told_until_us + self.timing.heartbeat_us / 2;
        self.open_until_us = Some(until_us);
        if !told {
            self.told_until_us = until_us;
            out.push(Output::Lease { until_us });
        }
        if let Some(through) = self.pending_release.take() {
            out.push(Output::Release { through });
        }
    }

    fn close(&mut self, reason: &'static str, out: &mut Vec<Output>) {
        if !self.core.is_primary() {
            self.pending_release = None;
        }
        if self.open_until_us.take().is_some() {
            out.push(Output::Hold { reason });
        }
    }

    // --- Commands -----------------------------------------------------------------------------------------------

    fn on_command(&mut self, command: Command, out: &mut Vec<Output>) {
        let until_us = self.now_us + self.timing.command_us;
        let answer = match command {
            Command::Start | Command::Promote { .. } if self.core.is_primary() => Err("the VM runs here".to_string()),
            Command::Start => self.take(How::Cold, false, until_us, out),
            Command::Promote { force } => match &self.promised_to {
                Some(primary) if !self.without_primary() => {
                    Err(format!("{primary} is alive and runs the VM: use `vm migrate`"))
                }
                _ => self.take(How::ByHand, force, until_us, out),
            },
            Command::Migrate { to, within_us } => self.begin_migration(to, within_us),
            Command::AbortMigration if self.abort_migration(out) => {
                Err("the migration was given up; the VM goes on here".to_string())
            }
            Command::AbortMigration => return,
            Command::Change(change) => match self.core.change(&change, out) {
                Ok(()) => {
                    self.pending = Some(Pending::Change { until_us });
                    return;
                }
                Err(error) => Err(error.to_string()),
            },
        };
        match answer {
            Ok(done) if done.is_empty() => {}
            answer => out.push(Output::Answer(answer)),
        }
    }

    fn take(&mut self, how: How, force: bool, until_us: u64, out: &mut Vec<Output>) -> Result<String, String> {
        self.pending = Some(Pending::Take { how, force, until_us });
        self.begin_round(how, out);
        Ok(String::new())
    }

    /// Answers the pending command when it is done or its time is over.
    fn answer(&mut self, out: &mut Vec<Output>) {
        let answer = match &self.pending {
            Some(Pending::Take { .. } | Pending::Force { .. }) if self.core.is_primary() => {
                Ok(format!("runs here, term {}", self.core.term()))
            }
            Some(Pending::Take { force: false, until_us, .. }) if self.now_us >= *until_us => {
                let refusal = self.refusal.as_ref().map_or("no majority answered".to_string(), ToString::to_string);
                Err(refusal)
            }
            Some(Pending::Force { until_us }) if self.now_us >= *until_us => {
                Err("this host holds no whole epoch of the VM".to_string())
            }
            Some(Pending::Change { .. }) if self.core.proposal().is_some_and(|proposal| proposal.settled) => {
                Ok("changed".to_string())
            }
            Some(Pending::Change { until_us }) if self.now_us >= *until_us => {
                Err("a majority has not agreed yet; it is done when one does".to_string())
            }
            _ => return,
        };
        self.pending = None;
        out.push(Output::Answer(answer));
    }

    /// A number below `max`, different each time and for each member.
    fn jitter(&mut self, max: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % max.max(1)
    }
}
