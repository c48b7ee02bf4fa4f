//! Where the time of a move went, step by step: told in the machine's events.

use std::fmt;
use std::time::Duration;

use crate::clock::monotonic;

/// A stopwatch whose laps have names.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    begun: Duration,
    last: Duration,
    laps: Vec<(&'static str, Duration)>,
}

impl Timeline {
    pub fn start() -> Self {
        Self::since(monotonic())
    }

    /// One that runs since a moment in the past.
    pub fn since(begun: Duration) -> Self {
        Self { begun, last: begun, laps: Vec::new() }
    }

    /// How long ago the last step ended.
    pub fn ended(&self) -> Duration {
        monotonic().saturating_sub(self.last)
    }

    /// A step has ended.
    pub fn lap(&mut self, name: &'static str) {
        let now = monotonic();
        self.laps.push((name, now.saturating_sub(self.last)));
        self.last = now;
    }
}

/// `12.3 ms (copy taken 0.4, devices 8.1)`
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.1} ms", ms(self.last.saturating_sub(self.begun)))?;
        let laps: Vec<String> = self.laps.iter().map(|(name, took)| format!("{name} {:.1}", ms(*took))).collect();
        if laps.is_empty() { Ok(()) } else { write!(f, " ({})", laps.join(", ")) }
    }
}
