//! Webhooks and admission policies: what they change, refuse and warn of, and what happens when they misbehave.
#![allow(missing_docs)]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Local, local};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A webhook's server: TLS with a certificate of its own, and what it answers by path.
struct Hooks {
    port: u16,
    bundle: String,
}

async fn hooks() -> Hooks {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("a certificate");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let Some((path, body)) = request(&mut stream).await else { return };
                let Some(answer) = answer(&path, &body) else {
                    return std::future::pending().await;
                };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
                let _ = stream.write_all((head + &answer).as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Hooks { port, bundle: STANDARD.encode(certificate.pem()) }
}

async fn request<S: AsyncReadExt + Unpin>(stream: &mut S) -> Option<(String, Value)> {
    let mut data = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        data.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&data).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some((head.split(' ').nth(1)?.to_owned(), serde_json::from_str(body).ok()?));
        }
    }
}

fn answer(path: &str, review: &Value) -> Option<String> {
    let request = &review["request"];
    let review = |response: Value| {
        let mut response = response;
        response["uid"] = request["uid"].clone();
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).to_string()
    };
    let patch = |patch: Value| {
        review(json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())}))
    };
    Some(match path.split('?').next().unwrap_or_default() {
        "/hang" => return None,
        "/convert" => {
            let wanted = request["desiredAPIVersion"].as_str()?;
            let convert = |object: &Value| {
                let mut object = object.clone();
                object["apiVersion"] = json!(wanted);
                // In v1 a tree is tall, in v2 it has a size.
                object["spec"] = match wanted.ends_with("/v2") {
                    true => json!({"size": {"height": object["spec"]["height"]}}),
                    false => json!({"height": object["spec"]["size"]["height"]}),
                };
                object
            };
            let objects: Vec<Value> = request["objects"].as_array()?.iter().map(convert).collect();
            json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": {"uid": request["uid"],
                "result": {"status": "Success"}, "convertedObjects": objects}})
            .to_string()
        }
        "/garbage" => "<html>no</html>".to_owned(),
        "/other" => json!({"kind": "Pod"}).to_string(),
        "/deny" => review(
            json!({"allowed": false, "status": {"message": format!("{} is not wanted", request["name"].as_str()?), "code": 409}}),
        ),
        "/warn" => review(json!({"allowed": true, "warnings": ["careful"]})),
        "/add" => patch(json!([{"op": "add", "path": "/data", "value": {"seen": request["operation"]}}])),
        "/count" => {
            let count =
                request["object"]["metadata"]["annotations"]["count"].as_str().unwrap_or("0").parse::<u32>().ok()? + 1;
            patch(json!([{"op": "add", "path": "/metadata/annotations", "value": {"count": count.to_string()}}]))
        }
        _ => review(json!({"allowed": true})),
    })
}

async fn configure(api: &Local, kind: &str, name: &str, hooks: &Hooks, path: &str, more: Value) {
    let mut hook = json!({"name": format!("{name}.example.com"), "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": format!("https://localhost:{}/{path}", hooks.port), "caBundle": hooks.bundle},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE", "DELETE"]}]});
    if kind == "mutating" {
        hook["rules"][0]["operations"] = json!(["CREATE", "UPDATE"]);
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    let object = json!({"metadata": {"name": name}, "webhooks": [hook]});
    api.post(&format!("{GROUP}/{kind}webhookconfigurations"), &object).await.expect(201);
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn webhooks_change_refuse_and_warn() {
    let (api, hooks) = (local().await, hooks().await);
    configure(&api, "mutating", "a-count", &hooks, "count", json!({"reinvocationPolicy": "IfNeeded"})).await;
    configure(&api, "mutating", "b-add", &hooks, "add", json!({})).await;
    configure(&api, "validating", "warn", &hooks, "warn", json!({})).await;
    let made = api.post(MAPS, &map("a")).await;
    assert_eq!(made.warnings(), ["299 - \"careful\""]);
    let made = made.expect(201);
    assert_eq!((&made["data"]["seen"], &made["metadata"]["annotations"]["count"]), (&json!("CREATE"), &json!("2")));
    configure(&api, "validating", "deny", &hooks, "deny", json!({
        "matchConditions": [{"name": "bad", "expression": "object == null || object.metadata.name.startsWith('bad')"}]})).await;
    api.post(MAPS, &map("good")).await.expect(201);
    let refused = api.post(MAPS, &map("bad")).await;
    assert_eq!(refused.message(), "admission webhook \"deny.example.com\" denied the request: bad is not wanted");
    refused.expect(409);
    api.delete(&format!("{MAPS}/a")).await.expect(409);
    api.get(&format!("{MAPS}/a")).await.expect(200);
}

#[tokio::test]
async fn webhooks_that_fail_block_or_not_as_they_say() {
    let (api, hooks) = (local().await, hooks().await);
    let away = Hooks { port: 1, bundle: hooks.bundle.clone() };
    for (name, hooks, path, wanted) in [
        ("hang", &hooks, "hang", "context deadline exceeded"),
        ("garbage", &hooks, "garbage", "json parse error"),
        (
            "other",
            &hooks,
            "other",
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got , Kind=Pod",
        ),
        ("away", &away, "x", "connect: connection refused"),
    ] {
        let more = json!({"timeoutSeconds": 1, "objectSelector": {"matchLabels": {"hook": name}}});
        configure(&api, "validating", name, hooks, path, more.clone()).await;
        let mut labelled = map(name);
        labelled["metadata"]["labels"] = json!({"hook": name});
        let refused = api.post(MAPS, &labelled).await;
        let start = format!(
            "Internal error occurred: failed calling webhook \"{name}.example.com\": failed to call webhook: Post \"https://localhost:"
        );
        assert!(refused.message().starts_with(&start) || name == "other" || name == "garbage", "{}", refused.message());
        assert!(refused.message().contains(wanted), "{}", refused.message());
        refused.expect(500);
        let tolerant = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
        api.patch(&format!("{GROUP}/validatingwebhookconfigurations/{name}"), "json", &tolerant).await.expect(200);
        api.post(MAPS, &labelled).await.expect(201);
    }
    api.post(MAPS, &map("unlabelled")).await.expect(201);
    let wrong = json!({"metadata": {"name": "wrong"}, "webhooks": [{"name": "x", "clientConfig": {}, "sideEffects": "Some", "admissionReviewVersions": []}]});
    let refused = api.post(&format!("{GROUP}/validatingwebhookconfigurations"), &wrong).await;
    assert!(refused.message().contains("exactly one of url or service is required"), "{}", refused.message());
}

#[tokio::test]
async fn policies_deny_warn_and_take_parameters() {
    let api = local().await;
    let policy = json!({"metadata": {"name": "limits"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]},
        "matchConditions": [{"name": "people", "expression": "!(request.userInfo.username.startsWith('system:'))"}],
        "variables": [{"name": "most", "expression": "int(params.data.most)"}],
        "validations": [
            {"expression": "object.spec.replicas <= variables.most", "messageExpression": "'at most ' + string(variables.most)", "reason": "Forbidden"},
            {"expression": "authorizer.group('').resource('nodes').check('delete').allowed() || object.metadata.name != 'special'"}]}});
    api.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
    let binding = |name: &str, action: &str| {
        json!({"metadata": {"name": name}, "spec": {"policyName": "limits", "validationActions": [action],
        "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"}}})
    };
    api.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding("deny", "Deny")).await.expect(201);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = |name: &str, replicas: u32| {
        json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": "a"}]}}}})
    };
    let missing = api.post(deployments, &deployment("a", 1)).await;
    assert!(missing.message().contains("no params found for policy binding"), "{}", missing.message());
    api.post(MAPS, &json!({"metadata": {"name": "limits"}, "data": {"most": "3"}})).await.expect(201);
    api.post(deployments, &deployment("a", 3)).await.expect(201);
    let refused = api.patch(&format!("{deployments}/a"), "merge", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!(
        refused.message(),
        "deployments.apps \"a\" is forbidden: ValidatingAdmissionPolicy 'limits' with binding 'deny' denied request: at most 3"
    );
    refused.expect(403);
    let ann = mycelium_apiserver::Identity::new("ann", &["dev"]);
    let grant = json!({"metadata": {"name": "ann"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]});
    api.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &grant).await.expect(201);
    let body = deployment("special", 1).to_string();
    let refused = api.send_as(&ann, "POST", deployments, &[("content-type", "application/json")], body).await;
    assert!(refused.message().contains("denied request: failed expression: authorizer.group"), "{}", refused.message());
    refused.expect(422);
    api.delete(&format!("{GROUP}/validatingadmissionpolicybindings/deny")).await.expect(200);
    api.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding("warn", "Warn")).await.expect(201);
    let warned = api.post(deployments, &deployment("b", 9)).await;
    assert!(
        warned.warnings()[0]
            .contains("Validation failed for ValidatingAdmissionPolicy 'limits' with binding 'warn': at most 3")
    );
    warned.expect(201);
    let mut wrong = policy.clone();
    wrong["metadata"]["name"] = json!("wrong");
    wrong["spec"]["validations"] = json!([{"expression": "nonsense > 1"}]);
    let refused = api.post(&format!("{GROUP}/validatingadmissionpolicies"), &wrong).await;
    assert!(refused.message().contains("undeclared reference to 'nonsense'"), "{}", refused.message());
    refused.expect(422);
}

#[tokio::test]
async fn connections_are_refused_and_types_are_told() {
    let (api, hooks) = (local().await, hooks().await);
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/attach"], "operations": ["CONNECT"]}]);
    configure(&api, "validating", "attach", &hooks, "deny", json!({ "rules": rules })).await;
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    api.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    let refused = api.get("/api/v1/namespaces/default/pods/a/attach?stdin=true").await;
    assert_eq!(refused.message(), "admission webhook \"attach.example.com\" denied the request: a is not wanted");
    let policy = json!({"metadata": {"name": "typed"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
        "validations": [{"expression": "object.spec.replicas > '1'"}, {"expression": "object.spec.template.spec.containers.all(c, c.image != '')"}]}});
    let made = api.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy).await.expect(201);
    let warnings = &made["status"]["typeChecking"]["expressionWarnings"];
    assert_eq!(warnings.as_array().map(Vec::len), Some(1), "{made}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    let text = warnings[0]["warning"].as_str().unwrap_or_default();
    assert!(
        text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_'"),
        "{text}"
    );
}

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let (api, hooks) = (local().await, hooks().await);
    let version = |name: &str, storage: bool, spec: Value| {
        json!({"name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}}}})
    };
    let mut second =
        version("v2", false, json!({"size": {"type": "object", "properties": {"height": {"type": "integer"}}}}));
    second["selectableFields"] = json!([{"jsonPath": ".spec.size.height"}]);
    let definition = json!({"metadata": {"name": "trees.forest.example.com"}, "spec": {"group": "forest.example.com",
        "scope": "Namespaced", "names": {"plural": "trees", "kind": "Tree"},
        "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig":
            {"url": format!("https://localhost:{}/convert", hooks.port), "caBundle": hooks.bundle}}},
        "versions": [version("v1", true, json!({"height": {"type": "integer", "maximum": 100}})), second]}});
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    let path = |version: &str| format!("/apis/forest.example.com/{version}/namespaces/default/trees");
    let mut watch = api.open_watch(&format!("{}?watch=1&resourceVersion=0", path("v2"))).await;
    let of_height = |height: u32| format!("{}?fieldSelector=spec.size.height%3D{height}", path("v2"));
    let mut selective = api.open_watch(&format!("{}&watch=1&resourceVersion=0", of_height(3))).await;
    let made =
        api.post(&path("v2"), &json!({"metadata": {"name": "a"}, "spec": {"size": {"height": 3}}})).await.expect(201);
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("forest.example.com/v2"), &json!({"size": {"height": 3}}))
    );
    let seen = watch.next().await.expect("an event");
    assert_eq!(seen["object"]["spec"], json!({"size": {"height": 3}}), "{seen}");
    assert_eq!(api.get(&format!("{}/a", path("v1"))).await.expect(200)["spec"], json!({"height": 3}));
    let change = json!({"spec": {"size": {"height": 5}}});
    let changed = api.patch(&format!("{}/a", path("v2")), "merge", &change).await.expect(200);
    assert_eq!((&changed["spec"], &changed["metadata"]["generation"]), (&change["spec"], &json!(2)));
    assert_eq!(api.get(&path("v1")).await.expect(200)["items"][0]["spec"], json!({"height": 5}));
    assert_eq!(api.get(&path("v2")).await.expect(200)["items"][0]["spec"], change["spec"]);
    // Fields are selected by in the version that is asked for, of which nothing is stored.
    for (height, count) in [(3, 0), (5, 1)] {
        assert_eq!(api.get(&of_height(height)).await.expect(200)["items"].as_array().map(Vec::len), Some(count));
    }
    for kind in ["ADDED", "DELETED"] {
        let seen = selective.next().await.expect("an event");
        assert_eq!((&seen["type"], &seen["object"]["spec"]), (&json!(kind), &json!({"size": {"height": 3}})));
    }
    api.delete(&format!("{}/a", path("v2"))).await.expect(200);
    assert_eq!(watch.next().await.expect("an event")["type"], "MODIFIED");
    assert_eq!(watch.next().await.expect("an event")["object"]["spec"], change["spec"]);
}
