//! The wall clock of a run. It goes on from one life of the process to the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mycelium_api::env::Env;
use tokio::time::Instant;

use crate::random::Random;

/// Virtual time since the start of the run.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    before: Duration,
    started: Option<Instant>,
}

impl Clock {
    /// A runtime has started.
    pub fn start(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).started = Some(Instant::now());
    }

    /// It is about to be dropped.
    pub fn stop(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = inner.started.take() {
            inner.before += started.elapsed();
        }
    }

    /// Time since the start of the run.
    pub fn elapsed(&self) -> Duration {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.before + inner.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// The time of day: runs begin on 1 January 2026.
    pub fn now(&self) -> Timestamp {
        let start = Timestamp::constant(1_767_225_600, 0);
        start + SignedDuration::from_millis(self.elapsed().as_millis() as i64)
    }

    /// The environment of a process.
    pub fn env(&self, random: &Random) -> Env {
        let (clock, random) = (self.clone(), random.clone());
        Env::new(move || clock.now(), move || random.next())
    }
}
