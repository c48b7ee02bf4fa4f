//! What is known of one connection: what is on it, how fast it delivers, whether it moves at all.
//!
//! ```text
//!            no progress for a while             nothing heard for `dead_after`
//!  Active ───────────────────────────► Stalled ─────────────────────────────────► removed, dialled again
//!    ▲                                    │
//!    └──── an acknowledgement arrives ────┘
//! ```
//!
//! The bandwidth is the highest rate of delivery in the last two measuring periods. Samples taken while there was too
//! little to send can raise it, never lower it. The window is what such a connection can hold without queueing for
//! more than a few milliseconds; that is what keeps urgent messages quick and a slow connection's share small.
//!
//! The least round trip is measured anew now and then with an almost empty connection: the window follows from it, and
//! one that was measured behind the window's own queue would make the window grow for ever.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;

/// A chunk's name within a link's sender.
pub type ChunkId = u64;

const CHUNK_MIN: u32 = 16 * 1024;
const CHUNK_MAX: u32 = 256 * 1024;
const CHUNK_FIRST: u32 = 32 * 1024;
/// How long one chunk may occupy a connection.
const CHUNK_TIME: f64 = 0.004;
/// How much longer than two round trips the window lasts.
const WINDOW_TIME: f64 = 0.005;
/// What an unmeasured connection is taken for, in bytes per second.
const BANDWIDTH_FIRST: f64 = 12_500_000.0;
const WINDOW_FIRST: u64 = 256 * 1024;
const PERIOD_MIN: Duration = Duration::from_millis(200);
/// For how long the least round trip counts.
const RTT_AGE: Duration = Duration::from_secs(30);
const STALL_MIN: Duration = Duration::from_millis(150);
const STALL_MAX: Duration = Duration::from_secs(1);

/// Whether a connection moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// It carries its share.
    Active,
    /// It was given chunks and acknowledges none: its share goes to the others until it moves again.
    Stalled,
}

/// A chunk on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Its length.
    pub bytes: u64,
    /// When it was handed over.
    pub at: Time,
    /// When it should be acknowledged.
    pub due: Time,
    /// What had been delivered by then, and when that was.
    delivered: u64,
    delivered_at: Time,
    /// When that had been handed over.
    sent_before: Time,
    /// Whether there was nothing more to send.
    limited: bool,
}

/// One connection as its sender sees it.
#[derive(Debug)]
pub struct Path {
    /// Whether it moves.
    pub state: PathState,
    /// Chunks handed over and not acknowledged, in order.
    pub in_flight: VecDeque<Sent>,
    /// Urgent chunks that wait for this connection.
    pub urgent: VecDeque<ChunkId>,
    /// Bytes in `in_flight`.
    pub in_flight_bytes: u64,
    /// Frames acknowledged.
    pub acknowledged: u64,
    /// Bytes handed over, chunks, and those that were sent before elsewhere.
    pub sent_bytes: u64,
    /// Chunks handed over.
    pub sent_chunks: u64,
    /// Chunks that had been sent before, on this or another connection.
    pub resent_chunks: u64,
    delivered: u64,
    delivered_at: Time,
    /// When the last acknowledged chunk was handed over.
    delivered_sent: Time,
    limited: bool,
    rtt_min: Option<(Time, Duration)>,
    /// Since when the window is small for the sake of `rtt_min`.
    probing: Option<Time>,
    rtt: Option<Duration>,
    best: f64,
    best_before: f64,
    period_start: Time,
    recent: [u64; 2],
    recent_start: Time,
}

impl Path {
    /// A fresh connection.
    pub fn new(now: Time) -> Self {
        Self {
            state: PathState::Active,
            in_flight: VecDeque::new(),
            urgent: VecDeque::new(),
            in_flight_bytes: 0,
            acknowledged: 0,
            sent_bytes: 0,
            sent_chunks: 0,
            resent_chunks: 0,
            delivered: 0,
            delivered_at: now,
            delivered_sent: now,
            limited: true,
            rtt_min: None,
            probing: None,
            rtt: None,
            best: 0.0,
            best_before: 0.0,
            period_start: now,
            recent: [0; 2],
            recent_start: now,
        }
    }

    /// Measured bytes per second, if any were.
    pub fn bandwidth(&self) -> Option<f64> {
        let best = self.best.max(self.best_before);
        (best > 0.0).then_some(best)
    }

    fn bandwidth_or_guess(&self) -> f64 {
        self.bandwidth().unwrap_or(BANDWIDTH_FIRST)
    }

    /// Smoothed round trip of pings.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    fn rtt_floor(&self) -> Duration {
        self.rtt_min.map_or(Duration::from_millis(1), |(_, rtt)| rtt)
    }

    /// How long the next chunk should be.
    pub fn chunk_bytes(&self) -> u32 {
        match self.bandwidth() {
            Some(bandwidth) => ((bandwidth * CHUNK_TIME) as u32).clamp(CHUNK_MIN, CHUNK_MAX) & !4095,
            None => CHUNK_FIRST,
        }
    }

    /// How many bytes may be on the connection at once.
    pub fn window(&self) -> u64 {
        match self.bandwidth() {
            Some(_) if self.probing.is_some() => self.chunk_bytes().into(),
            Some(bandwidth) => {
                let time = 2.0 * self.rtt_floor().as_secs_f64() + WINDOW_TIME;
                (bandwidth * time) as u64 + 2 * u64::from(self.chunk_bytes())
            }
            None => WINDOW_FIRST,
        }
    }

    /// Whether another bulk chunk may be handed over.
    pub fn has_room(&self) -> bool {
        self.state == PathState::Active && self.in_flight_bytes < self.window()
    }

    /// How long `more` bytes take to be there, if handed over now.
    pub fn arrival(&self, more: u64) -> Duration {
        let transfer = (self.in_flight_bytes + more) as f64 / self.bandwidth_or_guess();
        Duration::from_secs_f64(transfer.min(3600.0)) + self.rtt.unwrap_or(self.rtt_floor()) / 2
    }

    /// Notes that there was nothing to send although there was room.
    pub fn starved(&mut self) {
        self.limited = true;
    }

    /// Notes a chunk that is being handed over.
    pub fn sent(&mut self, chunk: ChunkId, bytes: u64, again: bool, now: Time) {
        if self.in_flight.is_empty() {
            (self.delivered_at, self.delivered_sent) = (now, now);
        }
        let due = now + self.arrival(bytes) + self.rtt_floor();
        let (delivered, delivered_at, limited) = (self.delivered, self.delivered_at, self.limited);
        let sent_before = self.delivered_sent;
        self.in_flight.push_back(Sent { chunk, bytes, at: now, due, delivered, delivered_at, sent_before, limited });
        self.limited = false;
        self.in_flight_bytes += bytes;
        self.sent_bytes += bytes;
        self.sent_chunks += 1;
        self.resent_chunks += u64::from(again);
    }

    /// Takes the acknowledgement of all frames up to `frames` and returns their chunks; `None` if that cannot be.
    pub fn acknowledge(&mut self, frames: u64, now: Time) -> Option<Vec<ChunkId>> {
        let new = frames.checked_sub(self.acknowledged)?;
        if new > self.in_flight.len() as u64 {
            return None;
        }
        if new == 0 {
            return Some(Vec::new());
        }
        self.acknowledged = frames;
        let sent: Vec<Sent> = self.in_flight.drain(..new as usize).collect();
        let bytes: u64 = sent.iter().map(|sent| sent.bytes).sum();
        self.in_flight_bytes -= bytes;
        self.delivered += bytes;
        self.delivered_at = now;
        self.note_recent(bytes, now);
        if self.state == PathState::Stalled {
            self.state = PathState::Active;
            (self.best, self.best_before) = (0.0, 0.0);
        } else if let Some(last) = sent.last() {
            self.delivered_sent = last.at;
            self.note_rate(last, now);
        }
        Some(sent.into_iter().map(|sent| sent.chunk).collect())
    }

    /// A sample is as long as the bytes took to be handed over, if that took longer than their acknowledgements:
    /// these come in a bunch when the way back or the receiver was held up, and would tell of a rate that is not there
    /// (Cheng and others, *Delivery Rate Estimation*, draft-cheng-iccrg-delivery-rate-estimation).
    fn note_rate(&mut self, last: &Sent, now: Time) {
        let handed_over = last.at.saturating_sub(last.sent_before);
        let acknowledged = now.saturating_sub(last.delivered_at);
        let elapsed = handed_over.max(acknowledged).max(Duration::from_micros(50));
        let rate = (self.delivered - last.delivered) as f64 / elapsed.as_secs_f64();
        if last.limited && rate <= self.best.max(self.best_before) {
            return;
        }
        let period = PERIOD_MIN.max(4 * self.rtt.unwrap_or_default());
        if now.saturating_sub(self.period_start) > period {
            (self.best_before, self.best, self.period_start) = (self.best, 0.0, now);
        }
        self.best = self.best.max(rate);
    }

    /// Takes the answer to a ping.
    pub fn pong(&mut self, rtt: Duration, now: Time) {
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        let asked = now.saturating_sub(rtt);
        match self.rtt_min {
            Some((at, least)) if rtt > least => match self.probing {
                None if now.saturating_sub(at) > RTT_AGE => self.probing = Some(now),
                // What was asked a moment after the beginning saw a connection that had been emptied.
                Some(since) if asked > since + 2 * least => {
                    self.rtt_min = Some((now, rtt));
                    self.probing = None;
                }
                _ => {}
            },
            _ => {
                self.rtt_min = Some((now, rtt));
                self.probing = None;
            }
        }
    }

    /// Whether the oldest chunk has seen no acknowledgement for so long that the connection must be taken as stuck.
    pub fn is_stuck(&self, now: Time) -> bool {
        let Some(head) = self.in_flight.front() else { return false };
        let expected = head.due.saturating_sub(head.at);
        let patience = (4 * expected).clamp(STALL_MIN, STALL_MAX);
        now.saturating_sub(head.at.max(self.delivered_at)) > patience
    }

    /// Bytes acknowledged per second of late, for the share.
    pub fn recent(&self, now: Time) -> u64 {
        match now.saturating_sub(self.recent_start) {
            age if age > Duration::from_secs(1) => 0,
            age if age > Duration::from_millis(500) => self.recent[0],
            _ => self.recent[0] + self.recent[1],
        }
    }

    fn note_recent(&mut self, bytes: u64, now: Time) {
        let age = now.saturating_sub(self.recent_start);
        if age > Duration::from_millis(500) {
            self.recent = [0, if age > Duration::from_secs(1) { 0 } else { self.recent[0] }];
            self.recent_start = now;
        }
        self.recent[0] += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_that_come_in_a_bunch_do_not_look_like_bandwidth() {
        let ms = |n: u64| Duration::from_millis(n);
        let mut path = Path::new(ms(0));
        // 16 KiB each 2 ms, 8 MiB per second; nothing is heard for 100 ms at a time, then everything almost at once.
        for chunk in 0..500 {
            path.sent(chunk, 16 << 10, false, ms(2 * chunk));
            if chunk % 50 == 49 {
                path.acknowledge(chunk - 24, ms(2 * chunk)).expect("frames that were sent");
            } else if chunk % 50 == 0 && chunk > 0 {
                path.acknowledge(chunk + 1, ms(2 * chunk + 1)).expect("frames that were sent");
            }
        }
        let measured = path.bandwidth().expect("it was measured") / f64::from(8 << 20);
        assert!((0.5..1.5).contains(&measured), "{measured}");
    }
}
