//! A client that speaks JSON: what the user and the fake nodes use.

use std::fmt;

use futures::stream::BoxStream;
use http::{Method, Request};
use kube::Client;
use kube::api::WatchEvent;
use serde_json::Value;

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The server answered with a status.
    Refused {
        /// HTTP code.
        code: u16,
        /// Message.
        message: String,
    },
    /// There was no answer.
    Lost(String),
}

impl Failure {
    /// The HTTP code, if there was an answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Lost(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, message } => write!(f, "{code}: {message}"),
            Self::Lost(message) => write!(f, "no answer: {message}"),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, message: status.message.clone() },
            other => Self::Lost(other.to_string()),
        }
    }
}

/// A client of the API.
#[derive(Clone)]
pub struct Api(Client);

impl Api {
    /// Speaks through a client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, "", None).await
    }

    /// Creates.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, "application/json", Some(body)).await
    }

    /// Merges.
    pub async fn merge(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PATCH, path, "application/merge-patch+json", Some(body)).await
    }

    /// Changes as `kubectl` does.
    pub async fn strategic(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PATCH, path, "application/strategic-merge-patch+json", Some(body)).await
    }

    /// Changes step by step.
    pub async fn json_patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PATCH, path, "application/json-patch+json", Some(body)).await
    }

    /// Deletes.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, "application/json", Some(options)).await
    }

    /// Watches.
    pub async fn watch(
        &self,
        path: &str,
    ) -> Result<BoxStream<'static, Result<WatchEvent<Value>, kube::Error>>, Failure> {
        let request = build(Method::GET, path, "", Vec::new())?;
        Ok(Box::pin(self.0.request_events(request).await?))
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        Ok(self.0.request(build(method, path, kind, bytes)?).await?)
    }
}

fn build(method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Request<Vec<u8>>, Failure> {
    let mut request = Request::builder().method(method).uri(path);
    if !kind.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, kind);
    }
    request.body(body).map_err(|error| Failure::Lost(error.to_string()))
}
