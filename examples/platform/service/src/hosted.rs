//! The hosted services: each is a task with a heartbeat; one that has not beaten for a while is unhealthy.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Time between two heartbeats.
const BEAT: Duration = Duration::from_millis(500);
/// A service that was silent for longer is unhealthy.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Share of healthy services, in percent, from which on the platform counts as healthy.
pub const HEALTHY_PERCENT_MIN: f64 = 80.0;

/// All hosted services.
pub struct Platform {
    services: BTreeMap<String, Mutex<Hosted>>,
    stopping: AtomicBool,
}

struct Hosted {
    task: JoinHandle<()>,
    beat: watch::Receiver<Option<Instant>>,
}

/// The answer to `GET /health`.
#[derive(Serialize)]
pub struct Health {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// Healthy services in percent of all.
    pub health_percentage: f64,
    /// State of each service: `healthy`, `starting`, `stopped`.
    pub services: BTreeMap<String, &'static str>,
}

impl Hosted {
    fn start() -> Self {
        let (sender, beat) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(BEAT);
            loop {
                let now = ticks.tick().await;
                sender.send_replace(Some(now));
            }
        });
        Self { task, beat }
    }

    fn state(&self) -> &'static str {
        match *self.beat.borrow() {
            _ if self.task.is_finished() => "stopped",
            None => "starting",
            Some(beat) if beat.elapsed() > SILENCE_MAX => "stalled",
            Some(_) => "healthy",
        }
    }
}

impl Platform {
    /// Starts the named services.
    pub fn start<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let services = names.map(|name| (name.to_owned(), Mutex::new(Hosted::start()))).collect();
        Self { services, stopping: AtomicBool::new(false) }
    }

    /// How many services are hosted.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// The state of everything now.
    pub fn health(&self) -> Health {
        let services: BTreeMap<String, &'static str> =
            self.services.iter().map(|(name, hosted)| (name.clone(), lock(hosted).state())).collect();
        let healthy = services.values().filter(|state| **state == "healthy").count();
        let health_percentage =
            if services.is_empty() { 100.0 } else { 100.0 * healthy as f64 / services.len() as f64 };
        let status = if health_percentage >= HEALTHY_PERCENT_MIN { "healthy" } else { "unhealthy" };
        Health { status, health_percentage, services }
    }

    /// Whether requests should be sent here.
    pub fn ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
            && self.services.values().all(|hosted| lock(hosted).state() != "starting")
    }

    /// Stops or starts a service; false if there is none of that name.
    pub fn set(&self, name: &str, running: bool) -> bool {
        let Some(hosted) = self.services.get(name) else { return false };
        let mut hosted = lock(hosted);
        hosted.task.abort();
        if running {
            *hosted = Hosted::start();
        }
        true
    }

    /// From now on `/ready` says no.
    pub fn begin_shutdown(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn lock(hosted: &Mutex<Hosted>) -> std::sync::MutexGuard<'_, Hosted> {
    hosted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_of_ten_stopped_is_healthy_three_is_not() {
        let names: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
        let platform = Platform::start(names.iter().map(String::as_str));
        assert!(!platform.ready(), "nothing has started yet");
        tokio::time::sleep(BEAT).await;
        assert!(platform.ready());
        for (stopped, expected) in [("s0", 90.0), ("s1", 80.0), ("s2", 70.0)] {
            assert!(platform.set(stopped, false));
            tokio::time::sleep(BEAT).await;
            let health = platform.health();
            assert_eq!(health.health_percentage, expected);
            assert_eq!(health.status == "healthy", expected >= HEALTHY_PERCENT_MIN);
            assert_eq!(health.services[stopped], "stopped");
        }
        assert!(platform.set("s2", true));
        tokio::time::sleep(BEAT).await;
        assert_eq!(platform.health().status, "healthy");
        assert!(!platform.set("unknown", true));
    }
}
