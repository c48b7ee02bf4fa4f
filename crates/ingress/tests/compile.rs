//! From objects, as the API gives them, to the table.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1 as networking;
use mycelium_ingress::annotations::Protocol;
use mycelium_ingress::rules::compile::{Compiled, compile};
use mycelium_ingress::rules::model::{Ingress, ObjectName, Service, Slice, World};
use mycelium_ingress::rules::table::Table;
use proptest::prelude::*;
use serde_json::{Value, json};

fn name(text: &str) -> ObjectName {
    ("ns".to_owned(), text.to_owned())
}

fn ingress(world: &mut World, text: &str, created: &str, annotations: Value, spec: Value) {
    let object: networking::Ingress = serde_json::from_value(json!({
        "metadata": {"name": text, "namespace": "ns", "creationTimestamp": created, "annotations": annotations},
        "spec": spec,
    }))
    .expect("an Ingress");
    world.ingresses.insert(name(text), Arc::new(Ingress::from_api(&object)));
}

fn service(world: &mut World, text: &str, spec: Value, endpoints: &[(&str, bool)]) {
    let object: core::Service =
        serde_json::from_value(json!({"metadata": {"name": text}, "spec": spec})).expect("a Service");
    let ports: Vec<Value> = spec["ports"].as_array().into_iter().flatten().map(|port| {
        json!({"name": port["name"].as_str().unwrap_or_default(), "port": port["targetPort"], "protocol": port["protocol"]})
    }).collect();
    world.services.insert(name(text), Service::from_api(&object));
    let endpoints: Vec<Value> = endpoints.iter().map(|(address, ready)| {
        json!({"addresses": [address], "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    }).collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": format!("{text}-1"), "namespace": "ns", "labels": {"kubernetes.io/service-name": text}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    }))
    .expect("a slice");
    world.slices.entry(name(text)).or_default().insert("1".into(), Slice::from_api(&slice));
}

fn to(service: &str, port: Value) -> Value {
    json!({"service": {"name": service, "port": port}})
}

fn rule(host: &str, path: &str, kind: &str, service: &str) -> Value {
    let backend = to(service, json!({"number": 80}));
    json!({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}})
}

fn targets(compiled: &Compiled, host: &str, path: &str) -> Option<Vec<String>> {
    let route = compiled.table.route(host, path)?;
    Some(route.backend.targets.iter().map(|target| target.address.to_string()).collect())
}

fn notes(compiled: &Compiled) -> Vec<String> {
    compiled.notes.iter().map(|note| format!("{} {} {}", note.ingress.1, note.reason, note.message)).collect()
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

fn web() -> World {
    let mut world = World::default();
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
        {"name": "rpc", "port": 90, "targetPort": 9090, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
        {"name": "udp", "port": 53, "targetPort": 53, "protocol": "UDP"},
    ]);
    service(&mut world, "web", json!({"ports": ports}), &[("10.0.0.1", true), ("10.0.0.2", true), ("10.0.0.3", false)]);
    service(&mut world, "leaving", json!({"clusterIP": "None", "ports": ports}), &[("10.0.0.4", false)]);
    service(&mut world, "out", json!({"type": "ExternalName", "externalName": "example.com"}), &[]);
    service(&mut world, "inner", json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local"}), &[]);
    world
}

#[test]
fn ports_by_number_and_name_lead_to_ready_endpoints() {
    let mut world = web();
    let path = |path: &str, backend: Value| json!({"path": path, "pathType": "Prefix", "backend": backend});
    let paths = [
        path("/number", to("web", json!({"number": 80}))),
        path("/name", to("web", json!({"name": "rpc"}))),
        path("/leaving", to("leaving", json!({"number": 80}))),
        path("/out", to("out", json!({"number": 443}))),
        path("/inner", to("inner", json!({"number": 80}))),
        path("/udp", to("web", json!({"name": "udp"}))),
        path("/nobody", to("nobody", json!({"number": 80}))),
    ];
    ingress(&mut world, "all", OLD, json!({}), json!({"rules": [{"host": "A.test", "http": {"paths": paths}}]}));
    let compiled = compile(&world, &Table::default());
    let found = |path: &str| targets(&compiled, "a.test", path).expect("a route");
    assert_eq!(found("/number"), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(found("/name"), ["10.0.0.1:9090", "10.0.0.2:9090"]);
    assert_eq!(compiled.table.route("a.test", "/name").expect("a route").backend.protocol, Protocol::Grpc);
    assert_eq!(found("/leaving"), ["10.0.0.4:8080"], "better than nothing");
    assert_eq!(found("/out"), ["example.com:443"]);
    assert_eq!(found("/inner"), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert!(found("/udp").is_empty() && found("/nobody").is_empty());
    let told = notes(&compiled);
    assert!(told.contains(&"all BackendMissing the service ns/web has no TCP port udp".to_owned()), "{told:?}");
    assert!(told.contains(&"all BackendMissing the service ns/nobody does not exist".to_owned()), "{told:?}");
    let again = compile(&world, &compiled.table);
    let backend = |compiled: &Compiled| compiled.table.route("a.test", "/number").expect("a route").backend.clone();
    assert!(Arc::ptr_eq(&backend(&compiled), &backend(&again)), "whose turn it is goes on");
}

#[test]
fn classes_say_whose_an_ingress_is() {
    let mut world = web();
    world.classes.insert("mycelium".into(), "mycelium.network/ingress".into());
    world.classes.insert("mine".into(), "mycelium.network/ingress".into());
    world.classes.insert("theirs".into(), "example.com/other".into());
    for (text, class, annotation) in [
        ("none", None, None),
        ("own", Some("mycelium"), None),
        ("mine", Some("mine"), None),
        ("alias", Some("nginx"), None),
        ("old-alias", None, Some("nginx")),
        ("theirs", Some("theirs"), None),
        ("unknown", Some("traefik"), None),
        ("old-unknown", None, Some("traefik")),
    ] {
        let annotations = annotation.map_or(json!({}), |class| json!({"kubernetes.io/ingress.class": class}));
        let spec = json!({"ingressClassName": class, "rules": [rule(&format!("{text}.test"), "/", "Prefix", "web")]});
        ingress(&mut world, text, OLD, annotations, spec);
    }
    let served =
        |world: &World| compile(world, &Table::default()).served.into_iter().map(|name| name.1).collect::<Vec<_>>();
    assert_eq!(served(&world), ["alias", "mine", "none", "old-alias", "own"]);
    world.classes.insert("nginx".into(), "k8s.io/ingress-nginx".into());
    assert_eq!(served(&world), ["mine", "none", "own"], "a controller of that name is at work");
}

#[test]
fn one_bad_ingress_touches_no_other_and_the_older_wins() {
    let mut world = web();
    let bad =
        json!({"nginx.ingress.kubernetes.io/proxy-body-size": "huge", "nginx.ingress.kubernetes.io/use-regex": "true"});
    let rules = json!({"rules": [
        {"host": "a.test", "http": {"paths": [
            {"path": "/(", "pathType": "ImplementationSpecific", "backend": to("web", json!({"number": 80}))},
            {"path": "/file", "pathType": "Prefix", "backend": {"resource": {"kind": "Bucket", "name": "x"}}},
            {"path": "/good", "pathType": "Prefix", "backend": to("web", json!({"number": 80}))},
        ]}},
    ]});
    ingress(&mut world, "bad", NEW, bad, rules);
    ingress(&mut world, "older", OLD, json!({}), json!({"rules": [rule("a.test", "/good", "Prefix", "leaving")]}));
    let compiled = compile(&world, &Table::default());
    assert_eq!(compiled.table.route("a.test", "/good").expect("a route").ingress, name("older"));
    assert!(compiled.table.route("a.test", "/(").is_none());
    let told = notes(&compiled).join("\n");
    for expected in [
        "bad Conflict the path /good",
        "bad NotServed nginx.ingress.kubernetes.io/proxy-body-size: its value \"huge\"",
        "bad NotServed the path /( is not a pattern",
        "bad NotServed the path /file leads to a resource",
    ] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }
}

#[test]
fn default_backends_take_what_nothing_matches() {
    let mut world = web();
    let own = json!({"defaultBackend": to("leaving", json!({"number": 80})), "rules": [rule("a.test", "/x", "Exact", "web")]});
    ingress(&mut world, "own", OLD, json!({}), own);
    ingress(&mut world, "all", OLD, json!({}), json!({"defaultBackend": to("web", json!({"number": 80}))}));
    let compiled = compile(&world, &Table::default());
    assert_eq!(targets(&compiled, "a.test", "/other").expect("a route"), ["10.0.0.4:8080"]);
    assert_eq!(targets(&compiled, "b.test", "/").expect("a route").len(), 2);
}

#[test]
fn certificates_are_asked_for_by_annotation_only() {
    let mut world = web();
    let spec = |secret: &str, hosts: Value| json!({"tls": [{"hosts": hosts, "secretName": secret}], "rules": [rule("a.test", "/", "Prefix", "web")]});
    ingress(&mut world, "plain", OLD, json!({}), spec("one", json!(["a.test"])));
    ingress(
        &mut world,
        "manager",
        OLD,
        json!({"cert-manager.io/issuer": "x"}),
        spec("two", json!(["B.test", "*.c.test"])),
    );
    ingress(&mut world, "us", OLD, json!({"mycelium.network/issue-certificate": "true"}), spec("two", Value::Null));
    ingress(&mut world, "no", OLD, json!({"kubernetes.io/tls-acme": "false"}), spec("three", json!(["a.test"])));
    let compiled = compile(&world, &Table::default());
    let wanted: Vec<_> =
        compiled.wanted.iter().map(|w| (w.secret.1.as_str(), w.hosts.join(","), w.of_cert_manager)).collect();
    assert_eq!(wanted, [("two", "*.c.test,a.test,b.test".to_owned(), false)]);
    assert!(notes(&compiled).iter().any(|note| note.starts_with("plain CertificateMissing")));
    assert!(compiled.table.route("a.test", "/").expect("a route").secure);
}

fn some_ingress() -> impl Strategy<Value = (u8, String, String, usize, Option<&'static str>)> {
    let host = prop::sample::select(vec!["", "a.test", "*.test", "b.test"]).prop_map(str::to_owned);
    let path = prop::sample::select(vec!["/", "/a", "/a/b", "/("]).prop_map(str::to_owned);
    let annotation = prop::sample::select(vec![None, Some("proxy-body-size"), Some("auth-type"), Some("use-regex")]);
    (0_u8..4, host, path, 0_usize..3, annotation)
}

proptest! {
    /// Whatever Ingresses there are: what is served is served for the oldest that wants it, and each is told of its own faults.
    #[test]
    fn the_oldest_has_each_path(all in prop::collection::vec(some_ingress(), 0..10)) {
        let mut world = web();
        for (index, (age, host, path, kind, annotation)) in all.iter().enumerate() {
            let kind = ["Exact", "Prefix", "ImplementationSpecific"][*kind];
            let annotations = annotation.map_or(json!({}), |name| json!({format!("nginx.ingress.kubernetes.io/{name}"): "?"}));
            let spec = json!({"rules": [rule(host, path, kind, "web")]});
            ingress(&mut world, &format!("i{index}"), &format!("2026-01-0{}T00:00:00Z", age + 1), annotations, spec);
        }
        let compiled = compile(&world, &Table::default());
        prop_assert_eq!(compiled.served.len(), all.len());
        for (index, (age, host, path, kind, _)) in all.iter().enumerate() {
            let same = |other: &(usize, &(u8, String, String, usize, Option<&str>))| (&other.1.1, &other.1.2, other.1.3) == (host, path, *kind);
            let oldest = all.iter().enumerate().filter(|other| same(other)).min_by_key(|(i, other)| (other.0, format!("i{i}")));
            let has_it = oldest.is_some_and(|(oldest, _)| oldest == index);
            let conflict = compiled.notes.iter().any(|note| note.ingress.1 == format!("i{index}") && note.reason == "Conflict");
            prop_assert_eq!(has_it, !conflict, "i{} made on day {}", index, age + 1);
        }
    }
}
