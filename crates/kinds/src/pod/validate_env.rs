//! What is wrong with the environment of a container, and with references to fields of its pod.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use crate::Errors;
use crate::check::refuse;
use crate::value::{has, list, text};

const ENV_SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Variables of the container.
pub fn check_env(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, variable) in list(container, &["env"]).iter().enumerate() {
        let path = path.index(index);
        let name = text(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            refuse(errors, &path.child("name"), name, names::is_env_var_name(name));
        }
        if has(variable, &["valueFrom"]) {
            check_value_from(variable, &path.child("valueFrom"), errors);
        }
    }
}

fn check_value_from(variable: &Value, path: &Path, errors: &mut Errors) {
    let from = &variable["valueFrom"];
    if has(from, &["fieldRef"]) {
        check_field_ref(&from["fieldRef"], ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if has(from, &["resourceFieldRef"]) {
        check_resource_ref(&from["resourceFieldRef"], false, &path.child("resourceFieldRef"), errors);
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        if has(from, &[source]) {
            check_key_ref(&from[source], &path.child(source), errors);
        }
    }
    let given = ENV_SOURCES.iter().filter(|source| has(from, &[source])).count();
    let detail = match given {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if !text(variable, &["value"]).is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", detail));
}

fn check_key_ref(reference: &Value, path: &Path, errors: &mut Errors) {
    let name = text(reference, &["name"]);
    refuse(errors, &path.child("name"), name, names::is_dns1123_subdomain(name));
    match text(reference, &["key"]) {
        "" => errors.push(FieldError::required(&path.child("key"), "")),
        key => refuse(errors, &path.child("key"), key, names::is_config_map_key(key)),
    }
}

/// A field of the pod, perhaps one label or annotation: `metadata.labels['app']`.
pub fn check_field_ref(reference: &Value, allowed: &[&str], path: &Path, errors: &mut Errors) {
    if text(reference, &["apiVersion"]).is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), ""));
        return;
    }
    let field = text(reference, &["fieldPath"]);
    let field_path = path.child("fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(&field_path, ""));
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|field| field.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            refuse(errors, path, key.as_str(), names::is_qualified_name(&key));
        }
        Some(("metadata.labels", key)) => refuse(errors, path, key, names::is_qualified_name(key)),
        Some((field, _)) if is_known_field(field) => {
            errors.push(FieldError::invalid(path, field, "does not support subscript"));
        }
        _ if !is_known_field(field) => {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            errors.push(FieldError::invalid(&field_path, field, detail));
        }
        _ if !allowed.contains(&field) => errors.push(FieldError::not_supported(&field_path, field, allowed)),
        _ => {}
    }
}

fn is_known_field(field: &str) -> bool {
    ENV_FIELDS.contains(&field)
        || matches!(
            field,
            "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase"
        )
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A request or limit of a container.
pub fn check_resource_ref(reference: &Value, in_volume: bool, path: &Path, errors: &mut Errors) {
    let resource = text(reference, &["resource"]);
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && text(reference, &["containerName"]).is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, RESOURCE_FIELDS));
    }
    let divisor = text(reference, &["divisor"]);
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let sizes = SIZES.join(", ");
    let detail = match resource.split_once('.').map(|(_, resource)| resource) {
        _ if matches!(divisor, "" | "0") => return,
        Some("cpu") if !matches!(divisor, "1" | "1m") => {
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
        }
        Some("memory") if !SIZES.contains(&divisor) => {
            format!("only divisor's values {sizes} are supported with the memory resource")
        }
        Some("ephemeral-storage") if !SIZES.contains(&divisor) => {
            format!("only divisor's values {sizes} are supported with the local ephemeral storage resource")
        }
        _ => return,
    };
    errors.push(FieldError::invalid(&path.child("divisor"), resource, detail));
}

/// Maps and secrets whose entries become variables.
pub fn check_env_from(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, source) in list(container, &["envFrom"]).iter().enumerate() {
        let item = path.index(index);
        let prefix = text(source, &["prefix"]);
        if !prefix.is_empty() {
            refuse(errors, &item.child("prefix"), prefix, names::is_env_var_name(prefix));
        }
        let mut given = 0;
        for key in ["configMapRef", "secretRef"] {
            if has(source, &[key]) {
                given += 1;
                let name = text(source, &[key, "name"]);
                refuse(errors, &item.child(key).child("name"), name, names::is_dns1123_subdomain(name));
            }
        }
        let detail = match given {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", detail));
    }
}
