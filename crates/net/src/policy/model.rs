//! Policies and the pods they speak of, cut down to what rules are made of.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mycelium_api::selector::Selector;

use crate::ruleset::Protocol;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod with a network of its own that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// The node it is on.
    pub node: String,
    /// Its labels.
    pub labels: Labels,
    /// Its address, once it has one.
    pub ip: Option<Ipv4Addr>,
    /// The ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The pods of its namespace that it isolates.
    pub pods: Selector,
    /// Who may connect to them; `None` when it does not speak of that.
    pub ingress: Option<Vec<Rule>>,
    /// Where they may connect to; `None` when it does not speak of that.
    pub egress: Option<Vec<Rule>>,
}

/// Something that is allowed: one of the peers and one of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The other side; everything when `None`, nobody when empty.
    pub peers: Option<Vec<Peer>>,
    /// Ports of the server; all protocols and ports when `None`, none when empty.
    pub ports: Option<Vec<Port>>,
}

/// The other side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods {
        /// Of which namespaces; of the policy's own when `None`.
        namespaces: Option<Selector>,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// These,
        cidr: Ipv4Net,
        /// but not those.
        except: Vec<Ipv4Net>,
    },
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// Which of its ports.
    pub which: Which,
}

/// Ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// From the first to the last.
    Range(u16, u16),
    /// What the server's containers call so.
    Named(String),
}

impl Pod {
    /// What matters of a pod; nothing if it has ended or lives on the host's network.
    pub fn from_api(pod: &core::Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.clone().unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.is_some());
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        Some(Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ip: status.pod_ip.and_then(|address| address.parse().ok()),
            ports: ports.filter_map(NamedPort::from_api).collect(),
        })
    }
}

impl NamedPort {
    fn from_api(port: &core::ContainerPort) -> Option<Self> {
        let number = u16::try_from(port.container_port).ok()?;
        Some(Self { name: port.name.clone()?, protocol: Protocol::parse(port.protocol.as_deref()), number })
    }
}

impl Policy {
    /// What a policy says.
    pub fn from_api(policy: &api::NetworkPolicy) -> Self {
        let spec = policy.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let speaks = |kind: &str, otherwise: bool| match &spec.policy_types {
            Some(types) if !types.is_empty() => types.iter().any(|found| found == kind),
            _ => otherwise,
        };
        let (of_ingress, of_egress) = (speaks("Ingress", true), speaks("Egress", !egress.is_empty()));
        let ingress = ingress.into_iter().map(|rule| Rule::from_api(rule.from, rule.ports));
        let egress = egress.into_iter().map(|rule| Rule::from_api(rule.to, rule.ports));
        Self {
            // An absent selector is an empty one here.
            pods: selector(&spec.pod_selector.unwrap_or_default()),
            ingress: of_ingress.then(|| ingress.collect()),
            egress: of_egress.then(|| egress.collect()),
        }
    }
}

impl Rule {
    fn from_api(peers: Option<Vec<api::NetworkPolicyPeer>>, ports: Option<Vec<api::NetworkPolicyPort>>) -> Self {
        // Who is not understood (an IPv6 block, say) matches nothing, which is not the same as an empty list.
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        Self {
            peers: peers.map(|peers| peers.iter().filter_map(Peer::from_api).collect()),
            ports: ports.map(|ports| ports.iter().filter_map(Port::from_api).collect()),
        }
    }
}

impl Peer {
    fn from_api(peer: &api::NetworkPolicyPeer) -> Option<Self> {
        if let Some(block) = &peer.ip_block {
            let except = block.except.iter().flatten().filter_map(|range| range.parse::<Ipv4Net>().ok());
            let cidr = block.cidr.parse::<Ipv4Net>().ok()?.trunc();
            return Some(Self::Block { cidr, except: Ipv4Net::aggregate(&except.collect()) });
        }
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
            return None;
        }
        Some(Self::Pods {
            namespaces: peer.namespace_selector.as_ref().map(selector),
            pods: peer.pod_selector.as_ref().map_or_else(Selector::default, selector),
        })
    }
}

impl Port {
    fn from_api(port: &api::NetworkPolicyPort) -> Option<Self> {
        let number = |number: i32| u16::try_from(number).ok();
        let which = match &port.port {
            None => Which::All,
            Some(IntOrString::Int(first)) => Which::Range(number(*first)?, number(port.end_port.unwrap_or(*first))?),
            Some(IntOrString::String(name)) => Which::Named(name.clone()),
        };
        Some(Self { protocol: Protocol::parse(port.protocol.as_deref()), which })
    }
}

/// A selector; one that is malformed, which the API does not let in, selects nothing.
fn selector(selector: &LabelSelector) -> Selector {
    let value = serde_json::to_value(selector).unwrap_or_default();
    Selector::from_value(&value).unwrap_or_else(|_| Selector::nothing())
}
