//! The last word on a write: what may refuse a complete, valid object but no longer change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mycelium_kinds::admission::pod_security::{self, Level, Policy};
use serde_json::Value;

use crate::error::{ApiError, Subject};
use crate::route::Context;

/// The most pods of a namespace that a new level is tried on, and the most texts about them.
const EXISTING_PODS_MAX: usize = 3000;
const EXISTING_TEXTS_MAX: usize = 10;

/// Refuses an object, or warns of it. `old` is what an update replaces.
pub fn check(cx: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    match cx.subresource() {
        None | Some("ephemeralcontainers") => pod_security(cx, object, old),
        _ => Ok(()),
    }
}

fn pod_security(cx: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    if cx.resource.is_core("namespaces") {
        return labels(cx, object, old);
    }
    if cx.resource.custom.is_some() || !cx.resource.namespaced() {
        return Ok(());
    }
    if cx.resource.is_core("pods") {
        // Only what containers may do is judged, and it seldom changes.
        if old.is_some_and(|old| old["spec"] == object["spec"]) {
            return Ok(());
        }
        let namespace = namespace(cx)?;
        return pod(cx, &namespace, object);
    }
    let Some((metadata, spec)) = pod_security::template(cx.resource.kind(), object) else { return Ok(()) };
    let namespace = namespace(cx)?;
    warn(cx, &Policy::of(&namespace, "warn"), metadata, spec);
    note(cx, &Policy::of(&namespace, "audit"), metadata, spec);
    Ok(())
}

fn namespace(cx: &Context<'_>) -> Result<Arc<Value>, ApiError> {
    let name = &cx.path.namespace;
    let missing = || ApiError::NotFound(Subject::new("", "namespaces", name));
    let entry = cx.server.store.get(&format!("/registry/core/namespaces/{name}")).ok_or_else(missing)?;
    cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)
}

fn pod(cx: &Context<'_>, namespace: &Value, pod: &Value) -> Result<(), ApiError> {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let enforced = Policy::of(namespace, "enforce");
    cx.audit("pod-security.kubernetes.io/enforce-policy", || enforced.shown().to_owned());
    note(cx, &Policy::of(namespace, "audit"), metadata, spec);
    if let Some(refusal) = enforced.violation(metadata, spec) {
        let name = metadata["name"].as_str().unwrap_or_default();
        return Err(ApiError::forbidden(cx.subject_named(name), format!("violates{}", &refusal["violate".len()..])));
    }
    warn(cx, &Policy::of(namespace, "warn"), metadata, spec);
    Ok(())
}

fn warn(cx: &Context<'_>, policy: &Policy, metadata: &Value, spec: &Value) {
    cx.warnings.extend(policy.violation(metadata, spec).map(|text| format!("would {text}")));
}

fn note(cx: &Context<'_>, policy: &Policy, metadata: &Value, spec: &Value) {
    if let Some(text) = policy.violation(metadata, spec) {
        cx.audit("pod-security.kubernetes.io/audit-violations", || format!("would {text}"));
    }
}

/// The labels must be right, and a stricter level names the pods that it would not have let in.
fn labels(cx: &Context<'_>, namespace: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    pod_security::check_labels(namespace, &mut errors);
    let mut known = Vec::new();
    if let Some(old) = old {
        pod_security::check_labels(old, &mut known);
    }
    if errors.iter().any(|error| !known.contains(error)) {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        return Err(ApiError::Invalid { group: String::new(), kind: "Namespace".into(), name, errors });
    }
    let Some(old) = old else { return Ok(()) };
    let (now, before) = (Policy::of(namespace, "enforce"), Policy::of(old, "enforce"));
    if now != before && now.level != Level::Privileged {
        cx.warnings.extend(existing(cx, namespace, &now)?);
    }
    Ok(())
}

fn existing(cx: &Context<'_>, namespace: &Value, policy: &Policy) -> Result<Vec<String>, ApiError> {
    let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
    let prefix = format!("/registry/core/pods/{name}/");
    let page = cx.server.store.range(&prefix, None, EXISTING_PODS_MAX, None).map_err(ApiError::internal)?;
    let mut broken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in &page.entries {
        let pod = crate::codec::parse_entry(entry)?;
        if let Some(rules) = policy.broken(&pod["metadata"], &pod["spec"]) {
            broken.entry(rules).or_default().push(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    if broken.is_empty() {
        return Ok(Vec::new());
    }
    let title =
        format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level {:?}", policy.shown());
    let mut lines: Vec<String> = broken
        .iter()
        .map(|(rules, pods)| match pods.as_slice() {
            [pod] => format!("{pod}: {rules}"),
            [pod, _] => format!("{pod} (and 1 other pod): {rules}"),
            [pod, more @ ..] => format!("{pod} (and {} other pods): {rules}", more.len()),
            [] => String::new(),
        })
        .collect();
    lines.sort();
    lines.truncate(EXISTING_TEXTS_MAX);
    Ok(std::iter::once(title).chain(lines).collect())
}
