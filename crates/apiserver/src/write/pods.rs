//! Writes that exist for pods only: binding to a node, eviction.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::decode::{self, Expected};
use super::delete::{self, DeleteOptions};
use super::options::WriteOptions;
use super::update::{self, Change, Ownership};
use crate::answer;
use crate::body::Body;
use crate::error::{ApiError, Subject};
use crate::request::ResourcePath;
use crate::route::Context;

/// Answers a POST to `pods/<name>/binding`.
pub async fn bind(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let (binding, _) = decode::object(cx, body, &Expected::kind("", "v1", "Binding"), options.validation)?;
    bind_to(cx, &binding, &options).await
}

/// Answers a POST to `bindings`: the pod is named in the body.
pub async fn bind_named(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let (binding, _) = decode::object(cx, body, &Expected::kind("", "v1", "Binding"), options.validation)?;
    let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let path = ResourcePath { resource: "pods".into(), name, subresource: "binding".into(), ..cx.path.clone() };
    let table = cx.server.table();
    let pods = table.get("", "v1", "pods").ok_or(ApiError::NoSuchPath)?;
    bind_to(&Context { path: &path, resource: pods, ..*cx }, &binding, &options).await
}

async fn bind_to(cx: &Context<'_>, binding: &Value, options: &WriteOptions) -> Result<Response<Body>, ApiError> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        let path = mycelium_api::field::Path::new("target").child("name");
        let errors = vec![mycelium_api::field::FieldError::required(&path, "")];
        let name = cx.path.name.clone();
        return Err(ApiError::Invalid { group: String::new(), kind: "Binding".into(), name, errors });
    }
    update::modify(cx, options, |pod| {
        let object = bound(cx, pod, binding, node)?;
        Ok(Change { object, ownership: Ownership::Update })
    })
    .await?;
    Ok(answer::json(StatusCode::CREATED, &success(201)))
}

fn bound(cx: &Context<'_>, pod: &Value, binding: &Value, node: &str) -> Result<Value, ApiError> {
    let name = &cx.path.name;
    let refuse = |message: String| ApiError::Conflict { subject: Subject::new("", "pods/binding", name), message };
    if let Some(uid) = binding["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty())
        && Some(uid) != pod["metadata"]["uid"].as_str()
    {
        let current = pod["metadata"]["uid"].as_str().unwrap_or_default();
        return Err(refuse(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current}")));
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(host) = pod["spec"]["nodeName"].as_str().filter(|host| !host.is_empty()) {
        return Err(refuse(format!("pod {name} is already assigned to node {host:?}")));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = json!(node);
    pod["metadata"]["resourceVersion"] = json!("");
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        pod["metadata"]["annotations"][key.as_str()] = value.clone();
    }
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": cx.server.env.now_rfc3339()});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
            Some(condition) => *condition = scheduled,
            None => conditions.push(scheduled),
        }
    }
    Ok(pod)
}

/// Answers a POST to `pods/<name>/eviction`: a deletion that could be refused for the pod's application's sake.
pub async fn evict(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let write = WriteOptions::parse(cx, "CreateOptions")?;
    let (eviction, _) = decode::object(cx, body, &Expected::kind("policy", "v1", "Eviction"), write.validation)?;
    let mut options = DeleteOptions { dry_run: write.dry_run, ..DeleteOptions::default() };
    if eviction["deleteOptions"].is_object() {
        options.merge(&eviction["deleteOptions"]);
    }
    let path = ResourcePath { subresource: String::new(), ..cx.path.clone() };
    let plain = Context { path: &path, ..*cx };
    delete::delete_named(&plain, &path.namespace, &path.name, &options).await?;
    Ok(answer::json(StatusCode::CREATED, &success(201)))
}

/// A `metav1.Status` that says that all is well.
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}
