//! One HTTPS request to a webhook: where it is, whom to trust, how long to wait.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body;
use crate::proxy;
use crate::server::Inner;

/// The largest answer that is read.
const ANSWER_MAX: usize = 4 << 20;

/// Where a webhook is reached.
struct Place {
    /// As errors show it.
    shown: String,
    /// What to connect to.
    authority: String,
    /// The name its certificate must have.
    host: String,
    path: String,
    tls: bool,
}

/// Posts a review to a webhook and returns its answer. Errors read like those of Kubernetes' client.
pub fn post<'a>(
    server: &'a Arc<Inner>,
    client: &'a Value,
    body: Value,
    timeout: Duration,
) -> BoxFuture<'a, Result<Value, String>> {
    Box::pin(async move {
        let place = place(server, client, timeout)?;
        let shown = place.shown.clone();
        let wrap = |why: String| format!("Post {shown:?}: {why}");
        let answer = tokio::time::timeout(timeout, exchange(server, client, place, body)).await;
        let bytes = match answer {
            Ok(outcome) => outcome.map_err(wrap)?,
            Err(_) => return Err(wrap("context deadline exceeded".to_owned())),
        };
        serde_json::from_slice(&bytes).map_err(|why| format!("couldn't get version/kind; json parse error: {why}"))
    })
}

fn place(server: &Inner, client: &Value, timeout: Duration) -> Result<Place, String> {
    let seconds = timeout.as_secs();
    if let Some(url) = client["url"].as_str() {
        let uri: Uri = url.parse().map_err(|why| format!("Unparsable webhook URL: {why}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let query = if uri.query().is_some() { "&" } else { "?" };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let shown = format!("{url}{query}timeout={seconds}s");
        return Ok(Place { shown, authority, host, path: format!("{path}{query}timeout={seconds}s"), tls });
    }
    let service = &client["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    let port = service["port"].as_i64().unwrap_or(443);
    let host = format!("{name}.{namespace}.svc");
    let path = if text("path").is_empty() { "/" } else { text("path") };
    let path = format!("/{}?timeout={seconds}s", path.trim_start_matches('/'));
    let shown = format!("https://{host}:{port}{path}");
    let authority = proxy::service(server, namespace, name, port).map_err(|why| format!("Post {shown:?}: {why}"))?;
    Ok(Place { shown, authority, host, path, tls: true })
}

async fn exchange(server: &Inner, client: &Value, place: Place, body: Value) -> Result<Bytes, String> {
    let stream = TcpStream::connect(&place.authority)
        .await
        .map_err(|why| format!("dial tcp {}: connect: {}", place.authority, plain(&why)))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(header::HOST, &place.host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(body::full(body.to_string()))
        .map_err(|why| why.to_string())?;
    if !place.tls {
        return send(TokioIo::new(stream), request).await;
    }
    let config = trust(server, client["caBundle"].as_str().unwrap_or_default())?;
    let name = ServerName::try_from(place.host.clone()).map_err(|why| why.to_string())?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|why| format!("tls: failed to verify certificate: {why}"))?;
    send(TokioIo::new(stream), request).await
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

async fn send<S>(stream: TokioIo<S>, request: Request<body::Body>) -> Result<Bytes, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|why| why.to_string())?;
    // Ends with the call: a webhook that hangs holds nothing of ours once its time is over.
    let connection = tokio::spawn(connection);
    let guard = Guard(connection.abort_handle());
    let response = sender.send_request(request).await.map_err(|_| "EOF".to_owned())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|why| why.to_string())?;
    drop(guard);
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body.to_bytes()).chars().take(200).collect::<String>();
        return Err(match text.trim() {
            "" => format!(
                "the server responded with the status code {} but did not return more information",
                status.as_u16()
            ),
            text => text.to_owned(),
        });
    }
    Ok(body.to_bytes())
}

struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whose certificates count: those of the bundle, else the cluster's own.
fn trust(server: &Inner, bundle: &str) -> Result<ClientConfig, String> {
    let pem = match bundle {
        "" => server.pki.ca_pem().as_bytes().to_vec(),
        bundle => STANDARD.decode(bundle).map_err(|why| why.to_string())?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|why| why.to_string())?).map_err(|why| why.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|why| why.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
