//! What is wrong with where a pod wants to run.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use crate::Errors;
use crate::check::{optional_one_of, positive, refuse};
use crate::meta::{check_label_key, check_selector};
use crate::value::{entries, has, int, list, text, texts};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Taints that a pod puts up with.
pub fn check_tolerations(spec: &Value, path: &Path, errors: &mut Errors) {
    for (index, toleration) in list(spec, &["tolerations"]).iter().enumerate() {
        let path = path.index(index);
        let operator_path = path.child("operator");
        let [key, operator, value, effect] = ["key", "operator", "value", "effect"].map(|key| text(toleration, &[key]));
        if !key.is_empty() {
            check_label_key(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&operator_path, operator, detail));
        }
        if has(toleration, &["tolerationSeconds"]) && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&path.child("effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => {
                let wrong = names::is_label_value(value);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&operator_path, value, wrong.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&operator_path, value, detail));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(&operator_path, other, &["Equal", "Exists"])),
        }
        optional_one_of(errors, &path.child("effect"), effect, EFFECTS);
    }
}

/// What keeps pods off a node.
pub fn check_taints(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in list(spec, &["taints"]).iter().enumerate() {
        let path = path.index(index);
        let [key, value, effect] = ["key", "value", "effect"].map(|key| text(taint, &[key]));
        check_label_key(key, &path.child("key"), errors);
        refuse(errors, &path.child("value"), value, names::is_label_value(value));
        crate::check::one_of(errors, &path.child("effect"), effect, EFFECTS);
        if !seen.insert((key, effect)) {
            let detail = "taints must be unique by key and effect pair";
            errors.push(FieldError { detail: detail.to_owned(), ..FieldError::duplicate(&path, taint.clone()) });
        }
    }
}

/// Readiness gates and scheduling gates.
pub fn check_gates(spec: &Value, path: &Path, errors: &mut Errors) {
    for (index, gate) in list(spec, &["readinessGates"]).iter().enumerate() {
        let kind = text(gate, &["conditionType"]);
        check_label_key(kind, &path.child("readinessGates").index(index).child("conditionType"), errors);
    }
    let mut seen = BTreeSet::new();
    for (index, gate) in list(spec, &["schedulingGates"]).iter().enumerate() {
        let path = path.child("schedulingGates").index(index);
        let name = text(gate, &["name"]);
        check_label_key(name, &path, errors);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
}

/// Affinity to nodes and to other pods.
pub fn check_affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node_path = path.child("nodeAffinity");
    if has(affinity, &["nodeAffinity", REQUIRED]) {
        check_node_selector(&affinity["nodeAffinity"][REQUIRED], &node_path.child(REQUIRED), errors);
    }
    for (index, term) in list(affinity, &["nodeAffinity", PREFERRED]).iter().enumerate() {
        let path = node_path.child(PREFERRED).index(index);
        check_weight(term, &path, errors);
        check_node_term(&term["preference"], false, &path.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let path = path.child(kind);
        for (index, term) in list(affinity, &[kind, REQUIRED]).iter().enumerate() {
            check_pod_term(term, &path.child(REQUIRED).index(index), errors);
        }
        for (index, term) in list(affinity, &[kind, PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            check_weight(term, &path, errors);
            check_pod_term(&term["podAffinityTerm"], &path.child("podAffinityTerm"), errors);
        }
    }
}

fn check_weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = int(term, &["weight"]).unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// A selector of nodes: one of its terms must hold.
pub fn check_node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    let terms = list(selector, &["nodeSelectorTerms"]);
    if terms.is_empty() {
        errors.push(FieldError::required(&path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        check_node_term(term, true, &path.index(index), errors);
    }
}

fn check_node_term(term: &Value, strict: bool, path: &Path, errors: &mut Errors) {
    for (index, requirement) in list(term, &["matchExpressions"]).iter().enumerate() {
        check_node_requirement(requirement, strict, &path.child("matchExpressions").index(index), errors);
    }
    for (index, requirement) in list(term, &["matchFields"]).iter().enumerate() {
        check_node_field(requirement, &path.child("matchFields").index(index), errors);
    }
}

fn check_node_requirement(requirement: &Value, strict: bool, path: &Path, errors: &mut Errors) {
    let values: Vec<&str> = texts(requirement, &["values"]).collect();
    let values_path = path.child("values");
    match text(requirement, &["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(&values_path, detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(&values_path, detail));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(&values_path, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    check_label_key(text(requirement, &["key"]), &path.child("key"), errors);
    for (index, value) in values.iter().enumerate().filter(|_| strict) {
        refuse(errors, &values_path.index(index), *value, names::is_label_value(value));
    }
}

fn check_node_field(requirement: &Value, path: &Path, errors: &mut Errors) {
    let values: Vec<&str> = texts(requirement, &["values"]).collect();
    match text(requirement, &["operator"]) {
        "In" | "NotIn" if values.len() != 1 => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(&path.child("values"), detail));
        }
        "In" | "NotIn" => {}
        other => errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    match text(requirement, &["key"]) {
        "metadata.name" => {
            for (index, value) in values.iter().enumerate() {
                refuse(errors, &path.child("values").index(index), *value, names::is_dns1123_subdomain(value));
            }
        }
        other => errors.push(FieldError::invalid(&path.child("key"), other, "not a valid field selector key")),
    }
}

fn check_pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    check_selector(&term["labelSelector"], &path.child("labelSelector"), errors);
    check_selector(&term["namespaceSelector"], &path.child("namespaceSelector"), errors);
    for name in texts(term, &["namespaces"]) {
        refuse(errors, &path.child("namespace"), name, names::is_dns1123_label(name));
    }
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        check_keys(term, key, path, errors);
    }
    check_selected_keys(term, path, errors);
    let excluded: BTreeSet<&str> = texts(term, &["mismatchLabelKeys"]).collect();
    for (index, key) in texts(term, &["matchLabelKeys"]).enumerate().filter(|(_, key)| excluded.contains(key)) {
        let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.push(FieldError::invalid(&path.child("matchLabelKeys").index(index), key, detail));
    }
    let topology = text(term, &["topologyKey"]);
    if topology.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    check_label_key(topology, &path.child("topologyKey"), errors);
}

fn check_keys(term: &Value, key: &str, path: &Path, errors: &mut Errors) {
    let path = path.child(key);
    if texts(term, &[key]).next().is_some() && !has(term, &["labelSelector"]) {
        errors.push(FieldError::forbidden(&path, "must not be specified when labelSelector is not set"));
    }
    for (index, name) in texts(term, &[key]).enumerate() {
        check_label_key(name, &path.index(index), errors);
    }
}

/// How evenly pods spread.
pub fn check_spread(spec: &Value, path: &Path, errors: &mut Errors) {
    const ACTIONS: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
    let constraints = list(spec, &["topologySpreadConstraints"]);
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        positive(errors, &path.child("maxSkew"), &constraint["maxSkew"]);
        let (topology, action) = (text(constraint, &["topologyKey"]), text(constraint, &["whenUnsatisfiable"]));
        if topology.is_empty() {
            errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
        }
        if !ACTIONS.contains(&action) {
            errors.push(FieldError::not_supported(&path.child("whenUnsatisfiable"), action, ACTIONS));
        }
        let repeats =
            |other: &&Value| text(other, &["topologyKey"]) == topology && text(other, &["whenUnsatisfiable"]) == action;
        if constraints[index + 1..].iter().any(|other| repeats(&other)) {
            let path = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(&path, format!("{{{topology}, {action}}}")));
        }
        if let Some(domains) = int(constraint, &["minDomains"]) {
            let path = path.child("minDomains");
            positive(errors, &path, &constraint["minDomains"]);
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(&path, domains, detail));
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            optional_one_of(errors, &path.child(key), text(constraint, &[key]), &["Honor", "Ignore"]);
        }
        check_keys(constraint, "matchLabelKeys", &path, errors);
        check_selected_keys(constraint, &path, errors);
        check_selector(&constraint["labelSelector"], &path.child("labelSelector"), errors);
    }
}

/// A key cannot be both in the selector and among those taken from the pod itself. At the creation of a pod the
/// latter become expressions of the selector, so that such a key is there twice.
fn check_selected_keys(term: &Value, path: &Path, errors: &mut Errors) {
    let keys: Vec<&str> = texts(term, &["matchLabelKeys"]).collect();
    let mut selected: BTreeSet<&str> =
        entries(term, &["labelSelector", "matchLabels"]).map(|(key, _)| key.as_str()).collect();
    for expression in list(term, &["labelSelector", "matchExpressions"]) {
        let key = text(expression, &["key"]);
        let again = !selected.insert(key);
        if let Some(index) = keys.iter().position(|taken| *taken == key).filter(|_| again) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.push(FieldError::invalid(&path.index(index), key, detail));
        }
    }
}
