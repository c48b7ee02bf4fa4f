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

/// An HTTP server that answers with what it was asked, and its port.
async fn echo() -> u16 {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                assert!(!request.headers().contains_key(header::AUTHORIZATION), "credentials stay here");
                let text = format!("{} {}", request.method(), request.uri());
                Ok::<_, Infallible>(Response::new(body::full(text)))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// An address of this machine that endpoints may have; none on a machine without a network.
fn outside() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: it only asks for a route, to a network that is set aside for documents.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn pods_and_services_are_reached_through_the_server() {
    let api = local().await;
    let port = echo().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i",
        "ports": [{"containerPort": port}]}]}});
    api.post(PODS, &pod).await.expect(201);
    let nowhere = api.get(&format!("{PODS}/p/proxy/")).await;
    assert_eq!(nowhere.message(), "address not allowed");
    let status = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    api.patch(&format!("{PODS}/p/status"), "merge", &status).await.expect(200);
    // Relative links on a page at the root need the slash, as in Kubernetes.
    let led = api.get(&format!("{PODS}/p/proxy?c=d")).await;
    assert_eq!(led.code.as_u16(), 301);
    assert_eq!(led.headers[header::LOCATION], format!("{PODS}/p/proxy/?c=d"));
    for (path, seen) in
        [("p/proxy/", "/"), ("p/proxy/a//b?c=d", "/a//b?c=d"), (&format!("http:p:{port}/proxy/x"), "/x")]
    {
        assert_eq!(api.get(&format!("{PODS}/{path}")).await.text(), format!("GET {seen}"));
    }
    assert_eq!(api.send("POST", &format!("{PODS}/p/proxy/y"), "text/plain", "z").await.text(), "POST /y");

    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}});
    api.post(services, &service).await.expect(201);
    let lonely = api.get(&format!("{services}/s/proxy/")).await;
    assert_eq!(lonely.message(), "no endpoints available for service \"s\"");
    assert_eq!(lonely.code.as_u16(), 503);
    let Some(address) = outside() else { return };
    let slice = json!({"metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": port}], "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": false}},
            {"addresses": [address], "conditions": {"ready": true}}]});
    api.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await.expect(201);
    for name in ["s", "s:web", "http:s:80"] {
        assert_eq!(api.get(&format!("{services}/{name}/proxy/q")).await.text(), "GET /q", "{name}");
    }
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_ask() {
    use std::io::Read;
    let api = local().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b", "c"] {
        let data = json!({"metadata": {"name": name}, "data": {"x": "y".repeat(300_000)}});
        api.post(maps, &data).await.expect(201);
    }
    let gzip = [("accept-encoding", "deflate, gzip;q=1.0")];
    for path in [format!("{maps}/a"), maps.to_owned()] {
        let plain = api.get(&path).await;
        assert!(plain.headers.get(header::CONTENT_ENCODING).is_none());
        let packed = api.send_as(&api.who, "GET", &path, &gzip, "").await;
        assert_eq!(packed.headers[header::CONTENT_ENCODING], "gzip");
        assert_eq!(packed.headers[header::VARY], "Accept-Encoding");
        assert!(packed.bytes.len() < plain.bytes.len() / 20);
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_end(&mut text).expect("gzip");
        assert!(text == plain.bytes, "{path}");
    }
    let small = api.send_as(&api.who, "GET", "/api/v1/namespaces/default", &gzip, "").await;
    assert!(small.headers.get(header::CONTENT_ENCODING).is_none());
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
