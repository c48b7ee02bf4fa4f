//! Why a link could not be made, or ended.

use std::io;

/// What can go wrong with identities and links.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The group file is not a CA certificate and its key.
    #[error("the group file is not valid: {what}")]
    Group {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A peer's name cannot stand in a certificate.
    #[error("`{name}` is not a peer name: 1 to 64 printable ASCII characters are")]
    Name {
        /// The name.
        name: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused its configuration.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
    /// The verifier refused the group's certificate.
    #[error("cannot verify peers by the group's certificate")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The peer shows a certificate of another group, or refused ours.
    #[error("the peer belongs to another group: its certificate and ours were not issued from the same group file")]
    WrongGroup,
    /// There is nothing to connect to, or no local address of the remotes' family.
    #[error("no pair of a local and a remote address to connect over")]
    NoAddresses,
    /// A socket could not be made, bound or connected.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The peer did not answer in time.
    #[error("{peer} did not answer in time")]
    Timeout {
        /// Whom we tried to reach.
        peer: String,
    },
    /// The peer does not let this connection in.
    #[error("the peer refused the connection: {reason}")]
    Refused {
        /// What the peer said.
        reason: Refusal,
    },
    /// The peer speaks something else.
    #[error("the peer does not keep to the protocol: {0}")]
    Protocol(#[from] Violation),
    /// A message is longer than the peer or we accept.
    #[error("a message of {bytes} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The link has ended.
    #[error("the link is closed: {0}")]
    Closed(CloseReason),
}

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| match tls_error(&source) {
            Some(tls) if is_foreign(tls) => Self::WrongGroup,
            _ => Self::Io { action, source },
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Whether the peer's certificate, or ours in the peer's eyes, is not of the group.
fn is_foreign(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error as Tls};
    match error {
        Tls::InvalidCertificate(fault) => matches!(fault, Certificate::UnknownIssuer | Certificate::BadSignature),
        Tls::AlertReceived(alert) => matches!(alert, Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate),
        Tls::NoCertificatesPresented => true,
        _ => false,
    }
}

/// Why a peer refuses a connection at the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It speaks another version of this protocol.
    #[error("it speaks another version")]
    Version,
    /// The connection wants to join a link that is gone, never was, or is another peer's.
    #[error("it knows no such link of this peer")]
    UnknownSession,
    /// It has as many links or connections as it wants.
    #[error("it has no room for another link or connection")]
    Full,
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of an unknown kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A field has a value that it cannot have.
    #[error("invalid {0}")]
    Field(&'static str),
    /// It sent more than it was allowed to.
    #[error("more data than was granted")]
    Credit,
    /// Two chunks of a message overlap.
    #[error("overlapping chunks")]
    Overlap,
    /// It acknowledged what was never sent.
    #[error("acknowledgement of what was not sent")]
    Acknowledgement,
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it.
    #[error("closed by the peer")]
    Peer,
    /// Nothing was heard on any connection for the configured time.
    #[error("the peer was silent on every connection for {after_ms} ms")]
    Silent {
        /// The configured time.
        after_ms: u64,
    },
    /// The peer no longer knows the link.
    #[error("the peer no longer knows this link")]
    Forgotten,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Violation(Violation),
}
