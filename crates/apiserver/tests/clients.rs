//! What protects the server's other clients and their secrets: sealing, the audit log, impersonation, aggregation.
#![allow(missing_docs)]

mod common;

use common::{local, real_env};
use mycelium_apiserver::audit::AuditLog;
use mycelium_apiserver::sealing::Sealer;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_store::{Options, Seals, Store};
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn sealed(path: &std::path::Path) -> Options {
    Options { seals: Seals::new(Sealer::load_or_create(path).expect("a key")), ..Options::default() }
}

#[tokio::test]
async fn secrets_are_sealed_on_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let (state, key) = (directory.path().join("state"), directory.path().join("key"));
    let server = |options: Options| async {
        let store = Store::open_file(&state, options).expect("a store");
        let pki = Pki::in_memory(real_env(), &[]).expect("keys");
        let api = ApiServer::new(Config::new(store, real_env(), pki)).expect("a server");
        api.bootstrap().await.expect("the first objects");
        common::Local { api, directory: tempfile::tempdir().expect("a directory"), who: Identity::internal("admin") }
    };
    let secret = |name: &str, text: &str| json!({"metadata": {"name": name}, "stringData": {"password": text}});
    // Written before there was a key, and after.
    let api = server(Options::default()).await;
    api.post(SECRETS, &secret("old", "from-before")).await.expect(201);
    drop(api);
    let api = server(sealed(&key)).await;
    api.post(SECRETS, &secret("new", "hunter2hunter2")).await.expect(201);
    api.post(
        "/api/v1/namespaces/default/configmaps",
        &json!({"metadata": {"name": "m"}, "data": {"k": "plainly-there"}}),
    )
    .await
    .expect(201);
    drop(api);
    let bytes = std::fs::read(&state).expect("the file");
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode("hunter2hunter2");
    assert!(holds("plainly-there") && !holds(&encoded) && !holds("hunter2hunter2"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&key).expect("the key").permissions().mode() & 0o777, 0o600);
    let api = server(sealed(&key)).await;
    assert_eq!(api.get(&format!("{SECRETS}/new")).await.expect(200)["data"]["password"], encoded.as_str());
    api.get(&format!("{SECRETS}/old")).await.expect(200);
    drop(api);
    let Err(other) = Store::open_file(&state, sealed(&directory.path().join("other"))) else {
        panic!("another key fits")
    };
    let other = other.to_string();
    assert!(other.contains("cannot be decrypted"), "{other}");
}

#[tokio::test]
async fn requests_are_noted_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.log");
    let store = Store::open_file(&directory.path().join("state"), Options::default()).expect("a store");
    let mut config = Config::new(store, real_env(), Pki::in_memory(real_env(), &[]).expect("keys"));
    config.audit = Some(AuditLog::open(&path).expect("a log"));
    let api =
        common::Local { api: ApiServer::new(config).expect("a server"), directory, who: Identity::internal("admin") };
    api.get("/api/v1/namespaces/default/pods/none").await.expect(404);
    let headers = [("impersonate-user", "ann"), ("impersonate-extra-team", "blue"), ("user-agent", "test/1")];
    api.send_as(&api.who, "GET", SECRETS, &headers, "").await.expect(403);
    let events = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.lines().count() >= 2 {
            break text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>();
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(
        events[0]["objectRef"],
        json!({"resource": "pods", "namespace": "default", "name": "none", "apiVersion": "v1"})
    );
    assert_eq!((&events[0]["verb"], &events[0]["responseStatus"]["code"]), (&json!("get"), &json!(404)));
    assert_eq!(events[1]["user"]["username"], "admin");
    assert_eq!(events[1]["impersonatedUser"]["extra"], json!({"team": ["blue"]}));
    assert_eq!((&events[1]["userAgent"], &events[1]["responseStatus"]["code"]), (&json!("test/1"), &json!(403)));
}

#[tokio::test]
async fn aggregated_roles_follow_their_parts() {
    let api = local().await;
    let view = api.get(&format!("{RBAC}/clusterroles/view")).await.expect(200);
    assert!(view["rules"].to_string().contains("endpointslices"), "{view}");
    let part = json!({"metadata": {"name": "trees", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["forest.example.com"], "resources": ["trees"], "verbs": ["get"]}]});
    api.post(&format!("{RBAC}/clusterroles"), &part).await.expect(201);
    for role in ["view", "edit", "admin"] {
        let role = api.get(&format!("{RBAC}/clusterroles/{role}")).await.expect(200);
        assert!(role["rules"].to_string().contains("forest.example.com"), "{role}");
    }
    api.delete(&format!("{RBAC}/clusterroles/trees")).await.expect(200);
    let admin = api.get(&format!("{RBAC}/clusterroles/admin")).await.expect(200);
    assert!(!admin["rules"].to_string().contains("forest.example.com"), "{admin}");
}

#[tokio::test]
async fn each_part_of_an_impersonation_is_checked() {
    let api = local().await;
    let grant = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/team"], "resourceNames": ["blue"], "verbs": ["impersonate"]}]);
    api.post(&format!("{RBAC}/clusterroles"), &grant("act", rules)).await.expect(201);
    let binding = json!({"metadata": {"name": "act"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "act"},
        "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]});
    api.post(&format!("{RBAC}/clusterrolebindings"), &binding).await.expect(201);
    let ann = Identity::new("ann", &[]);
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let ask = |headers: Vec<(&'static str, &'static str)>| {
        let (api, ann) = (&api, &ann);
        async move {
            let mut all = vec![("content-type", "application/json")];
            all.extend(headers);
            api.send_as(ann, "POST", review, &all, "{}").await
        }
    };
    let seen = ask(vec![("impersonate-user", "bob"), ("impersonate-extra-team", "blue")]).await.expect(201);
    assert_eq!(seen["status"]["userInfo"]["username"], "bob");
    assert_eq!(seen["status"]["userInfo"]["extra"]["team"], json!(["blue"]));
    for headers in [
        vec![("impersonate-user", "eve")],
        vec![("impersonate-user", "bob"), ("impersonate-group", "system:masters")],
        vec![("impersonate-user", "bob"), ("impersonate-uid", "1")],
        vec![("impersonate-user", "bob"), ("impersonate-extra-team", "red")],
    ] {
        ask(headers).await.expect(403);
    }
    ask(vec![("impersonate-group", "dev")]).await.expect(500);
}
