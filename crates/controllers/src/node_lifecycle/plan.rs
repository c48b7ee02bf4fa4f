//! What a node's health means: its conditions, its taints, and which of its pods must leave.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};

use crate::objects::{is_terminal, seconds};

/// A node that has not been heard of for this long is lost, unless it is set otherwise.
pub const GRACE: Duration = Duration::from_secs(40);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The taint that goes with each condition that is true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that only the node itself can vouch for.
const OBSERVED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// The status of the node's Ready condition.
pub fn readiness(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|condition| condition.status.as_str())
}

/// Whether the node says it is well, and was heard of lately.
pub fn is_healthy(node: &Node, silence: Duration, grace: Duration) -> bool {
    readiness(node) == Some("True") && silence < grace
}

/// The conditions of a node that has been silent for so long that nothing it said counts any more; none if they stand.
pub fn conditions(node: &Node, silence: Duration, grace: Duration, now: Timestamp) -> Option<Vec<NodeCondition>> {
    if silence < grace {
        return None;
    }
    let held = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut all = held.clone();
    for type_ in OBSERVED {
        match all.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(seconds(now));
            }
            None => all.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(seconds(now)),
            }),
        }
    }
    (all != held).then_some(all)
}

/// The taints that follow from the conditions; none if they are as they should be. When no node at all is well, the fault
/// is more likely with the control plane, and pods are left where they are (`evict` is false).
pub fn taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let held = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = wanted(node, evict);
    let managed = |taint: &Taint| match taint.effect.as_str() {
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
                || PRESSURES.iter().any(|(_, key)| *key == taint.key)
        }
        _ => false,
    };
    let is = |taint: &Taint, want: &(&str, &str)| taint.key == want.0 && taint.effect == want.1;
    let mut all: Vec<Taint> =
        held.iter().filter(|taint| !managed(taint) || wanted.iter().any(|want| is(taint, want))).cloned().collect();
    for want in wanted.iter().filter(|want| !held.iter().any(|taint| is(taint, want))) {
        let (key, effect) = (want.0.to_owned(), want.1.to_owned());
        let time_added = (effect == "NoExecute").then(|| seconds(now));
        all.push(Taint { key, effect, time_added, value: None });
    }
    (all != held).then_some(all)
}

fn wanted(node: &Node, evict: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let unwell = match readiness(node) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = unwell {
        wanted.push((key, "NoSchedule"));
        if evict {
            wanted.push((key, "NoExecute"));
        }
    }
    for (type_, key) in PRESSURES {
        if condition(node, type_).is_some_and(|condition| condition.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

/// Whether somebody has vouched for it that the node is off and that nothing runs on it: what is to leave it may be taken
/// for gone. Only believed while the node does not say that it is well.
pub fn is_written_off(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    readiness(node) != Some("True") && taints.is_some_and(|all| all.iter().any(|taint| taint.key == OUT_OF_SERVICE))
}

/// When a pod must leave its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// It may stay.
    Always,
    /// It must leave at this time, or already has to.
    Until(Timestamp),
}

/// How long a pod may stay on a node with these taints.
pub fn stay(pod: &Pod, taints: &[Taint]) -> Stay {
    if pod.metadata.deletion_timestamp.is_some() || is_terminal(pod) {
        return Stay::Always;
    }
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let limits = taints.iter().filter(|taint| taint.effect == "NoExecute").map(|taint| limit(taint, tolerations));
    let earliest = limits.filter_map(|stay| if let Stay::Until(at) = stay { Some(at) } else { None }).min();
    earliest.map_or(Stay::Always, Stay::Until)
}

fn limit(taint: &Taint, tolerations: &[Toleration]) -> Stay {
    let mut matching =
        tolerations.iter().filter(|toleration| crate::scheduler::tolerates(toleration, taint)).peekable();
    if matching.peek().is_none() {
        return Stay::Until(Timestamp::MIN);
    }
    let Some(least) = matching.filter_map(|toleration| toleration.toleration_seconds).min() else {
        return Stay::Always;
    };
    let since = taint.time_added.as_ref().map_or(Timestamp::MIN, |time| time.0);
    Stay::Until(since.saturating_add(SignedDuration::from_secs(least.max(0))).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_is_not_well_can_be_written_off() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "n"},
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a node")
        };
        assert!(is_written_off(&node("Unknown", OUT_OF_SERVICE)));
        assert!(is_written_off(&node("False", OUT_OF_SERVICE)));
        assert!(!is_written_off(&node("True", OUT_OF_SERVICE)), "its pods may well run");
        assert!(!is_written_off(&node("Unknown", UNREACHABLE)), "nobody has vouched for it");
    }
}
