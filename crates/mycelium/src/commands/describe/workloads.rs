//! Deployments and other workloads with replicas.

use anyhow::Result;
use serde_json::Value;

use super::generic::{head, owners};
use super::pods::{conditions, list, template};
use super::writer::{Writer, plain};
use crate::client::{Cluster, pods, query, text};

const REVISION: &str = "/metadata/annotations/deployment.kubernetes.io~1revision";

/// The replica sets of a deployment, newest revision first.
pub(super) async fn replica_sets(cluster: &Cluster, deployment: &Value) -> Result<Vec<Value>> {
    let query = query(&[("labelSelector", pods::selector_of(deployment))]);
    let namespace = text(deployment, "/metadata/namespace");
    let list_ = cluster.get(&format!("/apis/apps/v1/namespaces/{namespace}/replicasets{query}")).await?;
    let uid = text(deployment, "/metadata/uid");
    let mut sets: Vec<Value> = list(&list_, "/items")
        .iter()
        .filter(|set| list(set, "/metadata/ownerReferences").iter().any(|owner| text(owner, "/uid") == uid))
        .cloned()
        .collect();
    sets.sort_by_key(|set| std::cmp::Reverse(text(set, REVISION).parse::<u64>().unwrap_or(0)));
    Ok(sets)
}

/// A deployment.
pub(super) fn deployment(out: &mut Writer, object: &Value, sets: &[Value]) {
    head(out, object);
    out.field("Created", text(object, "/metadata/creationTimestamp"));
    out.field("Selector", pods::selector_of(object).unwrap_or_default());
    let status = |key: &str| object.pointer(&format!("/status/{key}")).map_or_else(|| "0".to_owned(), plain);
    out.field(
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            object.pointer("/spec/replicas").map_or_else(|| "1".to_owned(), plain),
            status("updatedReplicas"),
            status("replicas"),
            status("availableReplicas"),
            status("unavailableReplicas")
        ),
    );
    out.field("Strategy", text(object, "/spec/strategy/type"));
    if let Some(rolling) = object.pointer("/spec/strategy/rollingUpdate") {
        out.field(
            "Rolling Update",
            format!("{} max unavailable, {} max surge", plain(&rolling["maxUnavailable"]), plain(&rolling["maxSurge"])),
        );
    }
    out.field("Min Ready Seconds", object.pointer("/spec/minReadySeconds").map_or_else(|| "0".to_owned(), plain));
    if object.pointer("/spec/paused") == Some(&true.into()) {
        out.field("Paused", "true");
    }
    template(out, object);
    conditions(out, object);
    let described: Vec<String> = sets
        .iter()
        .map(|set| {
            let count = |at: &str| set.pointer(at).map_or_else(|| "0".to_owned(), plain);
            format!(
                "{} (revision {}, {}/{} replicas)",
                text(set, "/metadata/name"),
                text(set, REVISION),
                count("/status/replicas"),
                count("/spec/replicas")
            )
        })
        .collect();
    out.field("Replica Sets", described.join("\n"));
}

/// A replica set, stateful set, daemon set or replication controller.
pub(super) fn replicated(out: &mut Writer, object: &Value) {
    head(out, object);
    owners(out, object);
    out.field("Selector", pods::selector_of(object).unwrap_or_default());
    let number = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| object.pointer(key));
        found.map_or_else(|| "0".to_owned(), plain)
    };
    out.field(
        "Replicas",
        format!(
            "{} desired | {} current | {} ready",
            number(&["/spec/replicas", "/status/desiredNumberScheduled"]),
            number(&["/status/replicas", "/status/currentNumberScheduled"]),
            number(&["/status/readyReplicas", "/status/numberReady"])
        ),
    );
    template(out, object);
    conditions(out, object);
}
