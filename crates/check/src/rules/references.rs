//! What pods refer to: ConfigMaps, Secrets and keys in them, service accounts, priority classes.

use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{entries, flag, has, join, list, text};
use crate::workload::Workload;

/// A reference from a pod.
struct Reference<'a> {
    kind: &'static str,
    name: &'a str,
    optional: bool,
    /// The path of the name.
    path: String,
    /// Keys that must be there, with their paths.
    keys: Vec<(&'a str, String)>,
}

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        let mut said: Vec<(&str, &str)> = Vec::new();
        for reference in references(workload) {
            let id = (reference.kind, reference.name);
            if reference.name.is_empty() || reference.optional || said.contains(&id) {
                continue;
            }
            if !exists(set, workload, &reference, report) {
                said.push(id);
            }
        }
        service_account(set, workload, report);
        priority(set, workload, report);
    }
}

fn references<'a>(workload: &Workload<'a>) -> Vec<Reference<'a>> {
    let mut found = Vec::new();
    for container in workload.containers() {
        for (index, source) in list(container.value, "/envFrom").iter().enumerate() {
            for (field, kind) in [("configMapRef", "ConfigMap"), ("secretRef", "Secret")] {
                let path = format!("{}.envFrom[{index}].{field}", container.path);
                found.push(whole(kind, &source[field], "name", path));
            }
        }
        for (index, variable) in list(container.value, "/env").iter().enumerate() {
            for (field, kind) in [("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")] {
                let path = format!("{}.env[{index}].valueFrom.{field}", container.path);
                let value = &variable["valueFrom"][field];
                let mut reference = whole(kind, value, "name", path.clone());
                reference.keys.push((text(value, "/key"), format!("{path}.key")));
                found.push(reference);
            }
        }
    }
    for (index, volume) in list(workload.spec(), "/volumes").iter().enumerate() {
        let path = workload.path(&format!("spec.volumes[{index}]"));
        found.push(with_items("ConfigMap", &volume["configMap"], "name", format!("{path}.configMap")));
        found.push(with_items("Secret", &volume["secret"], "secretName", format!("{path}.secret")));
        for (number, source) in list(volume, "/projected/sources").iter().enumerate() {
            let path = format!("{path}.projected.sources[{number}]");
            found.push(with_items("ConfigMap", &source["configMap"], "name", format!("{path}.configMap")));
            found.push(with_items("Secret", &source["secret"], "name", format!("{path}.secret")));
        }
    }
    found
}

fn whole<'a>(kind: &'static str, value: &'a Value, field: &str, path: String) -> Reference<'a> {
    Reference {
        kind,
        name: text(value, &format!("/{field}")),
        optional: flag(value, "/optional"),
        path: format!("{path}.{field}"),
        keys: Vec::new(),
    }
}

fn with_items<'a>(kind: &'static str, value: &'a Value, field: &str, path: String) -> Reference<'a> {
    let keys = list(value, "/items")
        .iter()
        .enumerate()
        .map(|(index, item)| (text(item, "/key"), format!("{path}.items[{index}].key")))
        .collect();
    Reference { keys, ..whole(kind, value, field, path) }
}

/// Reports a reference into the void, and keys that are not there. Whether the object itself is known.
fn exists(set: &Set, workload: &Workload<'_>, reference: &Reference<'_>, report: &mut Report) -> bool {
    let namespace = &workload.object.namespace;
    let (kind, name) = (reference.kind, reference.name);
    let found = if kind == "Secret" { secret(set, namespace, name) } else { config_map(set, namespace, name) };
    match found {
        Some(Some(keys)) => {
            for (key, path) in &reference.keys {
                if !key.is_empty() && !keys.iter().any(|known| known == key) {
                    missing_key(workload.object, reference, (key, path), &keys, report);
                }
            }
            true
        }
        Some(None) => true,
        None if set.is_present(kind, name) => true,
        None => {
            missing(set, workload.object, reference, report);
            false
        }
    }
}

fn missing_key(
    object: &Object,
    reference: &Reference<'_>,
    (key, path): (&str, &str),
    keys: &[String],
    report: &mut Report,
) {
    let code = if reference.kind == "Secret" { "missing-secret-key" } else { "missing-config-map-key" };
    let message = format!("{} {} has no key {key}, so the container does not start", reference.kind, reference.name);
    let fix = match nearest(key, keys.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None if keys.is_empty() => "it holds no keys at all".to_owned(),
        None => format!("it has {}", join(keys)),
    };
    report.object(Severity::Error, code, object, path, message, fix);
}

fn missing(set: &Set, object: &Object, reference: &Reference<'_>, report: &mut Report) {
    let (kind, name) = (reference.kind, reference.name);
    let others: Vec<&Object> = set.all().filter(|other| other.group.is_empty() && other.kind == kind).collect();
    let elsewhere = others.iter().find(|other| other.name == name && other.namespace != object.namespace);
    let here = others.iter().filter(|other| other.namespace == object.namespace).map(|other| other.name.as_str());
    let fix = match (elsewhere, nearest(name, here)) {
        (Some(other), _) => {
            format!("there is one in namespace {}; pods use those of their own namespace", other.namespace)
        }
        (None, Some(near)) => format!("did you mean {near}?"),
        (None, None) if kind == "Secret" => format!(
            "create it first (kubectl create secret generic {name} -n {} ...), add it to the files, or set optional: true",
            object.namespace
        ),
        (None, None) => format!("add the {kind} to the files, or set optional: true"),
    };
    // Secrets are kept apart from manifests, and rightly so.
    let secret = kind == "Secret" && !set.context.cluster;
    let (severity, code) = match kind {
        "Secret" => (if secret { Severity::Warning } else { Severity::Error }, "missing-secret"),
        _ => (Severity::Error, "missing-config-map"),
    };
    let message = format!("{kind} {name} is not in namespace {}, so the pods do not start", object.namespace);
    report.object(severity, code, object, &reference.path, message, fix);
}

/// The keys of a ConfigMap: nothing if there is none, `Some(None)` if they cannot be told.
fn config_map(set: &Set, namespace: &str, name: &str) -> Option<Option<Vec<String>>> {
    if name == "kube-root-ca.crt" {
        return Some(None);
    }
    let map = set.find("", "ConfigMap", namespace, name)?;
    Some(Some(keys(&map.value, &["/data", "/binaryData"])))
}

/// The same of a Secret, also one that somebody will make from another object.
pub(super) fn secret(set: &Set, namespace: &str, name: &str) -> Option<Option<Vec<String>>> {
    if let Some(secret) = set.find("", "Secret", namespace, name) {
        return Some(Some(keys(&secret.value, &["/data", "/stringData"])));
    }
    set.all().filter(|object| object.namespace == namespace).find_map(|object| {
        let made = match (object.group.as_str(), object.kind.as_str()) {
            ("cert-manager.io", "Certificate") => text(&object.value, "/spec/secretName"),
            ("bitnami.com", "SealedSecret") => match text(&object.value, "/spec/template/metadata/name") {
                "" => &object.name,
                name => name,
            },
            ("external-secrets.io", "ExternalSecret") => match text(&object.value, "/spec/target/name") {
                "" => &object.name,
                name => name,
            },
            _ => "",
        };
        (made == name).then_some(None)
    })
}

fn keys(value: &Value, pointers: &[&str]) -> Vec<String> {
    pointers.iter().flat_map(|pointer| entries(value, pointer)).map(|(key, _)| key.clone()).collect()
}

fn service_account(set: &Set, workload: &Workload<'_>, report: &mut Report) {
    let name = text(workload.spec(), "/serviceAccountName");
    let namespace = &workload.object.namespace;
    let known = matches!(name, "" | "default")
        || set.find("", "ServiceAccount", namespace, name).is_some()
        || set.is_present("serviceaccount", name);
    if known {
        return;
    }
    let message = format!("service account {name} is not in namespace {namespace}, so no pod is created");
    let here = set.of("", "ServiceAccount").filter(|account| account.namespace == *namespace);
    let fix = match nearest(name, here.map(|account| account.name.as_str())) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("add a ServiceAccount {name}, or leave the field out for the default one"),
    };
    let field = workload.path("spec.serviceAccountName");
    report.object(Severity::Error, "missing-service-account", workload.object, field, message, fix);
}

fn priority(set: &Set, workload: &Workload<'_>, report: &mut Report) {
    let name = text(workload.spec(), "/priorityClassName");
    let known = name.is_empty()
        || matches!(name, "system-node-critical" | "system-cluster-critical")
        || set.find("scheduling.k8s.io", "PriorityClass", "", name).is_some()
        || set.is_present("priorityclass", name);
    if !known && has(workload.spec(), "/priorityClassName") {
        let message = format!("PriorityClass {name} is not here, so no pod is created");
        let field = workload.path("spec.priorityClassName");
        let fix = format!("add a PriorityClass {name}, or leave the field out");
        report.object(Severity::Error, "missing-priority-class", workload.object, field, message, fix);
    }
}
