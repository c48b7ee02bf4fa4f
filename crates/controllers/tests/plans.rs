//! Plans as data: each file under `cases/` holds what a controller sees and what it should decide.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use mycelium_controllers::cache::Key;
use mycelium_controllers::objects::name;
use mycelium_controllers::scheduler::plan::Board;
use mycelium_controllers::{deployment, endpoints, node_lifecycle, replicaset};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a time")
}

/// Runs every case of a folder: a document with `given` and `expect`.
fn each_case(folder: &str, plan: impl Fn(&Value) -> Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder).expect("a folder of cases").filter_map(Result::ok).collect();
    files.sort_by_key(std::fs::DirEntry::path);
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(file.path()).expect("a readable case");
        let case: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{:?}: {error}", file.path()));
        let planned = plan(&case["given"]);
        let wrong = mismatch(&case["expect"], &planned, "expect");
        assert!(wrong.is_none(), "{:?}: {}\nplanned {planned:#}", file.path(), wrong.unwrap_or_default());
    }
}

/// Every member that is expected must be there; members that the case does not name are not looked at.
fn mismatch(expected: &Value, found: &Value, at: &str) -> Option<String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => expected
            .iter()
            .find_map(|(key, value)| mismatch(value, found.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"))),
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let pairs = expected.iter().zip(found).enumerate();
            pairs.into_iter().find_map(|(index, (a, b))| mismatch(a, b, &format!("{at}[{index}]")))
        }
        _ if expected == found => None,
        _ => Some(format!("{at}: expected {expected}, found {found}")),
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error} in {value}"))
}

fn read_all<T: DeserializeOwned>(value: &Value) -> Vec<Arc<T>> {
    value.as_array().into_iter().flatten().map(|item| Arc::new(read(item))).collect()
}

fn names<K: kube::Resource>(objects: &[Arc<K>]) -> Vec<&str> {
    objects.iter().map(|object| name(object.meta())).collect()
}

#[test]
fn scheduler() {
    each_case("scheduler", |given| {
        let mut board = Board::default();
        for (namespace, labels) in given["namespaces"].as_object().into_iter().flatten() {
            board.set_namespace(namespace, &read(labels));
        }
        for node in read_all::<Node>(&given["nodes"]) {
            board.set_node(&node);
        }
        for pod in read_all::<Pod>(&given["pods"]) {
            board.set_pod(&pod);
        }
        board.set_budgets(&read_all::<PodDisruptionBudget>(&given["budgets"]));
        let mut placed = serde_json::Map::new();
        for pod in read_all::<Pod>(&given["pending"]) {
            board.set_pod(&pod);
            let key = Key::of(pod.as_ref());
            let answer = match board.place(&key) {
                Ok(node) => {
                    board.assume(&key, &node);
                    json!(node)
                }
                Err(unfit) => match board.preempt(&key) {
                    Ok(room) => {
                        let victims: Vec<_> = room.victims.iter().map(|victim| &victim.name).collect();
                        json!({"node": room.node, "victims": victims, "message": unfit.to_string()})
                    }
                    Err(refused) => json!(unfit.with_preemption(refused)),
                },
            };
            placed.insert(key.name, answer);
        }
        Value::Object(placed)
    });
}

#[test]
fn replica_sets() {
    each_case("replicaset", |given| {
        let set: ReplicaSet = read(&given["set"]);
        let pods = read_all::<Pod>(&given["pods"]);
        let plan = replicaset::plan::plan(&set, &pods, &pods, now());
        let (status, again) = replicaset::plan::status(&set, &pods, None, now());
        json!({
            "create": plan.create,
            "delete": names(&plan.delete),
            "adopt": names(&plan.adopt),
            "release": names(&plan.release),
            "status": status,
            "againSeconds": again.map(|wait| wait.as_secs()),
        })
    });
}

#[test]
fn deployments() {
    each_case("deployment", |given| {
        let deployment: Deployment = read(&given["deployment"]);
        let mut sets = read_all::<ReplicaSet>(&given["sets"]);
        // `template: same` spares writing the template again.
        for (set, given) in sets.iter_mut().zip(given["sets"].as_array().into_iter().flatten()) {
            if given["same"] == json!(true) {
                let template = deployment.spec.as_ref().map(|spec| spec.template.clone());
                Arc::make_mut(set).spec.get_or_insert_default().template = template;
            }
        }
        let plan = deployment::plan::plan(&deployment, &sets, &read_all::<Pod>(&given["pods"]), now());
        let size = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas);
        let sizes: serde_json::Map<_, _> =
            plan.update.iter().map(|(_, set)| (name(&set.metadata).to_owned(), json!(size(set)))).collect();
        let annotations = |set: &ReplicaSet| json!(set.metadata.annotations);
        json!({
            "create": plan.create.as_ref().map(|set| json!({"replicas": size(set), "annotations": annotations(set)})),
            "sizes": sizes,
            "delete": names(&plan.delete),
            "adopt": names(&plan.adopt),
            "status": plan.deployment.as_ref().map(|deployment| json!(deployment.status)),
            "annotations": plan.deployment.as_ref().map(|deployment| json!(deployment.metadata.annotations)),
            "againSeconds": plan.again.map(|wait| wait.as_secs()),
        })
    });
}

#[test]
fn endpoint_slices() {
    each_case("endpoints", |given| {
        let service: Service = read(&given["service"]);
        let pods = read_all::<Pod>(&given["pods"]);
        let slices = read_all::<EndpointSlice>(&given["slices"]);
        let plan = endpoints::slices::plan(&service, &pods, &slices, |_| None);
        json!({
            "create": plan.create,
            "update": plan.update.iter().map(|(_, slice)| json!(slice)).collect::<Vec<_>>(),
            "delete": names(&plan.delete),
            "endpoints": endpoints::legacy::endpoints(&service, &pods),
        })
    });
}

#[test]
fn mirrored_endpoints() {
    each_case("mirror", |given| {
        let endpoints: Endpoints = read(&given["endpoints"]);
        let service: Service = read(&given["service"]);
        let slices = read_all::<EndpointSlice>(&given["slices"]);
        let plan = endpoints::mirror::plan(Some(&endpoints), Some(&service), &slices);
        json!({
            "create": plan.create,
            "update": plan.update.iter().map(|(_, slice)| json!(slice)).collect::<Vec<_>>(),
            "delete": names(&plan.delete),
        })
    });
}

#[test]
fn nodes() {
    each_case("nodes", |given| {
        let node: Node = read(&given["node"]);
        let silence = Duration::from_secs(given["silentSeconds"].as_u64().unwrap_or(0));
        let conditions = node_lifecycle::plan::conditions(&node, silence, node_lifecycle::plan::GRACE, now());
        let taints = node_lifecycle::plan::taints(&node, given["evict"] == json!(true), now());
        let held = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let stays: serde_json::Map<_, _> = read_all::<Pod>(&given["pods"])
            .iter()
            .map(|pod| {
                let stay = match node_lifecycle::plan::stay(pod, &held) {
                    node_lifecycle::plan::Stay::Always => json!("always"),
                    node_lifecycle::plan::Stay::Until(at) if at <= now() => json!("leave"),
                    node_lifecycle::plan::Stay::Until(at) => json!(at.to_string()),
                };
                (name(&pod.metadata).to_owned(), stay)
            })
            .collect();
        json!({ "conditions": conditions, "taints": taints, "stays": stays })
    });
}
