//! Every built-in resource: created, read, listed, shown as a table, patched, applied, watched, updated, deleted.
#![allow(missing_docs)]

mod common;

use common::{Local, local};
use mycelium_apimachinery::schema::{self, Resource};
use serde_json::{Value, json};

/// What an object of a kind needs besides its name.
fn body(kind: &str) -> Value {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"a": "b"}});
    let job = json!({"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}});
    let storage = json!({"requests": {"storage": "1Gi"}});
    let hook = json!([{"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://example.com/x"}}]);
    match kind {
        "Pod" => json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
        "PodTemplate" => json!({"template": template}),
        "Deployment" | "ReplicaSet" | "DaemonSet" => json!({"spec": {"selector": selector, "template": template}}),
        "StatefulSet" => json!({"spec": {"selector": selector, "template": template, "serviceName": "s"}}),
        "ReplicationController" => json!({"spec": {"selector": {"a": "b"}, "template": template}}),
        "ControllerRevision" => json!({"revision": 1, "data": {"x": 1}}),
        "Job" => json!({"spec": {"template": job}}),
        "CronJob" => json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job}}}}),
        "Service" => json!({"spec": {"ports": [{"port": 80}]}}),
        "Endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        "Event" => json!({"involvedObject": {"namespace": "default", "name": "x", "kind": "Pod"}}),
        "LimitRange" => json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}),
        "ResourceQuota" => json!({"spec": {"hard": {"pods": "1"}}}),
        "PersistentVolume" => json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/x"}}}),
        "PersistentVolumeClaim" => json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": storage}}),
        "HorizontalPodAutoscaler" => json!({"spec": {"maxReplicas": 2,
            "scaleTargetRef": {"kind": "Deployment", "name": "x", "apiVersion": "apps/v1"}}}),
        "PodDisruptionBudget" => json!({"spec": {"minAvailable": 1, "selector": selector}}),
        "PriorityClass" => json!({"value": 5}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "example.com/x"}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "IPAddress" => json!({"metadata": {"name": "10.1.2.3"},
            "spec": {"parentRef": {"resource": "services", "name": "x", "namespace": "default"}}}),
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.200.0.0/24"]}}),
        "Role" | "ClusterRole" => json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        "RoleBinding" | "ClusterRoleBinding" => json!({"roleRef": {"kind": "ClusterRole", "name": "view",
            "apiGroup": "rbac.authorization.k8s.io"}}),
        "StorageClass" => json!({"provisioner": "example.com/x"}),
        "VolumeAttributesClass" => json!({"driverName": "example.com", "parameters": {"a": "b"}}),
        "VolumeAttachment" => {
            json!({"spec": {"attacher": "x", "nodeName": "n", "source": {"persistentVolumeName": "p"}}})
        }
        "CSINode" => json!({"spec": {"drivers": []}}),
        "CSIStorageCapacity" => json!({"storageClassName": "x"}),
        "CertificateSigningRequest" => json!({"spec": {"request": "eA==", "signerName": "example.com/x",
            "usages": ["client auth"]}}),
        "RuntimeClass" => json!({"handler": "x"}),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => json!({"webhooks": hook}),
        "ValidatingAdmissionPolicy" => json!({"spec": {"validations": [{"expression": "true"}],
            "matchConstraints": {"resourceRules": [{"apiGroups": ["x"], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["y"]}]}}}),
        "ValidatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "x", "validationActions": ["Deny"]}}),
        "FlowSchema" => json!({"spec": {"priorityLevelConfiguration": {"name": "exempt"}}}),
        "PriorityLevelConfiguration" => json!({"spec": {"type": "Exempt"}}),
        "APIService" => {
            json!({"metadata": {"name": "v1.example.com"}, "spec": {"group": "example.com", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"name": "x", "namespace": "default"},
            "insecureSkipTLSVerify": true}})
        }
        "CustomResourceDefinition" => {
            json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com",
            "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1",
            "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
        }
        "ResourceClaim" => json!({"spec": {"devices": {}}}),
        "ResourceClaimTemplate" => json!({"spec": {"spec": {"devices": {}}}}),
        "DeviceClass" => json!({"spec": {}}),
        "ResourceSlice" => json!({"spec": {"driver": "example.com", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": []}}),
        _ => json!({}),
    }
}

fn object(resource: &Resource) -> Value {
    let mut object = body(resource.kind);
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = json!("every-kind");
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    object
}

async fn exercise(api: &Local, resource: &Resource) -> Result<(), String> {
    let root = if resource.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", resource.group) };
    let namespace = if resource.namespaced { "/namespaces/default" } else { "" };
    let collection = format!("{root}/{}{namespace}/{}", resource.version, resource.resource);
    let mut object = object(resource);
    if resource.group == "events.k8s.io" {
        object = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "every-kind"},
            "regarding": {"namespace": "default", "name": "x", "kind": "Pod"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "example.com/x", "reportingInstance": "y", "action": "A", "reason": "R",
            "type": "Normal"});
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let one = format!("{collection}/{name}");
    let check = |what: &str, reply: common::Reply, code: u16| {
        if reply.code.as_u16() == code { Ok(reply.json()) } else { Err(format!("{what}: {}", reply.text())) }
    };
    let strict = format!("{collection}?fieldValidation=Strict");
    let made = check("create", api.post(&strict, &object).await, 201)?;
    if made["kind"] != resource.kind || made["apiVersion"] != resource.api_version() {
        return Err(format!("create answered {made}"));
    }
    let read = check("get", api.get(&one).await, 200)?;
    if read != made {
        return Err(format!("get answers {read}, create {made}"));
    }
    let list = check("list", api.get(&collection).await, 200)?;
    if list["kind"] != resource.list_kind() || list["items"].as_array().is_none_or(Vec::is_empty) {
        return Err(format!("list answers {list}"));
    }
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = check("table", api.send_as(&api.who, "GET", &collection, &accept, "").await, 200)?;
    if table["columnDefinitions"].as_array().map(Vec::len) != table["rows"][0]["cells"].as_array().map(Vec::len) {
        return Err(format!("table answers {table}"));
    }
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    check("merge", api.patch(&one, "merge", &label).await, 200)?;
    check("strategic", api.patch(&one, "strategic-merge", &json!({"metadata": {"labels": {"x": "z"}}})).await, 200)?;
    let config = json!({"apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {"name": name, "annotations": {"note": "text"}}});
    let applied = check("apply", api.patch(&format!("{one}?fieldManager=m"), "apply", &config).await, 200)?;
    check("update", api.put(&one, &applied).await, 200)?;
    if resource.subresource("status").is_some() {
        check("status", api.put(&format!("{one}/status"), &applied).await, 200)?;
    }
    let from = made["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    check("delete", api.delete(&one).await, 200)?;
    let kept = api.get(&one).await;
    if kept.code == 200 && made["metadata"]["finalizers"].is_array() {
        // Volumes and claims stay until a controller says that nobody uses them.
        if kept.json()["metadata"]["deletionTimestamp"].is_null() {
            return Err("it is protected and not being deleted".to_owned());
        }
        check("release", api.patch(&one, "merge", &json!({"metadata": {"finalizers": null}})).await, 200)?;
    }
    let watched =
        api.watch(&format!("{collection}?watch=1&resourceVersion={from}&fieldSelector=metadata.name={name}"), 2).await;
    if watched[0]["type"] != "MODIFIED" {
        return Err(format!("watch shows {watched:?}"));
    }
    if api.get(&one).await.code != 404 && resource.kind != "Namespace" {
        return Err("it is still there".to_owned());
    }
    Ok(())
}

#[tokio::test]
async fn every_built_in_kind_is_served() {
    let api = local().await;
    let stored: Vec<&Resource> = schema::resources().iter().filter(|r| r.is_stored()).collect();
    assert!(stored.len() > 55, "{}", stored.len());
    let mut faults = Vec::new();
    for resource in stored {
        if let Err(fault) = exercise(&api, resource).await {
            faults.push(format!("{}/{}: {fault}", resource.api_version(), resource.resource));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// Every place in a value, as a JSON pointer.
fn places(value: &Value, prefix: &str, out: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let path = format!("{prefix}/{}", key.replace('~', "~0").replace('/', "~1"));
        places(child, &path, out);
        out.push(path);
    }
}

#[tokio::test]
async fn no_body_makes_the_server_fail() {
    let api = local().await;
    let strange =
        [json!(null), json!(-1), json!(1e300), json!(""), json!("\u{0}%/:"), json!([null]), json!({}), json!([{}])];
    let mut faults = Vec::new();
    for resource in schema::resources().iter().filter(|r| r.allows("create")) {
        let root = if resource.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", resource.group) };
        let namespace = if resource.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{root}/{}{namespace}/{}?dryRun=All", resource.version, resource.resource);
        let valid = object(resource);
        let mut all = Vec::new();
        places(&valid, "", &mut all);
        for place in &all {
            for value in &strange {
                let mut body = valid.clone();
                if let Some(slot) = body.pointer_mut(place) {
                    *slot = value.clone();
                }
                let reply = api.post(&path, &body).await;
                // A wrong Binding is the one body that Kubernetes answers with a 500 of its own wording.
                let binding = resource.kind == "Binding" && reply.message().contains("target.");
                if reply.code.is_server_error() && !binding {
                    faults.push(format!("{} {place} = {value}: {}", resource.kind, reply.message()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
