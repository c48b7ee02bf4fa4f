//! What a link's handles, connections and chores share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::core::Time;
use crate::core::receiver::{Limits, Receiver, Wanted};
use crate::core::sender::{PathId, Sender};
use crate::error::CloseReason;
use crate::frame::{Greeting, SessionId};
use crate::link::Options;
use crate::stats::{ConnectionStats, LinkStats};

/// How often connections are pinged at least, in parts of the time after which silence counts as death.
const PINGS_PER_DEATH: u32 = 8;

/// A link's state.
pub(crate) struct Shared {
    pub peer: String,
    /// The certificate that every connection of this link must show.
    pub peer_leaf: Vec<u8>,
    pub session: SessionId,
    pub options: Options,
    /// The longest message the peer takes.
    pub message_max: u64,
    pub sender: Mutex<Sender>,
    pub receiver: Mutex<Receiver>,
    pub connections: Mutex<BTreeMap<PathId, Arc<Connection>>>,
    pub closed: watch::Sender<Option<CloseReason>>,
    /// Queued messages were acknowledged, or the link closed.
    pub room: Notify,
    /// A message can be taken, or the link closed.
    ready: Notify,
    /// An urgent one.
    ready_urgent: Notify,
    /// The connection that last completed a message.
    pub last_path: AtomicU64,
    pub sent_messages: AtomicU64,
    pub received_messages: AtomicU64,
    pub lost_connections: AtomicU64,
    /// Chunks of bulk messages.
    pub bulk_received: AtomicU64,
    ping_every: Duration,
    origin: Instant,
    next_path: AtomicU64,
    heard_us: AtomicU64,
}

/// A connection as the rest of the link sees it.
pub(crate) struct Connection {
    pub id: PathId,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// There may be something to write, or the end has come.
    pub wake: Notify,
    pub report: AtomicBool,
    pub ping: AtomicBool,
    pub doomed: AtomicBool,
    /// Another connection has taken its place.
    pub retired: AtomicBool,
    pub received_bytes: AtomicU64,
    pub received_chunks: AtomicU64,
    heard_us: AtomicU64,
    pinged_us: AtomicU64,
}

impl Connection {
    /// Ends a connection that another has replaced.
    pub fn retire(&self) {
        self.retired.store(true, Relaxed);
        self.wake.notify_one();
    }
}

impl Shared {
    pub fn new(peer: String, peer_leaf: Vec<u8>, options: Options, greeting: &Greeting) -> Self {
        let limits = Limits {
            window: options.receive_window,
            urgent_window: options.urgent_window,
            message_max: options.message_max,
        };
        let peer_dead_after = Duration::from_millis(greeting.dead_after_ms.max(50).into());
        Self {
            peer,
            peer_leaf,
            session: greeting.session,
            sender: Mutex::new(Sender::new(options.balancing, greeting.window, greeting.urgent_window)),
            receiver: Mutex::new(Receiver::new(limits)),
            connections: Mutex::default(),
            closed: watch::Sender::new(None),
            room: Notify::new(),
            ready: Notify::new(),
            ready_urgent: Notify::new(),
            last_path: AtomicU64::new(0),
            sent_messages: AtomicU64::new(0),
            received_messages: AtomicU64::new(0),
            lost_connections: AtomicU64::new(0),
            bulk_received: AtomicU64::new(0),
            ping_every: options.dead_after.min(peer_dead_after) / PINGS_PER_DEATH,
            message_max: greeting.message_max,
            origin: Instant::now(),
            next_path: AtomicU64::new(0),
            heard_us: AtomicU64::new(0),
            options,
        }
    }

    pub fn now(&self) -> Time {
        self.origin.elapsed()
    }

    pub fn close(&self, reason: CloseReason) {
        let closed = self.closed.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                *state = Some(reason);
            }
            first
        });
        if closed {
            self.room.notify_waiters();
            self.ready.notify_waiters();
            self.ready_urgent.notify_waiters();
            self.wake_all();
        }
    }

    pub fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// What those wait for who want such messages.
    pub fn ready(&self, wanted: Wanted) -> &Notify {
        if wanted == Wanted::Urgent { &self.ready_urgent } else { &self.ready }
    }

    /// Messages can be taken.
    pub fn notify_ready(&self) {
        self.ready.notify_one();
        self.ready_urgent.notify_one();
    }

    /// Adds a connection to the link.
    pub fn add(&self, local: SocketAddr, remote: SocketAddr) -> Arc<Connection> {
        let now = self.now();
        let connection = Arc::new(Connection {
            id: self.next_path.fetch_add(1, Relaxed),
            local,
            remote,
            wake: Notify::new(),
            report: AtomicBool::new(false),
            ping: AtomicBool::new(true),
            doomed: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            received_bytes: AtomicU64::new(0),
            received_chunks: AtomicU64::new(0),
            heard_us: AtomicU64::new(micros(now)),
            pinged_us: AtomicU64::new(micros(now)),
        });
        lock(&self.connections).insert(connection.id, connection.clone());
        lock(&self.sender).add(connection.id, now);
        self.heard_us.store(micros(now), Relaxed);
        self.wake_all();
        connection
    }

    /// Removes a connection; what was on it goes over the others.
    pub fn remove(&self, connection: &Connection) {
        lock(&self.sender).remove(connection.id);
        lock(&self.connections).remove(&connection.id);
        self.lost_connections.fetch_add(1, Relaxed);
        self.wake_all();
    }

    pub fn connection_count(&self) -> usize {
        lock(&self.connections).len()
    }

    /// Lets every connection look for something to write.
    pub fn wake_all(&self) {
        for connection in lock(&self.connections).values() {
            connection.wake.notify_one();
        }
    }

    /// Has connections tell the peer what the application has taken: all of them, or the one that is best placed.
    pub fn report(&self, all: bool) {
        let connections = lock(&self.connections);
        let last = self.last_path.load(Relaxed);
        let one = connections.get(&last).or_else(|| connections.values().next()).map(|connection| connection.id);
        for connection in connections.values().filter(|connection| all || Some(connection.id) == one) {
            connection.report.store(true, Relaxed);
            connection.wake.notify_one();
        }
    }

    /// Notes that the peer was heard on a connection.
    pub fn heard(&self, connection: &Connection) {
        let now = micros(self.now());
        connection.heard_us.store(now, Relaxed);
        self.heard_us.store(now, Relaxed);
    }

    /// The chores of a link: late chunks, pings, and the end of what is silent. Ends with the link.
    pub async fn tend(self: Arc<Self>) {
        let mut closed = self.closed.subscribe();
        let mut last = self.now();
        loop {
            let pause = Duration::from_millis(if lock(&self.sender).is_busy() { 5 } else { 25 });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = closed.wait_for(Option::is_some) => return,
            }
            let now = self.now();
            if now.saturating_sub(last) > pause + self.options.dead_after / 4 {
                // This process itself was held up: what the peer sent meanwhile waits in the sockets.
                self.forgive(now);
            }
            last = now;
            self.tend_once(now);
        }
    }

    fn tend_once(&self, now: Time) {
        if lock(&self.sender).tick(now) {
            self.wake_all();
        }
        let dead_after = self.options.dead_after;
        for connection in lock(&self.connections).values() {
            if now.saturating_sub(time(&connection.heard_us)) > dead_after {
                connection.doomed.store(true, Relaxed);
                connection.wake.notify_one();
            } else if now.saturating_sub(time(&connection.pinged_us)) >= self.ping_every {
                connection.pinged_us.store(micros(now), Relaxed);
                connection.ping.store(true, Relaxed);
                connection.wake.notify_one();
            }
        }
        if now.saturating_sub(time(&self.heard_us)) > dead_after {
            self.close(CloseReason::Silent { after_ms: dead_after.as_millis() as u64 });
        }
    }

    fn forgive(&self, now: Time) {
        self.heard_us.store(micros(now), Relaxed);
        for connection in lock(&self.connections).values() {
            connection.heard_us.store(micros(now), Relaxed);
        }
    }

    pub fn stats(&self) -> LinkStats {
        let now = self.now();
        let connections = lock(&self.connections).clone();
        let sender = lock(&self.sender);
        let recent: u64 = sender.paths().values().map(|path| path.recent(now)).sum();
        let connection = |(id, path): (&PathId, &crate::core::path::Path)| {
            let connection = connections.get(id)?;
            Some(ConnectionStats {
                id: *id,
                local: connection.local,
                remote: connection.remote,
                state: path.state,
                sent_bytes: path.sent_bytes,
                sent_chunks: path.sent_chunks,
                resent_chunks: path.resent_chunks,
                received_bytes: connection.received_bytes.load(Relaxed),
                received_chunks: connection.received_chunks.load(Relaxed),
                in_flight_bytes: path.in_flight_bytes,
                rtt_us: path.rtt().map(micros),
                bandwidth_bytes_per_s: path.bandwidth().map(|bandwidth| bandwidth as u64),
                share: path.recent(now) as f64 / recent.max(1) as f64,
            })
        };
        LinkStats {
            peer: self.peer.clone(),
            connections: sender.paths().iter().filter_map(connection).collect(),
            queued_bytes: sender.unacknowledged(),
            held_bytes: lock(&self.receiver).held(),
            sent_messages: self.sent_messages.load(Relaxed),
            received_messages: self.received_messages.load(Relaxed),
            lost_connections: self.lost_connections.load(Relaxed),
        }
    }
}

/// A lock that survives a panic elsewhere: the state is only ever changed by whole operations.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn micros(time: Time) -> u64 {
    time.as_micros() as u64
}

fn time(micros: &AtomicU64) -> Time {
    Duration::from_micros(micros.load(Relaxed))
}
