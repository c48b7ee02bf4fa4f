//! The words in the STATUS and RESTARTS columns.

use jiff::Timestamp;
use serde_json::Value;

use super::{container, is_sidecar, is_terminal};
use crate::table::{condition_true, human_duration, seconds_between, time};
use crate::value::{flag, has, int, list, text};

/// What `kubectl get pods` says about the containers of a pod.
pub struct Summary {
    /// The STATUS column.
    pub status: String,
    /// How many containers are ready.
    pub ready: usize,
    /// How many containers there are.
    pub total: usize,
    /// How often containers restarted.
    pub restarts: i64,
    /// When a container last ended before a restart.
    pub last_restart: Option<Timestamp>,
}

impl Summary {
    /// The RESTARTS column: `3 (5m ago)`.
    pub fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(then) if self.restarts != 0 => {
                format!("{} ({} ago)", self.restarts, human_duration(seconds_between(then, now)))
            }
            _ => self.restarts.to_string(),
        }
    }

    fn count(&mut self, container_status: &Value) {
        self.restarts += int(container_status, &["restartCount"]).unwrap_or_default();
        self.last_restart = self.last_restart.max(time(container_status, &["lastState", "terminated", "finishedAt"]));
    }
}

/// Sums up a pod.
pub fn summary(pod: &Value) -> Summary {
    let spec = &pod["spec"];
    let phase = text(pod, &["status", "phase"]);
    let mut status = match text(pod, &["status", "reason"]) {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = list(pod, &["status", "conditions"]).iter().any(|condition| {
        text(condition, &["type"]) == "PodScheduled" && text(condition, &["reason"]) == "SchedulingGated"
    });
    if gated {
        status = "SchedulingGated".to_owned();
    }
    let sidecars = list(spec, &["initContainers"]).iter().filter(|container| is_sidecar(container)).count();
    let total = list(spec, &["containers"]).len() + sidecars;
    let mut summary = Summary { status, ready: 0, total, restarts: 0, last_restart: None };

    let initializing = init_containers(pod, &mut summary);
    if !initializing || condition_true(pod, "Initialized") {
        main_containers(pod, &mut summary);
    }
    if has(pod, &["metadata", "deletionTimestamp"]) {
        if text(pod, &["status", "reason"]) == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if !is_terminal(phase) {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Looks at init containers in their order, up to the first that is not done. Returns whether there is one.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let declared = list(pod, &["spec", "initContainers"]).len();
    for (index, status) in list(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        summary.count(status);
        let sidecar = container(&pod["spec"], &["initContainers"], text(status, &["name"])).is_some_and(is_sidecar);
        let terminated = &status["state"]["terminated"];
        let waiting = text(status, &["state", "waiting", "reason"]);
        if terminated.is_object() && int(terminated, &["exitCode"]).unwrap_or_default() == 0 {
            continue;
        }
        if sidecar && flag(status, &["started"]) {
            summary.ready += usize::from(flag(status, &["ready"]));
            continue;
        }
        summary.status = if terminated.is_object() {
            format!("Init:{}", end_reason(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{declared}")
        };
        return true;
    }
    false
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    (summary.restarts, summary.last_restart) = (0, None);
    for status in list(pod, &["status", "initContainerStatuses"]) {
        if container(&pod["spec"], &["initContainers"], text(status, &["name"])).is_some_and(is_sidecar) {
            summary.count(status);
        }
    }
    let (mut running, mut error) = (false, None);
    for status in list(pod, &["status", "containerStatuses"]).iter().rev() {
        summary.count(status);
        let terminated = &status["state"]["terminated"];
        let waiting = text(status, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if terminated.is_object() {
            summary.status = end_reason(terminated);
            if int(terminated, &["exitCode"]).unwrap_or_default() != 0 {
                error = Some(summary.status.clone());
            }
        } else if flag(status, &["ready"]) && status["state"]["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" {
        if running && condition_true(pod, "Ready") {
            summary.status = "Running".to_owned();
        } else if let Some(error) = error {
            summary.status = error;
        } else if running {
            summary.status = "NotReady".to_owned();
        }
    }
}

fn end_reason(terminated: &Value) -> String {
    let signal = int(terminated, &["signal"]).unwrap_or_default();
    match text(terminated, &["reason"]) {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", int(terminated, &["exitCode"]).unwrap_or_default()),
        reason => reason.to_owned(),
    }
}
