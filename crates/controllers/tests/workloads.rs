//! StatefulSets, DaemonSets, Jobs and ReplicationControllers against the real API server, on virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Cluster, PODS, count};
use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

const STATEFUL: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const DAEMONS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const CONTROLLERS: &str = "/api/v1/namespaces/default/replicationcontrollers";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

async fn cluster(nodes: &[&str]) -> Cluster {
    let mut cluster = Cluster::start().await;
    for node in nodes {
        cluster.add_node(node).await;
    }
    cluster
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

async fn pod_names(cluster: &Cluster) -> Vec<String> {
    cluster.items(PODS).await.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

async fn images(cluster: &Cluster) -> Vec<String> {
    let text = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    cluster.items(PODS).await.iter().map(text).collect()
}

/// What is settled stays as it is: nobody writes any more.
async fn at_rest(cluster: &Cluster, paths: &[&str]) {
    sleep(Duration::from_secs(60)).await;
    let revisions = async || {
        let mut all = Vec::new();
        for path in paths {
            all.extend(cluster.items(path).await.iter().map(|item| item["metadata"]["resourceVersion"].clone()));
        }
        all
    };
    let before = revisions().await;
    sleep(Duration::from_secs(150)).await;
    assert_eq!(revisions().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_grows_in_order_rolls_to_its_partition_and_shrinks() {
    let cluster = cluster(&["n1"]).await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("v1"),
        "volumeClaimTemplates": [{"metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}});
    cluster.post(STATEFUL, set).await;
    let path = format!("{STATEFUL}/db");
    let status = async |c: &Cluster| c.get(&path).await.unwrap()["status"].clone();
    cluster.until("three", async |c| count(&status(c).await["readyReplicas"]) == 3).await;
    assert_eq!(pod_names(&cluster).await, ["db-0", "db-1", "db-2"]);
    let pods = cluster.items(PODS).await;
    let created: Vec<_> = pods.iter().map(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap()).collect();
    assert!(created.is_sorted() && created[0] < created[2], "one after the other: {created:?}");
    let first = status(&cluster).await["currentRevision"].clone();
    let one = &pods[1];
    assert_eq!(one["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], "db-1");
    assert_eq!(one["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(one["metadata"]["labels"]["controller-revision-hash"], first);
    assert_eq!((&one["spec"]["hostname"], &one["spec"]["subdomain"]), (&json!("db-1"), &json!("db")));
    let volume = &one["spec"]["volumes"][0];
    assert_eq!((&volume["name"], &volume["persistentVolumeClaim"]["claimName"]), (&json!("data"), &json!("data-db-1")));
    let claims = cluster.items(CLAIMS).await;
    assert_eq!(claims.len(), 3);
    assert_eq!(claims[2]["metadata"]["name"], "data-db-2");
    assert_eq!(claims[2]["metadata"]["labels"]["app"], "db");
    let reasons = cluster.reasons().await;
    for told in [
        "SuccessfulCreate create Claim data-db-0 Pod db-0 in StatefulSet db success",
        "SuccessfulCreate create Pod db-2 in StatefulSet db successful",
    ] {
        assert!(reasons.iter().any(|reason| reason == told), "{told} not in {reasons:?}");
    }

    let partition = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "v2"}]}},
        "updateStrategy": {"rollingUpdate": {"partition": 2}}}});
    cluster.patch(&path, partition).await;
    cluster
        .until("one updated", async |c| {
            let status = status(c).await;
            count(&status["updatedReplicas"]) == 1 && count(&status["readyReplicas"]) == 3
        })
        .await;
    assert_eq!(images(&cluster).await, ["v1", "v1", "v2"]);
    assert_eq!(status(&cluster).await["currentRevision"], first);
    // A pod below the partition comes back as it was.
    cluster.delete(&format!("{PODS}/db-0"), "Background").await;
    cluster.until("back", async |c| count(&status(c).await["readyReplicas"]) == 3).await;
    assert_eq!(images(&cluster).await, ["v1", "v1", "v2"]);
    cluster.patch(&path, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})).await;
    cluster
        .until("all updated", async |c| {
            let status = status(c).await;
            status["currentRevision"] == status["updateRevision"] && status["currentRevision"] != first
        })
        .await;
    assert_eq!(images(&cluster).await, ["v2", "v2", "v2"]);
    assert_eq!(cluster.items(REVISIONS).await.len(), 2);
    at_rest(&cluster, &[PODS, STATEFUL, REVISIONS, CLAIMS]).await;

    // Back to the first template: its revision becomes the newest.
    cluster.patch(&path, json!({"spec": {"template": template("v1")}})).await;
    cluster.until("undone", async |c| status(c).await["currentRevision"] == first).await;
    assert_eq!(cluster.items(REVISIONS).await.len(), 2);
    let retention = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    cluster.patch(&path, json!({"spec": {"replicas": 1, "persistentVolumeClaimRetentionPolicy": retention}})).await;
    cluster.until("one", async |c| pod_names(c).await == ["db-0"]).await;
    cluster.until("its claims", async |c| c.items(CLAIMS).await.len() == 1).await;
    cluster.delete(&path, "Background").await;
    cluster.until("gone", async |c| c.items(PODS).await.is_empty() && c.items(REVISIONS).await.is_empty()).await;
    assert_eq!(cluster.items(CLAIMS).await.len(), 1, "claims stay");
}

#[tokio::test(start_paused = true)]
async fn a_parallel_stateful_set_waits_for_nobody() {
    let cluster = cluster(&["n1"]).await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 4, "serviceName": "db",
        "podManagementPolicy": "Parallel", "ordinals": {"start": 5},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}},
        "selector": {"matchLabels": {"app": "db"}}, "template": template("broken")}});
    cluster.post(STATEFUL, set).await;
    let path = format!("{STATEFUL}/db");
    cluster.until("four", async |c| pod_names(c).await == ["db-5", "db-6", "db-7", "db-8"]).await;
    // Pods that never became ready are replaced without further ado.
    cluster.patch(&path, json!({"spec": {"template": template("v2")}})).await;
    cluster.until("mended", async |c| count(&c.get(&path).await.unwrap()["status"]["readyReplicas"]) == 4).await;
    cluster.patch(&path, json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}})).await;
    cluster.patch(&path, json!({"spec": {"template": template("v3")}})).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(images(&cluster).await, ["v2"; 4]);
    cluster.delete(&format!("{PODS}/db-7"), "Background").await;
    cluster.until("by hand", async |c| images(c).await == ["v2", "v2", "v3", "v2"]).await;
    at_rest(&cluster, &[PODS, STATEFUL, REVISIONS]).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_runs_on_every_matching_node_and_rolls() {
    let mut cluster = cluster(&["n1", "n2", "n3"]).await;
    cluster.patch("/api/v1/nodes/n3", json!({"metadata": {"labels": {"kind": "other"}}})).await;
    let mut daemon = json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "db"}}, "template": template("v1")}});
    daemon["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchExpressions": [{"key": "kind", "operator": "DoesNotExist"}]}]}}});
    cluster.post(DAEMONS, daemon).await;
    let path = format!("{DAEMONS}/agent");
    let status = async |c: &Cluster| c.get(&path).await.unwrap()["status"].clone();
    let settled = async |c: &Cluster, nodes: u64| {
        let daemon = c.get(&path).await.unwrap();
        let status = &daemon["status"];
        status["observedGeneration"] == daemon["metadata"]["generation"]
            && ["desiredNumberScheduled", "numberAvailable", "updatedNumberScheduled"]
                .iter()
                .all(|field| count(&status[*field]) == nodes)
    };
    cluster.until("two", async |c| settled(c, 2).await).await;
    let pods = cluster.items(PODS).await;
    let nodes: std::collections::BTreeSet<_> =
        pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(pods[0]["metadata"]["labels"]["pod-template-generation"], "1");
    let tolerated = pods[0]["spec"]["tolerations"].to_string();
    assert!(tolerated.contains("node.kubernetes.io/unschedulable"), "{tolerated}");
    // A cordoned node keeps its daemon, a new node gets one.
    cluster.patch("/api/v1/nodes/n2", json!({"spec": {"unschedulable": true}})).await;
    cluster.add_node("n4").await;
    cluster.until("three", async |c| settled(c, 3).await).await;
    cluster.patch("/api/v1/nodes/n4", json!({"metadata": {"labels": {"kind": "other"}}})).await;
    cluster.until("two again", async |c| settled(c, 2).await && c.items(PODS).await.len() == 2).await;
    let image =
        |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
    cluster.patch(&path, image("v2")).await;
    cluster.until("rolled", async |c| settled(c, 2).await && images(c).await == ["v2", "v2"]).await;
    let surge = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}});
    cluster.patch(&path, surge).await;
    cluster.patch(&path, image("v3")).await;
    cluster.until("surged", async |c| settled(c, 2).await && images(c).await == ["v3", "v3"]).await;
    assert_eq!(cluster.items(REVISIONS).await.len(), 3);
    assert_eq!(status(&cluster).await["numberMisscheduled"], 0);
    at_rest(&cluster, &[PODS, DAEMONS, REVISIONS]).await;
    cluster.delete(&path, "Foreground").await;
    cluster.until("gone", async |c| c.items(PODS).await.is_empty() && c.items(DAEMONS).await.is_empty()).await;
}

fn job(name: &str, image: &str, more: Value) -> Value {
    let mut job = json!({"metadata": {"name": name}, "spec": {"template": {"spec":
        {"restartPolicy": "Never", "containers": [{"name": "main", "image": image}]}}}});
    for (key, value) in more.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

async fn condition(cluster: &Cluster, job: &str, type_: &str) -> Option<Value> {
    let job = cluster.get(&format!("{JOBS}/{job}")).await?;
    let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == type_ && condition["status"] == "True")
}

async fn ended(cluster: &Cluster, job: &str, type_: &str) -> Value {
    cluster.until(&format!("{job} {type_}"), async |c| condition(c, job, type_).await.is_some()).await;
    cluster.get(&format!("{JOBS}/{job}")).await.unwrap()["status"].clone()
}

#[tokio::test(start_paused = true)]
async fn jobs_count_every_pod_once() {
    let cluster = cluster(&["n1"]).await;
    cluster.post(JOBS, job("many", "exit-0", json!({"completions": 7, "parallelism": 3}))).await;
    let status = ended(&cluster, "many", "Complete").await;
    assert_eq!((&status["succeeded"], &status["ready"], &status["terminating"]), (&json!(7), &json!(0), &json!(0)));
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    assert_eq!(cluster.items(PODS).await.len(), 7);
    let met = condition(&cluster, "many", "SuccessCriteriaMet").await.unwrap();
    assert_eq!(met["reason"], "CompletionsReached");

    let indexed = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    cluster.post(JOBS, job("indexed", "exit-0", indexed)).await;
    let status = ended(&cluster, "indexed", "Complete").await;
    assert_eq!((&status["succeeded"], &status["completedIndexes"]), (&json!(3), &json!("0-2")));
    let pods = cluster.items(PODS).await;
    let pod = pods.iter().find(|pod| pod["spec"]["hostname"] == "indexed-1").unwrap();
    assert!(pod["metadata"]["name"].as_str().unwrap().starts_with("indexed-1-"));
    assert_eq!(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"], "1");
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    assert!(pods.iter().all(|pod| pod["metadata"]["finalizers"].is_null()), "every pod is let go");

    cluster.post(JOBS, job("failing", "exit-3", json!({"backoffLimit": 2}))).await;
    let status = ended(&cluster, "failing", "Failed").await;
    assert_eq!(status["failed"], 3);
    let failed = condition(&cluster, "failing", "Failed").await.unwrap();
    assert_eq!(failed["reason"], "BackoffLimitExceeded");
    assert_eq!(failed["message"], "Job has reached the specified backoff limit");
    let pods = cluster.items(PODS).await;
    let mut ends: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["labels"]["job-name"] == "failing").collect();
    ends.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].to_string());
    let at = |pod: &Value| pod["metadata"]["creationTimestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(at(ends[1]).duration_since(at(ends[0])).as_secs() >= 10, "the first delay");
    assert!(at(ends[2]).duration_since(at(ends[1])).as_secs() >= 20, "twice as long");
    at_rest(&cluster, &[PODS, JOBS]).await;
    let reasons = cluster.reasons().await;
    for told in ["Completed Job completed", "BackoffLimitExceeded Job has reached the specified backoff limit"] {
        assert!(reasons.iter().any(|reason| reason == told), "{told} not in {reasons:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_end_as_their_policies_say() {
    let cluster = cluster(&["n1"]).await;
    let fatal = json!({"parallelism": 2, "completions": 4, "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}}]}});
    cluster.post(JOBS, job("fatal", "exit-42", fatal)).await;
    ended(&cluster, "fatal", "Failed").await;
    let failed = condition(&cluster, "fatal", "Failed").await.unwrap();
    assert_eq!(failed["reason"], "PodFailurePolicy");
    let message = failed["message"].as_str().unwrap();
    assert!(message.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{message}");

    cluster.post(JOBS, job("late", "v1", json!({"activeDeadlineSeconds": 30}))).await;
    ended(&cluster, "late", "Failed").await;
    assert_eq!(condition(&cluster, "late", "Failed").await.unwrap()["reason"], "DeadlineExceeded");
    cluster
        .until("stopped", async |c| !c.items(PODS).await.iter().any(|p| p["metadata"]["labels"]["job-name"] == "late"))
        .await;

    let by_index = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    cluster.post(JOBS, job("by-index", "exit-1", by_index)).await;
    let status = ended(&cluster, "by-index", "Failed").await;
    assert_eq!((&status["failedIndexes"], &status["failed"]), (&json!("0-2"), &json!(6)));
    assert_eq!(condition(&cluster, "by-index", "Failed").await.unwrap()["reason"], "FailedIndexes");

    let enough = json!({"completions": 3, "parallelism": 1, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}});
    cluster.post(JOBS, job("enough", "exit-0", enough)).await;
    let status = ended(&cluster, "enough", "Complete").await;
    assert_eq!(condition(&cluster, "enough", "SuccessCriteriaMet").await.unwrap()["reason"], "SuccessPolicy");
    assert!(status["failed"].is_null(), "{status}");

    cluster.post(JOBS, job("brief", "exit-0", json!({"ttlSecondsAfterFinished": 20}))).await;
    ended(&cluster, "brief", "Complete").await;
    cluster.until("expired", async |c| c.get(&format!("{JOBS}/brief")).await.is_none()).await;
    cluster.until("its pods", async |c| !pod_names(c).await.iter().any(|name| name.starts_with("brief"))).await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_has_no_pods_and_a_deleted_one_holds_none_back() {
    let cluster = cluster(&["n1"]).await;
    cluster.post(JOBS, job("wait", "v1", json!({"parallelism": 2, "completions": 2, "suspend": true}))).await;
    ended(&cluster, "wait", "Suspended").await;
    assert!(cluster.items(PODS).await.is_empty());
    let path = format!("{JOBS}/wait");
    cluster.patch(&path, json!({"spec": {"suspend": false}})).await;
    cluster.until("active", async |c| count(&c.get(&path).await.unwrap()["status"]["ready"]) == 2).await;
    cluster.patch(&path, json!({"spec": {"suspend": true}})).await;
    cluster.until("stopped", async |c| c.items(PODS).await.is_empty()).await;
    assert!(cluster.get(&path).await.unwrap()["status"]["failed"].is_null(), "pods taken away did not fail");
    cluster.patch(&path, json!({"spec": {"suspend": false}})).await;
    cluster.until("active", async |c| count(&c.get(&path).await.unwrap()["status"]["ready"]) == 2).await;
    cluster.delete(&path, "Background").await;
    cluster.until("gone", async |c| c.items(PODS).await.is_empty()).await;
    let reasons = cluster.reasons().await;
    for told in ["Suspended Job suspended", "Resumed Job resumed"] {
        assert!(reasons.iter().any(|reason| reason == told), "{told} not in {reasons:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replication_controller_keeps_its_pods() {
    let cluster = cluster(&["n1"]).await;
    let controller = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 2, "template": template("v1")}});
    cluster.post(CONTROLLERS, controller).await;
    let path = format!("{CONTROLLERS}/rc");
    cluster.until("two", async |c| count(&c.get(&path).await.unwrap()["status"]["availableReplicas"]) == 2).await;
    let pods = cluster.items(PODS).await;
    assert_eq!(pods[0]["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
    let freed = format!("{PODS}/{}", pods[0]["metadata"]["name"].as_str().unwrap());
    cluster.patch(&freed, json!({"metadata": {"labels": {"app": "free"}}})).await;
    cluster
        .until("released", async |c| {
            c.get(&freed).await.unwrap()["metadata"]["ownerReferences"].is_null() && c.items(PODS).await.len() == 3
        })
        .await;
    let scale = json!({"spec": {"replicas": 0}});
    cluster.call(Method::PATCH, &format!("{path}/scale"), Some(&scale)).await.unwrap();
    cluster.until("none", async |c| c.items(PODS).await.len() == 1).await;
    at_rest(&cluster, &[PODS, CONTROLLERS]).await;
}
