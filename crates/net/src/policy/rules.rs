//! From policies to chains, maps and sets. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mycelium_api::selector::Selector;

use super::model::{NamedPort, Peer, Pod, Policy, Port, Rule, Which};
use crate::cluster::{Cluster, ObjectName};
use crate::compile::{HAIRPIN, Site};
use crate::ruleset::{Chain, Key, Protocol, Ruleset, Set, Value};

/// Longest name of a chain that is written out; the kernel allows 255 bytes.
const NAME_MAX: usize = 200;
const CLIENT: &str = "ct original ip saddr";
const SERVER: &str = "ct reply ip saddr";
const SERVER_PORT: &str = "ct reply proto-src";
const INGRESS_CHAIN: &str = "policy_ingress";

/// Which way a rule looks, from the isolated pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// Prefix of the policies' chains.
    fn prefix(self) -> &'static str {
        if self == Self::Ingress { "in" } else { "out" }
    }

    /// The map from a pod to the chain of its policies.
    fn map(self) -> &'static str {
        if self == Self::Ingress { "ingress" } else { "egress" }
    }

    /// Where the other side is found.
    fn peer(self) -> &'static str {
        if self == Self::Ingress { CLIENT } else { SERVER }
    }

    /// What follows when a rule matches: who may leave must still be let in.
    fn allowed(self) -> String {
        if self == Self::Ingress { "accept".to_owned() } else { format!("goto {INGRESS_CHAIN}") }
    }

    fn rules(self, policy: &Policy) -> Option<&[Rule]> {
        if self == Self::Ingress { policy.ingress.as_deref() } else { policy.egress.as_deref() }
    }
}

/// Adds the rules of a cluster's policies; nothing if it has none.
pub fn add(rules: &mut Ruleset, site: &Site, cluster: &Cluster) {
    if cluster.policies.is_empty() {
        return;
    }
    base(rules, site);
    let dns = dns(site);
    let mut compiler = Compiler { rules, site, cluster, pods: members(cluster, &dns) };
    for direction in [Direction::Ingress, Direction::Egress] {
        for (name, policy) in &cluster.policies {
            compiler.policy(direction, name, policy);
        }
        compiler.isolate(direction);
    }
}

fn base(rules: &mut Ruleset, site: &Site) {
    let ours = site.names.wildcard();
    // Errors about a connection are no connection of their own; they carry no data.
    let errors = "ct state related meta l4proto icmp accept".to_owned();
    let chains: [(&str, Option<&'static str>, Vec<String>); 4] = [
        (
            "policy_forward",
            Some("type filter hook forward priority 10 ;"),
            vec![
                errors.clone(),
                format!("{CLIENT} . {SERVER} @{HAIRPIN} accept"),
                format!("{CLIENT} vmap @egress"),
                // What belongs to no connection has no client: its sender is judged, and only rules for all ports match.
                "ct state invalid,untracked ip saddr vmap @egress".to_owned(),
                format!("goto {INGRESS_CHAIN}"),
            ],
        ),
        (
            "policy_input",
            Some("type filter hook input priority 10 ;"),
            vec![
                errors.clone(),
                format!("iifname \"{ours}\" {CLIENT} vmap @egress"),
                format!("iifname \"{ours}\" ct state invalid,untracked ip saddr vmap @egress"),
            ],
        ),
        (
            "policy_output",
            Some("type filter hook output priority 10 ;"),
            vec![errors, format!("oifname \"{ours}\" {CLIENT} vmap @egress")],
        ),
        (
            INGRESS_CHAIN,
            None,
            // The API server and the ingress proxy are on the machine, and are to every node what it is itself.
            site.machine
                .map(|machine| format!("{CLIENT} {machine} accept"))
                .into_iter()
                .chain([
                    format!("{SERVER} vmap @ingress"),
                    "ct state invalid,untracked ip daddr vmap @ingress".to_owned(),
                    "accept".to_owned(),
                ])
                .collect(),
        ),
    ];
    for (name, hook, lines) in chains {
        rules.chains.insert(name.into(), Chain { hook, rules: lines, with_table: false });
    }
    for map in [Direction::Ingress.map(), Direction::Egress.map()] {
        let declaration = "type ipv4_addr : verdict ;".to_owned();
        rules.sets.insert(map.into(), Set { keyword: "map", declaration, elements: BTreeMap::new() });
    }
}

/// The cluster DNS as the pod that policies take it for.
fn dns(site: &Site) -> Pod {
    let port = |name: &str, protocol| NamedPort { name: name.to_owned(), protocol, number: 53 };
    Pod {
        labels: BTreeMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
        ip: Some(site.dns),
        ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        ..Pod::default()
    }
}

/// A pod that has an address.
struct Member<'a> {
    pod: &'a Pod,
    ip: Ipv4Addr,
}

type Members<'a> = BTreeMap<&'a str, Vec<Member<'a>>>;

/// Pods by namespace.
fn members<'a>(cluster: &'a Cluster, dns: &'a Pod) -> Members<'a> {
    let mut found = Members::new();
    let pods = cluster.pods.iter().map(|(name, pod)| (name.0.as_str(), pod.as_ref()));
    for (namespace, pod) in pods.chain([("kube-system", dns)]) {
        if let Some(ip) = pod.ip {
            found.entry(namespace).or_default().push(Member { pod, ip });
        }
    }
    found
}

struct Compiler<'a> {
    rules: &'a mut Ruleset,
    site: &'a Site,
    cluster: &'a Cluster,
    pods: Members<'a>,
}

impl<'a> Compiler<'a> {
    /// What a policy allows in one direction.
    fn policy(&mut self, direction: Direction, name: &ObjectName, policy: &Policy) {
        let Some(allowed) = direction.rules(policy).filter(|rules| !rules.is_empty()) else { return };
        let mut lines = Vec::new();
        for rule in allowed {
            for line in self.rule(direction, name, rule) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        let chain = Chain { hook: None, rules: lines, with_table: false };
        self.rules.chains.insert(policy_chain(direction, name), chain);
    }

    /// The lines of a rule: every peer with the ports of every protocol.
    fn rule(&mut self, direction: Direction, policy: &ObjectName, rule: &Rule) -> Vec<String> {
        let peers = match &rule.peers {
            None => vec![String::new()],
            Some(peers) => peers.iter().map(|peer| self.peer(direction, policy, peer)).collect(),
        };
        let ports = match &rule.ports {
            None => vec![String::new()],
            Some(ports) => self.ports(ports),
        };
        let verdict = direction.allowed();
        let lines = peers.iter().flat_map(|peer| ports.iter().map(move |ports| (peer, ports)));
        lines.map(|(peer, ports)| format!("{peer}{ports}{verdict}")).collect()
    }

    fn peer(&mut self, direction: Direction, policy: &ObjectName, peer: &Peer) -> String {
        let side = direction.peer();
        match peer {
            Peer::Block { cidr, except } => block(side, *cidr, except),
            Peer::Pods { namespaces, pods } => format!("{side} @{} ", self.peers(&policy.0, namespaces.as_ref(), pods)),
        }
    }

    /// The set of the addresses of some pods. Equal selectors have one set.
    fn peers(&mut self, own: &str, namespaces: Option<&Selector>, pods: &Selector) -> Arc<str> {
        let key = match namespaces {
            None => format!("{own} {pods:?}"),
            Some(namespaces) => format!("* {namespaces:?} {pods:?}"),
        };
        let name: Arc<str> = format!("peers/{}", digest(&key)).into();
        if self.rules.sets.contains_key(&name) {
            return name;
        }
        let chosen = |namespace: &&str| match namespaces {
            None => *namespace == own,
            Some(selector) => self.cluster.namespace_matches(namespace, selector),
        };
        let spaces = self.pods.iter().filter(|(namespace, _)| chosen(namespace));
        let found = spaces.flat_map(|(_, members)| members).filter(|member| pods.matches(&member.pod.labels));
        let elements = found.map(|member| (Key::Address(member.ip), Value::None)).collect();
        let declaration = "type ipv4_addr ;".to_owned();
        self.rules.sets.insert(name.clone(), Set { keyword: "set", declaration, elements });
        name
    }

    /// One match for the numbers of each protocol, and one for each name.
    fn ports(&mut self, ports: &[Port]) -> Vec<String> {
        let mut found = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let mine = || ports.iter().filter(|port| port.protocol == protocol).map(|port| &port.which);
            if mine().any(|which| *which == Which::All) {
                found.push(format!("meta l4proto {protocol} "));
                continue;
            }
            let ranges = merged(mine().filter_map(|which| match which {
                Which::Range(first, last) if first <= last => Some((*first, *last)),
                _ => None,
            }));
            if !ranges.is_empty() {
                found.push(format!("meta l4proto {protocol} {SERVER_PORT} {{ {} }} ", ranges.join(", ")));
            }
            let names: BTreeSet<&str> = mine()
                .filter_map(|which| if let Which::Named(name) = which { Some(name.as_str()) } else { None })
                .collect();
            for name in names {
                let set = self.named(protocol, name);
                found.push(format!("meta l4proto {protocol} {SERVER} . {SERVER_PORT} @{set} "));
            }
        }
        found
    }

    /// The set of all servers whose containers have a port of this name.
    fn named(&mut self, protocol: Protocol, name: &str) -> Arc<str> {
        let set: Arc<str> = format!("named/{protocol}/{}", digest(name)).into();
        let mut elements = BTreeMap::new();
        for member in self.pods.values().flatten() {
            let same = |port: &&NamedPort| port.name == name && port.protocol == protocol;
            for port in member.pod.ports.iter().filter(same) {
                elements.insert(Key::AddressPort(member.ip, port.number), Value::None);
            }
        }
        let declaration = "type ipv4_addr . inet_service ;".to_owned();
        self.rules.sets.insert(set.clone(), Set { keyword: "set", declaration, elements });
        set
    }

    /// Whether the pod is here to be isolated: others are by their own node.
    fn is_ours(&self, member: &Member<'_>) -> bool {
        member.ip != self.site.dns && self.site.is_here(&member.pod.node)
    }

    /// Leads each isolated pod to the chain that it shares with the pods of the same policies.
    fn isolate(&mut self, direction: Direction) {
        let mut isolated = BTreeMap::<Ipv4Addr, BTreeSet<&'a ObjectName>>::new();
        for (name, policy) in self.cluster.policies.iter().filter(|(_, policy)| direction.rules(policy).is_some()) {
            let members = self.pods.get(name.0.as_str()).into_iter().flatten();
            for member in members.filter(|member| self.is_ours(member) && policy.pods.matches(&member.pod.labels)) {
                isolated.entry(member.ip).or_default().insert(name);
            }
        }
        for (ip, policies) in isolated {
            let group = self.group(direction, &policies);
            if let Some(map) = self.rules.sets.get_mut(direction.map()) {
                map.elements.insert(Key::Address(ip), Value::Goto(group));
            }
        }
    }

    fn group(&mut self, direction: Direction, policies: &BTreeSet<&ObjectName>) -> Arc<str> {
        let names: Vec<Arc<str>> = policies.iter().map(|name| policy_chain(direction, name)).collect();
        let group: Arc<str> = format!("group/{}/{}", direction.prefix(), digest(&names.join(" "))).into();
        if !self.rules.chains.contains_key(&group) {
            let known = names.iter().filter(|name| self.rules.chains.contains_key(*name));
            let lines = known.map(|name| format!("jump {name}")).chain(["drop".to_owned()]).collect();
            self.rules.chains.insert(group.clone(), Chain { hook: None, rules: lines, with_table: false });
        }
        group
    }
}

fn policy_chain(direction: Direction, name: &ObjectName) -> Arc<str> {
    let plain = format!("{}/{}/{}", direction.prefix(), name.0, name.1);
    if plain.len() <= NAME_MAX { plain.into() } else { format!("{}/{}", direction.prefix(), digest(&plain)).into() }
}

/// A name for something whose own is too long or has characters that `nft` does not take.
fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

fn block(side: &str, cidr: Ipv4Net, except: &[Ipv4Net]) -> String {
    let inside = if cidr.prefix_len() == 0 { String::new() } else { format!("{side} {cidr} ") };
    if except.is_empty() {
        return inside;
    }
    let except: Vec<String> = except.iter().map(|range| format!("{}-{}", range.network(), range.broadcast())).collect();
    format!("{inside}{side} != {{ {} }} ", except.join(", "))
}

/// Ranges that neither touch nor overlap, as text.
fn merged(ranges: impl Iterator<Item = (u16, u16)>) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = ranges.collect();
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => out.push((first, last)),
        }
    }
    let text = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    out.iter().map(text).collect()
}
