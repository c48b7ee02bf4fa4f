//! An autoscaler that follows a metric from outside the cluster, which an extension server tells of.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Cluster, DEPLOYMENTS};
use http::Method;
use mycelium_apiserver::{CertKey, Pki};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const AUTOSCALER: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/workers";
const API_SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io";

/// A server of `external.metrics.k8s.io` that knows how much waits in each of two queues.
struct Adapter {
    port: u16,
    waiting: Arc<AtomicU64>,
}

impl Adapter {
    async fn start(certificate: &CertKey) -> Self {
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let chain = CertificateDer::pem_slice_iter(certificate.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let config = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let adapter = Self { port: listener.local_addr().unwrap().port(), waiting: Arc::default() };
        let waiting = adapter.waiting.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(acceptor.clone(), stream, waiting.clone()));
            }
        });
        adapter
    }
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream, waiting: Arc<AtomicU64>) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let item = || {
        json!({"metricName": "waiting", "timestamp": "2026-01-01T00:00:00Z",
        "value": format!("{}m", waiting.load(Ordering::Relaxed) * 1000)})
    };
    let body = match head.split(' ').nth(1)? {
        "/apis/external.metrics.k8s.io/v1beta1" => {
            json!({"kind": "APIResourceList", "groupVersion": "external.metrics.k8s.io/v1beta1", "resources": []})
        }
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/waiting?labelSelector=queue%3Dmail" => {
            json!({"kind": "ExternalMetricValueList", "items": [item(), item()]})
        }
        _ => json!({"kind": "ExternalMetricValueList", "items": []}),
    };
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    stream.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

fn autoscaler(queue: &str, target: Value) -> Value {
    let metric = json!({"name": "waiting", "selector": {"matchLabels": {"queue": queue}}});
    let at_once =
        json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 15}]});
    json!({"metadata": {"name": "workers"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "workers"},
        "minReplicas": 1, "maxReplicas": 10, "behavior": {"scaleUp": at_once},
        "metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}})
}

/// The condition ScalingActive: whether, why, in words.
async fn active(cluster: &Cluster) -> [String; 3] {
    let autoscaler = cluster.get(AUTOSCALER).await.unwrap();
    let conditions = autoscaler["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let active = conditions.into_iter().find(|condition| condition["type"] == "ScalingActive").unwrap_or_default();
    ["status", "reason", "message"].map(|key| active[key].as_str().unwrap_or_default().to_owned())
}

/// Whether so many replicas are wanted, and there.
async fn are_there(cluster: &Cluster, replicas: u64) -> bool {
    let workers = cluster.get(&format!("{DEPLOYMENTS}/workers")).await.unwrap();
    workers["spec"]["replicas"] == replicas && workers["status"]["readyReplicas"] == replicas
}

async fn replace(cluster: &Cluster, body: Value) {
    cluster.call(Method::PUT, AUTOSCALER, Some(&body)).await.unwrap();
}

// Not on virtual time: connections are real.
#[tokio::test]
async fn replicas_follow_a_metric_from_outside() {
    let mut cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    let workers = json!({"metadata": {"name": "workers"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "w"}},
        "template": {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}}}});
    cluster.post(DEPLOYMENTS, workers).await;
    cluster.until("one worker", async |c| are_there(c, 1).await).await;
    let average = |value: &str| json!({"type": "AverageValue", "averageValue": value});
    cluster.post(AUTOSCALER.trim_end_matches("/workers"), autoscaler("mail", average("6"))).await;
    let away = "the HPA was unable to compute the replica count: unable to get external metric default/waiting/\
        &LabelSelector{MatchLabels:map[string]string{queue: mail,},MatchExpressions:[]LabelSelectorRequirement{},}: \
        unable to fetch metrics from external metrics API: the server could not find the requested resource (get waiting.external.metrics.k8s.io)";
    let expected = ["False", "FailedGetExternalMetric", away].map(str::to_owned);
    cluster.until("nobody tells of it", async |c| active(c).await == expected).await;

    let pki = Pki::in_memory(cluster.env.clone(), &[]).unwrap();
    let adapter = Adapter::start(&pki.host_cert(&["adapter.example.com".to_owned()]).unwrap()).await;
    adapter.waiting.store(10, Ordering::Relaxed);
    let service =
        json!({"metadata": {"name": "adapter"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    cluster.post("/api/v1/namespaces/default/services", service).await;
    let api_service = json!({"metadata": {"name": "v1beta1.external.metrics.k8s.io"}, "spec": {
        "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
        "insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "adapter", "port": adapter.port}}});
    cluster.post(API_SERVICE.trim_end_matches("/v1beta1.external.metrics.k8s.io"), api_service).await;
    let available = async |c: &Cluster| {
        let conditions = c.get(API_SERVICE).await.unwrap()["status"]["conditions"].clone();
        conditions[0]["status"] == "True"
    };
    cluster.until("the adapter is found", available).await;

    // Two series of ten, five for each worker. A change is looked at at once.
    replace(&cluster, autoscaler("mail", average("5"))).await;
    cluster.until("four workers", async |c| are_there(c, 4).await).await;
    assert_eq!(active(&cluster).await[1], "ValidMetricFound");
    // As many in all as twice the target: twice the workers.
    replace(&cluster, autoscaler("mail", json!({"type": "Value", "value": "10"}))).await;
    cluster.until("eight workers", async |c| are_there(c, 8).await).await;
    let shown = cluster.get(AUTOSCALER).await.unwrap()["status"]["currentMetrics"][0]["external"].clone();
    assert_eq!((&shown["metric"]["name"], &shown["current"]), (&json!("waiting"), &json!({"value": "20"})));

    // A queue that nobody knows of leaves the workers as they are.
    replace(&cluster, autoscaler("fax", average("5"))).await;
    let none = async |c: &Cluster| {
        let [status, reason, message] = active(c).await;
        status == "False"
            && reason == "FailedGetExternalMetric"
            && message.ends_with("no metrics returned from external metrics API")
    };
    cluster.until("no such queue", none).await;
    assert!(are_there(&cluster, 8).await);
}
