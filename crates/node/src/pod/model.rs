//! What the node knows of a pod: a value, from which [`super::plan`] and [`super::status`] are computed.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, PodSpec};
use serde::{Deserialize, Serialize};

use super::resize::{Amounts, Resizing};
use crate::spec::users::User;

/// One run of a container, as it is written beside its bundle. The next engine reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The run's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// 0 for the first run.
    pub attempt: u32,
    /// The image's full name.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// Seconds that the next run must wait after this one's end.
    pub backoff_secs: u32,
    /// Why it could not be started.
    pub start_error: Option<String>,
    /// When that was.
    pub failed_at: Option<Timestamp>,
    /// Who it runs as: user, group, further groups.
    pub user: (u32, u32, Vec<u32>),
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Whether the hook after its start has done its work.
    pub hook_done: bool,
    /// What it may use; unknown for runs of engines that did not note it.
    pub resources: Option<Amounts>,
    /// It is stopped only to be started again with other resources.
    pub resized: bool,
}

impl Record {
    /// Notes who the run runs as.
    pub fn set_user(&mut self, user: &User) {
        self.user = (user.uid, user.gid, user.groups.clone());
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 plus the signal's number if a signal ended it.
    pub code: i32,
    /// The signal, or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// What it left as its last words.
    pub message: String,
    /// When it started, if it did.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
}

/// Where a run is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It has been made and is about to run.
    Created,
    /// It runs since then.
    Running(Timestamp),
    /// It has ended.
    Exited(Exit),
}

/// A run and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What is on disk.
    pub record: Record,
    /// Where it is in its life.
    pub life: Life,
}

impl Run {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.life {
            Life::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Since when it runs, if it does.
    pub fn running(&self) -> Option<Timestamp> {
        match self.life {
            Life::Running(since) => Some(since),
            _ => None,
        }
    }
}

/// Why a container cannot be started now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// As the status shows it: `ErrImagePull`, `CreateContainerConfigError`, …
    pub reason: String,
    /// In words.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
    /// When it failed.
    pub since: Timestamp,
    /// How long the wait is, in seconds: it doubles.
    pub delay_secs: u32,
}

/// What is being done to a container right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// It is being started (image, files, hook).
    Starting,
    /// It is being stopped (hook, signal, grace).
    Stopping,
}

/// Why a running container has to be stopped and started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// The message of the event.
    pub message: String,
    /// Seconds it gets to end by itself.
    pub grace_secs: Option<i64>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The latest run.
    pub current: Option<Run>,
    /// The run before it.
    pub previous: Option<Run>,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// Why it cannot be started.
    pub waiting: Option<Waiting>,
    /// What is being done to it.
    pub busy: Option<Busy>,
    /// Why it must be stopped and started again.
    pub unhealthy: Option<Unhealthy>,
}

impl View {
    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.current.as_ref().is_some_and(|run| run.running().is_some())
    }

    /// Whether some process of it may be alive.
    pub fn alive(&self) -> bool {
        self.current.as_ref().is_some_and(|run| run.exit().is_none())
    }

    /// Whether its latest run was stopped only to be started again with other resources.
    pub fn is_resized(&self) -> bool {
        self.current.as_ref().is_some_and(|run| run.record.resized)
    }

    /// How the latest run ended.
    pub fn exit(&self) -> Option<&Exit> {
        self.current.as_ref().and_then(Run::exit)
    }

    /// Whether it runs and has passed its startup probe and hook.
    pub fn up(&self) -> bool {
        self.running() && self.started && self.current.as_ref().is_some_and(|run| run.record.hook_done)
    }
}

/// The sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxView {
    /// There is none.
    Absent,
    /// It is being made.
    Starting,
    /// It could not be made; try again at that time, after that many seconds' wait.
    Failed {
        /// When to try again.
        retry_at: Timestamp,
        /// How long the wait is.
        delay_secs: u32,
    },
    /// It is there.
    Ready {
        /// The pod's addresses.
        ips: Vec<String>,
    },
    /// It is being removed.
    Stopping,
}

/// Why the node ends a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Reason for the status.
    pub reason: String,
    /// Message for the status.
    pub message: String,
    /// It goes for the sake of others.
    pub disrupted: bool,
    /// Seconds it gets, if not as many as it wants.
    pub grace_secs: Option<i64>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct PodView<'a> {
    /// As the API has it.
    pub pod: &'a Pod,
    /// Whether the API has it no longer.
    pub gone: bool,
    /// The sandbox.
    pub sandbox: &'a SandboxView,
    /// The containers, by name, those for initialisation included.
    pub containers: &'a BTreeMap<String, View>,
    /// Whether the node decided that the pod has failed.
    pub failed: Option<&'a Failure>,
    /// What its containers were promised.
    pub resizing: &'a Resizing,
    /// When the node first saw the pod.
    pub start_time: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// The longest wait between two runs.
pub const BACKOFF_SECS_MAX: u32 = 300;
/// The first wait.
pub const BACKOFF_SECS_FIRST: u32 = 10;
/// A run that lasted longer than this makes the next wait the first again.
const BACKOFF_RESET_SECS: i64 = 600;

/// When the run after this one may start.
pub fn next_start(record: &Record, exit: &Exit) -> Timestamp {
    if lasted_long(exit) {
        return exit.finished;
    }
    exit.finished.checked_add(SignedDuration::from_secs(i64::from(record.backoff_secs))).unwrap_or(exit.finished)
}

/// The wait that the next run puts before its successor.
pub fn next_backoff(record: &Record, exit: &Exit) -> u32 {
    if record.backoff_secs == 0 || lasted_long(exit) {
        BACKOFF_SECS_FIRST
    } else {
        (record.backoff_secs * 2).min(BACKOFF_SECS_MAX)
    }
}

fn lasted_long(exit: &Exit) -> bool {
    exit.started.is_some_and(|started| exit.finished.duration_since(started).as_secs() > BACKOFF_RESET_SECS)
}

/// The pod as the kubelet prints it in messages: `name_namespace(uid)`.
pub fn describe(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// Whether a container for initialisation runs beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The containers for initialisation.
pub fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// Which list of a pod a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs before the others; a sidecar beside them.
    Init,
    /// It is what the pod is for.
    Ordinary,
    /// It was added to the running pod, and never runs again.
    Ephemeral,
}

impl Role {
    /// The list's name in a pod's `spec`.
    pub fn list(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Ordinary => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// The containers that were added to the running pod, as containers that never run again.
pub fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    let added = spec.ephemeral_containers.iter().flatten();
    let as_container = |added| {
        let mut container: Container = serde_json::from_value(serde_json::to_value(added).ok()?).ok()?;
        container.restart_policy = Some("Never".into());
        Some(container)
    };
    added.filter_map(as_container).collect()
}

/// A container by its name, and the list it stands in.
pub fn find_container(spec: &PodSpec, name: &str) -> Option<(Container, Role)> {
    let of = |list: &[Container], role| list.iter().find(|c| c.name == name).map(|c| (c.clone(), role));
    of(init_containers(spec), Role::Init)
        .or_else(|| of(&spec.containers, Role::Ordinary))
        .or_else(|| of(&ephemeral_containers(spec), Role::Ephemeral))
}

/// Every container, those for initialisation first, without those that were added later.
pub fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    init_containers(spec).iter().chain(&spec.containers)
}

/// Whether a container that ended with `code` is to run again.
pub fn restarts(spec: &PodSpec, container: &Container, init: bool, code: i32) -> bool {
    if let Some(own) = container.restart_policy.as_deref() {
        let rules = container.restart_policy_rules.iter().flatten();
        if rules.into_iter().any(|rule| rule_matches(rule, code)) {
            return true;
        }
        return by_policy(own, code);
    }
    match spec.restart_policy.as_deref().unwrap_or("Always") {
        "Always" if init => code != 0,
        policy => by_policy(policy, code),
    }
}

fn by_policy(policy: &str, code: i32) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn rule_matches(rule: &ContainerRestartRule, code: i32) -> bool {
    let Some(codes) = rule.exit_codes.as_ref().filter(|_| rule.action == "Restart") else { return false };
    let listed = codes.values.iter().flatten().any(|value| *value == code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}
