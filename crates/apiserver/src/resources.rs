//! The table of resources the server knows, and where their objects lie in the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use mycelium_apimachinery::schema::{self, Type, api_version};
use mycelium_kinds::Kind;

/// One resource in one version.
pub struct Resource {
    /// What the schema says: names, scope, verbs, subresources.
    pub facts: &'static schema::Resource,
    /// The version in which objects are stored.
    pub storage_version: &'static str,
    /// Group part of the key.
    key_group: &'static str,
    /// The schema of this version.
    pub schema: &'static Type,
    /// Defaulting, validation, columns.
    pub behaviour: &'static Kind,
}

impl Resource {
    /// API group; empty for core.
    pub fn group(&self) -> &'static str {
        self.facts.group
    }

    /// API version.
    pub fn version(&self) -> &'static str {
        self.facts.version
    }

    /// Plural name.
    pub fn name(&self) -> &'static str {
        self.facts.resource
    }

    /// Kind.
    pub fn kind(&self) -> &'static str {
        self.facts.kind
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.facts.namespaced
    }

    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        api_version(self.group(), self.version())
    }

    /// Whether requests see the stored bytes as they are.
    pub fn is_storage_version(&self) -> bool {
        self.storage_version == self.version() && self.group() != "events.k8s.io"
    }

    /// Whether this is the core resource `name`.
    pub fn is_core(&self, name: &str) -> bool {
        self.group().is_empty() && self.name() == name
    }

    /// Whether objects are kept, rather than answered on the spot.
    pub fn stored(&self) -> bool {
        self.facts.is_stored()
    }

    /// The key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(if self.namespaced() { namespace } else { "" }))
    }

    /// The prefix of all objects, or of those in a namespace.
    pub fn prefix(&self, namespace: &str) -> String {
        let resource = self.name();
        let group = self.key_group;
        if namespace.is_empty() || !self.namespaced() {
            format!("/registry/{group}/{resource}/")
        } else {
            format!("/registry/{group}/{resource}/{namespace}/")
        }
    }
}

fn key_group(group: &'static str) -> &'static str {
    // Both groups serve the same objects.
    if group.is_empty() || group == "events.k8s.io" { "core" } else { group }
}

/// Resources of one version, by plural name.
type ByName = BTreeMap<&'static str, Arc<Resource>>;

/// Every resource, by group, version and plural name.
pub struct Table {
    groups: BTreeMap<&'static str, BTreeMap<&'static str, ByName>>,
}

impl Table {
    /// The built-in resources.
    pub fn builtin() -> Self {
        let all = schema::resources();
        let stored = |facts: &schema::Resource| {
            let preferred = all.iter().find(|r| r.group == facts.group && r.resource == facts.resource && r.preferred);
            preferred.map_or("v1", |r| r.version)
        };
        let mut table = Self { groups: BTreeMap::new() };
        for facts in all {
            let resource = Resource {
                facts,
                storage_version: stored(facts),
                key_group: key_group(facts.group),
                schema: schema::types().for_gvk(facts.group, facts.version, facts.kind).unwrap_or(&schema::ANY),
                behaviour: mycelium_kinds::kind(facts.group, facts.kind),
            };
            let versions = table.groups.entry(facts.group).or_default();
            versions.entry(facts.version).or_default().insert(facts.resource, Arc::new(resource));
        }
        table
    }

    /// The resource a path names.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.groups.get(group)?.get(version)?.get(resource)
    }
}
