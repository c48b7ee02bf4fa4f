//! What to do for a pod: a pure function of what is known of it.
//!
//! ```text
//!   Absent --StartSandbox--> Starting --> Ready --(init containers in order, sidecars stay)--> containers
//!                              |            |                                                    |
//!                              v            +--(shim lost)--> Absent                             v
//!                           Failed (retry)                                       exited: again after its back-off,
//!                                                                                or for good
//!   deleted, past its deadline, or finished:
//!      Kill containers, then sidecars in reverse --> StopSandbox --> (deleted) Confirm
//! ```
//!
//! Nothing is remembered between two calls: each looks at the whole and says what is missing. An action under way shows
//! as [`Busy`] (or a sandbox that is starting or stopping) and is not asked for again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::model::{
    Busy, PodView, SandboxView, View, all_containers, ephemeral_containers, init_containers, is_sidecar, next_backoff,
    next_start, restarts,
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox: shim, network, volumes.
    StartSandbox,
    /// Start a run of a container.
    Start {
        /// The container.
        name: String,
        /// Number of the run.
        attempt: u32,
        /// Seconds that its successor must wait.
        backoff_secs: u32,
    },
    /// Stop a container.
    Kill {
        /// The container.
        name: String,
        /// Seconds it gets to end by itself.
        grace_secs: i64,
        /// The event's message, if it is not the usual one.
        message: Option<String>,
    },
    /// Remove the sandbox and everything mounted.
    StopSandbox,
    /// Tell the API that nothing of the deleted pod is left.
    Confirm,
    /// The pod has exceeded its deadline.
    Fail {
        /// Reason for the status.
        reason: String,
        /// Message for the status.
        message: String,
    },
}

/// What to do now, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// When time alone will change the plan.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |now| now.min(at)));
    }
}

static NOTHING: View =
    View { current: None, previous: None, started: false, ready: false, waiting: None, busy: None, unhealthy: None };

/// Decides.
pub fn plan(view: &PodView<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = view.pod.spec.as_ref() else { return plan };
    let deleted = view.gone || view.pod.metadata.deletion_timestamp.is_some();
    if view.failed.is_none() && !deleted && !finished(view, spec) {
        deadline(view, spec, &mut plan);
        if !plan.actions.is_empty() {
            return plan;
        }
    }
    if deleted || view.failed.is_some() || terminal_in_api(view) || finished(view, spec) {
        terminate(view, spec, deleted, &mut plan);
        return plan;
    }
    match view.sandbox {
        SandboxView::Absent => plan.actions.push(Action::StartSandbox),
        SandboxView::Starting | SandboxView::Stopping => {}
        SandboxView::Failed { retry_at, .. } if *retry_at > view.now => plan.wake_at(*retry_at),
        SandboxView::Failed { .. } => plan.actions.push(Action::StartSandbox),
        SandboxView::Ready { .. } => advance(view, spec, &mut plan),
    }
    plan
}

fn of<'a>(view: &'a PodView<'_>, container: &Container) -> &'a View {
    view.containers.get(&container.name).unwrap_or(&NOTHING)
}

fn terminal_in_api(view: &PodView<'_>) -> bool {
    let phase = view.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn deadline(view: &PodView<'_>, spec: &PodSpec, plan: &mut Plan) {
    let Some(secs) = spec.active_deadline_seconds else { return };
    let Ok(end) = view.start_time.checked_add(SignedDuration::from_secs(secs)) else { return };
    if view.now >= end {
        plan.actions.push(Action::Fail {
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
        });
    } else {
        plan.wake_at(end);
    }
}

/// Whether any ordinary container has ever been started: initialisation is over then, for good.
pub fn initialized(view: &PodView<'_>, spec: &PodSpec) -> bool {
    spec.containers.iter().any(|c| of(view, c).current.is_some())
}

/// Whether no container will run again by itself.
pub fn finished(view: &PodView<'_>, spec: &PodSpec) -> bool {
    let done = |container: &Container, init: bool| {
        let state = of(view, container);
        state.exit().is_some_and(|exit| !state.is_resized() && !restarts(spec, container, init, exit.code))
    };
    let failed_init = init_containers(spec)
        .iter()
        .filter(|c| !is_sidecar(c))
        .any(|c| done(c, true) && of(view, c).exit().is_some_and(|exit| exit.code != 0));
    (failed_init && !initialized(view, spec)) || spec.containers.iter().all(|c| done(c, false))
}

/// Stops what runs: ordinary containers, then sidecars one by one, the last first; then the sandbox.
fn terminate(view: &PodView<'_>, spec: &PodSpec, deleted: bool, plan: &mut Plan) {
    let added = ephemeral_containers(spec);
    let inits = init_containers(spec).iter().filter(|c| !is_sidecar(c));
    let ordinary: Vec<&Container> = spec.containers.iter().chain(inits).chain(&added).collect();
    let grace = grace_secs(view, spec);
    let mut living = 0;
    for container in &ordinary {
        let state = of(view, container);
        if state.alive() || state.busy.is_some() {
            living += 1;
            kill(container, state, grace, plan);
        }
    }
    if living > 0 {
        return;
    }
    for container in init_containers(spec).iter().rev().filter(|c| is_sidecar(c)) {
        let state = of(view, container);
        if state.alive() || state.busy.is_some() {
            kill(container, state, grace, plan);
            return;
        }
    }
    match view.sandbox {
        SandboxView::Ready { .. } | SandboxView::Failed { .. } => plan.actions.push(Action::StopSandbox),
        SandboxView::Absent if deleted && !view.gone => plan.actions.push(Action::Confirm),
        _ => {}
    }
}

fn kill(container: &Container, state: &View, grace_secs: i64, plan: &mut Plan) {
    if state.busy.is_none() && state.alive() {
        plan.actions.push(Action::Kill { name: container.name.clone(), grace_secs, message: None });
    }
}

/// What the deletion says, then what the pod says.
pub fn grace_secs(view: &PodView<'_>, spec: &PodSpec) -> i64 {
    let asked =
        view.pod.metadata.deletion_grace_period_seconds.filter(|_| view.pod.metadata.deletion_timestamp.is_some());
    if view.gone {
        return asked.unwrap_or(0);
    }
    let own = view.failed.and_then(|failure| failure.grace_secs).or(spec.termination_grace_period_seconds);
    asked.or(own).unwrap_or(30)
}

fn advance(view: &PodView<'_>, spec: &PodSpec, plan: &mut Plan) {
    for container in all_containers(spec) {
        let state = of(view, container);
        if let (Some(unhealthy), true, None) = (&state.unhealthy, state.alive(), state.busy) {
            let usual = spec.termination_grace_period_seconds.unwrap_or(30);
            plan.actions.push(Action::Kill {
                name: container.name.clone(),
                grace_secs: unhealthy.grace_secs.unwrap_or(usual),
                message: Some(unhealthy.message.clone()),
            });
        }
    }
    // They may be wanted to see why initialisation does not end.
    for container in &ephemeral_containers(spec) {
        ensure(view, spec, container, false, plan);
    }
    let initialized = initialized(view, spec);
    for container in init_containers(spec) {
        let state = of(view, container);
        if is_sidecar(container) {
            ensure(view, spec, container, true, plan);
            if !initialized && !state.up() {
                return;
            }
        } else if !initialized && state.exit().is_none_or(|exit| exit.code != 0) {
            ensure(view, spec, container, true, plan);
            return;
        }
    }
    for container in &spec.containers {
        ensure(view, spec, container, false, plan);
        // One after the other: a hook that is still busy holds back the containers after it.
        let state = of(view, container);
        let asked = plan.actions.iter().any(|a| matches!(a, Action::Start { name, .. } if *name == container.name));
        if state.current.as_ref().is_none_or(|run| run.record.attempt == 0)
            && (state.busy == Some(Busy::Starting) || asked)
            && state.waiting.is_none()
        {
            return;
        }
    }
}

/// Starts the container unless it runs, is busy, must wait, or has ended for good.
fn ensure(view: &PodView<'_>, spec: &PodSpec, container: &Container, init: bool, plan: &mut Plan) {
    let state = of(view, container);
    if state.busy.is_some() || state.alive() {
        return;
    }
    let (attempt, backoff_secs) = match &state.current {
        None => (0, 0),
        Some(run) => {
            let Some(exit) = run.exit() else { return };
            if !run.record.resized && !restarts(spec, container, init, exit.code) {
                return;
            }
            let at = if run.record.resized { exit.finished } else { next_start(&run.record, exit) };
            if at > view.now {
                plan.wake_at(at);
                return;
            }
            let backoff = if run.record.resized { run.record.backoff_secs } else { next_backoff(&run.record, exit) };
            (run.record.attempt + 1, backoff)
        }
    };
    if let Some(waiting) = &state.waiting
        && waiting.retry_at > view.now
    {
        plan.wake_at(waiting.retry_at);
        // The reason changes from "it failed" to "it waits" before the next attempt.
        if let Ok(at) = waiting.since.checked_add(SignedDuration::from_secs(super::status::SHOW_FAILURE_SECS))
            && at > view.now
        {
            plan.wake_at(at);
        }
        return;
    }
    plan.actions.push(Action::Start { name: container.name.clone(), attempt, backoff_secs });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::super::model::{Exit, Life, Record, Run, Unhealthy};
    use super::super::resize::Resizing;
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::new(1_000_000 + secs, 0).expect("a time")
    }

    fn exited(attempt: u32, backoff_secs: u32, code: i32, ran_secs: i64) -> View {
        let exit = Exit {
            code,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            started: Some(at(-ran_secs)),
            finished: at(0),
        };
        let record = Record { attempt, backoff_secs, ..Record::default() };
        View { current: Some(Run { record, life: Life::Exited(exit) }), ..View::default() }
    }

    fn resized(mut view: View) -> View {
        if let Some(run) = &mut view.current {
            run.record.resized = true;
        }
        view
    }

    fn with_added() -> Value {
        let mut pod = with_init();
        pod["spec"]["ephemeralContainers"] = json!([{"name": "look"}]);
        pod
    }

    fn running() -> View {
        let record = Record { hook_done: true, ..Record::default() };
        View {
            current: Some(Run { record, life: Life::Running(at(0)) }),
            started: true,
            ready: true,
            ..View::default()
        }
    }

    struct Case {
        pod: Value,
        containers: Vec<(&'static str, View)>,
        sandbox: SandboxView,
        now: i64,
    }

    fn ready() -> SandboxView {
        SandboxView::Ready { ips: vec![] }
    }

    fn decide(case: Case) -> Plan {
        let pod: Pod = serde_json::from_value(case.pod).expect("a pod");
        let containers: BTreeMap<String, View> = case.containers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        plan(&PodView {
            pod: &pod,
            gone: false,
            sandbox: &case.sandbox,
            containers: &containers,
            failed: None,
            resizing: &Resizing::default(),
            start_time: at(0),
            now: at(case.now),
        })
    }

    /// The plan in short: `start a#1/10`, `kill a 30`, …
    fn short(plan: &Plan) -> Vec<String> {
        plan.actions
            .iter()
            .map(|action| match action {
                Action::Start { name, attempt, backoff_secs } => format!("start {name}#{attempt}/{backoff_secs}"),
                Action::Kill { name, grace_secs, message } => {
                    format!(
                        "kill {name} {grace_secs}{}",
                        message.as_ref().map(|m| format!(": {m}")).unwrap_or_default()
                    )
                }
                Action::Fail { reason, .. } => format!("fail {reason}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn two() -> Value {
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})
    }

    fn with_init() -> Value {
        json!({"spec": {"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}})
    }

    #[test]
    fn plans() {
        let deleted =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}});
        let merge = |mut pod: Value, extra: &Value| {
            pod["metadata"] = extra["metadata"].clone();
            pod
        };
        let never = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a"}]}});
        let on_failure = json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "a"}]}});
        let unhealthy = Unhealthy { message: "sick".into(), grace_secs: None };
        let cases: Vec<(&str, Case, Vec<&str>)> = vec![
            (
                "sandbox first",
                Case { pod: two(), containers: vec![], sandbox: SandboxView::Absent, now: 0 },
                vec!["StartSandbox"],
            ),
            ("in order", Case { pod: two(), containers: vec![], sandbox: ready(), now: 0 }, vec!["start a#0/0"]),
            (
                "then the next",
                Case { pod: two(), containers: vec![("a", running())], sandbox: ready(), now: 0 },
                vec!["start b#0/0"],
            ),
            (
                "first crash: at once",
                Case { pod: on_failure.clone(), containers: vec![("a", exited(0, 0, 1, 1))], sandbox: ready(), now: 0 },
                vec!["start a#1/10"],
            ),
            (
                "second crash: wait",
                Case {
                    pod: on_failure.clone(),
                    containers: vec![("a", exited(1, 10, 1, 1))],
                    sandbox: ready(),
                    now: 9,
                },
                vec![],
            ),
            (
                "waited",
                Case {
                    pod: on_failure.clone(),
                    containers: vec![("a", exited(1, 10, 1, 1))],
                    sandbox: ready(),
                    now: 10,
                },
                vec!["start a#2/20"],
            ),
            (
                "at most five minutes",
                Case {
                    pod: on_failure.clone(),
                    containers: vec![("a", exited(9, 300, 1, 1))],
                    sandbox: ready(),
                    now: 300,
                },
                vec!["start a#10/300"],
            ),
            (
                "a long run resets",
                Case {
                    pod: on_failure.clone(),
                    containers: vec![("a", exited(9, 300, 1, 700))],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["start a#10/10"],
            ),
            (
                "done",
                Case { pod: on_failure, containers: vec![("a", exited(0, 0, 0, 1))], sandbox: ready(), now: 0 },
                vec!["StopSandbox"],
            ),
            (
                "failed for good",
                Case { pod: never, containers: vec![("a", exited(0, 0, 1, 1))], sandbox: ready(), now: 0 },
                vec!["StopSandbox"],
            ),
            (
                "init first",
                Case { pod: with_init(), containers: vec![], sandbox: ready(), now: 0 },
                vec!["start i#0/0"],
            ),
            (
                "init again",
                Case { pod: with_init(), containers: vec![("i", exited(0, 0, 1, 1))], sandbox: ready(), now: 0 },
                vec!["start i#1/10"],
            ),
            (
                "then the sidecar",
                Case { pod: with_init(), containers: vec![("i", exited(0, 0, 0, 1))], sandbox: ready(), now: 0 },
                vec!["start s#0/0"],
            ),
            (
                "which must be up",
                Case {
                    pod: with_init(),
                    containers: vec![("i", exited(0, 0, 0, 1)), ("s", View { started: false, ..running() })],
                    sandbox: ready(),
                    now: 0,
                },
                vec![],
            ),
            (
                "then the rest",
                Case {
                    pod: with_init(),
                    containers: vec![("i", exited(0, 0, 0, 1)), ("s", running())],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["start a#0/0"],
            ),
            (
                "added, though initialisation has not ended",
                Case { pod: with_added(), containers: vec![], sandbox: ready(), now: 0 },
                vec!["start look#0/0", "start i#0/0"],
            ),
            (
                "added ones never run again",
                Case {
                    pod: with_added(),
                    containers: vec![("i", running()), ("look", exited(0, 0, 1, 1))],
                    sandbox: ready(),
                    now: 0,
                },
                vec![],
            ),
            (
                "added ones end with the pod",
                Case {
                    pod: merge(with_added(), &deleted),
                    containers: vec![("a", exited(0, 0, 0, 1)), ("look", running())],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["kill look 5"],
            ),
            (
                "resized: at once, whatever the policy",
                Case {
                    pod: json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a"}]}}),
                    containers: vec![("a", resized(exited(3, 40, 0, 1)))],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["start a#4/40"],
            ),
            (
                "sick",
                Case {
                    pod: two(),
                    containers: vec![("a", View { unhealthy: Some(unhealthy), ..running() }), ("b", running())],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["kill a 30: sick"],
            ),
            (
                "deleted",
                Case {
                    pod: merge(with_init(), &deleted),
                    containers: vec![("a", running()), ("s", running())],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["kill a 5"],
            ),
            (
                "sidecars last",
                Case {
                    pod: merge(with_init(), &deleted),
                    containers: vec![("a", exited(0, 0, 0, 1)), ("s", running())],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["kill s 5"],
            ),
            (
                "then the sandbox",
                Case {
                    pod: merge(two(), &deleted),
                    containers: vec![("a", exited(0, 0, 0, 1))],
                    sandbox: ready(),
                    now: 0,
                },
                vec!["StopSandbox"],
            ),
            (
                "then it is gone",
                Case { pod: merge(two(), &deleted), containers: vec![], sandbox: SandboxView::Absent, now: 0 },
                vec!["Confirm"],
            ),
            (
                "too late",
                Case {
                    pod: json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}}),
                    containers: vec![("a", running())],
                    sandbox: ready(),
                    now: 5,
                },
                vec!["fail DeadlineExceeded"],
            ),
        ];
        for (name, case, expected) in cases {
            assert_eq!(short(&decide(case)), expected, "{name}");
        }
    }

    #[test]
    fn a_wait_says_when_it_ends() {
        let plan = decide(Case {
            pod: two(),
            containers: vec![("a", exited(1, 10, 1, 1)), ("b", running())],
            sandbox: ready(),
            now: 3,
        });
        assert_eq!((plan.actions.len(), plan.wake), (0, Some(at(10))));
    }
}
