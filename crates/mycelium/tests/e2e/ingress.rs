//! nginx from Debian's packages behind an Ingress: TLS, HTTP/2, WebSocket, annotations, and endpoints that change under load.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_tungstenite::tungstenite::Message;

use crate::software::import_servers;
use crate::support::{Engine, command, eventually, output, run};

/// Three replicas, and a location that passes WebSocket on to ECHO.
const NGINX: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx}
data:
  nginx.conf: |
    daemon off; pid /tmp/nginx.pid; error_log /dev/stderr warn;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
      server {
        listen 8080;
        location / { return 200 "$request_method $host $request_uri for=$http_x_forwarded_for proto=$http_x_forwarded_proto\n"; }
        location /healthz { return 200 "ok\n"; }
        location /ws {
          proxy_pass http://ECHO;
          proxy_http_version 1.1;
          proxy_set_header Upgrade $http_upgrade;
          proxy_set_header Connection upgrade;
        }
      }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: nginx
        image: nginx:debian
        args: ["-c", "/config/nginx.conf"]
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: web}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /config}]
      volumes: [{name: config, configMap: {name: nginx}}]
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec: {selector: {app: nginx}, ports: [{name: http, port: 80, targetPort: web}]}
"#;

const SITES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: site
  annotations:
    cert-manager.io/cluster-issuer: letsencrypt-prod
    nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"
    nginx.ingress.kubernetes.io/proxy-body-size: 1k
    nginx.ingress.kubernetes.io/websocket-services: nginx
    nginx.ingress.kubernetes.io/rate-limit: "100"
    nginx.ingress.kubernetes.io/configuration-snippet: "more_set_headers x;"
spec:
  ingressClassName: nginx
  tls: [{hosts: [a.test], secretName: a-tls}, {hosts: [b.test], secretName: b-tls}]
  rules:
  - host: a.test
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: nginx, port: {name: http}}}}]}
  - host: b.test
    http: {paths: [{path: /only, pathType: Exact, backend: {service: {name: nginx, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: plain
  annotations:
    kubernetes.io/ingress.class: nginx
    nginx.ingress.kubernetes.io/rewrite-target: /$2
    nginx.ingress.kubernetes.io/enable-cors: "true"
spec:
  rules:
  - host: plain.test
    http:
      paths:
      - {path: /api(/|$)(.*), pathType: ImplementationSpecific, backend: {service: {name: nginx, port: {number: 80}}}}
      - {path: /gone, pathType: Prefix, backend: {service: {name: nobody, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: other}
spec: {controller: example.com/other}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: foreign}
spec:
  ingressClassName: other
  rules:
  - host: foreign.test
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: nginx, port: {number: 80}}}}]}
"#;

/// Where the proxy of an engine listens.
pub struct Front {
    http: SocketAddr,
    https: SocketAddr,
}

impl Front {
    /// Waits until the proxy listens.
    pub fn of(engine: &Engine) -> Self {
        let address = |name: &str| {
            let path = format!("{{.metadata.annotations.mycelium\\.network/ingress-{name}}}");
            let mut found = None;
            eventually("the proxy listens", || {
                let text = engine.value("ingressclass/mycelium", &path);
                found = text.parse().ok();
                if found.is_some() { Ok(()) } else { Err(text) }
            });
            found.expect("an address")
        };
        Self { http: address("http"), https: address("https") }
    }

    /// What curl gets from a URL whose host leads to the proxy, with these options.
    pub fn curl(&self, url: &str, options: &[&str]) -> Result<String, String> {
        let mut curl = command("curl");
        curl.args(["-sS", "--max-time", "20"]).args(options);
        for (from, to) in [(80, self.http), (443, self.https)] {
            curl.args(["--connect-to", &format!(":{from}:{}:{}", to.ip(), to.port())]);
        }
        let output = output(curl.arg(url));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn eventually(&self, url: &str, options: &[&str], expected: &str) {
        eventually(&format!("{url} {options:?} gives {expected:?}"), || match self.curl(url, options) {
            Ok(text) if text.contains(expected) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

/// A self-signed certificate for a host: its file, and that of its key.
fn certificate(dir: &Path, host: &str, name: &str) -> (PathBuf, PathBuf) {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let mut openssl = command("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    openssl.args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName=DNS:{host}")]);
    run(openssl.arg("-out").arg(&cert).arg("-keyout").arg(&key));
    (cert, key)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn nginx_serves_behind_an_ingress() {
    let engine = Engine::start();
    import_servers(&engine, "nginx:debian", "/usr/sbin/nginx");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let node = engine.value("node/host-1", "{.status.addresses[?(@.type==\"InternalIP\")].address}");
    let echo = runtime.block_on(websocket_echo(&node));
    engine.apply(&NGINX.replace("ECHO", &echo.to_string()));
    let (b_cert, b_key) = certificate(engine.dir(), "b.test", "b");
    let make_secret = |cert: &Path, key: &Path| {
        let (cert, key) = (format!("--cert={}", text(cert)), format!("--key={}", text(key)));
        let secret =
            engine.kubectl(&["create", "secret", "tls", "b-tls", &cert, &key, "--dry-run=client", "-o", "yaml"]);
        engine.apply(&secret);
    };
    make_secret(&b_cert, &b_key);
    engine.apply(SITES);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    let front = Front::of(&engine);
    let authority = engine.dir().join("ca.crt");
    std::fs::copy(engine.dir().join("pki/ca.crt"), &authority).expect("the CA");
    let authority = text(&authority);

    // TLS by name: one certificate was made for a host that asks, one is the user's own, and is replaced.
    let ca = ["--cacert", &authority];
    front.eventually("https://a.test/x?y=1", &ca, "GET a.test /x?y=1 for=127.0.0.1 proto=https");
    let second =
        front.curl("https://a.test/", &["--cacert", &authority, "--http2", "-o", "/dev/null", "-w", "%{http_version}"]);
    assert_eq!(second.as_deref(), Ok("2"));
    front.eventually("https://b.test/only", &["--cacert", &text(&b_cert)], "GET b.test /only");
    assert!(front.curl("https://b.test/only", &ca).is_err(), "the CA did not sign that one");
    let (newer, newer_key) = certificate(engine.dir(), "b.test", "newer");
    make_secret(&newer, &newer_key);
    front.eventually("https://b.test/only", &["--cacert", &text(&newer)], "GET b.test /only");
    engine.wait_value("secret/a-tls", "{.metadata.labels.mycelium\\.network/issued}", "true");

    runtime.block_on(websocket(front.https, &authority));
    plain_http(&front, &authority);
    what_is_written(&engine);
}

fn plain_http(front: &Front, authority: &str) {
    let status = |url: &str, options: &[&str]| {
        let options: Vec<&str> = [&["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"], options].concat();
        front.curl(url, &options).unwrap_or_else(|error| error)
    };
    let redirect = format!("308 https://a.test:{}/x", front.https.port());
    assert_eq!(status("http://a.test/x", &[]), redirect);
    front.eventually("http://plain.test/api/v1?z", &[], "GET plain.test /v1?z for=127.0.0.1 proto=http");
    let cors = front.curl("http://plain.test/api/v1", &["-i", "-H", "Origin: https://o.test"]).expect("an answer");
    assert!(cors.contains("access-control-allow-origin: *"), "{cors}");
    assert_eq!(status("http://plain.test/gone", &[]), "503 ");
    assert_eq!(status("http://plain.test/nothing", &[]), "404 ");
    assert_eq!(status("http://foreign.test/", &[]), "404 ");
    let long = "x".repeat(2000);
    // A client that sends on while it is refused may find the stream closed before it reads why.
    eventually("a body that is too long is refused", || {
        match status("https://a.test/", &["--cacert", authority, "--data", &long]).as_str() {
            "413 " => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}

fn what_is_written(engine: &Engine) {
    let status = engine.mycelium(&["status", "--data-dir", &text(engine.dir())]);
    assert!(status.contains("ingress http://127.0.0.1:") && status.contains(" https://127.0.0.1:"), "{status}");
    engine.wait_value("ingress/site", "{.status.loadBalancer.ingress[0].ip}", "127.0.0.1");
    assert_eq!(engine.value("ingress/foreign", "{.status.loadBalancer.ingress}"), "");
    assert_eq!(
        engine
            .value("ingressclass/mycelium", "{.metadata.annotations.ingressclass\\.kubernetes\\.io/is-default-class}"),
        "true"
    );
    eventually("events name what is not served, once each", || {
        let events = engine.kubectl(&[
            "get",
            "events",
            "-o",
            "jsonpath={range .items[*]}{.type} {.involvedObject.name} {.message}{\"\\n\"}{end}",
        ]);
        let expected = ["websocket-services", "rate-limit", "configuration-snippet"];
        let counts = expected.map(|name| {
            events
                .lines()
                .filter(|line| {
                    line.starts_with("Warning site nginx.ingress.kubernetes.io/") && line.contains(&format!("/{name}:"))
                })
                .count()
        });
        let missing = events.contains("Warning plain the service default/nobody does not exist");
        if counts == [1, 1, 1] && missing { Ok(()) } else { Err(format!("{counts:?}\n{events}")) }
    });
}

/// Sends every message back.
async fn websocket_echo(node: &str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((node, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                let (mut writes, reads) = socket.split();
                let messages =
                    reads.take_while(|message| std::future::ready(message.as_ref().is_ok_and(|m| !m.is_close())));
                let _ = messages.forward(&mut writes).await;
                let _ = writes.close().await;
            });
        }
    });
    address
}

/// Messages there and back: TLS, the proxy, nginx in a pod, and an echo behind it.
async fn websocket(address: SocketAddr, authority: &str) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("a certificate")).expect("usable");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("a.test").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS");
    let (mut socket, _) = tokio_tungstenite::client_async("wss://a.test/ws", stream).await.expect("a handshake");
    for length in [0, 5, 70_000] {
        let message = Message::binary(vec![b'm'; length]);
        socket.send(message.clone()).await.expect("sent");
        assert_eq!(socket.next().await.expect("a message").expect("whole"), message);
    }
    socket.close(None).await.expect("closed");
}

#[test]
fn endpoints_change_under_load_and_no_request_is_lost() {
    let engine = Engine::start();
    import_servers(&engine, "nginx:debian", "/usr/sbin/nginx");
    engine.apply(&NGINX.replace("ECHO", "127.0.0.1:9"));
    engine.apply(SITES);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    let front = Front::of(&engine);
    front.eventually("http://plain.test/api/", &[], "GET plain.test / ");

    // Connections that are kept, and requests that never stop; no pod gets time to leave before it is told to end.
    let load = command("wrk")
        .args([
            "-t1",
            "-c8",
            "-d40s",
            "--timeout",
            "10s",
            "-H",
            "Host: plain.test",
            &format!("http://{}/api/load", front.http),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk");
    engine.kubectl(&["set", "env", "deploy/nginx", "ROLL=two"]);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    engine.kubectl(&["scale", "deploy/nginx", "--replicas=5"]);
    engine.kubectl(&["rollout", "status", "deploy/nginx", "--timeout=120s"]);
    engine.kubectl(&["scale", "deploy/nginx", "--replicas=1"]);
    engine.wait_value("deploy/nginx", "{.status.replicas}", "1");
    let report = load.wait_with_output().expect("wrk");
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("Requests/sec"), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "requests were lost:\n{report}");
}
