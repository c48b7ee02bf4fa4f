//! Answers of our own: short texts that say which side is at fault.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::proxy::body::Download;

/// An answer with a line of text.
pub fn text(status: StatusCode, why: &'static str) -> Response<Download> {
    let mut response = Response::new(Download::Own(Some(Bytes::from_static(why.as_bytes()))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A redirect.
pub fn redirect(status: StatusCode, target: &str) -> Response<Download> {
    let Ok(target) = HeaderValue::from_str(target) else {
        return text(StatusCode::BAD_REQUEST, "the request cannot be redirected\n");
    };
    let mut response = Response::new(Download::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, target);
    response
}

/// The request makes no sense.
pub fn bad_request(why: &'static str) -> Response<Download> {
    text(StatusCode::BAD_REQUEST, why)
}

/// Nothing is served under this host and path.
pub fn not_found() -> Response<Download> {
    text(StatusCode::NOT_FOUND, "no Ingress has a rule for this host and path\n")
}

/// The client may not.
pub fn forbidden() -> Response<Download> {
    text(StatusCode::FORBIDDEN, "this address may not use this host and path\n")
}

/// The Ingress is closed until it is mended.
pub fn closed() -> Response<Download> {
    text(StatusCode::SERVICE_UNAVAILABLE, "this Ingress asks for protection that is not served; see its events\n")
}

/// The service has no ready endpoint.
pub fn no_endpoints() -> Response<Download> {
    text(StatusCode::SERVICE_UNAVAILABLE, "the service behind this path has no ready endpoint\n")
}

/// The client asks for too much.
pub fn too_many() -> Response<Download> {
    text(StatusCode::SERVICE_UNAVAILABLE, "too many requests from this address\n")
}

/// The request's body is too long.
pub fn too_large() -> Response<Download> {
    let mut response = text(StatusCode::PAYLOAD_TOO_LARGE, "the body of the request is longer than allowed\n");
    // What is left of the body is not read.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// No endpoint could be reached, or it broke off.
pub fn bad_gateway() -> Response<Download> {
    text(StatusCode::BAD_GATEWAY, "the service behind this path cannot be reached\n")
}

/// The endpoint takes too long.
pub fn timed_out() -> Response<Download> {
    text(StatusCode::GATEWAY_TIMEOUT, "the service behind this path takes too long to answer\n")
}
