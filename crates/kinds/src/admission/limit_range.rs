//! LimitRange: defaults for the resources of pods in a namespace, and bounds that pods and claims must keep.

use std::collections::BTreeMap;

use mycelium_api::quantity::Quantity;
use serde_json::Value;

use crate::pod::resources::{Resources, of_containers, read};
use crate::value::{each, ensure_object, list, text};

/// Where a pod says what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives the containers of a new pod the requests and limits that they leave open.
pub fn apply_defaults(pod: &mut Value, range: &Value) {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for limit in list(range, &["spec", "limits"]).iter().filter(|limit| text(limit, &["type"]) == "Container") {
        requests.extend(read(limit, &["defaultRequest"]));
        limits.extend(read(limit, &["default"]));
    }
    let mut notes = Vec::new();
    for (containers, title) in [("containers", "container"), ("initContainers", "init container")] {
        each(pod, &["spec", containers], |container| {
            let name = text(container, &["name"]).to_owned();
            for (which, defaults) in [("requests", &requests), ("limits", &limits)] {
                let set = fill(container, which, defaults);
                if !set.is_empty() {
                    let word = which.trim_end_matches('s');
                    notes.push(format!("{} {word} for {title} {name}", set.join(", ")));
                }
            }
        });
    }
    if notes.is_empty() {
        return;
    }
    if let Some(annotations) = ensure_object(pod, &["metadata", "annotations"]) {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        annotations.insert(ANNOTATION.to_owned(), note.into());
    }
}

/// Sets what is missing; returns the names of what was.
fn fill(container: &mut Value, which: &str, defaults: &Resources) -> Vec<String> {
    if defaults.is_empty() {
        return Vec::new();
    }
    let Some(amounts) = ensure_object(container, &["resources", which]) else { return Vec::new() };
    let missing: Vec<&String> = defaults.keys().filter(|name| !amounts.contains_key(*name)).collect();
    for name in &missing {
        amounts.insert((*name).clone(), defaults[*name].to_string().into());
    }
    missing.into_iter().cloned().collect()
}

/// Requests and limits of something that a bound applies to.
struct Usage {
    requests: Resources,
    limits: Resources,
}

/// Which bounds a pod breaks: each text is part of the refusal, of a 403.
pub fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let spec = &pod["spec"];
    let mut faults = Vec::new();
    for limit in list(range, &["spec", "limits"]) {
        let usages: Vec<Usage> = match text(limit, &["type"]) {
            "Container" => ["containers", "initContainers"]
                .iter()
                .flat_map(|containers| list(spec, &[containers]))
                .map(|container| Usage {
                    requests: read(container, &["resources", "requests"]),
                    limits: read(container, &["resources", "limits"]),
                })
                .collect(),
            "Pod" => vec![Usage { requests: whole_pod(spec, "requests"), limits: whole_pod(spec, "limits") }],
            _ => continue,
        };
        for usage in usages {
            faults.extend(minimum(limit, &usage));
            faults.extend(maximum(limit, &usage));
            faults.extend(ratio(limit, &usage));
        }
    }
    faults
}

/// Which bounds a claim breaks.
pub fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    let requests = read(claim, &["spec", "resources", "requests"]);
    let usage = Usage { requests, limits: Resources::new() };
    let mut faults = Vec::new();
    for limit in list(range, &["spec", "limits"]) {
        if text(limit, &["type"]) != "PersistentVolumeClaim" {
            continue;
        }
        faults.extend(minimum(limit, &usage));
        for (name, bound) in read(limit, &["max"]) {
            let start = format!("maximum {name} usage per PersistentVolumeClaim is {bound}");
            match usage.requests.get(&name) {
                None => faults.push(format!("{start}.  No request is specified")),
                Some(request) if *request > bound => faults.push(format!("{start}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    faults
}

fn whole_pod(spec: &Value, which: &str) -> Resources {
    let mut total = of_containers(spec, which);
    total.extend(read(spec, &["resources", which]));
    total
}

fn minimum(limit: &Value, usage: &Usage) -> Vec<String> {
    let kind = text(limit, &["type"]);
    let fault = |name: &String, bound: &Quantity| {
        let start = format!("minimum {name} usage per {kind} is {bound}");
        match (usage.requests.get(name), usage.limits.get(name)) {
            (None, _) => Some(format!("{start}.  No request is specified")),
            (Some(request), _) if request < bound => Some(format!("{start}, but request is {request}")),
            (_, Some(limit)) if limit < bound => Some(format!("{start}, but limit is {limit}")),
            _ => None,
        }
    };
    read(limit, &["min"]).iter().filter_map(|(name, bound)| fault(name, bound)).collect()
}

fn maximum(limit: &Value, usage: &Usage) -> Vec<String> {
    let kind = text(limit, &["type"]);
    let fault = |name: &String, bound: &Quantity| {
        let start = format!("maximum {name} usage per {kind} is {bound}");
        match (usage.requests.get(name), usage.limits.get(name)) {
            (_, None) => Some(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if limit > bound => Some(format!("{start}, but limit is {limit}")),
            (Some(request), _) if request > bound => Some(format!("{start}, but request is {request}")),
            _ => None,
        }
    };
    read(limit, &["max"]).iter().filter_map(|(name, bound)| fault(name, bound)).collect()
}

fn ratio(limit: &Value, usage: &Usage) -> Vec<String> {
    let kind = text(limit, &["type"]);
    let fault = |name: &String, bound: &Quantity| {
        let start = format!("{name} max limit to request ratio per {kind} is {bound}");
        let amount = |of: &Resources| of.get(name).filter(|amount| !amount.is_zero()).map(Quantity::as_f64);
        let Some(request) = amount(&usage.requests) else {
            return Some(format!("{start}, but no request is specified or request is 0"));
        };
        let Some(limit) = amount(&usage.limits) else {
            return Some(format!("{start}, but no limit is specified or limit is 0"));
        };
        let ratio = limit / request;
        (ratio > bound.as_f64()).then(|| format!("{start}, but provided ratio is {ratio:.6}"))
    };
    read(limit, &["maxLimitRequestRatio"]).iter().filter_map(|(name, bound)| fault(name, bound)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_what_it_leaves_open_and_keeps_the_bounds() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "500m"},
            "defaultRequest": {"cpu": "100m", "memory": "1Gi"}, "max": {"cpu": "1"}, "min": {"memory": "1Mi"},
            "maxLimitRequestRatio": {"cpu": "4"}}]}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"},
            {"name": "b", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}]}});
        apply_defaults(&mut pod, &range);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"], "500m");
        assert_eq!(pod["spec"]["containers"][1]["resources"]["requests"], json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container a; cpu limit for container a; memory request for container b"
        );
        assert_eq!(
            check_pod(&pod, &range),
            [
                "cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000",
                "maximum cpu usage per Container is 1, but limit is 2",
            ]
        );
    }

    #[test]
    fn claims_and_whole_pods_have_bounds_too() {
        let range = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"},
            "max": {"storage": "2Gi"}}, {"type": "Pod", "max": {"memory": "1Gi"}}]}});
        let claim = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
        assert_eq!(
            check_claim(&claim, &range),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(check_pod(&pod, &range), ["maximum memory usage per Pod is 1Gi.  No limit is specified"]);
    }
}
