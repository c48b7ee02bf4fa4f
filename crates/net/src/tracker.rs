//! Keeping the picture of the cluster up to date from watch events. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher::Event;
use mycelium_informer::{Listing, Slices, Step, keep, name, put};

use crate::cluster::{Cluster, HostPort, Service, Slice};
use crate::policy::model::{Pod, Policy};
use crate::ruleset::Protocol;

/// A watch event of one of the kinds we follow.
#[allow(clippy::large_enum_variant, reason = "it lives for one call")]
pub enum Update {
    /// A service.
    Service(Event<core::Service>),
    /// Endpoints.
    Slice(Event<EndpointSlice>),
    /// A pod, for its host ports and for policies.
    Pod(Event<core::Pod>),
    /// A network policy.
    Policy(Event<NetworkPolicy>),
    /// A namespace, for its labels.
    Namespace(Event<core::Namespace>),
}

/// The cluster and how far each watch is.
#[derive(Default)]
pub struct Tracker {
    /// The picture.
    pub cluster: Cluster,
    services: Listing,
    slices: Slices,
    pods: Listing,
    policies: Listing,
    namespaces: Listing,
}

impl Tracker {
    /// Whether every kind was listed: before that, rules of an earlier run are better than ours.
    pub fn complete(&self) -> bool {
        let listings = [&self.services, &self.pods, &self.policies, &self.namespaces];
        self.slices.complete() && listings.iter().all(|listing| listing.complete())
    }

    /// Takes an event in; says whether the picture changed.
    pub fn update(&mut self, update: Update) -> bool {
        let was_complete = self.complete();
        let changed = match update {
            Update::Service(event) => self.services.step(event).apply(
                &mut self.cluster.services,
                |service| Some(Service::from_api(service)),
                PartialEq::eq,
            ),
            Update::Slice(event) => self.slices.update(&mut self.cluster.slices, event, Slice::from_api),
            Update::Pod(event) => self.pod(event),
            Update::Policy(event) => self.policies.step(event).apply(
                &mut self.cluster.policies,
                |policy| Some(Policy::from_api(policy)),
                PartialEq::eq,
            ),
            Update::Namespace(event) => {
                let labels = |namespace: &core::Namespace| Some(namespace.metadata.labels.clone().unwrap_or_default());
                let step = self.namespaces.step(event);
                step.apply(&mut self.cluster.namespaces, labels, PartialEq::eq) && self.has_policies()
            }
        };
        changed || was_complete != self.complete()
    }

    /// Without policies, it does not matter who the pods are.
    fn has_policies(&self) -> bool {
        !self.cluster.policies.is_empty()
    }

    fn pod(&mut self, event: Event<core::Pod>) -> bool {
        let step = self.pods.step(event);
        let (ports, pods) = (&mut self.cluster.host_ports, &mut self.cluster.pods);
        let (forwarded, concerned) = match step {
            Step::Nothing => (false, false),
            Step::Remove(name) => (ports.remove(&name).is_some(), pods.remove(&name).is_some()),
            Step::Keep(names) => (keep(ports, &names), keep(pods, &names)),
            Step::Put(pod) => {
                let concerned = put(pods, name(&pod), Pod::from_api(&pod).map(Arc::new), PartialEq::eq);
                (put(ports, name(&pod), host_ports(&pod), PartialEq::eq), concerned)
            }
        };
        forwarded || concerned && self.has_policies()
    }
}

/// The host ports of a pod that runs; nothing if it has none.
fn host_ports(pod: &core::Pod) -> Option<Vec<HostPort>> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || spec.host_network == Some(true) {
        return None;
    }
    let pod_ip = status.pod_ip.as_ref()?.parse().ok()?;
    let node: Arc<str> = spec.node_name.as_deref().unwrap_or_default().into();
    let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.is_some());
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let found: Vec<HostPort> = ports
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port.host_ip.as_ref().and_then(|address| address.parse().ok()),
                host_port: port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?,
                protocol: Protocol::parse(port.protocol.as_deref()),
                pod_ip,
                container_port: u16::try_from(port.container_port).ok()?,
                node: node.clone(),
            })
        })
        .collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ip: &str) -> core::Service {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let mut tracker = Tracker::default();
        for event in [
            Event::Init,
            Event::InitApply(service("a", "10.0.0.1")),
            Event::InitApply(service("b", "10.0.0.2")),
            Event::InitDone,
        ] {
            tracker.update(Update::Service(event));
        }
        assert_eq!(tracker.cluster.services.len(), 2);
        assert!(!tracker.complete());
        assert!(!tracker.update(Update::Service(Event::Apply(service("a", "10.0.0.1")))));
        for event in [Event::Init, Event::InitApply(service("b", "10.0.0.2")), Event::InitDone] {
            tracker.update(Update::Service(event));
        }
        assert_eq!(tracker.cluster.services.len(), 1);
    }

    #[test]
    fn host_ports_belong_to_running_pods() {
        let pod = |phase: &str| -> core::Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]},
                "status": {"phase": phase, "podIP": "10.1.0.9"}}))
            .unwrap()
        };
        let mut tracker = Tracker::default();
        assert!(tracker.update(Update::Pod(Event::Apply(pod("Running")))));
        assert_eq!(tracker.cluster.host_ports.values().flatten().count(), 1);
        assert!(tracker.update(Update::Pod(Event::Apply(pod("Succeeded")))));
        assert!(tracker.cluster.host_ports.is_empty());
    }
}
