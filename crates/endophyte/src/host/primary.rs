//! The host on which the guest runs: checkpoints, and what becomes of them.
//!
//! ```text
//!  checkpoint thread          agent (async)              encoder thread           outboxes
//!  stop·copy·cont ─Captured─► tells the group, ─Job────► pages to bytes, ───────► one per backup
//!        ▲                    tags with the term         frames
//!        └── a slot is free again ◄──────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use mycelium_api::endophyte::DistributedRam;
use tokio::sync::{mpsc, oneshot};

use super::HostError;
use super::agent::Event;
use super::checkpoints::{Checkpoints, Load, Slot};
use super::encoder::Encoder;
use super::held::{Held, Weight};
use super::replica::Kept;
use super::status::{self, Status};
use super::stream::Outbox;
use super::sync::{MemorySync, SyncStep};
use super::timeline::Timeline;
use crate::disk::{BlockServer, Disk, DiskEpoch};
use crate::egress::{Mode, Nic};
use crate::machine::{Capture, Checkpointer};
use crate::throttle::{Reservation, Shares};

/// What a running guest is made of.
pub(super) struct Parts {
    /// QEMU, paused, with all that was written since the last epoch known.
    pub checkpointer: Checkpointer,
    /// Its disk, and the server that QEMU talks to.
    pub disk: Option<(Disk, BlockServer)>,
    /// Its network card.
    pub nic: Arc<Nic>,
    /// The state of the devices from which it goes on; none when it boots.
    pub devices: Option<Bytes>,
    /// The last epochs before it goes on.
    pub recent: Kept,
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
    /// Epoch lengths, buffer and throttling.
    pub ram: DistributedRam,
    /// Parts of the replication buffer.
    pub shares: Shares,
    /// Makes this primary's page hashes its own.
    pub seed: u64,
    /// What replication holds in memory.
    pub held: Held,
}

/// A checkpoint on its way to the backups.
pub(super) struct Captured {
    /// Memory and devices.
    pub capture: Capture,
    /// The disk's writes, and the term in which their recording began.
    pub disk: Option<(u64, DiskEpoch)>,
    /// The guest's addresses.
    pub network: Bytes,
    /// What backups that are brought in sync get with it.
    pub syncs: Vec<SyncStep>,
    /// When it was taken.
    pub at: Duration,
    /// Its room in the buffer.
    pub room: Option<Reservation>,
    /// What was copied out of the guest.
    pub weight: Weight,
    /// Its place among those that wait to be encoded.
    pub slot: Slot,
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

/// What the encoder is to do.
pub(super) enum Work {
    /// Make a frame of a checkpoint and send it.
    Checkpoint(Job),
    /// Send frames again, with a later term.
    Resend {
        /// The last epoch that the others have.
        after: u64,
        /// The term they are tagged with now.
        term: u64,
        /// Where to.
        to: Vec<Outbox>,
    },
}

/// What an epoch cost.
#[derive(Debug)]
pub(super) struct Sent {
    /// The epoch.
    pub epoch: u64,
    /// Bytes of dirty pages.
    pub dirty_bytes: u64,
    /// Bytes of the frame.
    pub frame_bytes: u64,
    /// Of these, the disk's.
    pub disk_bytes: u64,
    /// Bytes of pages as they were last sent, that are kept for differences.
    pub copies_bytes: u64,
    /// Its room in the buffer, until it is acknowledged.
    pub room: Option<Reservation>,
    /// The frame.
    pub weight: Weight,
}

/// What the checkpoint thread is told.
pub(super) enum Order {
    Protect(bool),
    Sync(Box<MemorySync>),
    EndSync(u64),
    Pause,
    Resume,
    Halt,
    Continue,
    Powerdown,
    Stop(oneshot::Sender<()>),
}

/// The handle of the checkpoint and encoder threads. Dropping it ends the guest.
pub(super) struct Primary {
    orders: Sender<Order>,
    work: Sender<Work>,
    /// The last epoch that will never be asked for again.
    settled: Arc<AtomicU64>,
    /// The guest's card.
    pub nic: Arc<Nic>,
    /// The guest's disk.
    pub disk: Option<Disk>,
    /// Pages of the guest's memory.
    pub pages: u64,
    /// QEMU's version, and what runs the guest's instructions.
    about: (String, String),
    load: Arc<Load>,
    /// How its start went.
    pub timeline: Timeline,
}

impl Primary {
    /// Takes over a machine that is paused at the state from which it is to go on, and lets it go on.
    pub fn start(
        mut parts: Parts,
        settings: Settings,
        events: mpsc::UnboundedSender<Event>,
        mut timeline: Timeline,
    ) -> Result<Self, HostError> {
        let (nic, disk) = (parts.nic.clone(), parts.disk.as_ref().map(|(disk, _)| disk.clone()));
        let machine = parts.checkpointer.machine();
        let pages = machine.memory().pages();
        let accelerator = if machine.kvm() { "kvm" } else { "tcg" };
        let about = (machine.version().to_owned(), accelerator.to_owned());
        let server = parts.disk.take().map(|(_, server)| server);
        let load = Load::new(settings.shares, settings.held.clone());
        let (orders, receiver) = channel();
        let at = (settings.term, settings.epoch);
        let (disk_too, nic_too, load_too) = (disk.clone(), nic.clone(), Arc::clone(&load));
        let mut worker = Checkpoints::new(
            parts.checkpointer,
            server,
            disk_too,
            nic_too,
            parts.devices,
            &settings.ram,
            at,
            load_too,
            events.clone(),
            &mut timeline,
        )?;
        let life = move || {
            let done = worker.run(&receiver);
            // QEMU, the block server and the disk go before it is said that they are gone.
            drop(worker);
            if let Some(done) = done {
                let _ = done.send(());
            }
        };
        thread::Builder::new().name("checkpoints".into()).spawn(life).map_err(HostError::Thread)?;
        let (work, receiver) = channel();
        let settled = Arc::new(AtomicU64::new(0));
        let mut encoder = Encoder::new(settings, pages, parts.recent, Arc::clone(&settled), events);
        thread::Builder::new()
            .name("encoder".into())
            .spawn(move || encoder.run(&receiver))
            .map_err(HostError::Thread)?;
        Ok(Self { orders, work, settled, nic, disk, pages, about, load, timeline })
    }

    /// Writes what is known of the guest into a status.
    pub fn describe(&self, status: &mut Status) {
        (status.guest.qemu, status.guest.accelerator) = self.about.clone();
        (status.buffer.fill, status.guest.throttle) = self.load.pressure();
        status.epochs.length_ms = self.load.length_us.load(Ordering::Relaxed) as f64 / 1000.0;
        status.buffer.emergency_pauses = self.load.emergency_pauses.load(Ordering::Relaxed);
        let stats = self.nic.stats();
        status.egress.held_frames = stats.queued_frames;
        status.egress.released_frames = stats.released_frames;
        status.egress.ingress_frames = stats.ingress_frames;
        status.egress.mode = match self.nic.mode() {
            Mode::OutputCommit => "output-commit",
            Mode::BestEffort => "at-once",
            Mode::Standby => "standby",
        }
        .into();
        status.buffer.bytes += stats.queued_bytes;
        if let Some(disk) = &self.disk {
            let stats = disk.stats();
            status.disk = status::Disk {
                size_bytes: disk.size(),
                writes: stats.writes,
                written_bytes: stats.written,
                flushes: stats.flushes,
                log_bytes: stats.log_bytes,
                waits: stats.log_waits,
            };
        }
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

    /// Stops the guest where it is.
    pub fn halt(&self) {
        let _ = self.orders.send(Order::Halt);
    }

    /// Lets the guest go on that was stopped so.
    pub fn go_on(&self) {
        let _ = self.orders.send(Order::Continue);
    }

    /// Asks the guest to shut down.
    pub fn powerdown(&self) {
        let _ = self.orders.send(Order::Powerdown);
    }

    /// Tells how long epochs take from seal to release.
    pub fn acknowledged(&self, after: Duration) {
        self.load.ack_us.store(after.as_micros() as u64, Ordering::Relaxed);
    }

    /// Whether the guest is to converge with a host that it is handed over to, and outruns it.
    pub fn converge(&self, on: bool, outrun: bool) {
        self.load.converge(on, outrun);
    }

    /// Bytes of epochs that the buffer holds.
    pub fn room(&self) -> u64 {
        self.load.room()
    }

    /// Tells how many bytes wait for the link that paces the guest.
    pub fn set_backlog(&self, bytes: u64) {
        self.load.backlog.store(bytes, Ordering::Relaxed);
    }

    /// Sends a checkpoint on.
    pub fn send(&self, job: Job) {
        let _ = self.work.send(Work::Checkpoint(job));
    }

    /// Sends what was sent after an epoch again, with a later term.
    pub fn resend(&self, after: u64, term: u64, to: Vec<Outbox>) {
        let _ = self.work.send(Work::Resend { after, term, to });
    }

    /// Every backup in sync has this epoch.
    pub fn settled(&self, epoch: u64) {
        self.settled.store(epoch, Ordering::Relaxed);
    }

    /// Ends the guest at once. What belongs to it is free again when this returns.
    pub async fn stop(self) {
        self.nic.fence();
        let (sender, receiver) = oneshot::channel();
        let _ = self.orders.send(Order::Stop(sender));
        drop((self.disk, self.nic, self.orders, self.work));
        // An error means that the thread ended before: then nothing is left either.
        let _ = receiver.await;
    }
}
