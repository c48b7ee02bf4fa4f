//! The options of a write: dry run, field validation, field manager.

use http::header::USER_AGENT;
use mycelium_api::field::{FieldError, Path};

use crate::error::ApiError;
use crate::route::Context;

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Say nothing.
    Ignore,
    /// Warn.
    Warn,
    /// Refuse.
    Strict,
}

/// The options of a write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Nothing is written.
    pub dry_run: bool,
    /// About unknown fields.
    pub validation: FieldValidation,
    /// Who owns the fields written.
    pub manager: String,
    /// Server-side apply takes over fields of others.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// The options of a request.
    pub fn parse(cx: &Context<'_>, kind: &str) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let mut dry_run = false;
        for value in cx.query.all("dryRun") {
            dry_run = true;
            if value != "All" {
                errors.push(FieldError::not_supported(&Path::new("dryRun"), value, &["All"]));
            }
        }
        let validation = match cx.query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let allowed = ["Ignore", "Warn", "Strict"];
                errors.push(FieldError::not_supported(&Path::new("fieldValidation"), other, &allowed));
                FieldValidation::Strict
            }
        };
        let manager = cx.query.get("fieldManager").map_or_else(|| default_manager(cx), str::to_owned);
        if manager.len() > 128 {
            let path = Path::new("fieldManager");
            errors.push(FieldError::new(
                mycelium_api::field::ErrorKind::TooLong,
                &path,
                "",
                "may not be more than 128 bytes",
            ));
        }
        if !errors.is_empty() {
            return Err(ApiError::Invalid {
                group: "meta.k8s.io".into(),
                kind: kind.into(),
                name: String::new(),
                errors,
            });
        }
        Ok(Self { dry_run, validation, manager, force: cx.query.optional_flag("force") })
    }
}

/// Without a field manager, the first part of the user agent stands for one.
fn default_manager(cx: &Context<'_>) -> String {
    let agent = cx.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let name = agent.split('/').next().unwrap_or_default();
    if name.is_empty() { "unknown".to_owned() } else { name.chars().take(128).collect() }
}
