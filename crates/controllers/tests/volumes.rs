//! Volumes, claims and what the scheduler makes of them, against the real API server, on virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Cluster, PODS};
use http::Method;
use mycelium_controllers::volumes::{claim, volume};
use serde_json::{Value, json};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

async fn cluster(nodes: &[&str]) -> Cluster {
    let mut cluster = Cluster::start().await;
    for node in nodes {
        cluster.add_node(node).await;
    }
    cluster
}

fn a_claim(name: &str, class: Value, mode: &str) -> Value {
    let mut claim = json!({"metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}});
    if !class.is_null() {
        claim["spec"]["storageClassName"] = class;
    }
    claim
}

fn local_volume(name: &str, size: &str, class: &str, node: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": class, "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn pod(name: &str, claim: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "i"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

async fn phase(cluster: &Cluster, path: &str) -> Value {
    cluster.get(path).await.map_or(Value::Null, |object| object["status"]["phase"].clone())
}

async fn until_phase(cluster: &Cluster, path: &str, wanted: &str) {
    cluster.until(&format!("{path} {wanted}"), async |c| phase(c, path).await == wanted).await;
}

async fn why(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get(&format!("{PODS}/{pod}")).await.unwrap();
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let held = conditions.iter().find(|condition| condition["type"] == "PodScheduled");
    held.map_or_else(String::new, |condition| condition["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(start_paused = true)]
async fn claims_get_volumes_grow_and_give_them_back() {
    let cluster = cluster(&["n1"]).await;
    // The default class, a class that goes by another name, and one that nobody serves.
    cluster.post(CLAIMS, a_claim("plain", Value::Null, "ReadWriteOnce")).await;
    cluster.post(CLAIMS, a_claim("fast", json!("fast-ssd"), "ReadWriteMany")).await;
    cluster.post(CLAIMS, a_claim("odd", json!("unheard-of"), "ReadWriteOnce")).await;
    let mut raw = a_claim("raw", Value::Null, "ReadWriteOnce");
    raw["spec"]["volumeMode"] = json!("Block");
    cluster.post(CLAIMS, raw).await;
    for name in ["plain", "fast"] {
        until_phase(&cluster, &format!("{CLAIMS}/{name}"), "Bound").await;
    }
    let fast = cluster.get(&format!("{CLAIMS}/fast")).await.unwrap();
    assert_eq!(fast["status"]["capacity"]["storage"], "1Gi");
    assert_eq!(fast["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"], "yes");
    let name = format!("pvc-{}", fast["metadata"]["uid"].as_str().unwrap());
    assert_eq!(fast["spec"]["volumeName"], json!(name));
    let made = cluster.get(&format!("{VOLUMES}/{name}")).await.unwrap();
    assert_eq!((&made["spec"]["storageClassName"], &made["status"]["phase"]), (&json!("fast-ssd"), &json!("Bound")));
    assert_eq!(made["spec"]["claimRef"]["uid"], fast["metadata"]["uid"]);
    let told = cluster.reasons().await;
    let has = |text: &str| assert!(told.iter().any(|line| line.contains(text)), "{text}: {told:#?}");
    has("ProvisioningFailed storageclass.storage.k8s.io \"unheard-of\" not found");
    has("ProvisioningFailed failed to provision volume with StorageClass \"local\": volumeMode Block");
    has("serves claims for fast-ssd here");

    // It grows; another class's claim does not.
    let larger = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    cluster.patch(&format!("{CLAIMS}/fast"), larger).await;
    cluster
        .until("grown", async |c| {
            c.get(&format!("{CLAIMS}/fast")).await.unwrap()["status"]["capacity"]["storage"] == "3Gi"
        })
        .await;
    let grown = cluster.get(&format!("{VOLUMES}/{name}")).await.unwrap();
    assert_eq!(grown["spec"]["capacity"]["storage"], "3Gi");

    // A claim stays while a pod has it, and its volume goes after it.
    cluster.post(PODS, pod("user", "fast")).await;
    until_phase(&cluster, &format!("{PODS}/user"), "Running").await;
    cluster.delete(&format!("{CLAIMS}/fast"), "Background").await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(cluster.get(&format!("{CLAIMS}/fast")).await.is_some(), "a pod uses it");
    cluster.post(PODS, pod("late", "fast")).await;
    cluster
        .until("refused", async |c| why(c, "late").await.contains("persistentvolumeclaim \"fast\" is being deleted"))
        .await;
    cluster.delete(&format!("{PODS}/late"), "Background").await;
    cluster.delete(&format!("{PODS}/user"), "Background").await;
    cluster.until("the claim is gone", async |c| c.get(&format!("{CLAIMS}/fast")).await.is_none()).await;
    until_phase(&cluster, &format!("{VOLUMES}/{name}"), "Released").await;
}

#[tokio::test(start_paused = true)]
async fn the_scheduler_waits_for_claims_and_finds_volumes_that_a_node_reaches() {
    let cluster = cluster(&["n1", "n2"]).await;
    cluster
        .post(
            CLASSES,
            json!({"metadata": {"name": "disks"}, "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer"}),
        )
        .await;
    cluster.post(PODS, pod("early", "data")).await;
    cluster.until("told", async |c| why(c, "early").await.contains("persistentvolumeclaim \"data\" not found")).await;
    assert_eq!(
        why(&cluster, "early").await,
        "0/2 nodes are available: persistentvolumeclaim \"data\" not found. no new claims to deallocate, preemption: 0/2 \
         nodes are available: 2 Preemption is not helpful for scheduling."
    );
    cluster.post(CLAIMS, a_claim("data", json!("disks"), "ReadWriteOnce")).await;
    let none = "didn't find available persistent volumes to bind";
    cluster.until("no volume", async |c| why(c, "early").await.contains(none)).await;
    // The smallest that fits, on the one node that has it.
    cluster.post(VOLUMES, local_volume("large", "9Gi", "disks", "n1")).await;
    cluster.post(VOLUMES, local_volume("small", "2Gi", "disks", "n2")).await;
    cluster.post(VOLUMES, local_volume("tiny", "1Mi", "disks", "n1")).await;
    until_phase(&cluster, &format!("{PODS}/early"), "Running").await;
    let node = cluster.get(&format!("{PODS}/early")).await.unwrap()["spec"]["nodeName"].clone();
    let held = cluster.get(&format!("{CLAIMS}/data")).await.unwrap()["spec"]["volumeName"].clone();
    assert!([(json!("n1"), json!("large")), (json!("n2"), json!("small"))].contains(&(node.clone(), held)));

    // A pod that must be elsewhere cannot have it.
    let other = if node == "n1" { "n2" } else { "n1" };
    let mut away = pod("away", "data");
    away["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": other});
    cluster.post(PODS, away).await;
    let text = "didn't match PersistentVolume's node affinity";
    cluster.until("refused", async |c| why(c, "away").await.contains(text)).await;

    // A class that waits, whose volumes we make.
    cluster
        .post(
            CLASSES,
            json!({"metadata": {"name": "lazy"}, "provisioner": "mycelium.network/local",
            "volumeBindingMode": "WaitForFirstConsumer"}),
        )
        .await;
    cluster.post(CLAIMS, a_claim("lazy", json!("lazy"), "ReadWriteOncePod")).await;
    cluster
        .until("waits", async |c| c.reasons().await.iter().any(|line| line.starts_with("WaitForFirstConsumer")))
        .await;
    cluster.post(PODS, pod("one", "lazy")).await;
    until_phase(&cluster, &format!("{PODS}/one"), "Running").await;
    until_phase(&cluster, &format!("{CLAIMS}/lazy"), "Bound").await;
    cluster.post(PODS, pod("two", "lazy")).await;
    let text = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    cluster.until("refused", async |c| why(c, "two").await.contains(text)).await;
    cluster.delete(&format!("{PODS}/one"), "Background").await;
    until_phase(&cluster, &format!("{PODS}/two"), "Running").await;
}

#[tokio::test(start_paused = true)]
async fn prepared_volumes_are_matched_kept_and_lost() {
    let cluster = cluster(&["n1"]).await;
    let volume = |name: &str, labels: Value, policy: &str| {
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": policy}})
    };
    cluster.post(VOLUMES, volume("a", json!({"tier": "a"}), "Retain")).await;
    cluster.post(VOLUMES, volume("b", json!({"tier": "b"}), "Delete")).await;
    until_phase(&cluster, &format!("{VOLUMES}/b"), "Available").await;
    let mut claim = a_claim("chosen", json!(""), "ReadOnlyMany");
    claim["spec"]["selector"] = json!({"matchLabels": {"tier": "b"}});
    cluster.post(CLAIMS, claim).await;
    until_phase(&cluster, &format!("{CLAIMS}/chosen"), "Bound").await;
    assert_eq!(cluster.get(&format!("{CLAIMS}/chosen")).await.unwrap()["spec"]["volumeName"], "b");
    cluster.post(CLAIMS, a_claim("shared", json!(""), "ReadWriteMany")).await;
    let mut named = a_claim("named", json!(""), "ReadWriteOnce");
    named["spec"]["volumeName"] = json!("a");
    cluster.post(CLAIMS, named).await;
    until_phase(&cluster, &format!("{CLAIMS}/named"), "Bound").await;
    let told = cluster.reasons().await;
    assert!(told.iter().any(|line| line.starts_with("FailedBinding no persistent volumes available")), "{told:#?}");
    let refused = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let refused = cluster.call(Method::PATCH, &format!("{CLAIMS}/named"), Some(&refused)).await.unwrap_err();
    assert!(refused.to_string().contains("only dynamically provisioned pvc can be resized"), "{refused}");

    // What is not ours to delete fails to be deleted; what is retained is released.
    cluster.delete(&format!("{CLAIMS}/chosen"), "Background").await;
    until_phase(&cluster, &format!("{VOLUMES}/b"), "Failed").await;
    cluster.delete(&format!("{CLAIMS}/named"), "Background").await;
    until_phase(&cluster, &format!("{VOLUMES}/a"), "Released").await;
    // A volume is protected while it is bound, and a claim notices its loss.
    cluster.patch(&format!("{VOLUMES}/a"), json!({"spec": {"claimRef": null}})).await;
    until_phase(&cluster, &format!("{VOLUMES}/a"), "Available").await;
    cluster.post(CLAIMS, a_claim("again", json!(""), "ReadWriteOnce")).await;
    until_phase(&cluster, &format!("{CLAIMS}/again"), "Bound").await;
    cluster.delete(&format!("{VOLUMES}/a"), "Background").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(cluster.get(&format!("{VOLUMES}/a")).await.is_some(), "bound volumes stay");
    cluster.patch(&format!("{VOLUMES}/a"), json!({"metadata": {"finalizers": null}})).await;
    until_phase(&cluster, &format!("{CLAIMS}/again"), "Lost").await;
}

#[test]
fn plans_are_settled_after_one_step() {
    let claim: k8s_openapi::api::core::v1::PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"}}))
    .unwrap();
    let volume: k8s_openapi::api::core::v1::PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "v"}, "status": {"phase": "Available"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}}))
    .unwrap();
    let world = |volume| claim::World { volumes: vec![std::sync::Arc::new(volume)], classes: vec![], pods: vec![] };
    let first = claim::plan(&claim, &world(volume));
    let (_, bound) = first.volume.unwrap();
    let second = claim::plan(&first.claim, &world(bound.clone()));
    assert!(second.volume.is_none() && second.claim == first.claim && second.notes.is_empty());
    let settled = volume::plan(&bound, Some(&std::sync::Arc::new(first.claim)));
    assert!(settled.volume == bound && settled.notes.is_empty());
    let released = volume::plan(&bound, None).volume;
    assert_eq!(released.status.unwrap().phase.as_deref(), Some("Released"));
}
