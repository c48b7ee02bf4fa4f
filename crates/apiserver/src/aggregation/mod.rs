//! API versions that somebody else serves: what an APIService names is asked of a service in the cluster.
//!
//! Who asks was authenticated and authorised here; the extension server learns it from headers, and believes them since
//! we show a certificate of an authority that it reads from the ConfigMap `extension-apiserver-authentication`.

pub mod discovery;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use jiff::{SignedDuration, Timestamp};
use mycelium_store::{Expect, Op};
use serde_json::{Value, json};

use crate::auth::Identity;
use crate::body::{self, Body};
use crate::codec;
use crate::error::ApiError;
use crate::outbound::{self, Tls, Trust};
use crate::proxy;
use crate::server::Inner;
use crate::streams::encode;

const PREFIX: &str = "/registry/apiregistration.k8s.io/apiservices/";
/// Where extension servers learn whom to believe.
const PUBLISHED: &str = "/registry/core/configmaps/kube-system/extension-apiserver-authentication";
/// The name in the certificate that we show.
const CLIENT: &str = "front-proxy-client";
/// How long a list of resources, or its lack, is taken for true.
const KNOWN: SignedDuration = SignedDuration::from_secs(10);
/// How long discovery waits for an extension server.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const LIST_MAX: usize = 4 << 20;

/// An API version that a service in the cluster serves.
#[derive(Clone, Debug)]
pub struct Extension {
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    priority: (i64, i64),
    namespace: String,
    service: String,
    port: i64,
    bundle: Vec<u8>,
    unverified: bool,
    /// Whether it answered when it was asked last.
    available: bool,
}

impl Extension {
    fn parse(api_service: &Value) -> Option<Self> {
        let spec = &api_service["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = spec["service"].as_object().map(|_| &spec["service"])?;
        Some(Self {
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            priority: (
                spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
                spec["versionPriority"].as_i64().unwrap_or_default(),
            ),
            namespace: text(&service["namespace"]),
            service: text(&service["name"]),
            port: service["port"].as_i64().unwrap_or(443),
            bundle: STANDARD.decode(spec["caBundle"].as_str().unwrap_or_default()).ok()?,
            unverified: spec["insecureSkipTLSVerify"] == true,
            available: is_available(&api_service["status"]),
        })
    }

    /// Whether a path is the one that tells whether the extension is there: it is asked in any case.
    fn is_probe(&self, path: &str) -> bool {
        path.trim_end_matches('/') == format!("/apis/{}/{}", self.group, self.version)
    }

    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

fn is_available(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Available" && condition["status"] == "True")
}

/// The lists of resources that extension servers gave, by group and version.
#[derive(Default)]
pub struct Lists(Mutex<BTreeMap<Key, Held>>);

type Key = (String, String);
/// When a server was asked, and what it gave.
type Held = (Timestamp, Option<Arc<Value>>);

impl Lists {
    fn held(&self, key: &Key, now: Timestamp) -> Option<Option<Arc<Value>>> {
        let lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.get(key).filter(|(at, _)| now.duration_since(*at).abs() < KNOWN).map(|(_, list)| list.clone())
    }

    fn hold(&self, key: Key, now: Timestamp, list: Option<Arc<Value>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (now, list));
    }
}

/// Every extension, the groups of highest priority first.
pub fn all(server: &Inner) -> Vec<Extension> {
    let page = server.store.range(PREFIX, None, 0, None);
    let entries = page.map(|page| page.entries).unwrap_or_default();
    let parse = |entry| codec::parse_entry(entry).ok().as_ref().and_then(Extension::parse);
    let mut extensions: Vec<Extension> = entries.iter().filter_map(parse).collect();
    extensions.sort_by(|a, b| (b.priority, &a.group, &a.version).cmp(&(a.priority, &b.group, &b.version)));
    extensions
}

/// The extension that a path belongs to. What the server has itself is never asked of others.
pub fn of_path(server: &Inner, path: &str) -> Option<Extension> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, version) = (parts.next()?, parts.next().filter(|version| !version.is_empty())?);
    if server.table().serves(group, version) {
        return None;
    }
    let entry = server.store.get(&format!("{PREFIX}{version}.{group}"))?;
    Extension::parse(&codec::parse_entry(&entry).ok()?)
}

/// Sends a request on, in the name of who asked.
pub fn forward<'a>(
    server: &'a Inner,
    extension: &'a Extension,
    mut request: Request<Body>,
    who: &'a Identity,
) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
    Box::pin(async move {
        if !extension.available && !extension.is_probe(request.uri().path()) {
            return Err(away("it is not available".to_owned()));
        }
        let authority =
            proxy::service(server, &extension.namespace, &extension.service, extension.port).map_err(away)?;
        let trust = match (extension.unverified, extension.bundle.is_empty()) {
            (true, _) => Trust::Anyone,
            (false, true) => Trust::Authorities(server.pki.ca_pem().as_bytes()),
            (false, false) => Trust::Authorities(&extension.bundle),
        };
        let shown = server.pki.front_proxy_client(CLIENT).map_err(ApiError::internal)?;
        let tls = Tls::new(&extension.host(), &trust, Some(&shown)).map_err(|why| away(why.to_string()))?;
        let target = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = target.parse::<Uri>().map_err(|why| ApiError::bad(why.to_string()))?;
        *request.version_mut() = http::Version::HTTP_11;
        name_asker(request.headers_mut(), who)?;
        let host = HeaderValue::from_str(&extension.host()).map_err(ApiError::internal)?;
        request.headers_mut().insert(header::HOST, host);
        outbound::send(authority, Some(tls), request).await.map_err(|why| away(why.to_string()))
    })
}

fn away(why: String) -> ApiError {
    tracing::debug!(why, "an extension is away");
    ApiError::Unavailable("service unavailable".into())
}

/// Replaces what the client said of itself by what we found out.
fn name_asker(headers: &mut HeaderMap, who: &Identity) -> Result<(), ApiError> {
    let own = |name: &HeaderName| {
        let name = name.as_str();
        name == "authorization" || name.starts_with("x-remote-") || name.starts_with("impersonate-")
    };
    let dropped: Vec<HeaderName> = headers.keys().filter(|name| own(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    let value = |text: &str| HeaderValue::from_str(text).map_err(ApiError::internal);
    headers.insert("x-remote-user", value(&who.user)?);
    if !who.uid.is_empty() {
        headers.insert("x-remote-uid", value(&who.uid)?);
    }
    for group in &who.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &who.extra {
        let name = HeaderName::try_from(format!("x-remote-extra-{}", encode(key))).map_err(ApiError::internal)?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

/// The resources of each extension, as its own discovery lists them; nothing where it does not answer.
pub fn resources<'a>(server: &'a Inner, extensions: &'a [Extension]) -> BoxFuture<'a, Vec<Option<Arc<Value>>>> {
    let asked: Vec<_> = extensions.iter().map(|extension| listed(server, extension)).collect();
    Box::pin(futures::future::join_all(asked))
}

fn listed<'a>(server: &'a Inner, extension: &'a Extension) -> BoxFuture<'a, Option<Arc<Value>>> {
    Box::pin(look(server, extension))
}

async fn look(server: &Inner, extension: &Extension) -> Option<Arc<Value>> {
    let key = (extension.group.clone(), extension.version.clone());
    let now = server.env.now();
    if let Some(list) = server.extensions.held(&key, now) {
        return list;
    }
    let list = tokio::time::timeout(ANSWER_MAX, ask(server, extension)).await.ok().flatten().map(Arc::new);
    server.extensions.hold(key, now, list.clone());
    list
}

async fn ask(server: &Inner, extension: &Extension) -> Option<Value> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("/apis/{}/{}", extension.group, extension.version))
        .header(header::ACCEPT, "application/json")
        .body(body::empty())
        .ok()?;
    let who = Identity::internal("system:kube-aggregator");
    let answer = forward(server, extension, request, &who).await.ok().filter(|answer| answer.status().is_success())?;
    let bytes = body::read_up_to(answer.into_body(), LIST_MAX).await.ok()?;
    let list: Value = serde_json::from_slice(&bytes).ok()?;
    list["resources"].is_array().then_some(list)
}

/// Publishes whom extension servers are to believe.
pub async fn publish(server: &Inner) -> Result<(), ApiError> {
    let quoted = |names: &[&str]| json!(names).to_string();
    let data = json!({
        "client-ca-file": server.pki.ca_pem(),
        "requestheader-allowed-names": quoted(&[CLIENT]),
        "requestheader-client-ca-file": server.pki.front_proxy_pem(),
        "requestheader-extra-headers-prefix": quoted(&["X-Remote-Extra-"]),
        "requestheader-group-headers": quoted(&["X-Remote-Group"]),
        "requestheader-uid-headers": quoted(&["X-Remote-Uid"]),
        "requestheader-username-headers": quoted(&["X-Remote-User"]),
    });
    let Some(entry) = server.store.get(PUBLISHED) else { return Ok(()) };
    let mut map = codec::parse_entry(&entry)?;
    if map["data"] == data {
        return Ok(());
    }
    map["data"] = data;
    let expect = Expect::Revision(entry.mod_revision);
    let op = Op::Put { key: PUBLISHED.to_owned(), value: codec::encode(&map), expect };
    server.commit(vec![op]).await.map(drop).map_err(crate::server::commit_failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_of_itself_is_replaced() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-remote-user", "x-remote-extra-scopes", "impersonate-user"] {
            headers.insert(name, HeaderValue::from_static("forged"));
        }
        let mut who = Identity::new("jane", &["a", "b"]);
        who.extra.insert("example.com/pod".into(), vec!["p".into()]);
        name_asker(&mut headers, &who).expect("plain names");
        assert!(!headers.values().any(|value| value == "forged"));
        assert_eq!(headers["x-remote-user"], "jane");
        assert_eq!(headers.get_all("x-remote-group").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers["x-remote-extra-example.com%2fpod"], "p");
    }

    #[test]
    fn only_services_of_the_cluster_are_extensions() {
        let local = json!({"spec": {"group": "apps", "version": "v1"}});
        assert!(Extension::parse(&local).is_none());
        let remote = json!({"spec": {"group": "g", "version": "v1", "service": {"namespace": "n", "name": "s"}}});
        let extension = Extension::parse(&remote).expect("names a service");
        assert_eq!((extension.host().as_str(), extension.port, extension.unverified), ("s.n.svc", 443, false));
    }
}
