//! The worker of one pod: looks, plans, acts, reports. One task per pod; everything slow happens in tasks of its own
//! that send back what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handle::{Handle, Message, Shared};
use super::model::{
    BACKOFF_SECS_FIRST, BACKOFF_SECS_MAX, Busy, Failure, Life, PodView, Record, Role, Run, SandboxView, Unhealthy,
    View, Waiting, describe, find_container, init_containers, is_sidecar,
};
use super::plan::{Action, plan};
use super::probe::{ProbeKind, Target, Told};
use super::resize::Resizing;
use super::sandbox::Tokens;
use super::start::{Job, StartError};
use super::{disk, hook, probe, report, sandbox, start, status, stop};
use crate::client::{Shim, Watch};
use crate::context::Context;
use crate::events::Kind;
use crate::shim::protocol::{Request, Snapshot};
use crate::volumes;

/// Volumes are looked at again this often, for tokens and in case news got lost.
const REFRESH: Duration = Duration::from_secs(60);
/// A pod that is about to run within this time is not first reported as waiting.
const FIRST_REPORT: Duration = Duration::from_millis(250);
/// The longest wait for another attempt at a sandbox.
const SANDBOX_RETRY_SECS_MAX: u32 = 120;

mod resizing;
mod sandboxing;

struct Worker {
    ctx: Arc<Context>,
    uid: String,
    dir: PathBuf,
    pod: Arc<Pod>,
    gone: bool,
    sandbox: SandboxView,
    sandbox_attempt: u32,
    pid: i32,
    cgroup: String,
    containers: BTreeMap<String, View>,
    failed: Option<Failure>,
    start_time: Timestamp,
    born: Instant,
    tokens: Tokens,
    resizing: Resizing,
    /// Limits are being written.
    writing_limits: bool,
    /// No look at the resources before this.
    resize_at: Option<Instant>,
    tell: mpsc::UnboundedSender<Message>,
    shared: watch::Sender<Shared>,
    watch: Option<AbortHandle>,
    /// Tasks of a container's run: probes and its stop.
    tasks: BTreeMap<String, Vec<AbortHandle>>,
    stops: BTreeMap<String, (AbortHandle, i64)>,
    reported: Option<Value>,
    reporting: bool,
    /// When a pod that is only on its way is reported as such.
    report_at: Option<Instant>,
    /// No report before this, for the last one failed.
    report_failed_until: Option<Instant>,
    refresh_at: Option<Instant>,
    confirming: bool,
    retry_at: Option<Instant>,
    done: bool,
}

/// Starts the worker of a pod. `finished` is called with the pod's uid when nothing of it is left.
pub fn spawn(ctx: Arc<Context>, pod: Arc<Pod>, finished: impl FnOnce(&str) + Send + 'static) -> Handle {
    let (tell, messages) = mpsc::unbounded_channel();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let dir = ctx.pods.join(&uid);
    let (sender, shared) = watch::channel(Shared { pod: pod.clone(), ..Shared::default() });
    let worker = Worker::new(ctx, pod, uid.clone(), dir.clone(), tell.clone(), sender);
    let task = tokio::spawn(async move {
        worker.run(messages).await;
        finished(&uid);
    });
    Handle { tell, shared, dir, task: task.abort_handle() }
}

impl Worker {
    fn new(
        ctx: Arc<Context>,
        pod: Arc<Pod>,
        uid: String,
        dir: PathBuf,
        tell: mpsc::UnboundedSender<Message>,
        shared: watch::Sender<Shared>,
    ) -> Self {
        let now = ctx.env.now();
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        let cgroup = sandbox::read(&dir).map_or_else(|| sandbox::pod_cgroup(&ctx, &pod), |s| s.cgroup);
        let mut worker = Self {
            uid,
            cgroup,
            gone: false,
            sandbox: SandboxView::Absent,
            sandbox_attempt: 0,
            pid: 0,
            containers: BTreeMap::new(),
            failed: None,
            start_time,
            born: Instant::now(),
            tokens: Tokens::default(),
            resizing: Resizing::default(),
            writing_limits: false,
            resize_at: None,
            tell,
            shared,
            watch: None,
            tasks: BTreeMap::new(),
            stops: BTreeMap::new(),
            reported: None,
            reporting: false,
            report_at: None,
            report_failed_until: None,
            refresh_at: None,
            confirming: false,
            retry_at: None,
            done: false,
            ctx,
            dir,
            pod,
        };
        worker.adopt();
        worker.allocate();
        worker.admit();
        worker
    }

    /// Takes up what an earlier engine left: records of runs, and the sandbox if it lives.
    fn adopt(&mut self) {
        let Some(old) = sandbox::read(&self.dir) else { return };
        self.sandbox_attempt = old.attempt;
        for run in disk::load(&self.dir) {
            let view = self.containers.entry(run.record.name.clone()).or_default();
            view.previous = view.current.replace(run);
        }
        // Ready stays as it was reported until a probe says otherwise: a restart of the engine is no outage.
        let statuses = self
            .pod
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
        for shown in statuses {
            if let Some(view) = self.containers.get_mut(&shown.name) {
                view.started = shown.started == Some(true);
                view.ready = shown.ready;
            }
        }
        // Anything may be alive: find out before deciding.
        if self.containers.values().any(View::alive) || old_shim(&self.dir) {
            self.start_sandbox();
        }
    }

    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        while !self.done {
            let wake = self.step();
            if self.done {
                break;
            }
            let next = tokio::select! {
                biased;
                message = messages.recv() => message,
                () = sleep_until(wake) => None,
            };
            if let Some(message) = next {
                self.take(message);
                while let Ok(message) = messages.try_recv() {
                    self.take(message);
                }
            }
        }
    }

    fn view(&self) -> PodView<'_> {
        PodView {
            pod: &self.pod,
            gone: self.gone,
            sandbox: &self.sandbox,
            containers: &self.containers,
            failed: self.failed.as_ref(),
            resizing: &self.resizing,
            start_time: self.start_time,
            now: self.ctx.env.now(),
        }
    }

    /// Plans, acts, reports. Returns when to do so again at the latest.
    fn step(&mut self) -> Option<Instant> {
        let mut wake = None;
        if self.is_over() {
            self.ctx.ledger.remove(&self.uid);
        } else {
            self.resize();
        }
        // An action may make the next one possible at once.
        for _ in 0..4 {
            let plan = plan(&self.view());
            wake = plan.wake;
            let acted = plan.actions.into_iter().map(|action| self.act(action)).filter(|acted| *acted).count();
            if acted == 0 {
                break;
            }
        }
        if self.gone && matches!(self.sandbox, SandboxView::Absent) && !self.containers.values().any(View::alive) {
            self.finish();
            return None;
        }
        self.publish();
        self.report();
        self.refresh();
        let now = self.ctx.env.now();
        let planned = wake.map(|at| {
            let left = at.duration_since(now).max(SignedDuration::ZERO);
            // A little later than asked: clocks that disagree by a hair must not make us spin.
            Instant::now() + Duration::try_from(left).unwrap_or_default() + Duration::from_millis(2)
        });
        let own = [self.report_at, self.report_failed_until, self.refresh_at, self.retry_at, self.resize_at];
        own.into_iter().chain([planned]).flatten().min()
    }

    /// Whether nothing of the pod will run again.
    fn is_over(&self) -> bool {
        let view = self.view();
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        self.gone
            || matches!(phase, Some("Succeeded" | "Failed"))
            || self.failed.is_some()
            || self.pod.spec.as_ref().is_some_and(|spec| super::plan::finished(&view, spec))
    }

    /// A pod that has not started yet is refused while the node is short of something.
    fn admit(&mut self) {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let started = self.pod.status.as_ref().is_some_and(|s| s.start_time.is_some()) || self.dir.exists();
        if started || !matches!(phase, None | Some("" | "Pending")) {
            return;
        }
        if let Some(message) = self.ctx.pressure.refusal(&self.pod) {
            self.event(None, Kind::Warning, "Evicted", message.clone());
            let message = format!("Pod was rejected: {message}");
            self.failed = Some(Failure { reason: "Evicted".into(), message, ..Failure::default() });
        }
    }

    fn evict(&mut self, message: String, grace_secs: i64) {
        if self.is_over() {
            return;
        }
        self.event(None, Kind::Warning, "Evicted", message.clone());
        let grace_secs = Some(grace_secs);
        self.failed = Some(Failure { reason: "Evicted".into(), message, disrupted: true, grace_secs });
    }

    /// What a pod that is over had in its own volumes is nobody's any more.
    fn forget_volumes(&self) {
        if !self.is_over() {
            return;
        }
        let volumes = self.dir.join("volumes");
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&volumes)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %volumes.display(), "cannot remove the volumes of a pod that is over");
            }
        });
    }

    fn finish(&mut self) {
        self.ctx.ledger.remove(&self.uid);
        let _ = std::fs::remove_dir_all(&self.dir);
        self.done = true;
    }

    fn container(&self, name: &str) -> Option<(Container, Role)> {
        find_container(self.pod.spec.as_ref()?, name)
    }

    /// The container whose processes one that was added wants to see: its name, and its latest run.
    fn target_of(&self, name: &str) -> Option<(String, Option<String>)> {
        let added = self.pod.spec.as_ref()?.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        let target = added.target_container_name.clone().filter(|target| !target.is_empty())?;
        let run = self.containers.get(&target).and_then(|view| view.current.as_ref()).map(|run| run.record.id.clone());
        Some((target, run))
    }

    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::StartSandbox => self.start_sandbox(),
            Action::Start { name, attempt, backoff_secs } => self.start_container(&name, attempt, backoff_secs),
            Action::Kill { name, grace_secs, message } => self.kill(&name, grace_secs, message),
            Action::StopSandbox => self.stop_sandbox(),
            Action::Confirm => return self.confirm(),
            Action::Fail { reason, message } => {
                self.event(None, Kind::Normal, "DeadlineExceeded", message.clone());
                self.failed = Some(Failure { reason, message, ..Failure::default() });
            }
        }
        true
    }

    fn event(&self, container: Option<&str>, kind: Kind, reason: &'static str, message: String) {
        let role = |name: &str| self.container(name).map_or(Role::Ordinary, |(_, role)| role);
        self.ctx.events.pod(&self.pod, container.map(|name| (name, role(name))), kind, reason, message);
    }

    fn start_container(&mut self, name: &str, attempt: u32, backoff_secs: u32) {
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

    fn made(&mut self, record: Record) {
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

    fn started(&mut self, name: &str, result: Result<Record, StartError>) {
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

    fn target(&self, name: &str) -> Option<Target> {
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

    fn run_hook(&mut self, name: &str, record: &Record) {
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

    fn hooked(&mut self, name: &str, result: Result<(), String>) {
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

    fn kill(&mut self, name: &str, grace_secs: i64, message: Option<String>) {
        let Some(target) = self.target(name) else { return };
        let host_message = message.unwrap_or_else(|| format!("Stopping container {name}"));
        self.event(Some(name), Kind::Normal, "Killing", host_message);
        self.stop_tasks(name);
        self.spawn_stop(name, target, grace_secs, true);
    }

    fn spawn_stop(&mut self, name: &str, target: Target, grace_secs: i64, with_hook: bool) {
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
    fn hurry(&mut self) {
        let Some(spec) = self.pod.spec.clone() else { return };
        let deleted = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        let grace = super::plan::grace_secs(&self.view(), &spec);
        let late: Vec<String> =
            self.stops.iter().filter(|(_, (_, old))| deleted && grace < *old).map(|(name, _)| name.clone()).collect();
        for name in late {
            if let Some(target) = self.target(&name) {
                self.spawn_stop(&name, target, grace, false);
            }
        }
    }

    fn snapshot(&mut self, snapshot: Snapshot) {
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

    fn last_words(&mut self, name: &str) {
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
    fn ended(&mut self, name: &str) {
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
                spec.is_some_and(|s| super::model::restarts(s, &c, role == Role::Init, exit.code))
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

    fn stop_tasks(&mut self, name: &str) {
        for task in self.tasks.remove(name).unwrap_or_default() {
            task.abort();
        }
    }

    /// Starts the probes that a running container is due.
    fn watch_probes(&mut self, name: &str) {
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

    fn probed(&mut self, name: &str, id: &str, kind: ProbeKind, told: Told) {
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

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                self.pod = pod;
                self.hurry();
            }
            Message::Gone => {
                self.gone = true;
                self.hurry();
            }
            Message::Changed(kind, name) => {
                if volumes::concerns(&self.pod, kind, &name) {
                    self.refresh_at = self.refresh_at.map(|_| Instant::now());
                }
                for view in self.containers.values_mut() {
                    if let Some(waiting) = view.waiting.as_mut().filter(|w| w.reason == "CreateContainerConfigError") {
                        waiting.retry_at = waiting.since;
                    }
                }
                if let SandboxView::Failed { retry_at, .. } = &mut self.sandbox {
                    *retry_at = self.ctx.env.now();
                }
            }
            Message::Snapshot(snapshot) => self.snapshot(snapshot),
            Message::ShimLost(pid) => self.shim_lost(pid),
            Message::Sandbox(result) => match *result {
                Ok(up) => self.sandbox_up(up),
                Err(error) => self.sandbox_failed(&error),
            },
            Message::SandboxStopped(result) => self.sandbox_stopped(result),
            Message::Made(record) => self.made(record),
            Message::Started(name, result) => self.started(&name, result),
            Message::Hooked(name, result) => self.hooked(&name, result),
            Message::Unmade(name, id) => self.unmade(&name, &id),
            // It has done all it could and the container still lives: the plan will ask for it again.
            Message::Stopped(name) => {
                self.stops.remove(&name);
                if let Some(view) = self.containers.get_mut(&name) {
                    view.busy = None;
                }
            }
            Message::Probe(name, id, kind, told) => self.probed(&name, &id, kind, told),
            Message::Evict { message, grace_secs } => self.evict(message, grace_secs),
            Message::Resized(done, result) => self.resized(done, result),
            Message::Reported(outcome) => self.reported(outcome),
            Message::Confirmed(confirmed) => {
                self.confirming = false;
                if confirmed {
                    self.gone = true;
                } else {
                    self.retry_at = Some(Instant::now() + Duration::from_secs(1));
                }
            }
        }
    }

    fn publish(&self) {
        let ips = match &self.sandbox {
            SandboxView::Ready { ips } if !ips.is_empty() => ips,
            _ => &self.ctx.host.ips,
        };
        self.shared.send_if_modified(|shared| {
            let same = Arc::ptr_eq(&shared.pod, &self.pod)
                && shared.pid == self.pid
                && shared.ips == *ips
                && shared.containers == self.containers;
            if !same {
                shared.pod = self.pod.clone();
                shared.pid = self.pid;
                shared.ips.clone_from(ips);
                shared.containers.clone_from(&self.containers);
            }
            !same
        });
    }

    fn report(&mut self) {
        if self.reporting || self.gone || self.confirming {
            return;
        }
        if self.report_failed_until.is_some_and(|at| at > Instant::now()) {
            return;
        }
        (self.report_failed_until, self.report_at) = (None, None);
        let status = status::build(&self.view(), &self.ctx.host);
        if self.reported.as_ref() == Some(&status) {
            return;
        }
        if status["phase"] == "Pending" && self.born.elapsed() < FIRST_REPORT && report::is_plain(&status) {
            self.report_at = Some(self.born + FIRST_REPORT);
            return;
        }
        self.reporting = true;
        let (client, pod, tell) = (self.ctx.client.clone(), self.pod.clone(), self.tell.clone());
        tokio::spawn(async move {
            let outcome = report::write(client, &pod, status).await;
            let _ = tell.send(Message::Reported(outcome));
        });
    }

    fn reported(&mut self, outcome: report::Outcome) {
        self.reporting = false;
        match outcome {
            report::Outcome::Written(status) => {
                // Times of conditions are compared with what is known: until the API's answer comes round, that is this.
                if let Ok(own) = serde_json::from_value::<PodStatus>((*status).clone()) {
                    report::take_over(Arc::make_mut(&mut self.pod), own);
                }
                self.reported = Some(*status);
            }
            report::Outcome::Gone => {}
            report::Outcome::Failed => self.report_failed_until = Some(Instant::now() + Duration::from_secs(1)),
        }
    }

    /// Fills the volumes again when it is time.
    fn refresh(&mut self) {
        if self.refresh_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let SandboxView::Ready { ips } = &self.sandbox else { return };
        self.refresh_at = Some(Instant::now() + REFRESH);
        let (ctx, pod, dir, ips) = (self.ctx.clone(), self.pod.clone(), self.dir.clone(), ips.clone());
        let (tokens, pid) = (self.tokens.clone(), self.pid);
        tokio::spawn(async move {
            if let Err(reason) = sandbox::refresh(&ctx, &pod, &dir, pid, &tokens, &ips).await {
                ctx.events.pod(&pod, None, Kind::Warning, "FailedMount", reason);
            }
        });
    }

    fn confirm(&mut self) -> bool {
        if self.confirming || self.reporting || self.retry_at.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        self.retry_at = None;
        self.confirming = true;
        let status = status::build(&self.view(), &self.ctx.host);
        let news = (self.reported.as_ref() != Some(&status)).then_some(status);
        let (client, pod, tell) = (self.ctx.client.clone(), self.pod.clone(), self.tell.clone());
        tokio::spawn(async move {
            if let Some(status) = news {
                report::write(client.clone(), &pod, status).await;
            }
            let _ = tell.send(Message::Confirmed(report::confirm(client, &pod).await));
        });
        false
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let stops = self.stops.values().map(|(task, _)| task);
        for task in self.tasks.values().flatten().chain(stops).chain(&self.watch) {
            task.abort();
        }
    }
}

fn old_shim(dir: &std::path::Path) -> bool {
    crate::shim::connect(&dir.join(crate::shim::protocol::SOCKET)).is_ok()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn follow(mut watch: Watch, pid: i32, tell: mpsc::UnboundedSender<Message>) {
    while let Ok(snapshot) = watch.next().await {
        if tell.send(Message::Snapshot(snapshot)).is_err() {
            return;
        }
    }
    let _ = tell.send(Message::ShimLost(pid));
}

fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
