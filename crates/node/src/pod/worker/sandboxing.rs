//! The worker's part in the life of its sandbox: starting it, taking up what runs in it, stopping it, losing it.

use jiff::SignedDuration;
use tokio::time::Instant;

use super::super::handle::Message;
use super::super::model::{Busy, Life, Run, SandboxView};
use super::super::sandbox::{SandboxError, Up};
use super::super::{disk, resize, sandbox};
use super::{REFRESH, SANDBOX_RETRY_SECS_MAX, Worker, explain, follow};
use crate::client::Shim;
use crate::events::Kind;
use crate::shim::protocol::Request;
use crate::volumes;

impl Worker {
    pub(super) fn start_sandbox(&mut self) {
        self.sandbox = SandboxView::Starting;
        let pod = resize::with(&self.pod, &self.resizing.allocated);
        let (ctx, dir, tokens) = (self.ctx.clone(), self.dir.clone(), self.tokens.clone());
        let (attempt, tell) = (self.sandbox_attempt, self.tell.clone());
        (self.ctx.watch_objects)();
        tokio::spawn(async move {
            let result = sandbox::start(&ctx, &pod, &dir, attempt, &tokens).await;
            let _ = tell.send(Message::Sandbox(Box::new(result)));
        });
    }

    pub(super) fn sandbox_up(&mut self, up: Up) {
        self.pid = up.pid;
        self.sandbox = SandboxView::Ready { ips: up.ips };
        self.refresh_at =
            volumes::of(&self.pod).iter().any(|v| v.host_path.is_none()).then(|| Instant::now() + REFRESH);
        if !up.adopted {
            // Whatever ran in an earlier sandbox has gone with it.
            self.lose_all();
        }
        if up.adopted {
            self.take_up_runs();
        }
        let tell = self.tell.clone();
        self.watch = Some(tokio::spawn(follow(up.watch, up.pid, tell)).abort_handle());
    }

    /// Goes on where an earlier engine stopped: probes, hooks that had not ended, runs that were about to start.
    pub(super) fn take_up_runs(&mut self) {
        let runs: Vec<(String, Run)> =
            self.containers.iter().filter_map(|(name, view)| Some((name.clone(), view.current.clone()?))).collect();
        for (name, run) in runs {
            match run.life {
                Life::Exited(_) => {}
                Life::Running(_) if run.record.hook_done => self.watch_probes(&name),
                Life::Running(_) => {
                    self.set_busy(&name, Busy::Starting);
                    self.run_hook(&name, &run.record);
                }
                Life::Created => {
                    self.set_busy(&name, Busy::Starting);
                    let (shim, tell, record) = (Shim::at(&self.dir), self.tell.clone(), run.record);
                    tokio::spawn(async move {
                        let id = record.id.clone();
                        let _ = match shim.ask(&Request::Start { id: id.clone() }).await {
                            Ok(()) => tell.send(Message::Started(name, Ok(record))),
                            Err(_) => tell.send(Message::Unmade(name, id)),
                        };
                    });
                }
            }
        }
    }

    pub(super) fn set_busy(&mut self, name: &str, busy: Busy) {
        if let Some(view) = self.containers.get_mut(name) {
            view.busy = Some(busy);
        }
    }

    /// Forgets a run that never was: the plan will ask for it again.
    pub(super) fn unmade(&mut self, name: &str, id: &str) {
        let Some(view) = self.containers.get_mut(name) else { return };
        if let Some(run) = view.current.take_if(|run| run.record.id == id) {
            disk::forget(&self.dir, &run.record);
            view.current = view.previous.take();
            view.busy = None;
        }
    }

    pub(super) fn sandbox_failed(&mut self, error: &SandboxError) {
        let delay = match self.sandbox {
            SandboxView::Failed { delay_secs, .. } => delay_secs,
            _ => self.retry_delay(),
        };
        let text = explain(error);
        match error {
            SandboxError::Mount(_) => self.event(None, Kind::Warning, "FailedMount", text),
            _ => {
                let text = format!("Failed to create pod sandbox: {text}");
                self.event(None, Kind::Warning, "FailedCreatePodSandBox", text);
            }
        }
        let retry_at = self.ctx.env.now() + SignedDuration::from_secs(i64::from(delay));
        self.sandbox = SandboxView::Failed { retry_at, delay_secs: delay };
        self.sandbox_attempt += 1;
    }

    /// The first failures are followed by short waits: what is missing is often just being made.
    pub(super) fn retry_delay(&self) -> u32 {
        (1 << self.sandbox_attempt.min(7)).min(SANDBOX_RETRY_SECS_MAX)
    }

    pub(super) fn stop_sandbox(&mut self) {
        self.sandbox = SandboxView::Stopping;
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        let (ctx, dir, uid, cgroup) = (self.ctx.clone(), self.dir.clone(), self.uid.clone(), self.cgroup.clone());
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let result = sandbox::stop(&ctx, &dir, &uid, &cgroup).await;
            let _ = tell.send(Message::SandboxStopped(result));
        });
    }

    pub(super) fn sandbox_stopped(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.sandbox = SandboxView::Absent;
                self.pid = 0;
                self.refresh_at = None;
                self.lose_all();
                self.forget_volumes();
            }
            Err(error) => {
                self.event(None, Kind::Warning, "FailedKillPod", format!("error killing pod: {error}"));
                let retry_at = self.ctx.env.now() + SignedDuration::from_secs(1);
                self.sandbox = SandboxView::Failed { retry_at, delay_secs: 1 };
            }
        }
    }

    /// Every run that nobody saw ending has ended now.
    pub(super) fn lose_all(&mut self) {
        let now = self.ctx.env.now();
        let names: Vec<String> = self.containers.iter().filter(|(_, v)| v.alive()).map(|(n, _)| n.clone()).collect();
        for name in names {
            if let Some(run) = self.containers.get_mut(&name).and_then(|v| v.current.as_mut()) {
                let fresh = disk::load(&self.dir).into_iter().find(|r| r.record.id == run.record.id);
                run.life = match fresh.map(|r| r.life) {
                    Some(exit @ Life::Exited(_)) => exit,
                    _ => Life::Exited(disk::lost(run.running(), now)),
                };
            }
            self.ended(&name);
        }
    }

    pub(super) fn shim_lost(&mut self, pid: i32) {
        if pid != self.pid || !matches!(self.sandbox, SandboxView::Ready { .. }) {
            return;
        }
        let text = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.event(None, Kind::Normal, "SandboxChanged", text);
        self.sandbox_attempt += 1;
        self.stop_sandbox();
    }
}
