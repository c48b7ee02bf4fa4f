//! What the node answers, with a stand-in for the node; faults inside a handler.
#![allow(missing_docs)]

mod common;

use std::convert::Infallible;

use common::{Local, local};
use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use mycelium_apiserver::{Body, body};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Answers with what it was asked, fails where told to, and echoes what an upgraded connection carries.
async fn node(mut request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let target = request.uri().to_string();
    assert!(!target.contains("panic"), "as asked");
    if target.contains("missing") {
        let mut response = Response::new(body::full("no such container\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut connection = TokioIo::new(upgrade.await.expect("an upgrade"));
            let mut word = [0; 4];
            connection.read_exact(&mut word).await.expect("four bytes");
            connection.write_all(&word).await.expect("they go back");
        });
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::UPGRADE, http::HeaderValue::from_static("echo"));
        response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
        return Ok(response);
    }
    Ok(Response::new(body::full(target)))
}

async fn with_pods() -> Local {
    let api = local().await;
    api.api.set_node(tower::util::BoxCloneSyncService::new(tower::service_fn(node)));
    for (name, node) in [("p", "n1"), ("panic", "n1"), ("missing", "n1"), ("waiting", "")] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node,
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}});
        api.post(PODS, &pod).await.expect(201);
    }
    api
}

#[tokio::test]
async fn the_node_gets_requests_in_the_kubelets_form() {
    let api = with_pods().await;
    let logs = api.get(&format!("{PODS}/p/log?container=b&tailLines=5&follow=true")).await;
    assert_eq!(logs.text(), "/containerLogs/default/p/b?follow=true&tailLines=5");
    let ambiguous = api.get(&format!("{PODS}/p/log")).await;
    assert!(ambiguous.message().contains("choose one of: [a b]"), "{}", ambiguous.message());
    ambiguous.expect(400);
    assert!(
        api.get(&format!("{PODS}/p/log?container=z")).await.message().contains("container z is not valid for pod p")
    );
    assert_eq!(api.get(&format!("{PODS}/waiting/log?container=a")).await.text(), "");
    let homeless = api.get(&format!("{PODS}/waiting/exec?container=a&command=x")).await;
    assert_eq!(homeless.message(), "pod waiting does not have a host assigned");
    assert_eq!(api.get(&format!("{PODS}/none/log")).await.message(), "pods \"none\" not found");
    let refused = api.get(&format!("{PODS}/missing/log?container=a")).await;
    assert_eq!(refused.message(), "no such container");
    api.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await.expect(201);
    assert_eq!(api.get("/api/v1/nodes/n1/proxy/stats/summary?x=y").await.text(), "/stats/summary?x=y");
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_server_lives() {
    let api = with_pods().await;
    let reply = api.get(&format!("{PODS}/panic/log?container=a")).await;
    assert_eq!(reply.expect(500)["reason"], "InternalError");
    api.get(PODS).await.expect(200);
}

#[tokio::test]
async fn in_process_clients_can_upgrade() {
    let api = with_pods().await;
    let service = api.api.client_service::<Body>(api.who.clone());
    let request = Request::builder()
        .uri(format!("https://mycelium{PODS}/p/exec?container=a&command=sh"))
        .header(header::UPGRADE, "echo")
        .header(header::CONNECTION, "upgrade")
        .body(body::empty())
        .expect("a request");
    let mut response = service.oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut connection = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("an upgrade"));
    connection.write_all(b"ping").await.expect("it takes bytes");
    let mut word = [0; 4];
    connection.read_exact(&mut word).await.expect("they come back");
    assert_eq!(&word, b"ping");
}
