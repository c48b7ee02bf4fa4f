//! The node's own objects: `Node`, kept current, and its `Lease`, renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use mycelium_api::env::{Env, rfc3339_seconds};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::pod::status::RUNTIME;
use crate::pressure::Condition;

/// What the node says its kubelet's version is: clients decide by it what a node can do.
pub const KUBELET_VERSION: &str = "v1.35.0+mycelium";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECS: u32 = 40;
/// How often the node says that it lives, unless it is to be missed sooner.
pub const RENEW: Duration = Duration::from_secs(10);
/// The status is written when it changes, and this often.
const STATUS_EVERY: u32 = 30;

/// Facts about the machine that do not change.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The node's name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// Its range of pod addresses.
    pub pod_cidr: Option<String>,
    /// Further labels, which are a user's to change.
    pub labels: BTreeMap<String, String>,
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file system with the data.
    pub disk_bytes: u64,
    /// The most pods.
    pub pods: u32,
}

/// Bytes of a line of `/proc/meminfo`.
pub fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Size and free bytes of the file system at `path`.
pub fn disk(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map(|s| (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize)).unwrap_or((0, 0))
}

impl Inventory {
    /// What the node has to give, by resource name.
    pub fn resources(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("cpu".to_owned(), self.cpus.to_string()),
            ("memory".to_owned(), format!("{}Ki", self.memory_bytes / 1024)),
            ("ephemeral-storage".to_owned(), format!("{}Ki", self.disk_bytes / 1024)),
            ("pods".to_owned(), self.pods.to_string()),
            ("hugepages-1Gi".to_owned(), "0".to_owned()),
            ("hugepages-2Mi".to_owned(), "0".to_owned()),
        ])
    }

    fn arch() -> &'static str {
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        for (key, value) in [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", Self::arch()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", Self::arch()),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    fn info() -> Value {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let release = read("/etc/os-release");
        let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
        let system = read("/sys/class/dmi/id/product_uuid");
        let machine = read("/etc/machine-id");
        json!({
            "machineID": machine,
            "systemUUID": if system.is_empty() { machine.clone() } else { system },
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": name,
            "containerRuntimeVersion": format!("{RUNTIME}://{}", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": Self::arch(),
        })
    }

    fn status(
        &self,
        pressure: &BTreeSet<Condition>,
        now: &str,
        since: &BTreeMap<&'static str, (bool, String)>,
    ) -> Value {
        let addresses = self.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
        let addresses: Vec<Value> = addresses.chain([json!({"type": "Hostname", "address": self.name})]).collect();
        let resources = self.resources();
        let conditions: Vec<Value> = pressures(pressure)
            .into_iter()
            .map(|(kind, is, reason, message)| {
                let changed = since.get(kind).filter(|(was, _)| *was == is).map_or(now, |(_, at)| at);
                json!({"type": kind, "status": if is { "True" } else { "False" }, "reason": reason, "message": message,
                       "lastHeartbeatTime": now, "lastTransitionTime": changed})
            })
            .collect();
        json!({
            "capacity": resources,
            "allocatable": resources,
            "addresses": addresses,
            "conditions": conditions,
            "nodeInfo": Self::info(),
        })
    }
}

fn pressures(active: &BTreeSet<Condition>) -> [(&'static str, bool, &'static str, &'static str); 4] {
    let of = |condition: Condition, yes: (&'static str, &'static str), no: (&'static str, &'static str)| {
        let is = active.contains(&condition);
        let (reason, message) = if is { yes } else { no };
        (condition.name(), is, reason, message)
    };
    [
        of(
            Condition::Memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        of(
            Condition::Disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        of(
            Condition::Pid,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ]
}

/// Keeps the node's objects current.
pub struct Registrar {
    client: Client,
    env: Env,
    inventory: Arc<Inventory>,
    pressure: watch::Receiver<BTreeSet<Condition>>,
    /// Conditions as last written, and since when they are so.
    since: BTreeMap<&'static str, (bool, String)>,
}

impl Registrar {
    /// For the node of this inventory.
    pub fn new(
        client: Client,
        env: Env,
        inventory: Arc<Inventory>,
        pressure: watch::Receiver<BTreeSet<Condition>>,
    ) -> Self {
        Self { client, env, inventory, pressure, since: BTreeMap::new() }
    }

    /// Creates the node or takes over the one that is there, and reports it ready.
    pub async fn register(&mut self) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let inventory = self.inventory.clone();
        let mut spec = json!({});
        if let Some(cidr) = &inventory.pod_cidr {
            spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        }
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": inventory.name, "labels": inventory.labels(),
                         "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
            "spec": spec,
        });
        match api.get_opt(&inventory.name).await? {
            None => {
                let node = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
                api.create(&PostParams::default(), &node).await?;
            }
            Some(old) => {
                for condition in old.status.iter().flat_map(|s| s.conditions.iter().flatten()) {
                    let known = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
                    let at = condition.last_transition_time.as_ref().map(|t| rfc3339_seconds(t.0)).unwrap_or_default();
                    if let Some(kind) = known.into_iter().find(|k| *k == condition.type_) {
                        self.since.insert(kind, (condition.status == "True", at));
                    }
                }
                let held = old.metadata.labels.unwrap_or_default();
                let mut labels = inventory.labels();
                labels.retain(|key, _| !(inventory.labels.contains_key(key) && held.contains_key(key)));
                let patch = json!({"metadata": {"labels": labels}});
                api.patch(&inventory.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
        }
        self.write_status().await
    }

    async fn write_status(&mut self) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let pressure = self.pressure.borrow_and_update().clone();
        let status = self.inventory.status(&pressure, &self.env.now_rfc3339(), &self.since);
        for condition in status["conditions"].as_array().into_iter().flatten() {
            for (kind, is, _, _) in pressures(&pressure) {
                if condition["type"] == kind {
                    let at = condition["lastTransitionTime"].as_str().unwrap_or_default().to_owned();
                    self.since.insert(kind, (is, at));
                }
            }
        }
        let patch = json!({"status": status});
        api.patch_status(&self.inventory.name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    /// Renews the lease and writes the status now and then, for ever.
    pub async fn keep(mut self, node: Node, renew: Duration) {
        let mut beats = 0;
        loop {
            if let Err(error) = self.renew(&node).await {
                tracing::warn!(%error, "cannot renew the node's lease; trying again");
            }
            let changed = matches!(tokio::time::timeout(renew, self.pressure.changed()).await, Ok(Ok(())));
            beats += 1;
            if (changed || beats % STATUS_EVERY == 0)
                && let Err(error) = self.write_status().await
            {
                tracing::warn!(%error, "cannot write the node's status; trying again");
            }
        }
    }

    async fn renew(&self, node: &Node) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.inventory.name;
        let now = self.env.now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECS, "renewTime": now});
        let patch = Patch::Merge(json!({"spec": spec}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(e)) if e.code == 404 => {
                let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid});
                let lease = json!({"metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                                   "spec": spec});
                let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
                api.create(&PostParams::default(), &lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}
