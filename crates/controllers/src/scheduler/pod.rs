//! A pod as the scheduler sees it: compiled once, matched against many nodes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint, Toleration,
    TopologySpreadConstraint,
};

use super::node::Node;
use super::resources::{Resources, of_live_pod};
use crate::labels::{Matcher, Requirement};
use crate::objects::labels;

/// A port on the node itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Protocol.
    pub protocol: String,
    /// Number.
    pub number: i32,
    /// Address, or `0.0.0.0` for all.
    pub address: String,
}

impl HostPort {
    /// Whether two pods cannot have both on one node.
    pub fn clashes(&self, other: &Self) -> bool {
        let everywhere = |port: &Self| port.address == "0.0.0.0";
        self.protocol == other.protocol
            && self.number == other.number
            && (self.address == other.address || everywhere(self) || everywhere(other))
    }
}

/// One demand on a node.
#[derive(Clone, Debug, PartialEq)]
enum Demand {
    Label(Requirement),
    Greater(String, i64),
    Less(String, i64),
    Name(bool, BTreeSet<String>),
    Never,
}

impl Demand {
    fn label(demand: &NodeSelectorRequirement) -> Self {
        let values = || demand.values.iter().flatten().cloned().collect::<BTreeSet<_>>();
        let number = || values().first().and_then(|text| text.parse().ok());
        let key = demand.key.clone();
        match demand.operator.as_str() {
            "In" => Self::Label(Requirement::In(key, values())),
            "NotIn" => Self::Label(Requirement::NotIn(key, values())),
            "Exists" => Self::Label(Requirement::Exists(key)),
            "DoesNotExist" => Self::Label(Requirement::DoesNotExist(key)),
            "Gt" => number().map_or(Self::Never, |number| Self::Greater(key, number)),
            "Lt" => number().map_or(Self::Never, |number| Self::Less(key, number)),
            _ => Self::Never,
        }
    }

    fn field(demand: &NodeSelectorRequirement) -> Self {
        let values = demand.values.iter().flatten().cloned().collect();
        match (demand.key.as_str(), demand.operator.as_str()) {
            ("metadata.name", "In") => Self::Name(true, values),
            ("metadata.name", "NotIn") => Self::Name(false, values),
            _ => Self::Never,
        }
    }

    fn holds(&self, node: &Node) -> bool {
        let number = |key: &String| node.labels.get(key).and_then(|text| text.parse::<i64>().ok());
        match self {
            Self::Label(requirement) => requirement.matches(&node.labels),
            Self::Greater(key, limit) => number(key).is_some_and(|value| value > *limit),
            Self::Less(key, limit) => number(key).is_some_and(|value| value < *limit),
            Self::Name(wanted, names) => names.contains(&node.name) == *wanted,
            Self::Never => false,
        }
    }
}

/// All demands of one term of a node selector.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeTerm(Vec<Demand>);

impl NodeTerm {
    /// Compiles a term.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let labels = term.match_expressions.iter().flatten().map(Demand::label);
        let all: Vec<_> = labels.chain(term.match_fields.iter().flatten().map(Demand::field)).collect();
        // A term that demands nothing selects nothing.
        Self(if all.is_empty() { vec![Demand::Never] } else { all })
    }

    /// Whether the node meets all of them.
    pub fn holds(&self, node: &Node) -> bool {
        self.0.iter().all(|demand| demand.holds(node))
    }
}

/// Which pods a term of affinity or a spread constraint counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub namespace_selector: Option<Matcher>,
    /// Pods by label.
    pub selector: Matcher,
}

impl Group {
    fn of_term(pod: &Pod, term: &PodAffinityTerm) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        let mut selector = Matcher::optional(term.label_selector.as_ref());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = labels(&pod.metadata).get(key) {
                selector.require(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
            }
        }
        for key in term.mismatch_label_keys.iter().flatten() {
            if let Some(value) = labels(&pod.metadata).get(key) {
                selector.require(Requirement::NotIn(key.clone(), BTreeSet::from([value.clone()])));
            }
        }
        Self { namespaces, namespace_selector: term.namespace_selector.as_ref().map(Matcher::new), selector }
    }

    fn of_constraint(pod: &Pod, constraint: &TopologySpreadConstraint) -> Self {
        let mut selector = Matcher::optional(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels(&pod.metadata).get(key) {
                selector.require(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
            }
        }
        Self { namespaces: pod.metadata.namespace.iter().cloned().collect(), namespace_selector: None, selector }
    }

    /// Whether it counts a pod with these labels in this namespace, which has labels of its own.
    pub fn counts(&self, pod: &PodInfo, namespace_labels: &BTreeMap<String, String>) -> bool {
        let here = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| selector.matches(namespace_labels));
        here && self.selector.matches(&pod.labels)
    }
}

/// A term of pod affinity: these pods, per value of this node label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// The pods.
    pub group: Group,
    /// The node label that divides nodes into domains.
    pub topology_key: String,
}

/// A spread constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// The pods to spread.
    pub term: Term,
    /// By how many the fullest domain may exceed the emptiest.
    pub max_skew: i32,
    /// With fewer domains than this the emptiest counts as empty.
    pub min_domains: i32,
    /// Whether nodes are barred by it, or only liked less.
    pub required: bool,
    /// Whether nodes outside the pod's node affinity are left out.
    pub honor_affinity: bool,
    /// Whether nodes with taints the pod does not tolerate are left out.
    pub honor_taints: bool,
}

/// Terms that a pod states about other pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodTerms {
    /// It must be near these.
    pub near: Vec<Term>,
    /// It must not be near these.
    pub away: Vec<Term>,
    /// It likes (positive) or dislikes (negative weight) to be near these.
    pub liked: Vec<(Term, i64)>,
}

/// A pod, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Identity: another pod may come under the same name.
    pub uid: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Resources asked for.
    pub requests: Resources,
    /// The same with assumptions, for comparing nodes: cpu and memory.
    pub assumed: (i64, i64),
    /// Ports on the node.
    pub ports: Vec<HostPort>,
    /// Priority.
    pub priority: i32,
    /// It waits rather than drive others out.
    pub never_preempts: bool,
    /// When it was made.
    pub created: Option<jiff::Timestamp>,
    /// Labels its node must have.
    pub node_selector: Matcher,
    /// One of these terms must hold.
    pub node_required: Option<Vec<NodeTerm>>,
    /// Each of these that holds makes a node better liked.
    pub node_preferred: Vec<(NodeTerm, i64)>,
    /// Taints it puts up with.
    pub tolerations: Vec<Toleration>,
    /// What it says about other pods.
    pub terms: PodTerms,
    /// How it spreads.
    pub spread: Vec<Spread>,
}

impl PodInfo {
    /// Compiles a pod.
    pub fn new(pod: &Pod) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = node_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = node_affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let (requests, assumed) = of_live_pod(pod, spec);
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone(),
            labels: labels(&pod.metadata).clone(),
            requests,
            assumed: (assumed.cpu_milli, assumed.memory),
            ports: host_ports(spec),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            node_selector: spec.node_selector.as_ref().map(Matcher::exact).unwrap_or_default(),
            node_required: required.map(|selector| selector.node_selector_terms.iter().map(NodeTerm::new).collect()),
            node_preferred: preferred
                .into_iter()
                .flatten()
                .map(|term| (preferred_term(&term.preference), term.weight.into()))
                .collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            terms: pod_terms(pod, spec),
            spread: spec.topology_spread_constraints.iter().flatten().map(|c| spread(pod, c)).collect(),
        }
    }

    /// Whether the node is one the pod's selector and affinity allow.
    pub fn allows(&self, node: &Node) -> bool {
        self.node_selector.matches(&node.labels)
            && self.node_required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(node)))
    }

    /// Whether the pod puts up with a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    }

    /// Whether where other pods run matters to it.
    pub fn minds_pods(&self) -> bool {
        !self.spread.is_empty() || !self.terms.near.is_empty() || !self.terms.away.is_empty()
    }
}

/// An empty preference likes every node.
fn preferred_term(term: &NodeSelectorTerm) -> NodeTerm {
    let none = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    if none { NodeTerm(Vec::new()) } else { NodeTerm::new(term) }
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter(|port| port.host_port.is_some_and(|number| number > 0));
    named
        .map(|port| HostPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.host_port.unwrap_or_default(),
            address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
        })
        .collect()
}

fn pod_terms(pod: &Pod, spec: &PodSpec) -> PodTerms {
    let term =
        |term: &PodAffinityTerm| Term { group: Group::of_term(pod, term), topology_key: term.topology_key.clone() };
    let Some(affinity) = &spec.affinity else { return PodTerms::default() };
    let mut terms = PodTerms::default();
    if let Some(near) = &affinity.pod_affinity {
        terms.near = near.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
        let liked = near.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        terms.liked.extend(liked.map(|weighted| (term(&weighted.pod_affinity_term), i64::from(weighted.weight))));
    }
    if let Some(away) = &affinity.pod_anti_affinity {
        terms.away = away.required_during_scheduling_ignored_during_execution.iter().flatten().map(term).collect();
        let disliked = away.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        terms.liked.extend(disliked.map(|weighted| (term(&weighted.pod_affinity_term), -i64::from(weighted.weight))));
    }
    terms
}

fn spread(pod: &Pod, constraint: &TopologySpreadConstraint) -> Spread {
    Spread {
        term: Term { group: Group::of_constraint(pod, constraint), topology_key: constraint.topology_key.clone() },
        max_skew: constraint.max_skew,
        min_domains: constraint.min_domains.unwrap_or(1),
        required: constraint.when_unsatisfiable == "DoNotSchedule",
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}
