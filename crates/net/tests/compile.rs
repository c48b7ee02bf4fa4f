//! From objects to rules, as data: `compile/NAME.yaml` holds objects, `NAME.nft` what they add to the rules of an empty
//! cluster. `UPDATE=1 cargo test -p mycelium-net --test compile` writes the expected files anew.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use kube::runtime::watcher::Event;
use mycelium_linux::netns;
use mycelium_linux::process::command;
use mycelium_net::NetConfig;
use mycelium_net::cluster::{Cluster, Endpoint, HostPort, Service, ServicePort, Slice, SlicePort};
use mycelium_net::compile::{Site, compile};
use mycelium_net::programmer::Programmer;
use mycelium_net::ruleset::{Protocol, Ruleset, diff};
use mycelium_net::tracker::{Tracker, Update};
use proptest::prelude::*;
use serde_json::Value as Json;

fn site() -> Site {
    let config = NetConfig {
        api: Some("10.244.0.1:6443".parse().unwrap()),
        ..NetConfig::new("a1b2c3", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap())
    };
    Site::new(&config, Ipv4Addr::new(192, 0, 2, 2))
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile");
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    found.sort();
    found
}

fn load(path: &Path) -> Cluster {
    let objects: Vec<Json> = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut tracker = Tracker::default();
    for object in objects {
        let update = match object["kind"].as_str().unwrap() {
            "Service" => Update::Service(Event::Apply(serde_json::from_value(object).unwrap())),
            "EndpointSlice" => Update::Slice(Event::Apply(serde_json::from_value(object).unwrap())),
            "Pod" => Update::Pod(Event::Apply(serde_json::from_value(object).unwrap())),
            "NetworkPolicy" => Update::Policy(Event::Apply(serde_json::from_value(object).unwrap())),
            "Namespace" => Update::Namespace(Event::Apply(serde_json::from_value(object).unwrap())),
            other => panic!("no {other} here"),
        };
        tracker.update(update);
    }
    tracker.cluster
}

/// One element a line, so that a difference shows.
fn readable(text: &str) -> String {
    text.replace(", ", ",\n    ")
}

#[test]
fn objects_become_the_expected_rules() {
    let empty = compile(&site(), &Cluster::default(), None).rules;
    for path in cases() {
        let rules = compile(&site(), &load(&path), None).rules;
        let base = if path.ends_with("empty.yaml") { Ruleset::default() } else { empty.clone() };
        let actual = readable(&diff(&base, &rules).render("t"));
        let expected = path.with_extension("nft");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, actual).unwrap();
        } else {
            assert_eq!(actual, fs::read_to_string(&expected).unwrap(), "{}", path.display());
        }
    }
}

/// Of three endpoints, one is on the second node, one on the first, and one somewhere.
const ENDPOINTS: &str = r#"
- {kind: Service, apiVersion: v1, metadata: {name: web, namespace: d}, spec: {type: NodePort, clusterIP: 10.96.0.20,
   POLICIES ports: [{name: http, port: 80, nodePort: 30080}]}}
- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4,
   metadata: {name: web-1, namespace: d, labels: {kubernetes.io/service-name: web}}, ports: [{name: http, port: 8080}],
   endpoints: [{addresses: [10.244.0.7], nodeName: a}, {addresses: [10.244.16.7], nodeName: b}, {addresses: [10.244.32.7]}]}
- {kind: Pod, apiVersion: v1, metadata: {name: p, namespace: d}, status: {phase: Running, podIP: 10.244.16.9},
   spec: {nodeName: b, containers: [{name: c, ports: [{containerPort: 80, hostPort: 8000}]}]}}
"#;

fn rules_of(number: u32, name: &str, policies: &str) -> String {
    let machine = NetConfig::new("a1b2c3", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap());
    let config = machine.of_node(1, "a").unwrap().of_node(number, name).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), ENDPOINTS.replace("POLICIES", policies)).unwrap();
    let rules = compile(&Site::new(&config, config.gateway()), &load(file.path()), None).rules;
    diff(&Ruleset::default(), &rules).render("t")
}

#[test]
fn each_node_compiles_the_cluster_for_itself() {
    let (first, second) = (rules_of(1, "a", ""), rules_of(2, "b", ""));
    for rules in [&first, &second] {
        for backend in ["10.244.0.7", "10.244.16.7", "10.244.32.7"] {
            assert!(rules.contains(&format!("{backend} . 8080")), "{backend} is reached from everywhere:\n{rules}");
        }
    }
    assert!(
        !first.contains("10.244.16.9 . 80") && second.contains("10.244.16.9 . 80"),
        "host ports are the node's own"
    );
    let hidden = "ip saddr != 10.244.16.0/20 ip daddr 10.244.0.0/16 ip daddr != 10.244.16.0/20 snat to 10.244.16.1";
    assert!(second.contains(&format!("ct status dnat {hidden}")), "{second}");
    assert!(first.contains("ct status dnat ip saddr 10.244.0.0/16 ip saddr != 10.244.0.0/20"), "{first}");
    assert!(
        second.contains("ip saddr 10.244.0.0/16 oifname != \"lo\" oifname != \"mya1b2c3*\" masquerade"),
        "{second}"
    );
}

#[test]
fn local_policies_keep_to_the_node() {
    let near = rules_of(2, "b", "internalTrafficPolicy: Local,");
    assert!(near.contains("10.96.0.20 . tcp . 80 . 0 : 10.244.16.7 . 8080"), "{near}");
    assert!(!near.contains("10.96.0.20 . tcp . 80 . 1"), "{near}");
    assert!(near.contains("tcp . 30080 . 2"), "node ports lead everywhere:\n{near}");
    let outer = rules_of(2, "b", "externalTrafficPolicy: Local,");
    assert!(outer.contains("10.96.0.20 . tcp . 80 . 2"), "{outer}");
    assert!(outer.contains("tcp . 30080 . 0 : 10.244.16.7 . 8080") && !outer.contains("tcp . 30080 . 1"), "{outer}");
}

fn nft(input: &str) {
    use std::io::Write;
    let mut child = command("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{input}");
}

/// The kernel accepts every case, and every step from one to the next.
#[test]
fn the_kernel_accepts_the_rules_and_the_differences() {
    let namespace = netns::create().expect("this test needs root");
    netns::run_in(&namespace, || {
        let mut current = compile(&site(), &Cluster::default(), None).rules;
        nft(&current.render_replacing("t"));
        let cases = cases();
        for path in cases.iter().chain(cases.iter().rev()) {
            let next = compile(&site(), &load(path), Some(&current)).rules;
            if let Some(text) = next.render_update(&current, "t") {
                nft(&text);
            }
            current = next;
        }
        nft(&current.render_replacing("t"));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_table_changed_by_others_is_noticed() {
    let namespace = netns::create().expect("this test needs root");
    netns::run_in(&namespace, || {
        let mut programmer = Programmer::new("t".to_owned());
        for path in cases() {
            programmer.program(&site(), &load(&path)).unwrap();
            assert!(programmer.intact().unwrap(), "{}", path.display());
        }
        for damage in ["flush chain ip t services", "flush map ip t frontends", "flush ruleset"] {
            nft(damage);
            assert!(!programmer.intact().unwrap(), "{damage}");
            programmer.forget();
            programmer.program(&site(), &Cluster::default()).unwrap();
            assert!(programmer.intact().unwrap());
        }
        Ok(())
    })
    .unwrap();
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    (0u8..12).prop_map(|n| Ipv4Addr::new(10, 244, 0, n))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn service() -> impl Strategy<Value = Service> {
    let port = (protocol(), 1u16..4, prop::option::of(30_000u16..30_004));
    let port = port.prop_map(|(protocol, port, node_port)| ServicePort {
        name: format!("p{port}"),
        protocol,
        port,
        node_port,
    });
    let parts = (
        0u8..8,
        prop::collection::vec(port, 0..3),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(1u32..3),
        any::<bool>(),
    );
    parts.prop_map(|(ip, ports, external, load_balancer, affinity_s, limited)| Service {
        cluster_ip: (ip > 0).then(|| Ipv4Addr::new(10, 96, 1, ip)),
        headless: ip == 0,
        external_ips: if external { vec![Ipv4Addr::new(198, 51, 100, ip)] } else { Vec::new() },
        load_balancer,
        source_ranges: if limited { vec!["198.51.100.0/24".parse().unwrap()] } else { Vec::new() },
        affinity_s,
        ports,
        ..Service::default()
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let endpoint = (address(), any::<bool>(), any::<bool>(), any::<bool>());
    let endpoint = endpoint.prop_map(|(address, ready, serving, terminating)| Endpoint {
        address,
        ready,
        serving,
        terminating,
        hostname: None,
        node: None,
    });
    let port = (1u16..4, protocol(), 8000u16..8003).prop_map(|(name, protocol, port)| SlicePort {
        name: format!("p{name}"),
        protocol,
        port,
    });
    (prop::collection::vec(port, 0..4), prop::collection::vec(endpoint, 0..6))
        .prop_map(|(ports, endpoints)| Slice { ports, endpoints })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let name = || (0u8..5).prop_map(|n| ("d".to_owned(), format!("s{n}")));
    let host_port = (address(), protocol(), 80u16..82).prop_map(|(pod_ip, protocol, host_port)| HostPort {
        host_ip: None,
        host_port,
        protocol,
        pod_ip,
        container_port: 8080,
        node: "".into(),
    });
    (
        prop::collection::btree_map(name(), service(), 0..5),
        prop::collection::btree_map(name(), prop::collection::btree_map("[ab]", slice(), 0..3), 0..5),
        prop::collection::btree_map(name(), prop::collection::vec(host_port, 0..2), 0..3),
    )
        .prop_map(|(services, slices, host_ports)| Cluster { services, slices, host_ports, ..Cluster::default() })
}

/// Every frontend that picks by number has a backend for each number, and each is one that should get connections.
fn consistent(rules: &Ruleset, cluster: &Cluster) {
    for (frontends, backends) in [("frontends", "backends"), ("node_ports", "node_backends")] {
        let elements = &rules.sets[backends].elements;
        let wanted: usize = rules.sets[frontends]
            .elements
            .values()
            .map(|value| match value {
                mycelium_net::ruleset::Value::Goto(chain) => {
                    chain.split_once("pick_").map_or(0, |(_, count)| count.parse().unwrap())
                }
                other => panic!("{other:?}"),
            })
            .sum();
        let behind_limits = rules.chains.keys().any(|name| name.starts_with("limited/"));
        assert!(elements.len() == wanted || behind_limits && elements.len() > wanted, "{frontends}");
    }
    let good = |address: Ipv4Addr| {
        let endpoints = cluster.slices.values().flat_map(|slices| slices.values()).flat_map(|slice| &slice.endpoints);
        let pods = cluster.host_ports.values().flatten().any(|port| port.pod_ip == address);
        pods || address == Ipv4Addr::new(10, 244, 0, 1)
            || endpoints.filter(|e| e.address == address).any(|e| e.ready || e.serving && e.terminating)
    };
    for value in rules.sets["backends"].elements.values().chain(rules.sets["node_backends"].elements.values()) {
        assert!(matches!(value, mycelium_net::ruleset::Value::Backend(address, _) if good(*address)));
    }
}

proptest! {
    #[test]
    fn the_difference_leads_from_one_ruleset_to_the_other(a in cluster(), b in cluster()) {
        let from = compile(&site(), &a, None).rules;
        let to = compile(&site(), &b, Some(&from)).rules;
        let mut model = from.clone();
        model.apply(&diff(&from, &to));
        prop_assert_eq!(&model, &to);
        prop_assert!(diff(&to, &to).is_empty());
        consistent(&to, &b);
        // Which numbers backends have depends on history; which backends there are does not.
        let fresh = compile(&site(), &b, None).rules;
        let values = |rules: &Ruleset| {
            let mut all: Vec<String> = rules.sets["backends"].elements.values().map(ToString::to_string).collect();
            all.sort();
            all
        };
        prop_assert_eq!(values(&fresh), values(&to));
        prop_assert_eq!(&fresh.chains, &to.chains);
    }
}
