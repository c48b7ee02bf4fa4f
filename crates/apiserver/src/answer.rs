//! Answers: objects as JSON, YAML, tables, metadata only; warnings; indentation for people.

use std::sync::{Mutex, PoisonError};

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

/// The most characters that all warnings of an answer have together, as in Kubernetes.
const WARNINGS_MAX: usize = 4 * 1024;
/// The most characters of one warning, where together they are too many.
const LONG_WARNING_MAX: usize = 256;

/// What the audit log is told of a request besides what every line says: keys and values.
#[derive(Default)]
pub struct Notes(Mutex<std::collections::BTreeMap<String, String>>);

impl Notes {
    /// Adds or replaces a note.
    pub fn set(&self, key: &str, value: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), value);
    }

    /// All notes.
    pub fn take(&self) -> std::collections::BTreeMap<String, String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a request's answer warns of, each text once. Collected on the way, so that an answer that refuses can warn too.
#[derive(Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Adds texts that are not there yet.
    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for text in texts {
            if !known.contains(&text) {
                known.push(text);
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Adds them to an answer, in the form `299 - "text"`.
    pub fn write(&self, response: &mut Response<Body>) {
        let warnings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = warnings.iter().map(|text| text.chars().count()).sum();
        let most = if total > WARNINGS_MAX { LONG_WARNING_MAX } else { WARNINGS_MAX };
        let mut written = 0;
        for warning in warnings.iter() {
            let text: String = warning.chars().take(most).collect();
            if written >= WARNINGS_MAX {
                break;
            }
            written += text.chars().count();
            let text = text.replace(char::is_control, " ").replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
                response.headers_mut().append(WARNING, value);
            }
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
