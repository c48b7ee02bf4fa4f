//! The host on which the guest runs: checkpoints, and what becomes of them.
//!
//! ```text
//!  checkpoint thread          agent (async)              encoder thread           outboxes
//!  stop·copy·cont ─Captured─► tells the group, ─Job────► pages to bytes, ───────► one per backup
//!        ▲                    tags with the term         frames
//!        └── a slot is free again ◄──────────────────────┘
//! ```

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::HostError;
use super::agent::Event;
use super::status::Status;
use super::stream::{Outbox, StreamMessage, frame_message};
use super::sync::{MemorySync, SyncStep};
use crate::clock::monotonic;
use crate::codec::{EncoderConfig, EpochId, FrameKind, PAGE, PageEncoder, Parts as FrameParts, seal};
use crate::disk::{BlockServer, Disk, DiskEpoch};
use crate::egress::{Mode, Nic};
use crate::group::Position;
use crate::machine::{Capture, Checkpointer, Machine, PauseTiming};

/// Checkpoints that may wait to be encoded; the guest is not stopped for more.
const SLOTS: usize = 2;
/// How often it is looked whether QEMU still lives while there are no checkpoints.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a running guest is made of.
pub(super) struct Parts {
    /// QEMU, paused or running.
    pub machine: Machine,
    /// Its disk, and the server that QEMU talks to.
    pub disk: Option<(Disk, BlockServer)>,
    /// Its network card.
    pub nic: Option<Arc<Nic>>,
}

/// How the guest is checkpointed.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The machine's name.
    pub vm: String,
    /// The term it starts in.
    pub term: u64,
    /// The first epoch to seal.
    pub epoch: u64,
    /// Time between checkpoints.
    pub epoch_length: Duration,
    /// Bytes for copies of pages as they were last sent.
    pub cache_bytes: usize,
}

/// A checkpoint on its way to the backups.
pub(super) struct Captured {
    /// Memory and devices.
    pub capture: Capture,
    /// The disk's writes.
    pub disk: Option<DiskEpoch>,
    /// The guest's addresses.
    pub network: Bytes,
    /// What backups that are brought in sync get with it.
    pub syncs: Vec<SyncStep>,
    /// When it was taken.
    pub at: Duration,
    slot: Slot,
}

/// Where a checkpoint goes.
pub(super) struct Job {
    /// The checkpoint.
    pub captured: Box<Captured>,
    /// The term it is tagged with.
    pub term: u64,
    /// The backups that follow.
    pub followers: Vec<Outbox>,
    /// Those that are brought in sync: which copy, and where to.
    pub syncing: Vec<(u64, Outbox)>,
}

/// What an epoch cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// The epoch.
    pub epoch: u64,
    /// Bytes of dirty pages.
    pub dirty_bytes: u64,
    /// Bytes of the frame.
    pub frame_bytes: u64,
    /// Of these, the disk's.
    pub disk_bytes: u64,
    /// How long the guest stood still.
    pub timing: PauseTiming,
}

enum Order {
    Protect(bool),
    Sync(Box<MemorySync>),
    EndSync(u64),
    Pause,
    Resume,
    Powerdown,
    EpochLength(Duration),
    Stop(oneshot::Sender<()>),
}

/// The handle of the checkpoint and encoder threads. Dropping it ends the guest.
pub(super) struct Primary {
    orders: Sender<Order>,
    jobs: Sender<Job>,
    /// The guest's card.
    pub nic: Option<Arc<Nic>>,
    /// The guest's disk.
    pub disk: Option<Disk>,
    /// Pages of the guest's memory.
    pub pages: u64,
    /// QEMU's version, and what runs the guest's instructions.
    about: (String, String),
}

impl Primary {
    /// Takes over a machine that is paused at the state from which it is to go on, and lets it go on.
    pub fn start(mut parts: Parts, settings: Settings, events: mpsc::UnboundedSender<Event>) -> Result<Self, HostError> {
        let (nic, disk) = (parts.nic.clone(), parts.disk.as_ref().map(|(disk, _)| disk.clone()));
        let pages = parts.machine.memory().pages();
        let accelerator = if parts.machine.kvm() { "kvm" } else { "tcg" };
        let about = (parts.machine.version().to_owned(), accelerator.to_owned());
        let mut checkpointer = Checkpointer::new(parts.machine)?;
        checkpointer.forget_written()?;
        checkpointer.machine_mut().cont()?;
        let server = parts.disk.take().map(|(_, server)| server);
        let (orders, receiver) = channel();
        let mut worker = Worker {
            checkpointer,
            server,
            disk: disk.clone(),
            nic: nic.clone(),
            events: events.clone(),
            epoch: settings.epoch,
            term: settings.term,
            epoch_length: settings.epoch_length,
            protected: false,
            paused: false,
            syncs: Vec::new(),
            slots: Slots::new(SLOTS),
        };
        let life = move || {
            let done = worker.run(&receiver);
            // QEMU, the block server and the disk go before it is said that they are gone.
            drop(worker);
            if let Some(done) = done {
                let _ = done.send(());
            }
        };
        thread::Builder::new().name("checkpoints".into()).spawn(life).map_err(HostError::Thread)?;
        let (jobs, receiver) = channel();
        let mut encoder = Encoder::new(settings, pages, events);
        thread::Builder::new().name("encoder".into()).spawn(move || encoder.run(&receiver)).map_err(HostError::Thread)?;
        Ok(Self { orders, jobs, nic, disk, pages, about })
    }

    /// Writes what is known of the guest into a status.
    pub fn describe(&self, status: &mut Status) {
        (status.guest.qemu, status.guest.accelerator) = self.about.clone();
        let Some(nic) = &self.nic else { return };
        let stats = nic.stats();
        status.egress.held_frames = stats.queued_frames;
        status.egress.released_frames = stats.released_frames;
        status.egress.ingress_frames = stats.ingress_frames;
        status.egress.mode = match nic.mode() {
            Mode::OutputCommit => "output-commit",
            Mode::BestEffort => "at-once",
            Mode::Standby => "standby",
        }
        .into();
        status.buffer.bytes += stats.queued_bytes;
    }

    /// Whether checkpoints are taken.
    pub fn protect(&self, on: bool) {
        let _ = self.orders.send(Order::Protect(on));
    }

    /// Begins to bring a backup in sync.
    pub fn sync(&self, sync: MemorySync) {
        let _ = self.orders.send(Order::Sync(Box::new(sync)));
    }

    /// Gives up bringing a backup in sync.
    pub fn end_sync(&self, id: u64) {
        let _ = self.orders.send(Order::EndSync(id));
    }

    /// Stops the guest at a last checkpoint; [`Event::Paused`] tells which.
    pub fn pause(&self) {
        let _ = self.orders.send(Order::Pause);
    }

    /// Lets the paused guest go on.
    pub fn resume(&self) {
        let _ = self.orders.send(Order::Resume);
    }

    /// Asks the guest to shut down.
    pub fn powerdown(&self) {
        let _ = self.orders.send(Order::Powerdown);
    }

    /// Changes the time between checkpoints.
    pub fn epoch_length(&self, length: Duration) {
        let _ = self.orders.send(Order::EpochLength(length));
    }

    /// Sends a checkpoint on.
    pub fn send(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// Ends the guest at once. What belongs to it is free again when this returns.
    pub async fn stop(self) {
        if let Some(nic) = &self.nic {
            nic.fence();
        }
        let (sender, receiver) = oneshot::channel();
        let _ = self.orders.send(Order::Stop(sender));
        drop((self.disk, self.nic, self.orders, self.jobs));
        // An error means that the thread ended before: then nothing is left either.
        let _ = receiver.await;
    }
}

struct Worker {
    checkpointer: Checkpointer,
    server: Option<BlockServer>,
    disk: Option<Disk>,
    nic: Option<Arc<Nic>>,
    events: mpsc::UnboundedSender<Event>,
    epoch: u64,
    term: u64,
    epoch_length: Duration,
    protected: bool,
    paused: bool,
    syncs: Vec<MemorySync>,
    slots: Slots,
}

impl Worker {
    /// Works until it is told to stop, and yields whom to tell that it did.
    fn run(&mut self, orders: &Receiver<Order>) -> Option<oneshot::Sender<()>> {
        let mut due = monotonic() + self.epoch_length;
        loop {
            let idle = self.paused || !self.protected;
            let wait = if idle { LOOK_EVERY } else { due.saturating_sub(monotonic()) };
            match orders.recv_timeout(wait) {
                Ok(Order::Stop(sender)) => return Some(sender),
                Ok(order) => {
                    self.obey(order);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(status) = self.checkpointer.machine_mut().ended() {
                let _ = self.events.send(Event::GuestEnded { clean: status.success() });
                return None;
            }
            if !idle {
                due = monotonic() + self.epoch_length;
                if let Err(error) = self.checkpoint(false) {
                    self.failed(&error);
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let outcome = match order {
            Order::Protect(on) => self.protect(on),
            Order::Sync(sync) => {
                self.begin(*sync);
                Ok(())
            }
            Order::EndSync(id) => {
                self.syncs.retain(|sync| sync.id != id);
                Ok(())
            }
            Order::Pause => self.pause(),
            Order::Resume => {
                self.paused = false;
                self.checkpointer.machine_mut().cont().map_err(HostError::from)
            }
            Order::Powerdown => self.checkpointer.machine_mut().powerdown().map_err(HostError::from),
            Order::EpochLength(length) => {
                self.epoch_length = length;
                Ok(())
            }
            Order::Stop(_) => Ok(()),
        };
        if let Err(error) = outcome {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &HostError) {
        let _ = self.events.send(Event::GuestFailed { reason: super::chain(error) });
    }

    /// Starts or ends the recording of what the guest does.
    fn protect(&mut self, on: bool) -> Result<(), HostError> {
        if on == self.protected {
            return Ok(());
        }
        if let Some(disk) = &self.disk {
            if on { disk.protect(crate::disk::Protection::new(self.term, self.epoch))? } else { disk.unprotect()? }
        }
        if on {
            // Nobody has a copy: what was written until now reaches backups as part of their first one.
            self.checkpointer.forget_written()?;
        }
        self.protected = on;
        Ok(())
    }

    fn begin(&mut self, sync: MemorySync) {
        self.syncs.retain(|other| other.id != sync.id);
        self.syncs.push(sync);
    }

    /// A last checkpoint, after which the guest stays stopped.
    fn pause(&mut self) -> Result<(), HostError> {
        self.checkpoint(true)?;
        self.paused = true;
        let _ = self.events.send(Event::Paused { last: self.epoch - 1 });
        Ok(())
    }

    fn checkpoint(&mut self, last: bool) -> Result<(), HostError> {
        let slot = self.slots.take();
        let memory = self.checkpointer.machine().memory().clone();
        let mut steps: Vec<SyncStep> = self.syncs.iter_mut().map(|sync| sync.copy(&memory)).collect();
        if let Some(disk) = &self.disk {
            disk.begin_stop();
        }
        let epoch = self.epoch;
        let mut sealed: Result<Option<DiskEpoch>, HostError> = Ok(None);
        let mut network = Bytes::new();
        let mut at_stop = || {
            if let Some(nic) = &self.nic {
                sealed = nic.seal(epoch).map(|_| None).map_err(HostError::from);
                network = nic.learned().to_bytes().into();
            }
            if let Some(disk) = self.disk.as_ref().filter(|_| sealed.is_ok()) {
                sealed = disk.seal(epoch).map(Some).map_err(HostError::from);
            }
        };
        let capture = if last {
            self.checkpointer.capture_and_hold(epoch, &mut at_stop)?
        } else {
            self.checkpointer.capture(epoch, &mut at_stop)?
        };
        let disk = sealed?;
        for (sync, step) in self.syncs.iter_mut().zip(&mut steps) {
            sync.captured(capture.pages.iter().map(|(index, _)| index), step);
        }
        let complete: Vec<u64> = steps.iter().filter(|step| step.complete).map(|step| step.id).collect();
        self.syncs.retain(|sync| !complete.contains(&sync.id));
        self.epoch += 1;
        let captured = Captured { capture, disk, network, syncs: steps, at: monotonic(), slot };
        let _ = self.events.send(Event::Captured(Box::new(captured)));
        Ok(())
    }
}

struct Encoder {
    settings: Settings,
    pages: u64,
    encoder: PageEncoder,
    base: PageEncoder,
    events: mpsc::UnboundedSender<Event>,
}

impl Encoder {
    fn new(settings: Settings, pages: u64, events: mpsc::UnboundedSender<Event>) -> Self {
        let seed = super::random();
        let encoder = PageEncoder::new(EncoderConfig { threads: 1, ..EncoderConfig::new(pages, settings.cache_bytes, seed) });
        let base = PageEncoder::new(EncoderConfig { threads: 1, ..EncoderConfig::new(pages, 0, seed) });
        Self { settings, pages, encoder, base, events }
    }

    fn run(&mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let sent = self.send(job);
            if self.events.send(Event::Sent(sent)).is_err() {
                return;
            }
        }
    }

    fn id(&self, term: u64, epoch: u64, kind: FrameKind, part: u64) -> EpochId {
        EpochId { vm: self.settings.vm.clone(), term, epoch, kind, part, guest_pages: self.pages }
    }

    fn send(&mut self, job: Job) -> Sent {
        let Job { captured, term, followers, syncing } = job;
        let Captured { capture, disk, network, syncs, slot, .. } = *captured;
        let epoch = capture.epoch;
        if syncs.iter().any(|step| step.begins) {
            self.encoder.forget();
        }
        for step in syncs.iter().filter(|step| !step.indices.is_empty()) {
            let Some((_, outbox)) = syncing.iter().find(|(id, _)| *id == step.id) else { continue };
            self.base.forget();
            let list = step.indices.iter().copied().zip(step.bytes.as_chunks::<PAGE>().0);
            let pages = self.base.encode(list, u64::MAX).chunks;
            let id = self.id(term, epoch, FrameKind::Base, step.part);
            outbox.send(frame_message(seal(&id, FrameParts { pages, ..FrameParts::default() })));
        }
        let dirty_bytes = (capture.pages.len() * PAGE) as u64;
        let pages = self.encoder.encode(capture.pages.iter(), u64::MAX).chunks;
        drop(capture.pages);
        drop(slot);
        let disk = disk.map(|disk| disk.encode()).unwrap_or_default();
        let length = |pieces: &[Bytes]| pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let disk_bytes = length(&disk);
        let parts = FrameParts { pages, disk, devices: capture.devices, network };
        let frame = frame_message(seal(&self.id(term, epoch, FrameKind::Epoch, 0), parts));
        for outbox in followers.iter().chain(syncing.iter().map(|(_, outbox)| outbox)) {
            outbox.send(frame.clone());
        }
        for step in syncs.iter().filter(|step| step.complete) {
            if let Some((_, outbox)) = syncing.iter().find(|(id, _)| *id == step.id) {
                outbox.send(StreamMessage::SyncEnd { id: step.id, at: Position::new(term, epoch) }.encode());
            }
        }
        Sent { epoch, dirty_bytes, frame_bytes: length(&frame), disk_bytes, timing: capture.timing }
    }
}

/// How many checkpoints may be under way.
#[derive(Debug, Clone)]
struct Slots(Arc<(Mutex<usize>, Condvar)>);

/// The place of one checkpoint; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Slots);

impl Slots {
    fn new(count: usize) -> Self {
        Self(Arc::new((Mutex::new(count), Condvar::new())))
    }

    fn take(&self) -> Slot {
        let (free, freed) = &*self.0;
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Slot(self.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (free, freed) = &*self.0.0;
        *free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}
