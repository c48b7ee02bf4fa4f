//! What kinds that make pods from a template share.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::Errors;
use crate::meta::{IMMUTABLE, check_selector};
use crate::pod::validate;
use crate::table::{containers, selector};
use crate::value::{at, has, int, is_empty, same, text};

/// The wide cells: container names, images, selector.
pub fn wide_cells(object: &Value) -> [Value; 3] {
    let [names, images] = containers(at(object, &["spec", "template", "spec"]));
    [names, images, selector(object, &["spec", "selector"])]
}

/// A number that may not be below zero.
pub fn check_not_negative(value: &Value, path: &Path, errors: &mut Errors) {
    if value.as_i64().is_some_and(|number| number < 0) {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

/// A selector that must be given and must not select everything; `kind` is how the message names its owner.
pub fn check_required_selector(selector: &Value, path: &Path, kind: &str, errors: &mut Errors) {
    if selector.is_null() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    check_selector(selector, path, errors);
    if is_empty(selector) {
        let detail = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid(path, selector.clone(), detail));
    }
}

/// Selector and template: the selector must be given, must not select everything, and must match the template.
pub fn check_selector_and_template(spec: &Value, path: &Path, errors: &mut Errors) {
    let selector = &spec["selector"];
    let selector_path = path.child("selector");
    check_required_selector(selector, &selector_path, "deployment", errors);
    match Selector::from_value(selector) {
        Ok(parsed) => check_template(spec, &parsed, path, "ReplicaSet", errors),
        Err(_) => errors.push(FieldError::invalid(&selector_path, selector.clone(), "invalid label selector")),
    }
}

/// A template whose labels match the selector and whose pods always restart.
pub fn check_template(spec: &Value, selector: &Selector, path: &Path, kind: &str, errors: &mut Errors) {
    let path = path.child("template");
    let template = &spec["template"];
    if template.is_null() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    let labels = at(template, &["metadata", "labels"]);
    if !selector.is_empty() && !selector.matches_value(labels) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(&path.child("metadata").child("labels"), labels.clone(), detail));
    }
    validate::template(template, &path, errors);
    check_always_restarts(template, kind, &path, errors);
}

/// Only pods that always restart suit this kind.
fn check_always_restarts(template: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let policy = text(template, &["spec", "restartPolicy"]);
    let path = path.child("spec");
    if policy != "Always" {
        errors.push(FieldError::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if has(template, &["spec", "activeDeadlineSeconds"]) {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden(&path.child("activeDeadlineSeconds"), detail));
    }
}

/// A field that may not change.
pub fn check_immutable(new: &Value, old: &Value, field: &[&str], errors: &mut Errors) {
    let (new, old) = (at(new, field), at(old, field));
    if !same(new, old) {
        let path = field.iter().fold(Path::default(), |path, key| path.child(key));
        errors.push(FieldError::invalid(&path, new.clone(), IMMUTABLE));
    }
}

/// The share in a percentage, if it is one.
pub fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// A whole number that is not negative, or a percentage.
pub fn check_int_or_percent(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::Number(_) => check_not_negative(value, path, errors),
        Value::String(text) => {
            for _ in mycelium_api::names::is_percent(text) {
                let detail = "must be an integer or percentage (e.g '5%%')";
                errors.push(FieldError::invalid(path, text.as_str(), detail));
            }
        }
        _ => {}
    }
}

/// A percentage of at most 100.
pub fn check_at_most_all(value: &Value, path: &Path, errors: &mut Errors) {
    if percent(value).is_some_and(|share| share > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// Whether an integer or percentage is given and is zero.
pub fn is_zero(value: &Value) -> bool {
    int(value, &[]) == Some(0) || percent(value) == Some(0)
}

/// What a client should know about a workload that is accepted all the same.
pub fn advice(object: &Value, warnings: &mut Vec<String>) {
    let wrong = mycelium_api::names::is_dns1123_label(text(object, &["metadata", "name"]));
    if !wrong.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        ));
    }
    template_advice(object, warnings);
}

/// The same, of the pod template alone.
pub fn template_advice(object: &Value, warnings: &mut Vec<String>) {
    let path = Path::new("spec").child("template").child("spec");
    crate::pod::warnings::pod_spec(at(object, &["spec", "template", "spec"]), &path, warnings);
}
