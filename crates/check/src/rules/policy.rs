//! NetworkPolicies: what they select, and peers that fit nobody.

use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};
use crate::value::{entries, list, show_selector};

/// The label that Kubernetes gives to each namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Labels that people take for it.
const TAKEN_FOR_IT: &[&str] = &["name", "namespace", "ns", "kubernetes.io/name", "metadata.name"];

pub fn check(set: &Set, report: &mut Report) {
    for policy in set.local_of("networking.k8s.io", "NetworkPolicy") {
        selects(set, policy, report);
        for (direction, side) in [("ingress", "from"), ("egress", "to")] {
            for (rule_index, rule) in list(&policy.value, &format!("/spec/{direction}")).iter().enumerate() {
                for (index, peer) in list(rule, &format!("/{side}")).iter().enumerate() {
                    check_peer(set, policy, peer, &format!("spec.{direction}[{rule_index}].{side}[{index}]"), report);
                }
            }
        }
    }
}

fn selects(set: &Set, policy: &Object, report: &mut Report) {
    let own = &policy.value["spec"]["podSelector"];
    let Ok(selector) = Selector::from_value(own) else { return };
    if !own.is_object() || selector.is_empty() {
        return;
    }
    let workloads = set.workloads_in(&policy.namespace);
    if workloads.iter().any(|workload| workload.matches(&selector)) {
        return;
    }
    let certain = (!workloads.is_empty() || set.context.cluster) && !set.may_have_other_pods(&policy.namespace);
    let severity = if certain { Severity::Error } else { Severity::Warning };
    let message =
        format!("the policy is for pods with {}, and namespace {} has none", show_selector(own), policy.namespace);
    let fix = "correct the labels; podSelector: {} is for all pods of the namespace";
    report.object(severity, "policy-selects-nothing", policy, "spec.podSelector", message, fix);
}

fn check_peer(set: &Set, policy: &Object, peer: &Value, path: &str, report: &mut Report) {
    let Some(fields) = peer.as_object() else {
        if peer.is_null() {
            let message = "an empty peer is none at all, and the API refuses it";
            let fix = "write podSelector, namespaceSelector or ipBlock; for all peers leave the list out";
            report.object(Severity::Error, "policy-empty-peer", policy, path, message, fix);
        }
        return;
    };
    for key in ["namespaceSelector", "podSelector"] {
        if fields.get(key).is_some_and(Value::is_null) {
            let message = format!("{key} is left empty, which is as if it was not there");
            let what = if key == "podSelector" { "pods" } else { "namespaces" };
            let fix = format!("indent what belongs below it, or write {key}: {{}} for all {what}");
            report.object(Severity::Error, "policy-empty-selector", policy, format!("{path}.{key}"), message, fix);
        }
    }
    if let Some(selector) = fields.get("namespaceSelector").filter(|selector| selector.is_object()) {
        namespaces(set, policy, selector, &format!("{path}.namespaceSelector"), report);
    }
}

/// Namespaces are asked for by a label that nobody gives them.
fn namespaces(set: &Set, policy: &Object, selector: &Value, path: &str, report: &mut Report) {
    let Ok(parsed) = Selector::from_value(selector) else { return };
    if set.any_namespace(&parsed) {
        return;
    }
    for (key, value) in entries(selector, "/matchLabels") {
        let value = value.as_str().unwrap_or_default();
        let exists =
            set.of("", "Namespace").any(|namespace| namespace.value["metadata"]["labels"][key].as_str() == Some(value));
        if TAKEN_FOR_IT.contains(&key.as_str()) && !exists {
            let message = format!("no namespace has the label {key}={value}: Kubernetes does not set it");
            let fix = format!("write {NAME_LABEL}: {value}");
            report.object(
                Severity::Error,
                "policy-namespace-label",
                policy,
                format!("{path}.matchLabels[{key}]"),
                message,
                fix,
            );
        }
    }
}
