//! Bytes from clients to JSON values, with the errors that Kubernetes' decoder gives: their texts reach users.
//!
//! Decoding has three steps, each on its own: syntax ([`json()`], [`yaml()`]), then [`check_types`] and
//! [`check_strict`] against a type, then [`prune`], which leaves what a typed decoder would have kept.

mod check;
mod json;
mod number;
mod yaml;

pub use check::{TypeError, check_conversion, check_strict, check_types, json_kind, prune};
pub use json::{in_document_order, json};
pub use yaml::{Document, yaml, yaml_documents};

/// What a decoder accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Objects and lists inside each other.
    pub depth: usize,
}

impl Default for Limits {
    /// Deep enough for any manifest, shallow enough for a recursive walk on a small stack.
    fn default() -> Self {
        Self { depth: 256 }
    }
}

/// Something that strict field validation refuses and lenient validation warns about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is no JSON or YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Malformed; the text is the one of Go's scanner (for JSON) or names the line (for YAML).
    #[error("{0}")]
    Syntax(String),
    /// Nested deeper than the limit.
    #[error("exceeded max depth")]
    TooDeep,
}

/// Most faults that a strict decoder lists.
const MAX_WARNINGS: usize = 100;
