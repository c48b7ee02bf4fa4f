//! Stopping a container: hook, signal, grace, kill.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::hook;
use super::probe::Target;
use crate::shim::protocol::Request;

/// What a container gets at the least, unless it is to be killed at once.
const GRACE_SECS_MIN: u64 = 2;
/// A kill is repeated: the container may just have been about to start.
const KILL_AGAIN: Duration = Duration::from_secs(1);
const KILLS_MAX: usize = 30;

/// Asks the container to stop and kills it when its time is over. The worker ends this task when the container has ended.
pub async fn stop(target: &Target, signal: i32, grace_secs: i64, with_hook: bool, hook_failed: impl Fn(String)) {
    let begun = Instant::now();
    let grace = Duration::from_secs(u64::try_from(grace_secs).unwrap_or(0));
    let before = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(handler) = before.filter(|_| with_hook && !grace.is_zero()) {
        match tokio::time::timeout(grace, hook::run(handler, target, grace)).await {
            Ok(Ok(())) => {}
            Ok(Err(text)) => hook_failed(text),
            Err(_) => hook_failed("it took longer than the grace period".into()),
        }
    }
    let end = (begun + grace).max(Instant::now() + Duration::from_secs(GRACE_SECS_MIN));
    // A shim that does not answer is lost; the worker learns of that by itself.
    let send = |signal: i32| target.shim_signal(signal);
    send(signal).await;
    tokio::time::sleep_until(end).await;
    for _ in 0..KILLS_MAX {
        send(Signal::SIGKILL as i32).await;
        tokio::time::sleep(KILL_AGAIN).await;
    }
}

impl Target {
    async fn shim_signal(&self, signal: i32) {
        let request = Request::Signal { id: self.id.clone(), signal };
        if let Err(error) = self.shim.ask(&request).await {
            tracing::debug!(%error, signal, "cannot signal a container");
        }
    }
}
