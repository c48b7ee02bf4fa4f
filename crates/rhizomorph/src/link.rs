//! The handle of a link.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;

use crate::core::Balancing;
use crate::core::message::OutMessage;
use crate::core::receiver::{Message, Wanted};
use crate::dial;
use crate::error::{CloseReason, Error};
use crate::identity::Identity;
use crate::shared::{Shared, lock};
use crate::stats::LinkStats;

/// What a link may use, and when it gives up. Each side has its own.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How this side spreads what it sends.
    pub balancing: Balancing,
    /// How many bytes of received bulk messages wait for the application at most. One message that is longer is taken
    /// when nothing else waits.
    pub receive_window: u64,
    /// The same of urgent messages.
    pub urgent_window: u64,
    /// How many bytes of bulk messages are queued on the sending side at most; one that is longer is queued alone.
    pub send_buffer: u64,
    /// The longest message this side takes.
    pub message_max: u64,
    /// After how much silence a connection, and on all connections the link, counts as dead. At least 50 ms.
    pub dead_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            balancing: Balancing::default(),
            receive_window: 64 << 20,
            urgent_window: 4 << 20,
            send_buffer: 64 << 20,
            message_max: 2 << 30,
            dead_after: Duration::from_secs(2),
        }
    }
}

/// How to reach a peer.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Local addresses to connect from; none for whatever the system chooses.
    pub local: Vec<IpAddr>,
    /// The peer's addresses.
    pub remote: Vec<SocketAddr>,
    /// How many connections to keep, spread over the pairs of local and remote addresses.
    pub target_count: usize,
    /// Limits.
    pub options: Options,
}

impl LinkConfig {
    /// Four connections to these addresses.
    pub fn new(remote: Vec<SocketAddr>) -> Self {
        Self { local: Vec::new(), remote, target_count: 4, options: Options::default() }
    }
}

/// How soon a message should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before all bulk messages of other channels. For what is small.
    Urgent,
    /// In the order of sending.
    Bulk,
}

/// Many connections to one peer, used as one. Cheap to clone; the link is closed with its last handle.
#[derive(Clone)]
pub struct Link {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    /// Keep senders that wait for room in their order.
    bulk: Mutex<()>,
    urgent: Mutex<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(CloseReason::Local);
    }
}

impl Link {
    /// Opens a link. Returns with its first connection; the others follow.
    pub async fn connect(config: LinkConfig, identity: Identity) -> Result<Self, Error> {
        Ok(Self::new(dial::open(config, identity).await?))
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        tokio::spawn(shared.clone().tend());
        Self { handle: Arc::new(Handle { shared, bulk: Mutex::default(), urgent: Mutex::default() }) }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// The peer's name, from its certificate.
    pub fn peer(&self) -> &str {
        &self.shared().peer
    }

    /// Queues a message; waits while the queue is full. The parts are neither joined nor copied.
    ///
    /// Messages of one channel arrive in the order of sending, whatever their priority: use a channel for one priority
    /// only. Cancelling the wait leaves the message unsent.
    pub async fn send(&self, channel: u16, priority: Priority, parts: Vec<Bytes>) -> Result<(), Error> {
        let shared = self.shared();
        let message = OutMessage::new(parts);
        let (bytes, urgent) = (message.total(), priority == Priority::Urgent);
        if bytes > shared.message_max {
            return Err(Error::TooLong { bytes, limit: shared.message_max });
        }
        let gate = if urgent { &self.handle.urgent } else { &self.handle.bulk };
        let _turn = gate.lock().await;
        loop {
            let mut room = pin!(shared.room.notified());
            room.as_mut().enable();
            if let Some(reason) = shared.close_reason() {
                return Err(Error::Closed(reason));
            }
            if lock(&shared.sender).has_room(urgent, bytes, shared.options.send_buffer) {
                break;
            }
            room.await;
        }
        // Only the holder of this turn takes room of this priority.
        lock(&shared.sender).push(channel, urgent, message);
        shared.sent_messages.fetch_add(1, Relaxed);
        shared.wake_all();
        Ok(())
    }

    /// The next message of any channel. What had arrived before the link closed can still be taken.
    ///
    /// An application that takes bulk messages only when it has room for them uses [`recv_urgent`](Self::recv_urgent)
    /// and [`recv_bulk`](Self::recv_bulk), in a task each, instead: then the ones never wait for the others.
    pub async fn recv(&self) -> Result<Message, Error> {
        self.receive(Wanted::Any).await
    }

    /// The next urgent message of any channel.
    pub async fn recv_urgent(&self) -> Result<Message, Error> {
        self.receive(Wanted::Urgent).await
    }

    /// The next bulk message of any channel.
    pub async fn recv_bulk(&self) -> Result<Message, Error> {
        self.receive(Wanted::Bulk).await
    }

    async fn receive(&self, wanted: Wanted) -> Result<Message, Error> {
        let shared = self.shared();
        loop {
            let mut ready = pin!(shared.ready(wanted).notified());
            ready.as_mut().enable();
            if let Some(message) = self.take(wanted) {
                return Ok(message);
            }
            if let Some(reason) = shared.close_reason() {
                return Err(Error::Closed(reason));
            }
            ready.await;
        }
    }

    /// The next message, if there is one now.
    pub fn try_recv(&self) -> Option<Message> {
        self.take(Wanted::Any)
    }

    fn take(&self, wanted: Wanted) -> Option<Message> {
        let shared = self.shared();
        let mut receiver = lock(&shared.receiver);
        let message = receiver.take(wanted)?;
        let (all, drained) = (receiver.should_report(), receiver.is_drained(wanted));
        drop(receiver);
        shared.received_messages.fetch_add(1, Relaxed);
        if all || drained {
            shared.report(all);
        }
        if !drained {
            shared.ready(wanted).notify_one();
        }
        Some(message)
    }

    /// Waits until the peer's side has received everything that was sent.
    pub async fn flush(&self) -> Result<(), Error> {
        let shared = self.shared();
        loop {
            let mut room = pin!(shared.room.notified());
            room.as_mut().enable();
            if !lock(&shared.sender).is_busy() {
                return Ok(());
            }
            if let Some(reason) = shared.close_reason() {
                return Err(Error::Closed(reason));
            }
            room.await;
        }
    }

    /// How many connections there are now.
    pub fn connections(&self) -> usize {
        self.shared().connection_count()
    }

    /// Every connection and what it carries.
    pub fn stats(&self) -> LinkStats {
        self.shared().stats()
    }

    /// A number that grows whenever a part of a bulk message came from the peer, or one of ours arrived there: while it
    /// does, the peer's side of the link is alive, however late its urgent messages are.
    pub fn bulk_progress(&self) -> u64 {
        let shared = self.shared();
        shared.bulk_received.load(Relaxed) + lock(&shared.sender).bulk_delivered()
    }

    /// Closes the link at once, on both sides. What the peer has not received is lost: [`flush`](Self::flush) first.
    pub fn close(&self) {
        self.shared().close(CloseReason::Local);
    }

    /// Waits until the link is closed, by whatever.
    pub async fn closed(&self) -> CloseReason {
        let mut closed = self.shared().closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
            Err(_) => CloseReason::Local,
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer()).field("connections", &self.connections()).finish()
    }
}
