//! One machine on one host: gives the group's protocol what happens, and does what it says.
//!
//! All decisions about who runs the machine are [`crate::group`]'s; this is their hands. One task owns everything and
//! takes [`Event`]s one by one; what takes long (starting QEMU, copying, encoding) runs elsewhere and reports back.

mod apart;
pub(in crate::host) mod backups;
mod commands;
mod copying;
mod guest;
mod hosts;
mod moving;
mod pace;
mod progress;
mod report;
mod standby;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
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
use super::primary::{Captured, Primary, Sent};
use super::replica::{Incoming, Replica};
use super::stream::StreamMessage;
use super::timeline::Timeline;
use super::{HostError, Place};
use crate::group::{Command, Config, Durable, Input, Member, Message, Name, Output, Position};
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
    /// Epochs to send again as soon as the guest runs: those after this one, and to whom.
    later_resend: Option<(u64, BTreeSet<Name>)>,
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
            later_resend: None,
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
                self.later_resend = Some((after, to));
                self.resend();
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
}

/// The protocol's clock.
fn now_us() -> u64 {
    u64::try_from(crate::clock::boottime().as_micros()).unwrap_or(u64::MAX)
}
