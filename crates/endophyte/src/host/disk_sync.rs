//! The primary's side of a disk's first copy or catching up, on a thread of its own: it reads and hashes much.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use mycelium_api::error::chain;

use super::HostError;
use super::stream::{Outbox, StreamMessage};
use crate::disk::Disk;
use crate::disk::sync::{Message, Progress, Source};

/// Bytes that may wait for the link before the next are read.
const WAITING_MAX: u64 = 4 << 20;
/// How long to wait for room, when nothing else happens.
const ROOM_LOOK: std::time::Duration = std::time::Duration::from_millis(5);

enum Order {
    Message(Bytes),
    Sealed(u64),
}

/// One copy under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct DiskSource {
    orders: Sender<Order>,
    progress: Arc<Mutex<Progress>>,
}

impl DiskSource {
    /// Starts to bring the backup behind this outbox in sync; `id` tells this copy from others.
    pub fn start(disk: &Disk, id: u64, outbox: Outbox) -> Result<Self, HostError> {
        let source = Source::new(disk)?;
        let (orders, receiver) = channel();
        let progress = Arc::<Mutex<Progress>>::default();
        let told = Arc::clone(&progress);
        thread::Builder::new()
            .name("disk-source".into())
            .spawn(move || {
                if let Err(error) = run(source, id, &receiver, &outbox, &told) {
                    tracing::warn!(error = chain(&error), "a backup's disk cannot be brought in sync");
                }
            })
            .map_err(HostError::Thread)?;
        Ok(Self { orders, progress })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the backup says.
    pub fn message(&self, bytes: Bytes) {
        let _ = self.orders.send(Order::Message(bytes));
    }

    /// An epoch was sealed.
    pub fn sealed(&self, epoch: u64) {
        let _ = self.orders.send(Order::Sealed(epoch));
    }
}

fn run(
    mut source: Source,
    id: u64,
    orders: &Receiver<Order>,
    outbox: &Outbox,
    told: &Mutex<Progress>,
) -> Result<(), HostError> {
    loop {
        *told.lock().unwrap_or_else(PoisonError::into_inner) = source.progress();
        let full = outbox.waiting() > WAITING_MAX;
        let message = if full { None } else { source.poll()? };
        let idle = message.is_none();
        if let Some(message) = message {
            outbox.send(StreamMessage::Disk { id, words: message.encode() }.encode());
        }
        if source.is_done() && idle {
            return Ok(());
        }
        let order = match (full, idle) {
            (true, _) => match orders.recv_timeout(ROOM_LOOK) {
                Ok(order) => Some(order),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            },
            (false, true) => match orders.recv() {
                Ok(order) => Some(order),
                Err(_) => return Ok(()),
            },
            (false, false) => orders.try_recv().ok(),
        };
        match order {
            Some(Order::Message(bytes)) => {
                source.receive(Message::decode(bytes).map_err(|e| HostError::Refused(e.to_string()))?)?
            }
            Some(Order::Sealed(epoch)) => source.sealed(epoch),
            None => {}
        }
    }
}
