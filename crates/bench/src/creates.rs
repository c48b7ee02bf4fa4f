//! Durable creates per second of the whole API server over TLS, beside etcd's puts without TLS.
//!
//! Both sides share the machine with the load that is put on them, so each client does as little as it can: a request
//! of bytes that are ready, on a connection of its own, the answer read and its status looked at. Ours speaks HTTP/1.1
//! and has to encrypt; etcd's speaks gRPC (see [`crate::etcd`]).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::engine::{Engine, cpu};
use crate::etcd::Etcd;
use crate::report::Report;

const CLIENTS: usize = 64;
const OBJECT_BYTES: usize = 1024;
const SPAN: Duration = Duration::from_secs(6);
/// Both sides take turns, so that what else the machine does meets both.
const ROUNDS: usize = 3;

/// What one side did in one round.
#[derive(Clone, Copy)]
struct Load {
    per_second: f64,
    /// Processor time per write, in microseconds.
    server_us: f64,
    client_us: f64,
}

impl Load {
    fn show(&self) -> String {
        format!("{:.0}/s ({:.0} µs CPU each, its client {:.0})", self.per_second, self.server_us, self.client_us)
    }
}

/// Creates of ours and puts of etcd, by turns.
pub async fn creates(binary: &Path, report: &mut Report) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(engine_creates(binary).await?);
        if let Some(etcd) = Etcd::start().await? {
            theirs.push(etcd_puts(&etcd).await?);
        }
    }
    let ours = median(ours).context("no round")?;
    let peer = match median(theirs) {
        Some(theirs) => format!("etcd {}; ratio {:.2}", theirs.show(), ours.per_second / theirs.per_second),
        None => "etcd is not installed".to_owned(),
    };
    report.row("durable creates per second, 64 clients, 1 KB", ours.show(), ">= 2x etcd", peer);
    Ok(())
}

fn median(mut loads: Vec<Load>) -> Option<Load> {
    loads.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    loads.get(loads.len() / 2).copied()
}

/// Runs every client until the time is over and adds up.
async fn measure<C: Writer>(server: u32, clients: Vec<C>) -> Result<Load> {
    let cpu_before = (cpu(server), cpu(std::process::id()));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for (id, mut client) in clients.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            let mut done = 0_u64;
            while begun.elapsed() < SPAN {
                client.write(&format!("c{id}-{done}")).await?;
                done += 1;
            }
            Ok::<u64, anyhow::Error>(done)
        }));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    let each = |before: Duration, pid: u32| (cpu(pid) - before).as_secs_f64() * 1e6 / total as f64;
    Ok(Load {
        per_second: total as f64 / begun.elapsed().as_secs_f64(),
        server_us: each(cpu_before.0, server),
        client_us: each(cpu_before.1, std::process::id()),
    })
}

/// A client that writes one object and returns when it is durable.
trait Writer: Send + 'static {
    fn write(&mut self, name: &str) -> impl Future<Output = Result<()>> + Send;
}

async fn engine_creates(binary: &Path) -> Result<Load> {
    let engine = Engine::start(binary, |_| Ok(()))?;
    let config = engine.config().await?;
    let tls = TlsConnector::from(std::sync::Arc::new(config.rustls_client_config()?));
    let host = config.cluster_url.host().context("no host")?.to_owned();
    let port = config.cluster_url.port_u16().context("no port")?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(EngineClient::connect(&tls, &host, port).await?);
    }
    measure(engine.pid(), clients).await
}

struct EngineClient {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    rest: String,
}

impl EngineClient {
    async fn connect(tls: &TlsConnector, host: &str, port: u16) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(host.to_owned())?;
        let stream = tls.connect(name, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let rest = format!("\"}},\"data\":{{\"payload\":\"{}\"}}}}", "x".repeat(OBJECT_BYTES));
        Ok(Self { sender, host: host.to_owned(), rest })
    }
}

impl Writer for EngineClient {
    async fn write(&mut self, name: &str) -> Result<()> {
        let body =
            format!("{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}{}", self.rest);
        let request = Request::post("/api/v1/namespaces/default/configmaps")
            .header("host", &self.host)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(status == 201, "{status}: {}", String::from_utf8_lossy(&answer));
        Ok(())
    }
}

async fn etcd_puts(etcd: &Etcd) -> Result<Load> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(EtcdClient { client: etcd.client().await?, payload: vec![b'x'; OBJECT_BYTES] });
    }
    measure(etcd.pid(), clients).await
}

struct EtcdClient {
    client: crate::etcd::Client,
    payload: Vec<u8>,
}

impl Writer for EtcdClient {
    async fn write(&mut self, name: &str) -> Result<()> {
        self.client.put(name, &self.payload).await
    }
}
