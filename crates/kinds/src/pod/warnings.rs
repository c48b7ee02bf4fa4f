//! What is odd about a pod but accepted: clients show these texts as warnings.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_api::field::Path;
use mycelium_api::names::is_dns1123_label;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::CONTAINER_LISTS;
use crate::value::{at, has, int, list, text};

/// A pod's name is also its host name.
pub fn name(pod: &Value, warnings: &mut Vec<String>) {
    let wrong = is_dns1123_label(text(pod, &["metadata", "name"]));
    if !wrong.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        ));
    }
}

/// What is odd about a pod spec.
pub fn pod_spec(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    for (index, constraint) in list(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        if !has(constraint, &["labelSelector"]) {
            let path = path.child("topologySpreadConstraints").index(index).child("labelSelector");
            warnings.push(format!("{path}: a null labelSelector results in matching no pod"));
        }
    }
    pull_secrets(spec, &path.child("imagePullSecrets"), warnings);
    let containers: Vec<(Path, &Value)> = CONTAINER_LISTS
        .iter()
        .flat_map(|key| list(spec, &[key]).iter().enumerate().map(|(index, c)| (path.child(key).index(index), c)))
        .collect();
    for (path, container) in &containers {
        fractions(container, path, warnings);
        hidden_variables(container, &path.child("env"), warnings);
    }
    ports(&containers, warnings);
    if int(spec, &["terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        warnings.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
}

fn pull_secrets(spec: &Value, path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, secret) in list(spec, &["imagePullSecrets"]).iter().enumerate() {
        let name = text(secret, &["name"]);
        let path = path.index(index).child("name");
        if name.is_empty() {
            warnings.push(format!("{path}: invalid empty name {name:?}"));
        } else if !seen.insert(name) {
            warnings.push(format!("{path}: duplicate name {name:?}"));
        }
    }
}

fn fractions(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    for which in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            let Ok(amount) = Quantity::from_json(at(container, &["resources", which, resource])) else { continue };
            if !amount.is_integer() {
                let path = path.child("resources").child(which).key(resource);
                let shown = amount.to_string();
                warnings.push(format!("{path}: fractional byte value {shown:?} is invalid, must be an integer"));
            }
        }
    }
}

fn hidden_variables(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, variable) in list(container, &["env"]).iter().enumerate() {
        let name = text(variable, &["name"]);
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let value = text(variable, &["value"]);
        if has(variable, &["valueFrom"]) || value == reference || !value.contains(&reference) {
            warnings.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.index(index)
            ));
        }
    }
}

fn ports(containers: &[(Path, &Value)], warnings: &mut Vec<String>) {
    let (mut numbers, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (path, container) in containers {
        for (index, port) in list(container, &["ports"]).iter().enumerate() {
            let path = path.child("ports").index(index);
            let host = (text(port, &["hostIP"]), int(port, &["hostPort"]).unwrap_or_default());
            let others: &mut Vec<(Path, (&str, i64))> =
                numbers.entry((int(port, &["containerPort"]), text(port, &["protocol"]))).or_default();
            for (other, other_host) in others.iter() {
                if host == *other_host {
                    warnings.push(format!("{path}: duplicate port definition with {other}"));
                } else if host.1 == 0 || other_host.1 == 0 {
                    warnings.push(format!("{path}: overlapping port definition with {other}"));
                } else if host.1 == other_host.1 && host.0.is_empty() != other_host.0.is_empty() {
                    warnings.push(format!("{path}: dangerously ambiguous port definition with {other}"));
                }
            }
            others.push((path.clone(), host));
            let name = text(port, &["name"]);
            match names.get(name) {
                _ if name.is_empty() => {}
                None => {
                    names.insert(name, path);
                }
                Some(other) => warnings.push(format!(
                    "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                )),
            }
        }
    }
}
