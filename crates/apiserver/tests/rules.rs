//! Definitions with rules in CEL: what is refused when they are made, and what they refuse.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const OBJECTS: &str = "/apis/forest.example.com/v1/namespaces/default/trees";

fn definition(spec: Value) -> Value {
    let selectable: Vec<Value> =
        spec["properties"].get("kind").map(|_| json!({"jsonPath": ".spec.kind"})).into_iter().collect();
    json!({"metadata": {"name": "trees.forest.example.com"}, "spec": {"group": "forest.example.com",
        "scope": "Namespaced", "names": {"plural": "trees", "kind": "Tree"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {},
            "scale": {"specReplicasPath": ".spec.height", "statusReplicasPath": ".status.height", "labelSelectorPath": ".status.selector"}},
            "selectableFields": selectable,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec,
                "status": {"type": "object", "properties": {"height": {"type": "integer"}, "selector": {"type": "string"}}}}}}}]}})
}

fn spec() -> Value {
    json!({"type": "object", "required": ["height"],
        "x-kubernetes-validations": [
            {"rule": "self.height <= self.most", "messageExpression": "'height ' + string(self.height) + ' is over ' + string(self.most)", "fieldPath": ".height"},
            {"rule": "!has(oldSelf.kind) || self.kind == oldSelf.kind", "message": "kind is immutable", "reason": "FieldValueForbidden"},
        ],
        "properties": {"height": {"type": "integer"}, "most": {"type": "integer", "default": 10},
            "kind": {"type": "string", "maxLength": 10, "pattern": "^[a-z]*$"},
            "since": {"type": "string", "format": "date-time"},
            "size": {"x-kubernetes-int-or-string": true},
            "branches": {"type": "array", "maxItems": 5, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "maxLength": 5},
                    "length": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}}}})
}

async fn made(api: &Local, name: &str, spec: Value) -> (u16, String) {
    let reply = api.post(OBJECTS, &json!({"metadata": {"name": name}, "spec": spec})).await;
    (reply.code.as_u16(), if reply.code == 201 { String::new() } else { reply.message() })
}

#[tokio::test]
async fn rules_are_kept() {
    let api = local().await;
    api.post(DEFINITIONS, &definition(spec())).await.expect(201);
    assert_eq!(
        made(&api, "a", json!({"height": 3, "kind": "oak", "branches": [{"name": "x", "length": 2}]})).await.0,
        201
    );
    for (spec, wanted) in [
        (
            json!({"height": 11}),
            "Tree.forest.example.com \"b\" is invalid: spec.height: Invalid value: \"object\": height 11 is over 10",
        ),
        (
            json!({"height": 1, "kind": "OAK"}),
            "Tree.forest.example.com \"b\" is invalid: [spec.kind: Invalid value: \"OAK\": spec.kind in body should match '^[a-z]*$', <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]",
        ),
        (json!({"height": 1, "since": "soon"}), "spec.since in body must be of type date-time: \"soon\""),
        (json!({"height": 1, "size": 1.5}), "spec.size in body must be of type integer,string: \"number\""),
        (
            json!({"height": 1, "branches": [{"name": "x"}, {"name": "x"}]}),
            "spec.branches[1]: Duplicate value: {\"name\":\"x\"}",
        ),
    ] {
        let (code, message) = made(&api, "b", spec).await;
        assert!(code == 422 && message.contains(wanted), "{code} {message}");
    }
    let object = format!("{OBJECTS}/a");
    let changed = api.patch(&object, "merge", &json!({"spec": {"kind": "elm"}})).await;
    assert!(changed.message().contains("spec: Forbidden: kind is immutable"), "{}", changed.message());
    let shorter = api.patch(&object, "merge", &json!({"spec": {"branches": [{"name": "x", "length": 1}]}})).await;
    assert!(
        shorter.message().contains("spec.branches[0].length: Invalid value: \"integer\": failed rule: self >= oldSelf"),
        "{}",
        shorter.message()
    );
    api.patch(&object, "merge", &json!({"spec": {"branches": [{"name": "x", "length": 4}]}})).await.expect(200);
    // Scale and selectable fields.
    let scaled = api.patch(&format!("{object}/scale"), "merge", &json!({"spec": {"replicas": 7}})).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 7);
    assert_eq!(api.get(&object).await.expect(200)["spec"]["height"], 7);
    let found = api.get(&format!("{OBJECTS}?fieldSelector=spec.kind%3Doak")).await.expect(200);
    assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
    api.get(&format!("{OBJECTS}?fieldSelector=spec.height%3D7")).await.expect(400);
    let wrong = api
        .post(OBJECTS, &json!({"apiVersion": "forest.example.com/v1", "kind": "Bush", "metadata": {"name": "b"}}))
        .await;
    assert_eq!(
        wrong.message(),
        "Tree.forest.example.com \"b\" is invalid: kind: Invalid value: \"Bush\": must be Tree"
    );
}

#[tokio::test]
async fn definitions_are_checked() {
    let api = local().await;
    let rule = |rule: &str| {
        json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}], "properties": {
        "list": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}}})
    };
    for (spec, wanted) in [
        (rule("self.none > 1"), "compilation failed: ERROR: <input>:1:5: undefined field 'none'"),
        (rule("self.n >"), "Syntax error"),
        (rule("self.n"), "cel expression must evaluate to a bool"),
        (
            rule("self.list.all(a, self.list.all(b, a == b))"),
            "rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x",
        ),
        (
            json!({"properties": {}}),
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
        ),
        (json!({"type": "string", "pattern": "["}), "must be a valid regular expression"),
        (json!({"type": "integer", "default": "x"}), "properties[spec].default: Invalid value: \"string\""),
        (json!({"type": "array"}), "items: Required value: must be specified"),
        (json!({"type": "object", "$ref": "x"}), "$ref: Forbidden"),
    ] {
        let refused = api.post(DEFINITIONS, &definition(spec)).await;
        assert!(refused.message().contains(wanted), "{wanted}: {}", refused.message());
        refused.expect(422);
    }
    let mut wrong = definition(json!({"type": "object"}));
    wrong["metadata"]["name"] = json!("other.forest.example.com");
    let refused = api.post(DEFINITIONS, &wrong).await;
    assert!(refused.message().contains("must be spec.names.plural+\".\"+spec.group"), "{}", refused.message());
}

#[tokio::test]
async fn a_rule_that_costs_too_much_ends() {
    let api = local().await;
    let spec = json!({"type": "object", "properties": {"list": {"type": "array", "maxItems": 150, "items": {"type": "integer"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a + b >= 0))"}]},
        "lists": {"type": "array", "maxItems": 50, "items": {"type": "object", "properties": {"list": {"type": "array", "maxItems": 100, "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a + b >= 0))"}]}}}}}});
    api.post(DEFINITIONS, &definition(spec)).await.expect(201);
    let list: Value = (0..150).collect();
    let (code, message) = made(&api, "a", json!({"list": list})).await;
    assert_eq!(code, 201, "{message}");
}

#[tokio::test]
async fn a_deleted_definition_waits_for_finalizers() {
    let api = local().await;
    api.post(DEFINITIONS, &definition(json!({"type": "object"}))).await.expect(201);
    api.post(OBJECTS, &json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})).await.expect(201);
    api.post(OBJECTS, &json!({"metadata": {"name": "free"}})).await.expect(201);
    let path = format!("{DEFINITIONS}/trees.forest.example.com");
    api.delete(&path).await.expect(200);
    let ending = api.get(&path).await.expect(200);
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    assert!(ending["status"]["conditions"].to_string().contains("Terminating"), "{ending}");
    api.get(&format!("{OBJECTS}/free")).await.expect(404);
    api.post(OBJECTS, &json!({"metadata": {"name": "late"}})).await.expect(405);
    api.patch(&format!("{OBJECTS}/held"), "merge", &json!({"metadata": {"finalizers": null}})).await.expect(200);
    for _ in 0..400 {
        if api.get(&path).await.code == 404 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("the definition is still there");
}

#[tokio::test]
async fn names_are_given_once() {
    let api = local().await;
    api.post(DEFINITIONS, &definition(json!({"type": "object"}))).await.expect(201);
    let mut second = definition(json!({"type": "object"}));
    second["metadata"]["name"] = json!("shrubs.forest.example.com");
    second["spec"]["names"] = json!({"plural": "shrubs", "kind": "Tree"});
    let made = api.post(DEFINITIONS, &second).await.expect(201);
    let conditions = made["status"]["conditions"].to_string();
    assert!(
        conditions.contains("\\\"TreeList\\\" is already in use") && conditions.contains("NotAccepted"),
        "{conditions}"
    );
    api.get("/apis/forest.example.com/v1/namespaces/default/shrubs").await.expect(404);
    api.delete(&format!("{DEFINITIONS}/trees.forest.example.com")).await.expect(200);
}

#[tokio::test]
async fn every_version_shows_every_object() {
    let api = local().await;
    let mut definition = definition(json!({"type": "object"}));
    api.post(DEFINITIONS, &definition).await.expect(201);
    api.post(OBJECTS, &json!({"metadata": {"name": "old"}})).await.expect(201);
    // A second version, in which objects are stored from now on.
    let mut second = definition["spec"]["versions"][0].take();
    let mut first = second.clone();
    (first["storage"], second["name"]) = (json!(false), json!("v2"));
    let versions = json!({"spec": {"versions": [first, second]}});
    let changed = api.patch(&format!("{DEFINITIONS}/trees.forest.example.com"), "merge", &versions).await.expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let newer = OBJECTS.replace("/v1/", "/v2/");
    api.post(OBJECTS, &json!({"metadata": {"name": "new"}})).await.expect(201);
    for (path, version) in [(OBJECTS, "forest.example.com/v1"), (newer.as_str(), "forest.example.com/v2")] {
        for name in ["old", "new"] {
            assert_eq!(api.get(&format!("{path}/{name}")).await.expect(200)["apiVersion"], version, "{name}");
        }
        let list = api.get(path).await.expect(200);
        assert!(
            list["items"].as_array().is_some_and(|items| items.iter().all(|item| item["apiVersion"] == version)),
            "{list}"
        );
    }
}
