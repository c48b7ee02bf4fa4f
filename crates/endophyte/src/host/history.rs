//! What an agent remembers to tell: events, pauses, rates.

use std::collections::VecDeque;
use std::time::Duration;

use mycelium_api::env::Env;

use super::primary::{Captured, Sent};
use super::status::{Event, Status, quantile};
use super::timeline::Timeline;
use crate::clock::monotonic;
use crate::group::Start;

/// Events that are kept.
const EVENTS: usize = 32;
/// How far back pauses and rates look.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples that are kept at most.
const SAMPLES: usize = 4096;

/// How the guest came here.
#[derive(Debug, Clone, Default)]
pub(super) struct Takeover {
    /// The machine.
    pub vm: String,
    /// From which epoch it goes on.
    pub epoch: u64,
    /// Who had it, if that is known.
    pub of: Option<String>,
    /// When that host was heard last.
    pub heard: Duration,
    /// It handed the machine over.
    pub planned: bool,
    /// An operator forced it.
    pub forced: bool,
    /// Output did not wait for its epoch.
    pub best_effort: bool,
}

impl Takeover {
    /// One sentence, when the guest runs here since `ran`.
    fn sentence(&self, ran: Duration, now: &str) -> String {
        let Self { vm, epoch, .. } = self;
        let of = self.of.as_deref().unwrap_or("the former host");
        let lost = match (self.forced, self.best_effort) {
            (true, _) => format!("forced: what {of} sent since that epoch, if anything, is contradicted"),
            (false, true) => {
                format!("best effort: what {of} sent since that epoch may be contradicted, and what it heard is lost")
            }
            (false, false) => "nothing acknowledged was lost".to_owned(),
        };
        if self.planned {
            return format!("{vm} was handed over by {of} at epoch {epoch}; nothing acknowledged was lost; {now}");
        }
        let ms = ran.saturating_sub(self.heard).as_millis();
        format!("{vm} took over at epoch {epoch}, {ms} ms after the last sign of {of}; {lost}; {now}")
    }
}

/// The memory of an agent.
pub(super) struct History {
    clock: Env,
    events: VecDeque<Event>,
    /// When each checkpoint of late was taken, and for how many milliseconds the guest stood still.
    pauses: VecDeque<(Duration, f64)>,
    /// Epochs that are not released yet, and when they were sealed.
    sealed: VecDeque<(u64, Duration)>,
    release_ms: VecDeque<f64>,
    released: u64,
    last: u64,
    dirty_bytes: u64,
    sent_bytes: u64,
    disk_bytes: u64,
    copies_bytes: u64,
    starting: bool,
    promotions: u64,
    /// How the guest that goes on came here; nothing for one that boots.
    takeover: Option<Takeover>,
    /// When the guest went on here; nothing once its output was seen to leave.
    ran: Option<Duration>,
}

impl History {
    pub fn new(clock: Env) -> Self {
        Self {
            clock,
            events: VecDeque::new(),
            pauses: VecDeque::new(),
            sealed: VecDeque::new(),
            release_ms: VecDeque::new(),
            released: 0,
            last: 0,
            dirty_bytes: 0,
            sent_bytes: 0,
            disk_bytes: 0,
            copies_bytes: 0,
            starting: false,
            promotions: 0,
            takeover: None,
            ran: None,
        }
    }

    /// Something worth telling happened.
    pub fn note(&mut self, text: &str) {
        tracing::info!("{text}");
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { time: self.clock.now().to_string(), text: text.to_owned() });
    }

    /// The guest is about to go on here.
    pub fn promoted(&mut self, term: u64, from: Start, takeover: Takeover) {
        self.starting = true;
        self.takeover = matches!(from, Start::Promoted { .. }).then_some(takeover);
        match from {
            Start::Promoted { from } => {
                self.promotions += 1;
                self.note(&format!("takes over in term {term} at epoch {}", from.epoch));
            }
            Start::Cold => self.note(&format!("starts the guest in term {term}")),
        }
    }

    /// The guest goes on here.
    pub fn started(&mut self, start: &Timeline) {
        if std::mem::take(&mut self.starting) {
            self.ran = Some(monotonic().saturating_sub(start.ended()));
            let ago = start.ended().as_secs_f64() * 1e3;
            self.note(&format!("the guest runs here since {ago:.1} ms; its start took {start}"));
        }
    }

    /// Whether the guest went on here, and was not heard yet.
    pub fn waits_to_open(&self) -> bool {
        self.ran.is_some()
    }

    /// What the guest says may leave, while it is replicated as `now` says.
    pub fn opened(&mut self, now: &str) {
        if let Some(ran) = self.ran.take() {
            let ms = monotonic().saturating_sub(ran).as_secs_f64() * 1e3;
            self.note(&format!("what the guest says may leave, {ms:.1} ms after it went on"));
            if let Some(takeover) = self.takeover.take() {
                self.note(&takeover.sentence(ran, now));
            }
        }
    }

    pub fn captured(&mut self, captured: &Captured) {
        let timing = &captured.capture.timing;
        self.last = captured.capture.epoch;
        self.sealed.push_back((captured.capture.epoch, captured.at));
        push(&mut self.pauses, (captured.at, timing.total.as_secs_f64() * 1e3));
    }

    pub fn sent(&mut self, sent: &Sent) {
        self.dirty_bytes += sent.dirty_bytes;
        self.sent_bytes += sent.frame_bytes;
        self.disk_bytes += sent.disk_bytes;
        self.copies_bytes = sent.copies_bytes;
    }

    /// Epochs are released; says how long the last of them took since it was sealed.
    pub fn released(&mut self, through: u64) -> Option<Duration> {
        self.released = through;
        let now = monotonic();
        let mut last = None;
        while let Some((_, at)) = self.sealed.front().copied().filter(|(epoch, _)| *epoch <= through) {
            self.sealed.pop_front();
            push(&mut self.release_ms, now.saturating_sub(at).as_secs_f64() * 1e3);
            last = Some(now.saturating_sub(at));
        }
        last
    }

    /// Writes what is known into a status.
    pub fn fill(&self, status: &mut Status) {
        let now = monotonic();
        let late = self.pauses.iter().filter(|(at, _)| now.saturating_sub(*at) < WINDOW);
        let mut pauses: Vec<f64> = late.clone().map(|(_, ms)| *ms).collect();
        status.pause.recent_ms.clone_from(&pauses);
        let span = late.clone().next().map_or(0.0, |(at, _)| now.saturating_sub(*at).as_secs_f64());
        status.epochs.sealed = self.last;
        status.epochs.released = self.released;
        status.epochs.per_second = if span > 0.0 { pauses.len() as f64 / span } else { 0.0 };
        status.epochs.release_ms = quantile(&mut self.release_ms.iter().copied().collect::<Vec<_>>(), 0.5);
        status.pause.p50_ms = quantile(&mut pauses, 0.5);
        status.pause.p99_ms = quantile(&mut pauses, 0.99);
        status.pause.max_ms = quantile(&mut pauses, 1.0);
        status.traffic.dirty_bytes = self.dirty_bytes;
        status.traffic.sent_bytes = self.sent_bytes;
        status.traffic.disk_bytes = self.disk_bytes;
        status.buffer.page_copies_bytes = self.copies_bytes;
        status.promotions = self.promotions;
        status.events = self.events.iter().cloned().collect();
    }
}

fn push<T>(samples: &mut VecDeque<T>, sample: T) {
    if samples.len() == SAMPLES {
        samples.pop_front();
    }
    samples.push_back(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_is_told_in_one_sentence_that_says_what_may_be_lost() {
        let heard = Duration::from_millis(5_000);
        let of = Some("a".to_owned());
        let takeover = Takeover { vm: "legacy".into(), epoch: 18234, of, heard, ..Takeover::default() };
        let told = |takeover: Takeover| takeover.sentence(Duration::from_millis(5_096), "now replicating to c");
        assert_eq!(
            told(takeover.clone()),
            "legacy took over at epoch 18234, 96 ms after the last sign of a; nothing acknowledged was lost; now replicating \
             to c"
        );
        let best_effort = told(Takeover { best_effort: true, ..takeover.clone() });
        assert!(best_effort.contains("best effort: what a sent since that epoch may be contradicted"), "{best_effort}");
        assert!(told(Takeover { forced: true, ..takeover.clone() }).contains("forced: what a sent since"));
        let planned = told(Takeover { planned: true, ..takeover });
        assert!(planned.starts_with("legacy was handed over by a at epoch 18234; nothing"), "{planned}");
    }
}
