//! The proxy alone, with one Ingress that leads to one upstream: for a profiler, without a cluster.
//!
//! `cargo run --release -p mycelium-ingress --example proxy -- 127.0.0.1:8080 127.0.0.1:9090`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mycelium_api::env::Env;
use mycelium_ingress::proxy::{Shared, serve};
use mycelium_ingress::rules::compile::compile;
use mycelium_ingress::rules::model::{Endpoint, Ingress, Service, ServicePort, Slice, World};
use mycelium_ingress::rules::table::Table;
use serde_json::json;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<SocketAddr>().expect("ADDR:PORT"));
    let (listen, upstream) = (arguments.next().expect("where to listen"), arguments.next().expect("an upstream"));
    let next = AtomicU64::new(1);
    let env = Env::new(|| jiff::Timestamp::UNIX_EPOCH, move || next.fetch_add(1, Ordering::Relaxed));
    let shared = Shared::new(env, Arc::new(|_: &[String]| Err("not here".to_owned())));
    shared.replace(compile(&world(upstream), &Table::default()).table);
    serve::serve(shared, serve::listen(listen).expect("the address is free"), None, std::future::pending()).await;
}

fn world(upstream: SocketAddr) -> World {
    let name = |text: &str| ("default".to_owned(), text.to_owned());
    let ingress = serde_json::from_value(json!({"metadata": {"name": "all"}, "spec": {"rules": [{"http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
    ]}}]}}));
    let port = ServicePort { name: String::new(), port: 80, protocol: None };
    let endpoint = Endpoint { address: upstream.ip(), ready: true, leaving: false };
    let slice = Slice { ports: vec![(String::new(), upstream.port())], endpoints: vec![endpoint] };
    World {
        ingresses: BTreeMap::from([(name("all"), Arc::new(Ingress::from_api(&ingress.expect("an Ingress"))))]),
        services: BTreeMap::from([(name("web"), Service { external_name: None, ports: vec![port] })]),
        slices: BTreeMap::from([(name("web"), BTreeMap::from([("1".to_owned(), slice)]))]),
        ..World::default()
    }
}
