//! API versions that a service in the cluster serves: requests reach it in the name of who asked, discovery tells of it,
//! and it is away without harm to others. Also what proxies and documents do that only browsers and old clients see.
#![allow(missing_docs)]

mod common;

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Local, local};
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

struct Extension {
    port: u16,
    bundle: String,
    /// The heads of the requests that came.
    heads: Arc<Mutex<Vec<String>>>,
}

/// An extension server that only believes the authority which the ConfigMap names.
async fn extension(authority: &str) -> Extension {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["wood.default.svc".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let authority = rustls_pki_types::CertificateDer::from_pem_slice(authority.as_bytes()).expect("a certificate");
    roots.add(authority).expect("an authority");
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut data = Vec::new();
                while !data.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                        return;
                    }
                    data.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&data).into_owned();
                let answer = match head.split(' ').nth(1) {
                    Some("/apis/wood.example.com/v1") => json!({"kind": "APIResourceList", "groupVersion": "wood.example.com/v1",
                        "resources": [{"name": "trees", "singularName": "tree", "namespaced": true, "kind": "Tree", "verbs": ["get", "list"]}]}),
                    _ => json!({"kind": "TreeList", "items": []}),
                }
                .to_string();
                seen.lock().expect("no panic").push(head);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all((head + &answer).as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Extension { port, bundle: STANDARD.encode(certificate.pem()), heads }
}

async fn register(api: &Local, port: u16, bundle: &str) {
    let service = json!({"metadata": {"name": "wood"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let registered = json!({"metadata": {"name": "v1.wood.example.com"}, "spec": {"group": "wood.example.com", "version": "v1",
        "groupPriorityMinimum": 1000, "versionPriority": 10, "caBundle": bundle,
        "service": {"namespace": "default", "name": "wood", "port": port}}});
    api.post(API_SERVICES, &registered).await.expect(201);
}

#[tokio::test]
async fn an_extension_is_asked_in_the_name_of_who_asks() {
    let api = local().await;
    let published =
        api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await.json();
    let authority = published["data"]["requestheader-client-ca-file"].as_str().expect("an authority");
    assert_ne!(authority, published["data"]["client-ca-file"]);
    let extension = extension(authority).await;
    api.get("/apis/wood.example.com/v1/namespaces/default/trees").await.expect(404);
    register(&api, extension.port, &extension.bundle).await;
    // Nothing but what a look for it needs, until somebody found it there.
    api.get("/apis/wood.example.com/v1").await.expect(200);
    api.get("/apis/wood.example.com/v1/namespaces/default/trees").await.expect(503);
    let there = json!({"status": {"conditions": [{"type": "Available", "status": "True"}]}});
    api.patch(&format!("{API_SERVICES}/v1.wood.example.com/status"), "merge", &there).await.expect(200);

    let trees = api.get("/apis/wood.example.com/v1/namespaces/default/trees?limit=5").await.expect(200);
    assert_eq!(trees["kind"], "TreeList");
    let head = extension.heads.lock().expect("no panic").pop().expect("a request").to_ascii_lowercase();
    assert!(head.starts_with("get /apis/wood.example.com/v1/namespaces/default/trees?limit=5 "), "{head}");
    assert!(head.contains("x-remote-user: ") && head.contains("x-remote-group: system:masters"), "{head}");

    let groups = api.get("/apis").await.json();
    let group = groups["groups"].as_array().expect("groups").iter().find(|group| group["name"] == "wood.example.com");
    assert_eq!(group.expect("the extension's")["preferredVersion"]["version"], "v1");
    assert_eq!(api.get("/apis/wood.example.com").await.json()["kind"], "APIGroup");
    assert_eq!(api.get("/apis/wood.example.com/v1").await.json()["resources"][0]["kind"], "Tree");
    let all = api.send_as(&api.who, "GET", "/apis", &[("accept", AGGREGATED)], "").await.expect(200);
    let item =
        all["items"].as_array().expect("items").iter().find(|item| item["metadata"]["name"] == "wood.example.com");
    assert_eq!(item.expect("the extension's")["versions"][0]["resources"][0]["resource"], "trees");
}

#[tokio::test]
async fn an_extension_that_is_away_harms_nobody_else() {
    let api = local().await;
    register(&api, 1, "").await;
    let refusal = api.get("/apis/wood.example.com/v1/namespaces/default/trees").await.expect(503);
    assert_eq!(refusal["reason"], "ServiceUnavailable");
    let all = api.send_as(&api.who, "GET", "/apis", &[("accept", AGGREGATED)], "").await.expect(200);
    let items = all["items"].as_array().expect("items");
    let stale = items.iter().find(|item| item["metadata"]["name"] == "wood.example.com").expect("it is named");
    assert_eq!(stale["versions"][0]["freshness"], "Stale");
    assert!(
        items.iter().any(|item| item["metadata"]["name"] == "apps" && item["versions"][0]["freshness"] == "Current")
    );
}

#[tokio::test]
async fn the_second_openapi_document_is_json_and_known_by_its_tag() {
    let api = local().await;
    let reply = api.get("/openapi/v2").await;
    let document = reply.json();
    assert_eq!(document["swagger"], "2.0");
    assert_eq!(document["definitions"]["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    assert_eq!(document["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"]["parameters"][0]["name"], "body");
    let tag = reply.headers["etag"].to_str().expect("text");
    let again = api.send_as(&api.who, "GET", "/openapi/v2", &[("if-none-match", tag)], "").await;
    assert_eq!((again.code.as_u16(), again.bytes.len()), (304, 0));
}

#[tokio::test]
async fn reviews_have_no_columns_and_a_pod_keeps_its_tolerations() {
    let api = local().await;
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), ("content-type", "application/json")];
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    api.send_as(&api.who, "POST", path, &table, review.to_string()).await.expect(406);

    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let mut pod = api.post(pods, &pod).await.expect(201);
    pod["spec"]["tolerations"] = json!([{"key": "example.com/new", "operator": "Exists"}]);
    let updated = api.put(&format!("{pods}/a"), &pod).await.expect(200);
    assert_eq!(updated["spec"]["tolerations"].as_array().map(Vec::len), Some(3));
    assert_eq!(updated["metadata"]["generation"], 2);
}
