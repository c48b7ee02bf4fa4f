//! Any object: its fields as they are, with words for names.

use serde_json::Value;

use super::writer::{Writer, plain};
use crate::client::discovery::Resource;
use crate::client::text;

/// What all descriptions begin with.
pub(super) fn head(out: &mut Writer, object: &Value) {
    out.field("Name", text(object, "/metadata/name"));
    out.some("Namespace", text(object, "/metadata/namespace"));
    out.map("Labels", object.pointer("/metadata/labels"), "=");
    out.map("Annotations", object.pointer("/metadata/annotations"), ": ");
    out.some("Deletion asked for", text(object, "/metadata/deletionTimestamp"));
}

/// The object, field by field.
pub(super) fn describe(out: &mut Writer, resource: &Resource, object: &Value) {
    head(out, object);
    out.field("API Version", resource.api_version());
    out.field("Kind", &resource.kind);
    out.field("Created", text(object, "/metadata/creationTimestamp"));
    owners(out, object);
    for (name, value) in object.as_object().into_iter().flatten() {
        if !["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            tree(out, name, value);
        }
    }
}

/// Who made the object.
pub(super) fn owners(out: &mut Writer, object: &Value) {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    for owner in owners.into_iter().flatten().filter(|owner| owner["controller"] == true) {
        out.field("Controlled By", format!("{}/{}", text(owner, "/kind"), text(owner, "/name")));
    }
}

/// A secret without its secrets.
pub(super) fn secret(out: &mut Writer, object: &Value) {
    head(out, object);
    out.field("Type", text(object, "/type"));
    out.section("Data", |out| {
        for (name, value) in object["data"].as_object().into_iter().flatten() {
            let encoded = value.as_str().unwrap_or_default();
            let bytes = encoded.trim_end_matches('=').len() * 3 / 4;
            out.field(name, format!("{bytes} bytes"));
        }
    });
}

/// Fields whose keys are the user's own words.
const MAPS: [&str; 12] = [
    "data",
    "binaryData",
    "stringData",
    "labels",
    "annotations",
    "matchLabels",
    "nodeSelector",
    "limits",
    "requests",
    "hard",
    "used",
    "parameters",
];

fn tree(out: &mut Writer, name: &str, value: &Value) {
    let label = &words(name);
    match value {
        Value::Object(fields) if MAPS.contains(&name) => out.section(label, |out| {
            for (name, value) in fields {
                out.field(name, plain(value));
            }
        }),
        Value::Object(fields) => out.section(label, |out| {
            for (name, value) in fields {
                tree(out, name, value);
            }
        }),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for item in items {
                tree(out, name, item);
            }
        }
        Value::Array(items) => out.field(label, items.iter().map(plain).collect::<Vec<_>>().join("\n")),
        other => out.field(label, plain(other)),
    }
}

/// `restartPolicy` to `Restart Policy`; what is no such name stays as it is.
fn words(name: &str) -> String {
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return name.to_owned();
    }
    let mut text = String::new();
    let mut before = ' ';
    for (at, c) in name.char_indices() {
        let ends_acronym = name[at + c.len_utf8()..].starts_with(|next: char| next.is_ascii_lowercase());
        if c.is_ascii_uppercase() && at > 0 && (!before.is_ascii_uppercase() || ends_acronym) {
            text.push(' ');
        }
        text.push(if at == 0 { c.to_ascii_uppercase() } else { c });
        before = c;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words() {
        let pairs = [
            ("restartPolicy", "Restart Policy"),
            ("podIP", "Pod IP"),
            ("httpGetPath", "Http Get Path"),
            ("a-b", "a-b"),
        ];
        for (name, expected) in pairs {
            assert_eq!(words(name), expected);
        }
    }
}
