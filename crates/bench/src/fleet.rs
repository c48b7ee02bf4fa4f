//! Ten thousand pods on a thousand fake nodes, through the whole control plane.
//!
//! Ten Deployments of a thousand replicas with a Service each; the controllers make the pods, the scheduler binds them, and
//! the fake kubelets, all of them one client with one watch, write the status that a kubelet would write when the pod runs
//! and is ready. It is over when the EndpointSlices hold every pod as ready. The real node is cordoned.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::engine::{Engine, NODE, cpu};
use crate::report::{Report, load};
use crate::wire::{Http2, Wire, revision};

const NODES: usize = 1000;
const SERVICES: usize = 10;
const REPLICAS: usize = 1000;
const PODS: usize = SERVICES * REPLICAS;
/// Requests of a client under way at once.
const AT_ONCE: usize = 64;
/// A kubelet's.
const RENEW_EVERY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(300);
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const DEFAULT: &str = "/api/v1/namespaces/default";

/// From the first create until everything is there.
pub async fn fleet(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let engine = Engine::start(binary, |_| Ok(()))?;
    let wire = Wire::to(&engine).await?;
    let client = wire.http2().await?;
    let joining = Instant::now();
    join(&client).await?;
    eprintln!("  {NODES} nodes ready after {:.1} s", joining.elapsed().as_secs_f64());
    let progress = Arc::new(Mutex::new(Progress::default()));
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(renew(wire.http2().await?));
    watching.spawn(kubelets(wire.http2().await?, progress.clone()));
    watching.spawn(slices(wire.http2().await?, progress.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;

    let (before, begun) = ([cpu(engine.pid()), cpu(std::process::id())], Instant::now());
    for service in 0..SERVICES {
        client.create(&format!("{DEFAULT}/services"), &service_of(service)).await?;
        client.create("/apis/apps/v1/namespaces/default/deployments", &deployment(service)).await?;
    }
    let mut told = begun;
    loop {
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            eprintln!("  {:.0} s: {}", begun.elapsed().as_secs_f64(), lock(&progress).show(begun));
        }
        if let Some(ended) = watching.try_join_next() {
            ended??;
            bail!("a fake kubelet has ended");
        }
        let seen = lock(&progress).clone();
        if seen.ready.0 >= PODS {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "after {PATIENCE:?}: {}", seen.show(begun));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all = begun.elapsed();
    let used = |pid: u32, before: Duration| (cpu(pid) - before).as_secs_f64() * 1e6 / PODS as f64;
    let (engine_us, own_us) = (used(engine.pid(), before[0]), used(std::process::id(), before[1]));
    watching.abort_all();
    report.row(
        "10,000 pods on 1,000 fake nodes, from the first create until bound, ready and in EndpointSlices",
        format!(
            "{:.0} pods/s ({:.1} s: {}; processor time per pod {engine_us:.0} µs, the fake kubelets {own_us:.0}; {:.0} MiB)",
            PODS as f64 / all.as_secs_f64(),
            all.as_secs_f64(),
            lock(&progress).show(begun),
            engine.resident_mib(),
        ),
        ">= 1,000 pods/s",
        format!("load before {load}"),
    );
    Ok(())
}

/// How many pods have come how far, and when the last one did.
#[derive(Clone, Default)]
struct Progress {
    created: (usize, Option<Instant>),
    bound: (usize, Option<Instant>),
    running: (usize, Option<Instant>),
    ready: (usize, Option<Instant>),
}

impl Progress {
    fn show(&self, begun: Instant) -> String {
        let one = |name: &str, (count, at): (usize, Option<Instant>)| {
            format!("{count} {name} by {:.1}", at.map_or(0.0, |at| (at - begun).as_secs_f64()))
        };
        [
            one("created", self.created),
            one("bound", self.bound),
            one("running", self.running),
            one("in slices", self.ready),
        ]
        .join(", ")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn up(count: &mut (usize, Option<Instant>)) {
    *count = (count.0 + 1, Some(Instant::now()));
}

/// Nodes with leases, ready and without taints; and no more pods on the real one.
async fn join(client: &Http2) -> Result<()> {
    client.call(Method::PATCH, &format!("/api/v1/nodes/{NODE}"), MERGE, r#"{"spec":{"unschedulable":true}}"#).await?;
    let join = |number| async move {
        let node = node(number);
        client.create("/api/v1/nodes", &node).await?;
        let status = json!({"status": node["status"]}).to_string();
        let path = format!("/api/v1/nodes/{}/status", node_name(number));
        client.call(Method::PATCH, &path, MERGE, status).await?;
        client.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease(number)).await.map(drop)
    };
    futures::stream::iter((0..NODES).map(join)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    // Whoever was looked at before its status came has a taint by now.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for _ in 0..600 {
        let nodes = client.get("/api/v1/nodes").await?;
        if !nodes.windows(9).any(|part| part == b"not-ready") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("the fake nodes keep their taint")
}

async fn renew(client: Http2) -> Result<()> {
    let mut next = Instant::now();
    loop {
        next += RENEW_EVERY;
        tokio::time::sleep_until(next).await;
        let renew = |number| {
            let (client, body) = (client.clone(), json!({"spec": {"renewTime": now_micro()}}).to_string());
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", node_name(number));
            async move { client.call(Method::PATCH, &path, MERGE, body).await.map(drop) }
        };
        futures::stream::iter((0..NODES).map(renew)).buffer_unordered(16).try_collect::<()>().await?;
    }
}

/// What is looked at of an event of the pods' watch.
#[derive(Deserialize)]
struct PodEvent {
    #[serde(rename = "type")]
    kind: String,
    object: PodPart,
}

#[derive(Deserialize)]
struct PodPart {
    metadata: Meta,
    #[serde(default)]
    spec: SpecPart,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
}

#[derive(Default, Deserialize)]
struct SpecPart {
    #[serde(default, rename = "nodeName")]
    node: Option<String>,
}

/// Writes the status of each pod once it is bound.
async fn kubelets(client: Http2, progress: Arc<Mutex<Progress>>) -> Result<()> {
    let (lines, mut pods) = mpsc::unbounded_channel::<Bytes>();
    let watch = tokio::spawn(watch(client.clone(), format!("{DEFAULT}/pods"), lines));
    let (mut known, mut bound) = (BTreeSet::new(), BTreeSet::new());
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(line) = pods.recv().await {
        let PodEvent { kind, object } = serde_json::from_slice(&line)?;
        let name = object.metadata.name;
        ensure!(matches!(kind.as_str(), "ADDED" | "MODIFIED"), "{kind} of {name}");
        if known.insert(name.clone()) {
            up(&mut lock(&progress).created);
        }
        if object.spec.node.is_none_or(|node| node.is_empty()) || !bound.insert(name.clone()) {
            continue;
        }
        up(&mut lock(&progress).bound);
        let (client, progress, body) = (client.clone(), progress.clone(), running(bound.len()));
        let slot = slots.clone().acquire_owned().await?;
        tokio::spawn(async move {
            match client.call(Method::PATCH, &format!("{DEFAULT}/pods/{name}/status"), STRATEGIC, body).await {
                Ok(_) => up(&mut lock(&progress).running),
                Err(error) => eprintln!("  {error:#}"),
            }
            drop(slot);
        });
    }
    watch.await?
}

/// What is looked at of an event of the slices' watch.
#[derive(Deserialize)]
struct SliceEvent {
    object: SlicePart,
}

#[derive(Deserialize)]
struct SlicePart {
    metadata: Meta,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Endpoint {
    conditions: Conditions,
}

#[derive(Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
}

/// Counts the ready endpoints.
async fn slices(client: Http2, progress: Arc<Mutex<Progress>>) -> Result<()> {
    let (lines, mut events) = mpsc::unbounded_channel::<Bytes>();
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let selector = "labelSelector=bench";
    let watch = tokio::spawn(watch(client, format!("{path}?{selector}"), lines));
    let mut ready = BTreeMap::new();
    while let Some(line) = events.recv().await {
        let SliceEvent { object } = serde_json::from_slice(&line)?;
        let endpoints = object.endpoints.unwrap_or_default();
        ready.insert(object.metadata.name, endpoints.iter().filter(|one| one.conditions.ready == Some(true)).count());
        lock(&progress).ready = (ready.values().sum(), Some(Instant::now()));
    }
    watch.await?
}

/// Hands over each line of a watch that begins now.
async fn watch(client: Http2, path: String, lines: mpsc::UnboundedSender<Bytes>) -> Result<()> {
    let sign = if path.contains('?') { '&' } else { '?' };
    let from = revision(&client.get(&format!("{path}{sign}limit=1")).await?)?;
    let path = format!("{path}{sign}watch=1&resourceVersion={from}");
    let mut body = client.send(Method::GET, &path, "application/json", Bytes::new()).await?.into_body();
    let mut held = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let mut from = held.len();
        held.extend_from_slice(&data);
        while let Some(end) = held[from..].iter().position(|byte| *byte == b'\n') {
            lines.send(held.split_to(from + end + 1).freeze())?;
            from = 0;
        }
    }
    bail!("the engine has ended the watch of {path}")
}

#[allow(clippy::disallowed_methods, reason = "a client of its own, which knows what time it is")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn now_micro() -> String {
    format!("{:.6}", now())
}

fn node_name(number: usize) -> String {
    format!("fake-{number:04}")
}

fn node(number: usize) -> Value {
    let name = node_name(number);
    let time = format!("{:.0}", now());
    let conditions =
        [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")];
    let conditions = conditions.map(|(kind, status)| {
        json!({"type": kind, "status": status, "reason": "Fake", "message": "a node of the benchmark",
            "lastHeartbeatTime": time, "lastTransitionTime": time})
    });
    let capacity = json!({"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
        }},
        "status": {
            "capacity": capacity, "allocatable": capacity, "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": format!("172.31.{}.{}", number / 250, number % 250 + 1)}],
        },
    })
}

fn lease(number: usize) -> Value {
    let name = node_name(number);
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now_micro()},
    })
}

fn service_of(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("fleet-{number}"), "labels": {"bench": "fleet"}},
        "spec": {"selector": {"app": format!("fleet-{number}")}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn deployment(number: usize) -> Value {
    let labels = json!({"app": format!("fleet-{number}")});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("fleet-{number}")},
        "spec": {
            "replicas": REPLICAS, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": "main", "image": "registry.test/web:1.4.2",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [{"name": "LOG_LEVEL", "value": "info"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
                }]},
            },
        },
    })
}

/// The status that a kubelet writes when a pod's container runs and is ready.
fn running(number: usize) -> String {
    let (ip, time) = (format!("10.250.{}.{}", number / 250, number % 250 + 1), format!("{:.0}", now()));
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": time}));
    json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "172.31.0.1", "startTime": time,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "main", "image": "registry.test/web:1.4.2", "imageID": "sha256:fake", "containerID": "fake://main",
            "ready": true, "started": true, "restartCount": 0, "state": {"running": {"startedAt": time}},
        }],
    }})
    .to_string()
}
