//! Objects that every cluster has: namespaces, roles, priority classes, a storage class, the range of service addresses. Created where they are missing; what an
//! administrator changed stays.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::HeaderMap;
use mycelium_api::storage;
use serde_json::{Value, json};

use crate::aggregation;
use crate::answer::Warnings;
use crate::auth::{Identity, roles};
use crate::error::ApiError;
use crate::media::Accept;
use crate::request::{Query, ResourcePath};
use crate::route::Context;
use crate::server::Inner;
use crate::write::create;
use crate::write::options::{FieldValidation, WriteOptions};
use crate::write::update::Ownership;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const RBAC: &str = "rbac.authorization.k8s.io";

/// Creates what is missing. The writes share a few syncs of the disk.
pub fn run(server: Arc<Inner>) -> BoxFuture<'static, Result<(), ApiError>> {
    Box::pin(create_missing(server))
}

async fn create_missing(server: Arc<Inner>) -> Result<(), ApiError> {
    let namespaces = NAMESPACES.iter().map(|name| ("", "namespaces", json!({"metadata": {"name": name}})));
    let roles = roles::cluster_roles().into_iter().map(|role| (RBAC, "clusterroles", role));
    let bindings = roles::bindings().into_iter().map(|binding| (RBAC, "clusterrolebindings", binding));
    let classes = priority_classes().into_iter().map(|class| ("scheduling.k8s.io", "priorityclasses", class));
    let cidr =
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [server.service_cidr.trunc().to_string()]}});
    let range = std::iter::once(("networking.k8s.io", "servicecidrs", cidr));
    let storage = std::iter::once(("storage.k8s.io", "storageclasses", storage_class()));
    let all = namespaces.chain(roles).chain(bindings).chain(classes).chain(range).chain(storage);
    let writes: Vec<_> = all.map(|(group, resource, object)| ensure(server.clone(), group, resource, object)).collect();
    futures::future::join_all(writes).await.into_iter().collect::<Result<(), ApiError>>()?;
    // These lie in a namespace that was made just now.
    for (group, resource, object) in authentication() {
        ensure(server.clone(), group, resource, object).await?;
    }
    aggregation::publish(&server).await?;
    roles::aggregate(&server).await;
    Ok(())
}

async fn ensure(
    server: Arc<Inner>,
    group: &'static str,
    name: &'static str,
    mut object: Value,
) -> Result<(), ApiError> {
    let server = &server;
    let table = server.table();
    let resource = table.get(group, "v1", name).ok_or(ApiError::NoSuchPath)?;
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    let namespace = text("namespace").to_owned();
    if let Some(entry) = server.store.get(&resource.key(&namespace, text("name"))) {
        return match name {
            "clusterroles" => roles::reconcile(server, &entry, &object).await,
            _ => Ok(()),
        };
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind());
    let who = Identity::internal("system:apiserver");
    let path = ResourcePath {
        group: group.into(),
        version: "v1".into(),
        resource: name.into(),
        namespace,
        ..ResourcePath::default()
    };
    let (query, headers, warnings) = (Query::default(), HeaderMap::new(), Warnings::default());
    let (query, headers, warnings, accept) = (&query, &headers, &warnings, Accept::JSON);
    let cx = Context { server, who: &who, resource, path: &path, query, headers, accept, warnings, notes: None };
    let options = WriteOptions {
        dry_run: false,
        validation: FieldValidation::Strict,
        manager: "kube-apiserver".to_owned(),
        force: None,
    };
    match create::object_from(&cx, object, &options, Ownership::Update).await {
        Ok(_) | Err(ApiError::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where extension servers learn whom to believe, and the role that lets them read it.
fn authentication() -> [(&'static str, &'static str, Value); 2] {
    const NAME: &str = "extension-apiserver-authentication";
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "list", "watch"]});
    let reader = json!({"metadata": {"name": format!("{NAME}-reader"), "namespace": "kube-system"}, "rules": [rule]});
    [("", "configmaps", json!({"metadata": {"name": NAME, "namespace": "kube-system"}})), (RBAC, "roles", reader)]
}

fn priority_classes() -> Vec<Value> {
    let class = |name: &str, value: i64, description: &str| json!({"metadata": {"name": name}, "value": value, "description": description});
    vec![
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their node.",
        ),
    ]
}

/// Folders on this machine, for claims that name no class or one that an ordinary class goes by elsewhere.
fn storage_class() -> Value {
    json!({
        "metadata": {
            "name": storage::DEFAULT_CLASS,
            "annotations": {
                storage::IS_DEFAULT_CLASS: "true",
                storage::ALIASES: storage::DEFAULT_ALIASES.join(","),
            },
        },
        "provisioner": storage::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": true,
    })
}
