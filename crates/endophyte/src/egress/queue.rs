//! Frames that wait for their epoch. No I/O: the order and the bounds of output commit, and nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use super::framing::PREFIX;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames and their lengths; never exceeded.
    pub bytes: usize,
    /// Frames; what was in QEMU's socket when this many were reached may come on top.
    pub frames: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 20, frames: 65_536 }
    }
}

/// Room left free for what a seal finds in the socket: what the kernel lets QEMU write ahead by default.
const RESERVE: usize = 256 << 10;
/// Buffers of released epochs kept for the next ones.
const POOLED: usize = 4;
const POOLED_BYTES: usize = 1 << 20;

/// Frames one after the other, each behind its length.
#[derive(Debug, Default)]
pub struct Segment {
    bytes: Vec<u8>,
    frames: usize,
    since: Option<Duration>,
    /// Bytes before this were handed on.
    sent: usize,
    sent_frames: usize,
}

impl Segment {
    fn push(&mut self, frame: &[u8], now: Duration) {
        self.since.get_or_insert(now);
        self.bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(frame);
        self.frames += 1;
    }

    /// The first frame that was not handed on.
    pub fn next(&self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.sent..)?;
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        rest.get(PREFIX..PREFIX + length)
    }

    /// That frame was handed on.
    pub fn advance(&mut self) {
        if let Some(length) = self.next().map(<[u8]>::len) {
            self.sent += PREFIX + length;
            self.sent_frames += 1;
        }
    }

    /// Frames not handed on.
    pub fn frames_left(&self) -> usize {
        self.frames - self.sent_frames
    }

    /// Bytes not handed on.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// How many frames.
    pub fn len(&self) -> usize {
        self.frames
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// An epoch was to be sealed that is not after the one sealed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("epoch {found} cannot be sealed after epoch {last}: epochs only grow")]
pub struct EpochOrder {
    /// The epoch given.
    pub found: u64,
    /// The one sealed last.
    pub last: u64,
}

/// Frames by the epoch that produced them.
#[derive(Debug)]
pub struct EgressQueue {
    limits: Limits,
    open: Segment,
    sealed: VecDeque<(u64, Segment)>,
    last: Option<u64>,
    bytes: usize,
    frames: usize,
    pool: Vec<Segment>,
}

impl EgressQueue {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        let (open, sealed, pool) = (Segment::default(), VecDeque::new(), Vec::new());
        Self { limits, open, sealed, last: None, bytes: 0, frames: 0, pool }
    }

    /// Queues a frame of the epoch under way.
    pub fn push(&mut self, frame: &[u8], now: Duration) {
        self.open.push(frame, now);
        self.bytes += PREFIX + frame.len();
        self.frames += 1;
    }

    /// What was queued since the last seal belongs to `epoch`, what comes from now on to a later one. Returns the
    /// number of frames and bytes of `epoch`.
    pub fn seal(&mut self, epoch: u64) -> Result<(usize, usize), EpochOrder> {
        if let Some(last) = self.last.filter(|last| epoch <= *last) {
            return Err(EpochOrder { found: epoch, last });
        }
        self.last = Some(epoch);
        let next = self.pool.pop().unwrap_or_default();
        let segment = std::mem::replace(&mut self.open, next);
        let size = (segment.len(), segment.bytes());
        if segment.is_empty() {
            self.recycle(segment);
        } else {
            self.sealed.push_back((epoch, segment));
        }
        Ok(size)
    }

    /// The next segment of an epoch up to and including `through`, in order. Give it back with [`Self::recycle`].
    pub fn release(&mut self, through: u64) -> Option<Segment> {
        if self.sealed.front()?.0 > through {
            return None;
        }
        let (_, segment) = self.sealed.pop_front()?;
        self.bytes -= segment.bytes();
        self.frames -= segment.len();
        Some(segment)
    }

    /// The next segment of all, sealed or not.
    pub fn release_any(&mut self) -> Option<Segment> {
        if let Some(segment) = self.release(u64::MAX) {
            return Some(segment);
        }
        let segment = std::mem::take(&mut self.open);
        self.bytes -= segment.bytes();
        self.frames -= segment.len();
        (!segment.is_empty()).then_some(segment)
    }

    /// Takes back the memory of a segment that was sent.
    pub fn recycle(&mut self, mut segment: Segment) {
        if self.pool.len() < POOLED && segment.bytes.capacity() <= POOLED_BYTES {
            segment.bytes.clear();
            self.pool.push(Segment { bytes: segment.bytes, ..Segment::default() });
        }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that wait.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether frames wait that are not sealed.
    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The epoch sealed last.
    pub fn last_sealed(&self) -> Option<u64> {
        self.last
    }

    /// When the frame that has waited longest came.
    pub fn oldest(&self) -> Option<Duration> {
        self.sealed.front().map_or(self.open.since, |(_, segment)| segment.since)
    }

    /// Whether no more should be read from QEMU between seals.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.bytes - RESERVE.min(self.limits.bytes / 2) || self.frames >= self.limits.frames
    }

    /// Bytes that may come before the limit is reached.
    pub fn room(&self) -> usize {
        self.limits.bytes.saturating_sub(self.bytes)
    }
}
