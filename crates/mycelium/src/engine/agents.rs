//! The nodes' answers to the API server: each request goes to the node it is about, and figures are put together.

use std::convert::Infallible;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use mycelium_apiserver::NodeService;
use mycelium_apiserver::streams::NODE_HEADER;
use mycelium_node::service::Body;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::fleet::Fleet;

/// A service that answers for all nodes.
pub fn service(fleet: Fleet) -> NodeService {
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let fleet = fleet.clone();
        async move { Ok::<_, Infallible>(route(&fleet, request).await) }
    }))
}

async fn route(fleet: &Fleet, request: Request<Body>) -> Response<Body> {
    let name = request.headers().get(NODE_HEADER).and_then(|name| name.to_str().ok()).map(str::to_owned);
    match name {
        None => summaries(fleet).await,
        Some(name) => match fleet.node(&name) {
            Some(node) => call(node.service(), request).await,
            // In the words of a client that cannot reach the node's agent.
            None => {
                let why = if fleet.has(&name) { "no route to host" } else { "no such host" };
                text(StatusCode::BAD_GATEWAY, format!("dial tcp: connecting to node {name}: {why}"))
            }
        },
    }
}

/// Boxed, because the compiler cannot see by itself that the future may go to another thread.
fn call(node: mycelium_node::NodeService, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
    Box::pin(node.oneshot(request).map(|answer| answer.unwrap_or_else(|never| match never {})))
}

/// What all nodes and their pods use: the form of one node's summary, and all nodes in `nodes`.
async fn summaries(fleet: &Fleet) -> Response<Body> {
    let asked = fleet.nodes().into_iter().map(|(_, node)| summary(node.service()));
    let all: Vec<Value> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    let nodes: Vec<Value> = all.iter().map(|summary| summary["node"].clone()).collect();
    let pods = all.iter().flat_map(|summary| summary["pods"].as_array().into_iter().flatten());
    let pods: Vec<Value> = pods.cloned().collect();
    let body = json!({"node": nodes.first(), "nodes": nodes, "pods": pods}).to_string();
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

async fn summary(node: mycelium_node::NodeService) -> Option<Value> {
    let request = Request::get("/stats/summary").body(full(String::new())).ok()?;
    let answer = call(node, request).await;
    serde_json::from_slice(&answer.into_body().collect().await.ok()?.to_bytes()).ok()
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}
