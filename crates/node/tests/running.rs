//! What happens to running pods: containers are added, resources changed, and pods evicted when the node is short of memory.
//! Needs root.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Cluster;
use mycelium_node::pressure::Config;
use mycelium_node::pressure::signals::{Level, Meter, Sample, Signal};
use serde_json::json;

const CAPACITY: u64 = 8 << 30;

/// Memory as the test says.
struct Fake(AtomicU64);

impl Meter for Fake {
    fn sample(&self) -> Sample {
        let level = Level { available: self.0.load(Ordering::Relaxed), capacity: CAPACITY };
        Sample::from([(Signal::Memory, level)])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_pressure_evicts_the_least_deserving_pod() {
    let meter = Arc::new(Fake(AtomicU64::new(CAPACITY)));
    let config = Config {
        meter: Some(meter.clone()),
        every: Duration::from_millis(50),
        transition: Duration::from_millis(500),
        ..Config::default()
    };
    let cluster = Cluster::with_pressure(config).await;
    let sleeper = |resources| {
        let container =
            json!({"name": "c", "image": "busybox", "command": ["sleep", "100000"], "resources": resources});
        json!({"terminationGracePeriodSeconds": 60, "containers": [container]})
    };
    cluster.create("modest", sleeper(json!({"requests": {"memory": "64Mi"}}))).await;
    cluster.create("greedy", sleeper(json!({}))).await;
    cluster.until_ready("modest").await;
    cluster.until_ready("greedy").await;

    meter.0.store(50 << 20, Ordering::Relaxed);
    let greedy = cluster.until("greedy", |pod| pod["status"]["reason"] == "Evicted").await;
    // It is waited for before another one goes, so that this is in time.
    meter.0.store(CAPACITY, Ordering::Relaxed);
    let message = greedy["status"]["message"].as_str().unwrap_or_default();
    let start =
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using ";
    assert!(
        message.starts_with(start) && message.contains(", request is 0, has larger consumption of memory. "),
        "{message}"
    );
    assert_eq!(greedy["status"]["phase"], "Failed");
    let conditions = greedy["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet"));
    while !cluster.events("greedy").await.iter().any(|event| event.contains("Evicted")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while condition(&cluster).await != "False" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.create("later", sleeper(json!({}))).await;
    cluster.until_ready("later").await;
    let modest = cluster.until_ready("modest").await;
    assert_eq!(modest["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_do_not_start_on_a_node_under_pressure() {
    let meter = Arc::new(Fake(AtomicU64::new(50 << 20)));
    let config = Config { meter: Some(meter.clone()), every: Duration::from_millis(50), ..Config::default() };
    let cluster = Cluster::with_pressure(config).await;
    while condition(&cluster).await != "True" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let spec = json!({"containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"]}]});
    cluster.create("late", spec).await;
    let late = cluster.until("late", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "Evicted");
    assert_eq!(late["status"]["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    cluster.finish().await;
}

/// The status of the node's memory condition.
async fn condition(cluster: &Cluster) -> String {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(cluster.client.clone());
    let node = nodes.get_opt("n1").await.expect("an answer");
    let conditions = node.and_then(|node| node.status).and_then(|status| status.conditions).unwrap_or_default();
    conditions.into_iter().find(|c| c.type_ == "MemoryPressure").map(|c| c.status).unwrap_or_default()
}

async fn patch(cluster: &Cluster, name: &str, subresource: &str, patch: serde_json::Value) {
    let pods = cluster.pods();
    let params = kube::api::PatchParams::default();
    let answer = pods.patch_subresource(subresource, name, &params, &kube::api::Patch::Strategic(patch)).await;
    answer.unwrap_or_else(|error| panic!("{subresource}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_added_and_sees_the_processes_of_another() {
    let cluster = Cluster::start().await;
    let sleeper = |name: &str, time: &str| json!({"name": name, "image": "busybox", "command": ["sleep", time]});
    cluster.create("web", json!({"containers": [sleeper("main", "98765"), sleeper("other", "43210")]})).await;
    cluster.until_ready("web").await;
    let look = json!({"name": "look", "image": "busybox", "command": ["sh", "-c", "ps; exit 3"],
        "targetContainerName": "main"});
    patch(&cluster, "web", "ephemeralcontainers", json!({"spec": {"ephemeralContainers": [look]}})).await;
    let ended =
        |pod: &serde_json::Value| pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"].is_object();
    let pod = cluster.until("web", ended).await;
    let status = &pod["status"]["ephemeralContainerStatuses"][0];
    assert_eq!(status["state"]["terminated"]["exitCode"], 3);
    assert_eq!((&status["restartCount"], &status["ready"]), (&json!(0), &json!(false)));
    let log = cluster.until_log(&pod, "look", |log| log.contains("ps")).await;
    assert!(log.contains("sleep 98765") && !log.contains("sleep 43210"), "{log}");
    let pod = cluster.until_ready("web").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_gets_other_limits() {
    let mut cluster = Cluster::start().await;
    let resources = json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
    // Its own view of its group, whenever it changes.
    let script = "f=/sys/fs/cgroup/memory.max; [ -e $f ] || f=/sys/fs/cgroup/memory/memory.limit_in_bytes; \
                  while true; do n=$(cat $f); [ \"$n\" = \"$o\" ] || echo limit $n; o=$n; sleep 0.1; done";
    let main = json!({"name": "main", "image": "busybox", "command": ["sh", "-c", script], "resources": resources});
    let picky = json!({"name": "picky", "image": "busybox", "command": ["sleep", "100000"],
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
        "resources": {"requests": {"memory": "16Mi"}}});
    cluster.create("web", json!({"terminationGracePeriodSeconds": 1, "containers": [main, picky]})).await;
    let pod = cluster.until_ready("web").await;
    cluster.until_log(&pod, "main", |log| log.contains("limit 67108864")).await;
    let of = |name: &str, resources: serde_json::Value| json!({"spec": {"containers": [{"name": name, "resources": resources}]}});
    for (text, bytes) in [("128Mi", 128 << 20), ("48Mi", 48 << 20)] {
        patch(&cluster, "web", "resize", of("main", json!({"limits": {"memory": text}}))).await;
        cluster.until_log(&pod, "main", |log| log.contains(&format!("limit {bytes}"))).await;
        cluster
            .until("web", |pod| pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == text)
            .await;
    }
    let condition = |pod: &serde_json::Value, kind: &str| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == kind)
    };
    // More than the node has: said so, and everything stays as it is.
    patch(&cluster, "web", "resize", of("picky", json!({"requests": {"memory": "900Ti"}}))).await;
    let pod = cluster.until("web", |pod| condition(pod, "PodResizePending").is_some()).await;
    let pending = condition(&pod, "PodResizePending").unwrap_or_default();
    assert_eq!(pending["reason"], "Infeasible");
    let message = pending["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("Node didn't have enough capacity: memory, requested: "), "{message}");
    assert_eq!(pod["status"]["containerStatuses"][1]["allocatedResources"]["memory"], "16Mi");
    // A node that starts anew knows what containers have.
    cluster.down().await;
    cluster.up().await;
    patch(&cluster, "web", "resize", of("picky", json!({"requests": {"memory": "24Mi"}}))).await;
    let pod = cluster
        .until("web", |pod| {
            let picky = &pod["status"]["containerStatuses"][1];
            picky["restartCount"] == 1
                && picky["resources"]["requests"]["memory"] == "24Mi"
                && condition(pod, "PodResizePending").is_none()
        })
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "only the one that wants it is restarted");
    cluster.finish().await;
}
