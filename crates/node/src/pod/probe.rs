//! Probes: when to ask, what to make of the answers, and asking.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::time::Instant;

use super::{exec, http};
use crate::client::Shim;

/// Which of a container's three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Has it started? Until then the others rest.
    Startup,
    /// Does it still live?
    Liveness,
    /// Can it serve?
    Readiness,
}

impl ProbeKind {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Counts equal answers in a row, and says when the probe's result changes.
#[derive(Debug, Default)]
pub struct Counter {
    last: Option<bool>,
    run: i32,
}

impl Counter {
    /// Takes an answer; returns the result once as many as the threshold agree.
    pub fn push(&mut self, good: bool, probe: &Probe) -> Option<bool> {
        if self.last == Some(good) {
            self.run = self.run.saturating_add(1);
        } else {
            (self.last, self.run) = (Some(good), 1);
        }
        let threshold = if good { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        (self.run >= threshold).then_some(good)
    }
}

/// Who is asked.
#[derive(Clone)]
pub struct Target {
    /// The pod's shim.
    pub shim: Shim,
    /// The run's id.
    pub id: String,
    /// The pod's address.
    pub host: String,
    /// The network from which it is asked, where that is not this process's.
    pub network: Option<Arc<OwnedFd>>,
    /// The container.
    pub container: Container,
}

impl Target {
    /// The network from which it is asked.
    pub fn from(&self) -> http::From<'_> {
        self.network.as_deref()
    }
}

/// What a probe has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It failed, for this reason: worth an event.
    Failed(String),
    /// The result, as often as it is confirmed.
    Result(bool),
}

/// Waits between two early looks at a container that has just started.
const EARLY_FIRST: Duration = Duration::from_millis(25);

/// Asks again and again, until dropped.
pub async fn watch(kind: ProbeKind, probe: Probe, target: Target, already: Duration, tell: impl Fn(Told)) {
    let secs = |value: Option<i32>, default: u64| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
    let period = Duration::from_secs(secs(probe.period_seconds, 10).max(1));
    let timeout = Duration::from_secs(secs(probe.timeout_seconds, 1).max(1));
    let delay = Duration::from_secs(secs(probe.initial_delay_seconds, 0)).saturating_sub(already);
    tokio::time::sleep(delay).await;
    let mut counter = Counter::default();
    if kind != ProbeKind::Liveness && probe.exec.is_none() && already < period {
        early(&probe, &target, period, timeout).await;
    }
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next).await;
        next += period;
        let answer = ask(&probe, &target, timeout).await;
        let good = answer.is_ok();
        if let Err(reason) = answer {
            tell(Told::Failed(reason));
        }
        if let Some(result) = counter.push(good, &probe) {
            tell(Told::Result(result));
        }
        next = next.max(Instant::now());
    }
}

/// A program that has just started is usually up long before the first period is over: looks now and then, with growing
/// pauses, whether it answers at all, so that the first real probe comes when it can succeed. Nothing is counted here.
async fn early(probe: &Probe, target: &Target, period: Duration, timeout: Duration) {
    let end = Instant::now() + period;
    let mut pause = EARLY_FIRST;
    while Instant::now() + pause < end {
        if ask(probe, target, timeout).await.is_ok() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}

async fn ask(probe: &Probe, target: &Target, timeout: Duration) -> http::Answer {
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        return match exec::run(&target.shim, &target.id, &command, timeout).await {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => Err(outcome.output),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &probe.http_get {
        let port = http::port(&target.container, &action.port)?;
        return http::get(action, &target.host, port, timeout, target.from()).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let port = http::port(&target.container, &action.port)?;
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.host);
        return http::tcp(host, port, timeout, target.from()).await;
    }
    match &probe.grpc {
        Some(action) => http::grpc(action, &target.host, timeout, target.from()).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_change_at_their_thresholds() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(1), ..Probe::default() };
        let mut counter = Counter::default();
        let answers = [false, false, true, false, true, false, false, false];
        let results: Vec<Option<bool>> = answers.iter().map(|good| counter.push(*good, &probe)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(results, [None, no, yes, None, yes, None, no, no]);
    }
}
