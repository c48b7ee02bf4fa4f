//! OpenAPI documents, made when they are asked for.
//!
//! `kubectl` reads them to learn which parameters an operation takes (`fieldValidation`, `dryRun`), how lists merge
//! (`apply`), and what fields there are (`explain`). They describe the fields that
//! every object has, and what custom resources say of their own.

mod paths;
mod protobuf;
mod schema;
mod v2;
mod v3;
mod words;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::{Resource, api_version, resources};

pub use v2::{v2_json, v2_protobuf};
pub use v3::{hash, v3_document, v3_index};

/// A custom resource in one of its served versions.
#[derive(Clone, Debug)]
pub struct Custom<'a> {
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Kind of the list.
    pub list_kind: &'a str,
    /// Plural name.
    pub plural: &'a str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// The `openAPIV3Schema`, as JSON text: many are kept, and few are looked at.
    pub schema: Option<&'a [u8]>,
    /// Whether there is a `status` subresource.
    pub status: bool,
    /// Whether there is a `scale` subresource.
    pub scale: bool,
}

impl Custom<'_> {
    /// The name of the schema: `com.example.stable.v1.CronTab`.
    fn definition(&self, kind: &str) -> String {
        let mut parts: Vec<&str> = self.group.split('.').collect();
        parts.reverse();
        format!("{}.{}.{kind}", parts.join("."), self.version)
    }
}

/// Group versions and what each serves, in order of priority.
fn group_versions<'a, 'c>(customs: &'a [Custom<'c>]) -> Vec<(&'a str, &'a str)> {
    let all = resources().iter().map(|r| (r.group, r.version)).chain(customs.iter().map(|c| (c.group, c.version)));
    let mut found: Vec<(&str, &str)> = Vec::new();
    for gv in all {
        if !found.contains(&gv) {
            found.push(gv);
        }
    }
    found
}

fn built_in(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    resources().iter().filter(move |r| r.group == group && r.version == version)
}

/// `api/v1`, `apis/apps/v1`.
fn url_of(group: &str, version: &str) -> String {
    format!("{}/{}", if group.is_empty() { "api" } else { "apis" }, api_version(group, version))
}

/// Schemas by name.
type Schemas = BTreeMap<String, Value>;
