//! Probes over gRPC and HTTPS, and hooks over HTTP, against servers in this process and on this machine.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Engine, command, eventually, run};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: remote}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 10
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    readinessProbe: {grpc: {port: GRPC, service: spores}, periodSeconds: 1, failureThreshold: 1}
    startupProbe: {httpGet: {scheme: HTTPS, host: 127.0.0.1, port: HTTPS, path: /}, periodSeconds: 1, failureThreshold: 100}
    lifecycle:
      postStart: {httpGet: {host: 127.0.0.1, port: HOOKS, path: "/begun?by=hook", httpHeaders: [{name: X-Spore, value: "1"}]}}
      preStop: {httpGet: {host: 127.0.0.1, port: HOOKS, path: /ending}}
"#;

#[test]
fn grpc_and_https_probes_and_http_hooks() {
    let engine = Engine::start();
    engine.import_busybox();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let serving = Arc::new(AtomicU8::new(1));
    let grpc = runtime.block_on(health_server(serving.clone()));
    let (hooks, asked) = hook_server();
    let https = free_port();
    let ports = [("port: GRPC", grpc), ("port: HTTPS", https), ("port: HOOKS", hooks)];
    let manifest =
        ports.iter().fold(PODS.to_owned(), |text, (field, port)| text.replace(field, &format!("port: {port}")));
    engine.apply(&manifest);

    eventually("the hook at the start is called", || {
        let asked = asked.lock().expect("lock").clone();
        if asked == ["GET /begun?by=hook x-spore"] { Ok(()) } else { Err(format!("{asked:?}")) }
    });
    engine.wait_value("pod/remote", "{.status.phase}", "Running");
    assert_eq!(engine.value("pod/remote", "{.status.containerStatuses[0].started}"), "false", "HTTPS is not there yet");
    let tls = tls_server(&engine, https);
    engine.wait_value("pod/remote", "{.status.containerStatuses[0].started}", "true");
    engine.wait_value("pod/remote", "{.status.containerStatuses[0].ready}", "true");
    serving.store(2, Ordering::Relaxed);
    engine.wait_value("pod/remote", "{.status.containerStatuses[0].ready}", "false");
    eventually("the event says why", || {
        let events = engine.kubectl(&["get", "events"]);
        if events.contains("responded with \"NOT_SERVING\"") { Ok(()) } else { Err(events) }
    });
    engine.kubectl(&["delete", "pod", "remote", "--timeout=60s"]);
    assert_eq!(asked.lock().expect("lock").last().map(String::as_str), Some("GET /ending"));
    drop(tls);
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port()
}

/// A gRPC server that gives the service `spores` the state asked for.
async fn health_server(serving: Arc<AtomicU8>) -> u16 {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = serving.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let state = serving.load(Ordering::Relaxed);
                async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.expect("a body").to_bytes();
                    assert_eq!(&asked[..], b"\0\0\0\0\x08\x0a\x06spores");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                    let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, state]));
                    let body = body.with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
                    http::Response::builder().header("content-type", "application/grpc").body(body)
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// An HTTP server that answers 200 and notes what was asked, with ` x-spore` where that header came along.
fn hook_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head: Vec<String> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
            let mut line = head.first().map(|l| l.trim_end_matches(" HTTP/1.1").to_owned()).unwrap_or_default();
            if head.iter().any(|l| l.to_lowercase() == "x-spore: 1") {
                line.push_str(" x-spore");
            }
            noted.lock().expect("lock").push(line);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, asked)
}

/// `openssl s_server`, ended when dropped.
struct Tls(std::process::Child);

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An HTTPS server whose certificate nobody has signed.
fn tls_server(engine: &Engine, port: u16) -> Tls {
    let (key, cert) = (engine.dir().join("tls.key"), engine.dir().join("tls.crt"));
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nobody", "-keyout"];
    run(command("openssl").args(request).arg(&key).arg("-out").arg(&cert));
    let mut server = command("openssl");
    server.args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}"), "-key"]);
    server.arg(&key).arg("-cert").arg(&cert);
    let quiet = std::process::Stdio::null;
    Tls(server.stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().expect("openssl"))
}
