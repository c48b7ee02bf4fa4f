//! Puts messages together: whole, in the order of their channel, each once.
//!
//! The buffer of a message is made when its first chunk arrives and is cut into the pieces that connections fill
//! side by side; put together again, they are the message without another copy. A chunk that comes a second time
//! while the first is still arriving gets a buffer of its own: whichever is complete first counts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::cost;
use crate::error::Violation;
use crate::frame::DataHeader;

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its channel.
    pub channel: u16,
    /// Its bytes.
    pub payload: Bytes,
    /// Whether it was sent as urgent.
    pub urgent: bool,
}

/// Which messages are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever is ready, urgent ones first.
    Any,
    /// Urgent ones only.
    Urgent,
    /// All others.
    Bulk,
}

/// Where a chunk's bytes go.
#[derive(Debug)]
pub enum Place {
    /// Into this buffer of the chunk's length.
    Fill(BytesMut),
    /// Nowhere: it is there already.
    Drop,
}

/// How much a receiver takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of bulk messages before the application takes them.
    pub window: u64,
    /// The same of urgent ones.
    pub urgent_window: u64,
    /// The longest message.
    pub message_max: u64,
}

#[derive(Default)]
struct Channel {
    next: u64,
    /// Its messages that wait in `ready`, which no urgent one of the same channel may overtake.
    waiting: usize,
    partial: BTreeMap<u64, Partial>,
}

struct Partial {
    total: u64,
    urgent: bool,
    received: u64,
    /// Pieces nobody fills, by offset.
    free: BTreeMap<u64, BytesMut>,
    /// Pieces that are filled.
    done: BTreeMap<u64, BytesMut>,
}

/// Of one priority: what arrived and what was taken.
#[derive(Default)]
struct Account {
    received: u64,
    consumed: u64,
    reported: u64,
}

/// The receiving half of a link.
pub struct Receiver {
    limits: Limits,
    channels: HashMap<u16, Channel>,
    ready: VecDeque<Message>,
    ready_urgent: VecDeque<Message>,
    bulk: Account,
    urgent: Account,
}

impl Receiver {
    /// An empty receiver.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            channels: HashMap::new(),
            ready: VecDeque::new(),
            ready_urgent: VecDeque::new(),
            bulk: Account::default(),
            urgent: Account::default(),
        }
    }

    /// A chunk begins to arrive.
    pub fn begin(&mut self, header: &DataHeader) -> Result<Place, Violation> {
        if header.total > self.limits.message_max {
            return Err(Violation::Field("message's length"));
        }
        let (account, window) = match header.urgent {
            true => (&self.urgent, self.limits.urgent_window),
            false => (&self.bulk, self.limits.window),
        };
        if account.received - account.consumed > window.saturating_add(self.limits.message_max) {
            return Err(Violation::Credit);
        }
        let channel = self.channels.entry(header.channel).or_default();
        if header.sequence < channel.next {
            return Ok(Place::Drop);
        }
        let partial = channel.partial.entry(header.sequence).or_insert_with(|| Partial::new(header));
        partial.begin(header)
    }

    /// A chunk has arrived. Returns whether messages became ready.
    pub fn finish(&mut self, header: &DataHeader, piece: BytesMut) -> Result<bool, Violation> {
        let Some(channel) = self.channels.get_mut(&header.channel) else { return Ok(false) };
        let Some(partial) = channel.partial.get_mut(&header.sequence) else { return Ok(false) };
        if !partial.finish(header, piece)? {
            return Ok(false);
        }
        let account = if header.urgent { &mut self.urgent } else { &mut self.bulk };
        let first = partial.received == u64::from(header.length);
        account.received += if first { cost(header.length.into()) } else { header.length.into() };
        let next = channel.next;
        while let Some(entry) = channel.partial.first_entry()
            && *entry.key() == channel.next
            && entry.get().is_complete()
        {
            let (urgent, payload) = (entry.get().urgent, entry.remove().assemble());
            let message = Message { channel: header.channel, payload, urgent };
            if urgent && channel.waiting == 0 {
                self.ready_urgent.push_back(message);
            } else {
                channel.waiting += 1;
                self.ready.push_back(message);
            }
            channel.next += 1;
        }
        Ok(channel.next > next)
    }

    /// A chunk stopped arriving because its connection died.
    pub fn abandon(&mut self, header: &DataHeader, piece: BytesMut) {
        let partial = self.channels.get_mut(&header.channel).and_then(|c| c.partial.get_mut(&header.sequence));
        if let Some(partial) = partial {
            // If another connection brought it meanwhile, the buffer is of no use.
            if !partial.done.contains_key(&header.offset) {
                partial.free.insert(header.offset, piece);
            }
        }
    }

    /// The next message for the application: urgent ones first.
    pub fn take(&mut self, wanted: Wanted) -> Option<Message> {
        let urgent = if wanted == Wanted::Bulk { None } else { self.ready_urgent.pop_front() };
        let message = match urgent {
            Some(message) => message,
            None if wanted == Wanted::Urgent => return None,
            None => {
                let message = self.ready.pop_front()?;
                if let Some(channel) = self.channels.get_mut(&message.channel) {
                    channel.waiting -= 1;
                }
                message
            }
        };
        let account = if message.urgent { &mut self.urgent } else { &mut self.bulk };
        account.consumed += cost(message.payload.len() as u64);
        Some(message)
    }

    /// What the application has taken, bulk and urgent.
    pub fn consumed(&self) -> (u64, u64) {
        (self.bulk.consumed, self.urgent.consumed)
    }

    /// Whether so much was taken since the last report that all connections should tell the peer.
    pub fn should_report(&mut self) -> bool {
        let due = self.bulk.consumed - self.bulk.reported > self.limits.window / 16
            || self.urgent.consumed - self.urgent.reported > self.limits.urgent_window / 4;
        if due {
            self.bulk.reported = self.bulk.consumed;
            self.urgent.reported = self.urgent.consumed;
        }
        due
    }

    /// Whether no message of these waits for the application.
    pub fn is_drained(&self, wanted: Wanted) -> bool {
        let (bulk, urgent) = (self.ready.is_empty(), self.ready_urgent.is_empty());
        match wanted {
            Wanted::Any => bulk && urgent,
            Wanted::Urgent => urgent,
            Wanted::Bulk => bulk,
        }
    }

    /// Bytes that arrived and were not taken.
    pub fn held(&self) -> u64 {
        self.bulk.received - self.bulk.consumed + self.urgent.received - self.urgent.consumed
    }
}

impl Partial {
    fn new(header: &DataHeader) -> Self {
        // Zeroed memory of this size is not touched before it is filled.
        let whole = BytesMut::zeroed(header.total as usize);
        let free = if header.total > 0 { BTreeMap::from([(0, whole)]) } else { BTreeMap::new() };
        Self { total: header.total, urgent: header.urgent, received: 0, free, done: BTreeMap::new() }
    }

    fn begin(&mut self, header: &DataHeader) -> Result<Place, Violation> {
        if self.total != header.total || self.urgent != header.urgent {
            return Err(Violation::Field("chunk of an altered message"));
        }
        let (start, end) = (header.offset, header.offset + u64::from(header.length));
        if self.done.get(&start).is_some_and(|piece| piece.len() as u64 == end - start) {
            return Ok(Place::Drop);
        }
        let around = self.free.range_mut(..=start).next_back();
        let Some((at, piece)) = around.filter(|(at, piece)| *at + piece.len() as u64 >= end) else {
            // Somebody else is filling it.
            return Ok(Place::Fill(BytesMut::zeroed(header.length as usize)));
        };
        let at = *at;
        let mut wanted = piece.split_off((start - at) as usize);
        if wanted.len() as u64 > end - start {
            let rest = wanted.split_off((end - start) as usize);
            self.free.insert(end, rest);
        }
        if at == start {
            self.free.remove(&at);
        }
        Ok(Place::Fill(wanted))
    }

    /// Whether the piece is new.
    fn finish(&mut self, header: &DataHeader, piece: BytesMut) -> Result<bool, Violation> {
        let (start, end) = (header.offset, header.offset + u64::from(header.length));
        if self.done.get(&start).is_some_and(|piece| piece.len() as u64 == end - start) {
            return Ok(false);
        }
        let before = self.done.range(..=start).next_back().is_some_and(|(at, piece)| at + piece.len() as u64 > start);
        let after = self.done.range(start..).next().is_some_and(|(at, _)| *at < end);
        if before || after {
            return Err(Violation::Overlap);
        }
        self.received += u64::from(header.length);
        self.done.insert(start, piece);
        Ok(true)
    }

    fn is_complete(&self) -> bool {
        self.received == self.total && !self.done.is_empty()
    }

    fn assemble(self) -> Bytes {
        let mut pieces = self.done.into_values();
        let mut whole = pieces.next().unwrap_or_default();
        for piece in pieces {
            whole.unsplit(piece);
        }
        whole.freeze()
    }
}
