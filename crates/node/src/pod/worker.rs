//! The worker of one pod: looks, plans, acts, reports. One task per pod; everything slow happens in tasks of its own
//! that send back what came of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handle::{Handle, Message, Shared};
use super::model::{Failure, PodView, Role, SandboxView, View, find_container};
use super::plan::{Action, plan};
use super::resize::Resizing;
use super::sandbox::Tokens;
use super::{disk, host_ports, sandbox};
use crate::client::Watch;
use crate::context::Context;
use crate::events::Kind;
use crate::volumes;

/// Volumes are looked at again this often, for tokens and in case news got lost.
const REFRESH: Duration = Duration::from_secs(60);
/// A pod that is about to run within this time is not first reported as waiting.
const FIRST_REPORT: Duration = Duration::from_millis(250);
/// The longest wait for another attempt at a sandbox.
const SANDBOX_RETRY_SECS_MAX: u32 = 120;

mod containers;
mod reporting;
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
            self.ctx.host_ports.release(&self.uid);
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
        if self.is_over() {
            return;
        }
        let runs = started || !matches!(phase, None | Some("" | "Pending"));
        let has_ports = self.ctx.host_ports.take(&self.uid, &self.pod, runs);
        if runs {
            return;
        }
        if let Some(message) = self.ctx.pressure.refusal(&self.pod) {
            self.refuse("Evicted", message);
        } else if !has_ports {
            self.refuse("NodePorts", host_ports::REFUSAL.to_owned());
        }
    }

    fn refuse(&mut self, reason: &'static str, message: String) {
        self.event(None, Kind::Warning, reason, message.clone());
        let message = format!("Pod was rejected: {message}");
        self.failed = Some(Failure { reason: reason.into(), message, ..Failure::default() });
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
        self.ctx.host_ports.release(&self.uid);
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
