//! The requests of probes and hooks: HTTP, HTTPS without regard to certificates, gRPC health, TCP.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mycelium_unverified::{Proof, client};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};

/// What is kept of an answer.
const BODY_BYTES_MAX: usize = 10 << 10;

/// A result: good, or bad with the reason in words.
pub type Answer = Result<(), String>;

/// The number of a port given by number or name.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    let shown = match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("couldn't find port: {shown} in container {}", container.name))
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The network namespace from which a connection goes out; none is this process's own.
pub type From<'a> = Option<&'a OwnedFd>;

async fn connect(address: &str, from: From<'_>) -> io::Result<TcpStream> {
    let Some(namespace) = from else { return TcpStream::connect(address).await };
    let mut found = tokio::net::lookup_host(address).await?;
    let to = found.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let socket = mycelium_linux::netns::stream_socket(namespace, to.is_ipv6())?;
    TcpSocket::from_std_stream(socket).connect(to).await
}

async fn dial(host: &str, port: u16, from: From<'_>) -> Result<TcpStream, String> {
    let address = address(host, port);
    let refused = |e: std::io::Error| {
        let reason = match e.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
            _ => e.to_string(),
        };
        format!("dial tcp {address}: connect: {reason}")
    };
    connect(&address, from).await.map_err(refused)
}

/// Whether something listens.
pub async fn tcp(host: &str, port: u16, timeout: Duration, from: From<'_>) -> Answer {
    match tokio::time::timeout(timeout, dial(host, port, from)).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(format!("dial tcp {}: i/o timeout", address(host, port))),
    }
}

/// Whether an HTTP request is answered with a code from 200 to 399. Returns the words for the event otherwise.
pub async fn get(action: &HTTPGetAction, host: &str, port: u16, timeout: Duration, from: From<'_>) -> Answer {
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(host);
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{}://{}{path}", if secure { "https" } else { "http" }, address(host, port));
    let late = || format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    match tokio::time::timeout(timeout, request(action, (host, port), secure, &path, from)).await {
        Err(_) => Err(late()),
        Ok(Err(reason)) => Err(format!("Get \"{url}\": {reason}")),
        Ok(Ok(code)) if (200..400).contains(&code) => Ok(()),
        Ok(Ok(code)) => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

async fn request(
    action: &HTTPGetAction,
    (host, port): (&str, u16),
    secure: bool,
    path: &str,
    from: From<'_>,
) -> Result<u16, String> {
    let mut request = http::Request::get(path);
    let mut has = (false, false, false);
    for header in action.http_headers.iter().flatten() {
        has.0 |= header.name.eq_ignore_ascii_case("host");
        has.1 |= header.name.eq_ignore_ascii_case("user-agent");
        has.2 |= header.name.eq_ignore_ascii_case("accept");
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    if !has.0 {
        request = request.header(http::header::HOST, address(host, port));
    }
    if !has.1 {
        request = request.header(http::header::USER_AGENT, "kube-probe/1.35");
    }
    if !has.2 {
        request = request.header(http::header::ACCEPT, "*/*");
    }
    let request =
        request.header(http::header::CONNECTION, "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let stream = dial(host, port, from).await?;
    if secure {
        let stream = over_tls(host, stream).await?;
        exchange(TokioIo::new(stream), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    }
}

async fn exchange<I>(io: I, request: http::Request<Empty<Bytes>>) -> Result<u16, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let code = answer.status().as_u16();
    // Read politely, so that the server does not log a broken connection.
    let _ = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
    connection.abort();
    Ok(code)
}

/// With any certificate: a probe asks whether the container answers, not who it is.
async fn over_tls(host: &str, stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let config = client(Proof::Spared).map_err(|e| e.to_string())?.with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
}

/// Names of `grpc.health.v1.HealthCheckResponse.ServingStatus`, by number.
const SERVING: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Whether a gRPC server says that it serves.
pub async fn grpc(action: &GRPCAction, host: &str, timeout: Duration, from: From<'_>) -> Answer {
    let port = u16::try_from(action.port).map_err(|_| format!("port {} is out of range", action.port))?;
    let late = || {
        let (address, limit) = (address(host, port), timeout.as_secs());
        format!("timeout: failed to connect service \"{address}\" within {limit}s: context deadline exceeded")
    };
    let service = action.service.as_deref().unwrap_or_default();
    match tokio::time::timeout(timeout, health(host, port, service, from)).await {
        Err(_) => Err(late()),
        Ok(Err(reason)) => Err(format!("error: {reason}")),
        Ok(Ok(1)) => Ok(()),
        Ok(Ok(status)) => {
            let name = SERVING.get(status as usize).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

async fn health(host: &str, port: u16, service: &str, from: From<'_>) -> Result<u64, String> {
    let stream = dial(host, port, from).await?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/grpc.health.v1.Health/Check", address(host, port)))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(Full::new(health_request(service)))
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    // An error without a message has its code in the headers.
    let early = answer.headers().get("grpc-status").cloned();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    connection.abort();
    let code = early.as_ref().or_else(|| body.trailers()?.get("grpc-status"));
    let code = code.and_then(|v| v.to_str().ok()).unwrap_or("0");
    if code != "0" {
        return Err(format!("rpc error: code = {code}"));
    }
    Ok(serving_status(&body.to_bytes()))
}

/// A gRPC frame with `HealthCheckRequest { service }`.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, length-delimited; Kubernetes bounds names far below 128 bytes, and longer ones are cut.
        let service = &service.as_bytes()[..service.len().min(127)];
        message.extend_from_slice(&[0x0a, service.len() as u8]);
        message.extend_from_slice(service);
    }
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    frame.into()
}

/// Field 1 of `HealthCheckResponse`, 0 when it is absent.
fn serving_status(frame: &[u8]) -> u64 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => u64::from(*status),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages_are_protobuf() {
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), 1);
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), 0);
    }

    #[tokio::test]
    async fn a_closed_port_is_named_as_by_go() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("an address").port();
        assert_eq!(tcp("127.0.0.1", port, Duration::from_secs(1), None).await, Ok(()));
        drop(listener);
        let expected = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(tcp("127.0.0.1", port, Duration::from_secs(1), None).await, Err(expected));
    }
}
