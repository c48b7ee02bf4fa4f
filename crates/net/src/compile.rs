//! From the cluster to rules. Pure.
//!
//! ```text
//!  prerouting, output ─► services ─► frontends: address . protocol . port ─┬► pick_N: backends[key . random % N]
//!                                └► node_ports: protocol . port ───────────┤  node_pick_N: the same, without address
//!                                                                          ├► affinity/...: the client's backend, or a random one
//!                                                                          └► limited/...: only from some sources
//!  postrouting: hairpin, loopback and what leaves the machine get an address that finds the way back
//!  input, forward, output: what is still addressed to a service or an absent pod is rejected at once; then policies
//! ```
//!
//! Services keep the client's address wherever every answer passes the translation on its way back: always when there is
//! one node. With several, each compiles the same cluster for itself, and [`detour`] tells where a client must be hidden.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::cluster::{Cluster, HostPort, ObjectName, Service, ServicePort};
use crate::config::{Names, NetConfig};
use crate::conntrack::Targets;
use crate::policy;
use crate::ruleset::{Chain, Key, Protocol, Ruleset, Set, Value};

/// An address and a port.
pub type Backend = (Ipv4Addr, u16);

const FRONTENDS: &str = "frontends";
const BACKENDS: &str = "backends";
const NODE_PORTS: &str = "node_ports";
const NODE_BACKENDS: &str = "node_backends";
/// Pairs of a backend and itself.
pub(crate) const HAIRPIN: &str = "hairpin";
const OUTSIDE: &str = "outside";
const REFUSED: &str = "refused";
const PICK: &str = "pick";
const NODE_PICK: &str = "node_pick";
const FRONTEND_KEY: &str = "ip daddr . meta l4proto . th dport";
const NODE_PORT_KEY: &str = "meta l4proto . th dport";
/// Backends that a service can have before the table is made anew.
const MIN_PICKERS: usize = 16;

/// What the rules need to know of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Names of interfaces and table.
    pub names: Names,
    /// The node's name; empty when everything is on one.
    pub node: String,
    /// Range of the node's pods.
    pub pod_cidr: Ipv4Net,
    /// Range of all pods.
    pub cluster_cidr: Ipv4Net,
    /// The machine's address on the pod network, if the node's network hangs on the machine's.
    pub machine: Option<Ipv4Addr>,
    /// The node's address on the pod network.
    pub gateway: Ipv4Addr,
    /// The cluster DNS address.
    pub dns: Ipv4Addr,
    /// The address of the `kubernetes` service.
    pub kubernetes_ip: Ipv4Addr,
    /// Where the API server listens for pods.
    pub api: Option<SocketAddrV4>,
    /// The node's address towards the world.
    pub node_ip: Ipv4Addr,
    /// What a load balancer service gets: the machine's address towards the world.
    pub balancer_ip: Ipv4Addr,
}

impl Site {
    /// The site of a configuration, with the node's address found elsewhere.
    pub fn new(config: &NetConfig, node_ip: Ipv4Addr) -> Self {
        Self {
            names: config.names(),
            node: config.node.clone(),
            pod_cidr: config.pod_cidr,
            cluster_cidr: config.cluster_cidr,
            machine: config.uplink.map(|uplink| uplink.machine),
            gateway: config.gateway(),
            dns: config.dns(),
            kubernetes_ip: config.kubernetes_ip(),
            api: config.api,
            node_ip,
            balancer_ip: node_ip,
        }
    }

    /// Whether a node of this name is this one.
    pub fn is_here(&self, node: &str) -> bool {
        self.node.is_empty() || self.node == node
    }

    /// The node's name, if it matters.
    fn here(&self) -> Option<&str> {
        Some(self.node.as_str()).filter(|node| !node.is_empty())
    }
}

/// Rules, and what else follows from the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The rules.
    pub rules: Ruleset,
    /// The backends of each UDP frontend.
    pub udp: Targets,
}

/// The rules for a cluster. Backends keep the numbers they had in `previous`, so that few elements change.
pub fn compile(site: &Site, cluster: &Cluster, previous: Option<&Ruleset>) -> Compiled {
    let mut out = Compiler { site, previous, rules: base(site), udp: Targets::new(), most: 0 };
    let balanced = load_balancers(site, &cluster.services);
    out.kubernetes(cluster);
    for (name, service) in &cluster.services {
        for port in &service.ports {
            out.service_port(cluster, name, service, port, balanced.get(name).copied());
        }
    }
    for host_port in cluster.host_ports.values().flatten().filter(|port| site.is_here(&port.node)) {
        out.host_port(host_port);
    }
    out.pickers();
    policy::rules::add(&mut out.rules, site, cluster);
    Compiled { rules: out.rules, udp: out.udp }
}

/// Which load balancer services get the node's address: of those that want the same port, the oldest.
pub fn load_balancers(site: &Site, services: &BTreeMap<ObjectName, Service>) -> BTreeMap<ObjectName, Ipv4Addr> {
    let mut wanting: Vec<_> = services.iter().filter(|(_, service)| service.load_balancer).collect();
    wanting.sort_by_key(|(name, service)| (service.created_s, *name));
    let mut taken = std::collections::BTreeSet::new();
    let mut given = BTreeMap::new();
    for (name, service) in wanting {
        let ports = || service.ports.iter().map(|port| (port.protocol, port.port));
        if ports().all(|port| !taken.contains(&port)) {
            taken.extend(ports());
            given.insert(name.clone(), site.balancer_ip);
        }
    }
    given
}

/// Tables of elements and the chains that are always there.
fn base(site: &Site) -> Ruleset {
    let mut rules = Ruleset::default();
    let service = FRONTEND_KEY;
    let sets: [(&str, &'static str, String); 7] = [
        (FRONTENDS, "map", "type ipv4_addr . inet_proto . inet_service : verdict ;".to_owned()),
        (BACKENDS, "map", format!("typeof {service} . numgen random mod 2 : ip daddr . th dport ;")),
        (NODE_PORTS, "map", "type inet_proto . inet_service : verdict ;".to_owned()),
        (
            NODE_BACKENDS,
            "map",
            "typeof meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport ;".to_owned(),
        ),
        (HAIRPIN, "set", "type ipv4_addr . ipv4_addr ;".to_owned()),
        (OUTSIDE, "set", "type ipv4_addr . inet_proto . inet_service ;".to_owned()),
        (REFUSED, "set", "type ipv4_addr . inet_proto . inet_service ;".to_owned()),
    ];
    for (name, keyword, declaration) in sets {
        rules.sets.insert(name.into(), Set { keyword, declaration, elements: BTreeMap::new() });
    }
    for (name, hook, lines) in base_chains(site, service) {
        rules.chains.insert(name.into(), Chain { hook, rules: lines, with_table: false });
    }
    rules
}

/// A connection that comes from elsewhere and goes on to another node's pod must come back this way: its client is hidden
/// behind this node's address. On the machine itself all that leaves the nodes comes back anyway, but for what one
/// node's pod says to another's; and there the address is not the one on the pod network, which policies never judge.
fn detour(site: &Site) -> Option<String> {
    let (own, all) = (site.pod_cidr, site.cluster_cidr);
    let (from, to) = match site.machine {
        Some(_) => (String::new(), site.gateway),
        None => (format!("ip saddr {all} "), site.node_ip),
    };
    let several = own != all;
    several.then(|| format!("ct status dnat {from}ip saddr != {own} ip daddr {all} ip daddr != {own} snat to {to}"))
}

type BaseChain = (&'static str, Option<&'static str>, Vec<String>);

fn base_chains(site: &Site, service: &str) -> Vec<BaseChain> {
    let (gateway, pods, dns) = (site.gateway, site.cluster_cidr, site.dns);
    let (anchor, ours) = (&site.names.anchor, site.names.wildcard());
    let undeliverable = format!("oifname \"{anchor}\" ip daddr != 224.0.0.0/4 goto refuse");
    // The interface in sight here is the one from before the translation.
    let translated = format!("oifname \"{anchor}\" ct status dnat accept");
    let refused = format!("{service} @{REFUSED} goto refuse");
    vec![
        ("prerouting", Some("type nat hook prerouting priority -100 ;"), vec!["jump services".to_owned()]),
        ("output", Some("type nat hook output priority -100 ;"), vec!["jump services".to_owned()]),
        (
            "services",
            None,
            vec![
                format!("{service} vmap @{FRONTENDS}"),
                format!("fib daddr type local meta l4proto . th dport vmap @{NODE_PORTS}"),
            ],
        ),
        (
            "postrouting",
            Some("type nat hook postrouting priority 100 ;"),
            [
                format!("ct status dnat ip saddr . ip daddr @{HAIRPIN} snat to {gateway}"),
                format!("oifname \"{ours}\" ip saddr 127.0.0.0/8 snat to {gateway}"),
                format!("ip saddr {pods} oifname != \"lo\" oifname != \"{ours}\" masquerade"),
                if site.machine.is_some() {
                    format!("ct status dnat {service} @{OUTSIDE} snat to {gateway}")
                } else {
                    format!("ct status dnat {service} @{OUTSIDE} masquerade")
                },
            ]
            .into_iter()
            .chain(detour(site))
            .collect(),
        ),
        (
            "filter_input",
            Some("type filter hook input priority 0 ;"),
            vec![
                format!("iifname \"{ours}\" ip daddr 127.0.0.0/8 ct state new,invalid drop"),
                format!("ip daddr {dns} meta l4proto {{ tcp, udp, sctp }} th dport != 53 ct state new goto refuse"),
                refused.clone(),
            ],
        ),
        ("filter_forward", Some("type filter hook forward priority 0 ;"), vec![undeliverable.clone(), refused.clone()]),
        ("filter_output", Some("type filter hook output priority 0 ;"), vec![translated, undeliverable, refused]),
        ("refuse", None, vec!["meta l4proto tcp reject with tcp reset".to_owned(), "reject".to_owned()]),
    ]
}

struct Compiler<'a> {
    site: &'a Site,
    previous: Option<&'a Ruleset>,
    rules: Ruleset,
    udp: Targets,
    /// Most backends of any frontend.
    most: usize,
}

/// How packets get from a frontend to a backend.
enum Path {
    /// By number, from the map of backends.
    Slots(Vec<Backend>),
    /// By a chain of the service's own.
    Chain(Arc<str>, Vec<Backend>),
}

impl Compiler<'_> {
    /// The API server's service works before any object exists.
    fn kubernetes(&mut self, cluster: &Cluster) {
        let known = cluster
            .services
            .get(&kubernetes_name())
            .is_some_and(|service| service.cluster_ip == Some(self.site.kubernetes_ip));
        if let (Some(api), false) = (self.site.api, known) {
            let path = Path::Slots(vec![(*api.ip(), api.port())]);
            self.frontend(self.site.kubernetes_ip, Protocol::Tcp, 443, &path);
        }
    }

    /// All backends of a port, or only those on this node.
    fn backends(&self, cluster: &Cluster, name: &ObjectName, port: &ServicePort, near: bool) -> Vec<Backend> {
        match self.site.api {
            Some(api) if *name == kubernetes_name() => vec![(*api.ip(), api.port())],
            _ => cluster.backends(name, port, self.site.here().filter(|_| near)),
        }
    }

    fn service_port(
        &mut self,
        cluster: &Cluster,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        balancer: Option<Ipv4Addr>,
    ) {
        let Some(cluster_ip) = service.cluster_ip else { return };
        let (protocol, number) = (port.protocol, port.port);
        let knows_nodes = self.site.here().is_some();
        let (inside_near, outside_near) =
            (knows_nodes && service.internal_local, knows_nodes && service.external_local);
        let all = self.path(cluster, name, service, port, false);
        let near = if inside_near || outside_near { self.path(cluster, name, service, port, true) } else { None };
        let inside = if inside_near { &near } else { &all };
        let outside = if outside_near { &near } else { &all };
        // Without a path, the virtual address and node ports need no rule: nothing answers there, and that is told at once.
        if let Some(path) = inside {
            self.frontend(cluster_ip, protocol, number, path);
        }
        for address in &service.external_ips {
            self.entrance(*address, protocol, number, outside.as_ref());
        }
        if let Some(address) = balancer {
            // All nodes' clients keep their address here, so that it may send them to any node.
            self.entrance(address, protocol, number, all.as_ref());
            self.limit(name, port, service, Key::Frontend(address, protocol, number));
        }
        if let (Some(node_port), Some(path)) = (port.node_port, outside) {
            self.node_port(protocol, node_port, path);
        }
    }

    /// How packets for a port get to its backends; none if it has none.
    fn path(
        &mut self,
        cluster: &Cluster,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        near: bool,
    ) -> Option<Path> {
        let backends = self.backends(cluster, name, port, near);
        if backends.is_empty() {
            return None;
        }
        self.return_paths(port.protocol, &backends);
        Some(match service.affinity_s {
            Some(seconds) => Path::Chain(self.affinity(name, port, seconds, &backends, near), backends),
            None => Path::Slots(backends),
        })
    }

    /// An address that is not the service's own, where others might answer if we did not.
    fn entrance(&mut self, address: Ipv4Addr, protocol: Protocol, port: u16, path: Option<&Path>) {
        match path {
            Some(path) => self.frontend(address, protocol, port, path),
            None => self.element(REFUSED, Key::Frontend(address, protocol, port), Value::None),
        }
    }

    fn host_port(&mut self, port: &HostPort) {
        let backends = vec![(port.pod_ip, port.container_port)];
        self.return_paths(port.protocol, &backends);
        let path = Path::Slots(backends);
        match port.host_ip.filter(|address| !address.is_unspecified()) {
            Some(address) => self.frontend(address, port.protocol, port.host_port, &path),
            None => self.node_port(port.protocol, port.host_port, &path),
        }
    }

    fn element(&mut self, set: &str, key: Key, value: Value) {
        if let Some(set) = self.rules.sets.get_mut(set) {
            // Who comes first keeps a contested frontend.
            set.elements.entry(key).or_insert(value);
        }
    }

    fn taken(&self, set: &str, key: &Key) -> bool {
        self.rules.sets.get(set).is_some_and(|set| set.elements.contains_key(key))
    }

    fn frontend(&mut self, address: Ipv4Addr, protocol: Protocol, port: u16, path: &Path) {
        let key = Key::Frontend(address, protocol, port);
        if self.taken(FRONTENDS, &key) {
            return;
        }
        let slot = |slot| Key::FrontendSlot(address, protocol, port, slot);
        let verdict = self.pick(path, BACKENDS, slot, PICK);
        self.element(FRONTENDS, key, verdict);
        self.note_udp(key, protocol, path);
    }

    fn node_port(&mut self, protocol: Protocol, port: u16, path: &Path) {
        let key = Key::NodePort(protocol, port);
        if self.taken(NODE_PORTS, &key) {
            return;
        }
        let slot = |slot| Key::NodePortSlot(protocol, port, slot);
        let verdict = self.pick(path, NODE_BACKENDS, slot, NODE_PICK);
        self.element(NODE_PORTS, key, verdict);
        self.note_udp(key, protocol, path);
    }

    fn note_udp(&mut self, key: Key, protocol: Protocol, path: &Path) {
        if protocol == Protocol::Udp {
            let (Path::Slots(backends) | Path::Chain(_, backends)) = path;
            self.udp.insert(key, backends.iter().copied().collect());
        }
    }

    /// Fills the slots of a frontend; the verdict leads to the chain that picks one of so many.
    fn pick(&mut self, path: &Path, set: &str, slot: impl Fn(u32) -> Key, chain: &str) -> Value {
        let backends = match path {
            Path::Chain(chain, _) => return Value::Goto(chain.clone()),
            Path::Slots(backends) => backends,
        };
        let count = backends.len();
        let old =
            self.previous.and_then(|rules| rules.sets.get(set)).map(|set| old_slots(set, &slot)).unwrap_or_default();
        for (index, (address, port)) in keep_places(&old, backends).into_iter().enumerate() {
            self.element(set, slot(index as u32), Value::Backend(address, port));
        }
        self.most = self.most.max(count);
        Value::Goto(format!("{chain}_{count}").into())
    }

    /// The chains that pick one of 1, 2, 3 ... backends. More than are needed, and never fewer than before, because they
    /// can only be made together with the table.
    fn pickers(&mut self) {
        let before =
            self.previous.map_or(0, |rules| rules.chains.keys().filter(|name| name.starts_with("pick_")).count());
        let most = self.most.next_power_of_two().max(MIN_PICKERS).max(before);
        for (name, key, set) in [(PICK, FRONTEND_KEY, BACKENDS), (NODE_PICK, NODE_PORT_KEY, NODE_BACKENDS)] {
            for count in 1..=most {
                let rules = vec![format!("dnat ip to {key} . numgen random mod {count} map @{set}")];
                let chain = Chain { hook: None, rules, with_table: true };
                self.rules.chains.insert(format!("{name}_{count}").into(), chain);
            }
        }
    }

    /// Backends that talk to themselves through the service, or sit outside the machine, must see the node as the client.
    fn return_paths(&mut self, protocol: Protocol, backends: &[Backend]) {
        for (address, port) in backends {
            self.element(HAIRPIN, Key::Pair(*address, *address), Value::None);
            let local =
                self.site.cluster_cidr.contains(address) || *address == self.site.node_ip || address.is_loopback();
            if !local {
                self.element(OUTSIDE, Key::Frontend(*address, protocol, *port), Value::None);
            }
        }
    }

    /// A set of clients and a chain for each backend, and the chain that chooses among them.
    fn affinity(
        &mut self,
        name: &ObjectName,
        port: &ServicePort,
        seconds: u32,
        backends: &[Backend],
        near: bool,
    ) -> Arc<str> {
        let suffix = if near { "/near" } else { "" };
        let base = format!("{}/{}/{}-{}{suffix}", name.0, name.1, port.protocol, port.port);
        let (mut known, mut random) = (Vec::new(), Vec::new());
        for (index, (address, number)) in backends.iter().enumerate() {
            let clients: Arc<str> = format!("clients/{base}/{address}-{number}").into();
            let to: Arc<str> = format!("to/{base}/{address}-{number}").into();
            let declaration = format!("type ipv4_addr ; flags dynamic,timeout ; timeout {seconds}s ;");
            self.rules.sets.insert(clients.clone(), Set { keyword: "set", declaration, elements: BTreeMap::new() });
            let rules = vec![
                format!("update @{clients} {{ ip saddr }}"),
                format!("meta l4proto {} dnat to {address}:{number}", port.protocol),
            ];
            known.push(format!("ip saddr @{clients} goto {to}"));
            random.push(format!("{index} : goto {to}"));
            self.rules.chains.insert(to, Chain { hook: None, rules, with_table: false });
        }
        known.push(format!("numgen random mod {} vmap {{ {} }}", backends.len(), random.join(", ")));
        let chain: Arc<str> = format!("affinity/{base}").into();
        self.rules.chains.insert(chain.clone(), Chain { hook: None, rules: known, with_table: false });
        chain
    }

    /// Puts the allowed sources of a load balancer in front of its frontend.
    fn limit(&mut self, name: &ObjectName, port: &ServicePort, service: &Service, key: Key) {
        let Some(set) = self.rules.sets.get_mut(FRONTENDS).filter(|_| !service.source_ranges.is_empty()) else {
            return;
        };
        let Some(Value::Goto(chain)) = set.elements.get(&key).cloned() else { return };
        let limited: Arc<str> = format!("limited/{}/{}/{}-{}", name.0, name.1, port.protocol, port.port).into();
        set.elements.insert(key, Value::Goto(limited.clone()));
        let mut rules: Vec<String> =
            service.source_ranges.iter().map(|range| format!("ip saddr {} goto {chain}", range.trunc())).collect();
        rules.push("drop".to_owned());
        self.rules.chains.insert(limited, Chain { hook: None, rules, with_table: false });
    }
}

fn kubernetes_name() -> ObjectName {
    ("default".to_owned(), "kubernetes".to_owned())
}

fn old_slots(set: &Set, slot: impl Fn(u32) -> Key) -> Vec<Backend> {
    let elements = set.elements.range(slot(0)..=slot(u32::MAX));
    elements
        .filter_map(|(_, value)| if let Value::Backend(address, port) = value { Some((*address, *port)) } else { None })
        .collect()
}

/// The new backends in an order in which those that stay keep their place where they can.
fn keep_places(old: &[Backend], new: &[Backend]) -> Vec<Backend> {
    let keeps = |index: usize| old.get(index).filter(|backend| new.contains(backend));
    let kept: Vec<Option<Backend>> = (0..new.len()).map(|index| keeps(index).copied()).collect();
    let mut others = new.iter().filter(|backend| !kept.contains(&Some(**backend)));
    kept.iter().filter_map(|place| place.or_else(|| others.next().copied())).collect()
}
