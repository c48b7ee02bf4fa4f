//! Answers: objects as JSON, YAML, tables, metadata only; warnings; indentation for people.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::body::{self, Body};
use crate::error::ApiError;

/// `Warning`, which kubectl prints.
pub const WARNING: HeaderName = HeaderName::from_static("warning");

/// A JSON answer from bytes.
pub fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "application/json", body::full(bytes))
}

/// A JSON answer from a value.
pub fn json(code: StatusCode, value: &Value) -> Response<Body> {
    let mut text = value.to_string();
    text.push('\n');
    json_bytes(code, text)
}

/// Plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", body::full(text))
}

/// Any body with a content type.
pub fn with_type(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer in YAML.
pub fn yaml(code: StatusCode, value: &Value) -> Result<Response<Body>, ApiError> {
    let text = serde_saphyr::to_string(value).map_err(ApiError::internal)?;
    Ok(with_type(code, "application/yaml", body::full(text)))
}

/// Adds warnings in the form `299 - "text"`.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace(['\r', '\n'], " ").replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Indents a JSON answer. Streams stay as they are.
pub async fn prettify(response: Response<Body>) -> Response<Body> {
    use http_body::Body as _;
    let json = response.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !json || response.body().size_hint().exact().is_none() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else { return Response::from_parts(parts, body::empty()) };
    let bytes = collected.to_bytes();
    let pretty = serde_json::from_slice::<Value>(&bytes).and_then(|value| serde_json::to_string_pretty(&value));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, body::full(pretty.map_or(bytes, |text| Bytes::from(text + "\n"))))
}
