//! The control plane in one thread, on a clock that jumps whenever everybody waits, with nodes that pretend to run pods.
#![allow(dead_code, clippy::unwrap_used, reason = "tests, each of which uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_controllers::{Options, run};
use mycelium_store::{Options as StoreOptions, Store, Writer};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
pub const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";

/// The control plane, with nodes that pretend to run pods.
pub struct Cluster {
    pub client: Client,
    pub tasks: JoinSet<()>,
    pub env: Env,
    _directory: tempfile::TempDir,
}

fn virtual_env() -> Env {
    let start = Instant::now();
    let epoch: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let next = AtomicU64::new(1);
    Env::new(
        move || epoch + SignedDuration::try_from(start.elapsed()).unwrap(),
        move || {
            let mut x = next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x ^ (x >> 27)
        },
    )
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_through(|client| client).await
    }

    /// The same with something between the controllers and the API server.
    pub async fn start_through(wrap: impl FnOnce(Client) -> Client) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let env = virtual_env();
        let options = StoreOptions { writer: Writer::Task, ..StoreOptions::default() };
        let store = Store::open_file(&directory.path().join("state"), options).unwrap();
        let pki = Pki::in_memory(env.clone(), &[]).unwrap();
        let server = ApiServer::new(Config::new(store, env.clone(), pki)).unwrap();
        server.bootstrap().await.unwrap();
        let client = || Client::new(server.client_service(Identity::internal("test")), "default");
        let mut tasks = JoinSet::new();
        tasks.spawn(run(
            wrap(client()),
            env.clone(),
            Options { root_ca: Some("certificate".into()), ..Options::default() },
        ));
        Self { client: client(), tasks, env, _directory: directory }
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, kube::Error> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.client.request(request.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        self.call(Method::GET, path, None).await.ok()
    }

    pub async fn items(&self, path: &str) -> Vec<Value> {
        self.get(path).await.unwrap()["items"].as_array().cloned().unwrap_or_default()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, Some(&body)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub async fn patch(&self, path: &str, body: Value) -> Value {
        self.call(Method::PATCH, path, Some(&body)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub async fn delete(&self, path: &str, policy: &str) {
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        self.call(Method::DELETE, path, Some(&body)).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Adds a node that runs what is bound to it.
    pub async fn add_node(&mut self, name: &str) -> tokio::task::AbortHandle {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.post("/api/v1/nodes", node).await;
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        self.patch(&format!("/api/v1/nodes/{name}/status"), status).await;
        let kubelet = Self {
            client: self.client.clone(),
            tasks: JoinSet::new(),
            env: self.env.clone(),
            _directory: tempfile::tempdir().unwrap(),
        };
        let name = name.to_owned();
        self.tasks.spawn(async move {
            let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
            let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
            let _ = kubelet.call(Method::POST, leases, Some(&lease)).await;
            for beat in 0_u64.. {
                kubelet.run_pods(&name).await;
                if beat % 20 == 0 {
                    let seconds = beat / 2;
                    let time = format!(
                        "2026-01-01T{:02}:{:02}:{:02}.000000Z",
                        seconds / 3600,
                        seconds / 60 % 60,
                        seconds % 60
                    );
                    let renew = json!({"spec": {"renewTime": time}});
                    let _ = kubelet.call(Method::PATCH, &format!("{leases}/{name}"), Some(&renew)).await;
                }
                sleep(Duration::from_millis(500)).await;
            }
        })
    }

    async fn run_pods(&self, node: &str) {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName={node}");
        for (index, pod) in self.items(&path).await.iter().enumerate() {
            let meta = &pod["metadata"];
            let path = format!(
                "/api/v1/namespaces/{}/pods/{}",
                meta["namespace"].as_str().unwrap(),
                meta["name"].as_str().unwrap()
            );
            if !meta["deletionTimestamp"].is_null() {
                let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
                let _ = self.call(Method::DELETE, &path, Some(&now)).await;
                continue;
            }
            let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if let Some(code) = exit_code(image).filter(|_| phase == "Running") {
                let now = self.now();
                let status = json!({"status": {"phase": if code == 0 { "Succeeded" } else { "Failed" },
                    "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
                    "containerStatuses": [{"name": "main", "image": image, "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]}});
                let _ = self.call(Method::PATCH, &format!("{path}/status"), Some(&status)).await;
            } else if phase.is_empty() || phase == "Pending" && image != "broken" {
                let ip = format!("10.0.{}.{}", node.len(), index + 1);
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions":
                    [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                let _ = self.call(Method::PATCH, &format!("{path}/status"), Some(&status)).await;
            }
        }
    }

    /// The time of day.
    pub fn now(&self) -> String {
        format!("{:.0}", self.env.now())
    }

    /// Waits, in virtual time, until something holds.
    pub async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        for _ in 0..800 {
            if holds(self).await {
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
        let mut seen = String::new();
        for path in [PODS, DEPLOYMENTS, SETS, "/api/v1/events"] {
            for item in self.items(path).await {
                seen += &format!("{path}: {item}\n");
            }
        }
        panic!("never: {what}\n{seen}");
    }

    pub async fn reasons(&self) -> Vec<String> {
        self.items("/api/v1/namespaces/default/events")
            .await
            .iter()
            .map(|event| format!("{} {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect()
    }
}

/// An image such as `exit-3` ends with that code.
fn exit_code(image: &str) -> Option<u8> {
    image.strip_prefix("exit-")?.parse().ok()
}

/// A number, or nothing.
pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}
