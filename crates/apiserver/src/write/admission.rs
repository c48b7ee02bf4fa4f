//! What Kubernetes' built-in admission does to objects on their way in.

use mycelium_kinds::admission;
use mycelium_store::{Expect, Op};
use serde_json::{Value, json};

use crate::auth::escalation;
use crate::codec;
use crate::custom::definition;
use crate::error::{ApiError, Subject};
use crate::route::Context;

/// Changes a new object, or refuses it. Returns what is written along with it.
pub fn create(cx: &Context<'_>, object: &mut Value) -> Result<Vec<Op>, ApiError> {
    escalation::check(cx, object, None)?;
    if cx.resource.is_core("pods") {
        pod(cx, object)?;
    }
    if cx.resource.is_core("namespaces") {
        return Ok(default_account(cx, object));
    }
    if cx.resource.kind() == "CustomResourceDefinition" {
        definition::establish(object, None, &cx.server.env.now_rfc3339());
    }
    if cx.resource.name() == "certificatesigningrequests" {
        object["spec"]["username"] = json!(cx.who.user);
        object["spec"]["groups"] = json!(cx.who.groups);
    }
    Ok(Vec::new())
}

/// Changes an updated object, or refuses it.
pub fn update(cx: &Context<'_>, object: &mut Value, old: &Value) -> Result<(), ApiError> {
    if cx.resource.kind() == "CustomResourceDefinition" && cx.subresource().is_none() {
        definition::establish(object, Some(old), &cx.server.env.now_rfc3339());
    }
    escalation::check(cx, object, Some(old))
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

fn pod(cx: &Context<'_>, pod: &mut Value) -> Result<(), ApiError> {
    service_account(cx, pod)?;
    priority(cx, pod)?;
    admission::add_default_tolerations(pod);
    admission::add_memory_pressure_toleration(pod);
    Ok(())
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
