//! Keeping the picture of the cluster up to date from watch events. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use crate::cluster::{Cluster, HostPort, ObjectName, Service, Slice};
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

/// Progress of one kind's watch.
#[derive(Default)]
struct Listing {
    /// Names seen since the list began; `None` outside of a list.
    seen: Option<BTreeSet<ObjectName>>,
    /// A list was complete at least once.
    complete: bool,
}

/// The cluster and how far each watch is.
#[derive(Default)]
pub struct Tracker {
    /// The picture.
    pub cluster: Cluster,
    slice_owner: BTreeMap<ObjectName, ObjectName>,
    services: Listing,
    slices: Listing,
    pods: Listing,
    policies: Listing,
    namespaces: Listing,
}

/// What an event means for the picture.
enum Step<K> {
    Put(K),
    Remove(ObjectName),
    Keep(BTreeSet<ObjectName>),
    Nothing,
}

impl Listing {
    fn step<K: ResourceExt>(&mut self, event: Event<K>) -> Step<K> {
        match event {
            Event::Init => {
                self.seen = Some(BTreeSet::new());
                Step::Nothing
            }
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.seen {
                    seen.insert(name(&object));
                }
                Step::Put(object)
            }
            Event::InitDone => {
                self.complete = true;
                self.seen.take().map_or(Step::Nothing, Step::Keep)
            }
            Event::Apply(object) => Step::Put(object),
            Event::Delete(object) => Step::Remove(name(&object)),
        }
    }
}

fn name<K: ResourceExt>(object: &K) -> ObjectName {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Tracker {
    /// Whether every kind was listed: before that, rules of an earlier run are better than ours.
    pub fn complete(&self) -> bool {
        [&self.services, &self.slices, &self.pods, &self.policies, &self.namespaces]
            .iter()
            .all(|listing| listing.complete)
    }

    /// Takes an event in; says whether the picture changed.
    pub fn update(&mut self, update: Update) -> bool {
        let was_complete = self.complete();
        let changed = match update {
            Update::Service(event) => {
                let step = self.services.step(event);
                apply(&mut self.cluster.services, step, |service| (name(service), Some(Service::from_api(service))))
            }
            Update::Slice(event) => self.slice(event),
            Update::Pod(event) => self.pod(event),
            Update::Policy(event) => {
                let step = self.policies.step(event);
                apply(&mut self.cluster.policies, step, |policy| (name(policy), Some(Policy::from_api(policy))))
            }
            Update::Namespace(event) => {
                let step = self.namespaces.step(event);
                let labels = |namespace: &core::Namespace| namespace.metadata.labels.clone().unwrap_or_default();
                let changed = apply(&mut self.cluster.namespaces, step, |object| (name(object), Some(labels(object))));
                changed && self.has_policies()
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
                let concerned = put(pods, name(&pod), Pod::from_api(&pod).map(Arc::new));
                (put(ports, name(&pod), host_ports(&pod)), concerned)
            }
        };
        forwarded || concerned && self.has_policies()
    }

    fn slice(&mut self, event: Event<EndpointSlice>) -> bool {
        match self.slices.step(event) {
            Step::Nothing => false,
            Step::Remove(name) => self.remove_slice(&name),
            Step::Keep(names) => {
                let gone: Vec<_> = self.slice_owner.keys().filter(|name| !names.contains(*name)).cloned().collect();
                let mut changed = false;
                for name in gone {
                    changed |= self.remove_slice(&name);
                }
                changed
            }
            Step::Put(object) => {
                let name = name(&object);
                let Some((owner, slice)) = Slice::from_api(&object) else { return self.remove_slice(&name) };
                let moved = self.slice_owner.get(&name).is_some_and(|old| *old != owner) && self.remove_slice(&name);
                self.slice_owner.insert(name.clone(), owner.clone());
                let slices = self.cluster.slices.entry(owner).or_default();
                let old = slices.insert(name.1, slice.clone());
                moved || old.as_ref() != Some(&slice)
            }
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(owner) = self.slice_owner.remove(name) else { return false };
        let Some(slices) = self.cluster.slices.get_mut(&owner) else { return false };
        let removed = slices.remove(&name.1).is_some();
        if slices.is_empty() {
            self.cluster.slices.remove(&owner);
        }
        removed
    }
}

fn apply<K: ResourceExt, V: PartialEq>(
    map: &mut BTreeMap<ObjectName, V>,
    step: Step<K>,
    reduce: impl Fn(&K) -> (ObjectName, Option<V>),
) -> bool {
    match step {
        Step::Nothing => false,
        Step::Remove(name) => map.remove(&name).is_some(),
        Step::Keep(names) => keep(map, &names),
        Step::Put(object) => {
            let (name, value) = reduce(&object);
            put(map, name, value)
        }
    }
}

fn keep<V>(map: &mut BTreeMap<ObjectName, V>, names: &BTreeSet<ObjectName>) -> bool {
    let before = map.len();
    map.retain(|name, _| names.contains(name));
    map.len() != before
}

fn put<V: PartialEq>(map: &mut BTreeMap<ObjectName, V>, name: ObjectName, value: Option<V>) -> bool {
    match value {
        None => map.remove(&name).is_some(),
        Some(value) if map.get(&name) == Some(&value) => false,
        Some(value) => {
            map.insert(name, value);
            true
        }
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

    fn slice(name: &str, service: &str, ip: &str) -> EndpointSlice {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": [ip]}]}),
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
    fn slices_follow_their_service() {
        let mut tracker = Tracker::default();
        assert!(tracker.update(Update::Slice(Event::Apply(slice("s1", "a", "10.1.0.1")))));
        assert!(!tracker.update(Update::Slice(Event::Apply(slice("s1", "a", "10.1.0.1")))));
        assert!(tracker.update(Update::Slice(Event::Apply(slice("s1", "b", "10.1.0.1")))));
        assert_eq!(tracker.cluster.slices.keys().map(|key| key.1.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(tracker.update(Update::Slice(Event::Delete(slice("s1", "b", "10.1.0.1")))));
        assert!(tracker.cluster.slices.is_empty());
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
