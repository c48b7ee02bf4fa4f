//! Binding a pod to a node.

use http::{Response, StatusCode};
use mycelium_kinds::pod::update::check_binding;
use serde_json::{Value, json};

use super::admission;
use super::decode::{self, Expected};
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
    let binding = decode_binding(cx, body, &options)?;
    bind_to(cx, binding, &options).await
}

/// Answers a POST to `bindings`: the pod is named in the body.
pub async fn bind_named(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let binding = decode_binding(cx, body, &options)?;
    let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let path = ResourcePath { resource: "pods".into(), name, subresource: "binding".into(), ..cx.path.clone() };
    let table = cx.server.table();
    let pods = table.get("", "v1", "pods").ok_or(ApiError::NoSuchPath)?;
    bind_to(&Context { path: &path, resource: pods, ..*cx }, binding, &options).await
}

fn decode_binding(cx: &Context<'_>, body: &[u8], options: &WriteOptions) -> Result<Value, ApiError> {
    let (binding, notes) = decode::object(cx, body, &Expected::kind("", "v1", "Binding"), options.validation)?;
    cx.warnings.extend(notes);
    Ok(binding)
}

async fn bind_to(cx: &Context<'_>, mut binding: Value, options: &WriteOptions) -> Result<Response<Body>, ApiError> {
    if binding["metadata"]["name"] != cx.path.name.as_str() {
        return Err(ApiError::bad("name in URL does not match name in Binding object"));
    }
    let faults: Vec<String> = check_binding(&binding).iter().map(ToString::to_string).collect();
    match faults.as_slice() {
        [] => {}
        // Kubernetes passes these on as they are, with a code that says nothing.
        [fault] => return Err(ApiError::Typed(fault.clone())),
        several => return Err(ApiError::Typed(format!("[{}]", several.join(", ")))),
    }
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if binding["target"]["kind"] == "Node" {
        for (key, value) in admission::node_place(cx, &node)? {
            binding["metadata"]["labels"][key] = value;
        }
    }
    update::modify(cx, options, |pod| {
        let object = bound(cx, pod, &binding, &node)?;
        Ok(Change { object, ownership: Ownership::Update })
    })
    .await?;
    Ok(answer::json(StatusCode::CREATED, &success(201)))
}

fn bound(cx: &Context<'_>, pod: &Value, binding: &Value, node: &str) -> Result<Value, ApiError> {
    let name = &cx.path.name;
    let refuse = |message: String| ApiError::Conflict { subject: Subject::new("", "pods/binding", name), message };
    for (field, title) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let wanted = binding["metadata"][field].as_str().filter(|wanted| !wanted.is_empty());
        let current = pod["metadata"][field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != current) {
            let what = format!("{title} in precondition: {wanted}, {title} in object meta: {current}");
            return Err(ApiError::Conflict { subject: cx.subject(), message: update::unmet(cx, &what) });
        }
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
    for map in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][map].as_object().into_iter().flatten() {
            pod["metadata"][map][key.as_str()] = value.clone();
        }
    }
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    let generation = pod["metadata"]["generation"].clone();
    let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "observedGeneration": generation, "lastTransitionTime": cx.server.env.now_rfc3339()});
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

/// A `metav1.Status` that says that all is well.
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}
