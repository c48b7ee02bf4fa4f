//! What a pod asks for as a whole.

use std::collections::BTreeMap;

use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::is_sidecar;
use crate::value::{ensure_object, entries, entry_count, has, list, text};

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// Reads a map of quantities; malformed ones are left out.
pub fn read(value: &Value, path: &[&str]) -> Resources {
    entries(value, path).filter_map(|(name, amount)| Some((name.clone(), Quantity::from_json(amount).ok()?))).collect()
}

fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(total: &mut Resources, floor: &Resources) {
    for (name, amount) in floor {
        let slot = total.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

/// What all containers of a pod spec take together, of `requests` or `limits`: the containers and sidecars run at
/// once; each init container runs beside the sidecars that started before it.
pub fn of_containers(spec: &Value, which: &str) -> Resources {
    let mut total = Resources::new();
    for container in list(spec, &["containers"]) {
        add(&mut total, &read(container, &["resources", which]));
    }
    let (mut sidecars, mut peak) = (Resources::new(), Resources::new());
    for container in list(spec, &["initContainers"]) {
        let mut now = read(container, &["resources", which]);
        if is_sidecar(container) {
            add(&mut total, &now);
            add(&mut sidecars, &now);
            now.clone_from(&sidecars);
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, &now);
    }
    raise(&mut total, &peak);
    total
}

/// What a pod asks for: its containers, or what is set for the pod as a whole, and its overhead.
pub fn of_pod(spec: &Value, which: &str) -> Resources {
    let mut total = of_containers(spec, which);
    for (name, amount) in read(spec, &["resources", which]) {
        total.insert(name, amount);
    }
    add(&mut total, &read(spec, &["overhead"]));
    total
}

/// What a pod may hold at this moment: while it is being resized, the more of what it has and what it is to have.
pub fn of_live_pod(pod: &Value, which: &str) -> Resources {
    let spec = &pod["spec"];
    let infeasible = list(pod, &["status", "conditions"]).iter().any(|condition| {
        text(condition, &["type"]) == "PodResizePending" && text(condition, &["reason"]) == "Infeasible"
    });
    let mut held = None;
    for (key, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")] {
        for (index, container) in list(spec, &[key]).iter().enumerate() {
            let name = text(container, &["name"]);
            let found = list(pod, &["status", statuses]).iter().find(|status| text(status, &["name"]) == name);
            let Some(status) = found.filter(|status| has(status, &["resources"])) else { continue };
            let mut amounts = read(status, &["resources", which]);
            if which == "requests" {
                raise(&mut amounts, &read(status, &["allocatedResources"]));
            }
            let wanted = read(container, &["resources", which]);
            if !infeasible {
                raise(&mut amounts, &wanted);
            }
            if amounts != wanted {
                let spec = held.get_or_insert_with(|| spec.clone());
                if let Some(slot) = ensure_object(&mut spec[key][index], &["resources", which]) {
                    *slot = amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
                }
            }
        }
    }
    of_pod(held.as_ref().unwrap_or(spec), which)
}

/// Whether a resource can be set for a pod as a whole.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Requests of the pod as a whole, where only its limits are given: what its containers ask for, else the limit.
pub fn default_pod_level(spec: &mut Value) {
    if entry_count(spec, &["resources", "limits"]) == 0 {
        return;
    }
    let from_containers = of_containers(spec, "requests");
    let limits = read(spec, &["resources", "limits"]);
    let Some(requests) = ensure_object(spec, &["resources", "requests"]) else { return };
    let asked = from_containers.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"));
    for (name, amount) in asked.chain(limits.iter().filter(|(name, _)| is_pod_level(name))) {
        crate::value::fill_in(requests, name, amount.to_string());
    }
}
