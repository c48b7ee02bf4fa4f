//! The OpenAPI documents hold what `kubectl` looks for.

use std::collections::BTreeMap;

use mycelium_apimachinery::openapi::{Custom, v2_json, v2_protobuf, v3_document, v3_index};
use mycelium_apimachinery::schema::{resources, types};
use serde_json::{Value, json};

/// A field of a message: its number and its bytes (numbers are skipped).
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    };
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = varint(&mut bytes) as usize;
        if key & 7 == 2 {
            let (value, rest) = bytes.split_at(length);
            found.push((key >> 3, value));
            bytes = rest;
        }
    }
    found
}

fn sub(message: &[u8], number: u64) -> Vec<&[u8]> {
    fields(message).into_iter().filter(|(n, _)| *n == number).map(|(_, v)| v).collect()
}

fn one(message: &[u8], number: u64) -> &[u8] {
    sub(message, number).first().copied().unwrap_or_default()
}

/// A list of `Named..` messages as a map.
fn named(messages: Vec<&[u8]>) -> BTreeMap<&str, &[u8]> {
    messages.into_iter().map(|m| (str::from_utf8(one(m, 1)).expect("a name"), one(m, 2))).collect()
}

/// The extensions of a schema (field 31) or an operation (field 13).
fn extensions(message: &[u8], number: u64) -> BTreeMap<&str, Value> {
    let values = named(sub(message, number)).into_iter();
    values.map(|(name, any)| (name, serde_json::from_slice(one(any, 2)).expect("JSON"))).collect()
}

#[test]
fn version_2_has_merge_keys_kinds_and_parameters() {
    let document = v2_protobuf(&[]);
    assert_eq!(one(&document, 1), b"2.0");
    let definitions = named(sub(one(&document, 9), 1));
    assert_eq!(definitions.len(), types().all().len());
    let property = |ty: &str, field: &str| *named(sub(one(definitions[ty], 25), 1)).get(field).expect("a field");
    let containers = property("io.k8s.api.core.v1.PodSpec", "containers");
    assert_eq!(one(one(containers, 22), 1), b"array");
    assert_eq!(one(one(one(containers, 23), 1), 1), b"#/definitions/io.k8s.api.core.v1.Container");
    let expected = json!({
        "x-kubernetes-list-map-keys": ["name"], "x-kubernetes-list-type": "map",
        "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge",
    });
    assert_eq!(json!(extensions(containers, 31)), expected);
    let deployment = extensions(definitions["io.k8s.api.apps.v1.Deployment"], 31);
    let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));

    let paths = named(sub(one(&document, 8), 2));
    let patch = one(paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"], 8);
    assert_eq!(extensions(patch, 13)["x-kubernetes-group-version-kind"], gvk);
    let query: Vec<&[u8]> = sub(patch, 8).into_iter().map(|item| one(one(one(one(item, 1), 2), 3), 4)).collect();
    assert!(query.contains(&b"dryRun".as_slice()) && query.contains(&b"fieldValidation".as_slice()));
}

fn check_references(value: &Value, schemas: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                let name = target.strip_prefix("#/components/schemas/").expect("a schema");
                assert!(schemas.get(name).is_some(), "{target}");
            }
            map.values().for_each(|v| check_references(v, schemas));
        }
        Value::Array(items) => items.iter().for_each(|v| check_references(v, schemas)),
        _ => {}
    }
}

#[test]
fn every_document_of_the_index_is_whole() {
    let index = v3_index(&[]);
    let paths = index["paths"].as_object().expect("paths");
    for (path, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().expect("a URL");
        assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")));
        let parts: Vec<&str> = path.split('/').collect();
        let (group, version) = if parts[0] == "api" { ("", parts[1]) } else { (parts[1], parts[2]) };
        let document = v3_document(group, version, &[]).expect("served");
        check_references(&document, &document["components"]["schemas"]);
        let patches = document["paths"].as_object().expect("paths").values().filter_map(|p| p.get("patch"));
        for patch in patches.filter(|p| p["x-kubernetes-action"] == "patch") {
            let names: Vec<&Value> =
                patch["parameters"].as_array().expect("parameters").iter().map(|p| &p["name"]).collect();
            assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
            assert!(patch["x-kubernetes-group-version-kind"]["kind"].is_string());
        }
    }
    assert!(resources().iter().all(|r| {
        let prefix = if r.group.is_empty() { "api" } else { "apis" };
        paths.contains_key(&format!("{prefix}/{}", r.api_version()))
    }));
    assert!(v3_document("example.com", "v1", &[]).is_none());
}

#[test]
fn custom_resources_are_in_both_versions() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "any": {"type": "string", "nullable": true},
    }}}});
    let text = schema.to_string();
    let custom = Custom {
        group: "stable.example.com",
        version: "v1",
        kind: "CronTab",
        list_kind: "CronTabList",
        plural: "crontabs",
        namespaced: true,
        schema: Some(text.as_bytes()),
        status: true,
        scale: false,
    };
    let customs = [custom];
    let document = v3_document("stable.example.com", "v1", &customs).expect("served");
    check_references(&document, &document["components"]["schemas"]);
    let name = "com.example.stable.v1.CronTab";
    assert_eq!(document["components"]["schemas"][name]["properties"]["spec"], schema["properties"]["spec"]);
    assert!(document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}/status"].is_object());
    assert!(v3_index(&customs)["paths"]["apis/stable.example.com/v1"].is_object());
    let document = v2_protobuf(&customs);
    let definitions = named(sub(one(&document, 9), 1));
    let spec = named(sub(one(definitions[name], 25), 1))["spec"];
    let properties = named(sub(one(spec, 25), 1));
    // A nullable value has no type in version 2.
    assert_eq!((one(one(properties["size"], 22), 1), properties["any"].len()), (b"integer".as_slice(), 0));
    let loose = br#"{"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"spec": {}}}"#;
    let loose = v2_json(&[Custom { schema: Some(loose), ..customs[0].clone() }])["definitions"][name].clone();
    assert_eq!((&loose["type"], loose.get("properties")), (&json!("object"), None), "everything is let through");
    for broken in ["1", r#"{"properties": "none"}"#, "not JSON"] {
        let customs = [Custom { schema: Some(broken.as_bytes()), ..customs[0].clone() }];
        assert!(v3_document("stable.example.com", "v1", &customs).is_some());
    }
}
