//! The stored form of an object, and how it becomes a response without being parsed.
//!
//! An object is stored as compact JSON that begins exactly with `{"metadata":{` and carries no resource
//! version: that is the entry's modification revision. Reading splices `"resourceVersion":"N",` in behind
//! the prefix, so gets, lists and watches copy bytes and parse nothing.

use bytes::Bytes;
use mycelium_store::{Entry, Revision};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// How every stored value begins.
pub const PREFIX: &[u8] = b"{\"metadata\":{";

/// Serialises an object to its stored form.
pub fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    out.extend_from_slice(b"{\"metadata\":{");
    let metadata = map.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    write_members(&mut out, metadata, "resourceVersion");
    out.push(b'}');
    if map.keys().any(|k| k != "metadata") {
        out.push(b',');
        write_members(&mut out, map, "metadata");
    }
    out.push(b'}');
    // A copy of the right size: the stored form lives long, and half of a grown vector may be unused.
    Bytes::copy_from_slice(&out)
}

fn write_members(out: &mut Vec<u8>, map: &Map<String, Value>, except: &str) {
    let mut first = true;
    for (key, value) in map.iter().filter(|(key, _)| *key != except) {
        if !first {
            out.push(b',');
        }
        first = false;
        // Writing JSON values into memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
}

/// Appends a stored value with its resource version spliced in. One that was never stored (revision 0: created for show)
/// has none.
pub fn splice(value: &[u8], revision: Revision, out: &mut Vec<u8>) {
    if revision == 0 {
        out.extend_from_slice(value);
        return;
    }
    let rest = value.strip_prefix(PREFIX).unwrap_or(b"}}");
    out.extend_from_slice(b"{\"metadata\":{\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
    if rest.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(rest);
}

/// Appends `PartialObjectMetadata` of a stored value, with its resource version spliced in.
pub fn splice_metadata(value: &[u8], revision: Revision, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"apiVersion\":\"meta.k8s.io/v1\",\"kind\":\"PartialObjectMetadata\",");
    let start = out.len();
    splice(&value[..metadata_end(value)], revision, out);
    // The brace that opens the stored object: this one is open already.
    out.remove(start);
    out.push(b'}');
}

/// Where the metadata of a stored value ends, its closing brace included.
fn metadata_end(value: &[u8]) -> usize {
    let mut depth = 1;
    let mut at = PREFIX.len();
    while depth > 0 && at < value.len() {
        match value[at] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b'"' => at = string_end(value, at + 1),
            _ => {}
        }
        at += 1;
    }
    at.min(value.len())
}

/// The place of the quote that ends a string whose content begins at `at`.
fn string_end(value: &[u8], mut at: usize) -> usize {
    while let Some(byte) = value.get(at) {
        match byte {
            b'"' => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

/// A stored value as response bytes.
pub fn response_bytes(value: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 48);
    splice(value, revision, &mut out);
    out
}

/// Parses a stored value, resource version included.
pub fn parse(value: &[u8], revision: Revision) -> Result<Value, ApiError> {
    let mut object: Value =
        serde_json::from_slice(value).map_err(|e| ApiError::internal(format!("a stored object is not JSON: {e}")))?;
    set_revision(&mut object, revision);
    Ok(object)
}

/// Parses a stored entry.
pub fn parse_entry(entry: &Entry) -> Result<Value, ApiError> {
    parse(&entry.value, entry.mod_revision)
}

/// Sets `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, revision: Revision) {
    if revision > 0 {
        object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_stored_form_round_trips() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "\"{metadata"},
            "metadata": {"name": "x", "resourceVersion": "9"}});
        let stored = encode(&object);
        assert!(stored.starts_with(PREFIX));
        assert!(!stored.windows(15).any(|w| w == b"resourceVersion"));
        let read: Value = serde_json::from_slice(&response_bytes(&stored, 7)).expect("valid JSON");
        assert_eq!(read["metadata"]["resourceVersion"], "7");
        assert_eq!(read["data"], object["data"]);
        assert_eq!(parse(&stored, 7).expect("parses"), read);
        let object = json!({"kind": "X", "metadata": {"name": "x", "labels": {"a": "}\"\\", "b": "{"}}, "zeta": {}});
        let mut out = Vec::new();
        splice_metadata(&encode(&object), 7, &mut out);
        let partial: Value = serde_json::from_slice(&out).expect("valid JSON");
        assert_eq!(
            partial,
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "x", "labels": {"a": "}\"\\", "b": "{"}, "resourceVersion": "7"}})
        );
        let bare: Value = serde_json::from_slice(&response_bytes(&encode(&json!({})), 1)).expect("valid JSON");
        assert_eq!(bare, json!({"metadata": {"resourceVersion": "1"}}));
    }
}
