//! A backup's copy of the machine: memory, devices and disk at the last whole epoch, and a QEMU that waits, warm, to go
//! on from there.
//!
//! ```text
//!            SyncBegin                    SyncEnd, disk done
//!   Empty ─────────────► Syncing ────────────────────────────► Following ──take──► (a primary)
//!     ▲   frames are dropped  │  frames are applied at once      │ frames are verified, reported as arrived, and
//!     └───────────────────────┴──────────────────────────────────┘ applied when the group says so
//! ```
//!
//! One thread does all of it, in the order of the stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelium_api::error::chain;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::HostError;
use super::agent::Event;
use super::stream::StreamMessage;
use crate::codec::{DeviceDecoder, EpochFrame, FrameKind, Header, PAGE, PageDecoder, Parts as FrameParts, unpack};
use crate::disk::sync::{Message as DiskMessage, Target};
use crate::disk::{BlockServer, DiskEpoch, Replica as DiskReplica};
use crate::egress::Learned;
use crate::group::{Position, RECENT_EPOCHS};
use crate::machine::{Checkpointer, GuestMemory};

/// Unpacked bytes that one batch of pages may have, against frames that promise too much.
const UNPACKED_MAX: usize = 1 << 30;
/// The same for the disk's writes of one epoch.
const DISK_MAX: usize = 2 << 30;

/// Bytes of epochs that were applied, kept for a backup that lacks them.
const RECENT_MAX: u64 = 32 << 20;

/// After so many epochs the disk's journal is worked off, so that little is left to do at a promotion.
const MAINTAIN_EVERY: u64 = 16;

/// What a copy is made of at first: all of it empty.
pub(super) struct Parts {
    /// The machine's name.
    pub vm: String,
    /// Its memory here.
    pub memory: GuestMemory,
    /// QEMU, waiting; what it writes is known.
    pub checkpointer: Checkpointer,
    /// Its disk here, if it has one.
    pub disk: Option<Arc<DiskReplica>>,
    /// What QEMU takes for its disk until then.
    pub blank: Option<BlockServer>,
}

/// What a promotion goes on with.
pub(super) struct Taken {
    /// Memory, machine and disk, at one whole epoch.
    pub parts: Parts,
    /// The devices of that epoch.
    pub devices: Bytes,
    /// The addresses the guest was known by.
    pub learned: Learned,
    /// The last epochs before: another backup may lack some.
    pub recent: Kept,
}

/// Epochs as they were received or sent, to be sent again.
pub(super) type Kept = VecDeque<(u64, FrameParts)>;

enum Order {
    Message(Incoming),
    Commit(Position),
    Settled(Position),
    Take(Position, oneshot::Sender<Result<Taken, HostError>>),
}

/// Where answers to the stream go: the link it came from.
type Reply = mpsc::UnboundedSender<Vec<Bytes>>;

/// A message of the primary's stream.
pub(super) struct Incoming {
    from: String,
    payload: Bytes,
    reply: Reply,
    /// Its room among those that wait; free again when it was dealt with.
    _room: OwnedSemaphorePermit,
}

impl Incoming {
    /// One that came over a link.
    pub fn new(from: String, payload: Bytes, reply: Reply, room: OwnedSemaphorePermit) -> Self {
        Self { from, payload, reply, _room: room }
    }

    /// Has the sender try again, if it is still the primary.
    pub fn refuse(&self, reason: &str) {
        let _ = self.reply.send(StreamMessage::Failed { reason: reason.to_owned() }.encode());
    }

    /// Whose it is.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// What it says.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }
}

/// The handle of the thread. Dropping it ends the copy.
pub(super) struct Replica {
    orders: Sender<Order>,
}

impl Replica {
    /// Starts the thread.
    pub fn start(parts: Parts, events: mpsc::UnboundedSender<Event>) -> Result<Self, HostError> {
        let (orders, receiver) = channel();
        let worker = Worker {
            decoder: PageDecoder::new(parts.memory.pages(), UNPACKED_MAX),
            parts,
            events,
            state: State::Empty,
            devices: DeviceDecoder::default(),
            learned: Bytes::new(),
            commits: 0,
        };
        thread::Builder::new()
            .name("replica".into())
            .spawn(move || worker.run(&receiver))
            .map_err(HostError::Thread)?;
        Ok(Self { orders })
    }

    /// A message of the stream.
    pub fn message(&self, incoming: Incoming) {
        let _ = self.orders.send(Order::Message(incoming));
    }

    /// The group holds this epoch to be whole here.
    pub fn commit(&self, at: Position) {
        let _ = self.orders.send(Order::Commit(at));
    }

    /// Every host of the machine has its disk at this position.
    pub fn settled(&self, at: Position) {
        let _ = self.orders.send(Order::Settled(at));
    }

    /// Ends the copy at an epoch that was committed, to go on from it.
    pub async fn take(self, at: Position) -> Result<Taken, HostError> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.orders.send(Order::Take(at, sender));
        receiver.await.unwrap_or(Err(HostError::ReplicaGone))
    }
}

enum State {
    Empty,
    Syncing {
        from: String,
        id: u64,
        started: bool,
        last: Option<Position>,
        whole: bool,
        disk: Option<Box<Target<Arc<DiskReplica>>>>,
    },
    Following {
        at: Position,
        staged: VecDeque<(Position, EpochFrame)>,
        recent: VecDeque<(Position, EpochFrame)>,
    },
}

struct Worker {
    parts: Parts,
    decoder: PageDecoder,
    events: mpsc::UnboundedSender<Event>,
    state: State,
    devices: DeviceDecoder,
    learned: Bytes,
    /// Epochs committed to the disk.
    commits: u64,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Message(incoming) => {
                    if let Err(reason) = self.message(&incoming) {
                        self.fail(&reason, &incoming.reply);
                    }
                }
                Order::Commit(at) => {
                    if let Err(reason) = self.commit(at) {
                        self.lose(&reason);
                    }
                }
                Order::Settled(at) => {
                    if let State::Following { recent, .. } = &mut self.state {
                        recent.retain(|(position, _)| *position > at);
                    }
                    let done = self.parts.disk.as_ref().map_or(Ok(()), |disk| disk.settled(at));
                    if let Err(error) = done {
                        self.lose(&chain(&error));
                    }
                }
                Order::Take(at, sender) => {
                    let _ = sender.send(self.take(at));
                    return;
                }
            }
        }
    }

    fn message(&mut self, incoming: &Incoming) -> Result<(), String> {
        let Incoming { from, payload, reply, .. } = incoming;
        let of_another = matches!(&self.state, State::Syncing { from: copier, .. } if copier != from);
        if of_another && !StreamMessage::begins_sync(payload) {
            // A former primary goes on for a moment; nothing of it belongs into another's copy.
            return Ok(());
        }
        match StreamMessage::decode(payload.clone())? {
            StreamMessage::SyncBegin { id, seed } => self.begin(from, id, seed, reply),
            StreamMessage::SyncStart { id } => {
                if let State::Syncing { id: own, started, .. } = &mut self.state {
                    *started |= *own == id;
                }
                Ok(())
            }
            StreamMessage::Frame(bytes) => self.frame(&bytes, reply),
            StreamMessage::SyncEnd { id, at } => self.end(id, at),
            StreamMessage::Disk { id, words } => self.disk_message(id, words, reply),
            StreamMessage::File { .. } | StreamMessage::Hashes { .. } | StreamMessage::Failed { .. } => {
                Err("a message that is not for a backup".into())
            }
        }
    }

    /// The copy is about to be written in place.
    fn begin(&mut self, from: &str, id: u64, seed: u64, reply: &Reply) -> Result<(), String> {
        self.lose("it is brought in sync");
        let disk = self.parts.disk.clone().map(|disk| Box::new(Target::new(disk)));
        let from = from.to_owned();
        self.state = State::Syncing { from, id, started: false, last: None, whole: false, disk };
        self.disk_words(reply)?;
        let hashes = page_hashes(&self.parts.memory, seed);
        let _ = reply.send(StreamMessage::Hashes { id, hashes }.encode());
        Ok(())
    }

    fn frame(&mut self, bytes: &Bytes, reply: &Reply) -> Result<(), String> {
        let header = Header::read(bytes).map_err(|error| error.to_string())?;
        let at = Position::new(header.id.term, header.id.epoch);
        let expected = crate::codec::Expected {
            vm: self.parts.vm.clone(),
            guest_pages: self.parts.memory.pages(),
            ..header.id.clone()
        };
        match &mut self.state {
            State::Empty | State::Syncing { started: false, .. } => Ok(()),
            State::Syncing { last, .. } => {
                if header.id.kind == FrameKind::Epoch {
                    if let Some(last) = last.filter(|last| at.epoch != last.epoch + 1) {
                        return Err(format!("epoch {} came after {}", at.epoch, last.epoch));
                    }
                    *last = Some(at);
                }
                let frame = EpochFrame::open(bytes, &expected).map_err(|error| error.to_string())?;
                self.apply(&frame)?;
                self.disk_words(reply)?;
                self.perhaps_follow();
                Ok(())
            }
            State::Following { staged, .. } => {
                if header.id.kind == FrameKind::Base {
                    // Of a copy that is over, or of a former primary that does not know yet that it is one.
                    return Ok(());
                }
                let frame = EpochFrame::open(bytes, &expected).map_err(|error| error.to_string())?;
                staged.push_back((at, frame));
                let _ = self.events.send(Event::Arrived(at));
                Ok(())
            }
        }
    }

    fn end(&mut self, id: u64, at: Position) -> Result<(), String> {
        let State::Syncing { id: own, last, whole, .. } = &mut self.state else { return Ok(()) };
        if *own != id {
            return Ok(());
        }
        if *last != Some(at) {
            return Err(format!("the copy ends at epoch {}, but {last:?} came last", at.epoch));
        }
        *whole = true;
        self.perhaps_follow();
        Ok(())
    }

    /// In sync when memory and disk are.
    fn perhaps_follow(&mut self) {
        let State::Syncing { last: Some(last), whole: true, disk, .. } = &self.state else { return };
        let last = *last;
        if disk.as_ref().is_some_and(|disk| disk.finished().is_none_or(|at| at.epoch > last.epoch)) {
            return;
        }
        self.state = State::Following { at: last, staged: VecDeque::new(), recent: VecDeque::new() };
        let _ = self.events.send(Event::SyncDone(last));
    }

    fn disk_message(&mut self, of: u64, bytes: Bytes, reply: &Reply) -> Result<(), String> {
        let State::Syncing { id, disk: Some(disk), .. } = &mut self.state else { return Ok(()) };
        if *id != of {
            // What an earlier copy had still to say.
            return Ok(());
        }
        let message = DiskMessage::decode(bytes).map_err(|error| error.to_string())?;
        disk.receive(message).map_err(|error| chain(&error))?;
        self.disk_words(reply)?;
        self.perhaps_follow();
        Ok(())
    }

    /// What the disk's copying has to say now.
    fn disk_words(&mut self, reply: &Reply) -> Result<(), String> {
        let State::Syncing { id, disk: Some(disk), .. } = &mut self.state else { return Ok(()) };
        while let Some(message) = disk.poll().map_err(|error| chain(&error))? {
            let _ = reply.send(StreamMessage::Disk { id: *id, words: message.encode() }.encode());
        }
        Ok(())
    }

    fn commit(&mut self, at: Position) -> Result<(), String> {
        let State::Following { at: held, staged, .. } = &mut self.state else { return Ok(()) };
        // What the group did not want (out of order, of an earlier term) is passed over.
        while let Some((position, frame)) = staged.pop_front() {
            if position == at {
                *held = at;
                self.apply(&frame)?;
                self.keep(at, frame);
                return Ok(());
            }
        }
        if *held == at {
            return Ok(());
        }
        Err(format!("epoch {at} is to be committed, which is not here"))
    }

    fn keep(&mut self, at: Position, frame: EpochFrame) {
        let State::Following { recent, .. } = &mut self.state else { return };
        recent.push_back((at, frame));
        let bytes = |recent: &VecDeque<(Position, EpochFrame)>| -> u64 {
            recent.iter().map(|(_, frame)| frame.header.frame_length()).sum()
        };
        while recent.len() > RECENT_EPOCHS || bytes(recent) > RECENT_MAX {
            recent.pop_front();
        }
    }

    fn apply(&mut self, frame: &EpochFrame) -> Result<(), String> {
        let pages = self.decoder.decode(&frame.pages).map_err(|error| error.to_string())?;
        pages.apply(&mut self.parts.memory).map_err(|error| error.to_string())?;
        if frame.header.id.kind == FrameKind::Base {
            return Ok(());
        }
        self.devices.apply(&frame.devices).map_err(|error| format!("state of the devices: {error}"))?;
        self.learned = frame.network.clone();
        let Some(replica) = &self.parts.disk else { return Ok(()) };
        let mut words = unpack(&frame.disk, DISK_MAX).ok_or("the disk's part of an epoch is malformed")?;
        let term = words.try_get_u64_le().map_err(|_| "an epoch without its disk")?;
        let epoch = DiskEpoch::decode(words).map_err(|error| error.to_string())?;
        let done = match &mut self.state {
            State::Syncing { disk: Some(disk), .. } => disk.epoch(term, epoch),
            _ => {
                self.commits += 1;
                let tidy = self.commits.is_multiple_of(MAINTAIN_EVERY);
                replica.commit(term, &epoch).and_then(|_| if tidy { replica.maintain() } else { Ok(()) })
            }
        };
        done.map_err(|error| chain(&error))
    }

    fn take(mut self, at: Position) -> Result<Taken, HostError> {
        let State::Following { at: held, recent, .. } = std::mem::replace(&mut self.state, State::Empty) else {
            return Err(HostError::ReplicaGone);
        };
        if held != at {
            return Err(HostError::ReplicaAt { held, wanted: at });
        }
        let learned = Learned::from_bytes(&std::mem::take(&mut self.learned)).unwrap_or_default();
        let recent = recent.into_iter().map(|(at, frame)| (at.epoch, frame.into())).collect();
        Ok(Taken { parts: self.parts, devices: self.devices.state(), learned, recent })
    }

    /// The copy is no longer whole.
    fn lose(&mut self, reason: &str) {
        if !matches!(self.state, State::Empty) {
            tracing::info!(vm = self.parts.vm, reason, "the copy is not whole any more");
            let _ = self.events.send(Event::ReplicaLost);
        }
        self.state = State::Empty;
    }

    fn fail(&mut self, reason: &str, reply: &Reply) {
        tracing::warn!(vm = self.parts.vm, reason, "the stream cannot be followed");
        self.lose(reason);
        let _ = reply.send(StreamMessage::Failed { reason: reason.to_owned() }.encode());
    }
}

/// The hashes of all pages, 16 bytes each.
pub(super) fn page_hashes(memory: &GuestMemory, seed: u64) -> Bytes {
    let mut hashes = BytesMut::with_capacity(memory.pages() as usize * 16);
    let mut page = [0; PAGE];
    for index in 0..memory.pages() {
        memory.copy_page(index, &mut page);
        hashes.put_u128_le(crate::codec::page_hash(&page, seed));
    }
    hashes.freeze()
}
