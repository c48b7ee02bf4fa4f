//! Which resources the server has, and what people call them.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Call, Cluster, text};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource in one version of its API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `pods`.
    pub plural: String,
    /// `pod`.
    pub singular: String,
    /// `Pod`.
    pub kind: String,
    /// Its objects lie in namespaces.
    pub namespaced: bool,
    /// `po`.
    pub short_names: Vec<String>,
    /// `all`.
    pub categories: Vec<String>,
    /// `get`, `list` ...
    pub verbs: Vec<String>,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `pod` or `deployment.apps`, as commands print it.
    pub fn display(&self) -> String {
        let name = if self.singular.is_empty() { self.kind.to_lowercase() } else { self.singular.clone() };
        match self.group.as_str() {
            "" => name,
            group => format!("{name}.{group}"),
        }
    }

    /// The path of all objects, of a namespace if one is given.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api/" } else { "/apis/" };
        let version = self.api_version();
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}{version}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}{version}/{}", self.plural),
        }
    }

    /// The path of one object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.path(Some(namespace)))
    }

    fn is_called(&self, name: &str) -> bool {
        let same = |own: &str| own.eq_ignore_ascii_case(name);
        same(&self.plural) || same(&self.singular) || same(&self.kind) || self.short_names.iter().any(|own| same(own))
    }
}

/// What a server has.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    resources: Vec<Resource>,
}

impl Discovery {
    /// Asks the server: two requests, or one per group version of an old server.
    pub async fn load(cluster: &Cluster) -> Result<Self> {
        let mut resources = Vec::new();
        for root in ["/api", "/apis"] {
            let (_, document) = cluster.call(root, Call { accept: AGGREGATED, ..Call::default() }).await?;
            match text(&document, "/kind") {
                "APIGroupDiscoveryList" => resources.extend(aggregated(&document)),
                _ => resources.extend(one_by_one(cluster, root, &document).await?),
            }
        }
        Ok(Self { resources })
    }

    /// The resource people call `name`: plural, singular, kind or short name, perhaps with `.group` or `.version.group`.
    pub fn resolve(&self, name: &str) -> Result<&Resource> {
        let (bare, rest) = name.split_once('.').unwrap_or((name, ""));
        let fits = |resource: &&Resource| {
            let versioned = match resource.group.as_str() {
                "" => resource.version.clone(),
                group => format!("{}.{group}", resource.version),
            };
            resource.is_called(bare) && (rest.is_empty() || rest == resource.group || rest == versioned)
        };
        match self.resources.iter().find(fits) {
            Some(resource) => Ok(resource),
            None => bail!(
                "the server doesn't have a resource type {name:?}; for a custom one, apply its CustomResourceDefinition first"
            ),
        }
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.kind == kind && resource.api_version() == api_version)
    }

    /// The resources of a category such as `all`, each in its first version; none if there is no such category.
    pub fn category(&self, name: &str) -> Vec<&Resource> {
        let mut found: Vec<&Resource> = Vec::new();
        for resource in self.resources.iter().filter(|resource| resource.categories.iter().any(|c| c == name)) {
            if !found.iter().any(|other| other.group == resource.group && other.plural == resource.plural) {
                found.push(resource);
            }
        }
        found
    }
}

fn aggregated(document: &Value) -> Vec<Resource> {
    let mut resources = Vec::new();
    for group in items(document, "items") {
        for version in items(group, "versions") {
            for resource in items(version, "resources") {
                resources.push(Resource {
                    group: text(group, "/metadata/name").to_owned(),
                    version: text(version, "/version").to_owned(),
                    plural: text(resource, "/resource").to_owned(),
                    singular: text(resource, "/singularResource").to_owned(),
                    kind: text(resource, "/responseKind/kind").to_owned(),
                    namespaced: text(resource, "/scope") == "Namespaced",
                    short_names: strings(resource, "shortNames"),
                    categories: strings(resource, "categories"),
                    verbs: strings(resource, "verbs"),
                });
            }
        }
    }
    resources
}

/// Discovery as it was before Kubernetes 1.26. The preferred version of each group comes first.
async fn one_by_one(cluster: &Cluster, root: &str, document: &Value) -> Result<Vec<Resource>> {
    let mut versions: Vec<String> = strings(document, "versions");
    for group in items(document, "groups") {
        let preferred = text(group, "/preferredVersion/groupVersion");
        versions.push(preferred.to_owned());
        let others = items(group, "versions").map(|version| text(version, "/groupVersion"));
        versions.extend(others.filter(|version| *version != preferred).map(str::to_owned));
    }
    let mut resources = Vec::new();
    for version in versions {
        let list = cluster.get(&format!("{root}/{version}")).await?;
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        for resource in items(&list, "resources").filter(|resource| !text(resource, "/name").contains('/')) {
            resources.push(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: text(resource, "/name").to_owned(),
                singular: text(resource, "/singularName").to_owned(),
                kind: text(resource, "/kind").to_owned(),
                namespaced: resource["namespaced"].as_bool().unwrap_or(false),
                short_names: strings(resource, "shortNames"),
                categories: strings(resource, "categories"),
                verbs: strings(resource, "verbs"),
            });
        }
    }
    Ok(resources)
}

fn items<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    value[name].as_array().into_iter().flatten()
}

fn strings(value: &Value, name: &str) -> Vec<String> {
    items(value, name).filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn discovery() -> Discovery {
        let resource = |plural: &str, kind: &str, short: &[&str]| {
            json!({"resource": plural, "responseKind": {"kind": kind}, "scope": "Namespaced",
                "singularResource": kind.to_lowercase(), "shortNames": short, "categories": ["all"], "verbs": ["get"]})
        };
        let document = json!({"kind": "APIGroupDiscoveryList", "items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                resource("pods", "Pod", &["po"]), resource("events", "Event", &["ev"])]}]},
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
                resource("deployments", "Deployment", &["deploy"])]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                resource("events", "Event", &["ev"])]}]},
        ]});
        Discovery { resources: aggregated(&document) }
    }

    #[test]
    fn resources_have_many_names() {
        let discovery = discovery();
        for name in ["deploy", "deployment", "Deployments", "deployments.apps", "deploy.v1.apps", "Deployment"] {
            assert_eq!(discovery.resolve(name).unwrap().display(), "deployment.apps", "{name}");
        }
        assert_eq!(discovery.resolve("ev").unwrap().group, "");
        assert_eq!(discovery.resolve("ev.events.k8s.io").unwrap().group, "events.k8s.io");
        assert_eq!(discovery.resolve("po.v1").unwrap().object("a", "b"), "/api/v1/namespaces/a/pods/b");
        assert!(discovery.resolve("deploy.extensions").unwrap_err().to_string().contains("resource type"));
        assert_eq!(discovery.category("all").len(), 4);
    }
}
