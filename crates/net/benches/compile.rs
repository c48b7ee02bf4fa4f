//! How long rules for a large cluster take, and what one changed endpoint costs.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use mycelium_net::NetConfig;
use mycelium_net::cluster::{Cluster, Endpoint, Service, ServicePort, Slice, SlicePort};
use mycelium_net::compile::{Site, compile};
use mycelium_net::ruleset::{Protocol, Ruleset, diff};

const SERVICES: u32 = 1000;

fn site() -> Site {
    let config =
        NetConfig::new("a1b2c3", "10.244.0.0/16".parse().expect("a range"), "10.96.0.0/12".parse().expect("a range"));
    Site::new(&config, Ipv4Addr::new(192, 0, 2, 2))
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for n in 0..SERVICES {
        let name = ("default".to_owned(), format!("service-{n}"));
        let port = ServicePort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let cluster_ip = Some(Ipv4Addr::from(0x0a60_1000 + n));
        cluster.services.insert(name.clone(), Service { cluster_ip, ports: vec![port], ..Service::default() });
        let endpoint = |m| Endpoint {
            address: Ipv4Addr::from(0x0af4_1000 + 2 * n + m),
            ready: true,
            serving: true,
            terminating: false,
            hostname: None,
            node: None,
        };
        let ports = vec![SlicePort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 8080 }];
        cluster
            .slices
            .entry(name)
            .or_default()
            .insert("a".to_owned(), Slice { ports, endpoints: vec![endpoint(0), endpoint(1)] });
    }
    cluster
}

fn bench(c: &mut Criterion) {
    let (site, before) = (site(), cluster());
    let mut after = before.clone();
    let slices = after.slices.values_mut().nth(500).and_then(|slices| slices.values_mut().next());
    slices.expect("a slice").endpoints[0].address = Ipv4Addr::new(10, 244, 200, 1);
    let old = compile(&site, &before, None).rules;
    let change = diff(&old, &compile(&site, &after, Some(&old)).rules);
    assert!(change.element_count() <= 4, "one endpoint is a backend and a hairpin pair: {change:?}");

    c.bench_function("compile 1000 services", |b| b.iter(|| compile(&site, black_box(&before), None)));
    c.bench_function("compile and diff one changed endpoint of 1000 services", |b| {
        b.iter(|| diff(&old, &compile(&site, black_box(&after), Some(&old)).rules).render("t"));
    });
    c.bench_function("render all of 1000 services", |b| {
        b.iter(|| diff(&Ruleset::default(), black_box(&old)).render("t"))
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
