//! Errors of an API server, as one paragraph that ends with the next step.

use std::fmt;

use http::StatusCode;
use kube::core::Status;

/// An answer that is an error.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict` ...
    pub reason: String,
    message: String,
    server: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.trim();
        match self.reason.as_str() {
            "" => write!(f, "the server {} answered {}: {message}", self.server, self.code)?,
            reason => write!(f, "{message} ({reason})")?,
        }
        match self.code {
            401 => write!(
                f,
                ". {} does not accept the login in the kubeconfig; get a new one, or choose another context",
                self.server
            ),
            403 => write!(f, ". Ask for the right, or choose another context with --context"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Answer {}

/// The HTTP status of the answer that an error stands for.
pub fn code(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Answer>().map(|answer| answer.code)
}

/// The reason of the answer that an error stands for.
pub fn reason(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Answer>().map(|answer| answer.reason.as_str())
}

/// An answer whose status is an error.
pub fn answer(status: StatusCode, body: &[u8], server: &str) -> anyhow::Error {
    let parsed = serde_json::from_slice::<Status>(body).ok().filter(|status| !status.message.is_empty());
    let (reason, message) = match parsed {
        Some(status) => (status.reason, status.message),
        None => (String::new(), String::from_utf8_lossy(body).chars().take(500).collect()),
    };
    Answer { code: status.as_u16(), reason, message, server: server.to_owned() }.into()
}

/// An error of the client library.
pub fn explain(error: kube::Error, server: &str) -> anyhow::Error {
    if let kube::Error::Api(status) = error {
        let (code, reason, message) = (status.code, status.reason, status.message);
        return Answer { code, reason, message, server: server.to_owned() }.into();
    }
    let cause = innermost(&error);
    if cause.contains("UnknownIssuer") || cause.contains("certificate") {
        return anyhow::anyhow!(
            "the certificate of {server} is not the one the kubeconfig expects ({cause}); \
             get a new kubeconfig (a fresh engine makes a new admin.kubeconfig)"
        );
    }
    match error {
        kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => anyhow::anyhow!(
            "{server} cannot be reached ({cause}); start the engine with `mycelium up`, \
             or choose another cluster with --kubeconfig or --context"
        ),
        other => anyhow::Error::new(other),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}
