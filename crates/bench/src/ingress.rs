//! The ingress proxy under wrk, beside Debian's nginx as a reverse proxy before the same upstream.
//!
//! Upstream is an nginx of its own that answers with a kilobyte. Both proxies keep connections to it, add the usual headers
//! and take turns, three rounds each, so that what else the machine does falls on both.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::engine::{Engine, command};
use crate::report::Report;

const ROUNDS: usize = 3;
const HOST: &str = "bench.test";

/// An nginx in a directory of its own, ended when dropped.
struct Nginx {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Nginx {
    fn start(workers: &str, http: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mycelium-bench-").tempdir()?;
        let path = dir.path().display();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {path}/{kind};"));
        let config = format!(
            "daemon off; pid {path}/pid; error_log {path}/log; worker_processes {workers};\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000; {} {http} }}\n",
            temporary.join(" ")
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let child = command("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn().context("nginx")?;
        Ok(Self { child, _dir: dir })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master ends the workers.
        let _ = command("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// A port that is free at an address.
fn free_port(ip: IpAddr) -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((ip, 0))?.local_addr()?)
}

/// What wrk saw.
struct Load {
    per_second: f64,
    p99_ms: f64,
}

fn load(address: SocketAddr) -> Result<Load> {
    let url = format!("http://{address}/");
    let host = format!("Host: {HOST}");
    let output =
        command("wrk").args(["-t2", "-c64", "-d8s", "--latency", "-H", &host, &url]).output().context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("requests failed:\n{text}");
    }
    let value = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let per_second = value("Requests/sec:").and_then(|v| v.parse().ok()).with_context(|| text.clone())?;
    let p99 = value("99%").context("no latency")?;
    Ok(Load { per_second, p99_ms: milliseconds(p99).with_context(|| text.clone())? })
}

fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

/// Requests per second and 99th percentile of both, in turns.
pub async fn ingress(binary: &Path, report: &mut Report) -> Result<()> {
    let engine = Engine::start(binary, |_| Ok(()))?;
    let client = engine.client().await?;
    let nodes = Api::<Node>::all(client.clone()).list(&kube::api::ListParams::default()).await?;
    let addresses = nodes.items.first().and_then(|node| node.status.as_ref()?.addresses.clone()).unwrap_or_default();
    let node: IpAddr = addresses.first().context("the node has no address")?.address.parse()?;
    let upstream = free_port(node)?;
    let body = "m".repeat(1024);
    let _upstream =
        Nginx::start("1", &format!("server {{ listen {upstream}; location / {{ return 200 \"{body}\"; }} }}"))?;
    let peer = free_port(IpAddr::from([127, 0, 0, 1]))?;
    let _peer = Nginx::start(
        "auto",
        &format!(
            "upstream u {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }} server {{ listen {peer}; \
             location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ''; \
             proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Request-ID $request_id; \
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; }} }}"
        ),
    )?;
    let ours = front(&client, upstream).await?;
    until_served(ours).await?;
    let (mut best_ours, mut best_peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        best_ours.push(load(ours)?);
        best_peer.push(load(peer)?);
    }
    let (ours, peer) = (median(best_ours), median(best_peer));
    report.row(
        "ingress proxy, 64 connections, 1 KB",
        format!("{:.0}/s, p99 {:.2} ms, ratio {:.2}", ours.per_second, ours.p99_ms, ours.per_second / peer.per_second),
        ">= 0.7x nginx",
        format!("nginx {:.0}/s, p99 {:.2} ms", peer.per_second, peer.p99_ms),
    );
    Ok(())
}

fn median(mut loads: Vec<Load>) -> Load {
    loads.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    loads.swap_remove(loads.len() / 2)
}

/// An Ingress whose service leads to the upstream; returns where the proxy listens.
async fn front(client: &kube::Client, upstream: SocketAddr) -> Result<SocketAddr> {
    let parameters = PostParams::default();
    let service = json!({"metadata": {"name": "bench"}, "spec": {"ports": [{"port": 80}]}});
    Api::<Service>::namespaced(client.clone(), "default")
        .create(&parameters, &serde_json::from_value(service)?)
        .await?;
    let slice = json!({
        "metadata": {"name": "bench", "labels": {"kubernetes.io/service-name": "bench"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [upstream.ip()]}], "ports": [{"port": upstream.port()}],
    });
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
    slices.create(&parameters, &serde_json::from_value(slice)?).await?;
    let backend = json!({"service": {"name": "bench", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "bench"}, "spec": {"rules": [
        {"host": HOST, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}},
    ]}});
    Api::<Ingress>::namespaced(client.clone(), "default")
        .create(&parameters, &serde_json::from_value(ingress)?)
        .await?;
    for _ in 0..100 {
        let class = Api::<IngressClass>::all(client.clone()).get_opt("mycelium").await?;
        let address = class.and_then(|class| class.metadata.annotations?.remove("mycelium.network/ingress-http"));
        if let Some(address) = address.and_then(|text| text.parse().ok()) {
            return Ok(address);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the proxy does not listen")
}

async fn until_served(address: SocketAddr) -> Result<()> {
    for _ in 0..100 {
        let host = format!("Host: {HOST}");
        let curl =
            command("curl").args(["-fsS", "-o", "/dev/null", "-H", &host, &format!("http://{address}/")]).output()?;
        if curl.status.success() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the proxy does not serve the upstream")
}
