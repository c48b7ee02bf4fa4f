//! `metrics.k8s.io/v1beta1`: what nodes and pods use, asked of the node at each request. Nothing of it is stored.
//!
//! Form and names are those of `k8s.io/metrics`: processor time in nanocores, memory as working set.

pub mod custom;
pub mod exposition;
pub mod scrape;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use mycelium_apimachinery::schema;
use serde_json::{Value, json};

use crate::body::{self, Body};
use crate::codec;
use crate::error::ApiError;
use crate::read::filter::Filter;
use crate::read::shape;
use crate::resources::Resource;
use crate::route::Context;
use crate::streams;

/// The API group.
pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
const GET_LIST: &[&str] = &["get", "list"];

const fn facts(resource: &'static str, kind: &'static str, namespaced: bool) -> schema::Resource {
    schema::Resource {
        group: GROUP,
        version: VERSION,
        resource,
        singular: "",
        kind,
        namespaced,
        preferred: true,
        verbs: GET_LIST,
        short_names: &[],
        categories: &[],
        subresources: &[],
    }
}

static FACTS: [schema::Resource; 2] = [facts("nodes", "NodeMetrics", false), facts("pods", "PodMetrics", true)];
static RESOURCES: LazyLock<Vec<Arc<Resource>>> =
    LazyLock::new(|| FACTS.iter().map(|facts| Arc::new(Resource::answered(facts))).collect());

/// The resources of the group.
pub fn resources() -> impl Iterator<Item = Arc<Resource>> {
    RESOURCES.iter().cloned().chain(custom::resources())
}

/// Answers a GET of one object.
pub async fn get(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    let missing = || ApiError::NotFound(cx.subject());
    let entry = cx.server.store.get(&measured_key(cx)).ok_or_else(missing)?;
    let summary = summary(cx).await?;
    let object = metrics(cx, &summary, &codec::parse_entry(&entry)?).ok_or_else(missing)?;
    shape::value(cx, StatusCode::OK, &object)
}

/// Answers a GET of all objects, or of those in a namespace.
pub async fn list(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    let filter = Filter::new(cx.resource, cx.query, "")?;
    let summary = summary(cx).await?;
    let page = cx.server.store.range(&measured_key(cx), None, 0, None).map_err(ApiError::internal)?;
    let mut items = Vec::new();
    for entry in page.entries.iter().filter(|entry| filter.passes_key(&entry.key)) {
        let object = codec::parse_entry(entry)?;
        if filter.passes(&object) {
            items.extend(metrics(cx, &summary, &object));
        }
    }
    let list = json!({"kind": cx.resource.facts.list_kind(), "apiVersion": cx.resource.api_version(),
        "metadata": {}, "items": items});
    shape::value(cx, StatusCode::OK, &list)
}

/// The key of the core object that is measured, or the prefix of all such.
fn measured_key(cx: &Context<'_>) -> String {
    let (resource, path) = (cx.resource.name(), cx.path);
    let namespace = if path.namespace.is_empty() { String::new() } else { format!("{}/", path.namespace) };
    format!("/registry/core/{resource}/{namespace}{}", path.name)
}

/// The node's summary.
async fn summary(cx: &Context<'_>) -> Result<Value, ApiError> {
    let request = Request::get("/stats/summary").body(body::empty()).map_err(ApiError::internal)?;
    let answer = streams::ask(cx.server, request).await?;
    let failed = |why: &dyn std::fmt::Display| ApiError::Unavailable(format!("the node's metrics: {why}"));
    if !answer.status().is_success() {
        return Err(failed(&answer.status()));
    }
    let bytes = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| failed(&error))
}

/// The metrics of a node or pod; none while nothing was measured.
fn metrics(cx: &Context<'_>, summary: &Value, object: &Value) -> Option<Value> {
    let name = &object["metadata"]["name"];
    let mut answer = json!({"kind": cx.resource.kind(), "apiVersion": cx.resource.api_version(),
        "metadata": {"name": name}});
    let first = if cx.resource.namespaced() {
        let uid = &object["metadata"]["uid"];
        let pod = summary["pods"].as_array()?.iter().find(|pod| pod["podRef"]["uid"] == *uid)?;
        let containers: Vec<&Value> = pod["containers"].as_array()?.iter().collect();
        let usages: BTreeMap<&str, Value> =
            containers.iter().filter_map(|c| Some((c["name"].as_str()?, usage(c)?))).collect();
        // Half of a pod says nothing of it.
        if usages.len() != containers.len() || usages.is_empty() {
            return None;
        }
        answer["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
        answer["containers"] = usages.into_iter().map(|(name, usage)| json!({"name": name, "usage": usage})).collect();
        containers[0]
    } else {
        // One of several nodes, or the only one.
        let nodes = summary["nodes"].as_array().into_iter().flatten().chain([&summary["node"]]);
        let node = nodes.into_iter().find(|node| node["nodeName"] == *name)?;
        answer["usage"] = usage(node)?;
        node
    };
    if object["metadata"]["labels"].is_object() {
        answer["metadata"]["labels"] = object["metadata"]["labels"].clone();
    }
    let time = first["cpu"]["time"].as_str()?.split('.').next()?.trim_end_matches('Z');
    answer["metadata"]["creationTimestamp"] = json!(format!("{time}Z"));
    answer["timestamp"] = json!(format!("{time}Z"));
    answer["window"] = json!(format!("{:.3}s", first["cpu"]["windowSeconds"].as_f64()?));
    Some(answer)
}

fn usage(measured: &Value) -> Option<Value> {
    let cpu = measured["cpu"]["usageNanoCores"].as_u64()?;
    let memory = measured["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}
