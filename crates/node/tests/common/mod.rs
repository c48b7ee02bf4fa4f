//! A real API server and a real node, each test with its own.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_linux::cgroup::Hierarchies;
use mycelium_node::image::{Collect, ImageConfig, ImageError, ImageSource, PodImage, PullSecret};
use mycelium_node::network::{NoNetwork, PodNetwork};
use mycelium_node::{Node, NodeConfig, teardown};
use mycelium_store::{Options, Store};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[allow(clippy::disallowed_methods, reason = "the edge: tests take the real clock")]
pub fn real_env() -> Env {
    let start = jiff::Timestamp::now().as_nanosecond() as u64 ^ (u64::from(std::process::id()) << 40);
    let next = AtomicU64::new(start);
    Env::new(jiff::Timestamp::now, move || {
        let mut x = next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

/// A root file system with busybox.
pub fn busybox(dir: &Path) -> PathBuf {
    let layer = dir.join("layer");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "www"] {
        std::fs::create_dir_all(layer.join(sub)).expect("creates");
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
    let names =
        "sh echo sleep cat mount unshare id stty ls head tail tar true false nc httpd env test kill touch wc ps df";
    for name in names.split(' ') {
        symlink("busybox", layer.join("bin").join(name)).expect("links");
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n").expect("writes");
    std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:33:\n").expect("writes");
    layer
}

/// A store with one image, `busybox`.
struct Images(PathBuf);

impl ImageSource for Images {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<PodImage>, ImageError>> {
        let image = (reference == "busybox").then(|| PodImage {
            id: "sha256:b0".into(),
            name: "docker.io/library/busybox:latest".into(),
            config: ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() },
            layers: vec![self.0.clone()],
            size: 1,
            loaded_by_hand: true,
        });
        Box::pin(async { Ok(image) })
    }

    fn pull<'a>(&'a self, reference: &'a str, _: &'a [PullSecret]) -> BoxFuture<'a, Result<PodImage, ImageError>> {
        let message = format!("{reference}: not found");
        Box::pin(async { Err(ImageError::Pull { message, local_may_serve: true }) })
    }

    fn collect<'a>(&'a self, _: &'a [String], _: Collect) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub instance: String,
    pub client: Client,
    pub server: ApiServer,
    pub env: Env,
    pub pressure: mycelium_node::pressure::Config,
    network: Arc<dyn PodNetwork>,
    engine: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    pub node: Option<Node>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with_network(Arc::new(NoNetwork), "192.0.2.1").await
    }

    /// One whose node takes its own pulse this way.
    pub async fn with_pressure(pressure: mycelium_node::pressure::Config) -> Self {
        Self::with(Arc::new(NoNetwork), pressure).await
    }

    pub async fn with_network(network: Arc<dyn PodNetwork>, _ip: &str) -> Self {
        Self::with(network, mycelium_node::pressure::Config::default()).await
    }

    async fn with(network: Arc<dyn PodNetwork>, pressure: mycelium_node::pressure::Config) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let env = real_env();
        busybox(dir.path());
        let store = Store::open_file(&dir.path().join("state"), Options::default()).expect("a store");
        let sans = ["127.0.0.1".to_owned()];
        let pki = Pki::load_or_create(&dir.path().join("pki"), env.clone(), &sans).expect("keys");
        let server = ApiServer::new(Config::new(store, env.clone(), pki.clone())).expect("a server");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        pki.write_kubeconfig(&dir.path().join("kubeconfig"), &url).expect("a kubeconfig");
        tokio::spawn(server.clone().serve(listener, std::future::pending()));
        server.bootstrap().await.expect("the first objects");
        let client = Client::new(server.client_service(Identity::internal("system:node:n1")), "default");
        let instance = format!("t{:05x}", env.random() & 0xf_ffff);
        let mut cluster = Self { dir, instance, client, server, env, pressure, network, engine: None, node: None };
        cluster.up().await;
        cluster
    }

    /// Starts the node.
    pub async fn up(&mut self) {
        let config = NodeConfig {
            client: self.client.clone(),
            env: self.env.clone(),
            images: Arc::new(Images(self.dir.path().join("layer"))),
            network: self.network.clone(),
            data_dir: self.dir.path().join("data"),
            volumes: self.dir.path().join("data/volumes"),
            seccomp: self.dir.path().join("data/seccomp"),
            instance: self.instance.clone(),
            number: 1,
            labels: BTreeMap::new(),
            renew: mycelium_node::register::RENEW,
            name: "n1".into(),
            ips: vec!["192.0.2.1".into()],
            pod_cidr: None,
            cluster_domain: "cluster.local".into(),
            pressure: self.pressure.clone(),
            shim: Arc::from([env!("CARGO_BIN_EXE_mycelium-node-shim").into(), "shim".into()]),
        };
        let node = Node::new(config).expect("a node");
        let (stop, stopped) = oneshot::channel::<()>();
        let running = node.clone();
        let task = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            running.run(shutdown).await.expect("the node runs");
        });
        self.server.set_node(node.service());
        self.engine = Some((stop, task));
        self.node = Some(node);
    }

    /// Stops the node; pods run on.
    pub async fn down(&mut self) {
        let (stop, task) = self.engine.take().expect("it is up");
        let _ = stop.send(());
        task.await.expect("ends well");
        self.node = None;
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod on this node.
    pub async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        if spec["terminationGracePeriodSeconds"].is_null() {
            spec["terminationGracePeriodSeconds"] = 1.into();
        }
        spec["automountServiceAccountToken"] = false.into();
        let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a pod");
        self.pods().create(&PostParams::default(), &pod).await.expect("created")
    }

    /// Waits until the pod, as JSON, is as wanted.
    pub async fn until(&self, name: &str, done: impl Fn(&Value) -> bool) -> Value {
        let api = self.pods();
        let wait = async {
            loop {
                let pod = api.get_opt(name).await.expect("answers");
                let pod = pod.map_or(Value::Null, |pod| serde_json::to_value(pod).expect("JSON"));
                if done(&pod) {
                    return pod;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(30), wait).await {
            Ok(pod) => pod,
            Err(_) => panic!(
                "{name} is {:#}",
                serde_json::to_value(api.get_opt(name).await.expect("answers")).expect("JSON")["status"]
            ),
        }
    }

    pub async fn until_ready(&self, name: &str) -> Value {
        self.until(name, ready).await
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.expect("deleted");
        self.until(name, Value::is_null).await;
    }

    pub fn log(&self, pod: &Value, container: &str, attempt: u32) -> String {
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let path =
            self.dir.path().join("data/pods").join(uid).join("logs").join(container).join(format!("{attempt}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).fold(String::new(), |all, line| all + line + "\n")
    }

    /// Waits until the log of the pod's first run is as wanted.
    pub async fn until_log(&self, pod: &Value, container: &str, done: impl Fn(&str) -> bool) -> String {
        for _ in 0..1000 {
            let log = self.log(pod, container, 0);
            if done(&log) {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the log is {:?}", self.log(pod, container, 0))
    }

    pub async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(self.client.clone(), "default");
        let events = api.list(&Default::default()).await.expect("lists").items;
        let about = |e: &k8s_openapi::api::core::v1::Event| e.involved_object.name.as_deref() == Some(name);
        events
            .iter()
            .filter(|e| about(e))
            .map(|e| format!("{}: {}", e.reason.clone().unwrap_or_default(), e.message.clone().unwrap_or_default()))
            .collect()
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = mycelium_linux::process::command("kubectl");
        command
            .env("HOME", self.dir.path())
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .args(arguments);
        let output = tokio::process::Command::from(command).output().await.expect("kubectl is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// Ends everything and checks that nothing is left.
    pub async fn finish(mut self) {
        if self.engine.is_some() {
            self.down().await;
        }
        teardown(&self.dir.path().join("data"), &self.instance).await.expect("tears down");
        let group = format!("/mycelium-{}", self.instance);
        assert!(Hierarchies::get().dir("memory", &group).is_some_and(|d| !d.exists()), "cgroups are gone");
        let here = self.dir.path().to_string_lossy().into_owned();
        let left = processes_of(&here);
        assert!(left.is_empty(), "processes are left: {left:?}");
        self.server.shut_down();
    }
}

impl Drop for Cluster {
    /// A failed test leaves nothing behind either.
    fn drop(&mut self) {
        if let Some((_, task)) = self.engine.take() {
            task.abort();
        }
        if let Some(node) = self.node.take() {
            node.abandon();
        }
        for pid in processes_of(&self.dir.path().to_string_lossy()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let group = format!("/mycelium-{}", self.instance);
        Hierarchies::get().kill(&group);
        let _ = Hierarchies::get().remove(&group);
    }
}

/// Shims whose pod's folder is below `dir`.
fn processes_of(dir: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("lists");
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|word| word.starts_with(dir.as_bytes()))
        })
        .collect()
}

pub fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub fn state(pod: &Value, index: usize) -> &Value {
    &pod["status"]["containerStatuses"][index]["state"]
}

pub fn name_of(pod: &Pod) -> String {
    pod.name_any()
}
