//! Objects that every cluster has: namespaces, roles, priority classes, the range of service addresses. Created where they are missing; what an
//! administrator changed stays.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::answer::Warnings;
use crate::auth::{AUTHENTICATED, Identity, MASTERS, UNAUTHENTICATED};
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
    let roles = cluster_roles().into_iter().map(|role| (RBAC, "clusterroles", role));
    let bindings = bindings().into_iter().map(|binding| (RBAC, "clusterrolebindings", binding));
    let classes = priority_classes().into_iter().map(|class| ("scheduling.k8s.io", "priorityclasses", class));
    let cidr =
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [server.service_cidr.trunc().to_string()]}});
    let range = std::iter::once(("networking.k8s.io", "servicecidrs", cidr));
    let all = namespaces.chain(roles).chain(bindings).chain(classes).chain(range);
    let writes: Vec<_> = all.map(|(group, resource, object)| ensure(server.clone(), group, resource, object)).collect();
    futures::future::join_all(writes).await.into_iter().collect()
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
    let object_name = object["metadata"]["name"].as_str().unwrap_or_default();
    if server.store.get(&resource.key("", object_name)).is_some() {
        return Ok(());
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind());
    let who = Identity::internal("system:apiserver");
    let path =
        ResourcePath { group: group.into(), version: "v1".into(), resource: name.into(), ..ResourcePath::default() };
    let (query, headers, warnings) = (Query::default(), HeaderMap::new(), Warnings::default());
    let (query, headers, warnings, accept) = (&query, &headers, &warnings, Accept::JSON);
    let cx = Context { server, who: &who, resource, path: &path, query, headers, accept, warnings };
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

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}}, "rules": rules})
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// What people with the view role can read: everything in a namespace but secrets and access rules.
fn view_rules() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &[
                "bindings",
                "configmaps",
                "endpoints",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "pods/log",
                "pods/status",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "replicationcontrollers/status",
                "resourcequotas",
                "resourcequotas/status",
                "serviceaccounts",
                "services",
                "services/status",
            ],
            &READ,
        ),
        rule(&["apps", "autoscaling", "batch", "networking.k8s.io", "policy", "discovery.k8s.io"], &["*"], &READ),
    ]
}

/// What people with the edit role can do besides.
fn edit_rules() -> Vec<Value> {
    let mut rules = view_rules();
    rules.extend([
        rule(
            &[""],
            &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
            &READ,
        ),
        rule(
            &[""],
            &[
                "configmaps",
                "endpoints",
                "events",
                "persistentvolumeclaims",
                "pods",
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
            &WRITE,
        ),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&["apps", "autoscaling", "batch", "networking.k8s.io", "policy"], &["*"], &WRITE),
    ]);
    rules
}

fn admin_rules() -> Vec<Value> {
    let every: Vec<&str> = READ.into_iter().chain(WRITE).collect();
    let mut rules = edit_rules();
    rules.extend([
        rule(&[RBAC], &["roles", "rolebindings"], &every),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ]);
    rules
}

fn cluster_roles() -> Vec<Value> {
    let all =
        json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let public = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let self_reviews = json!([
        rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
        rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
    ]);
    let issuer = [
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/",
        "/openid/v1/jwks",
        "/openid/v1/jwks/",
    ];
    vec![
        role("cluster-admin", all),
        role("admin", json!(admin_rules())),
        role("edit", json!(edit_rules())),
        role("view", json!(view_rules())),
        role("system:discovery", json!([{"nonResourceURLs": discovery, "verbs": ["get"]}])),
        role("system:basic-user", self_reviews),
        role("system:public-info-viewer", json!([{"nonResourceURLs": public, "verbs": ["get"]}])),
        role("system:service-account-issuer-discovery", json!([{"nonResourceURLs": issuer, "verbs": ["get"]}])),
    ]
}

fn bindings() -> Vec<Value> {
    let bind = |name: &str, groups: &[&str]| {
        let subjects: Vec<Value> =
            groups.iter().map(|group| json!({"kind": "Group", "apiGroup": RBAC, "name": group})).collect();
        let mut binding = role(name, Value::Null);
        if let Some(members) = binding.as_object_mut() {
            members.remove("rules");
        }
        binding["roleRef"] = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": name});
        binding["subjects"] = json!(subjects);
        binding
    };
    vec![
        bind("cluster-admin", &[MASTERS]),
        bind("system:discovery", &[AUTHENTICATED]),
        bind("system:basic-user", &[AUTHENTICATED]),
        bind("system:public-info-viewer", &[AUTHENTICATED, UNAUTHENTICATED]),
        bind("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ]
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
