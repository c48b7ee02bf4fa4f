//! What a name means in the cluster. Pure.
//!
//! The schema is Kubernetes' "DNS-Based Service Discovery" 1.1.0:
//!
//! ```text
//!  <service>.<namespace>.svc.<domain>                    A, or the ready endpoints, or CNAME; SRV for all ports
//!  _<port>._<protocol>.<service>.<namespace>.svc.<domain>    SRV
//!  <hostname or a-b-c-d>.<service>.<namespace>.svc.<domain>  A of one endpoint
//!  a-b-c-d.<namespace>.pod.<domain>                      A
//!  d.c.b.a.in-addr.arpa                                  PTR, within the pod and service ranges
//! ```
//!
//! A name that exists, or has names below it, without records of the wanted type is empty, not unknown.

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::Ipv4Net;

use crate::cluster::{Cluster, Endpoint, ObjectName, Service, ServicePort, Slice};
use crate::config::NetConfig;

/// Virtual addresses stay for the life of a service.
const STABLE_TTL_S: u32 = 30;
/// Endpoints come and go.
const VOLATILE_TTL_S: u32 = 5;
const SCHEMA_VERSION: &str = "1.1.0";

/// What the server is responsible for.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: Name,
    pod_cidr: Ipv4Net,
    service_cidr: Ipv4Net,
    dns: Ipv4Addr,
}

/// The meaning of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// Records that answer it, and some that will be asked for next.
    Found(Vec<Record>, Vec<Record>),
    /// The name is another one's alias.
    Alias(Box<Record>, Name),
    /// The name exists, without such records.
    Empty,
    /// The name does not exist.
    Unknown,
    /// Not ours to answer.
    Elsewhere,
}

use Lookup::{Alias, Elsewhere, Empty, Found, Unknown};

impl Zone {
    /// The zone of a configuration.
    pub fn new(config: &NetConfig) -> Self {
        let mut domain = Name::from_ascii(&config.cluster_domain).unwrap_or_else(|_| Name::root());
        domain.set_fqdn(true);
        Self { domain, pod_cidr: config.pod_cidr, service_cidr: config.service_cidr, dns: config.dns() }
    }

    /// The record that tells how long to remember that something is not there.
    pub fn authority(&self) -> Record {
        let name = |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(name("ns.dns"), name("hostmaster"), 1, 7200, 1800, 86400, VOLATILE_TTL_S);
        Record::from_rdata(self.domain.clone(), VOLATILE_TTL_S, RData::SOA(soa))
    }

    /// Finds the answer to a question in the picture of the cluster.
    pub fn lookup(&self, cluster: &Cluster, name: &Name, wanted: RecordType) -> Lookup {
        if self.domain.zone_of(name) {
            let relative = usize::from(name.num_labels() - self.domain.num_labels());
            let labels: Vec<String> =
                name.iter().take(relative).map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            return Question { zone: self, cluster, name, wanted }.forward(&labels);
        }
        match name.parse_arpa_name() {
            Ok(ipnet::IpNet::V4(net)) if self.ours(net) => self.reverse(cluster, name, net, wanted),
            _ => Elsewhere,
        }
    }

    fn ours(&self, net: Ipv4Net) -> bool {
        self.pod_cidr.contains(&net) || self.service_cidr.contains(&net)
    }

    fn reverse(&self, cluster: &Cluster, name: &Name, net: Ipv4Net, wanted: RecordType) -> Lookup {
        if net.prefix_len() < 32 {
            return Empty;
        }
        let targets = self.owners(cluster, net.addr());
        let records: Vec<Record> = targets
            .into_iter()
            .map(|to| Record::from_rdata(name.clone(), VOLATILE_TTL_S, RData::PTR(PTR(to))))
            .collect();
        match (records.is_empty(), wanted) {
            (true, _) => Unknown,
            (false, RecordType::PTR | RecordType::ANY) => Found(records, Vec::new()),
            (false, _) => Empty,
        }
    }

    /// Names of an address: of the service whose virtual address it is, or of endpoints.
    fn owners(&self, cluster: &Cluster, address: Ipv4Addr) -> Vec<Name> {
        if let Some((name, _)) = cluster.services.iter().find(|(_, service)| service.cluster_ip == Some(address)) {
            return self.name(&[&name.1, &name.0, "svc"]).into_iter().collect();
        }
        let headless = cluster.services.iter().filter(|(_, service)| service.headless).map(|(name, _)| name);
        let of = |service: &ObjectName| -> Vec<Name> {
            let found = cluster.endpoints(service).filter(|(_, endpoint)| endpoint.address == address);
            found.filter_map(|(_, endpoint)| self.name(&[&label(endpoint), &service.1, &service.0, "svc"])).collect()
        };
        headless.flat_map(of).collect()
    }

    fn name(&self, labels: &[&str]) -> Option<Name> {
        Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?.append_domain(&self.domain).ok()
    }
}

/// An endpoint's label below its service's name.
fn label(endpoint: &Endpoint) -> String {
    endpoint.hostname.clone().unwrap_or_else(|| endpoint.address.to_string().replace('.', "-"))
}

fn dashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

struct Question<'a> {
    zone: &'a Zone,
    cluster: &'a Cluster,
    name: &'a Name,
    wanted: RecordType,
}

impl Question<'_> {
    fn forward(&self, labels: &[&str]) -> Lookup {
        match labels {
            [] => self.apex(),
            ["svc" | "pod" | "dns"] => Empty,
            ["ns", "dns"] => self.addresses([self.zone.dns], STABLE_TTL_S),
            ["dns-version"] => self.record(RecordType::TXT, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))),
            [namespace, "svc" | "pod"] => self.namespace(namespace),
            [address, namespace, "pod"] => self.pod(address, namespace),
            [rest @ .., service, namespace, "svc"] => {
                let name = ((*namespace).to_owned(), (*service).to_owned());
                match self.cluster.services.get(&name) {
                    Some(found) => self.service(&name, found, rest),
                    None => Unknown,
                }
            }
            _ => Unknown,
        }
    }

    fn record(&self, kind: RecordType, data: RData) -> Lookup {
        if self.wanted == kind || self.wanted == RecordType::ANY {
            Found(vec![Record::from_rdata(self.name.clone(), STABLE_TTL_S, data)], Vec::new())
        } else {
            Empty
        }
    }

    fn apex(&self) -> Lookup {
        match (self.wanted, self.zone.name(&["ns", "dns"])) {
            (RecordType::SOA | RecordType::ANY, _) => Found(vec![self.zone.authority()], Vec::new()),
            (RecordType::NS, Some(server)) => {
                let glue = Record::from_rdata(server.clone(), STABLE_TTL_S, RData::A(A(self.zone.dns)));
                let record = Record::from_rdata(self.name.clone(), STABLE_TTL_S, RData::NS(NS(server)));
                Found(vec![record], vec![glue])
            }
            _ => Empty,
        }
    }

    fn namespace(&self, namespace: &str) -> Lookup {
        let known = self.cluster.services.keys().chain(self.cluster.slices.keys()).any(|name| name.0 == namespace);
        if known { Empty } else { Unknown }
    }

    fn pod(&self, address: &str, namespace: &str) -> Lookup {
        match dashed(address) {
            Some(address) if self.namespace(namespace) == Empty => self.addresses([address], VOLATILE_TTL_S),
            _ => Unknown,
        }
    }

    fn addresses(&self, addresses: impl IntoIterator<Item = Ipv4Addr>, ttl: u32) -> Lookup {
        if !matches!(self.wanted, RecordType::A | RecordType::ANY) {
            return Empty;
        }
        let record = |address| Record::from_rdata(self.name.clone(), ttl, RData::A(A(address)));
        let records: Vec<Record> = addresses.into_iter().map(record).collect();
        if records.is_empty() { Empty } else { Found(records, Vec::new()) }
    }

    fn service(&self, name: &ObjectName, service: &Service, below: &[&str]) -> Lookup {
        if let Some(target) = &service.external_name {
            return if below.is_empty() { self.alias(target) } else { Unknown };
        }
        match below {
            [] if self.wanted == RecordType::SRV => self.ports(name, service, &|_| true),
            [] => match service.cluster_ip {
                Some(address) => self.addresses([address], STABLE_TTL_S),
                None => self.addresses(unique(self.ready(name).map(|(_, endpoint)| endpoint.address)), VOLATILE_TTL_S),
            },
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                let same = |found: &ServicePort| found.name == port[1..] && found.protocol.as_str() == &protocol[1..];
                if service.ports.iter().any(&same) { self.ports(name, service, &same) } else { Unknown }
            }
            [protocol] if protocol.starts_with('_') => {
                let known = service.ports.iter().any(|port| port.protocol.as_str() == &protocol[1..]);
                if known { Empty } else { Unknown }
            }
            [host] => {
                let found: Vec<Ipv4Addr> = unique(
                    self.ready(name)
                        .filter(|(_, endpoint)| label(endpoint) == *host || dashed(host) == Some(endpoint.address))
                        .map(|(_, e)| e.address),
                );
                if found.is_empty() { Unknown } else { self.addresses(found, VOLATILE_TTL_S) }
            }
            _ => Unknown,
        }
    }

    fn alias(&self, target: &str) -> Lookup {
        let Ok(mut target) = Name::from_ascii(target) else { return Empty };
        target.set_fqdn(true);
        let record = Record::from_rdata(self.name.clone(), STABLE_TTL_S, RData::CNAME(CNAME(target.clone())));
        match self.wanted {
            RecordType::CNAME => Found(vec![record], Vec::new()),
            _ => Alias(Box::new(record), target),
        }
    }

    fn ready(&self, name: &ObjectName) -> impl Iterator<Item = (&Slice, &Endpoint)> {
        self.cluster.endpoints(name).filter(|(_, endpoint)| endpoint.ready)
    }

    /// SRV records of some ports, with the addresses of their targets.
    fn ports(&self, name: &ObjectName, service: &Service, wanted: &dyn Fn(&ServicePort) -> bool) -> Lookup {
        if !matches!(self.wanted, RecordType::SRV | RecordType::ANY) {
            return Empty;
        }
        let mut targets: Vec<(Name, Ipv4Addr, u16)> = Vec::new();
        for port in service.ports.iter().filter(|port| wanted(port)) {
            match service.cluster_ip {
                Some(address) => {
                    targets.extend(self.zone.name(&[&name.1, &name.0, "svc"]).map(|to| (to, address, port.port)))
                }
                None => targets.extend(self.ready(name).filter_map(|(slice, endpoint)| {
                    let to = self.zone.name(&[&label(endpoint), &name.1, &name.0, "svc"])?;
                    Some((to, endpoint.address, slice.number(port)?))
                })),
            }
        }
        let weight = (100 / targets.len().max(1)).max(1) as u16;
        let ttl = if service.cluster_ip.is_some() { STABLE_TTL_S } else { VOLATILE_TTL_S };
        let record = |(to, _, port): &(Name, Ipv4Addr, u16)| {
            Record::from_rdata(self.name.clone(), ttl, RData::SRV(SRV::new(0, weight, *port, to.clone())))
        };
        let records: Vec<Record> = targets.iter().map(record).collect();
        let mut glue: Vec<Record> = Vec::new();
        for (to, address, _) in targets {
            let record = Record::from_rdata(to, ttl, RData::A(A(address)));
            if !glue.contains(&record) {
                glue.push(record);
            }
        }
        if records.is_empty() { Empty } else { Found(records, glue) }
    }
}

fn unique(addresses: impl Iterator<Item = Ipv4Addr>) -> Vec<Ipv4Addr> {
    let mut all: Vec<Ipv4Addr> = addresses.collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::tracker::{Tracker, Update};
    use kube::runtime::watcher::Event;

    fn cluster() -> Cluster {
        let mut tracker = Tracker::default();
        for (name, spec) in [
            (
                "web",
                json!({"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            ),
            ("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
            ("empty", json!({"clusterIP": "None", "ports": [{"port": 1}]})),
            ("ext", json!({"type": "ExternalName", "externalName": "example.com"})),
        ] {
            let service =
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap();
            tracker.update(Update::Service(Event::Apply(service)));
        }
        let slice = json!({"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5433}], "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": {"ready": false}}]});
        tracker.update(Update::Slice(Event::Apply(serde_json::from_value(slice).unwrap())));
        tracker.cluster
    }

    /// The answer as text: records without the question's name, or the kind of nothing.
    fn look(name: &str, kind: RecordType) -> String {
        let zone =
            Zone::new(&NetConfig::new("a1b2c3", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()));
        let name =
            Name::from_ascii(if name.ends_with('.') { name.to_owned() } else { format!("{name}.cluster.local.") })
                .unwrap();
        match zone.lookup(&cluster(), &name, kind) {
            Found(records, glue) => {
                let text =
                    |records: &[Record]| records.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ");
                if glue.is_empty() { text(&records) } else { format!("{} + {}", text(&records), text(&glue)) }
            }
            Alias(_, target) => format!("alias {target}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_that_exist() {
        use RecordType::{A, AAAA, CNAME, NS, PTR, SRV, TXT};
        for (name, kind, expected) in [
            ("web.shop.svc", A, "10.96.0.20"),
            ("WEB.Shop.svc", A, "10.96.0.20"),
            ("web.shop.svc", AAAA, "Empty"),
            ("_http._tcp.web.shop.svc", SRV, "0 100 80 web.shop.svc.cluster.local. + 10.96.0.20"),
            ("_http._tcp.web.shop.svc", A, "Empty"),
            ("_tcp.web.shop.svc", A, "Empty"),
            (
                "web.shop.svc",
                SRV,
                "0 50 80 web.shop.svc.cluster.local. 0 50 53 web.shop.svc.cluster.local. + 10.96.0.20",
            ),
            ("db.shop.svc", A, "10.244.0.5 10.244.0.6"),
            ("db-0.db.shop.svc", A, "10.244.0.5"),
            ("10-244-0-6.db.shop.svc", A, "10.244.0.6"),
            (
                "_sql._tcp.db.shop.svc",
                SRV,
                "0 50 5433 db-0.db.shop.svc.cluster.local. 0 50 5433 10-244-0-6.db.shop.svc.cluster.local. + 10.244.0.5 10.244.0.6",
            ),
            ("empty.shop.svc", A, "Empty"),
            ("ext.shop.svc", A, "alias example.com."),
            ("ext.shop.svc", CNAME, "example.com."),
            ("shop.svc", A, "Empty"),
            ("svc", A, "Empty"),
            ("10-244-0-9.shop.pod", A, "10.244.0.9"),
            ("dns-version", TXT, "1.1.0"),
            ("cluster.local.", NS, "ns.dns.cluster.local. + 10.96.0.10"),
            ("20.0.96.10.in-addr.arpa.", PTR, "web.shop.svc.cluster.local."),
            ("5.0.244.10.in-addr.arpa.", PTR, "db-0.db.shop.svc.cluster.local."),
        ] {
            assert_eq!(look(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn names_that_do_not_exist_or_are_not_ours() {
        use RecordType::{A, PTR, SRV};
        for (name, kind, expected) in [
            ("none.shop.svc", A, "Unknown"),
            ("web.none.svc", A, "Unknown"),
            ("none.svc", A, "Unknown"),
            ("x.web.shop.svc", A, "Unknown"),
            ("db-2.db.shop.svc", A, "Unknown"),
            ("_none._tcp.web.shop.svc", SRV, "Unknown"),
            ("_http._udp.web.shop.svc", SRV, "Unknown"),
            ("nonsense.shop.pod", A, "Unknown"),
            ("other", A, "Unknown"),
            ("99.0.96.10.in-addr.arpa.", PTR, "Unknown"),
            ("1.2.0.192.in-addr.arpa.", PTR, "Elsewhere"),
            ("example.com.", A, "Elsewhere"),
            ("notcluster.local.", A, "Elsewhere"),
        ] {
            assert_eq!(look(name, kind), expected, "{name} {kind}");
        }
    }
}
