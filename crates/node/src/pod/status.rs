//! A pod's status as the kubelet reports it: a pure function of what is known of the pod.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use mycelium_api::env::rfc3339_seconds;
use serde_json::{Map, Value, json};

use super::model::{
    Exit, Life, PodView, Run, SandboxView, View, all_containers, describe, ephemeral_containers, init_containers,
    is_sidecar, next_start, restarts,
};
use super::plan::{finished, initialized};
use super::resize::{self, Amounts};
use crate::spec::resources::qos;

/// How long a failed pull shows as such before it shows as waiting for the next attempt.
pub const SHOW_FAILURE_SECS: i64 = 5;
/// The runtime's name in container ids.
pub const RUNTIME: &str = "mycelium";

/// Addresses of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The node's addresses, the first one first in statuses.
    pub ips: Vec<String>,
}

/// The whole status but for conditions that others own.
pub fn build(view: &PodView<'_>, host: &Host) -> Value {
    let Some(spec) = view.pod.spec.as_ref() else { return json!({}) };
    let containers: Vec<Value> = spec.containers.iter().map(|c| container(view, spec, c, false)).collect();
    let inits: Vec<Value> = init_containers(spec).iter().map(|c| container(view, spec, c, true)).collect();
    let phase = phase(view, spec, &containers, &inits);
    let mut status = json!({
        "phase": phase,
        "observedGeneration": view.pod.metadata.generation,
        "startTime": rfc3339_seconds(view.start_time),
        "qosClass": qos(spec).name(),
        "containerStatuses": containers,
        "conditions": conditions(view, spec, phase, &containers, &inits),
    });
    if !inits.is_empty() {
        status["initContainerStatuses"] = inits.into();
    }
    let added: Vec<Value> = ephemeral_containers(spec).iter().map(|c| ephemeral(view, spec, c)).collect();
    if !added.is_empty() {
        status["ephemeralContainerStatuses"] = added.into();
    }
    let ips = |list: &[String]| list.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    if let Some(first) = host.ips.first() {
        status["hostIP"] = first.clone().into();
        status["hostIPs"] = ips(&host.ips).into();
    }
    let pod_ips = pod_ips(view, spec, host);
    if let Some(first) = pod_ips.first() {
        status["podIP"] = first.clone().into();
        status["podIPs"] = ips(&pod_ips).into();
    }
    if let Some(failure) = view.failed {
        status["reason"] = failure.reason.clone().into();
        status["message"] = failure.message.clone().into();
    }
    if status["observedGeneration"].is_null() {
        status.as_object_mut().map(|s| s.remove("observedGeneration"));
    }
    status
}

fn pod_ips(view: &PodView<'_>, spec: &PodSpec, host: &Host) -> Vec<String> {
    match view.sandbox {
        SandboxView::Ready { ips } if !ips.is_empty() => ips.clone(),
        SandboxView::Ready { .. } if spec.host_network == Some(true) => host.ips.clone(),
        // What was reported stays: a finished pod keeps showing its address.
        _ => view.pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten()).map(|p| p.ip.clone()).collect(),
    }
}

/// When the next run may start, if the container is waiting for that.
fn back_off(view: &PodView<'_>, spec: &PodSpec, container: &Container, init: bool, run: &Run) -> Option<Timestamp> {
    let exit = run.exit()?;
    let at = next_start(&run.record, exit);
    let deleted = view.gone || view.pod.metadata.deletion_timestamp.is_some();
    let again = restarts(spec, container, init, exit.code) && !deleted && view.failed.is_none();
    (again && run.record.backoff_secs > 0 && at > view.now).then_some(at)
}

fn container(view: &PodView<'_>, spec: &PodSpec, container: &Container, init: bool) -> Value {
    let nothing = View::default();
    let state = view.containers.get(&container.name).unwrap_or(&nothing);
    let mut shown = json!({
        "name": container.name,
        "image": container.image.clone().unwrap_or_default(),
        "imageID": "",
        "ready": false,
        "restartCount": state.current.as_ref().map_or(0, |run| run.record.attempt),
        "started": false,
        "lastState": {},
    });
    let current = state.current.as_ref();
    let waiting_to_run = current.is_none_or(|run| run.exit().is_some() && state.waiting.is_some());
    if let (Some(waiting), true) = (&state.waiting, waiting_to_run) {
        shown["state"] = json!({"waiting": waiting_state(view, container, waiting)});
    } else if let Some(run) = current {
        shown["state"] = life(view, spec, container, init, run);
    } else {
        let later = !init_containers(spec).is_empty() && (init || !initialized(view, spec));
        let reason = if later { "PodInitializing" } else { "ContainerCreating" };
        shown["state"] = json!({"waiting": {"reason": reason}});
    }
    if let Some(run) = current {
        if !run.record.image_id.is_empty() {
            shown["image"] = run.record.image.clone().into();
            shown["imageID"] = run.record.image_id.clone().into();
        }
        shown["containerID"] = container_id(run).into();
        let promised = view.resizing.allocated.get(&container.name).cloned();
        let promised = promised.unwrap_or_else(|| Amounts::of(container.resources.as_ref()));
        let actual = run.record.resources.as_ref().unwrap_or(&promised);
        let some = |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
        shown["allocatedResources"] = some(&promised.requests);
        shown["resources"] = json!({"limits": some(&actual.limits), "requests": some(&actual.requests)});
        let (uid, gid, groups) = &run.record.user;
        shown["user"] = json!({"linux": {"uid": uid, "gid": gid, "supplementalGroups": groups}});
        strip_nulls(&mut shown);
    }
    // The run before the one shown: the latest itself when it only shows as waiting.
    let shows_exit = shown["state"]["terminated"].is_object();
    let last = match current {
        Some(run) if run.exit().is_some() && !shows_exit => Some(run),
        _ => state.previous.as_ref(),
    };
    if let Some((run, exit)) = last.and_then(|run| run.exit().map(|exit| (run, exit))) {
        shown["lastState"] = json!({"terminated": terminated(run, exit)});
    }
    let running = state.running();
    let regular_init = init && !is_sidecar(container);
    shown["started"] = (running && state.started && (!is_sidecar(container) || state.up())).into();
    shown["ready"] = if regular_init {
        state.exit().is_some_and(|exit| exit.code == 0).into()
    } else {
        (running && state.started && state.ready).into()
    };
    shown
}

/// A container that was added: nothing is served by it, so it is never ready.
fn ephemeral(view: &PodView<'_>, spec: &PodSpec, added: &Container) -> Value {
    let mut shown = container(view, spec, added, false);
    shown["ready"] = false.into();
    if let Some(shown) = shown.as_object_mut() {
        shown.remove("started");
    }
    shown
}

fn strip_nulls(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
        map.values_mut().for_each(strip_nulls);
    }
}

fn waiting_state(view: &PodView<'_>, container: &Container, waiting: &super::model::Waiting) -> Value {
    let shown_until = waiting.since.checked_add(SignedDuration::from_secs(SHOW_FAILURE_SECS)).unwrap_or(waiting.since);
    if matches!(waiting.reason.as_str(), "ErrImagePull" | "RegistryUnavailable") && view.now >= shown_until {
        let image = container.image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image \"{image}\": {}: {}", waiting.reason, waiting.message);
        return json!({"reason": "ImagePullBackOff", "message": message});
    }
    json!({"reason": waiting.reason, "message": waiting.message})
}

fn life(view: &PodView<'_>, spec: &PodSpec, container: &Container, init: bool, run: &Run) -> Value {
    match &run.life {
        Life::Created => json!({"waiting": {"reason": "ContainerCreating"}}),
        Life::Running(since) => json!({"running": {"startedAt": rfc3339_seconds(*since)}}),
        Life::Exited(_) if back_off(view, spec, container, init, run).is_some() => {
            let (secs, pod) = (go_duration(run.record.backoff_secs), describe(view.pod));
            let message = format!("back-off {secs} restarting failed container={} pod={pod}", container.name);
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}})
        }
        Life::Exited(exit) => json!({"terminated": terminated(run, exit)}),
    }
}

/// As Go prints a duration of whole seconds: `10s`, `2m40s`.
fn go_duration(secs: u32) -> String {
    if secs < 60 { format!("{secs}s") } else { format!("{}m{}s", secs / 60, secs % 60) }
}

fn container_id(run: &Run) -> String {
    format!("{RUNTIME}://{}", run.record.id)
}

fn terminated(run: &Run, exit: &Exit) -> Value {
    let mut value = json!({
        "exitCode": exit.code,
        "reason": exit.reason,
        "startedAt": exit.started.map(rfc3339_seconds),
        "finishedAt": rfc3339_seconds(exit.finished),
        "containerID": container_id(run),
    });
    if exit.signal != 0 {
        value["signal"] = exit.signal.into();
    }
    if !exit.message.is_empty() {
        value["message"] = exit.message.clone().into();
    }
    value
}

#[derive(Default)]
struct Counts {
    running: usize,
    waiting: usize,
    stopped: usize,
    for_good: usize,
    succeeded: usize,
}

fn phase(view: &PodView<'_>, spec: &PodSpec, containers: &[Value], inits: &[Value]) -> &'static str {
    if let Some(done @ ("Succeeded" | "Failed")) = view.pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        return if done == "Succeeded" { "Succeeded" } else { "Failed" };
    }
    if view.failed.is_some() {
        return "Failed";
    }
    let over = initialized(view, spec);
    let mut counts = Counts::default();
    let mut pending = false;
    for (container, shown) in init_containers(spec).iter().zip(inits) {
        let code = exit_code(shown);
        if is_sidecar(container) {
            counts.running += usize::from(shown["state"]["running"].is_object());
            pending |= !over && shown["started"] != true;
        } else if let Some(code) = code.filter(|code| *code != 0) {
            if !restarts(spec, container, true, code) && !over {
                return "Failed";
            }
            pending |= !over;
        } else {
            pending |= !over && !shown["state"]["terminated"].is_object();
        }
    }
    for (container, shown) in spec.containers.iter().zip(containers) {
        match exit_code(shown) {
            _ if shown["state"]["running"].is_object() => counts.running += 1,
            Some(code) => {
                counts.stopped += 1;
                let resized = view.containers.get(&container.name).is_some_and(View::is_resized);
                counts.for_good += usize::from(!resized && !restarts(spec, container, false, code));
                counts.succeeded += usize::from(code == 0 && shown["state"]["terminated"].is_object());
            }
            None => counts.waiting += 1,
        }
    }
    let deleted = view.pod.metadata.deletion_timestamp.is_some() && matches!(view.sandbox, SandboxView::Absent);
    match counts {
        _ if pending => "Pending",
        Counts { waiting: 1.., .. } => "Pending",
        // Sidecars are on their way out when everything else has ended.
        Counts { running: 1.., .. } if !finished(view, spec) => "Running",
        Counts { running: 1.., .. } => "Running",
        Counts { stopped, succeeded, for_good, .. } if deleted || stopped == for_good => {
            if stopped == succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        _ => "Running",
    }
}

/// The exit code of the run that is over, whether it shows as terminated or as waiting for the next.
fn exit_code(shown: &Value) -> Option<i32> {
    let state = &shown["state"];
    let terminated = if state["terminated"].is_object() {
        &state["terminated"]
    } else if state["waiting"].is_object() {
        &shown["lastState"]["terminated"]
    } else {
        return None;
    };
    terminated["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok())
}

struct Condition {
    status: bool,
    reason: &'static str,
    message: String,
}

fn yes() -> Condition {
    Condition { status: true, reason: "", message: String::new() }
}

fn no(reason: &'static str, message: String) -> Condition {
    Condition { status: false, reason, message }
}

fn conditions(view: &PodView<'_>, spec: &PodSpec, phase: &str, containers: &[Value], inits: &[Value]) -> Vec<Value> {
    let sandbox = match view.sandbox {
        SandboxView::Ready { .. } => yes(),
        _ => no("", String::new()),
    };
    let containers_ready = containers_ready(spec, phase, containers, inits);
    let ready = match gates(view.pod, spec) {
        _ if !containers_ready.status => no(containers_ready.reason, containers_ready.message.clone()),
        Some(message) => no("ReadinessGatesNotReady", message),
        None => yes(),
    };
    [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized_condition(view, spec, phase, inits)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ]
    .into_iter()
    .map(|(kind, condition)| finish_condition(view, kind, condition))
    .chain(resize_conditions(view))
    .chain(view.failed.filter(|failure| failure.disrupted).map(|failure| {
        let condition = Condition { status: true, reason: "TerminationByKubelet", message: failure.message.clone() };
        finish_condition(view, "DisruptionTarget", condition)
    }))
    .collect()
}

/// How a resize stands; what was said of one that is over is taken back.
fn resize_conditions(view: &PodView<'_>) -> Vec<Value> {
    let pending = view.resizing.refused.as_ref().map(|refusal| {
        let (reason, message) = refusal.condition();
        Condition { status: true, reason, message: message.to_owned() }
    });
    let under_way = !resize::unequal(view.containers, &view.resizing.allocated).is_empty();
    let progress = under_way.then(|| match &view.resizing.failed {
        Some(text) => Condition { status: true, reason: "Error", message: text.clone() },
        None => yes(),
    });
    let told = |kind: &str| view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind);
    [("PodResizePending", pending), ("PodResizeInProgress", progress)]
        .into_iter()
        .filter_map(|(kind, condition)| match condition {
            Some(condition) => Some(finish_condition(view, kind, condition)),
            None => told(kind).then(|| json!({"type": kind, "$patch": "delete"})),
        })
        .collect()
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn containers_ready(spec: &PodSpec, phase: &str, containers: &[Value], inits: &[Value]) -> Condition {
    match phase {
        "Succeeded" => return no("PodCompleted", String::new()),
        "Failed" => return no("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = init_containers(spec).iter().zip(inits).filter(|(c, _)| is_sidecar(c));
    let unready: Vec<&str> = sidecars
        .chain(spec.containers.iter().zip(containers))
        .filter(|(_, shown)| shown["ready"] != true)
        .map(|(c, _)| c.name.as_str())
        .collect();
    if unready.is_empty() {
        return yes();
    }
    no("ContainersNotReady", format!("containers with unready status: {}", names(&unready)))
}

fn initialized_condition(view: &PodView<'_>, spec: &PodSpec, phase: &str, inits: &[Value]) -> Condition {
    if phase == "Succeeded" {
        return Condition { status: true, reason: "PodCompleted", message: String::new() };
    }
    if initialized(view, spec) {
        return yes();
    }
    let incomplete: Vec<&str> = init_containers(spec)
        .iter()
        .zip(inits)
        .filter(|(c, shown)| shown[if is_sidecar(c) { "started" } else { "ready" }] != true)
        .map(|(c, _)| c.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return yes();
    }
    no("ContainersNotInitialized", format!("containers with incomplete status: {}", names(&incomplete)))
}

fn gates(pod: &Pod, spec: &PodSpec) -> Option<String> {
    let texts: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            let found = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == *kind);
            match found {
                None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
                Some(c) if c.status != "True" => {
                    Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", c.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// Adds the time of the last change: the old one while the status stays the same.
fn finish_condition(view: &PodView<'_>, kind: &str, condition: Condition) -> Value {
    let status = if condition.status { "True" } else { "False" };
    let old = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind);
    let since =
        old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.as_ref()).map_or(view.now, |t| t.0);
    let mut out = Map::new();
    out.insert("type".into(), kind.into());
    out.insert("status".into(), status.into());
    out.insert("lastProbeTime".into(), Value::Null);
    out.insert("lastTransitionTime".into(), rfc3339_seconds(since).into());
    if let Some(generation) = view.pod.metadata.generation {
        out.insert("observedGeneration".into(), generation.into());
    }
    // A merge leaves what it does not name: an old reason has to be taken back.
    let text = |text: &str| if text.is_empty() { Value::Null } else { Value::from(text) };
    if !condition.reason.is_empty() || old.is_some_and(|c| c.reason.is_some()) {
        out.insert("reason".into(), text(condition.reason));
    }
    if !condition.message.is_empty() || old.is_some_and(|c| c.message.is_some()) {
        out.insert("message".into(), text(&condition.message));
    }
    out.into()
}

/// Whether every container of the pod has ended.
pub fn all_ended(view: &PodView<'_>, spec: &PodSpec) -> bool {
    all_containers(spec).all(|c| view.containers.get(&c.name).is_none_or(|state| !state.alive()))
}

#[cfg(test)]
mod tests {
    use super::super::model::{Record, Waiting};
    use super::super::resize::Resizing;
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::new(1_000_000 + secs, 0).expect("a time")
    }

    fn shown(pod: Value, containers: Vec<(&str, View)>, now: i64) -> Value {
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let containers: BTreeMap<String, View> = containers.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        let view = PodView {
            pod: &pod,
            gone: false,
            sandbox: &SandboxView::Ready { ips: vec!["10.0.0.2".into()] },
            containers: &containers,
            failed: None,
            resizing: &Resizing::default(),
            start_time: at(0),
            now: at(now),
        };
        build(&view, &Host { ips: vec!["192.0.2.1".into()] })
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 2},
               "spec": {"containers": [{"name": "a", "image": "i"}]}})
    }

    fn run(attempt: u32, backoff_secs: u32, life: Life) -> Option<Run> {
        let record = Record { id: format!("id{attempt}"), attempt, backoff_secs, hook_done: true, ..Record::default() };
        Some(Run { record, life })
    }

    fn exit(code: i32) -> Life {
        Life::Exited(Exit {
            code,
            signal: 0,
            reason: "Error".into(),
            message: String::new(),
            started: Some(at(0)),
            finished: at(1),
        })
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        status["conditions"].as_array().and_then(|l| l.iter().find(|c| c["type"] == kind)).expect("a condition")
    }

    #[test]
    fn a_pod_comes_up_and_is_ready() {
        let status = shown(pod(), vec![], 0);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
        assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [a]");
        let view = View { current: run(0, 0, Life::Running(at(1))), started: true, ready: true, ..View::default() };
        let status = shown(pod(), vec![("a", view)], 2);
        assert_eq!((status["phase"].as_str(), status["podIP"].as_str()), (Some("Running"), Some("10.0.0.2")));
        assert_eq!(condition(&status, "Ready")["status"], "True");
        assert_eq!(status["containerStatuses"][0]["containerID"], "mycelium://id0");
        assert_eq!(status["observedGeneration"], 2);
    }

    #[test]
    fn a_crash_loop_shows_as_kubectl_users_know_it() {
        let view = View { current: run(1, 160, exit(3)), previous: run(0, 0, exit(2)), ..View::default() };
        let status = shown(pod(), vec![("a", view.clone())], 2);
        let container = &status["containerStatuses"][0];
        assert_eq!(
            container["state"]["waiting"],
            json!({"reason": "CrashLoopBackOff", "message": "back-off 2m40s restarting failed container=a pod=p_n(u)"})
        );
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!((container["restartCount"].as_i64(), status["phase"].as_str()), (Some(1), Some("Running")));
        let status = shown(pod(), vec![("a", view)], 200);
        assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 2);
    }

    #[test]
    fn phases_of_pods_that_end() {
        let with = |policy: &str| {
            let mut pod = pod();
            pod["spec"]["restartPolicy"] = policy.into();
            pod
        };
        let view = |code| View { current: run(0, 0, exit(code)), ..View::default() };
        for (policy, code, phase) in
            [("Never", 0, "Succeeded"), ("Never", 1, "Failed"), ("OnFailure", 1, "Running"), ("Always", 0, "Running")]
        {
            assert_eq!(shown(with(policy), vec![("a", view(code))], 1)["phase"], phase, "{policy} {code}");
        }
        assert_eq!(condition(&shown(with("Never"), vec![("a", view(0))], 1), "Ready")["reason"], "PodCompleted");
    }

    #[test]
    fn a_failed_pull_turns_into_waiting() {
        let waiting = Waiting {
            reason: "ErrImagePull".into(),
            message: "no".into(),
            retry_at: at(10),
            since: at(0),
            delay_secs: 10,
        };
        let view = View { waiting: Some(waiting), ..View::default() };
        let reason = |now| {
            shown(pod(), vec![("a", view.clone())], now)["containerStatuses"][0]["state"]["waiting"]["reason"].clone()
        };
        assert_eq!((reason(1), reason(6)), ("ErrImagePull".into(), "ImagePullBackOff".into()));
    }
}
