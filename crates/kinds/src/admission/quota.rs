//! ResourceQuota: what an object uses, which quotas count it, and how a refusal reads. Pure; the server reads and
//! charges in the transaction of the write.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_api::quantity::{Format, Quantity};
use serde_json::{Value, json};

use crate::pod::qos;
use crate::pod::resources::{self, Resources, read};
use crate::value::{at, has, int, list, text, texts};

pub use crate::pod::resources::Resources as Amounts;

/// Resources of the core group that are counted under their own name, besides `count/`.
const COUNTED: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];
/// What every container must state where a quota limits it.
const STATED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const CLASS_INFIX: &str = ".storageclass.storage.k8s.io/";

/// A kind of object that quotas can count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
}

impl Counted<'_> {
    fn core(&self, resource: &str) -> bool {
        self.group.is_empty() && self.resource == resource
    }

    fn count_name(&self) -> String {
        match self.group {
            "" => format!("count/{}", self.resource),
            group => format!("count/{}.{group}", self.resource),
        }
    }

    /// Whether objects of this kind can use what a quota limits under this name.
    pub fn uses(&self, name: &str) -> bool {
        if name.starts_with("count/") {
            return name == self.count_name();
        }
        if !self.group.is_empty() {
            return false;
        }
        match self.resource {
            "persistentvolumeclaims" => {
                name == self.resource || name == "requests.storage" || name.contains(CLASS_INFIX)
            }
            "services" => name == self.resource || matches!(name, "services.nodeports" | "services.loadbalancers"),
            "pods" => {
                let other = COUNTED.contains(&name) || name.starts_with("services.");
                name == "pods" || !other && name != "requests.storage" && !name.contains(CLASS_INFIX)
            }
            resource => COUNTED.contains(&name) && name == resource,
        }
    }
}

/// The kinds whose objects use what a quota limits.
pub fn counted_by(name: &str) -> Counted<'_> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Counted { group, resource };
    }
    let resource = match name {
        _ if name == "requests.storage" || name.contains(CLASS_INFIX) => "persistentvolumeclaims",
        _ if name.starts_with("services.") => "services",
        _ if COUNTED.contains(&name) => name,
        _ => "pods",
    };
    Counted { group: "", resource }
}

/// What one object uses of everything that quotas can limit.
pub fn usage(counted: Counted<'_>, object: &Value) -> Resources {
    let one = Quantity::from_value(1, Format::DecimalSi);
    let mut usage = Resources::from([(counted.count_name(), one)]);
    if counted.core("pods") {
        pod(object, &mut usage);
    } else if counted.core("services") {
        service(object, &mut usage);
    } else if counted.core("persistentvolumeclaims") {
        claim(object, &mut usage);
    } else if counted.group.is_empty() && COUNTED.contains(&counted.resource) {
        usage.insert(counted.resource.to_owned(), one);
    }
    usage
}

fn pod(pod: &Value, usage: &mut Resources) {
    if matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return;
    }
    usage.insert("pods".to_owned(), Quantity::from_value(1, Format::DecimalSi));
    for (name, amount) in resources::of_live_pod(pod, "requests") {
        usage.insert(format!("requests.{name}"), amount);
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name, amount);
        }
    }
    for (name, amount) in resources::of_live_pod(pod, "limits") {
        usage.insert(format!("limits.{name}"), amount);
    }
}

fn service(service: &Value, usage: &mut Resources) {
    let number = |n: usize| Quantity::from_value(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
    let ports = list(service, &["spec", "ports"]);
    let kind = text(service, &["spec", "type"]);
    let balanced = kind == "LoadBalancer";
    let without_ports = balanced && at(service, &["spec", "allocateLoadBalancerNodePorts"]) == &Value::Bool(false);
    let node_ports = match kind {
        "NodePort" | "LoadBalancer" if !without_ports => ports.len(),
        "LoadBalancer" => ports.iter().filter(|port| int(port, &["nodePort"]).is_some_and(|n| n > 0)).count(),
        _ => 0,
    };
    usage.insert("services".to_owned(), number(1));
    usage.insert("services.nodeports".to_owned(), number(node_ports));
    usage.insert("services.loadbalancers".to_owned(), number(usize::from(balanced)));
}

fn claim(claim: &Value, usage: &mut Resources) {
    let one = Quantity::from_value(1, Format::DecimalSi);
    usage.insert("persistentvolumeclaims".to_owned(), one);
    let asked = read(claim, &["spec", "resources", "requests"]).get("storage").copied();
    // A claim that is being enlarged uses what was allotted already, if that is more.
    let allotted = read(claim, &["status", "allocatedResources"]).get("storage").copied();
    let storage = asked.max(allotted);
    usage.extend(storage.map(|storage| ("requests.storage".to_owned(), storage)));
    let class = text(claim, &["spec", "storageClassName"]);
    if !class.is_empty() {
        usage.insert(format!("{class}{CLASS_INFIX}persistentvolumeclaims"), one);
        usage.extend(storage.map(|storage| (format!("{class}{CLASS_INFIX}requests.storage"), storage)));
    }
}

/// Whether a quota's scopes let it count an object.
pub fn in_scope(quota: &Value, counted: Counted<'_>, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = texts(spec, &["scopes"]).all(|scope| has_scope(scope, "Exists", &[], counted, object));
    plain
        && list(spec, &["scopeSelector", "matchExpressions"]).iter().all(|term| {
            let values: Vec<&str> = texts(term, &["values"]).collect();
            has_scope(text(term, &["scopeName"]), text(term, &["operator"]), &values, counted, object)
        })
}

fn has_scope(scope: &str, operator: &str, values: &[&str], counted: Counted<'_>, object: &Value) -> bool {
    let compare = |value: &str| match operator {
        "In" => values.contains(&value),
        "NotIn" => !values.contains(&value),
        "DoesNotExist" => value.is_empty(),
        _ => !value.is_empty(),
    };
    if counted.core("persistentvolumeclaims") && scope == "VolumeAttributesClass" {
        return compare(text(object, &["spec", "volumeAttributesClassName"]));
    }
    if !counted.core("pods") {
        return false;
    }
    let spec = &object["spec"];
    let ends = int(spec, &["activeDeadlineSeconds"]).is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => qos::class(spec) == "BestEffort",
        "NotBestEffort" => qos::class(spec) != "BestEffort",
        "PriorityClass" => compare(text(spec, &["priorityClassName"])),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        _ => false,
    }
}

fn crosses_namespaces(spec: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = at(spec, &["affinity", kind]);
        let required = list(affinity, &["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = list(affinity, &["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.map(|term| &term["podAffinityTerm"]))
            .any(|term| !list(term, &["namespaces"]).is_empty() || has(term, &["namespaceSelector"]))
    })
}

/// What a quota limits.
pub fn hard(quota: &Value) -> Resources {
    read(quota, &["spec", "hard"])
}

/// The limits a quota's status shows it enforces, and what is used of them.
pub fn status(quota: &Value) -> (Resources, Resources) {
    (read(quota, &["status", "hard"]), read(quota, &["status", "used"]))
}

/// Writes limits and use into a quota's status.
pub fn set_status(quota: &mut Value, hard: &Resources, used: &Resources) {
    let texts = |amounts: &Resources| -> Value {
        amounts.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect()
    };
    quota["status"] = json!({"hard": texts(hard), "used": texts(used)});
}

/// The part of some use that a quota limits.
pub fn mask(hard: &Resources, usage: &Resources) -> Resources {
    usage.iter().filter(|(name, _)| hard.contains_key(*name)).map(|(name, amount)| (name.clone(), *amount)).collect()
}

/// What a change adds to the use: negative where it frees.
pub fn difference(after: &Resources, before: &Resources) -> Resources {
    let names: BTreeSet<&String> = after.keys().chain(before.keys()).collect();
    let amount = |side: &Resources, name: &String| side.get(name).copied().unwrap_or_default();
    let change = |name: &String| (name.clone(), amount(after, name) - amount(before, name));
    names.into_iter().map(change).filter(|(_, amount)| !amount.is_zero()).collect()
}

/// The refusal of a pod that does not state what a quota limits.
pub fn unstated(quota: &Value, pod: &Value) -> Option<String> {
    let limited = hard(quota);
    let spec = &pod["spec"];
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in STATED.into_iter().filter(|name| limited.contains_key(*name)) {
        let (side, resource) = match name.split_once('.') {
            Some((side, resource)) => (side, resource),
            None => ("requests", name),
        };
        if has(spec, &["resources", side, resource]) {
            continue;
        }
        for container in list(spec, &["containers"]).iter().chain(list(spec, &["initContainers"])) {
            if !has(container, &["resources", side, resource]) {
                missing.entry(name).or_default().insert(text(container, &["name"]));
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(",")))
        .collect();
    Some(format!("failed quota: {}: must specify {}", text(quota, &["metadata", "name"]), parts.join("; ")))
}

/// The refusal of a change that would use more than a quota allows.
pub fn exceeded(quota: &Value, change: &Resources) -> Option<String> {
    let (hard, used) = status(quota);
    let now = |name: &String| used.get(name).copied().unwrap_or_default();
    let over = |(name, amount): &(&String, &Quantity)| {
        !amount.is_negative() && !amount.is_zero() && hard.get(*name).is_some_and(|most| now(name) + **amount > *most)
    };
    let names: Vec<&String> = change.iter().filter(over).map(|(name, _)| name).collect();
    if names.is_empty() {
        return None;
    }
    let show = |amount: &dyn Fn(&String) -> Quantity| {
        names.iter().map(|name| format!("{name}={}", amount(name))).collect::<Vec<_>>().join(",")
    };
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        text(quota, &["metadata", "name"]),
        show(&|name| change.get(name).copied().unwrap_or_default()),
        show(&now),
        show(&|name| hard.get(name).copied().unwrap_or_default()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Counted<'_> = Counted { group: "", resource: "pods" };

    #[test]
    fn use_is_counted_by_kind() {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"},
            "limits": {"memory": "1Gi"}}}]}});
        let used = usage(PODS, &pod);
        assert_eq!(used["requests.cpu"].to_string(), "100m");
        assert_eq!(used["cpu"].to_string(), "100m");
        assert_eq!(used["limits.memory"].to_string(), "1Gi");
        assert_eq!(used["pods"].to_string(), "1");
        let mut ended = pod.clone();
        ended["status"]["phase"] = json!("Succeeded");
        assert_eq!(usage(PODS, &ended).keys().collect::<Vec<_>>(), ["count/pods"]);
        let claims = Counted { group: "", resource: "persistentvolumeclaims" };
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}});
        let used = usage(claims, &claim);
        assert_eq!(used["gold.storageclass.storage.k8s.io/requests.storage"].to_string(), "5Gi");
        let services = Counted { group: "", resource: "services" };
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(usage(services, &service)["services.nodeports"].to_string(), "2");
        assert_eq!(counted_by("count/deployments.apps"), Counted { group: "apps", resource: "deployments" });
        for name in ["cpu", "requests.nvidia.com/gpu", "pods"] {
            assert_eq!(counted_by(name), PODS, "{name}");
            assert!(PODS.uses(name), "{name}");
        }
        assert!(!PODS.uses("secrets") && !PODS.uses("requests.storage"));
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        let ends =
            json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{"name": "a"}]}});
        assert!(in_scope(&quota(json!(["BestEffort", "NotTerminating"])), PODS, &plain));
        assert!(!in_scope(&quota(json!(["NotBestEffort"])), PODS, &plain));
        assert!(in_scope(&quota(json!(["Terminating"])), PODS, &ends));
        let by_class = |operator: &str| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}}})
        };
        assert!(in_scope(&by_class("In"), PODS, &ends) && !in_scope(&by_class("NotIn"), PODS, &ends));
        let secrets = Counted { group: "", resource: "secrets" };
        assert!(!in_scope(&quota(json!(["BestEffort"])), secrets, &json!({})));
    }

    #[test]
    fn refusals_read_as_in_kubernetes() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1", "cpu": "1"}},
            "status": {"hard": {"pods": "1", "cpu": "1"}, "used": {"pods": "1", "cpu": "600m"}}});
        let pod =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(unstated(&quota, &pod).as_deref(), Some("failed quota: q: must specify cpu for: a"));
        let change = usage(PODS, &pod);
        assert_eq!(
            exceeded(&quota, &change).as_deref(),
            Some("exceeded quota: q, requested: cpu=1,pods=1, used: cpu=600m,pods=1, limited: cpu=1,pods=1")
        );
    }
}
