//! What Kubernetes' built-in admission does to objects on their way in.

use std::sync::Arc;

use mycelium_api::quantity::Quantity;
use mycelium_api::storage;
use mycelium_apimachinery::schema::Shape;
use mycelium_kinds::admission;
use mycelium_store::{Expect, Op};
use serde_json::{Value, json};

use crate::auth::escalation;
use crate::codec;
use crate::custom::{definition, ending};
use crate::dynamic::types;
use crate::error::{ApiError, Subject};
use crate::route::Context;

/// Changes a new object, or refuses it. Returns what is written along with it.
pub fn create(cx: &Context<'_>, object: &mut Value) -> Result<Vec<Op>, ApiError> {
    escalation::check(cx, object, None)?;
    if cx.resource.is_core("pods") {
        pod(cx, object)?;
    }
    if cx.resource.is_core("persistentvolumeclaims") {
        const MARKS: [&str; 2] =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        default_class(cx, object, "storageClassName", "/registry/storage.k8s.io/storageclasses/", &MARKS)?;
        limit_claim(cx, object)?;
    }
    if cx.resource.name() == "ingresses" && object["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null() {
        const MARKS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
        default_class(cx, object, "ingressClassName", "/registry/networking.k8s.io/ingressclasses/", &MARKS)?;
    }
    if cx.resource.is_core("namespaces") {
        return Ok(default_account(cx, object));
    }
    Ok(Vec::new())
}

/// Adds to a new object what depends on nothing but the request, once its kind has prepared it.
pub fn prepared(cx: &Context<'_>, object: &mut Value) {
    if cx.resource.kind() == "CustomResourceDefinition" {
        definition::establish(&cx.server.store, object, None, &cx.server.env.now_rfc3339());
        ending::hold(object);
    }
    let protection = match cx.resource.name() {
        "persistentvolumeclaims" => Some(storage::CLAIM_PROTECTION),
        "persistentvolumes" => Some(storage::VOLUME_PROTECTION),
        _ => None,
    };
    if let Some(protection) = protection.filter(|_| cx.resource.group().is_empty()) {
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == protection) {
            finalizers.push(json!(protection));
        }
        object["metadata"]["finalizers"] = json!(finalizers);
    }
    if cx.resource.kind() == "ValidatingAdmissionPolicy" {
        let found = types::checked(&cx.server.table(), &object["spec"]);
        object["status"] = json!({"observedGeneration": 1, "typeChecking": found});
    }
    if cx.resource.name() == "certificatesigningrequests" {
        object["spec"]["username"] = json!(cx.who.user);
        object["spec"]["groups"] = json!(cx.who.groups);
    }
}

/// Gives an updated object back what it got when it was created and a client left out, before it is compared.
pub fn restore(cx: &Context<'_>, object: &mut Value) {
    if cx.resource.is_core("pods") && cx.subresource().is_none() {
        admission::add_default_tolerations(object, cx.server.patience);
    }
}

/// Completes conditions of which a client has left out what their type has in any case. In Go that is a zero; a client with
/// stricter types cannot read such an object, and one of them in a list is enough to stop it.
pub fn complete_conditions(cx: &Context<'_>, object: &mut Value) {
    const DATE: &str = "lastTransitionTime";
    let ty = cx.resource.schema.child("status").and_then(|status| status.child("conditions"));
    let Some(Shape::List { item, .. }) = ty.map(|ty| &ty.shape) else { return };
    if !item.field(DATE).is_some_and(|field| field.required) {
        return;
    }
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        for field in item.fields().iter().filter(|field| field.required) {
            let value = &mut condition[field.name.as_ref()];
            if value.is_null() {
                *value = if field.name == DATE { json!(cx.server.env.now_rfc3339()) } else { json!("") };
            }
        }
    }
}

/// Changes an updated object, or refuses it.
pub fn update(cx: &Context<'_>, object: &mut Value, old: &Value) -> Result<(), ApiError> {
    if cx.resource.kind() == "CustomResourceDefinition" && cx.subresource().is_none() {
        definition::establish(&cx.server.store, object, Some(old), &cx.server.env.now_rfc3339());
    }
    if cx.resource.kind() == "ValidatingAdmissionPolicy" && cx.subresource().is_none() {
        object["status"]["observedGeneration"] = object["metadata"]["generation"].clone();
        if object["spec"] != old["spec"] {
            object["status"]["typeChecking"] = types::checked(&cx.server.table(), &object["spec"]);
        }
    }
    if cx.resource.is_core("persistentvolumeclaims") && cx.subresource().is_none() {
        limit_claim(cx, object)?;
        resize(cx, object, old)?;
    }
    if cx.resource.is_core("pods") && cx.subresource() == Some("resize") {
        let ranges = limit_ranges(cx)?;
        let faults = ranges.iter().flat_map(|range| admission::limit_range::check_pod(object, range)).collect();
        within_limits(cx, object, faults)?;
    }
    escalation::check(cx, object, Some(old))
}

/// An object that names no class gets the default one: of several, the newest, and of those the first by name.
fn default_class(
    cx: &Context<'_>,
    object: &mut Value,
    field: &str,
    prefix: &str,
    marks: &[&str],
) -> Result<(), ApiError> {
    let spec: &Value = &object["spec"];
    if spec.get(field).is_some_and(|class| !class.is_null()) {
        return Ok(());
    }
    let entries = cx.server.store.range(prefix, None, 0, None).map_err(ApiError::internal)?.entries;
    let mut best: Option<(String, Value)> = None;
    for entry in entries {
        let class = cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?;
        if !marks.iter().any(|mark| class["metadata"]["annotations"][*mark] == "true") {
            continue;
        }
        let made = class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        if best.as_ref().is_none_or(|(newest, _)| made > *newest) {
            best = Some((made, class["metadata"]["name"].clone()));
        }
    }
    if let Some((_, name)) = best {
        object["spec"][field] = name;
    }
    Ok(())
}

/// Every namespace has its default service account from the start, so that the first pod need not wait for it.
fn default_account(cx: &Context<'_>, namespace: &Value) -> Vec<Op> {
    let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
    let key = format!("/registry/core/serviceaccounts/{name}/default");
    if cx.server.store.get(&key).is_some() {
        return Vec::new();
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default",
        "namespace": name, "uid": cx.server.env.uuid(), "creationTimestamp": cx.server.env.now_rfc3339()}});
    vec![Op::Put { key, value: codec::encode(&account), expect: Expect::Absent }]
}

/// In the order of Kubernetes' plugins: what is refused depends on what came before.
fn pod(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let ranges = limit_ranges(cx)?;
    for range in &ranges {
        admission::limit_range::apply_defaults(pod, range);
    }
    service_account(cx, pod)?;
    priority(cx, pod)?;
    admission::add_default_tolerations(pod, cx.server.patience);
    runtime_class(cx, pod)?;
    topology_labels(cx, pod)?;
    let faults = ranges.iter().flat_map(|range| admission::limit_range::check_pod(pod, range)).collect();
    within_limits(cx, pod, faults)
}

/// The LimitRanges of the request's namespace.
fn limit_ranges(cx: &Context<'_>) -> Result<Vec<Arc<Value>>, ApiError> {
    let prefix = format!("/registry/core/limitranges/{}/", cx.path.namespace);
    let entries = cx.server.store.range(&prefix, None, 0, None).map_err(ApiError::internal)?.entries;
    entries.iter().map(|entry| cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)).collect()
}

fn limit_claim(cx: &Context<'_>, claim: &Value) -> Result<(), ApiError> {
    let ranges = limit_ranges(cx)?;
    let faults = ranges.iter().flat_map(|range| admission::limit_range::check_claim(claim, range)).collect();
    within_limits(cx, claim, faults)
}

/// Only what was made by a class that lets its claims grow may grow.
fn resize(cx: &Context<'_>, claim: &Value, old: &Value) -> Result<(), ApiError> {
    let size =
        |claim: &Value| Quantity::from_json(&claim["spec"]["resources"]["requests"]["storage"]).unwrap_or_default();
    if size(claim) <= size(old) || old["status"]["phase"] != "Bound" {
        return Ok(());
    }
    let read = |prefix: &str, name: &Value| {
        let key = format!("{prefix}{}", name.as_str().unwrap_or_default());
        let entry = cx.server.store.get(&key)?;
        cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision).ok()
    };
    const CLASSES: &str = "/registry/storage.k8s.io/storageclasses/";
    let class = read(CLASSES, &claim["spec"]["storageClassName"]).or_else(|| {
        // A class that is served under another name.
        let volume = read("/registry/core/persistentvolumes/", &claim["spec"]["volumeName"])?;
        let ours = volume["metadata"]["annotations"][storage::PROVISIONED_BY] == storage::PROVISIONER;
        ours.then(|| read(CLASSES, &json!(storage::DEFAULT_CLASS)))?
    });
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(ApiError::forbidden(subject(cx, claim), why))
}

fn within_limits(cx: &Context<'_>, object: &Value, faults: Vec<String>) -> Result<(), ApiError> {
    match faults.as_slice() {
        [] => Ok(()),
        [fault] => Err(ApiError::forbidden(subject(cx, object), fault)),
        several => Err(ApiError::forbidden(subject(cx, object), format!("[{}]", several.join(", ")))),
    }
}

fn runtime_class(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default();
    let class = match name {
        "" => None,
        name => stored(cx, &format!("/registry/node.k8s.io/runtimeclasses/{name}"))?,
    };
    admission::runtime_class::apply(pod, class.as_deref())
        .map_err(|refusal| ApiError::forbidden(subject(cx, pod), refusal))
}

/// A pod that is created on a node carries the labels of the node's place.
fn topology_labels(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else { return Ok(()) };
    for (key, value) in node_place(cx, node)? {
        pod["metadata"]["labels"][key] = value;
    }
    Ok(())
}

/// The labels that say where a node is: its zone and its region.
pub fn node_place(cx: &Context<'_>, node: &str) -> Result<Vec<(&'static str, Value)>, ApiError> {
    let Some(node) = stored(cx, &format!("/registry/core/nodes/{node}"))? else { return Ok(Vec::new()) };
    let labels = &node["metadata"]["labels"];
    let keys = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
    Ok(keys.into_iter().map(|key| (key, labels[key].clone())).filter(|(_, value)| value.is_string()).collect())
}

fn stored(cx: &Context<'_>, key: &str) -> Result<Option<Arc<Value>>, ApiError> {
    let entry = cx.server.store.get(key);
    entry.map(|entry| cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)).transpose()
}

fn subject(cx: &Context<'_>, pod: &Value) -> Subject {
    cx.subject_named(pod["metadata"]["name"].as_str().unwrap_or_default())
}

/// The account exists, and its token is mounted.
fn service_account(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let account = admission::service_account_name(pod);
    let namespace = &cx.path.namespace;
    let Some(entry) = cx.server.store.get(&format!("/registry/core/serviceaccounts/{namespace}/{account}")) else {
        let text =
            format!("error looking up service account {namespace}/{account}: serviceaccount {account:?} not found");
        return Err(ApiError::forbidden(subject(cx, pod), text));
    };
    let object = cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?;
    admission::apply_service_account(pod, &object, &cx.server.env.name_suffix(5));
    Ok(())
}

/// A priority class becomes a number.
fn priority(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    const PREFIX: &str = "/registry/scheduling.k8s.io/priorityclasses/";
    let store = &cx.server.store;
    let entries = match pod["spec"]["priorityClassName"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => store.get(&format!("{PREFIX}{name}")).into_iter().collect(),
        None => store.range(PREFIX, None, 0, None).map_err(ApiError::internal)?.entries,
    };
    let named = pod["spec"]["priorityClassName"].as_str().is_some_and(|name| !name.is_empty());
    let mut classes = Vec::with_capacity(entries.len());
    for entry in entries {
        classes.push(cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?);
    }
    let class = if named {
        classes.first().map(|class| &**class)
    } else {
        admission::default_priority_class(classes.iter().map(|class| &**class))
    };
    admission::apply_priority(pod, class).map_err(|refusal| ApiError::forbidden(subject(cx, pod), refusal.detail))
}
