//! An autoscaler by a metric from outside, against the real API server, on virtual time: up when it has to, down when it may,
//! and not to and fro.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Cluster, DEPLOYMENTS};
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The metric's selector as Kubernetes' messages have it.
const SELECTOR: &str =
    "&LabelSelector{MatchLabels:map[string]string{name: work,},MatchExpressions:[]LabelSelectorRequirement{},}";
const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
/// The autoscaler looks every 15 seconds.
const PERIOD: Duration = Duration::from_secs(15);

/// Somebody who serves `external.metrics.k8s.io`: the length of a queue, once there is one.
fn with_queue(client: Client, length: Arc<AtomicI64>) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, length) = (client.clone(), length.load(Ordering::Relaxed));
        async move {
            let uri = request.uri().to_string();
            let known = uri.contains("/external.metrics.k8s.io/v1beta1/namespaces/default/queue?");
            if !known || length < 0 {
                return client.send(request).await;
            }
            assert!(uri.ends_with("?labelSelector=name%3Dwork"), "{uri}");
            let list = json!({"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1",
                "metadata": {}, "items": [{"metricName": "queue", "metricLabels": {"name": "work"},
                    "timestamp": "2026-01-01T00:00:00Z", "value": length.to_string()}]});
            Ok(Response::new(Body::from(list.to_string().into_bytes())))
        }
    });
    Client::new(service, "default")
}

async fn replicas(cluster: &Cluster) -> i64 {
    let deployment = cluster.get(&format!("{DEPLOYMENTS}/web")).await.unwrap();
    deployment["spec"]["replicas"].as_i64().unwrap()
}

/// The sizes that are seen for so long, each once until it changes; the queue changes all the while.
async fn sizes(cluster: &Cluster, span: Duration, mut change: impl FnMut(u32)) -> Vec<i64> {
    let (begun, mut seen) = (Instant::now(), Vec::new());
    for step in 0_u32.. {
        if begun.elapsed() >= span {
            break;
        }
        change(step);
        seen.push(replicas(cluster).await);
        seen.dedup();
        sleep(Duration::from_secs(5)).await;
    }
    seen
}

async fn scaler(cluster: &Cluster) -> Value {
    cluster.get(&format!("{SCALERS}/web")).await.unwrap()["status"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_queue_outside_scales_without_flapping() {
    let queue = Arc::new(AtomicI64::new(-1));
    let mut cluster = Cluster::start_through(|client| with_queue(client, queue.clone())).await;
    cluster.add_node("n1").await;
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}});
    let deployment = json!({"metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    cluster.post(DEPLOYMENTS, deployment).await;
    let metric = json!({"type": "External", "external": {"target": {"type": "AverageValue", "averageValue": "10"},
        "metric": {"name": "queue", "selector": {"matchLabels": {"name": "work"}}}}});
    let autoscaler = json!({"metadata": {"name": "web"}, "spec": {"minReplicas": 1, "maxReplicas": 10, "metrics": [metric],
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    cluster.post(SCALERS, autoscaler).await;

    // Nobody serves it yet: that is said, and nothing is changed.
    cluster
        .until("the missing metric is told", async |cluster| {
            let conditions = scaler(cluster).await["conditions"].clone();
            let active = conditions.as_array().into_iter().flatten().find(|held| held["type"] == "ScalingActive").cloned();
            active.is_some_and(|held| {
                let text = held["message"].as_str().unwrap_or_default();
                held["reason"] == "FailedGetExternalMetric"
                    && text.contains(&format!("unable to get external metric default/queue/{SELECTOR}: unable to fetch metrics from external metrics API: "))
            })
        })
        .await;
    assert_eq!(replicas(&cluster).await, 1);

    // Load: within a period and what it takes to look, there are as many as it needs.
    queue.store(40, Ordering::Relaxed);
    let since = Instant::now();
    cluster.until("four replicas", async |cluster| replicas(cluster).await == 4).await;
    assert!(since.elapsed() <= PERIOD + Duration::from_secs(1), "{:?}", since.elapsed());
    let current = scaler(&cluster).await["currentMetrics"][0].clone();
    assert_eq!((&current["type"], &current["external"]["metric"]["name"]), (&json!("External"), &json!("queue")));

    // A quarter of an hour of a queue that swings: it stays at what the peaks need.
    let swinging = |step: u32| queue.store(if step % 8 < 4 { 40 } else { 15 }, Ordering::Relaxed);
    assert_eq!(sizes(&cluster, Duration::from_secs(900), swinging).await, [4]);
    // A little more or less is no reason either.
    let trembling = |step: u32| queue.store(if step.is_multiple_of(2) { 37 } else { 43 }, Ordering::Relaxed);
    assert_eq!(sizes(&cluster, Duration::from_secs(300), trembling).await, [4]);

    // Quiet: down when five minutes have passed, once.
    queue.store(0, Ordering::Relaxed);
    assert_eq!(sizes(&cluster, Duration::from_secs(270), |_| ()).await, [4]);
    cluster.until("one replica", async |cluster| replicas(cluster).await == 1).await;
    assert_eq!(sizes(&cluster, Duration::from_secs(300), |_| ()).await, [1]);
    let told = cluster.reasons().await;
    let rescales: Vec<&str> =
        told.iter().map(String::as_str).filter(|text| text.starts_with("SuccessfulRescale")).collect();
    let up = format!("SuccessfulRescale New size: 4; reason: external metric queue({SELECTOR}) above target");
    assert_eq!(rescales, [up.as_str(), "SuccessfulRescale New size: 1; reason: All metrics below target"]);
    let gone = cluster.call(Method::DELETE, &format!("{SCALERS}/web"), None).await;
    assert!(gone.is_ok());
}
