//! What may change in a pod.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use super::validate;
use crate::value::{at, ensure_object, entries, int, list, same, text};
use crate::{Errors, Part};

const SPEC_FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What is wrong with an update of a pod.
pub fn check(new: &Value, old: &Value, part: Part, errors: &mut Errors) {
    match part {
        Part::Main => {
            validate::any_pod(new, errors);
            check_spec(new, old, errors);
        }
        Part::EphemeralContainers => {
            validate::any_pod(new, errors);
            if is_static(old) {
                let why = "static pods do not support ephemeral containers";
                *errors = vec![FieldError::forbidden(&Path::new(""), why)];
                return;
            }
            check_ephemeral(new, old, errors);
        }
        Part::Resize => super::resize::check(new, old, errors),
        Part::Status => check_status(new, old, errors),
        _ => {}
    }
}

/// Whether a node reports the pod from a file of its own.
pub(super) fn is_static(pod: &Value) -> bool {
    !at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null()
}

fn check_spec(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    for key in ["containers", "initContainers"] {
        if list(new_spec, &[key]).len() != list(old_spec, &[key]).len() {
            errors.push(FieldError::forbidden(&spec.child(key), "pod updates may not add or remove containers"));
            return;
        }
        for (index, container) in list(new_spec, &[key]).iter().enumerate() {
            check_image(container, &spec.child(key).index(index), errors);
        }
    }
    check_deadline(new_spec, old_spec, &spec.child("activeDeadlineSeconds"), errors);
    check_tolerations(new_spec, old_spec, &spec.child("tolerations"), errors);
    check_gates(new_spec, old_spec, &spec.child("schedulingGates"), errors);
    let allowed = without_allowed_changes(new_spec, old_spec, errors);
    if !same(&allowed, old_spec) {
        let detail = format!("{SPEC_FIXED}\n{}", differences(&allowed, old_spec));
        errors.push(FieldError::forbidden(&spec, detail));
    }
}

/// The new spec with everything that may change put back as it was.
fn without_allowed_changes(new: &Value, old: &Value, errors: &mut Errors) -> Value {
    let mut spec = new.clone();
    for key in ["containers", "initContainers"] {
        copy_images(&mut spec, old, key);
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut spec, old, key);
    }
    let grace = |spec: &Value| int(spec, &["terminationGracePeriodSeconds"]);
    if grace(old).is_some_and(|seconds| seconds < 0) && grace(new) == Some(1) {
        copy(&mut spec, old, "terminationGracePeriodSeconds");
    }
    if !list(old, &["schedulingGates"]).is_empty() {
        let lost = entries(old, &["nodeSelector"]).any(|(key, value)| at(new, &["nodeSelector", key]) != value);
        if lost {
            let path = Path::new("spec").child("nodeSelector");
            let detail = "only additions to spec.nodeSelector are allowed (no deletions or mutations)";
            errors.push(FieldError::invalid(&path, at(new, &["nodeSelector"]).clone(), detail));
        }
        copy(&mut spec, old, "nodeSelector");
        copy(&mut spec, old, "affinity");
    }
    spec
}

/// The class of a pod never changes, and what ended for good does not come back.
fn check_status(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let class = ["status", "qosClass"];
    if !same(at(new, &class), at(old, &class)) {
        errors.push(FieldError::invalid(&path.child("qosClass"), at(new, &class).clone(), crate::meta::IMMUTABLE));
    }
    let policy = text(old, &["spec", "restartPolicy"]);
    if policy == "Always" {
        return;
    }
    for (index, status) in list(old, &["status", "containerStatuses"]).iter().enumerate() {
        let ended = at(status, &["state", "terminated"]);
        let failed = int(ended, &["exitCode"]).unwrap_or_default() != 0;
        let name = text(status, &["name"]);
        let own = super::container(&old["spec"], &["containers"], name).map_or("", |c| text(c, &["restartPolicy"]));
        if ended.is_null() || own == "Always" || (failed && (policy == "OnFailure" || own == "OnFailure")) {
            continue;
        }
        let revived = list(new, &["status", "containerStatuses"])
            .iter()
            .any(|now| text(now, &["name"]) == name && at(now, &["state", "terminated"]).is_null());
        if revived {
            let path = path.child("containerStatuses").index(index).child("state");
            errors.push(FieldError::forbidden(&path, "may not be transitioned to non-terminated state"));
        }
    }
}

fn check_image(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, detail));
    }
}

fn check_deadline(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    match (int(new, &["activeDeadlineSeconds"]), int(old, &["activeDeadlineSeconds"])) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            let detail = mycelium_api::names::outside(0, i64::from(i32::MAX));
            errors.push(FieldError::invalid(path, new, detail));
        }
        (Some(new), Some(old)) if new > old => {
            let detail = "must be less than or equal to previous value";
            errors.push(FieldError::invalid(path, new, detail));
        }
        (None, Some(old)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, old, detail));
        }
        _ => {}
    }
}

fn check_gates(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let known: Vec<&str> = list(old, &["schedulingGates"]).iter().map(|gate| text(gate, &["name"])).collect();
    for (index, gate) in list(new, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, &["name"]);
        if !known.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(&path.index(index).child("name"), detail));
        }
    }
}

/// Tolerations may be added, and the time of an existing one may change.
fn check_tolerations(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let without_time = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(toleration) = toleration.as_object_mut() {
            toleration.remove("tolerationSeconds");
        }
        toleration
    };
    let given: Vec<Value> = list(new, &["tolerations"]).iter().map(without_time).collect();
    let lost = |toleration: &Value| !given.iter().any(|given| same(given, &without_time(toleration)));
    if list(old, &["tolerations"]).iter().any(lost) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn check_ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    for container in list(old, &["spec", "ephemeralContainers"]) {
        let name = text(container, &["name"]);
        match super::container(&new["spec"], &["ephemeralContainers"], name) {
            None => errors.push(FieldError::forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(now) if !same(now, container) => errors.push(FieldError::forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    crate::meta::keep(to, from, key);
}

fn copy_images(to: &mut Value, from: &Value, key: &str) {
    let Some(containers) = to.get_mut(key).and_then(Value::as_array_mut) else { return };
    for (container, old) in containers.iter_mut().zip(list(from, &[key])) {
        copy(container, old, "image");
    }
}

/// The paths at which two specs differ, one in each line, with a minus for the old and a plus for the new value.
fn differences(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    collect_differences(new, old, "", &mut lines);
    lines.join("\n")
}

fn collect_differences(new: &Value, old: &Value, path: &str, lines: &mut Vec<String>) {
    if same(new, old) {
        return;
    }
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let mut keys: Vec<&String> = new.keys().chain(old.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let of = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                collect_differences(&of(new), &of(old), &format!("{path}.{key}"), lines);
            }
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            for (index, (new, old)) in new.iter().zip(old).enumerate() {
                collect_differences(new, old, &format!("{path}[{index}]"), lines);
            }
        }
        _ => {
            lines.push(format!("- spec{path}: {old}"));
            lines.push(format!("+ spec{path}: {new}"));
        }
    }
}

/// What is wrong with a Binding of a pod to a node.
pub fn check_binding(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("target");
    let kind = text(binding, &["target", "kind"]);
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported(&path.child("kind"), kind, &["Node", "<empty>"]));
    }
    if text(binding, &["target", "name"]).is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    errors
}

/// Prepares an update of a pod: what each part may not touch is taken from the old pod.
pub fn prepare(new: &mut Value, old: &Value, part: Part) {
    if part == Part::Status {
        crate::meta::keep_in_metadata(new, old, "ownerReferences");
        if text(new, &["status", "qosClass"]).is_empty() {
            let class = at(old, &["status", "qosClass"]).clone();
            if let Some(status) = ensure_object(new, &["status"]).filter(|_| !class.is_null()) {
                status.insert("qosClass".to_owned(), class);
            }
        }
    }
    if part == Part::Resize {
        super::resize::prepare(new, old);
    }
    if part == Part::EphemeralContainers {
        let containers = at(new, &["spec", "ephemeralContainers"]).clone();
        crate::meta::keep(new, old, "spec");
        if let Some(spec) = ensure_object(new, &["spec"]).filter(|_| !containers.is_null()) {
            spec.insert("ephemeralContainers".to_owned(), containers);
        }
    }
}
