//! From path and method to the code that answers.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::aggregation::Extension;
use crate::answer::{self as reply, Notes, Warnings};
use crate::audit::Trail;
use crate::auth::Identity;
use crate::auth::rbac::Attributes;
use crate::body::Body;
use crate::error::{ApiError, Subject};
use crate::media::Accept;
use crate::request::{self, Query, ResourcePath};
use crate::resources::Resource;
use crate::server::Inner;
use crate::{
    aggregation, authn, compress, discovery, dynamic, measured, openapi, read, review, snapshot, streams, write,
};

/// A request about a resource, as its handler sees it.
pub struct Context<'a> {
    /// The server.
    pub server: &'a Arc<Inner>,
    /// Who asks.
    pub who: &'a Identity,
    /// The resource.
    pub resource: &'a Arc<Resource>,
    /// Path parts.
    pub path: &'a ResourcePath,
    /// Query parameters.
    pub query: &'a Query,
    /// Request headers.
    pub headers: &'a HeaderMap,
    /// In which form to answer.
    pub accept: Accept,
    /// What to warn the client of.
    pub warnings: &'a Warnings,
    /// What the audit log is told, if there is one.
    pub notes: Option<&'a Notes>,
}

impl Context<'_> {
    /// The object the request names.
    pub fn subject(&self) -> Subject {
        self.subject_named(&self.path.name)
    }

    /// An object of the resource.
    pub fn subject_named(&self, name: &str) -> Subject {
        Subject::new(self.resource.group(), self.resource.name(), name)
    }

    /// The key of the object the request names.
    pub fn key(&self) -> String {
        self.resource.key(&self.path.namespace, &self.path.name)
    }

    /// Tells the audit log something about the request.
    pub fn audit(&self, key: &str, value: impl FnOnce() -> String) {
        if let Some(notes) = self.notes {
            notes.set(key, value());
        }
    }

    /// Whether the path names a subresource.
    pub fn subresource(&self) -> Option<&str> {
        (!self.path.subresource.is_empty()).then_some(self.path.subresource.as_str())
    }
}

/// Answers a request.
pub fn dispatch<'a>(
    server: &'a Arc<Inner>,
    request: Request<Body>,
    who: Identity,
    trail: Option<&'a Trail>,
) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
    Box::pin(answer(server, request, who, trail))
}

async fn answer(
    server: &Arc<Inner>,
    request: Request<Body>,
    who: Identity,
    trail: Option<&Trail>,
) -> Result<Response<Body>, ApiError> {
    let asking = authn::authenticate(server, request.headers(), who)?;
    let who = authn::impersonate(server, request.headers(), asking.clone())?;
    if let Some(trail) = trail {
        trail.user(&asking, &who);
    }
    let Some(path) = request::parse_path(request.uri().path()) else {
        if request.uri().path() == snapshot::PATH && *request.method() == Method::GET {
            return authorized_copy(server, &who).await;
        }
        return elsewhere(server, request, &who).await;
    };
    let query = Query::parse(request.uri().query());
    let watch = path.watch || query.flag("watch");
    let verb = verb_of(request.method(), &path, watch)?;
    if let Some(trail) = trail {
        trail.request(&attributes(verb, &path), &path.version);
    }
    if !who.is_master() {
        authorize(server, &who, &attributes(verb, &path))?;
    }
    if path.group == measured::custom::GROUP && verb == "get" {
        return measured::custom::get(server, &path, &query).await;
    }
    if let Some(extension) = aggregation::of_path(server, request.uri().path()) {
        return aggregation::forward(server, &extension, request, &who).await;
    }
    let table = server.table();
    let resource = table.get(&path.group, &path.version, &path.resource).ok_or(ApiError::NoSuchPath)?;
    if resource.namespaced() && path.namespace.is_empty() && !path.name.is_empty()
        || !resource.namespaced() && !path.namespace.is_empty()
    {
        return Err(ApiError::NoSuchPath);
    }
    allowed(resource, &path, verb)?;
    if streams::is_stream(&path) {
        let (warnings, notes) = (Warnings::default(), trail.map(|trail| &trail.notes));
        let (headers, accept) = (request.headers(), Accept::JSON);
        let (path, query, warnings, who) = (&path, &query, &warnings, &who);
        dynamic::connect(&Context { server, who, resource, path, query, headers, accept, warnings, notes }).await?;
        let path = path.clone();
        return streams::forward(server, resource, &path, request).await;
    }
    let accept = Accept::parse(request.headers())?;
    let (parts, body) = request.into_parts();
    let warnings = Warnings::default();
    let (query, headers) = (&query, &parts.headers);
    let cx = Context {
        server,
        who: &who,
        resource,
        path: &path,
        query,
        headers,
        accept,
        warnings: &warnings,
        notes: trail.map(|trail| &trail.notes),
    };
    let answer = match verb {
        "watch" => return read::watch::watch(&cx),
        "get" if resource.group() == measured::GROUP => measured::get(&cx).await,
        "list" if resource.group() == measured::GROUP => measured::list(&cx).await,
        "get" => read::get::get(&cx).await,
        "list" => read::list::list(&cx).await,
        _ => {
            let body = crate::body::read(body).await?;
            with_warnings(&warnings, mutate(&cx, verb, body).await)
        }
    };
    if compress::accepts(headers) { answer.map(compress::large) } else { answer }
}

/// Warnings reach the client with a refusal, too.
fn with_warnings(warnings: &Warnings, answer: Result<Response<Body>, ApiError>) -> Result<Response<Body>, ApiError> {
    if warnings.is_empty() || matches!(answer, Err(ApiError::Internal(_))) {
        return answer;
    }
    let mut response = answer.unwrap_or_else(|refusal| refusal.response());
    warnings.write(&mut response);
    Ok(response)
}

async fn mutate(cx: &Context<'_>, verb: &str, body: bytes::Bytes) -> Result<Response<Body>, ApiError> {
    if !cx.resource.stored() {
        return review::create(cx, &body).await;
    }
    match (verb, cx.path.subresource.as_str()) {
        ("create", "") if cx.path.name.is_empty() => write::create::create(cx, &body).await,
        ("create", "binding") => write::pods::bind(cx, &body).await,
        ("create", "eviction") => write::eviction::evict(cx, &body).await,
        ("create", "token") => review::token_request(cx, &body),
        ("update", _) => write::update::put(cx, &body).await,
        ("patch", _) => write::patch::patch(cx, &body).await,
        ("delete", "") => write::delete::delete(cx, &body).await,
        ("deletecollection", "") => write::delete::delete_collection(cx, &body).await,
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn verb_of(method: &Method, path: &ResourcePath, watch: bool) -> Result<&'static str, ApiError> {
    // A connection to a container is created, whatever method opens it: that is what roles grant.
    if matches!(path.subresource.as_str(), "exec" | "attach" | "portforward") && method == Method::GET {
        return Ok("get");
    }
    // A proxy passes every method on; Kubernetes has no verb for this one, and roles grant reading.
    if path.subresource == "proxy" && method == Method::OPTIONS {
        return Ok("get");
    }
    request::verb(method, path, watch && path.subresource.is_empty()).ok_or(ApiError::MethodNotAllowed)
}

fn allowed(resource: &Resource, path: &ResourcePath, verb: &str) -> Result<(), ApiError> {
    let verbs = if path.subresource.is_empty() {
        resource.facts.verbs
    } else {
        resource.facts.subresource(&path.subresource).ok_or(ApiError::NoSuchPath)?.verbs
    };
    if verbs.contains(&verb) { Ok(()) } else { Err(ApiError::MethodNotAllowed) }
}

fn attributes(verb: &str, path: &ResourcePath) -> Attributes {
    // Requests about a namespace are decided by the roles inside it.
    let namespace = if path.resource == "namespaces" && path.group.is_empty() { &path.name } else { &path.namespace };
    Attributes {
        verb: verb.to_owned(),
        group: path.group.clone(),
        resource: path.resource.clone(),
        subresource: path.subresource.clone(),
        namespace: namespace.clone(),
        name: path.name.clone(),
        path: None,
    }
}

/// Refuses what `who` may not do.
pub fn authorize(server: &Inner, who: &Identity, want: &Attributes) -> Result<(), ApiError> {
    if who.is_master() || server.rbac.rules(&server.store).allows(who, want) {
        return Ok(());
    }
    let subject = match want.path {
        Some(_) => Subject::default(),
        None => Subject::new(&want.group, &want.resource, &want.name),
    };
    Err(ApiError::forbidden(subject, want.refusal(&who.user)))
}

/// What is about no resource, perhaps of somebody else's API.
fn elsewhere<'a>(
    server: &'a Arc<Inner>,
    request: Request<Body>,
    who: &'a Identity,
) -> BoxFuture<'a, Result<Response<Body>, ApiError>> {
    Box::pin(async move {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        if let Some(extension) = aggregation::of_path(server, &path) {
            let verb = request.method().as_str().to_ascii_lowercase();
            authorize(server, who, &Attributes { verb, path: Some(path), ..Attributes::default() })?;
            return aggregation::forward(server, &extension, request, who).await;
        }
        let answer = other(server, &request, who);
        drop(request);
        let of_group = path.strip_prefix("/apis/").is_some_and(|group| !group.contains('/'));
        let extensions = match of_group || matches!(path.as_str(), "/apis" | "/openapi/v3") {
            true => aggregation::all(server),
            false => Vec::new(),
        };
        if extensions.is_empty() { answer } else { with_extensions(server, path, answer, extensions).await }
    })
}

/// Adds to a document of discovery what others serve.
fn with_extensions(
    server: &Arc<Inner>,
    path: String,
    answer: Result<Response<Body>, ApiError>,
    extensions: Vec<Extension>,
) -> BoxFuture<'_, Result<Response<Body>, ApiError>> {
    use aggregation::discovery;
    Box::pin(async move {
        let (parts, body) = match answer {
            Ok(answer) => answer.into_parts(),
            Err(ApiError::NoSuchPath) => {
                let group = discovery::group(&extensions, path.trim_start_matches("/apis/"));
                return group.map(|group| reply::json(StatusCode::OK, &group)).ok_or(ApiError::NoSuchPath);
            }
            Err(error) => return Err(error),
        };
        let bytes = crate::body::read(body).await?;
        let mut document: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        match path.as_str() {
            "/openapi/v3" => discovery::add_openapi(&mut document, &extensions),
            "/apis" if document["items"].is_array() => {
                let lists = aggregation::resources(server, &extensions).await;
                discovery::add_aggregated(&mut document, &extensions, &lists);
            }
            "/apis" => discovery::add_groups(&mut document, &extensions),
            _ => return Ok(Response::from_parts(parts, crate::body::full(bytes))),
        }
        Ok(Response::from_parts(parts, crate::body::full(document.to_string())))
    })
}

const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Everything that is not about a resource.
fn other(server: &Inner, request: &Request<Body>, who: &Identity) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    let root = PUBLIC.iter().any(|p| path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if !root {
        let verb = request.method().as_str().to_ascii_lowercase();
        authorize(server, who, &Attributes { verb, path: Some(path.to_owned()), ..Attributes::default() })?;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(ApiError::MethodNotAllowed);
    }
    let query = Query::parse(request.uri().query());
    let ok = |text: String| Ok(reply::text(StatusCode::OK, text));
    match path.trim_end_matches('/') {
        p if root && p != "/version" => health(server, p, request.uri().query()),
        "/version" => Ok(reply::json(StatusCode::OK, &discovery::version())),
        "/metrics" => ok(server.metrics.render(server.store.revision(), server.store.count("/registry/"))),
        "" => Ok(reply::json(StatusCode::OK, &json!({ "paths": discovery::paths(&server.table()) }))),
        "/openapi/v2" => openapi::v2(&server.table(), request.headers()),
        "/openapi/v3" => openapi::v3_index(&server.table()),
        "/openid/v1/jwks" => Ok(reply::json(StatusCode::OK, &server.tokens.key_set())),
        "/.well-known/openid-configuration" => Ok(reply::json(StatusCode::OK, &discovery::openid())),
        p => match p.strip_prefix("/openapi/v3/") {
            Some(rest) => openapi::v3(&server.table(), rest, query.get("hash").is_some()),
            None => discovery::answer(&server.table(), p, Accept::parse(request.headers())?),
        },
    }
}

async fn authorized_copy(server: &Inner, who: &Identity) -> Result<Response<Body>, ApiError> {
    let want = Attributes { verb: "get".into(), path: Some(snapshot::PATH.into()), ..Attributes::default() };
    authorize(server, who, &want)?;
    snapshot::answer(server).await
}

fn health(server: &Inner, path: &str, query: Option<&str>) -> Result<Response<Body>, ApiError> {
    let stopping = *server.shutdown.borrow();
    if stopping && path.starts_with("/readyz") {
        return Ok(reply::text(StatusCode::INTERNAL_SERVER_ERROR, "[-]shutdown failed: shutting down\n"));
    }
    let verbose = Query::parse(query).optional_flag("verbose").is_some();
    let name = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let text = if verbose { format!("[+]ping ok\n[+]store ok\n{name} check passed\n") } else { "ok".to_owned() };
    Ok(reply::text(StatusCode::OK, text))
}
