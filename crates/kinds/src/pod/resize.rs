//! Changing what a running pod may use: the rules of the `resize` subresource.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use super::{container, is_sidecar, qos, update, validate};
use crate::Errors;
use crate::value::{at, ensure_object, entries, has, list, object_at, same, text};

/// The lists of containers that can be resized.
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// Everything but resources and resize policies stays as it was.
pub fn prepare(new: &mut Value, old: &Value) {
    let wanted = new["spec"].clone();
    crate::meta::keep(new, old, "spec");
    for key in LISTS {
        crate::value::each(new, &["spec", key], |kept| {
            let name = text(kept, &["name"]).to_owned();
            if let Some(wanted) = container(&wanted, &[key], &name) {
                crate::meta::keep(kept, wanted, "resources");
                crate::meta::keep(kept, wanted, "resizePolicy");
            }
        });
    }
    for member in ["labels", "annotations", "finalizers", "ownerReferences"] {
        crate::meta::keep_in_metadata(new, old, member);
    }
}

/// What is wrong with a resize.
pub fn check(new: &Value, old: &Value, errors: &mut Errors) {
    validate::any_pod(new, errors);
    let refuse = |errors: &mut Errors, why: &str| *errors = vec![FieldError::forbidden(&Path::new(""), why)];
    if [new, old].iter().any(|pod| has(pod, &["spec", "resources"])) {
        return refuse(errors, "pods with pod-level resources cannot be resized");
    }
    if update::is_static(old) {
        return refuse(errors, "static pods cannot be resized");
    }
    if text(old, &["spec", "os", "name"]) == "windows" {
        return refuse(errors, "windows pods cannot be resized");
    }
    let spec = Path::new("spec");
    let before = match text(old, &["status", "qosClass"]) {
        "" => qos::class(&old["spec"]),
        class => class,
    };
    if before != qos::class(&new["spec"]) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid(&spec, before, detail));
    }
    check_removals(new, old, &spec, errors);
    check_others(new, old, &spec, errors);
}

/// What is requested or limited stays so.
fn check_removals(new: &Value, old: &Value, spec: &Path, errors: &mut Errors) {
    for key in ["initContainers", "containers"] {
        for (index, before) in list(old, &["spec", key]).iter().enumerate() {
            if key == "initContainers" && !is_sidecar(before) {
                continue;
            }
            let now = list(new, &["spec", key]).get(index).unwrap_or(&Value::Null);
            for which in ["requests", "limits"] {
                let lost = |name: &String| at(now, &["resources", which, name]).is_null();
                if entries(before, &["resources", which]).any(|(name, _)| lost(name)) {
                    let path = spec.child(key).index(index).child("resources").child(which);
                    errors.push(FieldError::forbidden(&path, format!("resource {which} cannot be removed")));
                }
            }
        }
    }
}

/// Only cpu and memory change, and not those of containers that run once before the others.
fn check_others(new: &Value, old: &Value, spec: &Path, errors: &mut Errors) {
    for key in LISTS {
        for (now, before) in list(new, &["spec", key]).iter().zip(list(old, &["spec", key])) {
            let sidecar = is_sidecar(before);
            let (compared, detail) = match key {
                "containers" => (without_change(now, before), "only cpu and memory resources are mutable"),
                _ if sidecar => {
                    (without_change(now, before), "only cpu and memory resources for sidecar containers are mutable")
                }
                _ => (now.clone(), "resources for non-sidecar init containers are immutable"),
            };
            if !same(&compared, before) {
                errors.push(FieldError::forbidden(spec, detail));
            }
        }
    }
}

/// The container with cpu, memory and policies as they were.
fn without_change(now: &Value, before: &Value) -> Value {
    let mut kept = now.clone();
    crate::meta::keep(&mut kept, before, "resizePolicy");
    for which in ["requests", "limits"] {
        let was = at(before, &["resources", which]);
        let Some(amounts) = ensure_object(&mut kept, &["resources", which]) else { continue };
        for resource in ["cpu", "memory"] {
            match was.get(resource) {
                Some(amount) => amounts.insert(resource.to_owned(), amount.clone()),
                None => amounts.remove(resource),
            };
        }
        if amounts.is_empty() && was.is_null() {
            object_at(&mut kept, &["resources"]).map(|resources| resources.remove(which));
        }
    }
    kept
}
