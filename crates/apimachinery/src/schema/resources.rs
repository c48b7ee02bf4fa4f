//! The resources that a server of Kubernetes 1.35 serves by default. A static table: reading it costs nothing.

use super::table::RESOURCES;

/// One resource of one API version.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, `v1`.
    pub version: &'static str,
    /// Plural name, as in URLs.
    pub resource: &'static str,
    /// Singular name, which `kubectl get` understands too.
    pub singular: &'static str,
    /// Kind of the objects.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether [`Self::version`] is the preferred one of the group.
    pub preferred: bool,
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
    /// Short names: `po`, `deploy`.
    pub short_names: &'static [&'static str],
    /// Categories: `all`, `api-extensions`.
    pub categories: &'static [&'static str],
    /// What hangs below one object.
    pub subresources: &'static [Subresource],
}

/// A subresource: `status`, `scale`, `exec`.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Name, the last part of the URL.
    pub name: &'static str,
    /// Group of [`Self::kind`].
    pub group: &'static str,
    /// Version of [`Self::kind`].
    pub version: &'static str,
    /// Kind of the body.
    pub kind: &'static str,
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
}

/// An API group and its versions, the preferred one first.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// Name; empty for the core group.
    pub name: &'static str,
    /// Versions.
    pub versions: Vec<&'static str>,
}

pub(super) const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
pub(super) const CREATE: &[&str] = &["create"];
pub(super) const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];

#[expect(clippy::too_many_arguments, reason = "a row of the generated table")]
pub(super) const fn resource(
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    preferred: bool,
    verbs: &'static [&'static str],
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    subresources: &'static [Subresource],
) -> Resource {
    Resource {
        group,
        version,
        resource,
        singular,
        kind,
        namespaced,
        preferred,
        verbs,
        short_names,
        categories,
        subresources,
    }
}

pub(super) const fn subresource(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

impl Resource {
    /// The kind of a list of these: `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// Whether a verb is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of a name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether objects of this resource are stored (reviews, bindings and the like are only answered).
    pub fn is_stored(&self) -> bool {
        self.allows("get") && self.allows("create")
    }
}

impl Subresource {
    /// Whether a verb is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// `autoscaling/v1` for `scale`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Every built-in resource, groups in Kubernetes' order of priority, the core group first.
pub fn resources() -> &'static [Resource] {
    RESOURCES
}

/// The resource of a plural name.
pub fn resource_named(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.resource == plural && r.group == group && r.version == version)
}

/// The resource of a kind.
pub fn resource_of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// The API groups in Kubernetes' order of priority, the core group first.
pub fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for resource in RESOURCES {
        match groups.iter_mut().find(|g| g.name == resource.group) {
            None => groups.push(Group { name: resource.group, versions: vec![resource.version] }),
            Some(group) if group.versions.contains(&resource.version) => {}
            Some(group) if resource.preferred => group.versions.insert(0, resource.version),
            Some(group) => group.versions.push(resource.version),
        }
    }
    groups
}
