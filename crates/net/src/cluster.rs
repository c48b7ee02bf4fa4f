//! What the network knows of the cluster: services, endpoints, host ports, policies and whom they concern, cut down to what
//! rules and names are made of. Rules and DNS answers come from this one picture.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointSlice};
use mycelium_api::selector::Selector;
pub use mycelium_informer::ObjectName;

use crate::policy::model::{Labels, Pod, Policy};
use crate::ruleset::Protocol;

/// How long a client stays with a backend unless the service says otherwise.
const DEFAULT_AFFINITY_S: u32 = 10_800;

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its virtual address.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Has no virtual address by choice.
    pub headless: bool,
    /// Stands for a name elsewhere.
    pub external_name: Option<String>,
    /// Addresses of the node under which it is also reached.
    pub external_ips: Vec<Ipv4Addr>,
    /// Wants the node's own address, and it is ours to give.
    pub load_balancer: bool,
    /// Wants an address of somebody else's load balancer.
    pub foreign_balancer: bool,
    /// Its virtual address leads to endpoints of the client's node only.
    pub internal_local: bool,
    /// Its node ports lead to endpoints of the node only.
    pub external_local: bool,
    /// Sources that may use that address; all if empty.
    pub source_ranges: Vec<Ipv4Net>,
    /// Addresses its status shows.
    pub ingress: Vec<String>,
    /// Seconds for which a client stays with its backend.
    pub affinity_s: Option<u32>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Seconds since the epoch; older ones win a contested port.
    pub created_s: i64,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number at the virtual address.
    pub port: u16,
    /// Its number on the node.
    pub node_port: Option<u16>,
}

/// Some of the endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The service's ports on these endpoints.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A service port as the endpoints of one slice serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Number on the endpoint.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// New connections may go there.
    pub ready: bool,
    /// It answers, though it may be about to end.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// Its host name below the service's name.
    pub hostname: Option<String>,
    /// The node it is on, if that is known.
    pub node: Option<Arc<str>>,
}

/// A port of the node that belongs to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The node's address, if not all.
    pub host_ip: Option<Ipv4Addr>,
    /// The node's port.
    pub host_port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The pod's address.
    pub pod_ip: Ipv4Addr,
    /// The pod's port.
    pub container_port: u16,
    /// The pod's node.
    pub node: Arc<str>,
}

/// Everything that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Services.
    pub services: BTreeMap<ObjectName, Service>,
    /// Slices by service, then by name.
    pub slices: BTreeMap<ObjectName, BTreeMap<String, Slice>>,
    /// Host ports by pod.
    pub host_ports: BTreeMap<ObjectName, Vec<HostPort>>,
    /// Network policies.
    pub policies: BTreeMap<ObjectName, Policy>,
    /// Pods, for policies.
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    /// Labels of namespaces, which are in none themselves.
    pub namespaces: BTreeMap<ObjectName, Labels>,
}

impl Cluster {
    /// Every endpoint of a service, with the ports of its slice.
    pub fn endpoints(&self, service: &ObjectName) -> impl Iterator<Item = (&Slice, &Endpoint)> {
        let slices = self.slices.get(service).into_iter().flat_map(BTreeMap::values);
        slices.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
    }

    /// Where new connections to a port of a service go: to the ready endpoints, or if there is none, to those that end
    /// but still answer; with `node`, only to those on it. Sorted, without duplicates.
    pub fn backends(&self, service: &ObjectName, port: &ServicePort, node: Option<&str>) -> Vec<(Ipv4Addr, u16)> {
        let near = |endpoint: &Endpoint| node.is_none() || endpoint.node.as_deref() == node;
        let pick = |wanted: fn(&Endpoint) -> bool| {
            let found = self.endpoints(service).filter(|(_, endpoint)| wanted(endpoint) && near(endpoint));
            let mut found: Vec<_> =
                found.filter_map(|(slice, endpoint)| Some((endpoint.address, slice.number(port)?))).collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let ready = pick(|endpoint| endpoint.ready);
        if ready.is_empty() { pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
    }

    /// Whether a namespace has labels that satisfy a selector.
    pub fn namespace_matches(&self, namespace: &str, selector: &Selector) -> bool {
        self.namespaces.get(&(String::new(), namespace.to_owned())).is_some_and(|labels| selector.matches(labels))
    }

    /// Gives the pods of nodes, of which these are the ranges, the addresses they really have: they have one before their status shows it, and none
    /// any more while it still does.
    pub fn place(&mut self, ranges: &[Ipv4Net], assigned: &BTreeMap<String, Ipv4Addr>) {
        for pod in self.pods.values_mut() {
            let shown = pod.ip.filter(|ip| !ranges.iter().any(|range| range.contains(ip)));
            let ip = assigned.get(&pod.uid).copied().or(shown);
            if pod.ip != ip {
                Arc::make_mut(pod).ip = ip;
            }
        }
    }
}

impl Slice {
    /// The number of a service's port on the endpoints of this slice.
    pub fn number(&self, port: &ServicePort) -> Option<u16> {
        let same = |found: &&SlicePort| found.name == port.name && found.protocol == port.protocol;
        self.ports.iter().find(same).map(|found| found.port)
    }

    /// What matters of a service's slice; nothing for another address family.
    pub fn from_api(slice: &EndpointSlice) -> Option<Self> {
        if slice.address_type != "IPv4" {
            return None;
        }
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref()),
                port: u16::try_from(port.port?).ok()?,
            })
        });
        let endpoints = slice.endpoints.iter().flat_map(Endpoint::from_api);
        Some(Self { ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

impl Endpoint {
    fn from_api(endpoint: &ApiEndpoint) -> Option<Self> {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        Some(Self {
            // All addresses of an endpoint are interchangeable; consumers use the first.
            address: endpoint.addresses.first()?.parse().ok()?,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            node: endpoint.node_name.as_deref().map(Arc::from),
        })
    }
}

impl Service {
    /// What matters of a service.
    pub fn from_api(service: &core::Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let addresses = spec.cluster_ips.iter().flatten().map(String::as_str).chain([cluster_ip]);
        let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
        let timeout = timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_AFFINITY_S);
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        Self {
            cluster_ip: if kind == "ExternalName" { None } else { addresses.clone().find_map(|a| a.parse().ok()) },
            headless: cluster_ip == "None",
            external_name: spec.external_name.filter(|_| kind == "ExternalName"),
            external_ips: parsed(spec.external_ips.as_ref()),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            load_balancer: kind == "LoadBalancer" && spec.load_balancer_class.is_none(),
            foreign_balancer: kind == "LoadBalancer" && spec.load_balancer_class.is_some(),
            source_ranges: parsed(spec.load_balancer_source_ranges.as_ref()),
            ingress: ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.clone()).collect(),
            affinity_s: affinity.then_some(timeout),
            ports: spec.ports.iter().flatten().filter_map(ServicePort::from_api).collect(),
            created_s: service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        }
    }
}

fn parsed<T: std::str::FromStr>(texts: Option<&Vec<String>>) -> Vec<T> {
    texts.into_iter().flatten().filter_map(|text| text.trim().parse().ok()).collect()
}

impl ServicePort {
    fn from_api(port: &core::ServicePort) -> Option<Self> {
        Some(Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: Protocol::parse(port.protocol.as_deref()),
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        })
    }
}
