//! Why pods must go: preemption, taints, evictions; and what goes with them. Against the real API server, on virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Cluster, PODS};
use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const STATEFUL: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "containers": [{"name": "main", "image": "v1", "resources": {"requests": {"cpu": "1"}}}]}});
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// A pod that stays to be looked at after its end, until [`release`].
fn held(mut pod: Value) -> Value {
    pod["metadata"]["finalizers"] = json!(["example.com/look"]);
    pod
}

async fn release(cluster: &Cluster, name: &str) {
    cluster.patch(&format!("{PODS}/{name}"), json!({"metadata": {"finalizers": null}})).await;
}

fn requests(cpu: &str) -> Value {
    json!([{"name": "main", "image": "v1", "resources": {"requests": {"cpu": cpu}}}])
}

async fn get(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&format!("{PODS}/{name}")).await.unwrap_or_default()
}

/// The condition that says that a pod goes for others' sake.
fn target(pod: &Value) -> Value {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "DisruptionTarget").unwrap_or_default()
}

async fn is_running(cluster: &Cluster, name: &str) -> bool {
    get(cluster, name).await["status"]["phase"] == "Running"
}

async fn is_going(cluster: &Cluster, name: &str) -> bool {
    get(cluster, name).await["metadata"]["deletionTimestamp"].is_string()
}

#[tokio::test(start_paused = true)]
async fn an_important_pod_takes_the_place_of_another() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    for (name, value, policy) in
        [("high", 1000, "PreemptLowerPriority"), ("peaceful", 1000, "Never"), ("low", -10, "PreemptLowerPriority")]
    {
        let class = json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": policy});
        cluster.post(CLASSES, class).await;
    }
    let low = json!({"priorityClassName": "low", "terminationGracePeriodSeconds": 17, "containers": requests("3")});
    cluster.post(PODS, held(pod("low", low))).await;
    cluster.until("low runs", async |c| is_running(c, "low").await).await;

    // It waits for room, and does not make any.
    let peaceful = json!({"priorityClassName": "peaceful", "containers": requests("2")});
    cluster.post(PODS, pod("peaceful", peaceful)).await;
    sleep(Duration::from_secs(20)).await;
    assert!(!is_going(&cluster, "low").await);
    let waits = get(&cluster, "peaceful").await;
    assert!(waits["status"]["nominatedNodeName"].is_null(), "{waits}");
    let message = waits["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("not eligible due to preemptionPolicy=Never."), "{message}");
    cluster.delete(&format!("{PODS}/peaceful"), "Background").await;

    cluster.post(PODS, pod("high", json!({"priorityClassName": "high", "containers": requests("2")}))).await;
    cluster.until("low goes", async |c| is_going(c, "low").await).await;
    let low = get(&cluster, "low").await;
    let why = target(&low);
    assert_eq!((&why["status"], &why["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    assert_eq!(why["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    cluster.until("a node in prospect", async |c| get(c, "high").await["status"]["nominatedNodeName"] == "n1").await;
    sleep(Duration::from_secs(20)).await;
    assert!(get(&cluster, "high").await["spec"]["nodeName"].is_null(), "it waits until the other is gone");
    release(&cluster, "low").await;
    cluster.until("high runs", async |c| is_running(c, "high").await).await;
    assert!(get(&cluster, "high").await["status"]["nominatedNodeName"].is_null());
    let reasons = cluster.reasons().await;
    assert!(reasons.iter().any(|reason| reason.starts_with("Preempted Preempted by pod ")), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn preemption_breaks_no_budget_if_it_can_be_helped() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    cluster.post(CLASSES, json!({"metadata": {"name": "high"}, "value": 1000})).await;
    cluster.post(PODS, pod("guarded", json!({"containers": requests("2")}))).await;
    cluster.until("guarded runs", async |c| is_running(c, "guarded").await).await;
    let budget = json!({"metadata": {"name": "guarded"}, "spec": {"minAvailable": 1,
        "selector": {"matchLabels": {"app": "guarded"}}}});
    cluster.post(BUDGETS, budget).await;
    let path = format!("{BUDGETS}/guarded");
    cluster.until("counted", async |c| c.get(&path).await.unwrap()["status"]["currentHealthy"] == 1).await;
    cluster.post(PODS, held(pod("beside", json!({"containers": requests("2")})))).await;
    cluster.until("beside runs", async |c| is_running(c, "beside").await).await;
    cluster.post(PODS, pod("high", json!({"priorityClassName": "high", "containers": requests("2")}))).await;
    cluster.until("beside goes", async |c| is_going(c, "beside").await).await;
    release(&cluster, "beside").await;
    cluster.until("high runs", async |c| is_running(c, "high").await).await;
    assert!(is_running(&cluster, "guarded").await && !is_going(&cluster, "guarded").await);
}

#[tokio::test(start_paused = true)]
async fn a_taint_drives_pods_out_when_their_patience_ends() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let tolerates = |seconds: Value| {
        let toleration =
            json!({"key": "care", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        json!({"tolerations": [toleration]})
    };
    cluster.post(PODS, held(pod("none", json!({})))).await;
    cluster.post(PODS, held(pod("some", tolerates(json!(60))))).await;
    cluster.post(PODS, pod("all", tolerates(Value::Null))).await;
    for name in ["none", "some", "all"] {
        cluster.until(name, async |c| is_running(c, name).await).await;
    }
    let taints = json!({"spec": {"taints": [{"key": "care", "value": "x", "effect": "NoExecute"}]}});
    cluster.patch("/api/v1/nodes/n1", taints).await;
    cluster.until("the first goes", async |c| is_going(c, "none").await).await;
    assert_eq!(target(&get(&cluster, "none").await)["reason"], "DeletionByTaintManager");
    sleep(Duration::from_secs(40)).await;
    assert!(!is_going(&cluster, "some").await, "its time is not over");
    sleep(Duration::from_secs(30)).await;
    assert!(is_going(&cluster, "some").await && !is_going(&cluster, "all").await);
    release(&cluster, "none").await;
    release(&cluster, "some").await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_not_well_may_be_evicted_if_the_budget_says_so() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let web = |name: &str| {
        let mut web = held(pod(name, json!({})));
        web["metadata"]["labels"] = json!({"app": "web"});
        web
    };
    cluster.post(PODS, web("sick")).await;
    cluster.post(PODS, web("well")).await;
    for name in ["sick", "well"] {
        cluster.until(name, async |c| is_running(c, name).await).await;
    }
    let sick = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.patch(&format!("{PODS}/sick/status"), sick).await;
    let budget =
        json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.post(BUDGETS, budget).await;
    let path = format!("{BUDGETS}/web");
    let settled = async |c: &Cluster| {
        let budget = c.get(&path).await.unwrap();
        budget["status"]["observedGeneration"] == budget["metadata"]["generation"]
            && budget["status"]["currentHealthy"] == 1
    };
    cluster.until("counted", settled).await;
    let evict = async |name: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        cluster.call(Method::POST, &format!("{PODS}/{name}/eviction"), Some(&body)).await
    };
    let Err(kube::Error::Api(refused)) = evict("sick").await else { panic!("the budget is not met") };
    assert_eq!(refused.code, 429);
    cluster.patch(&path, json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})).await;
    cluster.until("seen", settled).await;
    assert!(evict("well").await.is_err(), "it serves");
    evict("sick").await.unwrap();
    let sick = get(&cluster, "sick").await;
    assert_eq!(target(&sick)["reason"], "EvictionByEvictionAPI");
    assert!(sick["metadata"]["deletionTimestamp"].is_string());
    release(&cluster, "sick").await;
}

#[tokio::test(start_paused = true)]
async fn claims_go_with_what_they_were_made_for() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    // Of a pod.
    let volume = json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": claim}});
    cluster.post(PODS, pod("worker", json!({"volumes": [volume]}))).await;
    let path = format!("{CLAIMS}/worker-scratch");
    cluster.until("its claim", async |c| c.get(&path).await.is_some()).await;
    let made = cluster.get(&path).await.unwrap();
    let owner = &made["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"], &owner["controller"]), (&json!("Pod"), &json!("worker"), &json!(true)));
    cluster.delete(&format!("{PODS}/worker"), "Background").await;
    cluster.until("no claim", async |c| c.items(CLAIMS).await.is_empty()).await;

    // Of a set, if it says so.
    let mut template = claim.clone();
    template["metadata"] = json!({"name": "data"});
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
        "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}},
        "volumeClaimTemplates": [template]}});
    cluster.post(STATEFUL, set).await;
    let owned = async |c: &Cluster| {
        let claims = c.items(CLAIMS).await;
        let by_set = |claim: &Value| claim["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
        claims.len() == 2 && claims.iter().all(by_set)
    };
    cluster.until("claims of the set", owned).await;
    cluster.patch(&format!("{STATEFUL}/db"), json!({"spec": {"replicas": 1}})).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(cluster.items(CLAIMS).await.len(), 2, "it was only scaled");
    cluster.delete(&format!("{STATEFUL}/db"), "Background").await;
    cluster.until("no claims", async |c| c.items(CLAIMS).await.is_empty()).await;
}
