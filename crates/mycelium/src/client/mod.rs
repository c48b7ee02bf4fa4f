//! What the commands that talk to an API server share: connecting, asking, and explaining what went wrong.
//!
//! | module | holds |
//! |---|---|
//! | [`discovery`] | which resources the server has, and what people call them |
//! | [`target`] | `TYPE NAME`, `TYPE/NAME` and what else a command line names objects with |
//! | [`manifest`] | objects in YAML and JSON files |
//! | [`table`] | columns that line up |
//! | [`pods`] | from a Deployment or Service to its pods, and to a container |
//! | [`failure`] | errors as one paragraph with the next step |

pub mod discovery;
pub mod failure;
pub mod manifest;
pub mod pods;
pub mod table;
pub mod target;

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::AsyncBufRead;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::Value;

use crate::engine::config::DEFAULT_DATA_DIR;

/// The field manager that `apply` signs with.
pub const FIELD_MANAGER: &str = "mycelium";
const JSON: &str = "application/json";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which cluster and namespace a command works on.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Connection {
    /// Kubeconfig file [default: $KUBECONFIG, ~/.kube/config, then that of the engine in /var/lib/mycelium]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace [default: the context's, else `default`]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// A cluster to talk to.
#[derive(Clone)]
pub struct Cluster {
    /// For what the Kubernetes library does itself.
    pub client: Client,
    /// The namespace to work in.
    pub namespace: String,
    /// The namespace was asked for on the command line.
    pub namespace_given: bool,
    /// The server's address, for messages.
    pub server: String,
}

/// Prints to standard output, and gives an error instead of a panic when nobody reads it any more.
macro_rules! out {
    ($($argument:tt)*) => { $crate::client::show(format_args!($($argument)*))? };
}
pub(crate) use out;

/// What [`out!`] does.
pub fn show(text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_fmt(text)?;
    out.flush()
}

/// Prints what was done. What is still to be done goes on even when nobody reads.
pub fn say(text: std::fmt::Arguments<'_>) {
    let _ = show(text);
}

/// A command whose reader has gone (`mycelium get pods | head -1`) has done all it should.
pub fn unless_unread(result: Result<ExitCode>) -> Result<ExitCode> {
    let unread = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    match result {
        Err(error) if error.downcast_ref().is_some_and(unread) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

/// Runs a command's future. Does not wait for a read of standard input that may never end.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

impl Connection {
    /// Reads the kubeconfig. Does not connect yet.
    pub async fn cluster(&self) -> Result<Cluster> {
        let kubeconfig = self.read()?;
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig cannot be used; choose another with --kubeconfig or --context")?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A log or a watch may be silent for long.
        config.read_timeout = None;
        // Who waits at a terminal wants to know at once, not after minutes of tries.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        Ok(Cluster { client, namespace, namespace_given: self.namespace.is_some(), server })
    }

    fn read(&self) -> Result<Kubeconfig> {
        if let Some(path) = &self.kubeconfig {
            return load(path);
        }
        if let Some(kubeconfig) = Kubeconfig::from_env().context("$KUBECONFIG cannot be used")? {
            return Ok(kubeconfig);
        }
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        let engine = Path::new(DEFAULT_DATA_DIR).join("admin.kubeconfig");
        match home.into_iter().chain([engine]).find(|path| path.exists()) {
            Some(path) => load(&path),
            None => anyhow::bail!(
                "no cluster is chosen: give --kubeconfig FILE or set KUBECONFIG, or start an engine with `mycelium up`"
            ),
        }
    }
}

fn load(path: &Path) -> Result<Kubeconfig> {
    match Kubeconfig::read_from(path) {
        Err(KubeconfigError::ReadConfig(error, path)) => {
            Err(error).with_context(|| format!("the kubeconfig {} cannot be read", path.display()))
        }
        other => other.with_context(|| format!("the kubeconfig {} cannot be used", path.display())),
    }
}

/// How a request differs from a plain GET.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// GET unless said otherwise.
    pub method: Method,
    /// The form of the answer that is asked for.
    pub accept: &'a str,
    /// The form of the body.
    pub content_type: &'a str,
    /// The body.
    pub body: Vec<u8>,
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self { method: Method::GET, accept: JSON, content_type: JSON, body: Vec::new() }
    }
}

impl Cluster {
    /// Reads a document.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.call(path, Call::default()).await?.1)
    }

    /// Reads a document that may not be there.
    pub async fn get_opt(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if failure::code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a request and gives the answer's document; answers that are errors become errors.
    pub async fn call(&self, path: &str, call: Call<'_>) -> Result<(StatusCode, Value)> {
        let request = Request::builder()
            .method(call.method)
            .uri(path)
            .header(http::header::ACCEPT, call.accept)
            .header(http::header::CONTENT_TYPE, call.content_type)
            .body(kube::client::Body::from(call.body))
            .context("the request is not valid")?;
        let response = self.client.send(request).await.map_err(|error| failure::explain(error, &self.server))?;
        let status = response.status();
        let body =
            response.into_body().collect().await.map_err(|error| failure::explain(error, &self.server))?.to_bytes();
        if status.is_success() {
            let value = serde_json::from_slice(&body)
                .with_context(|| format!("{} gave an answer that is not JSON; is it a Kubernetes API?", self.server))?;
            return Ok((status, value));
        }
        Err(failure::answer(status, &body, &self.server))
    }

    /// Opens an answer that goes on for long, such as a log or a watch.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<impl AsyncBufRead + Unpin + use<>> {
        let request = Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new())?;
        let stream = self.client.request_stream(request).await;
        Ok(Box::pin(stream.map_err(|error| failure::explain(error, &self.server))?))
    }
}

/// `?a=b&c=d` out of what is set; empty without anything.
pub fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if let Some(value) = value {
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            encode(value, &mut text);
        }
    }
    text
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn encode(value: &str, text: &mut String) {
    use std::fmt::Write as _;
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte as char),
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
}

/// `/metadata/name` and the like as text; empty if it is missing.
pub fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let given =
            [("labelSelector", Some("a in (b,c)".to_owned())), ("limit", None), ("watch", Some("1".to_owned()))];
        assert_eq!(query(&given), "?labelSelector=a%20in%20%28b%2Cc%29&watch=1");
        assert_eq!(query(&[]), "");
    }
}
