//! What a cluster has, for the rules that ask whether something is there.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::future::try_join_all;
use mycelium_check::{Context, Object, Set};
use serde_json::Value;

use crate::client::{Cluster, text};

/// Group version, plural, kind of what objects refer to, in each namespace.
const NAMESPACED: &[(&str, &str, &str)] = &[
    ("v1", "configmaps", "ConfigMap"),
    ("v1", "secrets", "Secret"),
    ("v1", "services", "Service"),
    ("v1", "serviceaccounts", "ServiceAccount"),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    ("v1", "pods", "Pod"),
    ("apps/v1", "deployments", "Deployment"),
    ("apps/v1", "statefulsets", "StatefulSet"),
    ("apps/v1", "daemonsets", "DaemonSet"),
    ("apps/v1", "replicasets", "ReplicaSet"),
    ("batch/v1", "cronjobs", "CronJob"),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "roles", "Role"),
];

/// The same of the cluster as a whole.
const CLUSTER: &[(&str, &str, &str)] = &[
    ("v1", "namespaces", "Namespace"),
    ("v1", "nodes", "Node"),
    ("v1", "persistentvolumes", "PersistentVolume"),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass"),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass"),
    ("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole"),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition"),
];

/// Puts the objects to check beside what the cluster has.
pub async fn against(cluster: &Cluster, local: Vec<Object>, mut context: Context) -> Result<Set> {
    context.namespace.clone_from(&cluster.namespace);
    let namespaces = namespaces(&local, &context.namespace);
    let mut outside = Vec::new();
    for (group_version, plural, kind) in CLUSTER {
        outside.extend(list(cluster, group_version, &format!("/{plural}"), kind).await?);
    }
    for namespace in &namespaces {
        let lists = NAMESPACED.iter().map(|(group_version, plural, kind)| async move {
            list(cluster, group_version, &format!("/namespaces/{namespace}/{plural}"), kind).await
        });
        outside.extend(try_join_all(lists).await?.into_iter().flatten());
    }
    let nodes: Vec<&Value> = outside.iter().filter(|object| text(object, "/kind") == "Node").collect();
    context.images = Some(images(&nodes));
    context.nodes = nodes.iter().map(|node| labels(node)).collect();
    context.cluster = true;
    Ok(Set::new(local, outside, context))
}

/// The namespaces that the objects are in or speak of.
fn namespaces(local: &[Object], default: &str) -> BTreeSet<String> {
    let subjects = local.iter().flat_map(|object| object.value["subjects"].as_array().into_iter().flatten());
    let named = subjects.map(|subject| text(subject, "/namespace").to_owned());
    let own = local.iter().map(|object| object.namespace.clone());
    let mut namespaces: BTreeSet<String> = own.chain(named).filter(|name| !name.is_empty()).collect();
    namespaces.insert(default.to_owned());
    namespaces
}

async fn list(cluster: &Cluster, group_version: &str, path: &str, kind: &str) -> Result<Vec<Value>> {
    let root = if group_version.contains('/') { "/apis" } else { "/api" };
    let Some(mut answer) = cluster.get_opt(&format!("{root}/{group_version}{path}")).await? else {
        return Ok(Vec::new());
    };
    let Some(Value::Array(mut items)) = answer.get_mut("items").map(Value::take) else { return Ok(Vec::new()) };
    items.retain(|item| !is_counted_with_its_owner(item));
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.insert("apiVersion".to_owned(), group_version.into());
        item.insert("kind".to_owned(), kind.into());
    }
    Ok(items)
}

/// Pods and ReplicaSets of something that is listed itself.
fn is_counted_with_its_owner(item: &Value) -> bool {
    let owners = item["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.into_iter().any(|owner| matches!(text(owner, "/apiVersion"), "apps/v1" | "batch/v1" | "v1"))
        && item["spec"].is_object()
}

fn labels(node: &Value) -> std::collections::BTreeMap<String, String> {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn images(nodes: &[&Value]) -> BTreeSet<String> {
    let lists = nodes.iter().flat_map(|node| node["status"]["images"].as_array().into_iter().flatten());
    let names = lists.flat_map(|image| image["names"].as_array().into_iter().flatten());
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}
