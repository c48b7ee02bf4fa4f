//! The URLs of a resource and what can be done there, for both versions of the specification.

use super::Custom;
use super::schema::name_of;
use crate::schema::{Resource, types};

/// A URL.
pub(super) struct PathSpec {
    pub path: String,
    /// Names in braces.
    pub parameters: Vec<&'static str>,
    pub operations: Vec<OperationSpec>,
}

/// What a method does.
pub(super) struct OperationSpec {
    pub method: &'static str,
    /// `x-kubernetes-action`.
    pub action: &'static str,
    pub id: String,
    pub tag: String,
    pub gvk: [String; 3],
    /// Query parameters: name and type.
    pub query: Vec<(&'static str, &'static str)>,
    pub body: Option<String>,
    pub response: Option<String>,
}

const WRITE: [(&str, &str); 3] = [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: [(&str, &str); 4] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: [(&str, &str); 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const LIST: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];

/// The content types of a patch.
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The content types of a patch of a kind: strategic merge patches need a built-in type.
pub(super) fn patch_types([group, version, kind]: &[String; 3]) -> &'static [&'static str] {
    let builtin = types().for_gvk(group, version, kind).is_some();
    if builtin { &PATCH_TYPES } else { &PATCH_TYPES[..3] }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// A resource, built in or not.
struct View<'a> {
    group: &'a str,
    version: &'a str,
    plural: &'a str,
    namespaced: bool,
}

/// What is at one URL: the kind of its objects and their schema.
struct Target<'a> {
    gvk: (&'a str, &'a str, &'a str),
    schema: Option<String>,
    list_schema: Option<String>,
    /// Empty, or the name of the subresource.
    subresource: &'a str,
}

/// The URLs of a built-in resource.
pub(super) fn of_resource(resource: &'static Resource) -> Vec<PathSpec> {
    let Resource { group, version, resource: plural, kind, namespaced, .. } = *resource;
    let view = View { group, version, plural, namespaced };
    let main = Target {
        gvk: (group, version, kind),
        schema: name_of(group, version, kind),
        list_schema: name_of(group, version, &resource.list_kind()),
        subresource: "",
    };
    let mut paths = view.main_paths(&main, resource.verbs);
    for sub in resource.subresources {
        let target = Target {
            gvk: (sub.group, sub.version, sub.kind),
            schema: name_of(sub.group, sub.version, sub.kind),
            list_schema: None,
            subresource: sub.name,
        };
        paths.push(view.item_path(&target, sub.verbs));
    }
    paths
}

/// The URLs of a custom resource.
pub(super) fn of_custom(custom: &Custom<'_>) -> Vec<PathSpec> {
    let view =
        View { group: custom.group, version: custom.version, plural: custom.plural, namespaced: custom.namespaced };
    let target = |subresource| Target {
        gvk: (custom.group, custom.version, custom.kind),
        schema: Some(custom.definition(custom.kind)),
        list_schema: Some(custom.definition(custom.list_kind)),
        subresource,
    };
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut paths = view.main_paths(&target(""), &verbs);
    if custom.status {
        paths.push(view.item_path(&target("status"), &["get", "patch", "update"]));
    }
    if custom.scale {
        let gvk = ("autoscaling", "v1", "Scale");
        let schema = name_of(gvk.0, gvk.1, gvk.2);
        let scale = Target { gvk, schema, list_schema: None, subresource: "scale" };
        paths.push(view.item_path(&scale, &["get", "patch", "update"]));
    }
    paths
}

impl View<'_> {
    fn main_paths(&self, target: &Target<'_>, verbs: &[&str]) -> Vec<PathSpec> {
        let mut paths = Vec::new();
        if self.namespaced && verbs.contains(&"list") {
            paths.push(PathSpec {
                path: format!("{}/{}", self.root(), self.plural),
                parameters: Vec::new(),
                operations: vec![self.operation(target, "list", "ForAllNamespaces")],
            });
        }
        let operations = |names: &[&'static str]| -> Vec<OperationSpec> {
            names.iter().filter(|v| verbs.contains(v)).map(|v| self.operation(target, v, "")).collect()
        };
        let collection = operations(&["list", "create", "deletecollection"]);
        if !collection.is_empty() {
            let parameters = if self.namespaced { vec!["namespace"] } else { Vec::new() };
            paths.push(PathSpec { path: self.collection(), parameters, operations: collection });
        }
        let item = self.item_path(target, verbs);
        if !item.operations.is_empty() {
            paths.push(item);
        }
        paths
    }

    /// The URL of one object, or of a subresource.
    fn item_path(&self, target: &Target<'_>, verbs: &[&str]) -> PathSpec {
        let mut path = format!("{}/{{name}}", self.collection());
        let mut allowed: Vec<&'static str> = vec!["get", "update", "patch", "delete"];
        if !target.subresource.is_empty() {
            path = format!("{path}/{}", target.subresource);
            allowed.push("create");
        }
        let parameters = if self.namespaced { vec!["name", "namespace"] } else { vec!["name"] };
        let operations = allowed.iter().filter(|v| verbs.contains(v)).map(|v| self.operation(target, v, "")).collect();
        PathSpec { path, parameters, operations }
    }

    fn root(&self) -> String {
        format!("/{}", super::url_of(self.group, self.version))
    }

    fn collection(&self) -> String {
        let scope = if self.namespaced { "/namespaces/{namespace}" } else { "" };
        format!("{}{scope}/{}", self.root(), self.plural)
    }

    fn operation(&self, target: &Target<'_>, verb: &str, suffix: &str) -> OperationSpec {
        let (group, version, kind) = target.gvk;
        // A kind that is only a set of parameters stands for a connection.
        let connect = target.schema.is_none();
        let object = || target.schema.clone();
        let status = || Some(format!("{META}.Status"));
        let (method, action, name, query, body, response): (_, _, _, Vec<_>, _, _) = match verb {
            "list" => ("get", "list", "list", LIST.to_vec(), None, target.list_schema.clone()),
            "create" if connect => ("post", "connect", "connectPost", Vec::new(), None, None),
            "create" => ("post", "post", "create", WRITE.to_vec(), object(), object()),
            "update" if connect => ("put", "connect", "connectPut", Vec::new(), None, None),
            "update" => ("put", "put", "replace", WRITE.to_vec(), object(), object()),
            "patch" if connect => ("patch", "connect", "connectPatch", Vec::new(), None, None),
            "patch" => ("patch", "patch", "patch", PATCH.to_vec(), Some(format!("{META}.Patch")), object()),
            "delete" if connect => ("delete", "connect", "connectDelete", Vec::new(), None, None),
            "delete" => {
                ("delete", "delete", "delete", DELETE.to_vec(), Some(format!("{META}.DeleteOptions")), status())
            }
            "deletecollection" => {
                let query = DELETE.iter().chain(&LIST).filter(|p| !is_watch_only(p.0)).copied().collect();
                let body = Some(format!("{META}.DeleteOptions"));
                ("delete", "deletecollection", "deleteCollection", query, body, status())
            }
            _ if connect => ("get", "connect", "connectGet", Vec::new(), None, None),
            _ => ("get", "get", "read", Vec::new(), None, object()),
        };
        let scope = if self.namespaced && suffix.is_empty() { "Namespaced" } else { "" };
        let api = format!("{}{}", group_name(self.group), camel(self.version));
        let resource_kind = if target.subresource.is_empty() { kind.to_owned() } else { camel(self.plural) };
        OperationSpec {
            method,
            action,
            id: format!("{name}{api}{scope}{resource_kind}{}{suffix}", camel(target.subresource)),
            tag: format!("{}_{}", group_name(self.group).to_lowercase(), self.version),
            gvk: [group.to_owned(), version.to_owned(), kind.to_owned()],
            query,
            body,
            response,
        }
    }
}

fn is_watch_only(name: &str) -> bool {
    matches!(name, "watch" | "allowWatchBookmarks")
}

fn camel(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(characters).collect()
}

/// `Core`, `Apps`, `RbacAuthorization`.
fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    group.trim_end_matches(".k8s.io").split('.').map(camel).collect()
}
