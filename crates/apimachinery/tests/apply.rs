//! Server-side apply, from case files that are small histories of an object, and its properties.

mod common;

use std::collections::BTreeMap;

use common::{cases, type_of};
use jiff::Timestamp;
use mycelium_apimachinery::apply::{ApplyError, FieldSet, Operation, RESET_SPEC, RESET_STATUS, apply, update_managed};
use mycelium_apimachinery::patch;
use mycelium_apimachinery::schema::{Type, types};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The owners of an object, `manager Operation [subresource]` to paths, and the object without them.
fn split(object: &Value) -> (BTreeMap<String, Vec<String>>, Value) {
    let mut object = object.clone();
    let entries = object["metadata"].as_object_mut().and_then(|m| m.remove("managedFields")).unwrap_or_default();
    let owners = entries.as_array().into_iter().flatten().map(|entry| {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let name = format!("{} {} {}", text("manager"), text("operation"), text("subresource"));
        let set = FieldSet::from_fields_v1(&entry["fieldsV1"]).expect("a set");
        (name.trim().to_owned(), set.paths())
    });
    (owners.collect(), object)
}

fn operation<'a>(step: &'a Value, at: i64) -> Operation<'a> {
    let subresource = step["subresource"].as_str().unwrap_or_default();
    Operation {
        manager: step["manager"].as_str().expect("a manager"),
        force: step["force"] == true,
        now: Timestamp::from_second(at).expect("in range"),
        subresource,
        reset: if subresource.is_empty() { RESET_STATUS } else { RESET_SPEC },
    }
}

fn outcome(ty: &Type, live: Option<&Value>, step: &Value, at: i64) -> Result<Value, ApplyError> {
    let operation = operation(step, at);
    if let Some(config) = step.get("apply") {
        return apply(ty, live, config, &operation);
    }
    let mut new = live.cloned().unwrap_or_default();
    patch::merge(&mut new, &step["update"]);
    update_managed(ty, live, &mut new, &operation);
    Ok(new)
}

#[test]
fn histories() {
    cases("apply", |case| {
        let mut live: Option<Value> = None;
        for (at, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
            match outcome(type_of(case), live.as_ref(), step, at as i64) {
                Ok(object) => {
                    let (owners, plain) = split(&object);
                    assert_eq!(step.get("error"), None, "step {at}\n{plain:#}");
                    if let Some(expected) = step.get("object") {
                        assert_eq!(&plain, expected, "step {at}\n{plain:#}");
                    }
                    if let Some(expected) = step.get("owners") {
                        assert_eq!(&json!(owners), expected, "step {at}\n{owners:#?}");
                    }
                    if step["same"] == true {
                        assert_eq!(Some(&object), live.as_ref(), "step {at}");
                    }
                    live = Some(object);
                }
                Err(error) => assert_eq!(Some(&json!(error.to_string())), step.get("error"), "step {at}\n{error}"),
            }
        }
    });
}

#[test]
fn conflicts_have_causes() {
    let ty = types().for_gvk("apps", "v1", "Deployment").expect("known");
    let config = |replicas| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": replicas}});
    let op =
        |manager| Operation { manager, force: false, now: Timestamp::UNIX_EPOCH, subresource: "", reset: RESET_STATUS };
    let live = apply(ty, None, &config(1), &op("one")).expect("new");
    let Err(ApplyError::Conflicts(conflicts)) = apply(ty, Some(&live), &config(2), &op("two")) else {
        panic!("a conflict")
    };
    let causes = conflicts.causes();
    assert_eq!((causes[0].message().as_str(), causes[0].path.as_str()), ("conflict with \"one\"", ".spec.replicas"));
}

#[test]
fn managed_fields_have_their_form() {
    let ty = types().for_gvk("", "v1", "Service").expect("known");
    let op = Operation { manager: "m", force: false, now: Timestamp::UNIX_EPOCH, subresource: "", reset: RESET_STATUS };
    let config = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {"ports": [{"port": 80, "name": "http"}], "selector": {"a": "b"}},
    });
    let object = apply(ty, None, &config, &op).expect("new");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "1970-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
                "f:spec": {
                    "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}},
                    "f:selector": {},
                },
            },
        }])
    );
}

#[test]
fn old_updaters_are_joined() {
    let ty = types().for_gvk("", "v1", "ConfigMap").expect("known");
    let mut live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let names: Vec<String> = (0..14).map(|i| format!("m{i:02}")).collect();
    for (i, name) in names.iter().enumerate() {
        let mut new = live.clone();
        new["data"][name] = "x".into();
        let now = Timestamp::from_second(i as i64).expect("in range");
        let op = Operation { manager: name, force: false, now, subresource: "", reset: &[] };
        update_managed(ty, (i > 0).then_some(&live), &mut new, &op);
        live = new;
    }
    let (owners, _) = split(&live);
    assert_eq!(owners.len(), 10);
    let ancient = &owners["ancient-changes Update"];
    assert_eq!(ancient.iter().filter(|p| p.starts_with(".data.")).count(), 5);
}

/// A configuration of a pod.
fn config() -> impl Strategy<Value = Value> {
    let text = || "[xyz]";
    let map = || proptest::collection::btree_map("[abc]", "[xyz]", 0..3);
    let env = proptest::collection::btree_map("[EF]", "[xyz]", 0..3);
    let ports = proptest::collection::btree_set((1..3u8, any::<bool>()), 0..3);
    let container = (proptest::option::of(text()), env, ports, proptest::collection::vec("[pq]", 0..3));
    let containers = proptest::collection::vec((0..3usize, container), 0..3);
    let finalizers = proptest::sample::subsequence(vec!["f", "g", "h"], 0..=3).prop_shuffle();
    (map(), finalizers, containers, map(), proptest::option::of(any::<bool>())).prop_map(
        |(labels, finalizers, containers, selector, network)| {
            let containers: BTreeMap<usize, _> = containers.into_iter().collect();
            let containers: Vec<Value> = containers
                .into_iter()
                .map(|(name, (image, env, ports, args))| {
                    let env: Vec<Value> = env.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
                    let ports: Vec<Value> = ports
                        .iter()
                        .map(|(port, udp)| match udp {
                            true => json!({"containerPort": port, "protocol": "UDP"}),
                            false => json!({"containerPort": port}),
                        })
                        .collect();
                    let mut container = json!({"name": format!("c{name}"), "env": env, "ports": ports, "args": args});
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    container
                })
                .collect();
            let mut spec = json!({"containers": containers, "nodeSelector": selector});
            if let Some(network) = network {
                spec["hostNetwork"] = network.into();
            }
            let mut pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p", "labels": labels, "finalizers": finalizers},
                "spec": spec,
            });
            drop_empty(&mut pod);
            pod
        },
    )
}

/// Leaves out lists and maps with nothing in them, as people do.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|_, v| {
                v.as_array().is_none_or(|a| !a.is_empty()) && v.as_object().is_none_or(|m| !m.is_empty())
            });
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

fn run(live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
    let ty = types().for_gvk("", "v1", "Pod").expect("known");
    let op = Operation { manager, force, now: Timestamp::UNIX_EPOCH, subresource: "", reset: RESET_STATUS };
    apply(ty, live, config, &op)
}

/// Whether `part` is in `whole`: every field and, in keyed lists, every item.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(w), Value::Object(p)) => p.iter().all(|(k, v)| w.get(k).is_some_and(|w| contains(w, v))),
        (Value::Array(w), Value::Array(p)) => p.iter().all(|p| w.iter().any(|w| contains(w, p))),
        _ => whole == part,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_changes_nothing(a in config(), b in config()) {
        let one = run(None, &a, "one", false).expect("new");
        prop_assert_eq!(run(Some(&one), &a, "one", false).expect("no conflict"), one.clone());
        let two = run(Some(&one), &b, "two", true).expect("forced");
        prop_assert!(contains(&two, &b), "{two:#}\n{b:#}");
        prop_assert_eq!(run(Some(&two), &b, "two", false).expect("no conflict"), two);
    }

    #[test]
    fn a_sole_applier_gets_what_it_says(a in config(), b in config()) {
        let one = run(None, &a, "one", false).expect("new");
        let two = split(&run(Some(&one), &b, "one", false).expect("no conflict")).1;
        let fresh = split(&run(None, &b, "one", false).expect("new")).1;
        prop_assert_eq!(sorted(two), sorted(fresh));
    }

    #[test]
    fn an_applier_that_leaves_takes_only_what_is_its_own(a in config(), b in config()) {
        let nothing = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        let one = run(None, &a, "one", false).expect("new");
        if let Ok(both) = run(Some(&one), &b, "two", false) {
            let left = split(&run(Some(&both), &nothing, "two", false).expect("no conflict"));
            prop_assert_eq!(sorted(left.1), sorted(split(&one).1));
            prop_assert_eq!(left.0, split(&one).0);
        }
    }

    #[test]
    fn nothing_panics(live in anything(), config in anything()) {
        let ty = types().for_gvk("", "v1", "Pod").expect("known");
        let _ = run(Some(&live), &config, "one", true);
        let mut new = config;
        let op = Operation { manager: "m", force: false, now: Timestamp::UNIX_EPOCH, subresource: "", reset: &[] };
        update_managed(ty, Some(&live), &mut new, &op);
        update_managed(ty, None, &mut new, &op);
    }
}

/// The order of keyed lists depends on history.
fn sorted(mut value: Value) -> Value {
    fn sort(value: &mut Value) {
        match value {
            Value::Object(map) => map.values_mut().for_each(sort),
            Value::Array(items) => {
                items.iter_mut().for_each(sort);
                items.sort_by_key(Value::to_string);
            }
            _ => {}
        }
    }
    drop_empty(&mut value);
    sort(&mut value);
    value
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[ab]".prop_map(Value::from)];
    let tree = leaf.prop_recursive(4, 24, 4, |inner| {
        let keys =
            "name|spec|containers|env|ports|metadata|finalizers|labels|managedFields|fieldsV1|f:spec|k:\\{\\}|\\.";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(keys, inner, 0..4).prop_map(|m| json!(m)),
        ]
    });
    proptest::collection::btree_map("metadata|spec|status|apiVersion", tree, 0..4)
        .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>()))
}
