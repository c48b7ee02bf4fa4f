//! What every pod worker needs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use kube::Client;
use kube::api::{Api, ListParams};
use mycelium_api::env::Env;
use mycelium_api::quantity::Quantity;

use crate::client::ShimCommand;
use crate::events::Events;
use crate::image::ImageSource;
use crate::network::PodNetwork;
use crate::pod::downward::Facts;
use crate::pod::environment::Objects;
use crate::pod::host_ports::HostPorts;
use crate::pod::resize::{Ledger, Need};
use crate::pod::status::Host;
use crate::pressure::keeper::Pressure;
use crate::spec::oci::Machine;
use crate::volumes::persistent::{self, Claimed};

/// What every pod worker needs.
pub struct Context {
    /// The API.
    pub client: Client,
    /// Clock and randomness.
    pub env: Env,
    /// The image store.
    pub images: Arc<dyn ImageSource>,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// Where pods' folders are.
    pub pods: PathBuf,
    /// Where the folders of volumes are.
    pub volumes: PathBuf,
    /// Where profiles of `seccompProfile.localhostProfile` are.
    pub seccomp: PathBuf,
    /// The engine's id on this machine.
    pub instance: String,
    /// The node's number on this machine.
    pub number: u32,
    /// How shims are started.
    pub shim: ShimCommand,
    /// The node's addresses.
    pub host: Host,
    /// The domain of the cluster's DNS.
    pub cluster_domain: String,
    /// What the machine offers to containers.
    pub machine: Machine,
    /// Bytes of memory of the machine.
    pub memory_bytes: i64,
    /// What the node has to give, by resource name.
    pub allocatable: BTreeMap<String, String>,
    /// What the pods of the node have been promised.
    pub ledger: Ledger,
    /// Which pod has which ports of the host.
    pub host_ports: HostPorts,
    /// What the node is short of.
    pub pressure: Pressure,
    /// Recorder of events.
    pub events: Events,
    /// Asks for the watches of config maps and secrets, at the first pod that has need of them.
    pub watch_objects: Box<dyn Fn() + Send + Sync>,
}

impl Context {
    /// The cgroup of everything that belongs to this node.
    pub fn cgroup(&self) -> String {
        cgroup_of_node(&self.instance, self.number)
    }

    /// What the node has to give: thousandths of processors, bytes of memory.
    pub fn offers(&self) -> Need {
        let parsed = |name: &str| self.allocatable.get(name)?.parse::<Quantity>().ok();
        let number = |value: i128| i64::try_from(value).unwrap_or(i64::MAX);
        let cpu = parsed("cpu").map_or(i64::MAX, |q| number(q.milli_value()));
        [cpu, parsed("memory").map_or(i64::MAX, |q| number(q.value()))]
    }

    /// What the API object of a pod does not know.
    pub fn facts(&self, pod_ips: &[String]) -> Facts {
        Facts { pod_ips: pod_ips.to_vec(), host_ips: self.host.ips.clone(), allocatable: self.allocatable.clone() }
    }

    /// Fetches the config maps and secrets that a pod refers to, as far as they exist.
    pub async fn objects(&self, pod: &Pod) -> Result<Objects, kube::Error> {
        let (maps, secrets, _) = crate::volumes::references(pod);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let map_api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let secret_api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let maps = maps.into_iter().map(|name| {
            let api = map_api.clone();
            async move { api.get_opt(&name).await.map(|object| (name, object)) }
        });
        let secrets = secrets.into_iter().map(|name| {
            let api = secret_api.clone();
            async move { api.get_opt(&name).await.map(|object| (name, object)) }
        });
        let (maps, secrets) =
            futures::future::try_join(futures::future::try_join_all(maps), futures::future::try_join_all(secrets))
                .await?;
        Ok(Objects {
            config_maps: maps.into_iter().filter_map(|(name, object)| Some((name, object?))).collect(),
            secrets: secrets.into_iter().filter_map(|(name, object)| Some((name, object?))).collect(),
            claims: self.claims(pod).await?,
        })
    }

    /// Finds the volumes behind a pod's claims.
    async fn claims(&self, pod: &Pod) -> Result<BTreeMap<String, Result<Claimed, String>>, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut found = BTreeMap::new();
        for volume in crate::volumes::of(pod) {
            let Some(name) = persistent::claim_name(pod, volume) else { continue };
            let claim = claims.get_opt(&name).await?;
            let held = claim.as_ref().and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
            let held = match held.filter(|name| !name.is_empty()) {
                Some(name) => volumes.get_opt(&name).await?,
                None => None,
            };
            let claimed = persistent::claimed(claim.as_ref(), held.as_ref(), &name, &self.volumes);
            found.insert(volume.name.clone(), claimed);
        }
        Ok(found)
    }

    /// The services that a pod's variables point at.
    pub async fn services(&self, pod: &Pod) -> Result<Vec<Service>, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let own = async {
            if !links {
                return Ok(Vec::new());
            }
            let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            api.list(&ListParams::default()).await.map(|list| list.items)
        };
        let server = async {
            if links && namespace == "default" {
                return Ok(None);
            }
            Api::<Service>::namespaced(self.client.clone(), "default").get_opt("kubernetes").await
        };
        let (mut services, server) = futures::future::try_join(own, server).await?;
        services.extend(server);
        Ok(services)
    }
}

/// The cgroup of everything that belongs to a node. The first node's are beside those of the others.
pub fn cgroup_of_node(instance: &str, number: u32) -> String {
    let all = cgroup_of(instance);
    if number == 1 { all } else { format!("{all}/node-{number}") }
}

/// The cgroup of everything that belongs to an engine.
pub fn cgroup_of(instance: &str) -> String {
    format!("/mycelium-{instance}")
}
