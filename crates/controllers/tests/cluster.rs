//! All controllers against the real API server in one thread, on a clock that jumps whenever everybody waits.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Cluster, DEPLOYMENTS, PODS, SETS, count};
use serde_json::{Value, json};
use tokio::time::sleep;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn deployment(replicas: u32, image: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers":
            [{"name": "main", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}}}})
}

async fn is_rolled_out(cluster: &Cluster, replicas: u64) -> bool {
    let Some(web) = cluster.get(&format!("{DEPLOYMENTS}/web")).await else { return false };
    let status = &web["status"];
    status["observedGeneration"] == web["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| count(&status[field]) == replicas)
}

#[tokio::test(start_paused = true)]
async fn a_deployment_from_birth_to_death() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    cluster.add_node("n2").await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "http"}]}});
    cluster.post("/api/v1/namespaces/default/services", service).await;
    cluster.post(DEPLOYMENTS, deployment(3, "v1")).await;
    cluster.until("rolled out", async |c| is_rolled_out(c, 3).await).await;
    let ready = async |c: &Cluster| {
        let slices = c.items(SLICES).await;
        let ours = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
        let endpoints: Vec<_> =
            ours.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect();
        endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    cluster.until("three endpoints", async |c| ready(c).await == 3).await;
    let legacy = cluster.get("/api/v1/namespaces/default/endpoints/web").await.unwrap();
    assert_eq!(legacy["subsets"][0]["ports"][0]["port"], 8080);
    assert_eq!(legacy["subsets"][0]["addresses"].as_array().unwrap().len(), 3);

    cluster.patch(&format!("{DEPLOYMENTS}/web"), deployment(5, "v2")).await;
    cluster.until("second revision", async |c| is_rolled_out(c, 5).await).await;
    let web = cluster.get(&format!("{DEPLOYMENTS}/web")).await.unwrap();
    assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    assert_eq!(cluster.items(SETS).await.len(), 2);
    cluster.until("five endpoints", async |c| ready(c).await == 5).await;
    let reasons = cluster.reasons().await;
    for told in [
        "ScalingReplicaSet Scaled up replica set web-",
        "SuccessfulCreate Created pod: web-",
        "Scheduled Successfully assigned default/web-",
    ] {
        assert!(reasons.iter().any(|reason| reason.starts_with(told)), "{told} not in {reasons:?}");
    }

    // What is settled stays as it is: nobody writes any more.
    sleep(Duration::from_secs(120)).await;
    let revision = |list: Value| {
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["resourceVersion"].clone()).collect::<Vec<_>>()
    };
    let mut before = Vec::new();
    for path in [PODS, SETS, DEPLOYMENTS, SLICES] {
        before.push(revision(cluster.get(path).await.unwrap()));
    }
    sleep(Duration::from_secs(700)).await;
    for (path, before) in [PODS, SETS, DEPLOYMENTS, SLICES].iter().zip(before) {
        assert_eq!(revision(cluster.get(path).await.unwrap()), before, "{path}");
    }

    cluster.delete(&format!("{DEPLOYMENTS}/web"), "Background").await;
    cluster.delete("/api/v1/namespaces/default/services/web", "Background").await;
    cluster
        .until("all gone", async |c| {
            c.items(PODS).await.is_empty() && c.items(SETS).await.is_empty() && ready(c).await == 0
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_image_stalls_and_undo_helps() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let mut web = deployment(4, "v1");
    web["spec"]["progressDeadlineSeconds"] = json!(30);
    web["spec"]["minReadySeconds"] = json!(0);
    cluster.post(DEPLOYMENTS, web).await;
    cluster.until("rolled out", async |c| is_rolled_out(c, 4).await).await;
    cluster.patch(&format!("{DEPLOYMENTS}/web"), deployment(4, "broken")).await;
    let progressing = async |c: &Cluster| {
        let web = c.get(&format!("{DEPLOYMENTS}/web")).await.unwrap();
        let conditions = web["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "Progressing").unwrap()
    };
    cluster.until("given up", async |c| progressing(c).await["reason"] == "ProgressDeadlineExceeded").await;
    let web = cluster.get(&format!("{DEPLOYMENTS}/web")).await.unwrap();
    assert_eq!(count(&web["status"]["availableReplicas"]), 3, "one may be unavailable");
    cluster.patch(&format!("{DEPLOYMENTS}/web"), deployment(4, "v1")).await;
    cluster
        .until("back", async |c| {
            is_rolled_out(c, 4).await && progressing(c).await["reason"] == "NewReplicaSetAvailable"
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_until_there_is_room() {
    let mut cluster = Cluster::start().await;
    let pod = json!({"metadata": {"name": "big"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "3"}}}]}});
    cluster.post(PODS, pod.clone()).await;
    let scheduled = async |c: &Cluster, pod: &str| {
        let pod = c.get(&format!("{PODS}/{pod}")).await.unwrap();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "PodScheduled").unwrap_or_default()
    };
    cluster
        .until("told why", async |c| scheduled(c, "big").await["message"] == "no nodes available to schedule pods")
        .await;
    cluster.add_node("n1").await;
    cluster.until("placed", async |c| scheduled(c, "big").await["status"] == "True").await;
    let mut second = pod;
    second["metadata"]["name"] = json!("second");
    cluster.post(PODS, second).await;
    cluster
        .until("short of cpu", async |c| {
            let condition = scheduled(c, "second").await;
            condition["reason"] == "Unschedulable"
                && condition["message"].as_str().unwrap().starts_with("0/1 nodes are available: 1 Insufficient cpu.")
        })
        .await;
    cluster.delete(&format!("{PODS}/big"), "Background").await;
    cluster.until("its turn", async |c| scheduled(c, "second").await["status"] == "True").await;
}

#[tokio::test(start_paused = true)]
async fn owners_take_their_dependents_along_as_asked() {
    let cluster = Cluster::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let owned = |name: &str, owner: &Value| {
        json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap",
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true}]}})
    };
    for policy in ["Background", "Foreground", "Orphan"] {
        let top = cluster.post(maps, json!({"metadata": {"name": "top"}})).await;
        let middle = cluster.post(maps, owned("middle", &top)).await;
        cluster.post(maps, owned("leaf", &middle)).await;
        sleep(Duration::from_secs(5)).await;
        cluster.delete(&format!("{maps}/top"), policy).await;
        cluster.until("top gone", async |c| c.get(&format!("{maps}/top")).await.is_none()).await;
        if policy == "Orphan" {
            let middle = cluster.get(&format!("{maps}/middle")).await.unwrap();
            assert!(middle["metadata"]["ownerReferences"].is_null());
            sleep(Duration::from_secs(5)).await;
            assert!(cluster.get(&format!("{maps}/leaf")).await.is_some());
        } else {
            let gone = async |c: &Cluster| {
                c.get(&format!("{maps}/middle")).await.is_none() && c.get(&format!("{maps}/leaf")).await.is_none()
            };
            if policy == "Foreground" {
                assert!(gone(&cluster).await, "dependents go first");
            }
            cluster.until("dependents gone", gone).await;
        }
    }
    let lost = json!({"metadata": {"name": "gone", "uid": "no-such-uid"}});
    cluster.post(maps, owned("born-an-orphan", &lost)).await;
    cluster.until("collected", async |c| c.get(&format!("{maps}/born-an-orphan")).await.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_furnished_and_emptied() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "team"}})).await;
    let inside = "/api/v1/namespaces/team";
    cluster
        .until("a service account", async |c| c.get(&format!("{inside}/serviceaccounts/default")).await.is_some())
        .await;
    cluster
        .until("a certificate", async |c| {
            c.get(&format!("{inside}/configmaps/kube-root-ca.crt"))
                .await
                .is_some_and(|map| map["data"]["ca.crt"] == "certificate")
        })
        .await;
    cluster.delete(&format!("{inside}/configmaps/kube-root-ca.crt"), "Background").await;
    cluster
        .until("the certificate again", async |c| {
            c.get(&format!("{inside}/configmaps/kube-root-ca.crt")).await.is_some()
        })
        .await;
    cluster.post("/apis/apps/v1/namespaces/team/deployments", deployment(2, "v1")).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    cluster.post(&format!("{inside}/secrets"), held).await;
    cluster.until("pods", async |c| c.items(&format!("{inside}/pods")).await.len() == 2).await;
    cluster.delete("/api/v1/namespaces/team", "Background").await;
    cluster.until("it tells what holds it", async |c| {
        let namespace = c.get("/api/v1/namespaces/team").await.unwrap();
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let told = conditions.iter().find(|condition| condition["type"] == "NamespaceFinalizersRemaining");
        told.is_some_and(|told| told["message"] == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
    }).await;
    cluster.patch(&format!("{inside}/secrets/held"), json!({"metadata": {"finalizers": null}})).await;
    cluster.until("gone", async |c| c.get("/api/v1/namespaces/team").await.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn pods_leave_a_lost_node_and_are_replaced() {
    let mut cluster = Cluster::start().await;
    let lost = cluster.add_node("n1").await;
    cluster.post(DEPLOYMENTS, deployment(2, "v1")).await;
    cluster.until("rolled out", async |c| is_rolled_out(c, 2).await).await;
    cluster.add_node("n2").await;
    lost.abort();
    let taints = async |c: &Cluster| {
        c.get("/api/v1/nodes/n1").await.unwrap()["spec"]["taints"].as_array().cloned().unwrap_or_default()
    };
    cluster
        .until("tainted", async |c| {
            taints(c).await.iter().any(|t| t["key"] == "node.kubernetes.io/unreachable" && t["effect"] == "NoExecute")
        })
        .await;
    let on = async |c: &Cluster, node: &str| {
        c.items(PODS)
            .await
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null())
            .count()
    };
    for _ in 0..4 {
        sleep(Duration::from_secs(100)).await;
    }
    cluster.until("replaced", async |c| on(c, "n2").await == 2 && on(c, "n1").await == 0).await;
    cluster.delete("/api/v1/nodes/n1", "Background").await;
    cluster.until("cleaned up", async |c| c.items(PODS).await.len() == 2 && is_rolled_out(c, 2).await).await;
}
