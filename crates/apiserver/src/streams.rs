//! Logs, exec, attach, port-forward and proxies: authorised here, answered by the node.
//!
//! The request is rewritten to the form a kubelet serves and handed over with its extensions, in which the connection's
//! upgrade travels: the bytes that follow never pass through this module.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use serde_json::Value;
use tower::ServiceExt;

use crate::answer;
use crate::body::{self, Body};
use crate::codec;
use crate::error::{ApiError, Subject};
use crate::request::{Query, ResourcePath};
use crate::resources::Resource;
use crate::server::{Inner, NodeService};

/// The header that tells the node's service which node is meant. What a client puts there is overwritten.
pub const NODE_HEADER: &str = "x-mycelium-node";

/// Whether a path is answered by a node.
pub fn is_stream(path: &ResourcePath) -> bool {
    path.group.is_empty()
        && match path.resource.as_str() {
            "pods" => matches!(path.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy"),
            "nodes" | "services" => path.subresource == "proxy",
            _ => false,
        }
}

/// Forwards a request to the node.
pub async fn forward(
    server: &Arc<Inner>,
    resource: &Resource,
    path: &ResourcePath,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let proxied = path.subresource == "proxy";
    let name = if proxied { crate::proxy::object_name(&path.name) } else { &path.name };
    let key = resource.key(&path.namespace, name);
    let missing = || ApiError::NotFound(Subject::new("", &path.resource, &path.name));
    let object = codec::parse_entry(&server.store.get(&key).ok_or_else(missing)?)?;
    let query = Query::parse(request.uri().query());
    let node = if path.resource == "nodes" { object["metadata"]["name"].as_str() } else { host(&object) };
    let node = node.and_then(|name| HeaderValue::from_str(name).ok());
    let target = match (path.resource.as_str(), path.subresource.as_str()) {
        ("nodes", _) => with_query(format!("/{}", path.rest), request.uri().query()),
        ("pods", "proxy") | ("services", "proxy") => {
            return crate::proxy::forward(server, path, &object, request).await;
        }
        (_, "log") if host(&object).is_none() => return Ok(answer::text(StatusCode::OK, "")),
        (_, subresource) => {
            host(&object).ok_or_else(|| ApiError::bad(format!("pod {} does not have a host assigned", path.name)))?;
            pod_target(path, subresource, &object, &query)?
        }
    };
    match node {
        Some(node) => request.headers_mut().insert(NODE_HEADER, node),
        None => request.headers_mut().remove(NODE_HEADER),
    };
    *request.uri_mut() = target.parse::<Uri>().map_err(|e| ApiError::bad(e.to_string()))?;
    let node = server.node.get().cloned().ok_or_else(|| ApiError::Unavailable("the node is not running".into()))?;
    Ok(as_status(call(node, request).await).await)
}

/// Asks the node something that is about no object.
pub async fn ask(server: &Inner, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let node = server.node.get().cloned().ok_or_else(|| ApiError::Unavailable("the node is not running".into()))?;
    Ok(call(node, request).await)
}

fn call(node: NodeService, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
    Box::pin(node.oneshot(request).map(|answer| answer.unwrap_or_else(|never| match never {})))
}

fn with_query(path: String, query: Option<&str>) -> String {
    match query {
        Some(query) if !query.is_empty() => format!("{path}?{query}"),
        _ => path,
    }
}

fn host(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

fn pod_target(path: &ResourcePath, subresource: &str, pod: &Value, query: &Query) -> Result<String, ApiError> {
    let (namespace, name) = (&path.namespace, &path.name);
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    if subresource == "portforward" {
        let ports = query.all("ports").flat_map(|ports| ports.split(','));
        let ports: Vec<String> = ports.map(|port| format!("port={}", encode(port))).collect();
        return Ok(with_query(format!("/portForward/{namespace}/{name}/{uid}"), Some(&ports.join("&"))));
    }
    let container = container(pod, name, query.get("container"))?;
    if subresource == "log" {
        let passed =
            ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"];
        let pairs: Vec<String> =
            passed.iter().filter_map(|key| query.get(key).map(|value| format!("{key}={}", encode(value)))).collect();
        return Ok(with_query(format!("/containerLogs/{namespace}/{name}/{container}"), Some(&pairs.join("&"))));
    }
    if let Some(phase @ ("Succeeded" | "Failed")) = pod["status"]["phase"].as_str() {
        return Err(ApiError::bad(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let mut pairs = Vec::new();
    for (ours, kubelets) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(ours) {
            pairs.push(format!("{kubelets}=1"));
        }
    }
    pairs.extend(query.all("command").map(|word| format!("command={}", encode(word))));
    Ok(with_query(format!("/{subresource}/{namespace}/{name}/{uid}/{container}"), Some(&pairs.join("&"))))
}

/// The container a request is about: the one named, the annotated default, or the only one.
fn container(pod: &Value, name: &str, wanted: Option<&str>) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let known = |c: &str| [&containers, &init, &ephemeral].iter().any(|list| list.iter().any(|n| n == c));
    match wanted.or(annotated.filter(|c| known(c))) {
        Some(container) if known(container) => Ok(container.to_owned()),
        Some(container) => Err(ApiError::bad(format!("container {container} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => {
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::BadRequest(text))
        }
    }
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A node's plain-text refusal as a Status, which clients show properly.
async fn as_status(response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let json = response
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) || json {
        return response;
    }
    let text = match body::read(response.into_body()).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match status {
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => ApiError::BadRequest(text),
        _ => ApiError::Internal(text),
    }
    .response()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_take_the_kubelets_form() {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"nodeName": "n", "containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        let path = ResourcePath { namespace: "ns".into(), name: "p".into(), ..ResourcePath::default() };
        let target = |sub: &str, q: &str| pod_target(&path, sub, &pod, &Query::parse(Some(q)));
        assert_eq!(
            target("exec", "container=a&command=sh&command=-c&command=a%26b&stdin=true&stdout=1&tty=false")
                .expect("ok"),
            "/exec/ns/p/u/a?input=1&output=1&command=sh&command=-c&command=a%26b"
        );
        assert_eq!(target("log", "container=b&follow=true&x=1").expect("ok"), "/containerLogs/ns/p/b?follow=true");
        assert_eq!(
            target("log", "").expect_err("ambiguous").to_string(),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(target("portforward", "").expect("ok"), "/portForward/ns/p/u");
        assert!(target("log", "container=zz").is_err());
    }
}
