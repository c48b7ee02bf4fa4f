//! `pods/<name>/proxy` and `services/<name>/proxy`: HTTP to a pod.

mod rewrite;

use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde_json::Value;

use crate::body::{self, Body};
use crate::codec;
use crate::error::ApiError;
use crate::outbound::{self, Tls, Trust};
use crate::request::ResourcePath;
use crate::server::Inner;

/// Forwards a request to the pod, or to one ready pod of the service.
pub async fn forward(
    server: &Arc<Inner>,
    path: &ResourcePath,
    object: &Value,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    if let Some(redirect) = to_folder(path, &request) {
        return Ok(redirect);
    }
    let authority =
        if path.resource == "pods" { pod_address(path, object) } else { service_address(server, path, object) }?;
    let rest = with_slash(request.uri().path(), path);
    let prefix = request.uri().path().strip_suffix(&rest).unwrap_or(request.uri().path()).to_owned();
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest,
    };
    request.headers_mut().remove(header::AUTHORIZATION);
    // Links can only be led in what is not packed.
    request.headers_mut().remove(header::ACCEPT_ENCODING);
    let host: Authority = authority.parse().map_err(|_| ApiError::bad("invalid address"))?;
    if let Ok(value) = HeaderValue::from_str(host.as_str()) {
        request.headers_mut().insert(header::HOST, value);
    }
    *request.uri_mut() = target.parse::<Uri>().map_err(|e| ApiError::bad(e.to_string()))?;
    *request.version_mut() = http::Version::HTTP_11;
    let tls = match Target::of(&path.name).scheme {
        // As Kubernetes does: the pod is known by its address, and has a certificate of its own making.
        "https" => Some(Tls::new(host.host(), &Trust::Anyone, None).map_err(ApiError::internal)?),
        _ => None,
    };
    let answer = outbound::send(authority.clone(), tls, request)
        .await
        .map_err(|e| ApiError::Unavailable(format!("error trying to reach service: dial tcp {authority}: {e}")))?;
    rewrite::response(answer, &prefix, &authority).await
}

/// Who asks for the root without a slash is sent to the one with a slash, so that relative links lead on from there.
fn to_folder(path: &ResourcePath, request: &Request<Body>) -> Option<Response<Body>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads || !path.rest.is_empty() || request.uri().path().ends_with('/') {
        return None;
    }
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let place = HeaderValue::from_str(&format!("{}/{query}", request.uri().path())).ok()?;
    response.headers_mut().insert(header::LOCATION, place);
    Some(response)
}

/// What follows `/proxy`, as the client wrote it.
fn with_slash(full: &str, path: &ResourcePath) -> String {
    let marker = format!("/{}/proxy", path.name);
    let encoded = full.find("/proxy").map(|at| &full[at + "/proxy".len()..]);
    let rest = full.split_once(&marker).map(|(_, rest)| rest).or(encoded).unwrap_or_default();
    if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") }
}

fn pod_address(path: &ResourcePath, pod: &Value) -> Result<String, ApiError> {
    let port = Some(Target::of(&path.name).port).filter(|port| !port.is_empty()).map(str::to_owned);
    let port = port.or_else(|| {
        let containers = pod["spec"]["containers"].as_array()?;
        containers.iter().find_map(|c| c["ports"][0]["containerPort"].as_i64()).map(|p| p.to_string())
    });
    let address = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let address = address.ok_or_else(|| ApiError::bad("address not allowed"))?;
    Ok(format!("{address}:{}", port.as_deref().unwrap_or("80")))
}

fn service_address(server: &Inner, path: &ResourcePath, service: &Value) -> Result<String, ApiError> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let wanted = Target::of(&path.name).port;
    let none = || ApiError::Unavailable(format!("no endpoints available for service {:?}", path.name));
    let ports = service["spec"]["ports"].as_array().ok_or_else(none)?;
    let chosen = ports.iter().find(|p| {
        wanted.is_empty() || p["name"] == wanted || p["port"].as_i64().is_some_and(|n| n.to_string() == wanted)
    });
    let unknown = || ApiError::Unavailable(format!("no service port {wanted:?} found for service {name:?}"));
    let port_name = chosen.ok_or_else(unknown)?["name"].as_str().unwrap_or_default();
    endpoint(server, &path.namespace, name, port_name)?.ok_or_else(none)
}

/// The address of a ready endpoint behind a port of a Service.
fn endpoint(server: &Inner, namespace: &str, name: &str, port_name: &str) -> Result<Option<String>, ApiError> {
    let prefix = format!("/registry/discovery.k8s.io/endpointslices/{namespace}/");
    let page = server.store.range(&prefix, None, 0, None).map_err(ApiError::internal)?;
    for entry in page.entries {
        let slice = codec::parse_entry(&entry)?;
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let ports = slice["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let port = ports.iter().find(|p| p["name"].as_str().unwrap_or_default() == port_name);
        let endpoints = slice["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ready = endpoints.iter().find(|e| e["conditions"]["ready"].as_bool().unwrap_or(true));
        if let (Some(port), Some(ready)) = (port.and_then(|p| p["port"].as_i64()), ready)
            && let Some(address) = ready["addresses"][0].as_str()
        {
            return Ok(Some(format!("{address}:{port}")));
        }
    }
    Ok(None)
}

/// What to connect to for a port of a Service, as the server itself calls one; or why there is nothing.
pub fn service(server: &Inner, namespace: &str, name: &str, port: i64) -> Result<String, String> {
    let entry = server.store.get(&format!("/registry/core/services/{namespace}/{name}"));
    let service = entry.and_then(|entry| codec::parse_entry(&entry).ok());
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    if service["spec"]["type"] == "ExternalName" {
        return Ok(format!("{}:{port}", service["spec"]["externalName"].as_str().unwrap_or_default()));
    }
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = ports.iter().find(|p| p["port"].as_i64() == Some(port));
    let port_name =
        chosen.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?["name"].as_str();
    let found = endpoint(server, namespace, name, port_name.unwrap_or_default()).map_err(|why| why.to_string())?;
    found.ok_or_else(|| format!("no endpoints available for service {name:?}"))
}

/// What a proxy is to reach: `name`, `name:port` or `scheme:name:port`.
struct Target<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = text.splitn(3, ':');
        match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
            (scheme, Some(name), Some(port)) => Self { scheme, name, port },
            (name, port, _) => Self { scheme: "", name, port: port.unwrap_or_default() },
        }
    }
}

/// The object that a proxy's target names.
pub fn object_name(text: &str) -> &str {
    Target::of(text).name
}
