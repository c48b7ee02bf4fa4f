//! What requests mean, without sockets.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use serde_json::{Value, json};

const CMS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn field_validation_ignores_warns_or_refuses() {
    let api = local().await;
    let body = |name: &str| {
        format!("{{\"metadata\":{{\"name\":\"{name}\"}},\"dta\":{{}},\"data\":{{\"a\":\"1\",\"a\":\"2\"}}}}")
    };
    let send = |query: &str, name: &str| {
        let path = format!("{CMS}?{query}");
        let body = body(name);
        let api = &api;
        async move { api.send("POST", &path, "application/json", body).await }
    };
    let strict = send("fieldValidation=Strict", "a").await;
    assert_eq!(strict.code, 400);
    let in_order = r#"strict decoding error: unknown field "dta", duplicate field "data.a""#;
    assert!(strict.message().ends_with(in_order), "{}", strict.message());
    let warned = send("", "b").await;
    assert!(warned.warnings().iter().any(|w| w == "299 - \"unknown field \\\"dta\\\"\""), "{:?}", warned.warnings());
    let stored = warned.expect(201);
    assert!(stored.get("dta").is_none());
    let ignored = send("fieldValidation=Ignore", "c").await;
    assert!(ignored.warnings().is_empty());
    ignored.expect(201);
    let wrong = send("fieldValidation=Sometimes", "d").await;
    assert_eq!(wrong.code, 422);
}

#[tokio::test]
async fn create_gives_identity_and_names() {
    let api = local().await;
    let made = api.post(CMS, &config("a")).await.expect(201);
    let metadata = &made["metadata"];
    assert_eq!(metadata["uid"].as_str().map(str::len), Some(36));
    assert_eq!(metadata["namespace"], "default");
    assert!(metadata["resourceVersion"].as_str().is_some_and(|v| v.parse::<u64>().is_ok()));
    assert_eq!(metadata["managedFields"][0]["operation"], "Update");
    api.post(CMS, &config("a")).await.expect(409);
    let generated = json!({"metadata": {"generateName": "gen-"}});
    let name = api.post(CMS, &generated).await.expect(201)["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
    let dry = api.post(&format!("{CMS}?dryRun=All"), &config("dry")).await.expect(201);
    assert_eq!(dry["metadata"]["name"], "dry");
    api.get(&format!("{CMS}/dry")).await.expect(404);
    api.post(&format!("{CMS}?dryRun=Some"), &config("dry")).await.expect(422);
    let gone = api.post("/api/v1/namespaces/none/configmaps", &config("a")).await;
    assert_eq!(gone.message(), "namespaces \"none\" not found");
    api.get("/api/v1/namespaces/default/nothings").await.expect(404);
    api.send("POST", &format!("{CMS}/a"), "application/json", "{}").await.expect(405);
}

#[tokio::test]
async fn updates_are_optimistic() {
    let api = local().await;
    let made = api.post(CMS, &config("a")).await.expect(201);
    let path = format!("{CMS}/a");
    let mut next = made.clone();
    next["data"]["a"] = json!("c");
    let updated = api.put(&path, &next).await.expect(200);
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let stale = api.put(&path, &next).await;
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    stale.expect(409);
    // Nothing changes: nothing is written.
    let same = api.put(&path, &updated).await.expect(200);
    assert_eq!(same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"]);
    // Without a revision, the last one wins.
    api.put(&path, &json!({"metadata": {"name": "a"}, "data": {"x": "y"}})).await.expect(200);
    let renamed = api.put(&path, &config("b")).await;
    assert_eq!(renamed.message(), "the name of the object (b) does not match the name on the URL (a)");
    api.put(&format!("{CMS}/zz"), &config("zz")).await.expect(404);
    let mut other = updated.clone();
    other["metadata"]["uid"] = json!("11111111-1111-1111-1111-111111111111");
    other["metadata"]["resourceVersion"] = json!("");
    assert!(api.put(&path, &other).await.message().contains("Precondition failed: UID in precondition"));
}

#[tokio::test]
async fn all_patches_work() {
    let api = local().await;
    api.post(CMS, &config("a")).await.expect(201);
    let path = format!("{CMS}/a");
    let merged = api.patch(&path, "merge", &json!({"data": {"m": "1", "a": null}})).await.expect(200);
    assert_eq!(merged["data"], json!({"m": "1"}));
    let patched = api.patch(&path, "json", &json!([{"op": "add", "path": "/data/j", "value": "2"}])).await.expect(200);
    assert_eq!(patched["data"], json!({"m": "1", "j": "2"}));
    let strategic = api.patch(&path, "strategic-merge", &json!({"metadata": {"labels": {"l": "v"}}})).await.expect(200);
    assert_eq!(strategic["metadata"]["labels"]["l"], "v");
    api.patch(&path, "json", &json!([{"op": "remove", "path": "/data/none"}])).await.expect(422);
    api.patch(&path, "merge", &json!([])).await.expect(400);
    api.patch(&path, "json", &json!({})).await.expect(400);
    api.patch(&path, "merge", &json!({"data": {"a": 1}})).await.expect(422);
    api.patch(&path, "merge", &json!({"metadata": {"resourceVersion": "1"}})).await.expect(409);
    api.patch(&format!("{CMS}/none"), "merge", &json!({})).await.expect(404);
    api.send("PATCH", &path, "application/json", "{}").await.expect(415);
    api.patch(&path, "apply", &config("a")).await.expect(422);
    let applied = format!("{CMS}/s?fieldManager=one");
    api.patch(&applied, "apply", &config("s")).await.expect(201);
    let mut theirs = config("s");
    theirs["data"]["a"] = json!("c");
    let conflict = api.patch(&format!("{CMS}/s?fieldManager=two"), "apply", &theirs).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["reason"], "FieldManagerConflict");
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.a");
    api.patch(&format!("{CMS}/s?fieldManager=two&force=true"), "apply", &theirs).await.expect(200);
}

#[tokio::test]
async fn lists_page_through_one_snapshot() {
    let api = local().await;
    for index in 0..7 {
        api.post(CMS, &config(&format!("c{index}"))).await.expect(201);
    }
    let first = api.get(&format!("{CMS}?limit=3")).await.expect(200);
    assert_eq!(first["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    let token = first["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    api.post(CMS, &config("c3a")).await.expect(201);
    api.delete(&format!("{CMS}/c4")).await.expect(200);
    let second = api.get(&format!("{CMS}?limit=10&continue={token}")).await.expect(200);
    let names: Vec<&str> =
        second["items"].as_array().into_iter().flatten().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["c3", "c4", "c5", "c6"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let exact = api.get(&format!("{CMS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!(exact["items"].as_array().map(Vec::len), Some(7));
    let future = api.get(&format!("{CMS}?resourceVersion=999999")).await;
    assert_eq!(future.code, 504);
    assert!(future.message().contains("Too large resource version: 999999"), "{}", future.message());
    api.get(&format!("{CMS}?continue=garbage")).await.expect(400);
    api.get(&format!("{CMS}?limit=x")).await.expect(400);
    api.get(&format!("{CMS}?labelSelector=a==b,,")).await.expect(400);
    let unknown = api.get(&format!("{CMS}?fieldSelector=spec.x=1")).await;
    assert_eq!(unknown.code, 400);
    let named = api.get(&format!("{CMS}?fieldSelector=metadata.name=c5")).await.expect(200);
    assert_eq!(named["items"][0]["metadata"]["name"], "c5");
    assert_eq!(named["kind"], "ConfigMapList");
}

async fn types(api: &Local, path: &str, count: usize) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let lines = api.watch(path, count).await;
    lines.iter().map(|l| (text(&l["type"]), text(&l["object"]["metadata"]["name"]))).collect()
}

#[tokio::test]
async fn watches_follow_selectors_and_revisions() {
    let api = local().await;
    let made = api.post(CMS, &config("a")).await.expect(201);
    let from = made["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    api.patch(&format!("{CMS}/a"), "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    api.patch(&format!("{CMS}/a"), "merge", &json!({"data": {"k": "v"}})).await.expect(200);
    api.patch(&format!("{CMS}/a"), "merge", &json!({"metadata": {"labels": {"x": "z"}}})).await.expect(200);
    api.post(CMS, &config("ab")).await.expect(201);
    api.delete(&format!("{CMS}/a")).await.expect(200);
    let pair = |t: &str, n: &str| (t.to_owned(), n.to_owned());
    assert_eq!(
        types(&api, &format!("{CMS}?watch=1&resourceVersion={from}"), 5).await,
        [
            pair("MODIFIED", "a"),
            pair("MODIFIED", "a"),
            pair("MODIFIED", "a"),
            pair("ADDED", "ab"),
            pair("DELETED", "a")
        ]
    );
    assert_eq!(
        types(&api, &format!("{CMS}?watch=1&resourceVersion={from}&labelSelector=x%3Dy"), 3).await,
        [pair("ADDED", "a"), pair("MODIFIED", "a"), pair("DELETED", "a")]
    );
    assert_eq!(
        types(&api, &format!("{CMS}?watch=1&resourceVersion={from}&fieldSelector=metadata.name%3Da"), 4).await,
        [pair("MODIFIED", "a"), pair("MODIFIED", "a"), pair("MODIFIED", "a"), pair("DELETED", "a")]
    );
    assert_eq!(types(&api, &format!("{CMS}?watch=1"), 1).await, [pair("ADDED", "ab")]);
    let initial = "watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let lines = api.watch(&format!("{CMS}?{initial}"), 2).await;
    assert_eq!(lines[0]["type"], "ADDED");
    assert_eq!(lines[1]["type"], "BOOKMARK");
    assert_eq!(lines[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    api.get(&format!("{CMS}?watch=1&sendInitialEvents=true")).await.expect(422);
    // A watch ends when its time is up.
    assert!(types(&api, &format!("{CMS}?watch=1&resourceVersion={from}&timeoutSeconds=1"), 100).await.len() >= 5);
}

#[tokio::test]
async fn old_revisions_are_gone() {
    let options = mycelium_store::Options { history: 8, ..mycelium_store::Options::default() };
    let api = common::local_with(options).await;
    let first = api.post(CMS, &config("a")).await.expect(201);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    api.post(CMS, &config("b")).await.expect(201);
    let page = api.get(&format!("{CMS}?limit=1")).await.expect(200);
    let token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    for index in 0..64 {
        api.patch(&format!("{CMS}/a"), "merge", &json!({"data": {"n": index.to_string()}})).await.expect(200);
    }
    let lines = api.watch(&format!("{CMS}?watch=1&resourceVersion={revision}"), 1).await;
    assert_eq!(lines[0]["type"], "ERROR");
    assert_eq!(lines[0]["object"]["code"], 410);
    assert_eq!(lines[0]["object"]["reason"], "Expired");
    let expired = api.get(&format!("{CMS}?limit=1&continue={token}")).await.expect(410);
    assert_eq!(expired["reason"], "Expired");
    let again = expired["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let rest = api.get(&format!("{CMS}?limit=1&continue={again}")).await.expect(200);
    assert_eq!(rest["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn deletion_waits_for_finalizers_and_grace() {
    let api = local().await;
    let mut held = config("held");
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    api.post(CMS, &held).await.expect(201);
    let path = format!("{CMS}/held");
    let marked = api.delete(&path).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let again = api.post(CMS, &held).await;
    assert!(again.message().starts_with("object is being deleted: configmaps \"held\" already exists"));
    api.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await.expect(200);
    api.get(&path).await.expect(404);

    api.post(PODS, &pod("p")).await.expect(201);
    let bind = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    api.post(&format!("{PODS}/p/binding"), &bind).await.expect(201);
    let twice = api.post(&format!("{PODS}/p/binding"), &bind).await.expect(409);
    assert!(twice["message"].as_str().unwrap_or_default().contains("already assigned to node"), "{twice}");
    let leaving = api.delete(&format!("{PODS}/p?gracePeriodSeconds=20")).await.expect(200);
    assert_eq!(leaving["metadata"]["deletionGracePeriodSeconds"], 20);
    api.get(&format!("{PODS}/p")).await.expect(200);
    let wrong = json!({"preconditions": {"uid": "nope"}, "gracePeriodSeconds": 0});
    api.send("DELETE", &format!("{PODS}/p"), "application/json", wrong.to_string()).await.expect(409);
    api.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.expect(200);
    api.get(&format!("{PODS}/p")).await.expect(404);

    api.post(CMS, &config("gc")).await.expect(201);
    let foreground = api.delete(&format!("{CMS}/gc?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(foreground["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    api.delete(&format!("{CMS}/gc?propagationPolicy=Sideways")).await.expect(422);
    api.post(CMS, &config("x1")).await.expect(201);
    api.delete(CMS).await.expect(200);
    api.get(&format!("{CMS}/x1")).await.expect(404);
}

#[tokio::test]
async fn namespaces_end_through_finalize() {
    let api = local().await;
    let made = api.post("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}})).await.expect(201);
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["status"]["phase"], "Active");
    api.get("/api/v1/namespaces/shop/serviceaccounts/default").await.expect(200);
    let ending = api.delete("/api/v1/namespaces/shop").await.expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    let refused = api.post("/api/v1/namespaces/shop/configmaps", &config("late")).await.expect(403);
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut done = api.get("/api/v1/namespaces/shop").await.expect(200);
    done["spec"]["finalizers"] = json!([]);
    api.put("/api/v1/namespaces/shop/finalize", &done).await.expect(200);
    api.get("/api/v1/namespaces/shop").await.expect(404);
}

#[tokio::test]
async fn services_never_share_an_address() {
    let api = local().await;
    let path = "/api/v1/namespaces/default/services";
    let service =
        |name: String, kind: &str| json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    let bodies: Vec<Value> = (0..20).map(|i| service(format!("s{i}"), "NodePort")).collect();
    let made = futures::future::join_all(bodies.iter().map(|body| api.post(path, body))).await;
    let mut addresses = std::collections::BTreeSet::new();
    let mut ports = std::collections::BTreeSet::new();
    for reply in made {
        let service = reply.expect(201);
        assert!(addresses.insert(service["spec"]["clusterIP"].to_string()));
        assert!(ports.insert(service["spec"]["ports"][0]["nodePort"].to_string()));
    }
    let first = api.get(&format!("{path}/s0")).await.expect(200);
    let (ip, port) = (first["spec"]["clusterIP"].clone(), first["spec"]["ports"][0]["nodePort"].clone());
    let mut same = service("same".into(), "NodePort");
    same["spec"]["clusterIP"] = ip.clone();
    assert!(
        api.post(path, &same).await.expect(422)["message"].to_string().contains("provided IP is already allocated")
    );
    same["spec"]["clusterIP"] = json!("1.2.3.4");
    api.post(path, &same).await.expect(422);
    api.delete(&format!("{path}/s0")).await.expect(200);
    same["spec"]["clusterIP"] = ip;
    same["spec"]["ports"][0]["nodePort"] = port;
    let taken = api.post(path, &same).await.expect(201);
    let mut internal = taken.clone();
    internal["spec"]["type"] = json!("ClusterIP");
    let internal = api.put(&format!("{path}/same"), &internal).await.expect(200);
    assert!(internal["spec"]["ports"][0].get("nodePort").is_none(), "{internal}");
    let mut headless = service("h".into(), "ClusterIP");
    headless["spec"]["clusterIP"] = json!("None");
    assert_eq!(api.post(path, &headless).await.expect(201)["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn scale_status_and_tables() {
    let api = local().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let made = api.post(path, &deployment).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    let scale = api.get(&format!("{path}/web/scale")).await.expect(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    let scaled = api.patch(&format!("{path}/web/scale"), "merge", &json!({"spec": {"replicas": 5}})).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 5);
    let mut status = api.get(&format!("{path}/web")).await.expect(200);
    assert_eq!(status["metadata"]["generation"], 2);
    status["spec"]["replicas"] = json!(9);
    status["status"] = json!({"replicas": 3, "observedGeneration": 2});
    let updated = api.put(&format!("{path}/web/status"), &status).await.expect(200);
    assert_eq!((&updated["spec"]["replicas"], &updated["status"]["replicas"]), (&json!(5), &json!(3)));
    assert_eq!(updated["metadata"]["generation"], 2);
    let headers = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = api.send_as(&api.who, "GET", path, &headers, "").await.expect(200);
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "web");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let headers = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = api.send_as(&api.who, "GET", path, &headers, "").await.expect(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let hpas = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}}});
    assert_eq!(api.post(hpas, &hpa).await.expect(201)["apiVersion"], "autoscaling/v1");
    let newer = api.get(&format!("{}/h", hpas.replace("/v1/", "/v2/"))).await.expect(200);
    assert_eq!(newer["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
}

#[tokio::test]
async fn pods_are_admitted() {
    let api = local().await;
    let made = api.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["restartPolicy"], "Always");
    assert!(made["spec"]["volumes"][0]["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-")));
    assert_eq!(made["status"]["phase"], "Pending");
    let mut stranger = pod("q");
    stranger["spec"]["serviceAccountName"] = json!("nobody");
    let refused = api.post(PODS, &stranger).await.expect(403);
    assert!(refused["message"].to_string().contains("serviceaccount \\\"nobody\\\" not found"), "{refused}");
    api.post(&format!("{PODS}/p/eviction"), &json!({"metadata": {"name": "p"}})).await.expect(201);
    api.get(&format!("{PODS}/p")).await.expect(404);
}

#[tokio::test]
async fn conditions_are_completed() {
    let api = local().await;
    let path = "/api/v1/namespaces/default/services";
    api.post(path, &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}})).await.expect(201);
    let told = json!({"status": {"conditions": [{"type": "Told", "status": "True", "reason": "Somebody"}]}});
    let service = api.patch(&format!("{path}/a/status"), "merge", &told).await.expect(200);
    let condition = &service["status"]["conditions"][0];
    assert!(condition["lastTransitionTime"].is_string(), "{condition}");
    assert_eq!((&condition["type"], &condition["message"]), (&json!("Told"), &json!("")));
}
