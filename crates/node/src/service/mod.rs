//! The node's side of `pods/log`, `exec`, `attach` and `port-forward`.
//!
//! Requests have the form a kubelet serves. Whoever hands them over has authorised them.

mod channels;
mod logs;
mod portforward;
mod socket;
pub mod spdy;
mod stats;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tower::util::BoxCloneSyncService;

pub(crate) use self::stats::Looks;
use crate::node::{Inner, Node};

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of requests and answers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// The node as a service.
pub type NodeService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

impl Node {
    /// The service that answers for the containers of this node.
    pub fn service(&self) -> NodeService {
        let inner = self.inner.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request| {
            let inner = inner.clone();
            async move { Ok(route(&inner, request).await) }
        }))
    }
}

async fn route(inner: &Arc<Inner>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = Query::parse(request.uri().query());
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs::serve(inner, (namespace, pod, container), &query, request).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, uid, container]) => {
            streams::exec(inner, (namespace, pod, uid, container), &query, request)
        }
        (&Method::GET | &Method::POST, ["attach", namespace, pod, uid, container]) => {
            streams::attach(inner, (namespace, pod, uid, container), &query, request)
        }
        (&Method::GET | &Method::POST, ["portForward", namespace, pod, uid]) => {
            portforward::serve(inner, (namespace, pod, uid), &query, request)
        }
        (&Method::GET, ["stats", "summary"]) => stats::serve(inner).await,
        (&Method::GET, ["healthz"]) => text(StatusCode::OK, "ok"),
        _ => refuse(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource"),
    }
}

/// A query as name and value pairs, decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "1" | "true"))
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> Body {
    full(Bytes::new())
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// A `Status` that says why not.
pub(crate) fn refuse(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": message, "reason": reason, "code": code.as_u16()});
    let mut response = Response::new(full(status.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("command=sh&command=-c&command=a%26b+c%zz&tty=1&empty="));
        assert_eq!(query.all("command"), ["sh", "-c", "a&b c%zz"]);
        assert!(query.flag("tty") && query.get("empty").is_none());
    }
}
