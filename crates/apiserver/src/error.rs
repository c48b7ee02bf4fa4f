//! Every failure a client can see, and its one mapping to `metav1.Status`.
//!
//! Texts, reasons and codes are those of Kubernetes: clients match on them.

use http::{HeaderValue, Response, StatusCode, header};
use mycelium_api::field::FieldError;
use serde_json::{Value, json};

use crate::body::{self, Body};

/// Which resource an error is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// API group; empty for core.
    pub group: String,
    /// Plural resource name.
    pub resource: String,
    /// Object name; empty for a collection.
    pub name: String,
}

impl Subject {
    /// A subject from its parts.
    pub fn new(group: &str, resource: &str, name: &str) -> Self {
        Self { group: group.to_owned(), resource: resource.to_owned(), name: name.to_owned() }
    }

    /// `deployments.apps`, or `pods` for the core group.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() { self.resource.clone() } else { format!("{}.{}", self.resource, self.group) }
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        if !self.resource.is_empty() {
            details["kind"] = json!(self.resource);
        }
        if !self.name.is_empty() {
            details["name"] = json!(self.name);
        }
        if !self.group.is_empty() {
            details["group"] = json!(self.group);
        }
        details
    }
}

/// One `metav1.StatusCause`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Machine-readable reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Field path, when the cause is a field.
    pub field: String,
}

/// A failure of a request.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs)] // the variants carry what their message shows
pub enum ApiError {
    #[error("{message}")]
    Unauthorized { message: String },
    #[error("{}", forbidden_text(.subject, .message))]
    Forbidden { subject: Subject, message: String, causes: Vec<Cause> },
    #[error("{} {:?} not found", .0.qualified_resource(), .0.name)]
    NotFound(Subject),
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    #[error("{} {:?} already exists", .0.qualified_resource(), .0.name)]
    AlreadyExists(Subject),
    #[error("object is being deleted: {} {:?} already exists", .0.qualified_resource(), .0.name)]
    BeingDeleted(Subject),
    #[error("Operation cannot be fulfilled on {} {:?}: {message}", .subject.qualified_resource(), .subject.name)]
    Conflict { subject: Subject, message: String },
    #[error("{message}")]
    ApplyConflict { message: String, causes: Vec<Cause> },
    #[error("{} {name:?} is invalid: {}", qualified_kind(.kind, .group), invalid_text(.errors))]
    Invalid { group: String, kind: String, name: String, errors: Vec<FieldError> },
    #[error("{0}")]
    Unprocessable(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// A whole `Status`, as somebody else made it.
    #[error("{}", .0["message"].as_str().unwrap_or_default())]
    Verbatim(Box<Value>),
    #[error("create not allowed while custom resource definition is terminating")]
    Ending,
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(&'static str),
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(&'static str),
    #[error("Request entity too large: {0}")]
    TooLarge(String),
    #[error("{message}")]
    Expired { message: String, continue_token: Option<String> },
    #[error("Timeout: Too large resource version: {requested}, current: {current}")]
    TooLargeResourceVersion { requested: u64, current: u64 },
    #[error("{0}")]
    TooManyRequests(String),
    #[error("Cannot evict pod as it would violate the pod's disruption budget.")]
    Disruption { cause: String, retry_seconds: Option<u32> },
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Typed(String),
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

fn forbidden_text(subject: &Subject, message: &str) -> String {
    match (subject.resource.is_empty(), subject.name.is_empty()) {
        (true, _) => format!("forbidden: {message}"),
        (_, true) => format!("{} is forbidden: {message}", subject.qualified_resource()),
        _ => format!("{} {:?} is forbidden: {message}", subject.qualified_resource(), subject.name),
    }
}

fn qualified_kind(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

fn invalid_text(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

fn causes_value(causes: &[Cause]) -> Value {
    causes.iter().map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field})).collect()
}

impl ApiError {
    /// A 403 about one object.
    pub fn forbidden(subject: Subject, message: impl Into<String>) -> Self {
        Self::Forbidden { subject, message: message.into(), causes: Vec::new() }
    }

    /// A 400 with a formatted text.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::BadRequest(message.into())
    }

    /// A 500 with a formatted text.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::Internal(message.to_string())
    }

    /// The 410 of a watch or an exact list that reaches behind the kept history.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Self::Expired { message: format!("too old resource version: {requested} ({oldest})"), continue_token: None }
    }

    /// HTTP status code and `reason`.
    pub fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NotFound(_) | Self::NoSuchPath => (StatusCode::NOT_FOUND, "NotFound"),
            Self::AlreadyExists(_) | Self::BeingDeleted(_) => (StatusCode::CONFLICT, "AlreadyExists"),
            Self::Conflict { .. } | Self::ApplyConflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            Self::Invalid { .. } | Self::Unprocessable(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Verbatim(status) => {
                let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                let code = code.and_then(|code| StatusCode::from_u16(code).ok());
                (code.unwrap_or(StatusCode::BAD_REQUEST), "")
            }
            Self::MethodNotAllowed | Self::Ending => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
            Self::Expired { .. } => (StatusCode::GONE, "Expired"),
            Self::TooLargeResourceVersion { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::TooManyRequests(_) | Self::Disruption { .. } => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Typed(_) => (StatusCode::INTERNAL_SERVER_ERROR, ""),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    fn details(&self) -> Value {
        match self {
            Self::NotFound(subject)
            | Self::AlreadyExists(subject)
            | Self::BeingDeleted(subject)
            | Self::Conflict { subject, .. } => subject.details(),
            Self::Forbidden { subject, causes, .. } => {
                let mut details = subject.details();
                if !causes.is_empty() {
                    details["causes"] = causes_value(causes);
                }
                details
            }
            Self::Invalid { group, kind, name, errors } => {
                let causes: Vec<Value> = errors
                    .iter()
                    .map(|e| json!({"reason": e.kind.reason(), "message": e.body(), "field": e.path.as_str()}))
                    .collect();
                let mut details = Subject::new(group, kind, name).details();
                details["causes"] = json!(causes);
                details
            }
            Self::ApplyConflict { causes, .. } => json!({ "causes": causes_value(causes) }),
            Self::TooLargeResourceVersion { .. } => json!({"causes": [{"reason": "ResourceVersionTooLarge",
                "message": "Too large resource version"}], "retryAfterSeconds": 1}),
            Self::TooManyRequests(_) => json!({"retryAfterSeconds": 1}),
            Self::Disruption { cause, retry_seconds } => {
                let mut details = json!({"causes": [{"reason": "DisruptionBudget", "message": cause}]});
                if let Some(seconds) = retry_seconds {
                    details["retryAfterSeconds"] = json!(seconds);
                }
                details
            }
            Self::Internal(message) => json!({"causes": [{"message": message}]}),
            _ => Value::Null,
        }
    }

    /// The `metav1.Status` of this failure.
    pub fn status(&self) -> Value {
        if let Self::Verbatim(status) = self {
            return (**status).clone();
        }
        let (code, reason) = self.code();
        let mut metadata = json!({});
        if let Self::Expired { continue_token: Some(token), .. } = self {
            metadata["continue"] = json!(token);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.to_string(), "code": code.as_u16(),
        });
        if !reason.is_empty() {
            status["reason"] = json!(reason);
        }
        match self.details() {
            Value::Null => {}
            details => status["details"] = details,
        }
        status
    }

    /// The HTTP answer.
    pub fn response(&self) -> Response<Body> {
        let (code, _) = self.code();
        let mut response = Response::new(body::full(self.status().to_string() + "\n"));
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Self::Disruption { retry_seconds: Some(seconds), .. } = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
        }
        if matches!(self, Self::TooManyRequests(_) | Self::TooLargeResourceVersion { .. }) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use mycelium_api::field::Path;

    use super::*;

    #[test]
    fn statuses_read_as_in_kubernetes() {
        let subject = Subject::new("apps", "deployments", "web");
        let invalid = ApiError::Invalid {
            group: "apps".into(),
            kind: "Deployment".into(),
            name: "web".into(),
            errors: vec![FieldError::required(&Path::new("spec").child("selector"), "")],
        };
        for (error, code, message) in [
            (ApiError::NotFound(subject.clone()), 404, "deployments.apps \"web\" not found"),
            (ApiError::AlreadyExists(Subject::new("", "pods", "a")), 409, "pods \"a\" already exists"),
            (invalid, 422, "Deployment.apps \"web\" is invalid: spec.selector: Required value"),
            (ApiError::too_old(3, 9), 410, "too old resource version: 3 (9)"),
        ] {
            let status = error.status();
            assert_eq!(status["code"], code);
            assert_eq!(status["message"], message);
        }
        assert_eq!(ApiError::NotFound(subject).status()["details"]["group"], "apps");
    }
}
