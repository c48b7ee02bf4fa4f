//! The objects that rules look at: those of the files, and those that are known to exist elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mycelium_api::selector::Selector;
use mycelium_apimachinery::schema::resources;
use serde_json::Value;

use crate::document::Document;
use crate::facts;
use crate::finding::{Finding, Severity};
use crate::positions::Origin;
use crate::value::{flag, labels, list, text};
use crate::workload::{self, Workload};

/// What is known besides the files.
#[derive(Clone, Debug)]
pub struct Context {
    /// The namespace of objects that name none.
    pub namespace: String,
    /// Labels of the nodes.
    pub nodes: Vec<BTreeMap<String, String>>,
    /// The objects of a cluster were given too: what is missing there is missing.
    pub cluster: bool,
    /// Objects (lower-case kind, name) that are said to exist elsewhere, in any namespace.
    pub present: BTreeSet<(String, String)>,
    /// Images that the machine has, if that was asked.
    pub images: Option<BTreeSet<String>>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            nodes: nodes(1),
            cluster: false,
            present: BTreeSet::new(),
            images: None,
        }
    }
}

/// Labels of nodes as an engine with so many of them has: one zone per node if there are several.
pub fn nodes(count: usize) -> Vec<BTreeMap<String, String>> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    (1..=count)
        .map(|number| {
            let mut labels: BTreeMap<String, String> = [
                ("kubernetes.io/os", "linux".to_owned()),
                ("kubernetes.io/arch", arch.to_owned()),
                ("beta.kubernetes.io/os", "linux".to_owned()),
                ("beta.kubernetes.io/arch", arch.to_owned()),
                ("kubernetes.io/hostname", format!("node-{number}")),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
            if count > 1 {
                labels.insert("topology.kubernetes.io/zone".to_owned(), format!("zone-{number}"));
            }
            labels
        })
        .collect()
}

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// All of it.
    pub value: Value,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Name; `generateName` followed by `*` if it has none.
    pub name: String,
    /// Where it was written; nothing for objects that are only known to exist. Patches follow, the last on top.
    pub(crate) origins: Vec<Origin>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl Object {
    /// Reads the identity of an object. Nothing without `apiVersion` and `kind`.
    pub(crate) fn new(value: Value, origins: Vec<Origin>) -> Option<Self> {
        let (api_version, kind) = (text(&value, "/apiVersion"), text(&value, "/kind"));
        if api_version.is_empty() || kind.is_empty() {
            return None;
        }
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let prefix = text(&value, "/metadata/generateName");
        let name = match text(&value, "/metadata/name") {
            "" if !prefix.is_empty() => format!("{prefix}*"),
            name => name.to_owned(),
        };
        let (group, version, kind) = (group.to_owned(), version.to_owned(), kind.to_owned());
        let namespace = text(&value, "/metadata/namespace").to_owned();
        Some(Self { value, group, version, kind, namespace, name, origins })
    }

    /// Whether it is one of those to check.
    pub fn is_local(&self) -> bool {
        !self.origins.is_empty()
    }

    /// Whether it is of a kind.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.kind == kind && self.group == group
    }

    /// `apps/v1`
    pub fn api_version(&self) -> &str {
        text(&self.value, "/apiVersion")
    }

    /// File and line of a field, or of the deepest part of its path that was written.
    pub fn place(&self, field: &str) -> Option<(&str, usize)> {
        // Lists of a patch are not numbered as those of the object.
        let patched = self.origins.iter().skip(1).rev().find_map(|origin| {
            let (line, there) = origin.positions.line(field);
            (there && !field.contains('[') && !field.is_empty()).then_some((&*origin.file, line))
        });
        patched.or_else(|| self.origins.first().map(|origin| (&*origin.file, origin.positions.line(field).0)))
    }

    /// Whether a field stands in a file, rather than being missing.
    #[cfg(test)]
    pub fn has_place(&self, field: &str) -> bool {
        self.origins.iter().any(|origin| origin.positions.line(field).1)
    }
}

/// Objects, and what is known besides them.
#[derive(Clone, Debug, Default)]
pub struct Set {
    objects: Vec<Object>,
    /// What is known besides.
    pub context: Context,
}

impl Set {
    /// Objects to check, objects that exist besides, and the rest that is known.
    pub fn new(objects: Vec<Object>, outside: Vec<Value>, context: Context) -> Self {
        let outside = outside.into_iter().filter_map(|value| Object::new(value, Vec::new()));
        let mut set = Self { objects, context };
        let known: Vec<Object> = outside.collect();
        let custom = CustomKinds::of(set.objects.iter().chain(&known));
        let namespace = set.context.namespace.clone();
        set.objects.iter_mut().for_each(|object| custom.place(object, &namespace));
        for mut object in known {
            custom.place(&mut object, &namespace);
            // What the files say of an object goes before what is there now.
            if set.find(&object.group, &object.kind, &object.namespace, &object.name).is_none() {
                set.objects.push(object);
            }
        }
        set
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter()
    }

    /// The objects to check.
    pub fn local(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| object.is_local())
    }

    /// The objects to check of a kind.
    pub fn local_of(&self, group: &'static str, kind: &'static str) -> impl Iterator<Item = &Object> {
        self.local().filter(move |object| object.is(group, kind))
    }

    /// All objects of a kind.
    pub fn of(&self, group: &'static str, kind: &'static str) -> impl Iterator<Item = &Object> {
        self.all().filter(move |object| object.is(group, kind))
    }

    /// An object by its name.
    pub fn find(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<&Object> {
        self.all().find(|object| object.is(group, kind) && object.namespace == namespace && object.name == name)
    }

    /// Whether an object was said to exist elsewhere.
    pub fn is_present(&self, kind: &str, name: &str) -> bool {
        let kind = kind.to_lowercase();
        let said = |name: &str| self.context.present.contains(&(kind.clone(), name.to_owned()));
        said(name) || said("*")
    }

    /// Everything that makes pods.
    pub fn workloads(&self) -> Vec<Workload<'_>> {
        self.all().filter_map(workload::of).collect()
    }

    /// Everything in a namespace that makes pods.
    pub fn workloads_in(&self, namespace: &str) -> Vec<Workload<'_>> {
        self.all().filter(|object| object.namespace == namespace).filter_map(workload::of).collect()
    }

    /// Whether pods that nothing here tells of may exist in a namespace: made by a controller of its own kind.
    pub fn may_have_other_pods(&self, namespace: &str) -> bool {
        self.all().any(|object| {
            object.namespace == namespace
                && workload::of(object).is_none()
                && !is_builtin_group(&object.group)
                && !facts::makes_no_pods(&object.group)
        })
    }

    /// The labels of a namespace, as far as they are known.
    pub fn namespace_labels(&self, name: &str) -> BTreeMap<String, String> {
        let mut known = self
            .find("", "Namespace", "", name)
            .map(|object| labels(&object.value, "/metadata/labels"))
            .unwrap_or_default();
        known.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        known
    }

    /// The names of all namespaces that are known, with those that every cluster has.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let always = ["default", "kube-system", "kube-public", "kube-node-lease"].map(str::to_owned);
        let defined = self.of("", "Namespace").map(|object| object.name.clone());
        let used = self.all().map(|object| object.namespace.clone()).filter(|name| !name.is_empty());
        always.into_iter().chain(defined).chain(used).collect()
    }

    /// Whether a selector of namespaces fits any that is known.
    pub fn any_namespace(&self, selector: &Selector) -> bool {
        self.namespaces().iter().any(|name| selector.matches(&self.namespace_labels(name)))
    }
}

/// Turns documents into objects. What is no object becomes a finding.
pub fn objects(documents: Vec<Document>) -> (Vec<Object>, Vec<Finding>) {
    let (mut objects, mut findings) = (Vec::new(), Vec::new());
    for document in documents {
        let Document { value, origin } = document;
        let (api_version, kind) = (!text(&value, "/apiVersion").is_empty(), !text(&value, "/kind").is_empty());
        match Object::new(value, vec![origin.clone()]) {
            Some(object) => objects.push(object),
            None => findings.push(no_object(&origin, api_version, kind)),
        }
    }
    (objects, findings)
}

fn no_object(origin: &Origin, api_version: bool, kind: bool) -> Finding {
    let (severity, missing) = match (api_version, kind) {
        (true, _) => (Severity::Error, "kind is missing"),
        (_, true) => (Severity::Error, "apiVersion is missing"),
        _ => (Severity::Warning, "this is no Kubernetes object: apiVersion and kind are missing"),
    };
    let fix = "every object needs apiVersion, kind and metadata.name; keep other files out of the folder";
    Finding::of_file(severity, "not-an-object", &origin.file, origin.positions.line("").0, missing, fix)
}

/// Whether a group is one of Kubernetes' own.
pub fn is_builtin_group(group: &str) -> bool {
    resources().iter().any(|resource| resource.group == group)
}

/// Whether objects of a built-in kind live in a namespace.
pub fn builtin_namespaced(group: &str, kind: &str) -> Option<bool> {
    resources().iter().find(|resource| resource.group == group && resource.kind == kind).map(|r| r.namespaced)
}

/// The custom kinds that are defined, and whether their objects live in a namespace.
struct CustomKinds(BTreeMap<(String, String), bool>);

impl CustomKinds {
    fn of<'a>(objects: impl Iterator<Item = &'a Object>) -> Self {
        let definitions = objects.filter(|object| object.is("apiextensions.k8s.io", "CustomResourceDefinition"));
        Self(
            definitions
                .map(|definition| {
                    let at = |pointer| text(&definition.value, pointer).to_owned();
                    ((at("/spec/group"), at("/spec/names/kind")), at("/spec/scope") != "Cluster")
                })
                .collect(),
        )
    }

    /// Gives an object the namespace it will be in.
    fn place(&self, object: &mut Object, namespace: &str) {
        let known = builtin_namespaced(&object.group, &object.kind)
            .or_else(|| self.0.get(&(object.group.clone(), object.kind.clone())).copied())
            .unwrap_or_else(|| !object.namespace.is_empty() || !object.kind.starts_with("Cluster"));
        if !known {
            object.namespace.clear();
        } else if object.namespace.is_empty() {
            namespace.clone_into(&mut object.namespace);
        }
    }
}

/// The versions that a definition serves, with their schemas.
pub(crate) fn served(definition: &Value) -> impl Iterator<Item = (&str, Option<&Value>)> {
    list(definition, "/spec/versions")
        .iter()
        .filter(|version| flag(version, "/served"))
        .map(|version| (text(version, "/name"), version.pointer("/schema/openAPIV3Schema")))
}
