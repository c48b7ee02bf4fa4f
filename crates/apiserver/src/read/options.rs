//! `resourceVersion`, `resourceVersionMatch`, `continue`, `limit` and `sendInitialEvents`: what they mean together.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mycelium_api::field::{FieldError, Path};
use mycelium_store::Revision;
use serde_json::json;

use crate::error::ApiError;
use crate::request::Query;
use crate::route::Context;

/// The options of a list or watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// `resourceVersion`: not given, or a number.
    pub revision: Option<Revision>,
    /// `resourceVersionMatch=Exact`.
    pub exact: bool,
    /// `limit`.
    pub limit: usize,
    /// Where to go on: the snapshot's revision (none: the newest) and the key already delivered.
    pub from: Option<Continue>,
    /// `sendInitialEvents`.
    pub send_initial_events: Option<bool>,
}

/// A continue token, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    /// Snapshot; `None` goes on inconsistently, with the newest.
    pub revision: Option<Revision>,
    /// The last key delivered, relative to the prefix.
    pub after: String,
}

impl Continue {
    /// The token. Opaque to clients.
    pub fn encode(&self) -> String {
        let revision = self.revision.map_or(-1, |r| i64::try_from(r).unwrap_or(i64::MAX));
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": self.after}).to_string())
    }

    fn decode(token: &str) -> Result<Self, ApiError> {
        let invalid = || ApiError::bad("continue key is not valid: incorrectly encoded token");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        let after = value["start"].as_str().filter(|s| !s.is_empty() && !s.starts_with('/')).ok_or_else(invalid)?;
        let revision = value["rv"].as_i64().filter(|rv| *rv != 0).ok_or_else(invalid)?;
        Ok(Self { revision: u64::try_from(revision).ok(), after: after.to_owned() })
    }
}

/// A resource version as a client gives it.
pub fn parse_revision(text: &str) -> Result<Revision, ApiError> {
    text.parse().map_err(|_| {
        invalid(vec![FieldError::invalid(
            &Path::new("resourceVersion"),
            text,
            format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
        )])
    })
}

fn invalid(errors: Vec<FieldError>) -> ApiError {
    ApiError::Invalid { group: "meta.k8s.io".into(), kind: "ListOptions".into(), name: String::new(), errors }
}

impl ListOptions {
    /// The options of a query.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, ApiError> {
        let options = Self {
            revision: query.get("resourceVersion").map(parse_revision).transpose()?,
            exact: query.get("resourceVersionMatch") == Some("Exact"),
            limit: usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0),
            from: query.get("continue").map(Continue::decode).transpose()?,
            send_initial_events: query.optional_flag("sendInitialEvents"),
        };
        let errors = options.conflicts(query, watch);
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        if options.from.is_some() && options.revision.is_some_and(|r| r != 0) {
            return Err(ApiError::bad("specifying resource version is not allowed when using continue"));
        }
        Ok(options)
    }

    fn conflicts(&self, query: &Query, watch: bool) -> Vec<FieldError> {
        let given = query.get("resourceVersionMatch");
        let (matching, initial) = (Path::new("resourceVersionMatch"), Path::new("sendInitialEvents"));
        let mut errors = Vec::new();
        let mut forbid = |path: &Path, text: &str| errors.push(FieldError::forbidden(path, text));
        if self.send_initial_events.is_some() {
            if given.is_none() {
                forbid(&matching, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if !watch {
                forbid(&initial, "sendInitialEvents is forbidden for list");
            }
        }
        if let Some(text) = given {
            if watch && self.send_initial_events.is_none() {
                forbid(&matching, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
            }
            if !watch && self.revision.is_none() {
                forbid(&matching, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if self.from.is_some() {
                forbid(&matching, "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.exact && self.revision == Some(0) {
                forbid(&matching, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
            let allowed: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan"] };
            if !allowed.contains(&text) {
                errors.push(FieldError::not_supported(&matching, text, allowed));
            }
        }
        errors
    }
}

/// Refuses a revision that lies in the future.
pub fn check_reached(cx: &Context<'_>, requested: Revision) -> Result<(), ApiError> {
    let current = cx.server.store.revision();
    if requested > current { Err(ApiError::TooLargeResourceVersion { requested, current }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for revision in [None, Some(7)] {
            let token = Continue { revision, after: "default/a".into() };
            assert_eq!(Continue::decode(&token.encode()).expect("ours"), token);
        }
        for bad in ["", "!", "e30", "eyJydiI6MX0"] {
            assert!(Continue::decode(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_token_panics(token in ".{0,60}", start in ".{0,20}") {
            let _ = Continue::decode(&token);
            let made = Continue { revision: Some(3), after: start.clone() }.encode();
            proptest::prop_assert_eq!(Continue::decode(&made).is_ok(), !start.is_empty() && !start.starts_with('/'));
        }
    }

    #[test]
    fn options_that_contradict_are_refused() {
        let parse = |q: &str, watch| ListOptions::parse(&Query::parse(Some(q)), watch);
        assert!(parse("resourceVersion=5&resourceVersionMatch=Exact", false).is_ok());
        assert!(parse("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true).is_ok());
        assert!(parse("sendInitialEvents=true", true).is_err());
        assert!(parse("resourceVersionMatch=Exact", false).is_err());
        assert!(parse("resourceVersion=0&resourceVersionMatch=Exact", false).is_err());
        assert!(parse("resourceVersion=5&resourceVersionMatch=Never", false).is_err());
        assert!(parse("resourceVersion=x", false).is_err());
    }
}
