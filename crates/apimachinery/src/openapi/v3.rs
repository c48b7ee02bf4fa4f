//! OpenAPI version 3: an index and one document per group and version.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::paths::{OperationSpec, PathSpec, of_custom, of_resource, patch_types};
use super::schema::{Dialect, reachable};
use super::{Custom, Schemas, built_in, group_versions, url_of};
use crate::schema::types;

/// What `/openapi/v3` answers: where each document is, with a hash of its content so that clients can keep it.
pub fn v3_index(customs: &[Custom<'_>]) -> Value {
    let facts = fnv(FNV_START, include_bytes!("../../data/types.txt"));
    let facts = fnv(facts, include_bytes!("words.rs"));
    let mut paths = Map::new();
    for (group, version) in group_versions(customs) {
        let url = url_of(group, version);
        let mut hash = fnv(facts, url.as_bytes());
        for custom in customs.iter().filter(|c| (c.group, c.version) == (group, version)) {
            hash = fnv(hash, format!("{custom:?}").as_bytes());
        }
        paths.insert(url.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{url}?hash={hash:016X}")}));
    }
    json!({"paths": paths})
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash of a document, by which clients tell whether it changed.
pub fn hash(document: &[u8]) -> u64 {
    fnv(FNV_START, document)
}

/// FNV-1a.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The document of a group and version; none if nothing is served there.
pub fn v3_document(group: &str, version: &str, customs: &[Custom<'_>]) -> Option<Value> {
    let mut specs: Vec<PathSpec> = built_in(group, version).flat_map(of_resource).collect();
    let customs: Vec<&Custom<'_>> = customs.iter().filter(|c| (c.group, c.version) == (group, version)).collect();
    specs.extend(customs.iter().flat_map(|c| of_custom(c)));
    if specs.is_empty() {
        return None;
    }
    let mut names = BTreeSet::new();
    let used = specs.iter().flat_map(|s| &s.operations).flat_map(|o| [&o.body, &o.response]).flatten();
    for ty in used.filter_map(|name| types().named(name)) {
        reachable(ty, &mut names);
    }
    for name in ["ObjectMeta", "ListMeta", "WatchEvent"] {
        let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}");
        types().named(&name).into_iter().for_each(|ty| reachable(ty, &mut names));
    }
    let mut schemas: Schemas = names
        .into_iter()
        .filter_map(|name| types().named(&name).map(|ty| (name, Dialect::V3.definition(ty))))
        .collect();
    schemas.extend(customs.iter().flat_map(|c| Dialect::V3.custom(c)));
    let paths: Map<String, Value> = specs.iter().map(|spec| (spec.path.clone(), path(spec))).collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn path(spec: &PathSpec) -> Value {
    let mut item = Map::new();
    let parameters: Vec<Value> = spec
        .parameters
        .iter()
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), Value::Array(parameters));
    }
    for operation in &spec.operations {
        item.insert(operation.method.to_owned(), self::operation(operation));
    }
    Value::Object(item)
}

fn operation(spec: &OperationSpec) -> Value {
    let parameters: Vec<Value> = spec
        .query
        .iter()
        .map(|(name, ty)| json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}}))
        .collect();
    let [group, version, kind] = &spec.gvk;
    let mut operation = json!({
        "operationId": spec.id,
        "tags": [spec.tag],
        "responses": {"401": {"description": "Unauthorized"}},
        "x-kubernetes-action": spec.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = &spec.body {
        let media = if spec.action == "patch" { patch_types(&spec.gvk) } else { &["*/*"] };
        operation["requestBody"] = json!({"content": content(media, body), "required": spec.action != "delete"});
    }
    operation["responses"]["200"] = match &spec.response {
        None => json!({"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}),
        Some(name) => json!({"description": "OK", "content": content(&["application/json", "application/yaml"], name)}),
    };
    operation
}

fn content(media: &[&str], name: &str) -> Value {
    media
        .iter()
        .map(|m| ((*m).to_owned(), json!({"schema": Dialect::V3.reference(name)})))
        .collect::<Map<_, _>>()
        .into()
}
