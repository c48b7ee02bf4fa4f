//! Patches, from case files, and the properties that every patch has.

mod common;

use common::{cases, type_of};
use mycelium_apimachinery::patch;
use mycelium_apimachinery::schema::types;
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn strategic_cases() {
    cases("strategic", |case| {
        let mut object = case["original"].clone();
        let result = patch::strategic(type_of(case), &mut object, &case["patch"]);
        match case.get("error") {
            Some(error) => {
                assert_eq!(result.expect_err("an error").to_string(), error.as_str().expect("a text"));
                assert_eq!(object, case["original"], "a failed patch changes nothing");
            }
            None => {
                result.expect("a patch that fits");
                assert_eq!(object, case["expected"], "\n{object:#}");
            }
        }
    });
}

#[test]
fn a_json_patch_is_all_or_nothing() {
    let original = json!({"spec": {"replicas": 1, "list": ["a", "b"]}});
    let mut object = original.clone();
    let patch = json!([
        {"op": "test", "path": "/spec/replicas", "value": 1},
        {"op": "replace", "path": "/spec/replicas", "value": 2},
        {"op": "add", "path": "/spec/list/-", "value": "c"},
        {"op": "move", "from": "/spec/list/0", "path": "/spec/first"},
        {"op": "copy", "from": "/spec/first", "path": "/spec/second"},
    ]);
    patch::json(&mut object, &patch).expect("fits");
    assert_eq!(object, json!({"spec": {"replicas": 2, "list": ["b", "c"], "first": "a", "second": "a"}}));

    let mut object = original.clone();
    let patch = json!([
        {"op": "replace", "path": "/spec/replicas", "value": 2},
        {"op": "remove", "path": "/spec/none"},
    ]);
    let error = patch::json(&mut object, &patch).expect_err("a missing path");
    assert_eq!(
        error.to_string(),
        r#"remove operation does not apply: doc is missing path: "/spec/none": missing value"#
    );
    assert_eq!(object, original);
    let error = patch::json(&mut object, &json!([{"op": "test", "path": "/spec/replicas", "value": 9}]));
    assert_eq!(error.expect_err("differs").to_string(), "testing path /spec/replicas value failed: test failed");
    assert!(matches!(patch::json(&mut object, &json!({"op": "add"})), Err(patch::PatchError::Malformed(_))));
}

#[test]
fn a_json_patch_cannot_grow_without_bound() {
    let operations: Vec<Value> =
        (0..40).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
    let mut object = json!({"a": {"text": "x".repeat(100)}});
    assert!(matches!(patch::json(&mut object, &operations.into()), Err(patch::PatchError::Failed(_))));
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    let deep: Value = serde_json::from_str(&deep).expect("valid");
    let operations: Vec<Value> =
        (0..8).map(|i| json!({"op": "add", "path": "/0".repeat(120 * i), "value": deep})).collect();
    assert!(matches!(patch::json(&mut json!([]), &operations.into()), Err(patch::PatchError::Failed(_))));
}

#[test]
fn a_merge_patch_follows_the_examples_of_the_rfc() {
    for (original, patch, expected) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!(["a", "b"]), json!({"a": "b"}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
    ] {
        let mut object = original;
        patch::merge(&mut object, &patch);
        assert_eq!(object, expected);
    }
}

/// A part of a pod whose lists merge by key, as sets, and not at all.
fn pod() -> impl Strategy<Value = Value> {
    let names = proptest::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4).prop_shuffle();
    let container =
        (0..3u8, proptest::collection::btree_map("[xyz]", "[0-9]", 0..3), proptest::collection::vec("[pq]", 0..3));
    (names, proptest::collection::vec(container, 4), proptest::sample::subsequence(vec!["f", "g", "h"], 0..=3))
        .prop_map(|(names, containers, finalizers)| {
            let containers: Vec<Value> = names
                .iter()
                .zip(containers)
                .map(|(name, (image, env, args))| {
                    let env: Vec<Value> = env.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
                    json!({"name": name, "image": format!("i{image}"), "env": env, "args": args})
                })
                .collect();
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}})
        })
}

/// The patch that leads from one pod to another, as `kubectl apply` would write it.
fn diff(old: &Value, new: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (before, after) = (list(&old["metadata"]["finalizers"]), list(&new["metadata"]["finalizers"]));
    let gone: Vec<&Value> = before.iter().filter(|v| !after.contains(v)).collect();
    json!({
        "metadata": {
            "$deleteFromPrimitiveList/finalizers": gone,
            "$setElementOrder/finalizers": after,
            "finalizers": after,
        },
        "spec": keyed(&list(&old["spec"]["containers"]), &list(&new["spec"]["containers"]), "containers", |old, new| {
            let list = |value: &Value| value["env"].as_array().cloned().unwrap_or_default();
            let mut patch = keyed(&list(old), &list(new), "env", |_, new| new.clone());
            patch["name"] = new["name"].clone();
            patch["image"] = new["image"].clone();
            patch["args"] = new["args"].clone();
            patch
        }),
    })
}

fn keyed(old: &[Value], new: &[Value], field: &str, item: impl Fn(&Value, &Value) -> Value) -> Value {
    let find = |list: &[Value], name: &Value| list.iter().find(|v| v["name"] == *name).cloned();
    let mut patches: Vec<Value> =
        new.iter().map(|n| find(old, &n["name"]).map_or_else(|| n.clone(), |o| item(&o, n))).collect();
    let gone = old.iter().filter(|o| find(new, &o["name"]).is_none());
    patches.extend(gone.map(|o| json!({"$patch": "delete", "name": o["name"]})));
    let order: Vec<Value> = new.iter().map(|n| json!({"name": n["name"]})).collect();
    json!({format!("$setElementOrder/{field}"): order, field: patches})
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        "[ab]|replace|delete|merge".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let keys = "name|spec|containers|env|ports|metadata|finalizers|labels|strategy|\\$patch|\\$retainKeys\
                    |\\$setElementOrder/containers|\\$setElementOrder/finalizers|\\$deleteFromPrimitiveList/finalizers";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(keys, inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_diff_leads_where_it_should(old in pod(), new in pod()) {
        let ty = types().for_gvk("", "v1", "Pod").expect("known");
        let mut object = old.clone();
        patch::strategic(ty, &mut object, &diff(&old, &new)).expect("fits");
        prop_assert_eq!(object, new);
    }

    #[test]
    fn no_patch_panics(original in anything(), patch in anything()) {
        let ty = types().for_gvk("", "v1", "Pod").expect("known");
        let mut object = original.clone();
        if patch::strategic(ty, &mut object, &patch).is_err() {
            prop_assert_eq!(&object, &original);
        }
        patch::merge(&mut object, &patch);
        // Without an error the answer may be anything.
        let _ = patch::json(&mut object, &patch);
    }
}

/// As clients write to be sure that nobody was faster: kube's finalizers begin with it.
#[test]
fn a_member_that_is_not_there_is_null_to_a_test() {
    let patch = json!([
        {"op": "test", "path": "/metadata/finalizers", "value": null},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]},
    ]);
    let mut object = json!({"metadata": {"name": "a"}});
    patch::json(&mut object, &patch).unwrap();
    assert_eq!(object, json!({"metadata": {"name": "a", "finalizers": ["a/b"]}}));
    assert!(patch::json(&mut object, &patch).is_err(), "now it is there");
    assert!(patch::json(&mut json!({}), &patch).is_err(), "nothing is there that could have it");
}
