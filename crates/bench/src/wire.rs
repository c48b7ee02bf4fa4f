//! Plain connections to an engine for clients that are to cost little: TLS, and HTTP/2 with nothing above it.
//!
//! The windows are those of Kubernetes' own clients: 4 MiB for a stream, a gigabyte for a connection.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::engine::Engine;

/// Where an engine listens, and who we are there: its administrator.
pub struct Wire {
    tls: TlsConnector,
    host: String,
    port: u16,
}

impl Wire {
    /// To a running engine.
    pub async fn to(engine: &Engine) -> Result<Self> {
        let config = engine.config().await?;
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let host = config.cluster_url.host().context("no host")?.to_owned();
        let port = config.cluster_url.port_u16().context("no port")?;
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)), host, port })
    }

    /// What requests name.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// A new connection on which HTTP/2 is to be spoken.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(self.host.clone())?;
        Ok(self.tls.connect(name, stream).await?)
    }

    /// A new connection for whole requests.
    pub async fn http2(&self) -> Result<Http2> {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(1 << 30)
            .handshake(TokioIo::new(self.connect().await?))
            .await?;
        tokio::spawn(connection);
        Ok(Http2 { sender, authority: self.authority() })
    }
}

/// One connection; clones share it.
#[derive(Clone)]
pub struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Http2 {
    /// Sends a request; the answer's body is still to be read.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header("content-type", media)
            .body(Full::new(body.into()))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request, and gives the whole answer if it is a good one.
    pub async fn call(&self, method: Method, path: &str, media: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let response = self.send(method, path, media, body).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &serde_json::Value) -> Result<Bytes> {
        self.call(Method::POST, path, "application/json", object.to_string()).await
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        self.call(Method::GET, path, "application/json", Bytes::new()).await
    }
}

/// The revision in an answer's first metadata.
pub fn revision(answer: &[u8]) -> Result<u64> {
    let label = b"\"resourceVersion\":\"";
    let at = answer.windows(label.len()).position(|part| part == label).context("no resourceVersion")?;
    let digits = &answer[at + label.len()..];
    let end = digits.iter().position(|byte| *byte == b'"').context("no end")?;
    Ok(std::str::from_utf8(&digits[..end])?.parse()?)
}
