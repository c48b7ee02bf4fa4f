//! Which nodes get a pod of a DaemonSet, and the pod that each gets.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::children;
use crate::history::REVISION_LABEL;
use crate::objects::{annotation, name, node_name};
use crate::scheduler::{allows, tolerates};

const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
const NAME_FIELD: &str = "metadata.name";

/// What a DaemonSet wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A pod should be made there.
    pub run: bool,
    /// A pod that is there may stay.
    pub stay: bool,
}

/// What the set wants of a node, going by the pod that would be made there.
pub fn wanted(set: &DaemonSet, node: &Node) -> Wanted {
    let pod = new(set, name(&node.metadata), "");
    let Some(spec) = &pod.spec else { return Wanted { run: false, stay: false } };
    let elsewhere = spec.node_name.as_deref().is_some_and(|held| held != name(&node.metadata));
    // The affinity of the template counts, not the one that ties the pod to the node.
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    if elsewhere || !allows(&Pod { spec: Some(template), ..Pod::default() }, node) {
        return Wanted { run: false, stay: false };
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let bothers = |taint: &Taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint));
    Wanted {
        run: !taints.iter().any(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && bothers(t)),
        stay: !taints.iter().any(|taint| taint.effect == "NoExecute" && bothers(taint)),
    }
}

/// The pod for a node.
pub fn new(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = children::pod(&template, set);
    let labels = pod.metadata.labels.get_or_insert_default();
    if let Some(generation) = annotation(&set.metadata, GENERATION) {
        labels.insert(GENERATION_LABEL.into(), generation.to_owned());
    }
    if !hash.is_empty() {
        labels.insert(REVISION_LABEL.into(), hash.to_owned());
    }
    let spec = pod.spec.get_or_insert_default();
    bind(spec, node);
    tolerate(spec);
    pod
}

/// Whether the pod was made from the template as it is.
pub fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let generation = annotation(&set.metadata, GENERATION);
    let same = generation.is_some() && labels.get(GENERATION_LABEL).map(String::as_str) == generation;
    same || labels.get(REVISION_LABEL).map(String::as_str) == Some(hash)
}

/// The node a pod is on, or is meant for.
pub fn target(pod: &Pod) -> Option<&str> {
    if let Some(node) = node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == NAME_FIELD && field.operator == "In");
    named.find_map(|field| field.values.as_ref()?.first()).map(String::as_str)
}

/// Leaves the scheduler one node to choose from.
fn bind(spec: &mut PodSpec, node: &str) {
    let field =
        NodeSelectorRequirement { key: NAME_FIELD.into(), operator: "In".into(), values: Some(vec![node.to_owned()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    let affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// A daemon stays where others have to leave.
fn tolerate(spec: &mut PodSpec) {
    const TAINTS: [(&str, &str); 6] = [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    let network = spec.host_network.unwrap_or(false).then_some(("network-unavailable", "NoSchedule"));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TAINTS.into_iter().chain(network) {
        let new = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&new) {
            tolerations.push(new);
        }
    }
}
