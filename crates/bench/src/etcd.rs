//! A peer: Debian's etcd, driven over gRPC by the same number of clients.
//!
//! A put is one protobuf message behind a five-byte prefix over HTTP/2 (gRPC over HTTP2, "Requests"), small enough to
//! write by hand.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::engine::command;

/// A running etcd on loopback, ended when dropped.
pub struct Etcd {
    child: Child,
    _dir: tempfile::TempDir,
    port: u16,
}

impl Etcd {
    /// Starts etcd on the same disk as the engine; none if it is not installed.
    pub async fn start() -> Result<Option<Self>> {
        let dir = tempfile::Builder::new().prefix("etcd-bench-").tempdir_in("/var/lib")?;
        let (port, peer) = (free_port()?, free_port()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let spawned = command("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &url(port), "--advertise-client-urls", &url(port)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &format!("default={}", url(peer)), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else { return Ok(None) };
        let etcd = Self { child, _dir: dir, port };
        for _ in 0..200 {
            if let Ok(mut client) = etcd.client().await
                && client.put("ready", b"yes").await.is_ok()
            {
                return Ok(Some(etcd));
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        anyhow::bail!("etcd did not become ready")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection of its own.
    pub async fn client(&self) -> Result<Client> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Client { sender, authority: format!("127.0.0.1:{}", self.port) })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One gRPC connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Client {
    /// `etcdserverpb.KV/Put`; returns when etcd has it on disk.
    pub async fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let request = Request::post(format!("http://{}/etcdserverpb.KV/Put", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message(key.as_bytes(), value)))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let collected = response.into_body().collect().await?;
        let status = collected.trailers().and_then(|t| t.get("grpc-status")).context("no grpc-status")?;
        ensure!(status == "0", "etcd answered grpc-status {status:?}");
        Ok(())
    }
}

/// `PutRequest { bytes key = 1; bytes value = 2; }` as one uncompressed gRPC message.
fn message(key: &[u8], value: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    for (tag, field) in [(0x0a, key), (0x12, value)] {
        body.put_u8(tag);
        let mut length = field.len();
        while length >= 0x80 {
            body.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        body.put_u8(length as u8);
        body.put_slice(field);
    }
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    framed.put_u8(0);
    framed.put_u32(body.len() as u32);
    framed.put(body);
    framed.freeze()
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
