//! What creating adds to objects, in which order, and what it warns of.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";

fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

async fn limit(api: &Local, limits: Value) {
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [limits]}});
    api.post("/api/v1/namespaces/default/limitranges", &range).await.expect(201);
}

#[tokio::test]
async fn a_job_selects_its_own_pods() {
    let api = local().await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": template}});
    let made = api.post(JOBS, &job).await.expect(201);
    let uid = made["metadata"]["uid"].as_str().expect("a uid");
    assert!(!uid.is_empty());
    assert_eq!(made["spec"]["selector"]["matchLabels"], json!({"batch.kubernetes.io/controller-uid": uid}));
    let labels = &made["spec"]["template"]["metadata"]["labels"];
    for key in ["controller-uid", "batch.kubernetes.io/controller-uid"] {
        assert_eq!(labels[key], uid);
    }
    assert_eq!(labels["job-name"], "j");
    // What the server added belongs to nobody.
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(!owned.contains("f:selector") && owned.contains("f:backoffLimit"), "{owned}");
}

#[tokio::test]
async fn admission_comes_before_qos_and_after_ownership() {
    let api = local().await;
    let plain = api.post(PODS, &pod("plain", &json!({}))).await.expect(201);
    assert_eq!(plain["status"]["qosClass"], "BestEffort");
    limit(&api, json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "max": {"cpu": "2"}})).await;
    let made = api.post(PODS, &pod("a", &json!({}))).await.expect(201);
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
    assert_eq!(made["status"]["qosClass"], "Guaranteed");
    let tolerations = made["spec"]["tolerations"].as_array().expect("tolerations");
    assert_eq!(tolerations.len(), 2, "not ready and unreachable, nothing else");
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(owned.contains("f:image") && !owned.contains("f:volumes") && !owned.contains("f:tolerations"), "{owned}");
    let greedy = json!([{"name": "c", "image": "i", "resources": {"limits": {"cpu": "3"}}}]);
    let refused = api.post(PODS, &pod("b", &json!({"containers": greedy}))).await;
    assert_eq!(refused.message(), "pods \"b\" is forbidden: maximum cpu usage per Container is 2, but limit is 3");
    assert_eq!(refused.expect(403)["reason"], "Forbidden");
}

#[tokio::test]
async fn runtime_classes_and_claims_are_admitted() {
    let api = local().await;
    let missing = api.post(PODS, &pod("a", &json!({"runtimeClassName": "vm"}))).await;
    assert_eq!(missing.message(), "pods \"a\" is forbidden: pod rejected: RuntimeClass \"vm\" not found");
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    api.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await.expect(201);
    let made = api.post(PODS, &pod("a", &json!({"runtimeClassName": "vm"}))).await.expect(201);
    assert_eq!(made["spec"]["overhead"], json!({"memory": "64Mi"}));
    assert_eq!(made["spec"]["nodeSelector"], json!({"vm": "yes"}));

    limit(&api, json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}})).await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}}}});
    let refused = api.post("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    let why = "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi";
    assert_eq!(refused.message(), format!("persistentvolumeclaims \"c\" is forbidden: {why}"));
}

#[tokio::test]
async fn a_pod_says_where_its_node_is() {
    let api = local().await;
    let labels = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "x": "y"});
    api.post("/api/v1/nodes", &json!({"metadata": {"name": "n", "labels": labels}})).await.expect(201);
    let born = api.post(PODS, &pod("born", &json!({"nodeName": "n"}))).await.expect(201);
    let place = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"});
    assert_eq!(born["metadata"]["labels"], place);

    api.post(PODS, &pod("p", &json!({}))).await.expect(201);
    let path = format!("{PODS}/p/binding");
    let binding = |name: &str, target: Value| json!({"metadata": {"name": name}, "target": target});
    let refused = api.post(&path, &binding("q", json!({"name": "n"}))).await;
    assert_eq!(refused.message(), "name in URL does not match name in Binding object");
    let refused = api.post(&path, &binding("p", json!({"kind": "Pod"}))).await;
    let faults = "[target.kind: Unsupported value: \"Pod\": supported values: \"<empty>\", \"Node\", target.name: Required value]";
    assert_eq!(refused.message(), faults);
    assert_eq!(refused.code.as_u16(), 500);
    api.post(&path, &binding("p", json!({"kind": "Node", "name": "n"}))).await.expect(201);
    let bound = api.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["metadata"]["labels"], place);
    assert_eq!(bound["spec"]["nodeName"], "n");
}

#[tokio::test]
async fn clients_are_warned() {
    let api = local().await;
    let env = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    let doubled = json!({"containers": [{"name": "c", "image": "i", "env": env}]});
    let reply = api.post(PODS, &pod("a", &doubled)).await;
    let warning = "299 - \"spec.containers[0].env[1]: hides previous definition of \\\"A\\\", which may be dropped when using apply\"";
    assert_eq!(reply.warnings(), [warning]);
    assert_eq!(reply.code.as_u16(), 201);
    // A refusal warns, too, and of each thing once.
    let mut wrong = pod("a", &doubled);
    wrong["nothing"] = json!(1);
    let reply = api.post(PODS, &wrong).await;
    assert_eq!(reply.code.as_u16(), 409);
    assert_eq!(reply.warnings(), ["299 - \"unknown field \\\"nothing\\\"\"", warning]);

    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": doubled}}});
    assert_eq!(api.post(path, &deployment).await.warnings().len(), 1);
    let labelled = api.patch(&format!("{path}/d"), "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!((labelled.code.as_u16(), labelled.warnings().len()), (200, 0), "the desired state is the same");
    let scaled = api.patch(&format!("{path}/d"), "merge", &json!({"spec": {"replicas": 2}})).await;
    assert_eq!((scaled.code.as_u16(), scaled.warnings().len()), (200, 1));
}
