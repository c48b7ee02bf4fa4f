//! The worker's part in the life of its containers: starting, watching, hooks, probes, stopping, what their ends mean.

use std::time::Duration;

use jiff::SignedDuration;

use super::super::handle::Message;
use super::super::model::{
    BACKOFF_SECS_FIRST, BACKOFF_SECS_MAX, Busy, Life, Record, Role, Run, SandboxView, Unhealthy, Waiting, describe,
    init_containers, is_sidecar,
};
use super::super::probe::{ProbeKind, Target, Told};
use super::super::start::{Job, StartError};
use super::super::{disk, hook, probe, start, stop};
use super::Worker;
use crate::client::Shim;
use crate::events::Kind;
use crate::shim::protocol::{Request, Snapshot};

impl Worker {
    pub(super) fn start_container(&mut self, name: &str, attempt: u32, backoff_secs: u32) {
        let Some((mut container, role)) = self.container(name) else { return };
        if let Some(amounts) = self.resizing.allocated.get(name) {
            amounts.set(&mut container);
        }
        let SandboxView::Ready { ips } = &self.sandbox else { return };
        let job = Job {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            container,
            role,
            target: self.target_of(name),
            attempt,
            backoff_secs,
            dir: self.dir.clone(),
            pid: self.pid,
            ips: if ips.is_empty() { self.ctx.host.ips.clone() } else { ips.clone() },
        };
        let view = self.containers.entry(name.to_owned()).or_default();
        view.busy = Some(Busy::Starting);
        let (name, tell) = (name.to_owned(), self.tell.clone());
        tokio::spawn(async move {
            let made = |record: Record| {
                let _ = tell.send(Message::Made(record));
            };
            let result = start::start(&job, made).await;
            let _ = tell.send(Message::Started(name, result));
        });
    }

    pub(super) fn made(&mut self, record: Record) {
        let has_startup = self.container(&record.name).is_some_and(|(c, _)| c.startup_probe.is_some());
        let view = self.containers.entry(record.name.clone()).or_default();
        // Two runs are kept: this one and the one before.
        if let Some(old) = view.previous.take() {
            disk::forget(&self.dir, &old.record);
        }
        view.previous = view.current.take();
        view.started = !has_startup;
        view.ready = false;
        view.waiting = None;
        view.unhealthy = None;
        view.current = Some(Run { record, life: Life::Created });
    }

    pub(super) fn started(&mut self, name: &str, result: Result<Record, StartError>) {
        let now = self.ctx.env.now();
        let Some(view) = self.containers.get_mut(name) else { return };
        if view.busy == Some(Busy::Starting) {
            view.busy = None;
        }
        match result {
            Ok(record) if !record.hook_done => {
                view.busy = view.busy.or(Some(Busy::Starting));
                self.run_hook(name, &record);
            }
            Ok(_) => {}
            Err(StartError::Failed(record)) => {
                let record = *record;
                let life = disk::life(&self.dir, &record, None);
                view.current = Some(Run { record, life });
                self.ended(name);
            }
            Err(StartError::Wait { reason, message }) => {
                let delay_secs = match &view.waiting {
                    Some(old) if old.reason == reason => (old.delay_secs * 2).min(BACKOFF_SECS_MAX),
                    _ => BACKOFF_SECS_FIRST,
                };
                // What the pod refers to may appear at any moment; a registry is asked less and less often.
                let delay_secs = if reason == "ErrImagePull" { delay_secs } else { BACKOFF_SECS_FIRST };
                let retry_at = now + SignedDuration::from_secs(i64::from(delay_secs));
                view.waiting = Some(Waiting { reason: reason.into(), message, retry_at, since: now, delay_secs });
                if reason == "ErrImagePull" {
                    let image = self.container(name).and_then(|(c, _)| c.image).unwrap_or_default();
                    self.event(Some(name), Kind::Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
                }
            }
        }
    }

    pub(super) fn target(&self, name: &str) -> Option<Target> {
        let (container, _) = self.container(name)?;
        let run = self.containers.get(name)?.current.as_ref()?;
        let host = match &self.sandbox {
            SandboxView::Ready { ips } => ips.first().or(self.ctx.host.ips.first()),
            _ => None,
        };
        let host = host.cloned().unwrap_or_else(|| "127.0.0.1".into());
        let (shim, network) = (Shim::at(&self.dir), self.ctx.network.namespace());
        Some(Target { shim, id: run.record.id.clone(), host, network, container })
    }

    pub(super) fn run_hook(&mut self, name: &str, record: &Record) {
        let Some(target) = self.target(name).filter(|t| t.id == record.id) else { return };
        let handler = target.container.lifecycle.clone().and_then(|l| l.post_start).unwrap_or_default();
        let (name, tell) = (name.to_owned(), self.tell.clone());
        let task = tokio::spawn({
            let name = name.clone();
            async move {
                /// The kubelet sets no limit; a day is as good as none, and ends.
                const HOOK_TIMEOUT: Duration = Duration::from_secs(86_400);
                let result = hook::run(&handler, &target, HOOK_TIMEOUT).await;
                let _ = tell.send(Message::Hooked(name, result));
            }
        });
        self.tasks.entry(name).or_default().push(task.abort_handle());
    }

    pub(super) fn hooked(&mut self, name: &str, result: Result<(), String>) {
        let Some(view) = self.containers.get_mut(name) else { return };
        if view.busy == Some(Busy::Starting) {
            view.busy = None;
        }
        let Some(run) = view.current.as_mut() else { return };
        match result {
            Ok(()) => {
                run.record.hook_done = true;
                let _ = disk::save(&self.dir, &run.record);
                self.watch_probes(name);
            }
            Err(reason) => {
                tracing::info!(pod = describe(&self.pod), container = name, reason, "the hook after the start failed");
                view.unhealthy = Some(Unhealthy { message: "FailedPostStartHook".into(), grace_secs: None });
                self.event(Some(name), Kind::Warning, "FailedPostStartHook", "PostStartHook failed".into());
            }
        }
    }

    pub(super) fn kill(&mut self, name: &str, grace_secs: i64, message: Option<String>) {
        let Some(target) = self.target(name) else { return };
        let host_message = message.unwrap_or_else(|| format!("Stopping container {name}"));
        self.event(Some(name), Kind::Normal, "Killing", host_message);
        self.stop_tasks(name);
        self.spawn_stop(name, target, grace_secs, true);
    }

    pub(super) fn spawn_stop(&mut self, name: &str, target: Target, grace_secs: i64, with_hook: bool) {
        let Some(view) = self.containers.get_mut(name) else { return };
        view.busy = Some(Busy::Stopping);
        let signal = view.current.as_ref().map_or(15, |run| run.record.stop_signal);
        let (tell, owned, pod, ctx) = (self.tell.clone(), name.to_owned(), self.pod.clone(), self.ctx.clone());
        let task = tokio::spawn(async move {
            let failed = |text: String| {
                tracing::info!(container = owned, text, "the hook before the stop failed");
                let about = Some((owned.as_str(), Role::Ordinary));
                ctx.events.pod(&pod, about, Kind::Warning, "FailedPreStopHook", "PreStopHook failed".into());
            };
            stop::stop(&target, signal, grace_secs, with_hook, failed).await;
            let _ = tell.send(Message::Stopped(owned.clone()));
        });
        if let Some((old, _)) = self.stops.insert(name.to_owned(), (task.abort_handle(), grace_secs)) {
            old.abort();
        }
    }

    /// The grace a deletion allows may have become shorter.
    pub(super) fn hurry(&mut self) {
        let Some(spec) = self.pod.spec.clone() else { return };
        let deleted = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        let grace = super::super::plan::grace_secs(&self.view(), &spec);
        let late: Vec<String> =
            self.stops.iter().filter(|(_, (_, old))| deleted && grace < *old).map(|(name, _)| name.clone()).collect();
        for name in late {
            if let Some(target) = self.target(&name) {
                self.spawn_stop(&name, target, grace, false);
            }
        }
    }

    pub(super) fn snapshot(&mut self, snapshot: Snapshot) {
        let mut ended = Vec::new();
        let mut running = Vec::new();
        for state in &snapshot.containers {
            let found = self.containers.iter_mut().find_map(|(name, view)| {
                view.current.as_mut().filter(|run| run.record.id == state.id).map(|run| (name.clone(), run))
            });
            let Some((name, run)) = found else { continue };
            let was_running = run.running().is_some();
            if run.exit().is_some() {
                continue;
            }
            run.life = disk::life(&self.dir, &run.record, Some(state));
            match run.life {
                Life::Exited(_) => ended.push(name),
                Life::Running(_) if !was_running => running.push(name),
                _ => {}
            }
        }
        for name in ended {
            self.last_words(&name);
            self.ended(&name);
        }
        for name in running {
            self.watch_probes(&name);
        }
    }

    pub(super) fn last_words(&mut self, name: &str) {
        let fallback = self
            .container(name)
            .is_some_and(|(c, _)| c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
        let Some(run) = self.containers.get_mut(name).and_then(|v| v.current.as_mut()) else { return };
        if let Life::Exited(exit) = &mut run.life
            && fallback
            && exit.code != 0
            && exit.message.is_empty()
        {
            exit.message = disk::log_tail(&self.dir, name, run.record.attempt);
        }
    }

    /// What follows a run's end.
    pub(super) fn ended(&mut self, name: &str) {
        self.stop_tasks(name);
        if let Some((task, _)) = self.stops.remove(name) {
            task.abort();
        }
        let sidecar_or_other = self.container(name);
        let Some(view) = self.containers.get_mut(name) else { return };
        if view.busy == Some(Busy::Stopping) || view.current.as_ref().is_some_and(|run| !run.record.hook_done) {
            view.busy = None;
        }
        view.unhealthy = None;
        view.ready = false;
        let Some(run) = &view.current else { return };
        let id = run.record.id.clone();
        let shim = Shim::at(&self.dir);
        tokio::spawn(async move { shim.ask(&Request::Remove { id }).await });
        let again = run.exit().is_some_and(|exit| {
            let spec = self.pod.spec.as_ref();
            sidecar_or_other.is_some_and(|(c, role)| {
                spec.is_some_and(|s| super::super::model::restarts(s, &c, role == Role::Init, exit.code))
            })
        });
        if again
            && !run.record.resized
            && run.record.backoff_secs > 0
            && !self.gone
            && self.pod.metadata.deletion_timestamp.is_none()
        {
            let text = format!("Back-off restarting failed container {name} in pod {}", describe(&self.pod));
            self.event(Some(name), Kind::Warning, "BackOff", text);
        }
    }

    pub(super) fn stop_tasks(&mut self, name: &str) {
        for task in self.tasks.remove(name).unwrap_or_default() {
            task.abort();
        }
    }

    /// Starts the probes that a running container is due.
    pub(super) fn watch_probes(&mut self, name: &str) {
        let Some(target) = self.target(name) else { return };
        let Some(view) = self.containers.get_mut(name) else { return };
        let Some(since) = view.current.as_ref().and_then(Run::running) else { return };
        let hook_done = view.current.as_ref().is_some_and(|run| run.record.hook_done);
        let init = self.pod.spec.iter().any(|s| init_containers(s).iter().any(|c| c.name == name && !is_sidecar(c)));
        if !hook_done || init {
            return;
        }
        if view.started && target.container.readiness_probe.is_none() {
            view.ready = true;
        }
        let kinds: &[ProbeKind] =
            if view.started { &[ProbeKind::Liveness, ProbeKind::Readiness] } else { &[ProbeKind::Startup] };
        let already = Duration::try_from(self.ctx.env.now().duration_since(since)).unwrap_or_default();
        for kind in kinds {
            let Some(wanted) = kind.of(&target.container).cloned() else { continue };
            let (tell, owned, id, kind) = (self.tell.clone(), name.to_owned(), target.id.clone(), *kind);
            let told = move |told| {
                let _ = tell.send(Message::Probe(owned.clone(), id.clone(), kind, told));
            };
            let task = tokio::spawn(probe::watch(kind, wanted, target.clone(), already, told));
            self.tasks.entry(name.to_owned()).or_default().push(task.abort_handle());
        }
    }

    pub(super) fn probed(&mut self, name: &str, id: &str, kind: ProbeKind, told: Told) {
        let deleted = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        let Some(view) = self.containers.get_mut(name) else { return };
        if view.current.as_ref().is_none_or(|run| run.record.id != id || run.running().is_none()) {
            return;
        }
        match (told, kind) {
            (Told::Failed(reason), _) => {
                let text = format!("{} probe failed: {reason}", kind.name());
                self.event(Some(name), Kind::Warning, "Unhealthy", text);
            }
            (Told::Result(good), ProbeKind::Readiness) => view.ready = good,
            (Told::Result(true), ProbeKind::Startup) if !view.started => {
                view.started = true;
                self.stop_tasks(name);
                self.watch_probes(name);
            }
            (Told::Result(false), ProbeKind::Startup | ProbeKind::Liveness) if !deleted && view.unhealthy.is_none() => {
                let lower = kind.name().to_lowercase();
                let message = format!("Container {name} failed {lower} probe, will be restarted");
                let grace_secs = self.container(name).and_then(|(c, _)| kind.of(&c)?.termination_grace_period_seconds);
                if let Some(view) = self.containers.get_mut(name) {
                    view.unhealthy = Some(Unhealthy { message, grace_secs });
                }
            }
            _ => {}
        }
    }
}
