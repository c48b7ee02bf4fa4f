//! Discovery: which groups, versions and resources there are.

use bytes::Bytes;
use http::{Response, StatusCode};
use mycelium_apimachinery::schema::{self, Group, Resource, Subresource};
use serde_json::{Value, json};

use crate::answer;
use crate::auth::tokens::ISSUER;
use crate::body::Body;
use crate::error::ApiError;
use crate::media::Accept;
use crate::resources::Table;

const AGGREGATED_TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers a discovery path.
pub fn answer(table: &Table, path: &str, accept: Accept) -> Result<Response<Body>, ApiError> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let found = match parts[..] {
        ["api"] if accept.aggregated => return Ok(aggregated_answer(table, true)),
        ["apis"] if accept.aggregated => return Ok(aggregated_answer(table, false)),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]})),
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": named_groups(table).map(|g| group_value(&g)).collect::<Vec<_>>()})),
        ["api", version] => resource_list(table, "", version),
        ["apis", group] => named_groups(table).find(|g| g.name == group).map(|g| {
            let mut value = group_value(&g);
            value["kind"] = json!("APIGroup");
            value["apiVersion"] = json!("v1");
            value
        }),
        ["apis", group, version] => resource_list(table, group, version),
        _ => None,
    };
    found.map(|value| answer::json(StatusCode::OK, &value)).ok_or(ApiError::NoSuchPath)
}

fn named_groups(table: &Table) -> impl Iterator<Item = Group> {
    table.versions().into_iter().filter(|g| !g.name.is_empty())
}

fn group_value(group: &Group) -> Value {
    let version = |v: &&str| json!({"groupVersion": schema::api_version(group.name, v), "version": v});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

fn of_version<'a>(table: &'a Table, group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> {
    table.facts().filter(move |r| r.group == group && r.version == version)
}

fn resource_list(table: &Table, group: &str, version: &str) -> Option<Value> {
    let mut items = Vec::new();
    for resource in of_version(table, group, version) {
        items.push(resource_value(resource));
        items.extend(resource.subresources.iter().map(|sub| subresource_value(resource, sub)));
    }
    (!items.is_empty()).then(|| {
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": schema::api_version(group, version),
            "resources": items})
    })
}

fn resource_value(resource: &Resource) -> Value {
    let mut value = json!({"name": resource.resource, "singularName": resource.singular,
        "namespaced": resource.namespaced, "kind": resource.kind, "verbs": resource.verbs});
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    value
}

fn subresource_value(resource: &Resource, sub: &Subresource) -> Value {
    let mut value = json!({"name": format!("{}/{}", resource.resource, sub.name), "singularName": "",
        "namespaced": resource.namespaced, "kind": sub.kind, "verbs": sub.verbs});
    if (sub.group, sub.version) != (resource.group, resource.version) {
        value["group"] = json!(sub.group);
        value["version"] = json!(sub.version);
    }
    value
}

fn aggregated_answer(table: &Table, core: bool) -> Response<Body> {
    let cached = &table.aggregated[usize::from(core)];
    let document = cached.get_or_init(|| Bytes::from(aggregated(table, core).to_string())).clone();
    answer::with_type(StatusCode::OK, AGGREGATED_TYPE, crate::body::full(document))
}

fn aggregated(table: &Table, core: bool) -> Value {
    let groups: Vec<Value> = table
        .versions()
        .iter()
        .filter(|g| g.name.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> =
                group.versions.iter().map(|v| aggregated_version(table, group.name, v)).collect();
            let metadata = if core { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": groups})
}

fn aggregated_version(table: &Table, group: &str, version: &str) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let resources: Vec<Value> = of_version(table, group, version)
        .map(|r| {
            let mut value = json!({"resource": r.resource, "responseKind": kind(r.group, r.version, r.kind),
                "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": r.singular,
                "verbs": r.verbs});
            if !r.short_names.is_empty() {
                value["shortNames"] = json!(r.short_names);
            }
            if !r.categories.is_empty() {
                value["categories"] = json!(r.categories);
            }
            if !r.subresources.is_empty() {
                let subs = r.subresources.iter().map(|s| {
                    json!({"subresource": s.name, "responseKind": kind(s.group, s.version, s.kind), "verbs": s.verbs})
                });
                value["subresources"] = subs.collect();
            }
            value
        })
        .collect();
    json!({"version": version, "freshness": "Current", "resources": resources})
}

/// The document under `/version`.
pub fn version() -> Value {
    json!({"major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "35", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34", "gitVersion": "v1.35.0+mycelium", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "go1.25.0", "compiler": "rustc",
        "platform": format!("linux/{}", platform())})
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The paths listed under `/`.
pub fn paths(table: &Table) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for group in named_groups(table) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
    );
    paths.sort();
    paths
}

/// The OpenID document of the token issuer.
pub fn openid() -> Value {
    json!({"issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"]})
}
