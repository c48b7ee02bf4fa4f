//! What is wrong with requests and limits.

use std::collections::BTreeMap;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use crate::Errors;
use crate::check::refuse;
use crate::value::entries;

fn is_huge_page(resource: &str) -> bool {
    resource.starts_with("hugepages-")
}

fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Resources that may be promised beyond what there is.
fn can_overcommit(resource: &str) -> bool {
    is_native(resource) && !is_huge_page(resource)
}

fn check_resource_name(name: &str, pod_level: bool, path: &Path, errors: &mut Errors) {
    let wrong = names::is_qualified_name(name);
    let well_formed = wrong.is_empty();
    refuse(errors, path, name, wrong);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
    if pod_level {
        if !super::resources::is_pod_level(name) {
            errors.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
        }
        return;
    }
    if !well_formed || standard {
        return;
    }
    if !name.contains('/') {
        let generic = matches!(
            name,
            "pods"
                | "services"
                | "secrets"
                | "configmaps"
                | "storage"
                | "requests.cpu"
                | "limits.cpu"
                | "requests.memory"
                | "limits.memory"
                | "requests.storage"
                | "persistentvolumeclaims"
                | "replicationcontrollers"
                | "resourcequotas"
        );
        if !generic {
            let detail = "must be a standard resource type or fully qualified";
            errors.push(FieldError::invalid(path, name, detail));
        }
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    } else if !is_native(name) && name.starts_with("requests.") {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// Requests and limits.
pub fn check_resources(resources: &Value, path: &Path, pod_level: bool, errors: &mut Errors) {
    let mut quantities: BTreeMap<(&str, &str), Quantity> = BTreeMap::new();
    for which in ["limits", "requests"] {
        for (name, amount) in entries(resources, &[which]) {
            let path = path.child(which).key(name);
            check_resource_name(name, pod_level, &path, errors);
            let Ok(quantity) = Quantity::from_json(amount) else { continue };
            if quantity.is_negative() {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(&path, quantity.to_string(), detail));
            }
            if !is_native(name) && !quantity.is_integer() {
                errors.push(FieldError::invalid(&path, quantity.to_string(), "must be an integer"));
            }
            quantities.insert((which, name), quantity);
        }
    }
    for ((_, name), request) in quantities.iter().filter(|((which, _), _)| *which == "requests") {
        let limit = quantities.get(&("limits", *name));
        let requests_path = path.child("requests");
        let detail = match limit {
            None if !can_overcommit(name) => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&path.child("limits"), detail));
                continue;
            }
            Some(limit) if request != limit && !can_overcommit(name) => {
                format!("must be equal to {name} limit of {limit}")
            }
            Some(limit) if request > limit => format!("must be less than or equal to {name} limit of {limit}"),
            _ => continue,
        };
        errors.push(FieldError::invalid(&requests_path, request.to_string(), detail));
    }
    let any = |matches: fn(&str) -> bool| quantities.keys().any(|(_, name)| matches(name));
    if any(is_huge_page) && !any(|name| matches!(name, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}
