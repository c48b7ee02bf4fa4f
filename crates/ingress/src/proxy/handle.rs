//! From a request to an answer: what has to be settled before a backend is asked, and after.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::{Body, Incoming};
use mycelium_api::env::Env;
use tokio::time::Instant;

use crate::annotations::template::{Facts, cookie};
use crate::annotations::{Cookie, Cors, Settings};
use crate::limit::Present;
use crate::proxy::body::Download;
use crate::proxy::forward::{Job, Outcome};
use crate::proxy::{Peer, Shared, answer, headers};
use crate::rules::backend::Choice;
use crate::rules::model::Match;
use crate::rules::path;
use crate::rules::table::Route;

/// Answers a request.
pub async fn respond(shared: &Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<Download> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return answer::text(StatusCode::METHOD_NOT_ALLOWED, "this method is not served\n");
    }
    let Some(host) = headers::host(request.uri(), request.headers()) else {
        return answer::bad_request("the request names no host, or several\n");
    };
    let Some(path) = path::normal(request.uri().path()) else {
        return answer::bad_request("the path of the request is not valid\n");
    };
    let Some(route) = shared.table().route(&host, &path).cloned() else { return answer::not_found() };
    let settings = route.settings.clone();
    let facts = Facts {
        host: &host,
        uri: request.uri(),
        headers: request.headers(),
        scheme: peer.scheme(),
        client: peer.client,
    };
    let cors = settings.cors.then(|| cors_headers(&settings.cors_values, request.headers())).flatten();
    let mut response = match settle(shared, &peer, &route, &request, &facts, &path) {
        Err(response) => *response,
        Ok(present) => match target(&route, &facts, &path) {
            Err(()) => answer::bad_request("the path cannot be rewritten\n"),
            Ok(target) => pass(shared, peer, &route, request, target, present, &host).await,
        },
    };
    for (name, value) in cors.into_iter().flatten() {
        response.headers_mut().insert(name, value);
    }
    response
}

/// What the settings of a route decide before a backend is asked: an answer, or what to hold while one works.
fn settle(
    shared: &Shared,
    peer: &Peer,
    route: &Route,
    request: &Request<Incoming>,
    facts: &Facts<'_>,
    path: &str,
) -> Result<Option<Present>, Box<Response<Download>>> {
    let settings = &*route.settings;
    if settings.closed.is_some() {
        return Err(Box::new(answer::closed()));
    }
    if !lets_in(settings, peer.client) {
        return Err(Box::new(answer::forbidden()));
    }
    let https = shared.https_port();
    let wants_https = settings.force_ssl_redirect || settings.ssl_redirect && route.secure;
    if wants_https && !peer.secure && https != 0 {
        let port = if https == 443 { String::new() } else { format!(":{https}") };
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let target = format!("https://{}{port}{target}", facts.host);
        return Err(Box::new(answer::redirect(StatusCode::PERMANENT_REDIRECT, &target)));
    }
    if settings.cors && request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN) {
        let mut response = Response::new(Download::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Err(Box::new(response));
    }
    if let Some((code, target)) = &settings.redirect {
        return Err(Box::new(answer::redirect(*code, &target.fill(facts, None))));
    }
    if let Some(root) = settings.app_root.as_ref().filter(|_| path == "/") {
        return Err(Box::new(answer::redirect(StatusCode::FOUND, root.to_str().unwrap_or("/"))));
    }
    let present = match &route.limiter {
        Some(limiter) => limiter.admit(peer.client, Instant::now()).map_err(|_| Box::new(answer::too_many()))?,
        None => None,
    };
    let length = request.body().size_hint().lower();
    if settings.body_max > 0 && length > settings.body_max {
        return Err(Box::new(answer::too_large()));
    }
    Ok(present)
}

fn lets_in(settings: &Settings, client: IpAddr) -> bool {
    let within = |ranges: &[ipnet::IpNet]| ranges.iter().any(|range| range.contains(&client));
    !within(&settings.deny) && (settings.allow.is_empty() || within(&settings.allow))
}

/// What the request's target becomes; none if it stays.
fn target(route: &Route, facts: &Facts<'_>, path: &str) -> Result<Option<PathAndQuery>, ()> {
    let Some(rewrite) = &route.settings.rewrite else { return Ok(None) };
    let groups = match &route.kind {
        Match::Pattern(pattern) => pattern.captures(path),
        _ => None,
    };
    let mut text = rewrite.fill(facts, groups.as_ref());
    if !text.starts_with('/') {
        text.insert(0, '/');
    }
    // A question mark at the end drops what the client asked.
    match (text.strip_suffix('?').map(str::len), facts.uri.query()) {
        (Some(len), _) => text.truncate(len),
        (None, Some(query)) => {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(query);
        }
        (None, None) => {}
    }
    text.parse().map(Some).map_err(|_| ())
}

/// Sends a request to an endpoint of its route.
async fn pass(
    shared: &Arc<Shared>,
    peer: Peer,
    route: &Arc<Route>,
    request: Request<Incoming>,
    target: Option<PathAndQuery>,
    present: Option<Present>,
    host: &str,
) -> Response<Download> {
    if route.backend.targets.is_empty() {
        return answer::no_endpoints();
    }
    let settings = route.settings.clone();
    let token =
        settings.affinity.then(|| cookie(request.headers(), &settings.cookie.name).map(str::to_owned)).flatten();
    let hash = settings.hash_by.as_ref().map(|template| {
        let (uri, headers) = (request.uri(), request.headers());
        template.fill(&Facts { host, uri, headers, scheme: peer.scheme(), client: peer.client }, None)
    });
    let choice = match (&token, &hash) {
        (Some(token), _) => Choice::Token(token),
        (None, Some(text)) if !settings.affinity => Choice::Hash(text),
        _ => Choice::Turn,
    };
    let Some(job) = Job::new(shared, &peer, route, request, target, present) else {
        return answer::bad_request("the request's host is not valid\n");
    };
    let Outcome { mut response, endpoint } = job.run(&choice).await;
    if let Some(endpoint) = endpoint.filter(|_| settings.affinity) {
        let chosen = &route.backend.targets[endpoint].token;
        let moved = token.as_ref() != Some(chosen);
        let known = token.is_some_and(|token| route.backend.targets.iter().any(|target| target.token == token));
        // One that was passed over once keeps its client unless told otherwise.
        if moved && (!known || settings.cookie.change_on_failure) {
            let value = set_cookie(&settings.cookie, chosen, route, peer.secure, &shared.env);
            response.headers_mut().extend(value.map(|value| (header::SET_COOKIE, value)));
        }
    }
    response
}

fn set_cookie(cookie: &Cookie, token: &str, route: &Route, secure: bool, env: &Env) -> Option<HeaderValue> {
    let own = if matches!(route.kind, Match::Pattern(_)) { "/" } else { &route.path };
    let mut text = format!("{}={token}; Path={}", cookie.name, cookie.path.as_deref().unwrap_or(own));
    if let Some(domain) = &cookie.domain {
        text.push_str(&format!("; Domain={domain}"));
    }
    if let Some(seconds) = cookie.expires_s {
        let at = env.now().saturating_add(jiff::SignedDuration::from_secs(seconds.into())).ok()?;
        text.push_str(&at.strftime("; Expires=%a, %d %b %Y %H:%M:%S GMT").to_string());
    }
    if let Some(seconds) = cookie.max_age_s {
        text.push_str(&format!("; Max-Age={seconds}"));
    }
    if cookie.secure.unwrap_or(secure) {
        text.push_str("; Secure");
    }
    text.push_str("; HttpOnly");
    if let Some(same_site) = cookie.same_site {
        text.push_str(&format!("; SameSite={same_site}"));
    }
    HeaderValue::from_str(&text).ok()
}

type Pairs = Vec<(header::HeaderName, HeaderValue)>;

/// What an answer says to scripts of other origins; none for an origin that is not allowed.
fn cors_headers(cors: &Cors, request: &HeaderMap) -> Option<Pairs> {
    let origin = request.get(header::ORIGIN);
    let allowed = match origin {
        Some(origin) => cors.origin(origin)?,
        None => cors.origin(&HeaderValue::from_static("")).filter(|value| value == "*")?,
    };
    let mut pairs = vec![
        (header::ACCESS_CONTROL_ALLOW_METHODS, cors.methods.clone()),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.clone()),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age_s)),
    ];
    if allowed != "*" {
        pairs.push((header::VARY, HeaderValue::from_static("Origin")));
    }
    pairs.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed));
    if cors.credentials {
        pairs.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
    }
    pairs.extend(cors.expose.clone().map(|names| (header::ACCESS_CONTROL_EXPOSE_HEADERS, names)));
    Some(pairs)
}

/// The target of a request as its backend gets it, and the authority that it was sent to.
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => headers.get(header::HOST).cloned(),
    }
}
