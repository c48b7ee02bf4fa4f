//! A node that pretends to run pods: after a while they are Running and Ready, and after a while they are gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::WatchEvent;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::api::{Api, Failure};
use crate::clock::Clock;
use crate::identity::Alive;
use crate::network::Complaints;
use crate::plan::Faults;
use crate::random::Random;

const HEARTBEAT: Duration = Duration::from_secs(15);
/// A watch that lasts longer is taken for dead.
const WATCH_LIMIT: Duration = Duration::from_secs(310);

/// What a node knows beyond the life of the engine's process: which pods run on it, and where they can be reached.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<BTreeMap<String, String>>>);

impl Running {
    fn address(&self, uid: &str, node: u64) -> String {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = pods.len() + 2;
        pods.entry(uid.to_owned()).or_insert_with(|| format!("10.244.{node}.{next}")).clone()
    }
}

/// A node.
pub struct Node {
    /// Its number, from 0.
    pub number: u64,
    /// Its client.
    pub api: Api,
    /// The time of day.
    pub clock: Clock,
    /// The faults, for vanishing.
    pub faults: Faults,
    /// Chooses how long things take.
    pub random: Random,
    /// Pods it runs.
    pub running: Running,
    /// What runs on all nodes.
    pub alive: Alive,
    /// Where it says that two pods of one name run.
    pub complaints: Complaints,
}

/// The pods a node knows, and when it will act on them.
#[derive(Default)]
struct Pods {
    known: BTreeMap<String, Value>,
    due: BTreeMap<String, Instant>,
}

impl Node {
    fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Lives for ever, with absences.
    pub async fn run(self) {
        loop {
            if let Err(failure) = self.register().await {
                tracing::debug!(node = self.number, %failure, "cannot register");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            if let Some(absence) = self.serve().await {
                tracing::info!(node = self.number, ?absence, "node vanishes");
                sleep(absence).await;
            } else {
                sleep(self.random.millis(100, 1000)).await;
            }
        }
    }

    async fn register(&self) -> Result<(), Failure> {
        let name = self.name();
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
        self.ensure("/api/v1/nodes", &node).await?;
        self.ensure("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await?;
        self.report().await?;
        self.renew().await
    }

    async fn ensure(&self, path: &str, object: &Value) -> Result<(), Failure> {
        match self.api.post(path, object).await {
            Err(Failure::Refused { code: 409, .. }) | Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn report(&self) -> Result<(), Failure> {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let capacity = json!({"cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "100Gi"});
        let status = json!({"status": {"capacity": capacity, "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": format!("192.168.0.{}", self.number + 1)}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        self.api.strategic(&format!("/api/v1/nodes/{}/status", self.name()), &status).await.map(drop)
    }

    async fn renew(&self) -> Result<(), Failure> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.name());
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        self.api.merge(&path, &json!({"spec": {"renewTime": now}})).await.map(drop)
    }

    /// Renews the lease, and contradicts whoever declared the node dead.
    async fn beat(&self) -> Result<(), Failure> {
        self.renew().await?;
        let node = self.api.get(&format!("/api/v1/nodes/{}", self.name())).await?;
        if is_ready(&node) { Ok(()) } else { self.report().await }
    }

    /// Runs pods until the watch ends (nothing) or the node vanishes (for how long).
    async fn serve(&self) -> Option<Duration> {
        let base = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name());
        let list = self.api.get(&base).await.ok()?;
        let mut pods = Pods::default();
        let uids: Vec<String> =
            list["items"].as_array().into_iter().flatten().map(|pod| text(&pod["metadata"]["uid"])).collect();
        self.alive.keep(self.number, &uids);
        for pod in list["items"].as_array().into_iter().flatten() {
            self.note(&mut pods, pod.clone());
        }
        let from = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        let path = format!("{base}&watch=true&allowWatchBookmarks=true&resourceVersion={from}");
        let mut events = timeout(WATCH_LIMIT, self.api.watch(&path)).await.ok()?.ok()?;
        let limit = Instant::now() + WATCH_LIMIT;
        let mut heartbeat = Instant::now() + HEARTBEAT;
        loop {
            let due = pods.due.values().min().copied();
            let wake = due.map_or(heartbeat, |due| due.min(heartbeat)).min(limit);
            tokio::select! {
                biased;
                event = events.next() => match event? {
                    Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => self.note(&mut pods, pod),
                    Ok(WatchEvent::Deleted(pod)) => {
                        let uid = text(&pod["metadata"]["uid"]);
                        self.alive.stop(&uid);
                        pods.known.remove(&uid);
                        pods.due.remove(&uid);
                    }
                    Ok(WatchEvent::Bookmark(_)) => {}
                    Ok(WatchEvent::Error(_)) | Err(_) => return None,
                },
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= limit {
                        return None;
                    }
                    if now >= heartbeat {
                        heartbeat = now + HEARTBEAT;
                        if let Some(absence) = self.faults.node_loss() {
                            return Some(absence);
                        }
                        let _ = self.beat().await;
                    }
                    self.act(&mut pods, now).await;
                }
            }
        }
    }

    /// Takes in a pod, and plans when to act on it.
    fn note(&self, pods: &mut Pods, pod: Value) {
        let uid = text(&pod["metadata"]["uid"]);
        let wait = match wanted(&pod) {
            Wanted::Gone => Some(self.random.millis(50, 3000)),
            Wanted::Running | Wanted::Ended => Some(self.random.millis(50, 2500)),
            Wanted::Nothing => None,
        };
        match wait {
            Some(wait) => {
                let at = Instant::now() + wait;
                pods.due.entry(uid.clone()).and_modify(|due| *due = (*due).min(at)).or_insert(at);
            }
            None => drop(pods.due.remove(&uid)),
        }
        pods.known.insert(uid, pod);
    }

    async fn act(&self, pods: &mut Pods, now: Instant) {
        let ready: Vec<String> = pods.due.iter().filter(|(_, at)| **at <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in ready {
            let Some(pod) = pods.known.get(&uid) else { continue };
            let path = format!(
                "/api/v1/namespaces/{}/pods/{}",
                text(&pod["metadata"]["namespace"]),
                text(&pod["metadata"]["name"])
            );
            let result = match wanted(pod) {
                Wanted::Gone => {
                    self.alive.stop(&uid);
                    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
                    self.api.delete(&path, &options).await
                }
                Wanted::Running => {
                    let key = path.trim_start_matches("/api/v1/namespaces/");
                    if let Err(complaint) = self.alive.start(key, &uid, self.number) {
                        self.complaints.add(complaint);
                    }
                    self.api.strategic(&format!("{path}/status"), &self.status(pod, &uid)).await
                }
                Wanted::Ended => {
                    self.alive.stop(&uid);
                    self.api.strategic(&format!("{path}/status"), &self.end(pod, &uid)).await
                }
                Wanted::Nothing => Ok(Value::Null),
            };
            match result {
                Ok(_) => drop(pods.due.remove(&uid)),
                Err(failure) if matches!(failure.code(), Some(404 | 409)) => drop(pods.due.remove(&uid)),
                Err(failure) => {
                    tracing::debug!(node = self.number, %failure, path, "the node's write failed");
                    pods.due.insert(uid, now + self.random.millis(500, 2000));
                }
            }
        }
    }

    /// How a pod of a job ends: its uid decides, so that it ends the same way every time.
    fn end(&self, pod: &Value, uid: &str) -> Value {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let flaky = pod["spec"]["containers"][0]["image"] == "job:flaky";
        let fails = flaky && crc32fast::hash(uid.as_bytes()).is_multiple_of(5);
        let phase = if fails { "Failed" } else { "Succeeded" };
        json!({"metadata": {"uid": uid}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
            "containerStatuses": [{"name": "main", "image": "job", "imageID": "sim", "ready": false, "restartCount": 0,
                "state": {"running": null, "terminated": {"exitCode": i32::from(fails), "finishedAt": now}}}]}})
    }

    fn status(&self, pod: &Value, uid: &str) -> Value {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady"]
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}))
            .collect();
        let containers: Vec<Value> = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| {
                json!({"name": c["name"], "image": c["image"], "imageID": "sim", "ready": true, "started": true,
                    "restartCount": 0, "state": {"running": {"startedAt": now}}})
            })
            .collect();
        let ip = self.running.address(uid, self.number);
        json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "conditions": conditions, "startTime": now,
            "hostIP": format!("192.168.0.{}", self.number + 1), "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": containers}})
    }
}

enum Wanted {
    Gone,
    Running,
    Ended,
    Nothing,
}

fn wanted(pod: &Value) -> Wanted {
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    if pod["metadata"]["deletionTimestamp"].is_string() {
        Wanted::Gone
    } else if phase == "Running" && is_ready(pod) && text(&pod["spec"]["containers"][0]["image"]).starts_with("job:") {
        Wanted::Ended
    } else if matches!(phase, "Succeeded" | "Failed") || (phase == "Running" && is_ready(pod)) {
        Wanted::Nothing
    } else {
        Wanted::Running
    }
}

/// Whether the Ready condition of a pod or node is true.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A text, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
