//! A proxy on ports of its own, and backends that behave and misbehave.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, channel::mpsc};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mycelium_api::env::Env;
use mycelium_ingress::Issued;
use mycelium_ingress::certificates::Pair;
use mycelium_ingress::proxy::{Shared, serve};
use mycelium_ingress::rules::compile::compile;
use mycelium_ingress::rules::model::{Endpoint, Ingress, Service, ServicePort, Slice, World};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// An Ingress, and where each of its paths leads.
pub struct Site {
    ingress: Value,
    backends: Vec<Vec<SocketAddr>>,
}

/// An Ingress for a host; each path has a service of its own with these endpoints.
pub fn annotated(name: &str, annotations: Value, host: &str, paths: &[(&str, &str, &[SocketAddr])]) -> Site {
    let pairs = annotations.as_object().expect("a map").iter();
    let annotations: BTreeMap<String, Value> =
        pairs.map(|(key, value)| (format!("{PREFIX}{key}"), value.clone())).collect();
    let rules: Vec<Value> = paths
        .iter()
        .enumerate()
        .map(|(index, (path, kind, _))| {
            json!({"path": path, "pathType": kind,
            "backend": {"service": {"name": format!("{name}-{index}"), "port": {"number": 80}}}})
        })
        .collect();
    let ingress = json!({
        "metadata": {"name": name, "namespace": "ns", "annotations": annotations},
        "spec": {"rules": [{"host": host, "http": {"paths": rules}}]},
    });
    Site { ingress, backends: paths.iter().map(|(_, _, to)| to.to_vec()).collect() }
}

/// The same with a certificate.
pub fn with_tls(mut site: Site, host: &str, secret: &str) -> Site {
    site.ingress["spec"]["tls"] = json!([{"hosts": [host], "secretName": secret}]);
    site
}

/// A certificate and its key, PEM.
pub fn certificate(host: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A running proxy.
pub struct Proxy {
    pub http: SocketAddr,
    pub https: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    pub async fn start() -> Self {
        let random = AtomicU64::new(1);
        let env = Env::new(|| jiff::Timestamp::UNIX_EPOCH, move || random.fetch_add(1, Ordering::Relaxed));
        let issue = |hosts: &[String]| {
            let (cert, key) = certificate(&hosts[0]);
            Ok(Issued { cert, key })
        };
        let shared = Shared::new(env, Arc::new(issue));
        let listen = || serve::listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let (plain, secure) = (listen(), listen());
        let (http, https) = (plain.local_addr().expect("an address"), secure.local_addr().expect("an address"));
        shared.set_https_port(https.port());
        let tls = serve::acceptor(&shared).expect("TLS");
        tokio::spawn(serve::serve(shared.clone(), plain, None, std::future::pending()));
        tokio::spawn(serve::serve(shared.clone(), secure, Some(tls), std::future::pending()));
        Self { http, https, shared }
    }

    pub fn route(&self, sites: &[Site]) {
        self.route_with(sites, &[]);
    }

    pub fn route_with(&self, sites: &[Site], secrets: &[(&str, &(String, String))]) {
        let mut world = World::default();
        for site in sites {
            let ingress: k8s_openapi::api::networking::v1::Ingress =
                serde_json::from_value(site.ingress.clone()).expect("an Ingress");
            let name = ingress.metadata.name.clone().expect("a name");
            for (index, to) in site.backends.iter().enumerate() {
                let key = ("ns".to_owned(), format!("{name}-{index}"));
                let port = ServicePort { name: String::new(), port: 80, protocol: None };
                world.services.insert(key.clone(), Service { external_name: None, ports: vec![port] });
                let slice = |address: &SocketAddr| Slice {
                    ports: vec![(String::new(), address.port())],
                    endpoints: vec![Endpoint { address: address.ip(), ready: true, leaving: false }],
                };
                let slices = to.iter().enumerate().map(|(index, address)| (index.to_string(), slice(address)));
                world.slices.insert(key, slices.collect());
            }
            world.ingresses.insert(("ns".to_owned(), name), Arc::new(Ingress::from_api(&ingress)));
        }
        for (name, (cert, key)) in secrets {
            let pair = Arc::new(Pair::from_pem(cert.as_bytes(), key.as_bytes()));
            world.secrets.insert(("ns".to_owned(), (*name).to_owned()), pair);
        }
        let compiled = compile(&world, &self.shared.table());
        self.shared.replace(compiled.table);
    }

    async fn tls(
        &self,
        host: &str,
        trusted: &(String, String),
        speaks: &[u8],
    ) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.0.as_bytes()).expect("a certificate")).expect("usable");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![speaks.to_vec()];
        let stream = TcpStream::connect(self.https).await.expect("connects");
        let name = ServerName::try_from(host.to_owned()).expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
    }

    /// The first line of the answer; none if the certificate is not the trusted one.
    pub async fn https_get(&self, host: &str, trusted: &(String, String), speaks: &[u8]) -> Option<String> {
        let mut stream = self.tls(host, trusted, speaks).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = Vec::new();
        // The end of the connection may come without TLS' own goodbye.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    }

    /// Whether the protocol is agreed on and serves a request.
    pub async fn https_speaks(&self, host: &str, trusted: &(String, String), speaks: &[u8]) -> bool {
        let Some(stream) = self.tls(host, trusted, speaks).await else { return false };
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(speaks));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::get(format!("https://{host}/")).body(Full::<Bytes>::default()).expect("a request");
        sender.send_request(request).await.expect("an answer").status() == StatusCode::OK
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Answers with its name, the request's line and its headers.
pub async fn backend(name: &'static str) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                let mut text = format!("{name} {} {}\n", request.method(), request.uri());
                for (key, value) in request.headers() {
                    text.push_str(&format!("{key}: {}\n", value.to_str().expect("text")));
                }
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// Takes requests and never answers.
pub async fn slow_backend() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let mut all = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            all.push(stream);
        }
    });
    address
}

/// Answers once on each connection, promises to keep it, and closes it.
pub async fn stale_backend() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    address
}

/// Sends every piece of the body back as it comes, and a status behind it, over HTTP/2 without TLS.
pub async fn echo_over_http2() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                assert_eq!(request.headers()["te"], "trailers");
                assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("grpc.test"));
                let (sender, receiver) = mpsc::unbounded::<Result<Frame<Bytes>, Infallible>>();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(frame)) = body.frame().await {
                        sender.unbounded_send(Ok(frame)).expect("a reader");
                    }
                    let trailers =
                        HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))]);
                    sender.unbounded_send(Ok(Frame::trailers(trailers))).expect("a reader");
                });
                Ok::<_, Infallible>(Response::new(StreamBody::new(receiver.boxed())))
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    address
}

/// A port that nobody listens on.
pub fn closed_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// One request on a connection of its own.
pub async fn request(proxy: &Proxy, request: Request<Full<Bytes>>) -> (StatusCode, String) {
    let stream = TcpStream::connect(proxy.http).await.expect("connects");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.expect("an answer");
    let (status, body) = (answer.status(), answer.into_body().collect().await.expect("a body"));
    (status, String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

pub async fn get(proxy: &Proxy, host: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut builder = Request::get(path).header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    request(proxy, builder.body(Full::default()).expect("a request")).await
}

/// Writes these bytes and no more, and reads until the connection ends.
pub async fn raw(proxy: &Proxy, text: &str) -> String {
    let mut stream = TcpStream::connect(proxy.http).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A connection for many requests, without TLS.
pub async fn http2<B>(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let stream = TcpStream::connect(address).await.expect("connects");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came about: {what}");
}
