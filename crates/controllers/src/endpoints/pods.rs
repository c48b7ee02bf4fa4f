//! Which pods stand behind a Service, at which addresses and ports.

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::is_terminal;

/// The family of an address, as EndpointSlices name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The `addressType` of a slice.
    pub fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The families a Service serves.
pub fn families(service: &Service) -> Vec<Family> {
    let named = service.spec.iter().flat_map(|spec| spec.ip_families.iter().flatten());
    let named: Vec<Family> = named.map(|name| if name == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if !named.is_empty() {
        return named;
    }
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    if address.contains(':') { vec![Family::V6] } else { vec![Family::V4] }
}

/// The pod's address of one family.
pub fn address(pod: &Pod, family: Family) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed.chain(status.pod_ip.as_deref()).find(|ip| !ip.is_empty() && ip.contains(':') == (family == Family::V6))
}

/// Whether a pod belongs behind a Service at all, ready or not.
pub fn counts(pod: &Pod, terminating_too: bool) -> bool {
    !is_terminal(pod) && (terminating_too || pod.metadata.deletion_timestamp.is_none())
}

/// Whether a Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// Whether pods count as ready no matter what.
pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The ports of a Service.
pub fn service_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

/// A port of a Service as one pod offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Name in the Service, or empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number on the pod.
    pub number: i32,
    /// What is spoken there, if the Service says.
    pub app_protocol: Option<String>,
}

/// The Service's ports on one pod; a named port that the pod does not have is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<Port> = service_ports(service)
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref()).to_owned(),
                number: number(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn protocol(given: Option<&str>) -> &str {
    given.unwrap_or("TCP")
}

fn number(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let target = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let offered = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mut named = offered.filter(|offer| offer.name.as_ref() == Some(target));
    let found = named.find(|offer| protocol(offer.protocol.as_deref()) == protocol(port.protocol.as_deref()));
    found.map(|offer| offer.container_port)
}

/// The pod's host name, if DNS should give it one under this Service.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let host = spec.hostname.clone().filter(|host| !host.is_empty())?;
    let beneath = spec.subdomain.as_ref() == service.metadata.name.as_ref();
    (beneath && pod.metadata.namespace == service.metadata.namespace).then_some(host)
}

/// A reference to the pod, as endpoints carry it.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
