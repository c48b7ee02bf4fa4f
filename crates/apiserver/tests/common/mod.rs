//! A server of its own for each test.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Body, Config, Identity, Pki, body};
use mycelium_store::{Options, Store};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The real clock, and numbers from a counter scrambled with the time of the start.
#[allow(clippy::disallowed_methods, reason = "the edge: tests take the real clock")]
pub fn real_env() -> Env {
    let start = jiff::Timestamp::now().as_nanosecond() as u64;
    let next = AtomicU64::new(start);
    Env::new(jiff::Timestamp::now, move || {
        let mut x = next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

pub struct Server {
    pub api: ApiServer,
    pub url: String,
    pub pki: Pki,
    pub directory: tempfile::TempDir,
    pub runtime: Option<Runtime>,
}

/// A server on port 0 with a store and keys in a temporary directory.
pub fn start() -> Server {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let env = real_env();
    let store = Store::open_file(&directory.path().join("state"), Options::default()).expect("a store");
    let sans = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let pki = Pki::load_or_create(&directory.path().join("pki"), env.clone(), &sans).expect("keys");
    let api = ApiServer::new(Config::new(store, env, pki.clone())).expect("a server");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let url = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(api.clone().serve(listener, std::future::pending()));
        format!("https://{address}")
    });
    pki.write_kubeconfig(&directory.path().join("kubeconfig"), &url).expect("a kubeconfig");
    Server { api, url, pki, directory, runtime: Some(runtime) }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.api.shut_down();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What kubectl said.
pub struct Outcome {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Server {
    pub fn kubectl_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = mycelium_linux::process::command("kubectl");
        command.env("HOME", self.directory.path());
        command.arg("--kubeconfig").arg(self.directory.path().join("kubeconfig")).args(arguments);
        command
    }

    /// Runs kubectl, with a text on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Outcome {
        use std::io::Write;
        use std::process::Stdio;
        let mut command = self.kubectl_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is installed");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        Outcome {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs kubectl, which must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_in(arguments, "")
    }

    /// Runs kubectl with input, which must succeed.
    pub fn kubectl_in(&self, arguments: &[&str], input: &str) -> String {
        let outcome = self.kubectl_with(arguments, input);
        assert!(outcome.ok, "kubectl {arguments:?} failed: {}{}", outcome.out, outcome.err);
        outcome.out
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A server without sockets, for tests of semantics.
pub struct Local {
    pub api: ApiServer,
    pub directory: tempfile::TempDir,
    pub who: Identity,
}

/// An answer.
pub struct Reply {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn warnings(&self) -> Vec<String> {
        let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
        self.headers.get_all("warning").iter().map(text).collect()
    }

    /// The answer, which must have this code.
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code.as_u16(), code, "{}", self.text());
        self.json()
    }
}

pub async fn local() -> Local {
    local_with(Options::default()).await
}

pub async fn local_with(options: Options) -> Local {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let env = real_env();
    let store = Store::open_file(&directory.path().join("state"), options).expect("a store");
    let pki = Pki::in_memory(env.clone(), &[]).expect("keys");
    let api = ApiServer::new(Config::new(store, env, pki)).expect("a server");
    api.bootstrap().await.expect("the first objects");
    Local { api, directory, who: Identity::internal("admin") }
}

impl Local {
    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Bytes>) -> Reply {
        self.send_as(&self.who, method, path, &[("content-type", content_type)], body).await
    }

    pub async fn send_as(
        &self,
        who: &Identity,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: impl Into<Bytes>,
    ) -> Reply {
        let response = self.open(who, method, path, headers, content).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Reply { code: parts.status, headers: parts.headers, bytes }
    }

    pub async fn open(
        &self,
        who: &Identity,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: impl Into<Bytes>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.api.handle(request.body(body::full(content)).expect("a request"), who.clone()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "", "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, "application/json", body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send("PUT", path, "application/json", body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, "", "").await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Reply {
        let content_type = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send("PATCH", path, &content_type, body.to_string()).await
    }

    /// Reads `count` lines of a watch.
    pub async fn watch(&self, path: &str, count: usize) -> Vec<Value> {
        let mut stream = self.open_watch(path).await;
        let mut lines = Vec::new();
        while lines.len() < count {
            match stream.next().await {
                Some(line) => lines.push(line),
                None => break,
            }
        }
        lines
    }

    pub async fn open_watch(&self, path: &str) -> Lines {
        let response = self.open(&self.who, "GET", path, &[], "").await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line; none at the end. Fails after ten seconds without one.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.body.frame()).await;
            match frame.expect("a line within ten seconds") {
                Some(frame) => {
                    self.buffer.extend_from_slice(&frame.expect("a frame").into_data().unwrap_or_default());
                }
                None => return None,
            }
        }
    }
}
