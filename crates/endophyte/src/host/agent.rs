//! One machine on one host: gives the group's protocol what happens, and does what it says.
//!
//! All decisions about who runs the machine are [`crate::group`]'s; this is their hands. One task owns everything and
//! takes [`Event`]s one by one; what takes long (starting QEMU, copying, encoding) runs elsewhere and reports back.

mod apart;
pub(in crate::host) mod backups;
mod commands;
mod hosts;
mod moving;
mod progress;
mod report;
mod standby;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_api::error::chain;
use mycelium_rhizomorph::Link;
use tokio::sync::{mpsc, oneshot};

use self::backups::AllWanted;
use super::assembly::{self, Assembly};
use super::book::{self, Book, Hello, Notice, Setup};
use super::control::Call;
use super::disk_sync::DiskSource;
use super::held::{Held, Weight};
use super::history::History;
use super::links::{Dialler, Peer};
use super::primary::{Captured, Job, Primary, Sent};
use super::replica::{Incoming, Replica};
use super::stream::{Outbox, StreamMessage};
use super::sync::{MemorySync, SyncStep};
use super::timeline::Timeline;
use super::{HostError, Place};
use crate::egress::Mode;
use crate::group::{Command, Config, Durable, Input, Member, Message, Output, OutputMode, Position, Start};
use crate::throttle::Reservation;

/// Time between looks at the clock; the protocol asks for 5 ms at most.
const TICK: Duration = Duration::from_millis(5);
/// How many epochs pass between looks at what every disk has.
const DISKS_EVERY: u64 = 256;

/// Something that happened.
pub(super) enum Event {
    /// A host was reached.
    Linked {
        link: Link,
        hello: Hello,
        dialled: Vec<SocketAddr>,
    },
    /// A host reached us, and waits for our hello.
    Accepted {
        link: Link,
        hello: Hello,
    },
    /// A host cannot be reached.
    Unreachable {
        to: Vec<SocketAddr>,
        reason: String,
    },
    LinkClosed {
        peer: String,
        number: u64,
        reason: String,
    },
    Group {
        from: String,
        message: Message,
    },
    Notice {
        from: String,
        notice: Notice,
    },
    /// The primary's stream.
    Stream(Incoming),
    /// What a backup says about its copy.
    Answer {
        from: String,
        message: StreamMessage,
    },
    Captured(Box<Captured>),
    Sent(Sent),
    Paused {
        last: u64,
        /// When it was told to stop.
        since: Duration,
    },
    GuestEnded {
        clean: bool,
    },
    GuestFailed {
        reason: String,
    },
    Arrived(Position),
    SyncDone(Position),
    ReplicaLost,
    /// A copy was prepared, or could not be.
    Prepared(Box<Result<assembly::Standby, HostError>>),
    /// The guest goes on here, or could not.
    Started(Box<Result<Primary, HostError>>),
    /// What ran here is gone.
    Cleared,
    /// The backups that the document lists: where each is reached, and its place in the list.
    Listed(Vec<(Vec<SocketAddr>, usize)>),
    Call(Call),
}

/// What this host has of the machine.
enum Part {
    /// Nothing yet, or nothing any more.
    None,
    /// A copy is being prepared.
    Preparing,
    /// A copy.
    Backup { replica: Replica, card: Arc<crate::egress::Nic> },
    /// The guest is about to run here.
    Starting,
    /// The guest runs here.
    Primary(Primary),
    /// What ran here is being cleared away.
    Clearing,
}

/// A backup that is being brought in sync.
struct Syncing {
    id: u64,
    seed: u64,
    progress: f64,
    /// The backup's memory is whole: it follows; its disk may take longer.
    whole: bool,
    disk: DiskPart,
}

/// How far the copying of a disk is.
enum DiskPart {
    /// It begins with the first checkpoint that the backup gets; what the backup says until then waits.
    Waiting(Vec<Bytes>),
    /// It is under way.
    Copying(DiskSource),
}

/// The agent of one machine.
pub(super) struct Agent {
    place: Place,
    assembly: Option<Arc<Assembly>>,
    setup: Option<Setup>,
    member: Member,
    part: Part,
    peers: BTreeMap<String, Peer>,
    book: Book,
    /// Whether the guest that runs here was told to be checkpointed.
    protected: Option<bool>,
    wanted: AllWanted,
    presence: backups::Presence,
    dialler: Dialler,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    syncs: BTreeMap<String, Syncing>,
    next_number: u64,
    commands: VecDeque<(Command, Option<Call>)>,
    answering: Option<Option<Call>>,
    history: History,
    /// The guest is to be started by this process if nobody has it.
    starts: bool,
    began: Duration,
    open: bool,
    lease_us: u64,
    stopping: Option<Stopping>,
    ended: Option<oneshot::Sender<Outcome>>,
    missing_files: BTreeSet<String>,
    /// A sync that was asked for before the copy was prepared.
    early_sync: Option<Incoming>,
    /// The guest is being handed over.
    leaving: Option<(u64, Timeline)>,
    /// The last epoch of which all were told that every disk has it.
    disks_settled: u64,
    /// Epochs that not every backup in sync holds yet, with their room in the buffer and their weight.
    under_way: VecDeque<(u64, Option<Reservation>, Weight)>,
    /// What all of this holds in memory.
    held: Held,
    /// Backups to be brought in sync as soon as the guest runs here.
    later_syncs: BTreeSet<String>,
    /// This host's part cannot be written to disk.
    apart: Option<apart::Apart>,
    /// Who is told how far backups are.
    following: progress::Followings,
    /// A migration from here that was asked for.
    moving: Option<moving::Moving>,
    /// This host is to be left out of the group.
    departing: Option<moving::Departure>,
    /// It was.
    left: bool,
    /// The latest epochs and the bytes of what the guest did in each.
    sizes: VecDeque<(u64, u64)>,
}

struct Stopping {
    call: Option<Call>,
    until: Duration,
    /// When the power button is pressed again.
    again: Duration,
}

/// How an agent's life ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest was shut down.
    Stopped,
    /// This host does not belong to the machine's group any more.
    Left,
    /// It could not go on.
    Failed(HostError),
}

/// What an agent begins with.
pub(super) struct Beginning {
    pub place: Place,
    pub setup: Option<Setup>,
    pub durable: Durable,
    pub book: Book,
    pub wanted: AllWanted,
    pub starts: bool,
}

impl Agent {
    /// Starts an agent; the receiver tells how it ended.
    pub fn start(beginning: Beginning) -> (mpsc::UnboundedSender<Event>, oneshot::Receiver<Outcome>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let (ended, outcome) = oneshot::channel();
        let Beginning { place, setup, durable, book, wanted, starts } = beginning;
        let timing = setup.as_ref().map(assembly::timing).unwrap_or_default();
        let settings = crate::group::Settings { timing, ..crate::group::Settings::new(place.me.as_str()) };
        let dialler = Dialler::new(place.identity.clone(), place.link_template.clone(), events.clone());
        let mut agent = Self {
            member: Member::new(settings, durable, now_us()),
            assembly: None,
            setup: None,
            part: Part::None,
            peers: BTreeMap::new(),
            book,
            protected: None,
            wanted,
            presence: backups::Presence::default(),
            dialler,
            events: events.clone(),
            inbox,
            syncs: BTreeMap::new(),
            next_number: 0,
            commands: VecDeque::new(),
            answering: None,
            history: History::new(place.clock.clone()),
            starts,
            began: crate::clock::monotonic(),
            open: false,
            lease_us: 0,
            stopping: None,
            ended: Some(ended),
            missing_files: BTreeSet::new(),
            early_sync: None,
            leaving: None,
            disks_settled: 0,
            under_way: VecDeque::new(),
            held: Held::default(),
            later_syncs: BTreeSet::new(),
            apart: None,
            following: progress::Followings::default(),
            moving: None,
            departing: None,
            left: false,
            sizes: VecDeque::new(),
            place,
        };
        if let Some(setup) = setup {
            agent.learn_setup(setup);
        }
        tokio::spawn(agent.run());
        (events, outcome)
    }

    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.ended.is_some() {
            tokio::select! {
                biased;
                event = self.inbox.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        self.return_from_apart();
        let moving: Vec<String> =
            self.peers.iter_mut().filter_map(|(name, peer)| peer.moves().then(|| name.clone())).collect();
        for name in moving {
            self.input(Input::PeerMoves(name.as_str().into()));
        }
        self.input(Input::Tick);
        self.dial_missing();
        self.settle_buffer();
        self.start_alone();
        self.choose_backups();
        self.next_command();
        self.go_on_moving();
        self.go_on_stopping();
        self.tell_progress();
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(outcome);
        }
    }

    // --- The protocol -------------------------------------------------------------------------------------------

    fn input(&mut self, input: Input) {
        if self.apart.is_some() {
            return self.later(input);
        }
        let outputs = self.member.handle(now_us(), input);
        self.carry_out_all(outputs);
        self.adjust();
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist(durable) => self.persist(&durable),
            Output::Send { to, message } => {
                if matches!(message, Message::HandOver { .. })
                    && let Some((_, mut timeline)) = self.leaving.take()
                {
                    timeline.lap("held there");
                    self.history.note(&format!("handed over to {to}, the guest stood still for {timeline}"));
                }
                if let Some(peer) = self.peers.get(&*to) {
                    peer.group(&message);
                }
            }
            Output::Release { through } => {
                if let Part::Primary(primary) = &self.part {
                    primary.nic.release(through);
                    if let Some(after) = self.history.released(through) {
                        primary.acknowledged(after);
                    }
                }
            }
            Output::Lease { until_us } => {
                self.open = true;
                self.tell_takeover();
                self.lease_us = until_us;
            }
            Output::Hold { reason } => {
                self.open = false;
                tracing::debug!(vm = self.place.vm, reason, "output is held");
            }
            Output::StartGuest { term, from } => self.start_guest(term, from),
            Output::StopGuest => self.stop_guest(),
            Output::PauseGuest => self.with_primary(Primary::pause),
            Output::ResumeGuest => self.with_primary(Primary::resume),
            Output::HaltGuest => {
                self.with_primary(Primary::halt);
                self.history.note(
                    "no majority of the group has heard this host for long: the guest is stopped until one does; another \
                     host may have taken over",
                );
            }
            Output::ContinueGuest => {
                self.with_primary(Primary::go_on);
                self.history.note("a majority hears this host again: the guest goes on");
            }
            Output::Commit(at) => {
                if let Part::Backup { replica, .. } = &self.part {
                    replica.commit(at);
                }
            }
            Output::BeginSync { peer, .. } => self.begin_sync(&peer),
            Output::Resend { to, after } => {
                let to = to.iter().filter_map(|name| Some(self.peers.get(&**name)?.outbox.clone())).collect();
                if let (Part::Primary(primary), Some(term)) = (&self.part, self.member.live_since()) {
                    primary.resend(after, term, to);
                }
            }
            Output::Settled(version) => {
                tracing::debug!(
                    vm = self.place.vm,
                    term = version.term,
                    number = version.number,
                    "configuration settled"
                );
                self.share_book();
                self.tell_who_is_left_out();
            }
            Output::Answer(answer) => {
                if let Some(Some(call)) = self.answering.take() {
                    let answer = self.moved(&call, answer);
                    call.finish(answer.map(serde_json::Value::from));
                } else if let Err(reason) = answer {
                    self.history.note(&reason);
                }
            }
        }
    }

    fn with_primary(&self, act: impl FnOnce(&Primary)) {
        if let Part::Primary(primary) = &self.part {
            act(primary);
        }
    }

    fn config(&self) -> Option<&Config> {
        self.member.durable().proposal.as_ref().map(|proposal| &proposal.config)
    }

    /// Whether checkpoints are needed, and what becomes of the guest's frames.
    fn adjust(&mut self) {
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
    fn settle_buffer(&mut self) {
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
    fn note_backlog(&self, paced: bool) {
        let Part::Primary(primary) = &self.part else { return };
        let config = self.config();
        let data =
            self.peers.iter().filter(|(name, _)| config.is_some_and(|config| config.data.contains(name.as_str())));
        let least = data.map(|(_, peer)| peer.outbox.waiting()).min();
        primary.set_backlog(least.filter(|_| !paced).unwrap_or(0));
    }

    /// Ends the link of a backup for which more waits than the buffer holds, beside the epoch that is being sent to it:
    /// one epoch may be longer than the buffer, and is bounded by the guest's memory.
    fn let_go_of_the_slow(&mut self) {
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
    fn settle(&mut self, epoch: u64, backups: usize) {
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

    // --- What happened ------------------------------------------------------------------------------------------

    fn on_event(&mut self, event: Event) {
        match event {
            // Nobody is spoken to; whoever dials tries again.
            Event::Linked { link, .. } | Event::Accepted { link, .. } if self.apart.is_some() => link.close(),
            Event::Linked { link, hello, dialled } => {
                // A host may listen under other addresses than the one it was reached by.
                if let Some(wanted) = self.wanted.remove(&dialled).filter(|_| link.peer() != self.place.me) {
                    let listen = if hello.listen.is_empty() { dialled.clone() } else { hello.listen.clone() };
                    self.following.moved(&dialled, &listen);
                    self.wanted.insert(listen, wanted);
                }
                self.linked(link, hello, false);
            }
            Event::Accepted { link, hello } => self.linked(link, hello, true),
            Event::Unreachable { to, reason } => {
                self.history.note(&format!("{to:?} cannot be reached: {reason}"));
                self.following.trouble(&to, &reason);
            }
            Event::LinkClosed { peer, number, reason } => {
                if self.peers.get(&peer).is_some_and(|known| known.number == number) {
                    self.history.note(&format!("the link with {peer} closed: {reason}"));
                    self.unlink(&peer);
                }
            }
            Event::Group { from, message } => self.input(Input::Message { from: from.as_str().into(), message }),
            Event::Notice { from, notice } => self.on_notice(&from, notice),
            Event::Stream(incoming) => self.on_stream(incoming),
            Event::Answer { from, message } => self.on_answer(&from, message),
            Event::Captured(captured) => self.on_captured(captured),
            Event::Sent(sent) if !matches!(self.part, Part::Primary(_)) => self.history.sent(&sent),
            Event::Sent(sent) => {
                self.history.sent(&sent);
                if let Some((_, timeline)) = self.leaving.as_mut().filter(|(last, _)| *last == sent.epoch) {
                    timeline.lap("encoded");
                }
                self.under_way.push_back((sent.epoch, sent.room, sent.weight));
            }
            Event::Paused { last, since } => {
                let mut timeline = Timeline::since(since);
                timeline.lap("checkpoint");
                self.leaving = Some((last, timeline));
                self.input(Input::GuestPaused { last });
            }
            Event::GuestEnded { clean } => self.guest_ended(clean),
            Event::GuestFailed { reason } => self.guest_failed(&reason),
            Event::Arrived(at) => self.input(Input::EpochHeld(at)),
            Event::SyncDone(at) => {
                self.history.note(&format!("in sync at epoch {}", at.epoch));
                // A copy takes much memory for a moment.
                mycelium_linux::memory::trim();
                self.input(Input::SyncDone(at));
            }
            Event::ReplicaLost => self.input(Input::ReplicaLost),
            Event::Prepared(standby) => self.prepared(*standby),
            Event::Started(primary) => self.started(*primary),
            Event::Cleared => {
                self.part = Part::None;
                self.prepare();
            }
            Event::Listed(hosts) => self.listed(hosts),
            Event::Call(call) => self.on_call(call),
        }
    }

    fn on_notice(&mut self, from: &str, notice: Notice) {
        match notice {
            Notice::Hello(_) => {}
            Notice::Book { book } => {
                if book::merge(&mut self.book, &book) {
                    self.share_book();
                }
            }
            Notice::Settled { position } => {
                if let Part::Backup { replica, .. } = &self.part {
                    replica.settled(position);
                }
            }
            Notice::Leaving => self.on_leaving(from),
            Notice::Left => self.on_left(from),
            Notice::Want { files } => self.send_files(from, &files),
            Notice::Stopped { term } => {
                if term >= self.member.durable().term && !matches!(self.part, Part::Primary(_)) {
                    self.history.note(&format!("{from} says that the guest was shut down"));
                    self.end(Outcome::Stopped);
                }
            }
        }
    }

    fn on_stream(&mut self, incoming: Incoming) {
        if let Some((name, content)) = StreamMessage::file(incoming.payload()) {
            return self.received_file(incoming.from(), &name, content);
        }
        let followed = self.member.following().is_some_and(|primary| **primary == *incoming.from());
        if StreamMessage::begins_sync(incoming.payload()) && !followed {
            return incoming.refuse("it is not followed");
        }
        match &self.part {
            Part::Backup { replica, .. } => replica.message(incoming),
            // The primary waits for an answer to this one.
            _ if StreamMessage::begins_sync(incoming.payload()) => self.early_sync = Some(incoming),
            _ => {}
        }
    }

    // --- Primary ------------------------------------------------------------------------------------------------

    fn begin_sync(&mut self, name: &str) {
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

    fn drop_sync(&mut self, name: &str) {
        self.later_syncs.remove(name);
        if let Some(sync) = self.syncs.remove(name) {
            self.with_primary(|primary| primary.end_sync(sync.id));
        }
    }

    fn on_answer(&mut self, from: &str, message: StreamMessage) {
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

    fn sync_failed(&mut self, name: &str, reason: &str) {
        self.history.note(&format!("{name} could not be brought in sync: {reason}"));
        self.drop_sync(name);
        self.input(Input::SyncFailed(name.into()));
    }

    fn on_captured(&mut self, captured: Box<Captured>) {
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
    fn copying(&mut self, step: &SyncStep) {
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
    fn destinations(&self, captured: &Captured) -> (Vec<Outbox>, Vec<(u64, Outbox)>) {
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

    fn start_guest(&mut self, term: u64, from: Start) {
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

    fn started(&mut self, primary: Result<Primary, HostError>) {
        match primary {
            Ok(primary) if self.member.live_since().is_some() => {
                self.history.started(&primary.timeline);
                self.part = Part::Primary(primary);
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

    /// Another host runs the machine.
    fn stop_guest(&mut self) {
        self.syncs.clear();
        self.later_syncs.clear();
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
    fn has_guest(&self) -> bool {
        matches!(self.part, Part::Primary(_) | Part::Starting)
    }

    fn guest_ended(&mut self, clean: bool) {
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

    fn guest_failed(&mut self, reason: &str) {
        if !self.has_guest() {
            return;
        }
        self.history.note(reason);
        tracing::error!(vm = self.place.vm, reason, "the guest cannot be checkpointed");
        self.end(Outcome::Failed(HostError::Refused(reason.to_owned())));
    }

    /// Tells everyone that there is nothing to take over, and ends.
    fn finish_stop(&mut self) {
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

/// The protocol's clock.
fn now_us() -> u64 {
    u64::try_from(crate::clock::boottime().as_micros()).unwrap_or(u64::MAX)
}
