//! What a schema is made into when an object first needs it.
//!
//! An operator brings dozens of definitions of which many never get an object, and a schema as a tree takes ten times the
//! memory of its text. The text is a part of the stored definition, which is in memory anyway.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use mycelium_apimachinery::schema::{self, Type};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::rules::Rules;
use super::validate::Patterns;

/// The schema of a version.
pub struct Schema {
    text: Option<Bytes>,
    /// Whether fields that it does not name are kept all the same.
    preserve: bool,
    made: OnceLock<Made>,
}

/// A schema that objects can be held against.
pub struct Made {
    /// The `openAPIV3Schema`.
    pub document: Option<Value>,
    /// Its patterns, compiled.
    pub patterns: Patterns,
    /// Its rules in CEL.
    pub rules: Option<Rules>,
    /// What it says of fields.
    pub ty: Type,
}

impl Schema {
    /// A schema by its text.
    pub fn new(text: Option<Bytes>, preserve: bool) -> Self {
        Self { text, preserve, made: OnceLock::new() }
    }

    /// The `openAPIV3Schema` as text.
    pub fn text(&self) -> Option<&[u8]> {
        self.text.as_deref()
    }

    /// What it is made into.
    pub fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let document: Option<Value> = self.text().and_then(|text| serde_json::from_slice(text).ok());
            Made {
                patterns: document.as_ref().map(Patterns::of).unwrap_or_default(),
                rules: document.as_ref().and_then(Rules::of),
                ty: schema::from_crd_schema(document.as_ref(), self.preserve),
                document,
            }
        })
    }
}

#[derive(Deserialize)]
struct Definition<'a> {
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
struct Spec<'a> {
    #[serde(borrow)]
    versions: Vec<Version<'a>>,
}

#[derive(Deserialize)]
struct Version<'a> {
    name: String,
    #[serde(borrow, default)]
    schema: Option<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default, rename = "openAPIV3Schema")]
    schema: Option<&'a RawValue>,
}

/// The schemas of a stored definition by version, as parts of its text.
pub fn texts(stored: &Bytes) -> BTreeMap<String, Bytes> {
    let Ok(definition) = serde_json::from_slice::<Definition<'_>>(stored) else { return BTreeMap::new() };
    let versions = definition.spec.versions.into_iter();
    let with_text = versions.filter_map(|version| Some((version.name, version.schema?.schema?)));
    with_text.map(|(name, raw)| (name, stored.slice_ref(raw.get().as_bytes()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_are_parts_of_the_stored_text() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer", "maximum": 3}}}}});
        let definition = json!({"spec": {"group": "g", "versions": [
            {"name": "v1", "storage": true, "schema": {"openAPIV3Schema": schema}}, {"name": "v2"},
        ]}});
        let stored = Bytes::from(definition.to_string());
        let texts = texts(&stored);
        assert_eq!(texts.keys().collect::<Vec<_>>(), ["v1"]);
        assert!(stored.as_ptr_range().contains(&texts["v1"].as_ptr()), "nothing is copied");
        let made = Schema::new(texts.get("v1").cloned(), false);
        assert_eq!(made.made().document.as_ref(), Some(&schema));
        assert!(Schema::new(None, false).made().document.is_none());
    }
}
