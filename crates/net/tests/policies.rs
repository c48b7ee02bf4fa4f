//! Compiled policy rules against an oracle that reads the API objects themselves and knows nothing of the model.

#[path = "common/interpreter.rs"]
mod interpreter;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use interpreter::{Connection, allows};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use mycelium_net::NetConfig;
use mycelium_net::cluster::Cluster;
use mycelium_net::compile::{Site, compile};
use mycelium_net::policy::model::{self, Policy};
use mycelium_net::ruleset::{Protocol, diff};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

const LABELS: [&str; 3] = ["a", "b", "c"];
const SPACES: [&str; 3] = ["x", "y", "kube-system"];
const PORTS: [u16; 5] = [53, 80, 81, 90, 443];
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

#[derive(Clone, Debug)]
struct Scene {
    /// Namespace, label, number of the port called `web`; the position gives the address.
    pods: Vec<(usize, usize, u16)>,
    /// Namespace and spec.
    policies: Vec<(usize, Json)>,
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, 2 + index as u8)
}

fn dns() -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, 10)
}

/// Name, protocol and number.
type NamedPort = (&'static str, &'static str, u16);

/// Namespace, labels and named ports of an address.
fn who(world: &Scene, ip: Ipv4Addr) -> Option<(usize, Json, Vec<NamedPort>)> {
    if ip == dns() {
        return Some((2, json!({"k8s-app": "kube-dns"}), vec![("dns", "UDP", 53), ("dns-tcp", "TCP", 53)]));
    }
    let index = (0..world.pods.len()).find(|index| address(*index) == ip)?;
    let (space, label, web) = world.pods[index];
    Some((space, json!({"app": LABELS[label]}), vec![("web", "TCP", web)]))
}

fn selected(selector: &Json, labels: &Json) -> bool {
    let wanted = selector["matchLabels"].as_object();
    let equal = wanted.into_iter().flatten().all(|(key, value)| labels[key] == *value);
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    equal
        && expressions.into_iter().all(|e| {
            let there = e["values"].as_array().unwrap().contains(&labels[e["key"].as_str().unwrap()]);
            (e["operator"] == "In") == there
        })
}

fn in_block(ip: Ipv4Addr, range: &str) -> bool {
    let (base, length) = range.split_once('/').unwrap();
    if base.contains(':') {
        return false;
    }
    let shift = 32 - length.parse::<u32>().unwrap();
    let cut = |ip: Ipv4Addr| if shift == 32 { 0 } else { u32::from(ip) >> shift };
    cut(ip) == cut(base.parse().unwrap())
}

fn peer_matches(world: &Scene, own: usize, peer: &Json, ip: Ipv4Addr) -> bool {
    if let Some(block) = peer.get("ipBlock") {
        let excepted = block["except"].as_array().into_iter().flatten().any(|e| in_block(ip, e.as_str().unwrap()));
        return in_block(ip, block["cidr"].as_str().unwrap()) && !excepted;
    }
    let Some((space, labels, _)) = who(world, ip) else { return false };
    let there = match peer.get("namespaceSelector") {
        Some(selector) => selected(selector, &json!({"kubernetes.io/metadata.name": SPACES[space]})),
        None => space == own,
    };
    there && peer.get("podSelector").is_none_or(|selector| selected(selector, &labels))
}

fn port_matches(world: &Scene, port: &Json, c: &Connection) -> bool {
    if port.get("protocol").and_then(Json::as_str).unwrap_or("TCP").to_lowercase() != c.protocol.as_str() {
        return false;
    }
    match port.get("port") {
        None => true,
        Some(Json::String(name)) => who(world, c.server).is_some_and(|(_, _, ports)| {
            ports.iter().any(|(n, p, number)| n == name && p.to_lowercase() == c.protocol.as_str() && *number == c.port)
        }),
        Some(number) => {
            let first = number.as_u64().unwrap();
            (first..=port.get("endPort").and_then(Json::as_u64).unwrap_or(first)).contains(&u64::from(c.port))
        }
    }
}

fn empty_or(list: &Json, matches: impl Fn(&Json) -> bool) -> bool {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.is_empty() || list.iter().any(matches)
}

fn direction_allows(world: &Scene, c: &Connection, direction: &str) -> bool {
    let (subject, other, peers) = match direction {
        "Ingress" => (c.server, c.client, "from"),
        _ => (c.client, c.server, "to"),
    };
    let Some((space, labels, _)) = who(world, subject).filter(|_| subject != dns()) else { return true };
    let field = direction.to_lowercase();
    let applies = |(owner, spec): &&(usize, Json)| {
        let types = spec.get("policyTypes").and_then(Json::as_array);
        let spoken = match types {
            Some(types) => types.contains(&json!(direction)),
            None => direction == "Ingress" || spec[&field].as_array().is_some_and(|rules| !rules.is_empty()),
        };
        spoken && *owner == space && selected(&spec["podSelector"], &labels)
    };
    let applying: Vec<_> = world.policies.iter().filter(applies).collect();
    applying.is_empty()
        || applying.iter().any(|(owner, spec)| {
            spec[&field].as_array().into_iter().flatten().any(|rule| {
                empty_or(&rule[peers], |peer| peer_matches(world, *owner, peer, other))
                    && empty_or(&rule["ports"], |port| port_matches(world, port, c))
            })
        })
}

fn oracle(world: &Scene, c: &Connection) -> bool {
    let is_pod = |ip| who(world, ip).is_some() && ip != dns();
    c.client == c.server
        // The node reaches its pods, always.
        || c.client == NODE
        || direction_allows(world, c, "Egress") && (!is_pod(c.server) || direction_allows(world, c, "Ingress"))
}

// Scenes.

fn label_selector(key: &'static str, values: &'static [&'static str]) -> impl Strategy<Value = Json> {
    let value = prop::sample::select(values);
    prop_oneof![
        Just(json!({})),
        value.clone().prop_map(move |v| json!({"matchLabels": {key: v}})),
        (any::<bool>(), prop::collection::vec(value, 1..3)).prop_map(move |(is_in, values)| {
            let operator = if is_in { "In" } else { "NotIn" };
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
        }),
    ]
}

fn peer() -> impl Strategy<Value = Json> {
    let pods = || label_selector("app", &LABELS);
    let spaces = || label_selector("kubernetes.io/metadata.name", &SPACES);
    let blocks = || {
        prop::sample::select(
            &["0.0.0.0/0", "10.244.0.0/16", "10.244.0.2/31", "10.244.0.4/30", "198.51.100.0/24", "192.0.2.0/25"][..],
        )
    };
    prop_oneof![
        pods().prop_map(|s| json!({"podSelector": s})),
        spaces().prop_map(|s| json!({"namespaceSelector": s})),
        (pods(), spaces()).prop_map(|(p, n)| json!({"podSelector": p, "namespaceSelector": n})),
        (blocks(), prop::collection::vec(blocks(), 0..3))
            .prop_map(|(b, e)| json!({"ipBlock": {"cidr": b, "except": e}})),
        Just(json!({"ipBlock": {"cidr": "2001:db8::/32"}})),
        Just(
            json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}})
        ),
    ]
}

fn port() -> impl Strategy<Value = Json> {
    let protocol = prop::sample::select(&["TCP", "UDP", "SCTP"][..]);
    let number = prop::sample::select(&PORTS[..]);
    (protocol, number.clone(), number, 0..5).prop_map(|(protocol, a, b, kind)| match kind {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": "web"}),
        2 => json!({"protocol": protocol, "port": "dns"}),
        3 => json!({"protocol": protocol, "port": a.min(b), "endPort": a.max(b)}),
        _ => json!({"port": a}),
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Json> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
    prop::collection::vec(rule.prop_map(move |(p, ports)| json!({peers: p, "ports": ports})), 0..3).prop_map(Json::from)
}

fn policy() -> impl Strategy<Value = (usize, Json)> {
    let types = prop_oneof![
        Just(None),
        Just(Some(json!(["Ingress"]))),
        Just(Some(json!(["Egress"]))),
        Just(Some(json!(["Ingress", "Egress"])))
    ];
    (0..SPACES.len(), label_selector("app", &LABELS), rules("from"), rules("to"), types).prop_map(
        |(space, selector, ingress, egress, types)| {
            let mut spec = json!({"podSelector": selector, "ingress": ingress, "egress": egress});
            if let Some(types) = types {
                spec["policyTypes"] = types;
            }
            (space, spec)
        },
    )
}

fn world() -> impl Strategy<Value = Scene> {
    let pod = (0..SPACES.len(), 0..LABELS.len(), prop::sample::select(&PORTS[..]));
    (prop::collection::vec(pod, 1..6), prop::collection::vec(policy(), 0..5))
        .prop_map(|(pods, policies)| Scene { pods, policies })
}

fn cluster(world: &Scene) -> Cluster {
    let mut cluster = Cluster::default();
    for space in SPACES {
        let labels = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), space.to_owned())]);
        cluster.namespaces.insert((String::new(), space.to_owned()), labels);
    }
    for (index, (space, label, web)) in world.pods.iter().enumerate() {
        let pod = model::Pod {
            uid: format!("uid-{index}"),
            node: String::new(),
            labels: BTreeMap::from([("app".to_owned(), LABELS[*label].to_owned())]),
            ip: Some(address(index)),
            ports: vec![model::NamedPort { name: "web".to_owned(), protocol: Protocol::Tcp, number: *web }],
        };
        cluster.pods.insert((SPACES[*space].to_owned(), format!("p{index}")), Arc::new(pod));
    }
    for (index, (space, spec)) in world.policies.iter().enumerate() {
        let object: NetworkPolicy = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        cluster.policies.insert((SPACES[*space].to_owned(), format!("n{index}")), Policy::from_api(&object));
    }
    cluster
}

fn site() -> Site {
    Site::new(&NetConfig::new("a1b2c3", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()), NODE)
}

proptest! {
    #[test]
    fn rules_allow_what_the_policies_allow(world in world()) {
        let rules = compile(&site(), &cluster(&world), None).rules;
        let mut all: Vec<Ipv4Addr> = (0..world.pods.len()).map(address).collect();
        all.extend([OUTSIDE, NODE, dns()]);
        for client in all.iter().filter(|client| **client != dns()) {
            for server in &all {
                let is_pod = |ip: Ipv4Addr| who(&world, ip).is_some() && ip != dns();
                if !is_pod(*client) && !is_pod(*server) {
                    continue;
                }
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    for port in PORTS {
                        let c = Connection { client: *client, server: *server, protocol, port };
                        let local = |ip: Ipv4Addr| ip == NODE || ip == dns();
                        let hook = if local(*server) { "policy_input" } else if local(*client) { "policy_output" } else { "policy_forward" };
                        prop_assert_eq!(client == server || allows(&rules, hook, &c), oracle(&world, &c), "{:?}", c);
                    }
                }
            }
        }
    }

    #[test]
    fn a_pod_more_changes_elements_only(world in world()) {
        let before = compile(&site(), &cluster(&world), None).rules;
        let mut more = world.clone();
        // One like the last, whatever policies select that.
        let last = *world.pods.last().unwrap();
        more.pods.push(last);
        let after = compile(&site(), &cluster(&more), Some(&before)).rules;
        prop_assert_eq!(&before.chains, &after.chains);
        let mut model = before.clone();
        model.apply(&diff(&before, &after));
        prop_assert_eq!(model, after);
    }
}
