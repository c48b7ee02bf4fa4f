//! Which chunk goes over which connection, and when it goes again.
//!
//! Connections *pull*: each takes the next chunk when its window has room, so the fast ones take more, without any
//! weights. In order of preference: urgent chunks given to it; chunks that others lost or hold for too long; new bulk
//! chunks, cut from the oldest message to the length that suits the connection. A connection with nothing else to do
//! takes over the last chunk of the one that will be done last.
//!
//! A chunk may be on several connections at once; the first acknowledgement counts. The receiver drops what it has.
//!
//! The receiver's window holds `window` bytes of messages that its application has not taken yet. A message may exceed
//! it only when everything before it has been taken: then it alone is in the receiver's memory, and it can always
//! be completed. Urgent messages have a small window of their own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::message::{OutMessage, Outgoing};
use super::path::{ChunkId, Path, PathState};
use super::{Balancing, Time, cost};
use crate::error::Violation;
use crate::frame::{DataHeader, Report};

/// A connection's number within its link; never used twice.
pub type PathId = u64;

/// The longest chunk of an urgent message.
const URGENT_CHUNK: u32 = 16 * 1024;
/// How late a chunk must be before it is sent elsewhere too.
const LATE_BULK: Duration = Duration::from_millis(25);
const LATE_URGENT: Duration = Duration::from_millis(15);

struct Entry {
    message: Arc<OutMessage>,
    channel: u16,
    sequence: u64,
    urgent: bool,
    /// Where it starts in the stream of all costs of its priority.
    position: u64,
    cut: u64,
    acknowledged: u64,
}

struct Chunk {
    message: u64,
    offset: u64,
    length: u32,
    urgent: bool,
    /// Connections that it is on.
    carriers: Vec<PathId>,
    /// How often it was handed over.
    sent: u32,
    /// Whether it already was given to a second connection because the first is late.
    hedged: bool,
}

/// How far messages of one priority got.
#[derive(Default)]
struct Flow {
    window: u64,
    /// Costs of all messages that were queued.
    queued: u64,
    /// Costs of all that the peer's application has taken.
    consumed: u64,
}

/// The sending half of a link.
pub struct Sender {
    balancing: Balancing,
    paths: BTreeMap<PathId, Path>,
    sequences: HashMap<u16, u64>,
    messages: HashMap<u64, Entry>,
    next_message: u64,
    chunks: HashMap<ChunkId, Chunk>,
    next_chunk: ChunkId,
    /// Bulk messages that are not wholly cut yet.
    bulk: VecDeque<u64>,
    /// Bulk chunks to send again, before new ones.
    again: VecDeque<ChunkId>,
    /// Urgent chunks that no connection could take.
    waiting: VecDeque<ChunkId>,
    bulk_flow: Flow,
    urgent_flow: Flow,
    unacknowledged: u64,
    bulk_delivered: u64,
}

impl Sender {
    /// A sender towards a peer with these windows.
    pub fn new(balancing: Balancing, window: u64, urgent_window: u64) -> Self {
        Self {
            balancing,
            paths: BTreeMap::new(),
            sequences: HashMap::new(),
            messages: HashMap::new(),
            next_message: 0,
            chunks: HashMap::new(),
            next_chunk: 0,
            bulk: VecDeque::new(),
            again: VecDeque::new(),
            waiting: VecDeque::new(),
            bulk_flow: Flow { window, ..Flow::default() },
            urgent_flow: Flow { window: urgent_window, ..Flow::default() },
            unacknowledged: 0,
            bulk_delivered: 0,
        }
    }

    /// Bytes of bulk messages that are queued or not wholly acknowledged: what this side keeps in memory.
    pub fn unacknowledged(&self) -> u64 {
        self.unacknowledged
    }

    /// Chunks of bulk messages that the peer acknowledged.
    pub fn bulk_delivered(&self) -> u64 {
        self.bulk_delivered
    }

    /// Whether a message of this length may be queued, if at most `limit` bytes of bulk messages shall be. One that
    /// exceeds it by itself may be queued alone.
    pub fn has_room(&self, urgent: bool, bytes: u64, limit: u64) -> bool {
        let (outstanding, limit) = match urgent {
            true => (self.urgent_flow.queued - self.urgent_flow.consumed, self.urgent_flow.window),
            false => (self.unacknowledged, limit),
        };
        outstanding == 0 || outstanding + cost(bytes) <= limit
    }

    /// The connections.
    pub fn paths(&self) -> &BTreeMap<PathId, Path> {
        &self.paths
    }

    /// Whether any message is not wholly acknowledged.
    pub fn is_busy(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Adds a connection.
    pub fn add(&mut self, id: PathId, now: Time) {
        self.paths.insert(id, Path::new(now));
        self.place_waiting();
    }

    /// Queues a message.
    pub fn push(&mut self, channel: u16, urgent: bool, message: OutMessage) {
        let sequence = self.sequences.entry(channel).or_default();
        let flow = if urgent { &mut self.urgent_flow } else { &mut self.bulk_flow };
        let (id, total, position) = (self.next_message, message.total(), flow.queued);
        let entry = Entry {
            message: Arc::new(message),
            channel,
            sequence: *sequence,
            urgent,
            position,
            cut: 0,
            acknowledged: 0,
        };
        *sequence += 1;
        self.next_message += 1;
        flow.queued += cost(total);
        if !urgent {
            self.unacknowledged += cost(total);
        }
        self.messages.insert(id, entry);
        if urgent {
            self.cut_urgent(id, total);
        } else {
            self.bulk.push_back(id);
        }
    }

    fn cut_urgent(&mut self, message: u64, total: u64) {
        let mut offset = 0;
        loop {
            let length = (total - offset).min(URGENT_CHUNK.into()) as u32;
            let chunk = self.new_chunk(message, offset, length, true);
            offset += u64::from(length);
            self.place_urgent(chunk);
            if offset >= total {
                break;
            }
        }
    }

    fn new_chunk(&mut self, message: u64, offset: u64, length: u32, urgent: bool) -> ChunkId {
        let id = self.next_chunk;
        self.next_chunk += 1;
        if let Some(entry) = self.messages.get_mut(&message) {
            entry.cut = offset + u64::from(length);
        }
        self.chunks.insert(id, Chunk { message, offset, length, urgent, carriers: Vec::new(), sent: 0, hedged: false });
        id
    }

    /// Gives an urgent chunk to the connection where it arrives first, or to the two best.
    fn place_urgent(&mut self, id: ChunkId) {
        let Some(chunk) = self.chunks.get(&id) else { return };
        let wanted = if self.balancing == Balancing::LatencyOptimized && chunk.sent == 0 { 2 } else { 1 };
        let free = |(path, _): &(&PathId, &Path)| !chunk.carriers.contains(path);
        let mut best: Vec<(Duration, PathId)> = self
            .paths
            .iter()
            .filter(|(_, path)| path.state == PathState::Active && !path.urgent.contains(&id))
            .filter(free)
            .map(|(id, path)| {
                let ahead = path.urgent.len() as u64 * u64::from(URGENT_CHUNK);
                (path.arrival(ahead + u64::from(chunk.length)), *id)
            })
            .collect();
        best.sort_unstable();
        best.truncate(wanted);
        if best.is_empty() && !self.is_carried(id) {
            self.waiting.push_back(id);
        }
        for (_, path) in best {
            if let Some(path) = self.paths.get_mut(&path) {
                path.urgent.push_back(id);
            }
        }
    }

    fn place_waiting(&mut self) {
        for chunk in std::mem::take(&mut self.waiting) {
            self.place_urgent(chunk);
        }
    }

    /// The next chunk for a connection that can write.
    pub fn next(&mut self, path: PathId, now: Time) -> Option<Outgoing> {
        let chunk = self.choose(path)?;
        let entry = self.chunks.get_mut(&chunk)?;
        entry.carriers.push(path);
        entry.sent += 1;
        let (message, bytes, again) = (entry.message, u64::from(entry.length), entry.sent > 1);
        let (offset, length) = (entry.offset, entry.length);
        self.paths.get_mut(&path)?.sent(chunk, bytes, again, now);
        let message = self.messages.get(&message)?;
        let header = DataHeader {
            urgent: message.urgent,
            channel: message.channel,
            sequence: message.sequence,
            total: message.message.total(),
            offset,
            length,
        };
        Some(Outgoing { header, message: message.message.clone() })
    }

    fn choose(&mut self, id: PathId) -> Option<ChunkId> {
        let path = self.paths.get_mut(&id)?;
        if path.state == PathState::Stalled {
            return None;
        }
        while let Some(chunk) = path.urgent.pop_front() {
            if self.chunks.get(&chunk).is_some_and(|chunk| !chunk.carriers.contains(&id)) {
                return Some(chunk);
            }
        }
        if !path.has_room() {
            return None;
        }
        let length = path.chunk_bytes();
        if let Some(chunk) = self.choose_again(id) {
            return Some(chunk);
        }
        if !self.bulk.is_empty() && !self.is_soonest(id, length) {
            return None;
        }
        let chosen = self.choose_new(length).or_else(|| self.choose_tail(id));
        if chosen.is_none()
            && let Some(path) = self.paths.get_mut(&id)
        {
            path.starved();
        }
        chosen
    }

    /// Something to send again that is not on this very connection.
    fn choose_again(&mut self, path: PathId) -> Option<ChunkId> {
        let chunks = &self.chunks;
        self.again.retain(|id| chunks.contains_key(id));
        let at = self.again.iter().position(|id| !chunks[id].carriers.contains(&path))?;
        self.again.remove(at)
    }

    /// With latency as the goal: whether no other connection would have the chunk there earlier.
    fn is_soonest(&self, id: PathId, length: u32) -> bool {
        if self.balancing == Balancing::AdaptiveBandwidth {
            return true;
        }
        let Some(own) = self.paths.get(&id).map(|path| path.arrival(length.into())) else { return false };
        let active = self.paths.values().filter(|path| path.state == PathState::Active);
        active.map(|path| path.arrival(length.into())).min().is_none_or(|least| own <= least)
    }

    /// A new chunk of the oldest message, if the receiver has room for it.
    fn choose_new(&mut self, length: u32) -> Option<ChunkId> {
        let id = *self.bulk.front()?;
        let entry = self.messages.get(&id)?;
        let (total, offset) = (entry.message.total(), entry.cut);
        let length = (total - offset).min(length.into());
        let end = entry.position + offset + cost(length);
        let flow = &self.bulk_flow;
        if end > flow.consumed + flow.window && flow.consumed < entry.position {
            return None;
        }
        if offset + length >= total {
            self.bulk.pop_front();
        }
        Some(self.new_chunk(id, offset, length as u32, false))
    }

    /// With nothing new to send: the last chunk of the connection that will be done last, if this one is much faster.
    fn choose_tail(&mut self, id: PathId) -> Option<ChunkId> {
        let own = self.paths.get(&id)?;
        let mut best: Option<(Duration, ChunkId)> = None;
        for (other, path) in &self.paths {
            let Some(last) = path.in_flight.back().filter(|_| *other != id) else { continue };
            let Some(chunk) = self.chunks.get(&last.chunk) else { continue };
            if chunk.hedged || chunk.urgent || chunk.carriers.contains(&id) {
                continue;
            }
            let remaining = path.arrival(0);
            let threshold = 3 * own.arrival(last.bytes) + Duration::from_millis(10);
            if remaining > threshold && best.is_none_or(|(most, _)| remaining > most) {
                best = Some((remaining, last.chunk));
            }
        }
        let (_, chunk) = best?;
        self.chunks.get_mut(&chunk)?.hedged = true;
        Some(chunk)
    }

    /// Takes a report that came over a connection. Returns whether other connections may have got something to do.
    pub fn report(&mut self, path: PathId, report: Report, now: Time) -> Result<bool, Violation> {
        let mut granted = false;
        for (flow, consumed) in [(&mut self.bulk_flow, report.bulk), (&mut self.urgent_flow, report.urgent)] {
            if consumed > flow.queued {
                return Err(Violation::Acknowledgement);
            }
            granted |= consumed > flow.consumed;
            flow.consumed = flow.consumed.max(consumed);
        }
        let Some(entry) = self.paths.get_mut(&path) else { return Ok(granted) };
        let was = entry.state;
        let acknowledged = entry.acknowledge(report.frames, now).ok_or(Violation::Acknowledgement)?;
        let recovered = was == PathState::Stalled && entry.state == PathState::Active;
        for chunk in acknowledged {
            self.delivered(chunk);
        }
        if recovered {
            self.place_waiting();
        }
        Ok(granted || recovered)
    }

    fn delivered(&mut self, chunk: ChunkId) {
        let Some(chunk) = self.chunks.remove(&chunk) else { return };
        let Some(entry) = self.messages.get_mut(&chunk.message) else { return };
        entry.acknowledged += u64::from(chunk.length);
        self.bulk_delivered += u64::from(!entry.urgent);
        if entry.acknowledged == entry.message.total() && entry.cut == entry.message.total() {
            if !entry.urgent {
                self.unacknowledged -= cost(entry.message.total());
            }
            self.messages.remove(&chunk.message);
        }
    }

    /// Takes the answer to a ping.
    pub fn pong(&mut self, path: PathId, rtt: Duration, now: Time) {
        if let Some(path) = self.paths.get_mut(&path) {
            path.pong(rtt, now);
        }
    }

    /// Removes a connection; what was on it goes over the others at once.
    pub fn remove(&mut self, id: PathId) {
        let Some(path) = self.paths.remove(&id) else { return };
        let lost: Vec<ChunkId> = path.in_flight.iter().map(|sent| sent.chunk).collect();
        for chunk in &lost {
            if let Some(chunk) = self.chunks.get_mut(chunk) {
                chunk.carriers.retain(|carrier| *carrier != id);
            }
        }
        self.send_again(lost.into_iter().chain(path.urgent));
    }

    /// Queues chunks again, oldest first.
    fn send_again(&mut self, chunks: impl DoubleEndedIterator<Item = ChunkId>) {
        for id in chunks.rev() {
            match self.chunks.get_mut(&id) {
                Some(chunk) if chunk.urgent => self.place_urgent(id),
                Some(chunk) if !self.again.contains(&id) => {
                    chunk.hedged = !chunk.carriers.is_empty();
                    self.again.push_front(id);
                }
                _ => {}
            }
        }
    }

    /// Looks for connections that are stuck and for chunks that are late. Returns whether something changed.
    pub fn tick(&mut self, now: Time) -> bool {
        let mut changed = false;
        for id in self.paths.keys().copied().collect::<Vec<_>>() {
            let Some(path) = self.paths.get_mut(&id) else { continue };
            if path.state == PathState::Stalled {
                continue;
            }
            if path.is_stuck(now) {
                path.state = PathState::Stalled;
                let mut stuck: Vec<ChunkId> = path.in_flight.iter().map(|sent| sent.chunk).collect();
                stuck.extend(std::mem::take(&mut path.urgent));
                stuck.retain(|chunk| !self.is_carried(*chunk));
                self.send_again(stuck.into_iter());
                changed = true;
            } else if self.paths.len() > 1 {
                changed |= self.hedge_late(id, now);
            }
        }
        changed
    }

    /// Whether a chunk is on a connection that moves.
    fn is_carried(&self, chunk: ChunkId) -> bool {
        let active = |id: &PathId| self.paths.get(id).is_some_and(|path| path.state == PathState::Active);
        self.chunks.get(&chunk).is_none_or(|chunk| chunk.carriers.iter().any(active))
    }

    /// Sends elsewhere too what should have been acknowledged on this connection for some time.
    fn hedge_late(&mut self, path: PathId, now: Time) -> bool {
        let mut late = Vec::new();
        // Round trips that have become long already are a busy machine's, not a lost chunk's.
        let usual = 2 * self.paths[&path].rtt().unwrap_or_default();
        for sent in &self.paths[&path].in_flight {
            let Some(chunk) = self.chunks.get_mut(&sent.chunk) else { continue };
            let grace = if chunk.urgent { LATE_URGENT } else { LATE_BULK };
            if now < sent.due + (sent.due - sent.at) + grace + usual {
                break;
            }
            if !chunk.hedged {
                chunk.hedged = true;
                late.push(sent.chunk);
            }
        }
        let changed = !late.is_empty();
        self.send_again(late.into_iter());
        changed
    }
}
