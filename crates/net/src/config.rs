//! What the network is told, and the names and addresses that follow from it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// Smallest pod and service range: room for the reserved addresses and a few of use.
const MAX_PREFIX_LEN: u8 = 28;
/// Position of the cluster DNS address in the service range, as in every Kubernetes distribution.
const DNS_OFFSET: u32 = 10;

/// A cluster's range is divided among so many nodes, …
pub const NODES_MAX: u32 = 16;
const NODE_BITS: u8 = NODES_MAX.ilog2() as u8;
/// … unless their parts would be smaller than this: then there is one node, which has all of it.
const NODE_PREFIX_MAX: u8 = 24;

/// How a node with a network namespace of its own reaches everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The node's number, part of its link's name.
    pub number: u32,
    /// The machine's address on the pod network, to which everything is sent.
    pub machine: Ipv4Addr,
}

/// The part of a cluster's range that is the node's with this number, from 1. None if there is no such part.
pub fn node_range(cluster: Ipv4Net, number: u32) -> Option<Ipv4Net> {
    let prefix = cluster.prefix_len() + NODE_BITS;
    if prefix > NODE_PREFIX_MAX {
        return (number == 1).then_some(cluster);
    }
    let size = 1u32 << (32 - prefix);
    let at = (1..=NODES_MAX).contains(&number).then(|| nth(cluster, (number - 1) * size))?;
    Ipv4Net::new(at, prefix).ok()
}

/// Everything the network of one engine is made of.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The engine's instance id: six hexadecimal digits, the prefix of all names on the machine.
    pub instance: String,
    /// The node's name; endpoints and host ports are told apart by it. When empty, everything is on this node.
    pub node: String,
    /// Range of the addresses of the node's pods. The first one is the node's own on the pod network.
    pub pod_cidr: Ipv4Net,
    /// Range of the addresses of all nodes' pods; may be no more than this node's.
    pub cluster_cidr: Ipv4Net,
    /// For a node with a network namespace of its own: where its packets for everybody else go.
    pub uplink: Option<Uplink>,
    /// Range of the services' addresses.
    pub service_cidr: Ipv4Net,
    /// Address of the cluster DNS; the tenth of the service range unless given.
    pub dns_ip: Option<Ipv4Addr>,
    /// Where the API server listens for pods; the target of the `kubernetes` service. See [`crate::Network::set_api`].
    pub api: Option<SocketAddrV4>,
    /// The node's address towards the world; found from the default route unless given.
    pub node_ip: Option<Ipv4Addr>,
    /// DNS suffix of the cluster.
    pub cluster_domain: String,
    /// The host's resolver settings: where names outside of the cluster are asked for.
    pub host_resolv_conf: PathBuf,
}

impl NetConfig {
    /// A configuration with the usual cluster domain and everything optional left to be found.
    pub fn new(instance: &str, pod_cidr: Ipv4Net, service_cidr: Ipv4Net) -> Self {
        Self {
            instance: instance.to_owned(),
            node: String::new(),
            pod_cidr: pod_cidr.trunc(),
            cluster_cidr: pod_cidr.trunc(),
            uplink: None,
            service_cidr: service_cidr.trunc(),
            dns_ip: None,
            api: None,
            node_ip: None,
            cluster_domain: "cluster.local".to_owned(),
            host_resolv_conf: "/etc/resolv.conf".into(),
        }
    }

    /// The configuration of the node with this number and name, whose network hangs on the machine's, which this is.
    /// Numbers count from 1, which is the machine itself. None when the cluster's range has no room for it.
    pub fn of_node(&self, number: u32, name: &str) -> Option<Self> {
        let pod_cidr = node_range(self.cluster_cidr, number)?;
        let uplink = (number > 1).then(|| Uplink { number, machine: self.gateway() });
        let dns_ip = Some(self.dns());
        Some(Self { node: name.to_owned(), pod_cidr, uplink, dns_ip, ..self.clone() })
    }

    /// The node's address on the pod network: the first of the pod range. The API server listens there for pods.
    pub fn gateway(&self) -> Ipv4Addr {
        nth(self.pod_cidr, 1)
    }

    /// The address of the cluster DNS.
    pub fn dns(&self) -> Ipv4Addr {
        self.dns_ip.unwrap_or_else(|| nth(self.service_cidr, DNS_OFFSET))
    }

    /// The address of the `kubernetes` service: the first of the service range.
    pub fn kubernetes_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 1)
    }

    /// The names this instance uses on the machine.
    pub fn names(&self) -> Names {
        Names::new(&self.instance)
    }

    /// What is wrong with the configuration by itself.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if self.instance.len() != 6 || !self.instance.bytes().all(hex) {
            return Err(ConfigError::Instance(self.instance.clone()));
        }
        for (flag, range) in [("--pod-cidr", self.cluster_cidr), ("--service-cidr", self.service_cidr)] {
            if range.prefix_len() > MAX_PREFIX_LEN || range.prefix_len() < 8 {
                return Err(ConfigError::Size { flag, range });
            }
        }
        if overlaps(self.cluster_cidr, self.service_cidr) {
            return Err(ConfigError::Overlap { pods: self.cluster_cidr, services: self.service_cidr });
        }
        if !self.service_cidr.contains(&self.dns()) {
            return Err(ConfigError::Dns { address: self.dns(), range: self.service_cidr });
        }
        Ok(())
    }
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The instance id has the wrong form.
    #[error("the instance id {0:?} is not six hexadecimal digits")]
    Instance(String),
    /// A range is too small or too large.
    #[error("the range {range} has the wrong size: give {flag} a range between /8 and /28")]
    Size {
        /// The option that sets the range.
        flag: &'static str,
        /// The range.
        range: Ipv4Net,
    },
    /// Both ranges share addresses.
    #[error(
        "the pod range {pods} and the service range {services} overlap: choose another with --pod-cidr or --service-cidr"
    )]
    Overlap {
        /// The pod range.
        pods: Ipv4Net,
        /// The service range.
        services: Ipv4Net,
    },
    /// The DNS address is not a service address.
    #[error("the DNS address {address} is outside the service range {range}")]
    Dns {
        /// The DNS address.
        address: Ipv4Addr,
        /// The service range.
        range: Ipv4Net,
    },
}

/// Whether two ranges share an address.
pub(crate) fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The address at a position in a range.
pub(crate) fn nth(range: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).wrapping_add(offset))
}

/// A group number that nobody else is likely to use: a letter and the instance id.
fn group(instance: &str) -> u32 {
    u32::from(b'm') << 24 | u32::from_str_radix(instance, 16).unwrap_or_default() & 0x00ff_ffff
}

/// Names of one instance's interfaces and rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    /// The nftables table, of family `ip`.
    pub table: String,
    /// The interface that carries the node's addresses and the ranges' routes.
    pub anchor: String,
    /// The kernel's group of all these interfaces.
    pub group: u32,
}

impl Names {
    /// The names of an instance.
    pub fn new(instance: &str) -> Self {
        let prefix = format!("my{instance}");
        Self { table: format!("mycelium_{instance}"), anchor: format!("{prefix}gw"), group: group(instance), prefix }
    }

    /// The host's end of the pair of a pod, from the position of the pod's address in its range.
    pub fn pod(&self, offset: u32) -> String {
        format!("{}{offset:04x}", self.prefix)
    }

    /// The position that [`Names::pod`] put into an interface's name.
    pub fn pod_offset(&self, interface: &str) -> Option<u32> {
        let digits = interface.strip_prefix(&self.prefix)?;
        if digits.len() < 4 { None } else { u32::from_str_radix(digits, 16).ok() }
    }

    /// The machine's end of the link to a node with a network namespace of its own.
    pub fn link(&self, number: u32) -> String {
        format!("{}n{number:02}", self.prefix)
    }

    /// The node's end of that link.
    pub fn uplink(&self) -> String {
        format!("{}up", self.prefix)
    }

    /// Whether an interface belongs to the instance.
    pub fn owns(&self, interface: &str) -> bool {
        let is_link = || {
            let rest = interface.strip_prefix(&self.prefix).unwrap_or_default();
            rest == "up" || rest.strip_prefix('n').is_some_and(|number| number.parse::<u32>().is_ok())
        };
        interface == self.anchor || self.pod_offset(interface).is_some() || is_link()
    }

    /// Matches the instance's interfaces in a rule.
    pub fn wildcard(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// The instance whose anchor an interface is.
    pub fn instance_of_anchor(interface: &str) -> Option<&str> {
        let id = interface.strip_prefix("my")?.strip_suffix("gw")?;
        (id.len() == 6 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pods: &str, services: &str) -> NetConfig {
        NetConfig::new("a1b2c3", pods.parse().unwrap(), services.parse().unwrap())
    }

    #[test]
    fn addresses_follow_from_the_ranges() {
        let config = config("10.244.0.0/16", "10.96.0.0/12");
        assert_eq!(config.gateway(), Ipv4Addr::new(10, 244, 0, 1));
        assert_eq!(config.dns(), Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(config.kubernetes_ip(), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn nodes_divide_the_range_among_them() {
        let range = |cluster: &str, number| node_range(cluster.parse().unwrap(), number).map(|r| r.to_string());
        assert_eq!(range("10.244.0.0/16", 1).as_deref(), Some("10.244.0.0/20"));
        assert_eq!(range("10.244.0.0/16", 16).as_deref(), Some("10.244.240.0/20"));
        assert_eq!(range("10.244.0.0/16", 17), None);
        assert_eq!(range("10.244.0.0/24", 1).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(range("10.244.0.0/24", 2), None);
        let machine = config("10.244.0.0/16", "10.96.0.0/16").of_node(1, "a").unwrap();
        let second = machine.of_node(2, "b").unwrap();
        assert_eq!(machine.uplink, None);
        assert_eq!(second.uplink, Some(Uplink { number: 2, machine: Ipv4Addr::new(10, 244, 0, 1) }));
        assert_eq!(second.gateway(), Ipv4Addr::new(10, 244, 16, 1));
    }

    #[test]
    fn unusable_ranges_name_the_option() {
        let overlap = config("10.96.0.0/16", "10.96.0.0/12").validate().unwrap_err().to_string();
        assert!(overlap.contains("--pod-cidr") && overlap.contains("--service-cidr"), "{overlap}");
        assert!(config("10.0.0.0/30", "10.96.0.0/12").validate().unwrap_err().to_string().contains("--pod-cidr"));
    }

    #[test]
    fn interface_names_fit_and_tell_the_address() {
        let names = Names::new("a1b2c3");
        assert!(names.pod(0x00ff_ffff).len() <= 15);
        assert_eq!(names.pod_offset(&names.pod(2)), Some(2));
        assert_eq!(names.pod_offset(&names.anchor), None);
        assert!(!names.owns("myffffff0002"));
        assert!(names.owns(&names.link(16)) && names.owns(&names.uplink()) && !names.owns("mya1b2c3nx"));
        assert_eq!(Names::instance_of_anchor("mya1b2c3gw"), Some("a1b2c3"));
    }
}
