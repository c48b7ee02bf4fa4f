//! What Kubernetes does to objects, as data: each case in `cases/*.yaml` names a kind, an object, and what becomes
//! of it.
//!
//! | field | meaning |
//! |---|---|
//! | `kind` | apiVersion and kind |
//! | `given` | the object a client sends; for an update, merged onto `old` |
//! | `old` | the object before an update, as a client once sent it |
//! | `part` | what the update writes: Main (if missing), Status, Scale, ... |
//! | `becomes` | what the prepared object must contain |
//! | `without` | paths that it must not contain |
//! | `errors` | every validation error, in order; missing means none |
//! | `warnings` | the warnings about the prepared object |
//! | `row` | the cells of its table row at 2026-01-10T00:00:00Z |

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use mycelium_kinds::{Kind, Part, kind};
use serde_json::{Value, json};

fn cases() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).expect("cases").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let cases: BTreeMap<String, Value> =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        all.extend(cases.into_iter().map(|(name, case)| (format!("{stem}: {name}"), case)));
    }
    all
}

fn split_kind(case: &Value) -> (String, String, String) {
    let (api_version, kind) = case["kind"].as_str().and_then(|kind| kind.split_once(' ')).expect("apiVersion and kind");
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    (group.to_owned(), version.to_owned(), kind.to_owned())
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn with_identity(mut object: Value, kind: &Kind) -> Value {
    let mut base = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}});
    if kind.namespaced == Some(true) {
        base["metadata"]["namespace"] = "default".into();
    }
    merge(&mut base, &object);
    object = base;
    object
}

/// Whether `whole` has everything that `part` has.
fn contains(whole: &Value, part: &Value, path: &str, missing: &mut Vec<String>) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                match whole.get(key) {
                    Some(found) => contains(found, value, &format!("{path}.{key}"), missing),
                    None => missing.push(format!("{path}.{key} is missing")),
                }
            }
        }
        (Value::Array(whole), Value::Array(part)) if whole.len() == part.len() => {
            for (index, (found, value)) in whole.iter().zip(part).enumerate() {
                contains(found, value, &format!("{path}[{index}]"), missing);
            }
        }
        _ if whole == part => {}
        _ => missing.push(format!("{path} is {whole}, not {part}")),
    }
}

fn part(case: &Value) -> Part {
    match case["part"].as_str().unwrap_or("Main") {
        "Main" => Part::Main,
        "Status" => Part::Status,
        "Scale" => Part::Scale,
        "Resize" => Part::Resize,
        "EphemeralContainers" => Part::EphemeralContainers,
        "Finalize" => Part::Finalize,
        other => panic!("no part {other}"),
    }
}

fn run(case: &Value) -> Vec<String> {
    let (group, version, name) = split_kind(case);
    let kind = kind(&group, &name);
    let create = |given: &Value| {
        let mut object = with_identity(given.clone(), kind);
        kind.default(&version, &mut object);
        kind.prepare_create(&mut object);
        object
    };
    let (object, errors) = if case["old"].is_null() {
        let object = create(&case["given"]);
        let errors = kind.validate_create(&object);
        (object, errors)
    } else {
        let mut old = create(&case["old"]);
        if let Some(status) = case["old"].get("status") {
            old["status"] = status.clone();
        }
        let mut new = old.clone();
        merge(&mut new, &case["given"]);
        kind.default(&version, &mut new);
        kind.prepare_update(&mut new, &old, part(case));
        let errors = kind.validate_update(&new, &old, part(case));
        (new, errors)
    };
    let mut faults = Vec::new();
    contains(&object, &case["becomes"].as_object().cloned().map_or(json!({}), Value::Object), "", &mut faults);
    for path in case["without"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if object.pointer(path).is_some() {
            faults.push(format!("{path} is there"));
        }
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected: Vec<String> = case["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|error| error.as_str().expect("text").trim_end().to_owned())
        .collect();
    if texts != expected {
        faults.push(format!("errors are {texts:#?}, not {expected:#?}"));
    }
    if let Some(expected) = case["warnings"].as_array() {
        let warnings: Vec<Value> = kind.warnings(&object).into_iter().map(Value::from).collect();
        if warnings != *expected {
            faults.push(format!("warnings are {warnings:#?}, not {expected:#?}"));
        }
    }
    faults.extend(row_faults(case, kind));
    let mut again = object.clone();
    kind.default(&version, &mut again);
    if again != object {
        faults.push(format!("defaults are not idempotent: {object} becomes {again}"));
    }
    faults
}

fn row_faults(case: &Value, kind: &Kind) -> Option<String> {
    let expected = case["row"].as_array()?;
    let now: Timestamp = "2026-01-10T00:00:00Z".parse().expect("time");
    let row = kind.row(&with_identity(case["given"].clone(), kind), now);
    (row != *expected).then(|| format!("row is {}, not {}", json!(row), json!(expected)))
}

#[test]
fn objects_are_selected_by_the_fields_clients_know() {
    let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "n"}, "status": {"podIP": "10.0.0.1"}});
    let event =
        json!({"involvedObject": {"kind": "Pod"}, "source": {"component": "kubelet"}, "reportingComponent": "x"});
    for (kind, object, path, expected) in [
        (kind("", "Pod"), &pod, "metadata.name", Some("a")),
        (kind("", "Pod"), &pod, "spec.nodeName", Some("n")),
        (kind("", "Pod"), &pod, "spec.host", Some("n")),
        (kind("", "Pod"), &pod, "spec.hostNetwork", Some("false")),
        (kind("", "Pod"), &pod, "status.podIP", Some("10.0.0.1")),
        (kind("", "Pod"), &pod, "status.phase", None),
        (kind("", "Event"), &event, "source", Some("kubelet")),
        (kind("events.k8s.io", "Event"), &event, "regarding.kind", Some("Pod")),
        (kind("events.k8s.io", "Event"), &event, "reportingController", Some("x")),
        (kind("apps", "Deployment"), &pod, "metadata.namespace", Some("b")),
    ] {
        assert_eq!(kind.field_label_error(path), None, "{} {path}", kind.kind);
        assert_eq!(kind.selectable_fields(object, path).as_deref(), expected, "{} {path}", kind.kind);
    }
    for (kind, expected) in [
        (kind("", "Pod"), "field label not supported: spec.x"),
        (kind("batch", "Job"), "field label \"spec.x\" not supported for Job"),
        (
            kind("apps", "Deployment"),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (kind("example.com", "Widget"), "field label not supported: spec.x"),
    ] {
        assert_eq!(kind.field_label_error("spec.x").as_deref(), Some(expected));
    }
}

#[test]
fn every_case_holds() {
    let faults: Vec<String> = cases()
        .iter()
        .flat_map(|(name, case)| run(case).into_iter().map(move |fault| format!("{name}: {fault}")))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
