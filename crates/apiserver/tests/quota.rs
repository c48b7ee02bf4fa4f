//! Quotas are exact, whoever races.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use serde_json::{Value, json};

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn quota(api: &Local, name: &str, spec: Value) -> Value {
    api.post(QUOTAS, &json!({"metadata": {"name": name}, "spec": spec})).await.expect(201)
}

async fn used(api: &Local, name: &str, what: &str) -> String {
    let quota = api.get(&format!("{QUOTAS}/{name}")).await.expect(200);
    quota["status"]["used"][what].as_str().unwrap_or("nothing").to_owned()
}

fn pod(name: &str, cpu: Option<&str>) -> Value {
    let resources = cpu.map_or(json!({}), |cpu| json!({"requests": {"cpu": cpu}}));
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "a", "image": "a", "resources": resources}]}})
}

#[tokio::test]
async fn use_is_counted_and_limited() {
    let api = local().await;
    api.post(PODS, &pod("before", Some("100m"))).await.expect(201);
    let made = quota(&api, "q", json!({"hard": {"requests.cpu": "1", "pods": "3", "count/configmaps": "2"}})).await;
    assert_eq!(made["status"]["used"], json!({"count/configmaps": "0", "pods": "1", "requests.cpu": "100m"}));
    assert_eq!(made["status"]["hard"]["requests.cpu"], "1");
    let unstated = api.post(PODS, &pod("none", None)).await;
    assert_eq!(unstated.message(), "pods \"none\" is forbidden: failed quota: q: must specify requests.cpu for: a");
    unstated.expect(403);
    let refused = api.post(PODS, &pod("big", Some("950m"))).await;
    assert_eq!(
        refused.message(),
        "pods \"big\" is forbidden: exceeded quota: q, requested: requests.cpu=950m, used: requests.cpu=100m, limited: \
         requests.cpu=1"
    );
    api.post(&format!("{PODS}?dryRun=All"), &pod("big", Some("950m"))).await.expect(403);
    api.post(&format!("{PODS}?dryRun=All"), &pod("dry", Some("900m"))).await.expect(201);
    api.post(PODS, &pod("fits", Some("900m"))).await.expect(201);
    assert_eq!((used(&api, "q", "requests.cpu").await, used(&api, "q", "pods").await), ("1".into(), "2".into()));
    // A pod that has ended uses nothing; one that is gone neither.
    api.patch(&format!("{PODS}/fits/status"), "merge", &json!({"status": {"phase": "Succeeded"}})).await.expect(200);
    assert_eq!(used(&api, "q", "requests.cpu").await, "100m");
    api.delete(&format!("{PODS}/fits")).await.expect(200);
    api.delete(&format!("{PODS}/before")).await.expect(200);
    assert_eq!((used(&api, "q", "requests.cpu").await, used(&api, "q", "pods").await), ("0".into(), "0".into()));
    let more = json!({"spec": {"hard": {"count/configmaps": "5", "requests.cpu": null}}});
    let changed = api.patch(&format!("{QUOTAS}/q"), "merge", &more).await.expect(200);
    assert_eq!(changed["status"]["used"], json!({"count/configmaps": "0", "pods": "0"}));
}

#[tokio::test]
async fn a_status_that_a_client_wrote_is_counted_anew() {
    let api = local().await;
    api.post(MAPS, &json!({"metadata": {"name": "one"}})).await.expect(201);
    let spec = json!({"hard": {"count/configmaps": "5"}});
    let truth = quota(&api, "q", spec).await["status"].clone();
    let status = json!({"status": {"hard": {"count/configmaps": "9"}, "used": {"count/configmaps": "0"}}});
    let written = api.patch(&format!("{QUOTAS}/q/status"), "merge", &status).await.expect(200);
    assert_eq!(written["status"], status["status"], "it can be seen");
    for _ in 0..500 {
        if api.get(&format!("{QUOTAS}/q")).await.expect(200)["status"] == truth {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the status stays as the client wrote it");
}

#[tokio::test]
async fn scopes_and_kinds_have_their_own_limits() {
    let api = local().await;
    quota(&api, "ending", json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]})).await;
    quota(&api, "services", json!({"hard": {"services.nodeports": "1", "requests.storage": "3Gi"}})).await;
    api.post(PODS, &pod("plain", None)).await.expect(201);
    assert_eq!(used(&api, "ending", "pods").await, "0");
    let mut ending = pod("ending", None);
    ending["spec"]["activeDeadlineSeconds"] = json!(5);
    api.post(PODS, &ending).await.expect(201);
    ending["metadata"]["name"] = json!("another");
    api.post(PODS, &ending).await.expect(403);
    let service =
        |name: &str, kind: &str| json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 1}]}});
    let services = "/api/v1/namespaces/default/services";
    api.post(services, &service("a", "NodePort")).await.expect(201);
    api.post(services, &service("b", "NodePort")).await.expect(403);
    api.post(services, &service("b", "ClusterIP")).await.expect(201);
    api.patch(&format!("{services}/b"), "merge", &json!({"spec": {"type": "NodePort"}})).await.expect(403);
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "2Gi"}}}})
    };
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    api.post(claims, &claim("a")).await.expect(201);
    let refused = api.post(claims, &claim("b")).await;
    assert!(
        refused
            .message()
            .ends_with("requested: requests.storage=2Gi, used: requests.storage=2Gi, limited: requests.storage=3Gi"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_never_exceed_a_quota() {
    let api = std::sync::Arc::new(local().await);
    quota(&api, "q", json!({"hard": {"count/configmaps": "7", "configmaps": "9"}})).await;
    let writers: Vec<_> = (0..40)
        .map(|n| {
            let api = api.clone();
            tokio::spawn(async move {
                let made = api.post(MAPS, &json!({"metadata": {"name": format!("m{n}")}})).await.code.as_u16();
                if made == 201 && n % 3 == 0 {
                    api.delete(&format!("{MAPS}/m{n}")).await.expect(200);
                }
                made
            })
        })
        .collect();
    let mut codes = Vec::new();
    for writer in writers {
        codes.push(writer.await.expect("a writer"));
    }
    assert!(codes.iter().all(|code| matches!(code, 201 | 403)), "{codes:?}");
    let left = api.get(MAPS).await.expect(200)["items"].as_array().map_or(0, Vec::len);
    assert!(left <= 7, "{left}");
    assert_eq!(used(&api, "q", "count/configmaps").await, left.to_string());
    assert_eq!(used(&api, "q", "configmaps").await, left.to_string());
}

#[tokio::test]
async fn a_quota_counts_itself() {
    let api = local().await;
    quota(&api, "own", json!({"hard": {"resourcequotas": "3", "count/resourcequotas": "3"}})).await;
    assert_eq!(used(&api, "own", "resourcequotas").await, "1");
    assert_eq!(used(&api, "own", "count/resourcequotas").await, "1");
}
